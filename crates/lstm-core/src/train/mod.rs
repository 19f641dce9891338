//! Training: a [`Trainer`] that takes a model through steps and keeps the run in a file, the [`Linear`] layer that is a
//! model's head, and what they are made of: losses, optimizers, clipping, learning rates.
//!
//! Only the model runs on a device. The rest is host code in one plain implementation, so a run gives the same bits
//! wherever it runs: IEEE operations in the order that each item documents, none fused, sums in f64 and in the order of
//! the elements, powers, logarithms and cosines from the `libm` crate in f64. Definitions are those of PyTorch's
//! functions of the same names; results differ from PyTorch's in roundings, and where an item says so.
//!
//! The parts without a model:
//!
//! ```
//! use lstm_core::{ndarray::array, train::{Clip, OptimizerConfig, Optimizer, Parameter, Schedule, mean_squared}};
//!
//! let (x, target) = (array![1.0f32, 2.0, 3.0], array![2.0f32, 4.0, 6.0]);
//! let mut weight = [0.0f32];
//! let schedule = Schedule::cosine(0.1, 200, 0.0).warmup(10);
//! let mut optimizer = Optimizer::new(OptimizerConfig::adamw())?;
//! for step in 0..200 {
//!     let (_loss, by_prediction) = mean_squared((&x * weight[0]).view(), target.view())?;
//!     let mut gradient = [by_prediction.dot(&x)];
//!     Clip::Norm(5.0).apply(&mut [&mut gradient])?;
//!     let parameter = Parameter { name: "weight", value: &mut weight, gradient: &gradient };
//!     optimizer.step(schedule.rate(step), &mut [parameter])?;
//! }
//! assert!((weight[0] - 2.0).abs() < 0.01);
//! # Ok::<(), lstm_core::Error>(())
//! ```

mod checkpointing;
mod clip;
mod linear;
mod loss;
mod optimizer;
mod random;
mod schedule;
mod trainer;

pub use clip::{Clip, norm};
pub use linear::{Linear, LinearGradients};
pub use loss::{
    IGNORE, binary_cross_entropy, binary_cross_entropy_within, cross_entropy, mean_squared, mean_squared_within,
};
pub use optimizer::{Optimizer, OptimizerConfig, Parameter};
pub use random::order;
pub use schedule::{Decay, Schedule};
pub use trainer::{Extras, Step, Trainer, TrainerConfig};
