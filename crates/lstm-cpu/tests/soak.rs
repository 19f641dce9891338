//! Tests that run for as long as `LSTM_SOAK_SECONDS` says, half a second without it: `cargo xtask soak` runs them for
//! long, and under sanitizers.

#[allow(dead_code, reason = "each test uses a part")]
#[path = "train/common.rs"]
mod common;

use std::{
    env, fs, process,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use common::TempDir;
use lstm_cpu::{
    Checkpointing, Cpu, Dropout, HostState, Init, Input, Isa, Linear, Lstm, LstmConfig, OutputGradients, Precision,
    Result, StateDict, StateDictWriter, TensorNames, Weights,
    ndarray::Array3,
    train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

/// How long each test runs.
fn duration() -> Duration {
    let seconds = env::var("LSTM_SOAK_SECONDS").map_or(0.5, |text| text.parse().expect("a number of seconds"));
    Duration::from_secs_f64(seconds)
}

fn x((batch, steps, features): (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_fn((batch, steps, features), |(b, t, k)| ((b * 31 + t * 17 + k * 7) % 23) as f32 / 11.5 - 1.0)
}

/// Results of one use of a backend.
type Results = Vec<Array3<f32>>;

fn add_state(results: &mut Results, state: HostState) {
    results.extend([state.h, state.c]);
}

/// A forward and a backward pass in both directions, of sequences of different lengths.
fn train(lstm: &Lstm<Cpu>, x: &Array3<f32>) -> Result<Results> {
    let lengths: Vec<usize> = (0..x.dim().0).map(|b| x.dim().1 - b % 3).collect();
    let input = Input::from(x).lengths(&lengths).dropout(Dropout::Seed(2));
    let pass = lstm.forward_train(input, Checkpointing::SaveEverything)?;
    let gradients = pass.tape.backward(OutputGradients::from(&pass.y).with_input_gradient())?;
    let mut results = vec![pass.y, gradients.x.unwrap()];
    add_state(&mut results, pass.state);
    add_state(&mut results, gradients.state);
    Ok(results)
}

/// Steps and a chunk of a stream.
fn stream(lstm: &Lstm<Cpu>, x: &Array3<f32>) -> Result<Results> {
    let (batch, _, features) = x.dim();
    let mut stream = lstm.stream(batch)?;
    let size = lstm.config().output_size();
    let mut y = vec![0.0; batch * size];
    for _ in 0..3 {
        stream.step(&x.as_slice().unwrap()[..batch * features], &mut y)?;
        stream.step_some(&[0, batch - 1], &x.as_slice().unwrap()[..2 * features], &mut y[..2 * size])?;
    }
    let mut results = vec![stream.chunk(x.view())?];
    add_state(&mut results, stream.state()?);
    Ok(results)
}

/// A training run of two steps.
fn run(cpu: &Cpu, config: &LstmConfig, x: &Array3<f32>) -> Result<Results> {
    let lstm = Lstm::random(cpu, config.clone(), 1)?;
    let head = Linear::random(cpu, config.output_size(), 2, 2)?;
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01));
    let mut trainer = Trainer::new(lstm, Some(head), config)?;
    let target = Array3::from_elem((x.dim().0, x.dim().1, 2), 0.25);
    for _ in 0..2 {
        trainer.step(x, LossInput::Outputs, |outputs, _| mean_squared_error(outputs.y()?, target.view()))?;
    }
    Ok(vec![trainer.predict(x)?.0])
}

#[test]
fn threads_share_a_pool_and_get_the_same_bits() {
    // The plain kernels are the only ones that Miri runs.
    let builder = || if cfg!(miri) { Cpu::builder().isa(Isa::Plain) } else { Cpu::builder() };
    let shape = if cfg!(miri) { (2, 3, 3) } else { (12, 9, 20) };
    let hidden = if cfg!(miri) { 9 } else { 72 };
    let config = LstmConfig::new(shape.2, hidden);
    let configs = [
        config.clone(),
        config.clone().layers(2).bidirectional(),
        config.clone().proj_size(hidden / 3),
        config.precision(Precision::Int8),
    ];
    let x = x(shape);
    let use_model = |cpu: &Cpu, lstm: &Lstm<Cpu>, n: usize| match n % 4 {
        0 => stream(&lstm.clone(), &x),
        1 => train(lstm, &x),
        2 => run(cpu, lstm.config(), &x),
        _ => lstm.forward(&x).map(|(y, state)| vec![y, state.h, state.c]),
    };
    let models = |cpu: &Cpu| configs.clone().map(|config| Lstm::random(cpu, config, 3).unwrap());
    let alone = builder().threads(1).build().unwrap();
    // Not every model streams or trains: then every use gives the same error.
    let expected: Vec<Vec<Option<Results>>> =
        models(&alone).iter().map(|lstm| (0..4).map(|n| use_model(&alone, lstm, n).ok()).collect()).collect();
    assert!(expected.iter().flatten().filter(|results| results.is_some()).count() >= 12);
    let shared = builder().threads(3).always_all_threads().build().unwrap();
    let models = models(&shared);
    let end = Instant::now() + duration();
    thread::scope(|scope| {
        for first in 0..4 {
            let (models, expected, shared) = (&models, &expected, &shared);
            scope.spawn(move || {
                for n in first.. {
                    let (k, n) = (n / 4 % models.len(), n % 4);
                    assert!(use_model(shared, &models[k], n).ok() == expected[k][n], "model {k}, use {n}");
                    if Instant::now() > end || cfg!(miri) {
                        break;
                    }
                }
            });
        }
        // Pools that come and go.
        while Instant::now() < end && !cfg!(miri) {
            let pool = builder().threads(2).always_all_threads().build().unwrap();
            let lstm = Lstm::random(&pool, configs[1].clone(), 3).unwrap();
            assert!(use_model(&pool, &lstm, 3).ok() == expected[1][3]);
        }
    });
}

/// Set in the process that is killed: the file that it saves again and again.
#[cfg(all(unix, not(miri)))]
const SAVED: &str = "LSTM_SOAK_SAVED";

/// The weights that the killed process saves as number `n`.
#[cfg(all(unix, not(miri)))]
fn weights(n: u64) -> Weights {
    Weights::init(LstmConfig::new(64, 128), &Init::default(), n).unwrap()
}

#[cfg(all(unix, not(miri)))]
#[test]
fn a_file_is_whole_after_a_killed_save() {
    if let Some(path) = env::var_os(SAVED) {
        let weights = [weights(0), weights(1)];
        for n in 0.. {
            let writer = StateDictWriter::new().lstm("", &weights[n % 2], TensorNames::PyTorch).unwrap();
            writer.save(&path).unwrap();
        }
    }
    let dir = TempDir::new();
    let (path, possible) = (dir.file("weights"), [weights(0), weights(1)]);
    let end = Instant::now() + duration();
    let (mut kills, mut seen) = (0, [0; 2]);
    while Instant::now() < end || kills < 3 {
        let _ = fs::remove_file(&path);
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_file_is_whole_after_a_killed_save"])
            .env(SAVED, &path)
            .stdout(process::Stdio::null())
            .spawn()
            .unwrap();
        // Its later saves replace the first.
        while !path.exists() {
            assert_eq!(child.try_wait().unwrap(), None, "the process that saves ended");
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(Duration::from_micros(2_000 + kills * 7_919 % 20_000));
        // SIGKILL.
        child.kill().unwrap();
        child.wait().unwrap();
        let saved = StateDict::open(&path).and_then(|mut dict| dict.take_lstm("")).expect("the file is whole");
        let k = possible.iter().position(|weights| *weights == saved).expect("one of the saved files");
        (kills, seen[k]) = (kills + 1, seen[k] + 1);
    }
    println!("{kills} kills; the files found: {seen:?}");
    let left = fs::read_dir(path.parent().unwrap()).unwrap().count();
    println!("{left} files in the directory");
    assert!(left <= 2, "the file and the temporary file of the last kill; a save removes older ones");
}

/// Set in the process whose memory is measured, in which nothing else runs.
#[cfg(all(target_os = "linux", not(miri)))]
const MEASURED: &str = "LSTM_SOAK_MEASURED";

/// Bytes of memory that the process has, without those that are swapped out.
#[cfg(all(target_os = "linux", not(miri)))]
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[cfg(all(target_os = "linux", not(miri)))]
#[test]
fn memory_stays_the_same_over_many_steps() {
    if env::var_os(MEASURED).is_none() {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "memory_stays_the_same_over_many_steps", "--nocapture", "--test-threads=1"])
            .env(MEASURED, "1")
            .output()
            .unwrap();
        print!("{}", String::from_utf8_lossy(&output.stdout));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let steps: u64 = env::var("LSTM_SOAK_STEPS").map_or(100_000, |text| text.parse().expect("a number of steps"));
    let cpu = Cpu::builder().threads(1).build().unwrap();
    let mut streams = [LstmConfig::new(1, 8), LstmConfig::new(1, 8).precision(Precision::Int8)]
        .map(|config| Lstm::random(&cpu, config, 1).unwrap().stream(1).unwrap());
    let (x, mut y) = ([0.5], [0.0; 8]);
    let mut run = |steps: u64| {
        for _ in 0..steps / 2 {
            streams.iter_mut().for_each(|stream| stream.step(&x, &mut y).unwrap());
        }
    };
    run(1000);
    let before = resident_bytes();
    run(steps);
    let grown = resident_bytes().saturating_sub(before);
    println!("{steps} steps, {} KiB before, {} KiB more after", before >> 10, grown >> 10);
    // As many as three bytes per step, of the 100,000 steps without `LSTM_SOAK_STEPS`.
    assert!(grown < 256 << 10, "{steps} steps took {grown} bytes");
}
