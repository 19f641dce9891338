//! Runs the ONNX cases on every backend. `cargo xtask verify-onnx DIR` does the same for any directory.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, CellKind, Direction, ModelLayer};
use lstm_formats::{OnnxModel, OpenOptions, onnx::OnnxInputKind};
use lstm_tests::{
    backends::{self, BackendVisitor},
    onnx::OnnxCase,
    results::{Outcome, ResultLine, record_result},
    verify::case_files,
};

/// Models with one stack of LSTM layers.
const FOLDER: &str = "data/onnx";
/// Models of several formats, with the layers around their LSTMs.
const MODELS: &str = "data/models";

fn cases(folder: &str) -> Result<Vec<OnnxCase>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = case_files(&dir)?;
    // The quantized model is rejected.
    files
        .retain(|path| path.extension().is_some_and(|e| e == "onnx") && path.file_stem().is_some_and(|s| s != "quant"));
    files.iter().map(|path| OnnxCase::open(path)).collect()
}

/// Runs all cases on each backend that it visits, and records the results.
struct RunAll {
    cases: Vec<OnnxCase>,
    failures: Vec<String>,
}

impl BackendVisitor for RunAll {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        for case in &self.cases {
            let (passed, detail) = match case.score(&b) {
                Ok(scores) => {
                    let lines: Vec<_> = scores.iter().map(ToString::to_string).collect();
                    (scores.iter().all(|score| score.passes()), lines.join("; "))
                }
                Err(error) => (false, format!("{error:#}")),
            };
            let outcome = if passed { Outcome::Identical } else { Outcome::Failed };
            let recorded =
                record_result(&ResultLine { backend, group: "onnx", case: &case.name, outcome, detail: &detail });
            if !passed || recorded.is_err() {
                self.failures.push(format!("{} on {backend}: {detail} {recorded:?}", case.name));
            }
        }
    }
}

#[test]
fn outputs_match_other_runtimes() -> Result<()> {
    let mut run =
        RunAll { cases: [cases(FOLDER)?, cases(MODELS)?].into_iter().flatten().collect(), failures: Vec::new() };
    for not_run in backends::for_each_backend(backends::wanted_backends().as_deref(), &mut run) {
        println!("{not_run}");
    }
    ensure!(run.failures.is_empty(), "{}", run.failures.join("\n"));
    Ok(())
}

#[test]
fn cases_cover_every_option() -> Result<()> {
    let cases = cases(FOLDER)?;
    let configs: Vec<_> =
        cases.iter().flat_map(|case| case.graph.weights().lstms().map(|weights| weights.config())).collect();
    let directions: BTreeSet<_> = configs.iter().map(|c| format!("{:?}", c.direction)).collect();
    ensure!(directions.len() == 3, "{directions:?}");
    for (option, is_covered) in [
        ("peephole", configs.iter().any(|c| c.cell == CellKind::PeepholeDiagonal)),
        ("clip", configs.iter().any(|c| c.clip.is_some())),
        ("input_forget", configs.iter().any(|c| c.coupled)),
        ("layers", configs.iter().any(|c| c.num_layers > 1 && c.direction == Direction::Bidirectional)),
    ] {
        ensure!(is_covered, "no case with {option}");
    }
    // Each case must test what its name says.
    let case = |name: &str| cases.iter().find(|case| case.name == name).with_context(|| format!("no case {name}"));
    let states = |name: &str| -> Result<Vec<OnnxInputKind>> {
        let inputs = case(name)?.graph.inputs();
        Ok(inputs.iter().map(|i| i.kind.clone()).filter(|kind| matches!(kind, OnnxInputKind::State(_))).collect())
    };
    ensure!(states("keras-initial-state-per-layer")?.len() == 4, "{:?}", states("keras-initial-state-per-layer"));
    for name in ["two-nodes", "two-nodes-zeros"] {
        let weights = case(name)?.graph.weights();
        let config = weights.lstms().next().context("no LSTM")?.config();
        ensure!((config.num_layers, config.direction) == (2, Direction::Bidirectional), "{name}: {config}");
    }
    Ok(())
}

/// The layers of the models of a folder, by name.
#[test]
fn chains_have_the_layers_of_the_graph() -> Result<()> {
    let mut cases: BTreeMap<String, OnnxCase> = BTreeMap::new();
    for name in ["tagger", "two-sizes", "learned", "gobw", "st_8400", "act_hs", "state-in-joined", "if"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(MODELS).join(format!("{name}.onnx"));
        cases.insert(name.into(), OnnxCase::open(&path)?);
    }
    let kinds =
        |name: &str| -> Vec<&str> { cases[name].graph.weights().layers().iter().map(ModelLayer::kind).collect() };
    let expected = ["embedding", "lstm", "linear", "activation"];
    ensure!(kinds("tagger") == expected, "{:?}", kinds("tagger"));
    ensure!(kinds("two-sizes") == ["lstm", "lstm"], "{:?}", kinds("two-sizes"));
    let has_state = |name: &str| {
        cases[name]
            .graph
            .weights()
            .layers()
            .iter()
            .any(|layer| matches!(layer, ModelLayer::Lstm { initial_state: Some(_), .. }))
    };
    ensure!(has_state("learned") && !has_state("gobw"));
    let inputs = cases["state-in-joined"].graph.inputs();
    let OnnxInputKind::State(rows) = &inputs[1].kind else { anyhow::bail!("{inputs:?}") };
    ensure!(rows.iter().map(|rows| (rows.lstm, rows.is_c, rows.rows.clone())).eq([(0, false, 0..1), (0, true, 0..1)]));
    ensure!(cases["if"].graph.inputs()[1].kind == OnnxInputKind::Scalar(16000.0), "{:?}", cases["if"].graph.inputs());
    let quantized = OnnxModel::open(Path::new(env!("CARGO_MANIFEST_DIR")).join(MODELS).join("quant.onnx"))?;
    let error = quantized.graph(&OpenOptions::default()).unwrap_err().to_string();
    ensure!(error.contains("DynamicQuantizeLSTM") && error.contains("before quantization"), "{error}");
    Ok(())
}

#[cfg(feature = "cpu")]
mod sizes {
    use lstm_core::{Model, ndarray::ArrayD};
    use lstm_cpu::Cpu;
    use lstm_formats::OnnxArray;

    use super::*;

    #[test]
    fn rejects_inputs_of_other_sizes_than_the_file_declares() -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(FOLDER);
        let run = |name: &str, shapes: &[&[usize]]| -> Result<String> {
            let graph = OnnxModel::open(dir.join(name))?.graph(&OpenOptions::default())?;
            let model = Model::new(&Cpu::new(), graph.weights().clone())?;
            let arrays = graph
                .inputs()
                .iter()
                .zip(shapes)
                .map(|(input, shape)| (input.name.clone(), OnnxArray::from(ArrayD::<f32>::ones(*shape))));
            Ok(graph.run(&model, arrays.collect()).map_or_else(|error| error.to_string(), |_| String::new()))
        };
        let (static_sizes, with_lengths) = ("pytorch-script-static-state-one.onnx", "bidirectional-lens.onnx");
        let state: &[usize] = &[1, 2, 4];
        ensure!(run(static_sizes, &[&[5, 2, 3], state, state])?.is_empty());
        for (name, shapes, words) in [
            (static_sizes, &[&[7, 2, 3], state, state][..], ["`X`", "[5, 2, 3]", "[7, 2, 3]"]),
            (static_sizes, &[&[5, 1, 3], state, state], ["`X`", "[5, 2, 3]", "[5, 1, 3]"]),
            (static_sizes, &[&[5, 2, 3], &[1, 5, 4], state], ["`initial_h`", "[1, 2, 4]", "[1, 5, 4]"]),
            (with_lengths, &[&[7, 4, 5], &[3]], ["`sequence_lens`", "[4]", "[3]"]),
        ] {
            let error = run(name, shapes)?;
            ensure!(words.iter().all(|word| error.contains(word)), "{error}: expected {words:?}");
        }
        Ok(())
    }
}
