//! The forward and the backward pass over a whole sequence.

mod backward;
mod chunks;
mod forward;
mod step;
mod trace;
mod weight_gradients;

pub(crate) use step::{StepBuffers, input_term_launch, push_step_launches};
pub use trace::Trace;
