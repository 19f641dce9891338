//! The forward and the backward pass over a whole sequence.

mod backward;
mod chunks;
mod forward;
mod step;
mod trace;
mod weight_gradients;

pub(crate) use step::{StepBuffers, input_gates, push_step};
pub use trace::Trace;
