//! Conversions of arguments, whose exceptions name the argument. Those of PyO3 do not.

use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    prelude::*,
};

/// The exception for an argument of another type.
fn wrong(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
    let kind = value.get_type().name().map_or_else(|_| "another type".to_owned(), |kind| kind.to_string());
    PyTypeError::new_err(match value.repr() {
        // A number or a short text; an array would fill the screen.
        Ok(text) if text.len().is_ok_and(|len| len <= 40) => {
            format!("{name}: expected {expected}, got {text} ({kind})")
        }
        _ => format!("{name}: expected {expected}, got a value of the type {kind}"),
    })
}

/// An argument that is true or false. Like PyTorch, it takes no other number for one of these.
fn flag(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
    value.extract().map_err(|_| wrong(name, "True or False", value))
}

/// An argument that is an integer, of Python or of NumPy.
fn integer(name: &str, value: &Bound<'_, PyAny>) -> PyResult<i128> {
    value.extract().map_err(|error: PyErr| match error.is_instance_of::<PyOverflowError>(value.py()) {
        true => PyValueError::new_err(format!("{name}: expected a number from 0 to 2^64 - 1, got {value}")),
        false => wrong(name, "an integer", value),
    })
}

/// An argument that is a number.
fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f32> {
    value.extract().map_err(|_| wrong(name, "a number", value))
}

/// An argument that is a text.
pub(crate) fn text<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    value.extract().map_err(|_| wrong(name, "a str", value))
}

/// An argument that is a text, copied.
fn owned(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    text(name, value).map(str::to_owned)
}

/// An argument that may be `None`.
fn optional<T>(
    convert: fn(&str, &Bound<'_, PyAny>) -> PyResult<T>,
    name: &str,
    value: &Bound<'_, PyAny>,
) -> PyResult<Option<T>> {
    if value.is_none() { Ok(None) } else { convert(name, value).map(Some) }
}

/// Converts a size or a seed that Python passed as an integer of any sign and magnitude.
///
/// # Errors
/// `ValueError` if it does not fit.
pub(crate) fn checked_unsigned<T: TryFrom<i128>>(name: &str, value: i128) -> Result<T, PyErr> {
    let error = |_| PyValueError::new_err(format!("{name}: expected a number from 0 to 2^64 - 1, got {value}"));
    T::try_from(value).map_err(error)
}

/// Makes the functions that convert the arguments of methods.
macro_rules! arguments {
    ($($function:ident = $name:literal: $convert:ident -> $type:ty;)*) => {
        $(pub(crate) fn $function(value: &Bound<'_, PyAny>) -> PyResult<$type> {
            $convert($name, value)
        })*
    };
    (text $($function:ident = $name:literal;)*) => {
        $(pub(crate) fn $function<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
            text($name, value)
        })*
    };
    (optional $($function:ident = $name:literal: $convert:ident -> $type:ty;)*) => {
        $(pub(crate) fn $function(value: &Bound<'_, PyAny>) -> PyResult<Option<$type>> {
            optional($convert, $name, value)
        })*
    };
}

arguments! {
    batch = "batch": integer -> i128;
    batch_first = "batch_first": flag -> bool;
    bias = "bias": flag -> bool;
    bidirectional = "bidirectional": flag -> bool;
    coupled = "coupled": flag -> bool;
    dropout = "dropout": number -> f32;
    hidden_size = "hidden_size": integer -> i128;
    input_size = "input_size": integer -> i128;
    last = "last": flag -> bool;
    mode = "mode": flag -> bool;
    num_layers = "num_layers": integer -> i128;
    proj_size = "proj_size": integer -> i128;
    return_states = "return_states": flag -> bool;
    seed = "seed": integer -> i128;
    strict = "strict": flag -> bool;
}

arguments! { optional
    clip = "clip": number -> f32;
    gradient_clip = "clip": owned -> String;
    layers = "layers": owned -> String;
    optional_batch_first = "batch_first": flag -> bool;
    optional_cell = "cell": owned -> String;
    optional_precision = "precision": owned -> String;
    optional_seed = "seed": integer -> i128;
    output_size = "output_size": integer -> i128;
    threads = "threads": integer -> i128;
}

arguments! { text
    cell = "cell";
    device = "device";
    optimizer = "optimizer";
    precision = "precision";
    schedule = "schedule";
}
