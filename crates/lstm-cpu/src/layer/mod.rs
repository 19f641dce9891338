//! The weights of a layer, packed for the kernels, and the workspace of a pass.

mod backward_weights;
mod linear;
mod packed;
mod plan;
pub(crate) mod quantized;

use std::sync::Arc;

pub(crate) use backward_weights::BackwardWeights;
pub use linear::CpuLinear;
pub(crate) use packed::{ALL_GATES, PackedLayer, recurrent_gates};
pub use plan::Plan;
pub(crate) use quantized::QuantizedLayer;

/// The weights of one layer in one direction, snapped and packed into panels. A clone shares them.
#[derive(Clone)]
pub struct Layer(pub(crate) Arc<PackedLayer>);

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Layer({:?})", self.0.spec)
    }
}
