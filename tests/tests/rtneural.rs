//! RTNeural files compared with the outputs of the Keras models they come from. `make_keras.py` writes the data.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{Backend, Linear, Lstm, ModelLayer, StateDict, ndarray::Ix3};
use lstm_formats::{OpenOptions, open};
use lstm_tests::{
    backends::{self, BackendVisitor},
    onnx::TOLERANCE,
    score::relative_error,
};

/// Checks every file on each backend that it visits, and counts the comparisons.
struct CheckAll(Result<usize>);

impl BackendVisitor for CheckAll {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        if let Ok(cases) = &mut self.0 {
            match check(&b).with_context(|| backend.to_owned()) {
                Ok(files) => *cases += files,
                Err(error) => self.0 = Err(error),
            }
        }
    }
}

/// Runs every file on a backend. Returns the number of files.
fn check<B: Backend>(b: &B) -> Result<usize> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/rtneural");
    let mut cases = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let model = open(&path, &OpenOptions::default())?.weights;
        let mut file = StateDict::open(path.with_extension("safetensors"))?;
        let x = file.take_any("X")?.into_dimensionality::<Ix3>()?;
        let want = file.take_f64("Y")?;
        file.finish()?;
        let mut y = x;
        for layer in model.layers() {
            y = match layer {
                ModelLayer::Lstm { weights, .. } => Lstm::new(b, weights.clone())?.forward(&y)?.0,
                ModelLayer::Linear { weight, bias, .. } => {
                    Linear::new(b, weight.clone(), bias.clone())?.forward(y.view())?
                }
                other => bail!("{}: a layer of the kind {}", path.display(), other.kind()),
            };
        }
        let error = relative_error(&want, &y.into_dyn());
        ensure!(error <= TOLERANCE, "{}: error {error:.2e}", path.display());
        cases += 1;
    }
    ensure!(cases == 3, "expected 3 files, found {cases}");
    Ok(cases)
}

#[test]
fn rtneural_outputs_match_keras() -> Result<()> {
    let mut check = CheckAll(Ok(0));
    for not_run in backends::for_each_backend(backends::wanted_backends().as_deref(), &mut check) {
        println!("{not_run}");
    }
    check.0.map(|cases| println!("{cases} compared"))
}
