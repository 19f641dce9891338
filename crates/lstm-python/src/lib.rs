//! The Python module `lstm._lstm`: the library for NumPy arrays. The Python code in `python/lstm` re-exports it, and
//! converts the arrays of other libraries. Users read `docs/python.md` and the declarations in `python/lstm/_lstm.pyi`.

#![deny(unsafe_code)]

/// The docstring of a class, a function or a method in `_lstm.pyi`, as its text at run time.
macro_rules! doc {
    ($name:literal) => {
        include_str!(concat!(env!("OUT_DIR"), "/docs/", $name))
    };
}

mod any_trainer;
mod arguments;
mod arrays;
mod device;
mod error;
mod loss;
mod lstm_class;
mod model_class;
mod parameters;
mod stream;
mod tape;
mod trainer_class;

#[pyo3::pymodule]
mod _lstm {
    #[pymodule_export]
    use crate::{
        arrays::digest,
        device::devices,
        loss::LossClass,
        lstm_class::{LstmClass, restore_lstm},
        model_class::{ModelClass, restore_model},
        stream::StreamClass,
        tape::{TapeClass, run_module},
        trainer_class::TrainerClass,
    };

    use pyo3::prelude::*;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
