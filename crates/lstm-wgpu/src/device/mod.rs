//! Opening an adapter, finding a bit-exact way to compute on it, and submitting work to it.

mod adapter;
mod builder;
mod errors;
mod gpu;
mod limits;
mod mode;
mod probe;
mod queue;

#[cfg(not(target_arch = "wasm32"))]
pub use adapter::adapters;
pub use adapter::is_software;
pub use builder::WgpuBuilder;
pub use mode::{Fma, Mode};
pub use probe::{FloatBehavior, Probe};

pub(crate) use errors::{BACKEND_NAME, device_error, map_async_future};
pub(crate) use gpu::Gpu;
pub(crate) use limits::{MAX_INVOCATIONS, MAX_WORKGROUP_BYTES};
