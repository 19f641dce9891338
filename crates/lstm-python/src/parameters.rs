//! The parameters of an LSTM as a dictionary of arrays under PyTorch's names.

use lstm::{
    LayerSpec, LayerWeights, LstmConfig, Param, Precision, Weights,
    ndarray::{ArrayD, IxDyn},
    shape::memory,
    weights::names::pytorch_name,
};
use numpy::ToPyArray;
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyDict, PyMapping},
};

use crate::{arguments, arrays::read, error::IntoPyResult};

/// The specs of all layers and directions, each with the number of its layer.
fn numbered_specs(config: &LstmConfig) -> impl Iterator<Item = (usize, LayerSpec)> {
    let directions = config.num_directions();
    config.layer_specs().into_iter().enumerate().map(move |(k, spec)| (k / directions, spec))
}

/// The names and shapes of all parameters, in PyTorch's order.
pub(crate) fn names(config: &LstmConfig) -> Vec<(String, Vec<usize>)> {
    let names_of = |(layer, spec): (usize, LayerSpec)| {
        let name = move |param: Param| pytorch_name(layer, spec.reverse, spec.cell, param);
        spec.params().into_iter().map(move |(param, shape)| (name(param), shape))
    };
    numbered_specs(config).flat_map(names_of).collect()
}

/// Copies all parameters to a dictionary.
pub(crate) fn to_dict<'py>(py: Python<'py>, weights: &Weights) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let values = weights.layers().iter().flat_map(LayerWeights::iter).map(|(_, value)| value);
    for ((name, _), value) in names(weights.config()).iter().zip(values) {
        dict.set_item(name, value.to_pyarray(py))?;
    }
    Ok(dict)
}

/// Reads all parameters from a dictionary of arrays, and quantizes them if the configuration says so. Unless `strict`, those
/// that are missing stay as they are. Returns also the names that are missing and those that are unexpected.
///
/// # Errors
/// `ValueError` lists the names that are missing or unexpected, and the wrong shapes; `TypeError` names an array of
/// another element type.
pub(crate) fn from_mapping(
    current: &Weights,
    state_dict: &Bound<'_, PyAny>,
    strict: bool,
) -> PyResult<(Weights, Vec<String>, Vec<String>)> {
    let (py, config) = (state_dict.py(), current.config());
    let mapping = state_dict
        .cast::<PyMapping>()
        .map_err(|_| arguments::wrong("state_dict", "a dict of arrays by name", state_dict))?;
    let expected = names(config);
    let (mut missing, mut wrong) = (Vec::new(), Vec::new());
    let mut values = Vec::new();
    let to_float32 = py.import("lstm._interop")?.getattr("to_float32")?;
    let current = current.layers().iter().flat_map(LayerWeights::iter).map(|(_, value)| value);
    for ((name, shape), current) in expected.iter().zip(current) {
        if !mapping.contains(name)? {
            missing.push(name.clone());
            if !strict {
                values.push(memory::copy_array("load_state_dict", current.view()).py()?);
            }
            continue;
        }
        let value = to_float32.call1((mapping.get_item(name)?, name))?;
        let value = read::<f32, IxDyn>(&value, name, "an array")?;
        let value = value.as_array();
        if value.shape() != shape {
            wrong.push(format!("{name} (expected {shape:?}, got {:?})", value.shape()));
            continue;
        }
        if let Some(bad) = value.iter().find(|v| config.precision != Precision::F32 && !v.is_finite()) {
            let text = format!("{name}: expected finite numbers for the precision {}, got {bad}", config.precision);
            return Err(PyValueError::new_err(text));
        }
        values.push(memory::copy_array("load_state_dict", value).py()?);
    }
    let mut unexpected = Vec::new();
    for key in mapping.keys()?.iter() {
        let key = key.str()?.to_string();
        if !expected.iter().any(|(name, _)| *name == key) {
            unexpected.push(key);
        }
    }
    let none = Vec::new();
    // The current values of quantized weights would be quantized once more.
    let tolerates_missing = !strict && config.precision == Precision::F32;
    let lists = [
        ("missing", if tolerates_missing { &none } else { &missing }),
        ("unexpected", if strict { &unexpected } else { &none }),
        ("wrong shape", &wrong),
    ];
    let problems: Vec<_> = lists.iter().filter(|(_, names)| !names.is_empty()).collect();
    if !problems.is_empty() {
        let text = problems.iter().map(|(what, names)| format!("{what}: {}", names.join(", ")));
        return Err(PyValueError::new_err(format!("load_state_dict: {}", text.collect::<Vec<_>>().join("; "))));
    }
    Ok((from_values(config, values)?, missing, unexpected))
}

/// Makes weights of all parameters, in PyTorch's order, and quantizes them if the configuration says so.
pub(crate) fn from_values(config: &LstmConfig, values: Vec<ArrayD<f32>>) -> PyResult<Weights> {
    let f32_config = config.clone().precision(Precision::F32);
    let mut values = values.into_iter();
    let layer = |spec: LayerSpec| {
        let params = spec.params().len();
        LayerWeights::new(spec, values.by_ref().take(params).collect())
    };
    let layers = f32_config.layer_specs().into_iter().map(layer).collect::<lstm::Result<_>>().py()?;
    Weights::new(f32_config, layers).py()?.quantize(config.precision).py()
}
