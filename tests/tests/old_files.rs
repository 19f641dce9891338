//! Files of an old version load for ever, with the same bits: outputs of models, and losses and outputs of training runs
//! that go on. `tests/data/old/write.rs` wrote the files and computed the digests with commit 96f0beb.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use lstm_core::{
    Input, Lstm, Result, StateDict, Weights,
    arithmetic::Digest,
    ndarray::{Array3, s},
    train::{LossInput, Trainer, mean_squared_error},
};
use lstm_cpu::Cpu;
use lstm_formats::{OnnxModel, OpenOptions};

/// The files and their digests.
const DIGESTS: [(&str, &str); 19] = [
    ("run-dropout.safetensors", "2f0d06622579eebc"),
    ("trained.safetensors", "bdbc34dafad08c0a"),
    ("run-projection.safetensors", "e937ef36f0f58793"),
    ("run-diagonal.safetensors", "d39ad5bc23eaf7d5"),
    ("run-dense.safetensors", "e947a69b1f988346"),
    ("weights-fused.safetensors", "ab08dea569dfd9ca"),
    ("weights-f16.safetensors", "62820b02ca07ae9d"),
    ("weights-bf16.safetensors", "f8c8cb9077abb434"),
    ("weights-f64.safetensors", "32eba50c960538a4"),
    ("weights-options.safetensors", "a4cb4fd6b036fa16"),
    ("weights-reverse.safetensors", "85875c1aa30badf5"),
    ("weights-unfused.safetensors", "32eba50c960538a4"),
    ("weights-dense.safetensors", "925fa0e1e35c7275"),
    ("weights-diagonal.safetensors", "3aad539ce5ca88e8"),
    ("weights-notebook-fused.safetensors", "e6816a5f9314d518"),
    ("weights-notebook-unfused.safetensors", "e6816a5f9314d518"),
    ("weights-notebook-dense.safetensors", "ea6c1fec795bea50"),
    ("bidirectional.onnx", "b10b768c6da31259"),
    ("peephole.onnx", "9cd61a0bcd928a64"),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/old")
}

fn array(shape: (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_fn(shape, |(b, t, k)| ((b * 7 + t * 3 + k * 5) % 11) as f32 * 0.125 - 0.6)
}

/// The digest of a model's outputs.
fn outputs(weights: Weights) -> Result<String> {
    let x = array((2, 9, weights.config().input_size));
    let (y, state) = Lstm::new(&Cpu::new(), weights)?.forward(&x)?;
    Ok(Digest::of(y.iter().chain(&state.h).chain(&state.c)).to_string())
}

/// The digest of a run that goes on for four steps: what the caller saved with it, the losses, and the outputs after them.
fn run(path: &Path) -> Result<String> {
    let (mut run, mut extras) = Trainer::resume(&Cpu::new(), path)?;
    let mut digest = Digest::default();
    let state = extras.take_state()?.expect("a state was saved");
    state.h.iter().chain(&state.c).for_each(|&v| digest.add(v));
    assert_eq!(extras.text["at"], "3");
    for _ in 0..4 {
        let x = array((2, 40, run.lstm().config().input_size));
        let mut target = array((2, 40, 1)).mapv(|v| v * 0.5);
        target.slice_mut(s![1, 33.., ..]).fill(0.0);
        let loss = |out: lstm_core::train::ModelOutputs<'_>, _: &_| mean_squared_error(out.y()?, target.view());
        let report = run.step(Input::from(&x).lengths(&[40, 33]), LossInput::Outputs, loss)?;
        digest.add(report.loss as f32);
    }
    let x = array((2, 9, run.lstm().config().input_size));
    let (y, state) = run.predict(&x)?;
    y.iter().chain(&state.h).chain(&state.c).for_each(|&v| digest.add(v));
    Ok(digest.to_string())
}

#[test]
fn old_files_load_with_the_same_bits() {
    for (name, want) in DIGESTS {
        let path = folder().join(name);
        let digest = if name.starts_with("run-") {
            run(&path)
        } else if name.ends_with(".onnx") {
            let graph = OnnxModel::open(&path).unwrap().graph(&OpenOptions::default()).unwrap();
            outputs(graph.weights().lstms().next().unwrap().as_ref().clone())
        } else {
            let prefix = if name == "trained.safetensors" { "lstm." } else { "rnn." };
            StateDict::open(&path).and_then(|mut dict| outputs(dict.take_lstm(prefix)?))
        };
        assert_eq!(digest.unwrap(), want, "{name}");
    }
}

#[test]
fn no_file_is_left_out() {
    let names = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: BTreeSet<String> = names.filter(|name| name != "write.rs").collect();
    assert_eq!(names, DIGESTS.map(|(name, _)| name.to_owned()).into());
}
