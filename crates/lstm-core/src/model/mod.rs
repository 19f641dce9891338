//! What users hold: the model [`Lstm`], its inputs and outputs, streams, and the tape of a training pass.

mod gradients;
mod input;
mod lstm;
mod stream;
mod tape;

pub use gradients::{Checkpointing, Gradients, OutputGradients};
pub use input::{HostState, Input};
pub use lstm::Lstm;
pub use stream::Stream;
pub use tape::{Tape, TrainOutput};

pub(crate) use input::{check_lengths, reserved};
pub(crate) use lstm::wait;
