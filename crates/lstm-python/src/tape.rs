//! Recorded passes for `lstm.torch`, whose parameters are tensors of PyTorch.

use std::sync::Arc;

use lstm::{
    Checkpointing, Device, Dropout, HostState, Lstm, OutputGradients, Tape,
    ndarray::{Array3, Axis, IntoDimension, Ix2, Ix3, IxDyn},
    shape::memory,
};
use numpy::IntoPyArray;
use pyo3::{exceptions::PyValueError, prelude::*, types::PyList};

use crate::{
    arrays::{copy_of_shape, read},
    error::IntoPyResult,
    lstm_class::{LstmClass, to_python},
    parameters,
};

#[doc = doc!("Tape")]
#[pyclass(frozen, name = "Tape", module = "lstm._lstm")]
pub(crate) struct TapeClass {
    tape: Tape<Device>,
    /// Whether the input had no batch axis.
    is_unbatched: bool,
    /// The shapes of the outputs and of the final states, with a batch axis.
    y: [usize; 3],
    state: [[usize; 3]; 2],
}

/// The model with the given parameters, in the order of its `state_dict`. Compares all bits, because PyTorch can change
/// parameters without notice.
fn with_parameters(object: &LstmClass, values: &Bound<'_, PyList>) -> PyResult<Arc<Lstm<Device>>> {
    let lstm = object.lstm();
    let names = parameters::names(lstm.config());
    if values.len() != names.len() {
        return Err(PyValueError::new_err(format!("expected {} parameters, got {}", names.len(), values.len())));
    }
    let mut arrays = Vec::new();
    for (value, (name, shape)) in values.iter().zip(&names) {
        let array = read::<f32, IxDyn>(&value, name, "an array")?;
        if array.as_array().shape() != shape {
            let text = format!("{name}: expected the shape {shape:?}, got {:?}", array.as_array().shape());
            return Err(PyValueError::new_err(text));
        }
        arrays.push(array);
    }
    let current = lstm.weights().layers().iter().flat_map(|layer| layer.iter().map(|(_, value)| value));
    let is_same = arrays.iter().zip(current).all(|(new, old)| {
        let same_bits = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits();
        match (new.as_array().as_slice(), old.as_slice()) {
            (Some(new), Some(old)) => new.iter().zip(old).all(same_bits),
            _ => new.as_array().iter().zip(old).all(same_bits),
        }
    });
    if is_same {
        return Ok(lstm);
    }
    let copies = arrays.iter().map(|array| memory::copy_array("run_module", array.as_array()));
    let arrays = copies.collect::<lstm::Result<_>>().py()?;
    let mut lstm = Lstm::clone(&lstm);
    let weights = parameters::from_values(lstm.config(), arrays)?;
    values.py().detach(|| lstm.set_weights(weights)).py()?;
    Ok(object.set_lstm(lstm))
}

/// An array with or without a batch axis.
type AnyArray<'py> = Bound<'py, PyAny>;

/// The result of [`run_module`]: the outputs, the final states, and the tape if the pass was recorded.
type Pass<'py> = (AnyArray<'py>, (AnyArray<'py>, AnyArray<'py>), Option<TapeClass>);

#[doc = doc!("run_module")]
#[pyfunction]
#[pyo3(signature = (lstm, parameters, x, hx, lengths, dropout_seed, record))]
#[allow(clippy::too_many_arguments, reason = "only lstm.torch calls it")]
pub(crate) fn run_module<'py>(
    py: Python<'py>,
    lstm: &Bound<'py, LstmClass>,
    parameters: &Bound<'py, PyList>,
    x: &Bound<'py, PyAny>,
    hx: Option<&Bound<'py, PyAny>>,
    lengths: Option<&Bound<'py, PyAny>>,
    dropout_seed: Option<u64>,
    record: bool,
) -> PyResult<Pass<'py>> {
    let object = lstm.get();
    let lstm = with_parameters(object, parameters)?;
    let arguments = object.arguments(lstm.config(), x, hx, lengths)?;
    let (is_unbatched, input) =
        (arguments.is_unbatched, arguments.input(dropout_seed.map_or(Dropout::Off, Dropout::Seed)));
    let pass = py.detach(|| {
        if record {
            let pass = lstm.forward_train(input, Checkpointing::SaveEverything)?;
            Ok((pass.y, pass.state, Some(pass.tape)))
        } else {
            lstm.forward(input).map(|(y, state)| (y, state, None))
        }
    });
    let (y, state, tape) = pass.py()?;
    let shape = |array: &Array3<f32>| array.dim().into();
    let [y_shape, h_shape, c_shape] = [&y, &state.h, &state.c].map(shape);
    let tape = tape.map(|tape| TapeClass { tape, is_unbatched, y: y_shape, state: [h_shape, c_shape] });
    let y = to_python(py, y, 0, is_unbatched);
    Ok((y, (to_python(py, state.h, 1, is_unbatched), to_python(py, state.c, 1, is_unbatched)), tape))
}

#[pymethods]
impl TapeClass {
    #[doc = doc!("Tape.backward")]
    fn backward<'py>(
        &self,
        py: Python<'py>,
        dy: Option<&Bound<'py, PyAny>>,
        dh: Option<&Bound<'py, PyAny>>,
        dc: Option<&Bound<'py, PyAny>>,
        needs_x: bool,
    ) -> PyResult<(Option<AnyArray<'py>>, AnyArray<'py>, AnyArray<'py>, Vec<AnyArray<'py>>)> {
        let array = |value: &Bound<'py, PyAny>, name: &str, axis: usize, shape: &[usize]| -> PyResult<Array3<f32>> {
            if self.is_unbatched {
                let array = read::<f32, Ix2>(value, name, "2 dimensions")?;
                copy_of_shape(array.as_array().insert_axis(Axis(axis)), name, shape)
            } else {
                copy_of_shape(read::<f32, Ix3>(value, name, "3 dimensions")?.as_array(), name, shape)
            }
        };
        let state = match (dh, dc) {
            (None, None) => None,
            _ => {
                let state_of = |value: Option<&Bound<'py, PyAny>>, name: &str, shape: [usize; 3]| match value {
                    Some(value) => array(value, name, 1, &shape),
                    None => memory::zero_array("backward", shape.into_dimension()).py(),
                };
                Some(HostState { h: state_of(dh, "dh", self.state[0])?, c: state_of(dc, "dc", self.state[1])? })
            }
        };
        let dy = dy.map(|dy| array(dy, "dy", 0, &self.y)).transpose()?;
        let mut upstream = match (&dy, &state) {
            (Some(dy), None) => OutputGradients::from(dy),
            (Some(dy), Some(state)) => OutputGradients::from(dy).state(state),
            (None, Some(state)) => OutputGradients::from(state),
            (None, None) => return Err(PyValueError::new_err("backward: expected a gradient, got none")),
        };
        if needs_x {
            upstream = upstream.with_input_gradient();
        }
        let gradients = py.detach(|| self.tape.backward(upstream)).py()?;
        let x = gradients.x.map(|x| to_python(py, x, 0, self.is_unbatched));
        let parameters = gradients.weights.layers().iter().flat_map(|layer| layer.iter().map(|(_, value)| value));
        let parameters = parameters
            .map(|value| Ok(memory::copy_array("backward", value.view())?.into_pyarray(py).into_any()))
            .collect::<lstm::Result<_>>()
            .py()?;
        let [h, c] = [gradients.state.h, gradients.state.c].map(|array| to_python(py, array, 1, self.is_unbatched));
        Ok((x, h, c, parameters))
    }
}
