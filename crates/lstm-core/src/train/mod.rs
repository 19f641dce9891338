//! What training needs besides gradients: losses, optimizers, clipping, learning rates.
//!
//! All of it is host code in one plain implementation, so a run gives the same bits wherever it runs: IEEE operations
//! in the order that each item documents, none fused, sums in f64 and in the order of the elements, powers, logarithms
//! and cosines from the `libm` crate in f64. Definitions are those of PyTorch's functions of the same names; results
//! differ from PyTorch's in roundings only.

mod clip;
mod loss;
mod schedule;
mod text;

pub use clip::{Clip, norm};
pub use loss::{IGNORE, cross_entropy, mean_squared};
pub use schedule::{Decay, Schedule};
