//! Conformance tests that run on every backend. `tests/conformance.rs` lists the trials.
//!
//! To add a backend, add it to the crate `lstm`, and a feature here. To add a case, add a line in [`cases`].

pub mod activations;
pub mod backends;
pub mod cases;
pub mod check;
pub mod compare;
pub mod f64_backend;
pub mod faults;
pub mod finite_differences;
pub mod golden;
pub mod invalid_input;
pub mod malformed;
pub mod model_f64;
pub mod models;
pub mod onnx;
pub mod primitives;
pub mod python;
pub mod results;
pub mod score;
pub mod specification;
pub mod streams;
#[cfg(feature = "toy")]
pub mod toy;
pub mod training;
pub mod verify;
