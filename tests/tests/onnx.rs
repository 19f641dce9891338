//! Runs the ONNX cases on every backend. `cargo xtask verify-onnx DIR` does the same for any directory.

use std::{collections::BTreeSet, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{Backend, CellKind, Direction};
use lstm_formats::onnx::{GraphPortKind, InitialState};
use lstm_tests::{
    backends::{self, BackendVisitor},
    onnx::OnnxCase,
    results::{Outcome, ResultLine, record_result},
    verify::case_files,
};

fn cases() -> Result<Vec<OnnxCase>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
    case_files(&dir)?.iter().map(|path| OnnxCase::open(path)).collect()
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
    let mut run = RunAll { cases: cases()?, failures: Vec::new() };
    for not_run in backends::for_each_backend(backends::wanted_backends().as_deref(), &mut run) {
        println!("{not_run}");
    }
    ensure!(run.failures.is_empty(), "{}", run.failures.join("\n"));
    Ok(())
}

#[test]
fn cases_cover_every_option() -> Result<()> {
    let cases = cases()?;
    let configs: Vec<_> = cases.iter().map(|case| case.onnx.weights.config()).collect();
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
    ensure!(format!("{:?}", case("layout-1")?.onnx.x.axes) == "[[Batch], [Steps], [Features]]");
    ensure!(format!("{:?}", case("constants")?.onnx.initial_h).starts_with("Constant"));
    ensure!(format!("{:?}", case("constants")?.onnx.lengths) == "Constant([2, 5])");
    let state = case("keras-initial-state-per-layer")?;
    let InitialState::Inputs(inputs) = &state.onnx.initial_h else { bail!("{:?}", state.onnx.initial_h) };
    ensure!(inputs.iter().map(|port| port.rows.clone()).eq([0..1, 1..2]), "{inputs:?}");
    for (name, kind, step) in [
        ("pytorch-dynamo-dynamic-last", GraphPortKind::H, None),
        ("pytorch-dynamo-dynamic-last-of-both", GraphPortKind::Sequence, Some(-1)),
        ("pytorch-script-static-ends", GraphPortKind::H, None),
        ("keras-bidirectional-last", GraphPortKind::H, None),
    ] {
        let port = &case(name)?.onnx.outputs[0];
        ensure!((port.kind, port.step) == (kind, step), "{name}: {port:?}");
    }
    for name in ["two-nodes", "two-nodes-zeros"] {
        let config = case(name)?.onnx.weights.config();
        ensure!((config.num_layers, config.direction) == (2, Direction::Bidirectional), "{name}: {config}");
    }
    Ok(())
}

#[cfg(feature = "cpu")]
mod sizes {
    use lstm_core::{Lstm, ndarray::ArrayD};
    use lstm_cpu::Cpu;
    use lstm_formats::{OnnxInputs, OnnxModel};

    use super::*;

    #[test]
    fn rejects_inputs_of_other_sizes_than_the_file_declares() -> Result<()> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/onnx");
        let zeros = |shape: [usize; 3]| ArrayD::<f32>::zeros(&shape[..]);
        let run = |name: &str, x, state, lengths| -> Result<String> {
            let onnx = OnnxModel::open(dir.join(name))?.lstm()?;
            let model = Lstm::new(&Cpu::new(), onnx.weights.clone())?;
            let inputs =
                OnnxInputs { x: zeros(x), initial_h: vec![zeros(state)], initial_c: vec![zeros(state)], lengths };
            Ok(onnx.run(&model, inputs).map_or_else(|error| error.to_string(), |_| String::new()))
        };
        let (static_sizes, with_lengths) = ("pytorch-script-static-state-one.onnx", "bidirectional-lens.onnx");
        ensure!(run(static_sizes, [5, 2, 3], [1, 2, 4], None)?.is_empty());
        for (name, x, state, lengths, words) in [
            (static_sizes, [7, 2, 3], [1, 2, 4], None, ["`X`", "[5, 2, 3]", "[7, 2, 3]"]),
            (static_sizes, [5, 1, 3], [1, 1, 4], None, ["`X`", "[5, 2, 3]", "[5, 1, 3]"]),
            (static_sizes, [5, 2, 3], [1, 5, 4], None, ["`initial_h`", "[1, 2, 4]", "[1, 5, 4]"]),
            (with_lengths, [7, 4, 5], [2, 4, 9], Some(vec![7; 3]), ["`sequence_lens`", "[4]", "[3]"]),
        ] {
            let error = run(name, x, state, lengths)?;
            ensure!(words.iter().all(|word| error.contains(word)), "{error}: expected {words:?}");
        }
        Ok(())
    }
}
