//! States in a file: tensors `h` and `c`, `[layers * directions, batch, size]`, in safetensors.

use std::path::Path;

use lstm_core::{Error as Model, HostState, LstmConfig, StateDict, StateDictWriter, ndarray::Array3};

use crate::error::{Error, Result};

/// Reads a state; whether it is one of the model's is seen where it is used.
pub(crate) fn read(path: &Path) -> Result<HostState> {
    tensors(path).map_err(|e| e.of(path))
}

fn tensors(path: &Path) -> Result<HostState> {
    let mut file = StateDict::open(path)?;
    let mut take = |name: &str| -> Result<Array3<f32>> {
        let array = file.take_any(name)?;
        let shape = format!("{:?}", array.shape());
        array.into_dimensionality().map_err(|_| Model::shape(format!("tensor `{name}`"), "three axes", shape).into())
    };
    let state = HostState { h: take("h")?, c: take("c")? };
    file.finish()?;
    Ok(state)
}

/// That a state is one of this model for `batch` sequences.
pub(crate) fn check(state: &HostState, config: &LstmConfig, batch: usize) -> Result<()> {
    let want = HostState::zeros(config, batch)?;
    for (name, want, got) in [("h", &want.h, &state.h), ("c", &want.c, &state.c)] {
        if want.shape() != got.shape() {
            let expected = format!("{:?} for {batch} sequences", want.shape());
            return Err(Model::shape(format!("state {name}"), expected, format!("{:?}", got.shape())).into());
        }
    }
    Ok(())
}

/// A state's file.
pub(crate) fn bytes(state: &HostState) -> Result<Vec<u8>> {
    Ok(StateDictWriter::new().tensor("h", &state.h)?.tensor("c", &state.c)?.to_bytes()?)
}

/// That a path to be read is one of a safetensors file.
pub(crate) fn check_path(path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if path.extension().is_none_or(|extension| extension != "safetensors") => {
            Err(Error::file(path, "expected the extension .safetensors"))
        }
        _ => Ok(()),
    }
}
