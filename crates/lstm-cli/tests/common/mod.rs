//! Helpers of the integration tests: running the tool, and temporary files.

use std::{
    fs,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm::{Init, LstmConfig, StateDictWriter, TensorNames, Weights};

/// A temporary directory, removed on drop.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("lstm-cli-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    /// Path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Creates a model with random weights. Returns the weights and the path of the file.
    pub(crate) fn model(&self, config: LstmConfig) -> (Weights, String) {
        let weights = Weights::init(config, &Init::default(), 3).unwrap();
        let path = self.path("model.safetensors");
        StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch).unwrap().save(&path).unwrap();
        (weights, path)
    }

    /// Sorted names of the entries of the directory.
    pub(crate) fn names(&self) -> Vec<String> {
        let names = fs::read_dir(&self.0).unwrap().map(|entry| entry.unwrap().file_name().display().to_string());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A command that runs the tool with these arguments.
pub(crate) fn tool(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lstm"));
    command.args(args);
    command
}

/// Header of an .npy file with the given element type and shape.
pub(crate) fn npy_header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({}), }}", shape.join(", "));
    text = format!("{text:<117}\n");
    [b"\x93NUMPY\x01\x00\x76\x00", text.as_bytes()].concat()
}
