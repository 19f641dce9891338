//! NumPy arrays, borrowed without copies. Arrays of other libraries were converted before, by `lstm._interop`.

use std::ops::Range;

use lstm::{
    HostState, LstmConfig,
    ndarray::{Array, ArrayView, ArrayView3, Axis, Dimension, Ix1, Ix2, Ix3},
    shape::memory,
};
use numpy::{
    BorrowError, Element, PyArray, PyArrayDescrMethods, PyArrayDyn, PyArrayMethods, PyReadonlyArray, PyReadonlyArray1,
    PyReadonlyArray2, PyReadonlyArray3, PyReadwriteArrayDyn, PyUntypedArray, PyUntypedArrayMethods, dtype,
};
use pyo3::{
    exceptions::{PyRuntimeError, PyTypeError, PyValueError},
    prelude::*,
};

use crate::error::IntoPyResult;

/// What Python code calls an element type, and how to convert to it.
pub(crate) trait Kind: Element {
    /// The name of the type.
    const NAME: &'static str;
    /// The method that converts an array.
    const ADVICE: &'static str;
}

impl Kind for f32 {
    const NAME: &'static str = "float32";
    const ADVICE: &'static str = ".astype(np.float32)";
}

impl Kind for i64 {
    const NAME: &'static str = "int64";
    const ADVICE: &'static str = ".astype(np.int64)";
}

/// The array as a NumPy array of any type.
///
/// # Errors
/// `TypeError` for other objects, and for masked arrays, whose mask would be ignored.
pub(crate) fn untyped<'a, 'py>(value: &'a Bound<'py, PyAny>, name: &str) -> PyResult<&'a Bound<'py, PyUntypedArray>> {
    let Ok(array) = value.cast::<PyUntypedArray>() else {
        let got = value.get_type().fully_qualified_name()?;
        return Err(PyTypeError::new_err(format!("{name}: expected an array, got {got}")));
    };
    check_class(array, name)?;
    Ok(array)
}

/// Fails for a masked array.
fn check_class(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<()> {
    if !array.is_exact_instance_of::<PyUntypedArray>() {
        let value = array.as_any();
        let masked = value.py().import("numpy")?.getattr("ma")?.getattr("MaskedArray")?;
        if value.is_instance(&masked)? {
            let text = format!("{name}: a masked array can't be used; fill it first, with .filled(0), or give lengths");
            return Err(PyTypeError::new_err(text));
        }
    }
    Ok(())
}

/// Borrows an array of `D` dimensions for reading. Any strides are possible. `expected` describes the shape.
///
/// # Errors
/// `TypeError` for another element type; `ValueError` for another number of dimensions.
pub(crate) fn read<'py, T: Kind, D: Dimension>(
    value: &Bound<'py, PyAny>,
    name: &str,
    expected: &str,
) -> PyResult<PyReadonlyArray<'py, T, D>> {
    let Ok(typed) = value.cast::<PyArray<T, D>>() else {
        let array = untyped(value, name)?;
        check_dtype::<T>(array, name)?;
        return Err(PyValueError::new_err(format!("{name}: expected {expected}, got the shape {:?}", array.shape())));
    };
    check_class(typed.as_untyped(), name)?;
    let plain;
    let typed = if is_plain(typed) {
        typed
    } else {
        plain = value.call_method0("copy")?.cast_into::<PyArray<T, D>>()?;
        &plain
    };
    typed.try_readonly().map_err(|error| borrow_error(name, &error))
}

/// Fails if the elements have another type.
fn check_dtype<T: Kind>(array: &Bound<'_, PyUntypedArray>, name: &str) -> PyResult<()> {
    let (expected, got) = (dtype::<T>(array.py()), array.dtype());
    if got.is_equiv_to(&expected) {
        return Ok(());
    }
    let text = format!("{name}: expected {}, got {got}; convert it with {}", T::NAME, T::ADVICE);
    Err(PyTypeError::new_err(text))
}

/// Whether the array can be viewed in place: its address and strides are aligned. An empty array with a negative stride
/// can't, because the view would start outside its memory.
fn is_plain<T: Element, D: Dimension>(array: &Bound<'_, PyArray<T, D>>) -> bool {
    let strides = array.strides();
    let size = size_of::<T>() as isize;
    // A stride of bytes that is not one of elements, as in a field of a packed record.
    let has_element_strides = strides.iter().all(|stride| stride % size == 0);
    let starts_outside = array.shape().contains(&0) && strides.iter().any(|&stride| stride < 0);
    has_element_strides && !starts_outside && array.data().addr().is_multiple_of(align_of::<T>())
}

/// The exception for an array that is borrowed already, or read-only.
fn borrow_error(name: &str, error: &BorrowError) -> PyErr {
    match error {
        BorrowError::NotWriteable => {
            PyValueError::new_err(format!("{name}: the array is read-only; expected one that can be written"))
        }
        _ => PyRuntimeError::new_err(format!("{name}: another thread or another argument uses the array: {error}")),
    }
}

/// Borrows an array for writing.
///
/// # Errors
/// `TypeError` for another element type; `ValueError` for an array that is read-only, not row-major or not aligned.
pub(crate) fn write<'py>(value: &Bound<'py, PyAny>, name: &str) -> PyResult<PyReadwriteArrayDyn<'py, f32>> {
    let Ok(typed) = value.cast::<PyArrayDyn<f32>>() else {
        check_dtype::<f32>(untyped(value, name)?, name)?;
        return Err(PyTypeError::new_err(format!("{name}: expected a float32 array")));
    };
    let array = typed.as_untyped();
    check_class(array, name)?;
    if !array.is_c_contiguous() || !is_plain(typed) {
        let text =
            format!("{name}: expected a row-major array, as np.empty makes it, got the strides {:?}", array.strides());
        return Err(PyValueError::new_err(text));
    }
    typed.try_readwrite().map_err(|error| borrow_error(name, &error))
}

/// Fails if two float32 arrays have memory in common.
pub(crate) fn check_disjoint(x: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<()> {
    let overlaps = match (x.cast::<PyArrayDyn<f32>>(), out.cast::<PyArrayDyn<f32>>()) {
        (Ok(a), Ok(b)) => {
            let (a, b) = (extent(a), extent(b));
            a.start < b.end && b.start < a.end && {
                // Two views may lie in each other without an element in common.
                let numpy = x.py().import("numpy")?;
                numpy.call_method1("shares_memory", (x, out))?.extract()?
            }
        }
        _ => false,
    };
    if overlaps {
        return Err(PyValueError::new_err("out: it overlaps x; expected an array of its own"));
    }
    Ok(())
}

/// The addresses from the first byte of an array to the last.
fn extent(array: &Bound<'_, PyArrayDyn<f32>>) -> Range<usize> {
    let data = array.data().addr();
    if array.shape().contains(&0) {
        return data..data;
    }
    let (mut start, mut end) = (data, data.wrapping_add(size_of::<f32>()));
    for (&stride, &n) in array.strides().iter().zip(array.shape()) {
        let span = stride.unsigned_abs().wrapping_mul(n - 1);
        if stride < 0 { start = start.wrapping_sub(span) } else { end = end.wrapping_add(span) }
    }
    start..end
}

/// Features of a batch of sequences, or of one sequence without a batch axis.
pub(crate) enum Features<'py> {
    /// One sequence: `(steps, features)`.
    One(PyReadonlyArray2<'py, f32>),
    /// Several sequences.
    Batch(PyReadonlyArray3<'py, f32>),
}

impl<'py> Features<'py> {
    /// Borrows `size` features at each time step; `expected` describes the shapes.
    pub(crate) fn read(value: &Bound<'py, PyAny>, name: &str, size: usize, expected: &str) -> PyResult<Self> {
        let array = untyped(value, name)?;
        let features = match array.ndim() {
            2 => Features::One(read::<f32, Ix2>(value, name, expected)?),
            _ => Features::Batch(read::<f32, Ix3>(value, name, expected)?),
        };
        if features.view().dim().2 != size {
            let text = format!("{name}: expected {expected}, got the shape {:?}", array.shape());
            return Err(PyValueError::new_err(text));
        }
        Ok(features)
    }

    /// The features with a batch axis; of one sequence, it is the first axis.
    pub(crate) fn view(&self) -> ArrayView3<'_, f32> {
        match self {
            Features::One(x) => x.as_array().insert_axis(Axis(0)),
            Features::Batch(x) => x.as_array(),
        }
    }

    /// The number of sequences, which are the second axis of several if `is_time_major`.
    pub(crate) fn batch(&self, is_time_major: bool) -> usize {
        match self {
            Features::One(_) => 1,
            Features::Batch(x) => x.shape()[usize::from(is_time_major)],
        }
    }
}

/// The states `(h, c)` of layers for `batch` sequences, or for any number of sequences if that is `None`. With
/// `is_unbatched`, the arrays are of one sequence without a batch axis.
pub(crate) fn read_state(
    value: &Bound<'_, PyAny>,
    name: &str,
    config: &LstmConfig,
    batch: Option<usize>,
    is_unbatched: bool,
) -> PyResult<HostState> {
    let Ok((h, c)) = value.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>() else {
        let got = value.get_type().fully_qualified_name()?;
        let length = value.len().map_or_else(|_| String::new(), |n| format!(" of length {n}"));
        return Err(PyTypeError::new_err(format!(
            "{name}: expected the tuple (h, c) of two arrays, got {got}{length}"
        )));
    };
    let rows = config.num_layers * config.num_directions();
    let read_one = |value: &Bound<'_, PyAny>, part: &str, batch: Option<usize>, size: usize| {
        let name = format!("{name}: {part}");
        let imported;
        let value = if value.cast::<PyUntypedArray>().is_ok() {
            value
        } else {
            let interop = value.py().import("lstm._interop")?;
            imported = interop.call_method1("import_array", (value, &name))?.get_item(0)?;
            &imported
        };
        if is_unbatched {
            let expected = "2 dimensions (layers * directions, features) for one sequence without a batch axis";
            let array = read::<f32, Ix2>(value, &name, expected)?;
            copy_of_shape(array.as_array().insert_axis(Axis(1)), &name, &[rows, 1, size])
        } else {
            let expected = "3 dimensions (layers * directions, batch, features)";
            let array = read::<f32, Ix3>(value, &name, expected)?;
            let view = array.as_array();
            copy_of_shape(view, &name, &[rows, batch.unwrap_or(view.dim().1), size])
        }
    };
    let h = read_one(&h, "h", batch, config.state_size())?;
    let c = read_one(&c, "c", Some(h.dim().1), config.hidden_size)?;
    Ok(HostState { h, c })
}

/// A copy of an array. The shape is checked first: an array that is broadcast may be larger than any memory.
pub(crate) fn copy_of_shape<D: Dimension>(
    view: ArrayView<'_, f32, D>,
    name: &str,
    shape: &[usize],
) -> PyResult<Array<f32, D>> {
    if view.shape() != shape {
        return Err(PyValueError::new_err(format!("{name}: expected the shape {shape:?}, got {:?}", view.shape())));
    }
    memory::copy_array("copy of an argument", view).py()
}

/// Lengths of `batch` sequences: a list or an array of integers.
pub(crate) fn read_lengths(value: &Bound<'_, PyAny>, batch: usize) -> PyResult<Vec<usize>> {
    let numpy = value.py().import("numpy")?;
    // `asanyarray` keeps the class of a masked array, which is an error.
    let array = numpy.call_method1("asanyarray", (value,)).map_err(|error| {
        PyTypeError::new_err(format!("lengths: expected integers, one for each sequence: {}", error.value(value.py())))
    })?;
    let array = untyped(&array, "lengths")?;
    // Before anything is copied: an array that is broadcast may be larger than any memory.
    if array.shape() != [batch] {
        let expected = format!("the shape [{batch}], one length for each sequence");
        let text = format!("lengths: expected {expected}, got the shape {:?}", array.shape());
        return Err(PyValueError::new_err(text));
    }
    if batch == 0 {
        return Ok(Vec::new());
    }
    if !matches!(array.dtype().kind(), b'i' | b'u') {
        return Err(PyTypeError::new_err(format!("lengths: expected integers, got {}", array.dtype())));
    }
    let array = array.call_method1("astype", ("int64",))?;
    let array: PyReadonlyArray1<'_, i64> = read::<i64, Ix1>(&array, "lengths", "one length for each sequence")?;
    let mut lengths = memory::with_capacity("lengths", &[batch]).py()?;
    for &n in array.as_array() {
        let length =
            usize::try_from(n).map_err(|_| PyValueError::new_err(format!("lengths: expected 0 or more, got {n}")))?;
        lengths.push(length);
    }
    Ok(lengths)
}

#[doc = doc!("digest")]
#[pyfunction]
#[pyo3(signature = (*arrays))]
pub(crate) fn digest(arrays: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<String> {
    let mut digest = lstm::arithmetic::Digest::default();
    let interop = arrays.py().import("lstm._interop")?;
    for (k, array) in arrays.iter().enumerate() {
        let name = format!("arrays[{k}]");
        let array = interop.call_method1("import_array", (array, &name))?.get_item(0)?;
        let array = read::<f32, lstm::ndarray::IxDyn>(&array, &name, "an array")?;
        array.as_array().iter().for_each(|&value| digest.add(value));
    }
    Ok(digest.to_string())
}
