//! Reads and writes state files: safetensors with tensors `h` and `c`, shape `[layers * directions, batch, size]`.

use std::path::Path;

use lstm::{Error as ModelError, HostState, LstmConfig, StateDict, StateDictWriter, ndarray::Array3};

use crate::error::{Error, Result};

/// Reads a state from a file. It does not check that the state fits a model; [`check_state_shape`] does.
pub(crate) fn read_state(path: &Path) -> Result<HostState> {
    read_tensors(path).map_err(|e| e.with_path(path))
}

fn read_tensors(path: &Path) -> Result<HostState> {
    let mut file = StateDict::open(path)?;
    let mut take_array = |name: &str| -> Result<Array3<f32>> {
        let array = file.take_any(name)?;
        let shape = format!("{:?}", array.shape());
        array
            .into_dimensionality()
            .map_err(|_| ModelError::shape(format!("tensor `{name}`"), "three axes", shape).into())
    };
    let state = HostState { h: take_array("h")?, c: take_array("c")? };
    file.finish()?;
    Ok(state)
}

/// Checks that the shapes of a state match a model and `batch` sequences.
pub(crate) fn check_state_shape(state: &HostState, config: &LstmConfig, batch: usize) -> Result<()> {
    let expected_state = HostState::zeros(config, batch)?;
    for (name, want, got) in [("h", &expected_state.h, &state.h), ("c", &expected_state.c, &state.c)] {
        if want.shape() != got.shape() {
            let expected = format!("{:?} for {batch} sequences", want.shape());
            return Err(ModelError::shape(format!("state {name}"), expected, format!("{:?}", got.shape())).into());
        }
    }
    Ok(())
}

/// Serializes a state as safetensors.
pub(crate) fn to_bytes(state: &HostState) -> Result<Vec<u8>> {
    Ok(StateDictWriter::new().tensor("h", &state.h)?.tensor("c", &state.c)?.to_bytes()?)
}

/// Checks that the path of a state file to read, if one is given, has the extension `.safetensors`.
pub(crate) fn check_path(path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if path.extension().is_none_or(|extension| extension != "safetensors") => {
            Err(Error::file(path, "expected the extension .safetensors"))
        }
        _ => Ok(()),
    }
}
