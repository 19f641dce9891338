//! RTNeural's files, as Keras's weights are written there, against Keras's own outputs; written by `make_keras.py`.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_core::{Backend, Lstm, StateDict, ndarray::Ix3, train::Linear};
use lstm_formats::RtNeural;
use lstm_tests::{
    backends::{self, Visit},
    golden,
    onnx::TOLERANCE,
};

struct Run(Result<usize>);

impl Visit for Run {
    fn visit<B: Backend + Send + 'static>(&mut self, backend: &str, b: B) {
        if let Ok(cases) = &mut self.0 {
            match check(&b).with_context(|| backend.to_owned()) {
                Ok(n) => *cases += n,
                Err(error) => self.0 = Err(error),
            }
        }
    }
}

/// Runs every file; how many there are.
fn check<B: Backend>(b: &B) -> Result<usize> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/rtneural");
    let mut cases = 0;
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let model = RtNeural::open(&path)?;
        let mut file = StateDict::open(path.with_extension("safetensors"))?;
        let x = file.take_any("X")?.into_dimensionality::<Ix3>()?;
        let want = file.take_f64("Y")?;
        file.finish()?;
        let mut y = Lstm::new(b, model.lstm)?.forward(&x)?.0;
        if let Some((weight, bias)) = model.head {
            y = Linear::new(b, weight, Some(bias))?.forward(y.view())?;
        }
        let error = golden::error(&want, &y.into_dyn());
        ensure!(error <= TOLERANCE, "{}: error {error:.2e}", path.display());
        cases += 1;
    }
    ensure!(cases == 3, "expected 3 files, found {cases}");
    Ok(cases)
}

#[test]
fn outputs_are_keras_s() -> Result<()> {
    let mut run = Run(Ok(0));
    for missed in backends::for_each(backends::wanted().as_deref(), &mut run) {
        println!("{missed}");
    }
    run.0.map(|cases| println!("{cases} compared"))
}
