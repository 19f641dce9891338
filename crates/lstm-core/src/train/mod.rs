//! Training: losses, optimizers, gradient clipping, learning rate schedules, and a
//! [`Trainer`] that combines them and saves checkpoints.
//!
//! Only the model runs on a device. The rest runs on the host in one scalar implementation, so that training gives
//! bit-identical results on every machine. Each item documents the order of its operations. Operations are IEEE and
//! unfused; sums are f64 in the order of the elements; powers, logarithms and cosines are those of the `libm` crate in
//! f64. Definitions match PyTorch's functions of the same names. Results differ from PyTorch's by rounding, and in the
//! ways that the items document.
//!
//! Losses, optimizers and schedules also work without a model:
//!
//! ```
//! use lstm_core::{ndarray::array, train::{Clip, OptimizerConfig, Optimizer, Parameter, Schedule, mean_squared_error}};
//!
//! let (x, target) = (array![1.0f32, 2.0, 3.0], array![2.0f32, 4.0, 6.0]);
//! let mut weight = [0.0f32];
//! let schedule = Schedule::cosine(0.1, 200, 0.0).warmup(10);
//! let mut optimizer = Optimizer::new(OptimizerConfig::adamw())?;
//! for step in 0..200 {
//!     let (_loss, prediction_gradient) = mean_squared_error((&x * weight[0]).view(), target.view())?;
//!     let mut gradient = [prediction_gradient.dot(&x)];
//!     Clip::Norm(5.0).apply(&mut [&mut gradient])?;
//!     let parameter = Parameter { name: "weight", value: &mut weight, gradient: &gradient };
//!     optimizer.step(schedule.rate_at(step), &mut [parameter])?;
//! }
//! assert!((weight[0] - 2.0).abs() < 0.01);
//! # Ok::<(), lstm_core::Error>(())
//! ```

mod batches;
mod check;
mod checkpointing;
mod clip;
mod collective;
mod loss;
mod loss_input;
mod optimizer;
mod random;
mod schedule;
mod trainable;
mod trainer;
mod tree;

pub use batches::{Batch, Batches};
pub use clip::{Clip, gradient_norm};
pub use collective::{Collective, compare_ranks, gather_state};
pub use loss::{
    IGNORE_INDEX, binary_cross_entropy, binary_cross_entropy_with_logits, cross_entropy, ctc_loss, gaussian_nll_loss,
    huber, masked_binary_cross_entropy_with_logits, masked_gaussian_nll_loss, masked_mean_squared_error,
    masked_pointwise_loss, mean_squared_error, pinball, pointwise_loss, squared_error, weighted_cross_entropy,
    weighted_pointwise_loss,
};
pub use loss_input::{LossGradient, LossInput, ModelOutputs, Shard, part_of_mean, part_of_weighted_mean};
pub use optimizer::{Optimizer, OptimizerConfig, Parameter, ParameterGroup};
pub use random::shuffled_indices;
pub use schedule::{Decay, Schedule};
pub use trainable::{Module, Trainable};
pub use trainer::{CheckpointExtras, ModelStepReport, ModelTrainer, StepReport, Trainer, TrainerConfig};
