//! The files that fuzzing found, once more: `fuzz/corpus/TARGET` holds the least of them that reach all that was reached.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_cpu::Cpu;
use lstm_tests::malformed;

/// Runs a target over its files; each gives an error or a model.
fn replay(target: &str, devour: impl Fn(&[u8]) -> lstm_core::Result<()>) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let (mut loaded, mut refused) = (0, 0);
    for entry in std::fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        println!("{}", path.display());
        match devour(&bytes) {
            Ok(()) => loaded += 1,
            Err(_) => refused += 1,
        }
    }
    // A corpus in which all is refused reaches nothing.
    ensure!(loaded > 0 && refused > 0, "{}: {loaded} loaded, {refused} refused", dir.display());
    Ok(())
}

#[test]
fn safetensors() -> Result<()> {
    replay("safetensors", |bytes| malformed::safetensors(&Cpu::new(), bytes))
}

#[test]
fn onnx() -> Result<()> {
    replay("onnx", |bytes| malformed::onnx(&Cpu::new(), bytes))
}

#[test]
fn rtneural() -> Result<()> {
    replay("rtneural", |bytes| malformed::rtneural(&Cpu::new(), bytes))
}
