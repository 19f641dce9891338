// Wrote the files in this folder, as an example of lstm-cpu in commit 96f0beb: `cargo run -p lstm-cpu --example write -- FOLDER`.
// It also printed the digests in `tests/tests/old_files.rs`.

use lstm_cpu::{
    arithmetic::Digest,
    ndarray::{Array3, s},
    train::*,
    weights::state_dict::Dtype,
    *,
};
use std::{collections::BTreeMap, path::Path};

fn array(shape: (usize, usize, usize)) -> Array3<f32> {
    Array3::from_shape_fn(shape, |(b, t, k)| ((b * 7 + t * 3 + k * 5) % 11) as f32 * 0.125 - 0.6)
}
fn weights(config: LstmConfig, seed: u64) -> Weights {
    Weights::init(config, &Init::default(), seed).unwrap()
}
fn forward(weights: Weights) -> String {
    let x = array((2, 9, weights.config().input_size));
    let lstm = Lstm::new(&Cpu::new(), weights).unwrap();
    let (y, state) = lstm.forward(&x).unwrap();
    Digest::of(y.iter().chain(&state.h).chain(&state.c)).to_string()
}
fn step(trainer: &mut Trainer<Cpu>) -> f32 {
    let x = array((2, 40, trainer.lstm().config().input_size));
    let target = array((2, 40, 1)).mapv(|v| v * 0.5);
    let mut target = target;
    target.slice_mut(s![1, 33.., ..]).fill(0.0);
    let step = trainer.step(Input::from(&x).lengths(&[40, 33]), |y| mean_squared(y, target.view())).unwrap();
    step.loss as f32
}
fn go_on(path: &Path) -> String {
    let (mut run, mut extras) = Trainer::resume(&Cpu::new(), path).unwrap();
    let mut digest = Digest::default();
    let state = extras.take_state().unwrap().unwrap();
    state.h.iter().chain(&state.c).for_each(|&v| digest.add(v));
    assert_eq!(extras.text["at"], "3");
    for _ in 0..4 {
        digest.add(step(&mut run));
    }
    let x = array((2, 9, run.lstm().config().input_size));
    let (y, state) = run.predict(&x).unwrap();
    y.iter().chain(&state.h).chain(&state.c).for_each(|&v| digest.add(v));
    digest.to_string()
}
fn main() {
    let dir = std::path::PathBuf::from(std::env::args().nth(1).unwrap());
    std::fs::create_dir_all(&dir).unwrap();
    let b = Cpu::new();
    let deep = LstmConfig::new(2, 4).layers(2);
    for (name, config, head, settings) in [
        (
            "dropout",
            deep.clone().dropout(0.25),
            true,
            Settings::new(Method::adam(), Schedule::constant(0.01).warmup(4)).clip(Clip::Norm(0.5)).seed(11),
        ),
        (
            "projection",
            deep.clone().bidirectional().proj_size(2).dropout(0.5).clip(2.0),
            true,
            Settings::new(Method::adamw(), Schedule::cosine(0.02, 9, 0.001)).keep(Keep::Segments(32)).seed(12),
        ),
        (
            "diagonal",
            LstmConfig::new(2, 1).cell(CellKind::PeepholeDiagonal).coupled(),
            false,
            Settings::new(Method::momentum(0.9), Schedule::step(0.3, 20, 0.5)).clip(Clip::Value(0.05)),
        ),
        (
            "dense",
            LstmConfig::new(2, 3).cell(CellKind::PeepholeDense),
            true,
            Settings::new(Method::sgd(), Schedule::constant(0.1)).keep(Keep::SquareRoot),
        ),
    ] {
        let lstm = Lstm::random(&b, config.clone(), 1).unwrap();
        let head = head.then(|| Linear::random(&b, config.output_size(), 1, 2).unwrap());
        let mut trainer = Trainer::new(lstm, head, settings).unwrap();
        for _ in 0..3 {
            step(&mut trainer);
        }
        let zeros = HostState::zeros(&config, 2).unwrap();
        let state = HostState { h: array(zeros.h.dim()), c: array(zeros.c.dim()) };
        let extras =
            Extras { text: BTreeMap::from([("at".into(), "3".into())]), ..Extras::default() }.with_state(&state);
        let path = dir.join(format!("run-{name}.safetensors"));
        trainer.save_with(&path, &extras).unwrap();
        println!("(\"run-{name}\", \"{}\"),", go_on(&path));
        if name == "dropout" {
            let path = dir.join("trained.safetensors");
            trainer
                .save_model(&path, &BTreeMap::from([("author".to_string(), "waves, \"all\" of them".to_string())]))
                .unwrap();
            let mut dict = StateDict::open(&path).unwrap();
            println!("(\"trained\", \"{}\"),", forward(dict.take_lstm("lstm.").unwrap()));
        }
    }
    for (name, config, names, dtype) in [
        ("fused", deep.clone(), Names::PyTorch, Dtype::F32),
        ("f16", LstmConfig::new(3, 4), Names::PyTorch, Dtype::F16),
        ("bf16", LstmConfig::new(3, 4), Names::PyTorch, Dtype::BF16),
        ("f64", LstmConfig::new(3, 4), Names::PyTorch, Dtype::F64),
        ("options", LstmConfig::new(3, 4).clip(0.5).coupled().bidirectional(), Names::PyTorch, Dtype::F32),
        ("reverse", LstmConfig::new(3, 4).direction(Direction::Reverse).bias(Bias::One), Names::PyTorch, Dtype::F32),
        ("unfused", LstmConfig::new(3, 4).cell(CellKind::Unfused), Names::PyTorch, Dtype::F32),
        ("dense", LstmConfig::new(3, 4).cell(CellKind::PeepholeDense), Names::PyTorch, Dtype::F32),
        ("diagonal", LstmConfig::new(3, 4).cell(CellKind::PeepholeDiagonal).proj_size(2), Names::PyTorch, Dtype::F32),
        ("notebook-fused", LstmConfig::new(3, 4).bias(Bias::One), Names::Notebook, Dtype::F32),
        (
            "notebook-unfused",
            LstmConfig::new(3, 4).cell(CellKind::Unfused).bias(Bias::One),
            Names::Notebook,
            Dtype::F32,
        ),
        (
            "notebook-dense",
            LstmConfig::new(3, 4).cell(CellKind::PeepholeDense).bias(Bias::None),
            Names::Notebook,
            Dtype::F32,
        ),
    ] {
        let path = dir.join(format!("weights-{name}.safetensors"));
        StateDictWriter::new()
            .metadata("data", "a \"b\"")
            .dtype(dtype)
            .lstm("rnn.", &weights(config, 7), names)
            .unwrap()
            .save(&path)
            .unwrap();
        println!("(\"weights-{name}\", \"{}\"),", forward(StateDict::open(&path).unwrap().take_lstm("rnn.").unwrap()));
    }
    for (name, config, inputs) in [
        ("bidirectional", LstmConfig::new(3, 4).layers(2).bidirectional(), false),
        ("peephole", LstmConfig::new(3, 4).cell(CellKind::PeepholeDiagonal).clip(1.5), true),
    ] {
        let path = dir.join(format!("{name}.onnx"));
        let w = weights(config, 8);
        let writer = OnnxWriter::new(&w);
        let writer = if inputs { writer.initial_state().lengths() } else { writer };
        writer.save(&path).unwrap();
        println!("(\"{name}\", \"{}\"),", forward(OnnxModel::open(&path).unwrap().lstm().unwrap().weights));
    }
}
