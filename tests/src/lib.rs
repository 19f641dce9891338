//! One table of cases for every backend, and what it checks: see `tests/conformance.rs` for the list of trials.
//!
//! A backend joins by a feature and one line in [`backends`]; a case by one line in [`cases`].

pub mod activations;
pub mod backends;
pub mod cases;
pub mod check;
pub mod compare;
pub mod differences;
pub mod double;
pub mod golden;
pub mod hostile;
pub mod onnx;
pub mod planted;
pub mod primitives;
pub mod python;
pub mod refusals;
pub mod results;
pub mod specification;
#[cfg(feature = "toy")]
pub mod toy;
pub mod training;
pub mod verify;
