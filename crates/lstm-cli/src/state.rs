//! Reads and writes state files: safetensors with a hidden state and a cell state for each LSTM of the model, shape
//! `[layers * directions, batch, size]`. They are `h` and `c` for a model with one LSTM, and `NAME.h` and `NAME.c` for
//! LSTMs of these names.

use std::path::Path;

use lstm::{Error as ModelError, HostState, ModelLayer, ModelWeights, StateDict, StateDictWriter, ndarray::Array3};

use crate::{
    error::{Error, Result},
    input::extension,
};

/// What comes before `h` and `c` in the names of the tensors, for each LSTM of the model.
fn prefixes(weights: &ModelWeights) -> Vec<String> {
    let names = weights.layers().iter().filter_map(|layer| match layer {
        ModelLayer::Lstm { name, .. } => Some(format!("{name}.")),
        _ => None,
    });
    let names: Vec<String> = names.collect();
    if names.len() == 1 { vec![String::new()] } else { names }
}

/// Reads the states of `batch` sequences from a file.
pub(crate) fn read_states(path: &Path, weights: &ModelWeights, batch: usize) -> Result<Vec<HostState>> {
    read_tensors(path, weights, batch).map_err(|e| e.with_path(path))
}

fn read_tensors(path: &Path, weights: &ModelWeights, batch: usize) -> Result<Vec<HostState>> {
    let mut file = StateDict::open(path)?;
    let mut take_array = |name: &str| -> Result<Array3<f32>> {
        let array = file.take_any(name)?;
        let shape = format!("{:?}", array.shape());
        array
            .into_dimensionality()
            .map_err(|_| ModelError::shape(format!("tensor `{name}`"), "three axes", shape).into())
    };
    let mut states = Vec::new();
    for prefix in prefixes(weights) {
        states.push(HostState { h: take_array(&format!("{prefix}h"))?, c: take_array(&format!("{prefix}c"))? });
    }
    file.finish()?;
    check_states(&states, weights, batch)?;
    Ok(states)
}

/// Checks that the states, one for each LSTM, have the shapes of `batch` sequences.
pub(crate) fn check_states(states: &[HostState], weights: &ModelWeights, batch: usize) -> Result<()> {
    for ((prefix, lstm), state) in prefixes(weights).iter().zip(weights.lstms()).zip(states) {
        check_shapes(prefix, state, &HostState::zeros(lstm.config(), batch)?, batch)?;
    }
    Ok(())
}

/// Checks that a state has the shapes of `expected_state`, which are those of the model for `batch` sequences.
fn check_shapes(prefix: &str, state: &HostState, expected_state: &HostState, batch: usize) -> Result<()> {
    for (name, want, got) in [("h", &expected_state.h, &state.h), ("c", &expected_state.c, &state.c)] {
        if want.shape() != got.shape() {
            let expected = format!("{:?} for {batch} sequences", want.shape());
            return Err(
                ModelError::shape(format!("state {prefix}{name}"), expected, format!("{:?}", got.shape())).into()
            );
        }
    }
    Ok(())
}

/// Serializes the states of a model's LSTMs as safetensors.
pub(crate) fn to_bytes(weights: &ModelWeights, states: &[HostState]) -> Result<Vec<u8>> {
    let mut writer = StateDictWriter::new();
    for (prefix, state) in prefixes(weights).iter().zip(states) {
        writer = writer.tensor(format!("{prefix}h"), &state.h)?.tensor(format!("{prefix}c"), &state.c)?;
    }
    Ok(writer.to_bytes()?)
}

/// Checks that the path of a state file to read, if one is given, has the extension `.safetensors`.
pub(crate) fn check_path(path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if extension(path) != "safetensors" => Err(Error::file(path, "expected the extension .safetensors")),
        _ => Ok(()),
    }
}
