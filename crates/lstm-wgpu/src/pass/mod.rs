//! Running layers: whole sequences forward and backward, and streams.

mod backward;
mod forward;
mod layer;
mod state;
mod stream;
mod trace;

pub use layer::Layer;
pub use stream::WgpuStream;
pub use trace::Trace;

pub(crate) use backward::backward;
pub(crate) use forward::{forward, forward_train};
