//! The activations relu and hard sigmoid on a device, composed of the primitive operations of [`Ops`], and their
//! gradients. [`arithmetic`](crate::arithmetic) defines the same results as scalar functions.

use crate::{
    backend::{Ops, shape::MatrixShape},
    error::Result,
    memory,
};

/// A row `[1, cols]` of the same value.
///
/// # Errors
/// Errors of the device; [`Error::TooLarge`](crate::Error::TooLarge) if the row does not fit in memory.
pub(crate) fn constant_row<B: Ops>(b: &B, cols: usize, value: f32) -> Result<B::Tensor> {
    b.upload_vec(MatrixShape::new(1, cols), memory::filled("constant", &[cols], value)?)
}

/// Computes [`relu`](crate::arithmetic::relu) of each element: the snapped element, or +0 if it is not positive.
///
/// # Errors
/// Errors of the device.
pub(crate) fn relu<B: Ops>(b: &B, x: B::Tensor) -> Result<B::Tensor> {
    let x = b.snap(x)?;
    keep_positive(b, x.clone(), x)
}

/// Computes the gradient of [`relu`] from the gradient `dy` and the result `y`: `dy` where `y` is positive, else +0.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes differ; errors of the device.
pub(crate) fn relu_gradient<B: Ops>(b: &B, dy: B::Tensor, y: &B::Tensor) -> Result<B::Tensor> {
    keep_positive(b, dy, y.clone())
}

/// Selects elementwise: `x` where `selector` is positive or NaN, else +0.
fn keep_positive<B: Ops>(b: &B, x: B::Tensor, selector: B::Tensor) -> Result<B::Tensor> {
    // No number is between the bounds 0 and infinity if it is infinity, so the selector is first limited to 1.
    let cols = b.shape(&x).cols;
    let selector = b.clip(selector, 1.0)?;
    b.select_between(x, &selector, &constant_row(b, cols, 0.0)?, &constant_row(b, cols, 2.0)?)
}

/// Computes [`hard_sigmoid`](crate::arithmetic::hard_sigmoid) of each element.
///
/// # Errors
/// Errors of the device.
pub(crate) fn hard_sigmoid<B: Ops>(b: &B, x: B::Tensor, alpha: f32, beta: f32) -> Result<B::Tensor> {
    let cols = b.shape(&x).cols;
    let centered = b.mul_add(alpha, &b.snap(x)?, None, Some(&constant_row(b, cols, beta - 0.5)?))?;
    b.mul_add(1.0, &b.clip(centered, 0.5)?, None, Some(&constant_row(b, cols, 0.5)?))
}

/// Computes the gradient of [`hard_sigmoid`] from the gradient `dy` and the result `y`: `alpha * dy` where `0 < y < 1`,
/// else +0. The product is not snapped.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape) if the shapes differ; errors of the device.
pub(crate) fn hard_sigmoid_gradient<B: Ops>(b: &B, dy: &B::Tensor, y: &B::Tensor, alpha: f32) -> Result<B::Tensor> {
    let cols = b.shape(y).cols;
    b.select_between(b.mul_add(alpha, dy, None, None)?, y, &constant_row(b, cols, 0.0)?, &constant_row(b, cols, 1.0)?)
}
