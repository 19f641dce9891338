//! The public interface for running and training a model: [`Lstm`], its inputs and outputs, streams, and training
//! passes.

mod block_on;
mod broadcast;
mod device_layer;
mod gradients;
mod input;
mod layout;
mod linear;
#[cfg(feature = "safetensors")]
mod linear_file;
mod lstm;
mod run;
mod stream;
mod tape;

pub use gradients::{Checkpointing, Gradients, OutputGradients};
pub use input::{Dropout, HostState, Input};
pub use linear::{Linear, LinearGradients};
pub use lstm::Lstm;
pub use stream::Stream;
pub use tape::{Tape, TrainOutput};

pub(crate) use {
    block_on::block_on,
    broadcast::check_repeated,
    input::{check_lengths, nth_seed},
    layout::BatchLayout,
    linear::load_linear,
    run::{DeviceBatch, StackOutput},
};
