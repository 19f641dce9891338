//! Replays the fuzz corpus: `fuzz/corpus/TARGET` contains a minimal set of files that reach all code that fuzzing reached.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_cpu::Cpu;
use lstm_tests::malformed;

/// Reads every file of a target's corpus. Each file must give an error or a model.
fn replay(target: &str, read: impl Fn(&[u8]) -> lstm_core::Result<()>) -> Result<()> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(target);
    let (mut loaded, mut rejected) = (0, 0);
    for entry in std::fs::read_dir(&dir).with_context(|| format!("{}", dir.display()))? {
        let path = entry?.path();
        let bytes = std::fs::read(&path)?;
        println!("{}", path.display());
        match read(&bytes) {
            Ok(()) => loaded += 1,
            Err(_) => rejected += 1,
        }
    }
    // A corpus without valid or without invalid files would test little.
    ensure!(loaded > 0 && rejected > 0, "{}: {loaded} loaded, {rejected} rejected", dir.display());
    Ok(())
}

#[test]
fn safetensors_corpus_does_not_panic() -> Result<()> {
    replay("safetensors", |bytes| malformed::check_safetensors(&Cpu::new(), bytes))
}

#[test]
fn onnx_corpus_does_not_panic() -> Result<()> {
    replay("onnx", |bytes| malformed::check_onnx(&Cpu::new(), bytes))
}

#[test]
fn audio_corpus_does_not_panic() -> Result<()> {
    replay("audio", |bytes| malformed::check_model_file(&Cpu::new(), bytes))
}

#[test]
fn open_corpus_does_not_panic() -> Result<()> {
    replay("open", |bytes| malformed::check_model_file(&Cpu::new(), bytes))
}
