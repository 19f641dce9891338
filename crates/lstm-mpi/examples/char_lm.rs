//! Trains a character-level language model on text over several ranks.
//!
//! `mpirun -n 4 char_lm --shards 4 --checkpoint run.safetensors FILE...`
//!
//! The checkpoint is saved at the end and every `--save-every` steps; the same command resumes it, on any number of ranks.
//! `--curve FILE` draws the losses at the end, as SVG. Losses and checkpoint are bit-identical for any number of ranks up to
//! the number of shards.

// The name of the library in the modules that this example shares with that for one process.
extern crate lstm_cpu as lstm;

#[path = "../../../examples/charts.rs"]
mod charts;
#[path = "../../../examples/char_lm/curve.rs"]
mod curve;

use std::{collections::BTreeMap, fs, path::Path, process::ExitCode, time::Instant};

use lstm_cpu::{
    Cpu, Error, HostState, Input, Linear, Lstm, LstmConfig,
    arithmetic::Digest,
    ndarray::Array3,
    train::{
        CheckpointExtras, Clip, IGNORE_INDEX, LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig,
        compare_ranks, cross_entropy, gather_state, part_of_mean,
    },
};
use lstm_mpi::Mpi;

use curve::{Losses, point};

/// The error type of the program.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    lstm_mpi::run(train)
}

/// Options with a number as their value, and the defaults.
const OPTIONS: [(&str, usize); 8] = [
    ("--shards", 4),
    ("--hidden", 128),
    ("--layers", 1),
    ("--batch", 32),
    ("--steps", 64),
    ("--train-steps", 200),
    ("--save-every", 50),
    // Of the CPU, for each rank. Use as many as the rank has cores.
    ("--threads", 1),
];

/// The options of the command line.
struct Options {
    numbers: BTreeMap<&'static str, usize>,
    checkpoint: String,
    curve: Option<String>,
    files: Vec<String>,
}

impl Options {
    fn parse() -> Result<Self> {
        let (numbers, checkpoint) = (BTreeMap::from(OPTIONS), "target/char_lm_mpi.safetensors".to_owned());
        let mut options = Options { numbers, checkpoint, curve: None, files: vec![] };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut value = || args.next().ok_or_else(|| format!("expected a value after {arg}"));
            if let Some((name, _)) = OPTIONS.iter().find(|(name, _)| *name == arg) {
                let value = value()?;
                let number = value.parse().ok().filter(|&number: &usize| number > 0);
                let number = number.ok_or_else(|| format!("{arg}: expected a positive number, got {value}"))?;
                options.numbers.insert(name, number);
            } else if arg == "--checkpoint" {
                options.checkpoint = value()?;
            } else if arg == "--curve" {
                options.curve = Some(value()?);
            } else if arg.starts_with('-') {
                let names = OPTIONS.map(|(name, _)| name).join(" ");
                return Err(format!("expected {names} --checkpoint --curve or a file, got {arg}").into());
            } else {
                options.files.push(arg);
            }
        }
        if options.files.is_empty() {
            return Err("expected the names of text files".into());
        }
        Ok(options)
    }
}

fn train(mpi: &Mpi) -> Result<()> {
    let options = Options::parse()?;
    let option = |name: &str| options.numbers.get(name).copied().unwrap_or_default();
    let (batch, steps, shards) = (option("--batch"), option("--steps"), option("--shards"));
    let mut text = Vec::new();
    for path in &options.files {
        text.extend(fs::read(path).map_err(|error| format!("{path}: {error}"))?);
    }
    // One class for each different byte.
    let mut bytes = text.clone();
    bytes.sort_unstable();
    bytes.dedup();
    let class = |position: usize| bytes.binary_search(&text[position]).unwrap_or_default();
    let stream_len = text.len() / batch;
    let chunks = stream_len.saturating_sub(1) / steps;
    if chunks == 0 {
        return Err(format!("expected a text of more than {} bytes, got {}", batch * (steps + 1), text.len()).into());
    }

    // Before training, so that a failure does not lose work.
    if let Some(folder) = Path::new(&options.checkpoint).parent().filter(|_| mpi.is_first()) {
        fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    }
    // All ranks read the checkpoint, so it must be on a file system that they share.
    let is_resumed = Path::new(&options.checkpoint).exists();
    let mut digest = Digest::default();
    text.iter().for_each(|&byte| digest.add(f32::from_bits(byte.into())));
    compare_ranks(
        mpi,
        &[
            ("text", format!("{} bytes of digest {digest}", text.len())),
            ("--train-steps", option("--train-steps").to_string()),
            ("--save-every", option("--save-every").to_string()),
            ("--batch and --steps", format!("{batch} {steps}")),
            ("checkpoint exists", is_resumed.to_string()),
        ],
    )?;
    // Another text, or other chunks of it, would be another run.
    let settings = BTreeMap::from([
        ("text".to_owned(), format!("{} bytes of digest {digest}", text.len())),
        ("--batch".to_owned(), batch.to_string()),
        ("--steps".to_owned(), steps.to_string()),
    ]);
    let cpu = Cpu::builder().threads(option("--threads")).build()?;
    let config = LstmConfig::new(bytes.len(), option("--hidden")).layers(option("--layers"));
    let (mut trainer, mut state, mut losses) = if is_resumed {
        let (trainer, mut extras) = Trainer::resume_as(&cpu, &options.checkpoint, &config, Some(bytes.len()))?;
        if trainer.config().shards != shards {
            let got = trainer.config().shards;
            return Err(format!("--shards: expected {got}, as in {}, got {shards}", options.checkpoint).into());
        }
        for (name, got) in &settings {
            let saved = extras.text.get(name).map_or("missing", String::as_str);
            if saved != got {
                let path = &options.checkpoint;
                return Err(format!(
                    "{name}: expected {saved}, as in {path}, got {got}; use that, or another --checkpoint for a new run"
                )
                .into());
            }
        }
        (trainer, extras.take_state()?, Losses::take_from(&mut extras)?)
    } else {
        let (lstm, head) = (Lstm::random(&cpu, config, 1)?, Linear::random(&cpu, option("--hidden"), bytes.len(), 2)?);
        let schedule = Schedule::constant(0.004).warmup(10);
        let config = TrainerConfig::new(OptimizerConfig::adamw(), schedule).clip(Clip::Norm(1.0)).shards(shards);
        (Trainer::new(lstm, Some(head), config)?, None::<HostState>, Losses::default())
    };

    let start = Instant::now();
    while trainer.steps() < option("--train-steps") as u64 {
        let chunk = trainer.steps() as usize % chunks;
        let position = |b: usize, t: usize| b * stream_len + chunk * steps + t;
        let hot_value = (bytes.len() as f32).sqrt();
        let mut x = Array3::zeros((batch, steps, bytes.len()));
        let mut targets = vec![IGNORE_INDEX; batch * steps];
        for b in 0..batch {
            for t in 0..steps {
                x[[b, t, class(position(b, t))]] = hot_value;
                targets[b * steps + t] = class(position(b, t) + 1);
            }
        }
        // The states of the rows of this rank; those of other ranks are not used.
        let given = state.as_ref().filter(|_| chunk > 0);
        let input = given.iter().fold(Input::from(&x), |input, state| input.state(state));
        let report = trainer.step_on(mpi, input, LossInput::Outputs, |out, shard| {
            let rows = shard.rows.start * steps..shard.rows.end * steps;
            Ok::<_, Error>(part_of_mean(cross_entropy(out.y()?, &targets[rows])?, shard.own_count, shard.count))
        })?;
        let bits = report.loss / std::f64::consts::LN_2;
        losses.training.push(point(report.step, bits));
        let mut all_states = report.state;
        let is_last = report.step == option("--train-steps") as u64;
        if is_last || report.step % option("--save-every") as u64 == 0 {
            gather_state(mpi, shards, &mut all_states)?;
            if mpi.is_first() {
                let extras = CheckpointExtras::default().with_text(settings.clone()).with_state(&all_states);
                trainer.save_with(&options.checkpoint, &losses.add_to(extras))?;
            }
        }
        if mpi.is_first() && (is_last || report.step % 10 == 0) {
            println!("step {}: {bits:.4} bits per character, {:.1} s", report.step, start.elapsed().as_secs_f64());
        }
        state = Some(all_states);
    }
    if let Some(path) = options.curve.filter(|_| mpi.is_first()) {
        losses.draw(Path::new(&path)).map_err(|error| format!("{path}: {error}"))?;
    }
    Ok(())
}
