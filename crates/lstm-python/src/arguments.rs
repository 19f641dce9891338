//! Conversions of arguments, whose exceptions name the argument. Those of PyO3 do not.

use std::{collections::BTreeMap, path::PathBuf};

use pyo3::{
    exceptions::{PyOverflowError, PyTypeError, PyValueError},
    prelude::*,
    types::PyMapping,
};

/// The exception for an argument of another type.
pub(crate) fn wrong(name: &str, expected: &str, value: &Bound<'_, PyAny>) -> PyErr {
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
pub(crate) fn flag(name: &str, value: &Bound<'_, PyAny>) -> PyResult<bool> {
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
pub(crate) fn number(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f32> {
    value.extract().map_err(|_| wrong(name, "a number", value))
}

/// An argument that is a number, in double precision.
fn double(name: &str, value: &Bound<'_, PyAny>) -> PyResult<f64> {
    value.extract().map_err(|_| wrong(name, "a number", value))
}

/// An argument that is an integer of 64 bits.
fn integer64(name: &str, value: &Bound<'_, PyAny>) -> PyResult<i64> {
    let integer = integer(name, value)?;
    i64::try_from(integer)
        .map_err(|_| PyValueError::new_err(format!("{name}: expected a number of 64 bits, got {integer}")))
}

/// An argument that is a text.
pub(crate) fn text<'a>(name: &str, value: &'a Bound<'_, PyAny>) -> PyResult<&'a str> {
    let expected = match name {
        "optimizer" => "a str, such as 'adamw weight_decay=0.01'",
        "schedule" => "a str, such as 'constant rate=0.001'",
        "clip" => "a str, such as 'norm bound=1'",
        "checkpointing" => "a str, such as 'square-root'",
        _ => "a str",
    };
    value.extract().map_err(|_| wrong(name, expected, value))
}

/// The argument `path`.
pub(crate) fn path(value: &Bound<'_, PyAny>) -> PyResult<PathBuf> {
    value.extract().map_err(|_| wrong("path", "a str or an os.PathLike", value))
}

/// The argument `set`: numbers by name.
pub(crate) fn set(value: &Bound<'_, PyAny>) -> PyResult<BTreeMap<String, f64>> {
    let Ok(mapping) = value.cast::<PyMapping>() else {
        return Err(wrong("set", "a dict of numbers by name", value));
    };
    let item = |item: Bound<'_, PyAny>| {
        let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
        let key = owned("set: a name", &key)?;
        double(&format!("set: {key}"), &value).map(|value| (key, value))
    };
    mapping.items()?.iter().map(item).collect()
}

/// An argument that is a text, copied.
fn owned(name: &str, value: &Bound<'_, PyAny>) -> PyResult<String> {
    text(name, value).map(str::to_owned)
}

/// An argument that may be `None`.
pub(crate) fn optional<T>(
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
    blank = "blank": integer -> i128;
    coupled = "coupled": flag -> bool;
    delta = "delta": double -> f64;
    dropout = "dropout": number -> f32;
    hidden_size = "hidden_size": integer -> i128;
    ignore_index = "ignore_index": integer64 -> i64;
    input_size = "input_size": integer -> i128;
    last = "last": flag -> bool;
    mode = "mode": flag -> bool;
    num_layers = "num_layers": integer -> i128;
    pos_weight = "pos_weight": double -> f64;
    proj_size = "proj_size": integer -> i128;
    quantile = "quantile": double -> f64;
    return_states = "return_states": flag -> bool;
    seed = "seed": integer -> i128;
    share = "share": double -> f64;
    strict = "strict": flag -> bool;
}

arguments! { optional
    clip = "clip": number -> f32;
    gradient_clip = "clip": owned -> String;
    layers = "layers": owned -> String;
    learning_rate = "learning_rate": number -> f32;
    optional_batch_first = "batch_first": flag -> bool;
    optional_cell = "cell": owned -> String;
    optional_precision = "precision": owned -> String;
    optional_seed = "seed": integer -> i128;
    output_size = "output_size": integer -> i128;
    threads = "threads": integer -> i128;
}

arguments! { text
    cell = "cell";
    checkpointing = "checkpointing";
    device = "device";
    optimizer = "optimizer";
    precision = "precision";
    schedule = "schedule";
}
