//! `web_cases OUT`: writes models with the results that the browser must have, for `cargo xtask web`. Expected digests are
//! those of the snapshots, or of the CPU of this machine.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use lstm_core::{
    HostState, Init, Linear, LstmConfig, Model, ModelInput, ModelLayer, ModelWeights, Precision, StateDict, Weights,
    arithmetic::Digest,
    ndarray::{Array2, Array3, s},
    train::{ModelTrainer, OptimizerConfig, Schedule, TrainerConfig, mean_squared_error},
};
use lstm_cpu::Cpu;
use lstm_tests::{cases, training};
use serde_json::{Value, json};

/// Writes models and the results that the browser must have.
#[derive(Parser)]
struct Args {
    /// Directory to write to
    out: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse().out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let cpu = Cpu::builder().threads(1).build()?;
    let expected = json!({
        "cases": conformance_cases(out)?,
        "training": training_run(out, &cpu)?,
        "models": model_files(out, &cpu)?,
        "amp": amp(out, &cpu)?,
        "speed": speed(out, &cpu)?,
        "quantized": quantized(out, &cpu)?,
    });
    fs::write(out.join("expected.json"), expected.to_string())?;
    fs::write(out.join("forecast.json"), forecast(out, &cpu)?.to_string())?;
    Ok(())
}

/// The folder of this package.
fn package() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Exact as numbers of JSON, which are f64.
fn numbers<'a>(values: impl IntoIterator<Item = &'a f32>) -> Vec<f64> {
    values.into_iter().map(|&v| f64::from(v)).collect()
}

/// The digests in a snapshot, by the name of the array.
fn snapshot_digests(name: &str) -> Result<BTreeMap<String, String>> {
    let path = package().join("snapshots").join(format!("{name}.snap"));
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let digests = text.lines().filter_map(|line| {
        let (before, after) = line.split_once(" digest ")?;
        Some((before.split(' ').next()?.to_owned(), after.get(..16)?.to_owned()))
    });
    Ok(digests.collect())
}

fn linear(name: &str, layer: &Linear<Cpu>) -> ModelLayer {
    ModelLayer::Linear { name: name.into(), weight: layer.weight().clone(), bias: layer.bias().cloned() }
}

fn lstm(name: &str, weights: Weights) -> ModelLayer {
    ModelLayer::Lstm { name: name.into(), weights: Arc::new(weights), initial_state: None }
}

/// The cases of the conformance suite, except those of dropout, which only training has, and the largest.
fn conformance_cases(out: &Path) -> Result<Vec<Value>> {
    let mut list = Vec::new();
    let is_small = |case: &cases::Case| case.batch * case.steps * case.config.hidden_size < 5000;
    for case in cases::all_cases().into_iter().filter(|case| case.dropout_seed.is_none() && is_small(case)) {
        let data = case.data();
        ModelWeights::new(vec![lstm("lstm", case.weights()?)])?.save(out.join(format!("{}.safetensors", case.name)))?;
        let digests = snapshot_digests(&case.name)?;
        let states = data.state.as_ref().map(|state| numbers(state.h.iter().chain(&state.c)));
        let h_len = HostState::zeros(&case.config, case.batch)?.h.len();
        list.push(json!({
            "name": case.name, "batch": case.batch, "steps": case.steps, "x": numbers(&data.x), "lengths": case.lengths,
            "states": states, "hLength": h_len, "y": digests["y"], "h": digests["h_n"], "c": digests["c_n"],
            // A stream runs forward, over sequences of one length.
            "streams": case.lengths.is_none() && case.config.layer_specs().iter().all(|spec| !spec.reverse),
        }));
    }
    Ok(list)
}

/// The model and the data of a training run of the conformance suite, trained as a whole model.
fn training_run(out: &Path, cpu: &Cpu) -> Result<Value> {
    let run = training::runs().into_iter().find(|run| run.name == "adam-bidirectional-projection");
    let run = run.context("no such run")?;
    let trainer = run.start(cpu)?;
    let head = trainer.head().context("the run has a head")?;
    let weights = ModelWeights::new(vec![lstm("lstm", trainer.lstm().weights().clone()), linear("head", head)])?;
    weights.save(out.join("training.safetensors"))?;
    // Five batches in turn.
    let batches: Vec<_> = (0..5).map(|k| (run.inputs(k), run.targets(k))).collect();
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.02));
    let mut trainer = ModelTrainer::new(Model::new(cpu, weights)?, config)?;
    let mut losses = Digest::default();
    for k in 0..training::TRAINING_STEPS as usize {
        let (x, target) = &batches[k % 5];
        let loss = trainer.step(x, |outputs, _| mean_squared_error(outputs.y()?, target.view()))?.loss.to_bits();
        [loss as u32, (loss >> 32) as u32].into_iter().for_each(|half| losses.add(f32::from_bits(half)));
    }
    let mut file = StateDict::from_bytes(trainer.model().weights().to_bytes()?)?;
    let mut digests = BTreeMap::new();
    for name in file.names().map(str::to_owned).collect::<Vec<_>>() {
        let digest = Digest::of(&file.take_any(&name)?).to_string();
        digests.insert(name, digest);
    }
    let batch = batches[0].0.dim().0;
    let batches: Vec<_> =
        batches.iter().map(|(x, target)| json!({"x": numbers(x), "target": numbers(target)})).collect();
    Ok(json!({
        "steps": training::TRAINING_STEPS, "batch": batch, "batches": batches, "learningRate": 0.02,
        "losses": losses.to_string(), "parameters": digests,
    }))
}

/// Models of other programs, and broken files. Each has the digest of its outputs, or an error.
fn model_files(out: &Path, cpu: &Cpu) -> Result<Vec<Value>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(package().join("data/models"))? {
        let path = entry?.path();
        let name = path.file_name().context("a name")?.to_string_lossy().into_owned();
        if !name.contains(".expected.") && !name.ends_with(".py") && !name.ends_with(".txt") {
            files.insert(name, fs::read(&path)?);
        }
    }
    let amp = files["nam.nam"].clone();
    files.insert("broken.nam".into(), amp[..amp.len() / 2].to_vec());
    files.insert("broken.keras".into(), files["keras-last.keras"][..9000].to_vec());
    files.insert("empty".into(), Vec::new());
    files.insert("text.txt".into(), "Straße: not a model".into());
    let mut list = Vec::new();
    for (name, bytes) in files {
        fs::write(out.join(&name), &bytes)?;
        let mut value = match digest_of_file(&bytes, cpu) {
            Ok(digest) => json!({"digest": digest.to_string()}),
            Err(error) => json!({"error": error.to_string()}),
        };
        value["file"] = name.into();
        list.push(value);
    }
    let errors = list.iter().filter(|value| value.get("error").is_some()).count();
    ensure!(errors >= 4 && list.len() - errors >= 15, "{errors} errors of {} files", list.len());
    Ok(list)
}

/// The digest of a model's outputs for 2 sequences of 12 time steps.
fn digest_of_file(bytes: &[u8], cpu: &Cpu) -> lstm_core::Result<Digest> {
    let file = lstm_formats::open_bytes(bytes, &lstm_formats::OpenOptions::default())?;
    file.check_weights_suffice()?;
    let steps = file.steps.unwrap_or(12);
    let model = Model::new(cpu, file.weights)?;
    let weights = model.weights();
    let output = match weights.layers().first() {
        Some(ModelLayer::Embedding { weight, .. }) => {
            let tokens = Array2::from_shape_fn((2, steps), |(b, t)| ((b * steps + t) * 31 % weight.nrows()) as i64);
            model.forward(ModelInput::from(&tokens))?
        }
        _ => {
            let size = weights.input_size();
            let value = |(b, t, k)| (((b * steps + t) * size + k) * 31 % 101) as f32 / 64.0 - 0.75;
            model.forward(&Array3::from_shape_fn((2, steps, size), value))?
        }
    };
    Ok(Digest::of(&output.y))
}

/// A model and the digests of its outputs in each precision that a browser can quantize it to.
fn quantized(out: &Path, cpu: &Cpu) -> Result<Value> {
    let layers = vec![
        lstm("rec", Weights::init(LstmConfig::new(5, 37), &Init::default(), 7)?),
        linear("lin", &Linear::random(cpu, 37, 3, 8)?),
    ];
    let weights = ModelWeights::new(layers)?;
    weights.save(out.join("quantized.safetensors"))?;
    let (batch, steps) = (3, 7);
    let x =
        Array3::from_shape_fn((batch, steps, 5), |(b, t, k)| (((b * steps + t) * 5 + k) * 31 % 101) as f32 / 8.0 - 6.0);
    let mut digests = BTreeMap::new();
    for precision in [Precision::Int8, Precision::Int12] {
        let model = Model::new(cpu, weights.quantize(precision)?)?;
        digests.insert(precision.to_string(), Digest::of(&model.forward(&x)?.y).to_string());
    }
    Ok(json!({"batch": batch, "steps": steps, "x": numbers(&x), "digests": digests}))
}

/// A model of an amplifier with hidden size 40, and two seconds of a plucked string.
fn amp(out: &Path, cpu: &Cpu) -> Result<Value> {
    let layers = vec![
        lstm("rec", Weights::init(LstmConfig::new(1, 40), &Init::default(), 1)?),
        linear("lin", &Linear::random(cpu, 40, 1, 2)?),
    ];
    let weights = ModelWeights::new(layers)?.with_skip()?;
    weights.save(out.join("amp.safetensors"))?;
    let (rate, hertz) = (48_000, 110);
    let period = rate / hertz;
    let mut x: Vec<f32> =
        (0..750 * 128).map(|k| if k < period { (k * k % 101) as f32 / 101.0 - 0.5 } else { 0.0 }).collect();
    for k in period + 1..x.len() {
        x[k] = 0.498 * (x[k - period] + x[k - period - 1]);
    }
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(out.join("amp.f32"), bytes)?;
    let mut stream = Model::new(cpu, weights)?.stream(1)?;
    let mut digest = Digest::default();
    for v in &x {
        let mut y = [0.0];
        stream.step(&[*v], &mut y)?;
        digest.add(y[0]);
    }
    Ok(json!({"rate": rate, "digest": digest.to_string()}))
}

/// Models whose speed the browser reports, with the times of this machine: of a step in nanoseconds, and of a forward pass
/// of 100 time steps in milliseconds.
fn speed(out: &Path, cpu: &Cpu) -> Result<Value> {
    let model = |input, hidden, name: &str| {
        let weights = ModelWeights::new(vec![lstm(
            "lstm",
            Weights::init(LstmConfig::new(input, hidden), &Init::default(), 42)?,
        )])?;
        weights.save(out.join(name))?;
        Model::new(cpu, weights)
    };
    let fastest = |count: u32, run: &mut dyn FnMut() -> lstm_core::Result<()>| -> Result<f64> {
        let mut best = f64::INFINITY;
        for _ in 0..60 {
            let start = Instant::now();
            (0..count).try_for_each(|_| run())?;
            best = best.min(start.elapsed().as_secs_f64() / f64::from(count));
        }
        Ok(best)
    };
    let mut stream = model(1, 24, "speed-step.safetensors")?.stream(1)?;
    let mut y = [0.0; 24];
    let step = fastest(1000, &mut || stream.step(&[0.25], &mut y))?;
    let wide = model(64, 128, "speed-forward.safetensors")?;
    let x = Array3::from_shape_fn((1, 100, 64), |(_, t, k)| ((t * 64 + k) * 31 % 101) as f32 / 64.0 - 0.75);
    let forward = fastest(1, &mut || wide.forward(&x).map(drop))?;
    let digest = Digest::of(&wide.forward(&x)?.y).to_string();
    Ok(
        json!({"stepNs": step * 1e9, "forwardMs": forward * 1e3, "digest": digest, "instructions": cpu.isa().to_string()}),
    )
}

/// The forecast of the example `forecast`: training data, the untrained model, and the digest of the forecast. Logarithms
/// are given, because those of browsers may have other roundings.
fn forecast(out: &Path, cpu: &Cpu) -> Result<Value> {
    const YEAR: usize = 12;
    const HORIZON: usize = 24;
    let text = fs::read_to_string(package().join("data/passengers/passengers.csv"))?;
    let rows: Vec<(&str, f64)> = text
        .lines()
        .skip(1)
        .map(|line| {
            let (month, value) = line.split_once(',').context("two columns")?;
            Ok((month, value.parse()?))
        })
        .collect::<Result<_>>()?;
    let known = rows.len() - HORIZON;
    let mut logs: Vec<f64> = rows[..known].iter().map(|(_, value)| value.ln()).collect();
    let given_logs = logs.clone();
    let growths: Vec<f64> = logs.iter().zip(&logs[YEAR..]).map(|(old, new)| new - old).collect();
    let mean = growths.iter().sum::<f64>() / growths.len() as f64;
    let std = (growths.iter().map(|g| (g - mean) * (g - mean)).sum::<f64>() / (growths.len() as f64 - 1.0)).sqrt();
    let features = |logs: &[f64], t: usize| {
        let growth = |t: usize| (logs[t] - logs[t - YEAR] - mean) / std;
        [growth(t) as f32, if t + 1 >= 2 * YEAR { growth(t + 1 - YEAR) as f32 } else { 0.0 }]
    };
    let inputs = Array3::from_shape_fn((1, known - YEAR, 2), |(_, t, k)| features(&logs, YEAR + t)[k]);
    let (x, target) = (inputs.slice(s![.., ..-1, ..]), inputs.slice(s![.., 1.., ..1]));

    let (steps, rate, decay) = (600, 0.003f32, 0.015f32);
    let layers = vec![
        lstm("lstm", Weights::init(LstmConfig::new(2, 32), &Init::default(), 0)?),
        linear("head", &Linear::random(cpu, 32, 1, 1)?),
    ];
    let weights = ModelWeights::new(layers)?;
    weights.save(out.join("forecast.safetensors"))?;
    let config = TrainerConfig::new(OptimizerConfig::adam().weight_decay(decay), Schedule::cosine(rate, steps, 0.0));
    let mut trainer = ModelTrainer::new(Model::new(cpu, weights)?, config)?;
    let mut loss = 0.0;
    for _ in 0..steps {
        loss = trainer.step(x, |outputs, _| mean_squared_error(outputs.y()?, target))?.loss;
    }
    ensure!(loss < 0.5, "the loss is {loss}");

    let mut stream = trainer.model().stream(1)?;
    let (mut y, mut outputs) = ([0.0f32], Vec::new());
    for t in YEAR..known {
        stream.step(&features(&logs, t), &mut y)?;
    }
    for month in 0..HORIZON {
        if month > 0 {
            stream.step(&features(&logs, logs.len() - 1), &mut y)?;
        }
        outputs.push(y[0]);
        logs.push(logs[logs.len() - YEAR] + f64::from(y[0]) * std + mean);
    }
    Ok(json!({
        "months": rows.iter().map(|row| row.0).collect::<Vec<_>>(),
        "values": rows.iter().map(|row| row.1).collect::<Vec<_>>(),
        "logs": given_logs, "mean": mean, "std": std, "steps": steps,
        "learningRate": f64::from(rate), "weightDecay": f64::from(decay),
        "loss": loss, "digest": Digest::of(&outputs).to_string(),
    }))
}
