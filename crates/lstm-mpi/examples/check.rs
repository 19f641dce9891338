//! Checks an installation of MPI: trains a small model on all ranks and prints a digest of the losses, the weights and
//! the optimizer's state, which must be the same for any number of ranks and any kind of machine.
//!
//! `mpirun -n 4 check [--steps N] [--shards S] [--save FILE] [--resume FILE]`
//!
//! For tests, `--change WHAT` lets the last rank differ, and `--fail WHAT` lets it fail in step 3.

use std::{collections::BTreeMap, fs, path::PathBuf, process::ExitCode, thread, time::Duration};

use lstm_cpu::{
    Cpu, Error, HostState, Input, Linear, Lstm, LstmConfig,
    arithmetic::Digest,
    ndarray::{Array3, s},
    train::{
        CheckpointExtras, Clip, Collective, LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, gather_state,
        masked_mean_squared_error, part_of_mean,
    },
};
use lstm_mpi::Mpi;

/// The error type of the program.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Sequences of a batch.
const BATCH: usize = 11;

/// Time steps of the sequences of a batch.
const LENGTHS: [usize; BATCH] = [24, 3, 17, 24, 1, 8, 24, 5, 21, 9, 24];

fn main() -> ExitCode {
    lstm_mpi::run(check)
}

fn check(mpi: &Mpi) -> Result<()> {
    let mut options = BTreeMap::new();
    let mut args = std::env::args().skip(1);
    while let Some(name) = args.next() {
        let known = ["--steps", "--shards", "--save", "--resume", "--change", "--fail"];
        if !known.contains(&&*name) {
            return Err(format!("expected options out of {}, got {name}", known.join(" ")).into());
        }
        let value = args.next().ok_or_else(|| format!("expected a value after {name}"))?;
        options.insert(name, value);
    }
    let text = |name: &str| options.get(name).map(String::as_str);
    let number = |name: &str, default: usize| text(name).map_or(Ok(default), str::parse);
    let steps = number("--steps", 6)? as u64;
    let is_last = mpi.rank() + 1 == mpi.size();
    let change = text("--change").filter(|_| is_last).unwrap_or_default();
    let fail = text("--fail").filter(|_| is_last).unwrap_or_default();

    let shards = number("--shards", 7)? + usize::from(change == "shards");
    let cpu = Cpu::builder().threads(1).build()?;
    let mut losses = Digest::default();
    let (mut trainer, mut state) = match text("--resume") {
        Some(path) => {
            let (trainer, mut extras) = Trainer::resume(&cpu, path)?;
            losses.0 = u64::from_str_radix(extras.text.get("losses").ok_or("not a checkpoint of this program")?, 16)?;
            (trainer, extras.take_state()?)
        }
        None => {
            let lstm = Lstm::random(&cpu, LstmConfig::new(5, 24).layers(2).dropout(0.25), 1)?;
            let head = Linear::random(&cpu, 24, 2, 2)?;
            let config = TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(0.01));
            let seed = if change == "seed" { 8 } else { 7 };
            let config = config.clip(Clip::Norm(1.0)).seed(seed).shards(shards);
            (Trainer::new(lstm, Some(head), config)?, None::<HostState>)
        }
    };
    let shards = trainer.config().shards;

    while trainer.steps() < steps {
        let k = trainer.steps() as usize;
        let mut x = Array3::from_shape_fn((BATCH, 24, 5), |(b, t, f)| {
            ((k * 31 + b * 7 + t * (f + 1)) % 17) as f32 / 17.0 - 0.5
        });
        if change == "input" {
            x[[0, 0, 0]] += 1.0;
        }
        let target = x.slice(s![.., .., ..2]).mapv(|v| v * v);
        let input = state.iter().fold(Input::from(&x).lengths(&LENGTHS), |input, state| input.state(state));
        if k == 2 {
            match fail {
                "kill" => process_kill(),
                "panic" => panic!("as requested"),
                "error" => return Err("as requested".into()),
                _ => {}
            }
        }
        let report = trainer.step_on(mpi, input, LossInput::Outputs, |out, shard| {
            let rows = shard.rows.clone();
            let target = target.slice(s![rows.clone(), .., ..]);
            let mean = masked_mean_squared_error(out.y()?, target, &LENGTHS[rows])?;
            let (loss, gradient) = part_of_mean(mean, shard.own_count, shard.count);
            Ok::<_, Error>((if fail == "nan" && k == 2 { f64::NAN } else { loss }, gradient))
        })?;
        for word in [report.loss.to_bits() as u32, (report.loss.to_bits() >> 32) as u32] {
            losses.add(f32::from_bits(word));
        }
        let mut all_states = report.state;
        gather_state(mpi, shards, &mut all_states)?;
        if let Some(path) = text("--save").filter(|_| mpi.is_first()) {
            let extras = CheckpointExtras::default().with_state(&all_states);
            trainer.save_with(path, &extras.with_text([("losses".to_owned(), losses.to_string())].into()))?;
        }
        state = Some(all_states);
    }
    if mpi.is_first() {
        println!("{mpi:?}: digest {}", digest(&trainer, losses)?);
    }
    Ok(())
}

/// The digest of the losses and of a checkpoint, which has the weights and the optimizer's state.
fn digest(trainer: &Trainer<Cpu>, losses: Digest) -> Result<Digest> {
    let path: PathBuf = std::env::temp_dir().join(format!("lstm-mpi-check-{}.safetensors", std::process::id()));
    trainer.save(&path)?;
    let mut digest = losses;
    fs::read(&path)?.into_iter().for_each(|byte| digest.add(f32::from_bits(byte.into())));
    fs::remove_file(path)?;
    Ok(digest)
}

/// Ends this process as the operating system does when memory is short, without any message to other ranks.
fn process_kill() {
    let _ = std::process::Command::new("kill").args(["-9", &std::process::id().to_string()]).status();
    thread::sleep(Duration::from_secs(60));
}
