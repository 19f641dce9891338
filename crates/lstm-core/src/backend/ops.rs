//! The primitive operations of a device, from which layers are composed.

use std::{future::Future, ops::Range};

use crate::{
    backend::{
        info::Arithmetic,
        send::{MaybeSend, MaybeSync},
        shape::{ConcatAxis, MatrixRef, MatrixShape},
    },
    error::Result,
};

/// The primitive operations on `f32` matrices that a device must implement.
///
/// An implementor is a handle to a device: its clone is cheap and refers to the same device. Operations only *enqueue*
/// work; [`download`](Self::download) waits for it. A tensor that is passed by value may be overwritten in place; one
/// that is passed by reference is not changed. Tensors are never empty.
///
/// Every operation is bit-exact: its result is defined by [`arithmetic`](crate::arithmetic), unless
/// [`Ops::arithmetic`] reports [`Arithmetic::Inexact`].
///
/// # Errors
/// No operation panics. Shapes are checked with the functions of [`shape`](crate::shape), so that all backends report
/// the same [`Error::Shape`](crate::Error::Shape) or [`Error::Mismatch`](crate::Error::Mismatch). A failure of the device
/// is an [`Error::Device`](crate::Error::Device).
pub trait Ops: Clone + MaybeSend + MaybeSync {
    /// A row-major matrix in device memory. A clone shares the memory.
    type Tensor: Clone + MaybeSend + MaybeSync;

    /// A short name for reports, such as `cpu`.
    fn name(&self) -> &str;

    /// Whether this device is bit-exact.
    fn arithmetic(&self) -> Arithmetic;

    /// The shape of a tensor.
    fn shape(&self, x: &Self::Tensor) -> MatrixShape;

    /// Copies row-major `data` to the device. Bits are not changed.
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Self::Tensor>;

    /// Waits until `x` is computed and copies it to `out`. Bits are not changed.
    fn download(&self, x: &Self::Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend;

    /// Like [`upload`](Self::upload), but takes ownership of `data`. A backend on the host can avoid the copy.
    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<Self::Tensor> {
        self.upload(shape, &data)
    }

    /// Like [`download`](Self::download), but takes ownership of `x`. A backend on the host can avoid the copy.
    fn download_vec(&self, x: Self::Tensor) -> impl Future<Output = Result<Vec<f32>>> + MaybeSend {
        async move {
            let mut out = vec![0.0; self.shape(&x).len()];
            self.download(&x, &mut out).await?;
            Ok(out)
        }
    }

    /// [`snap`](crate::arithmetic::snap) of each element.
    fn snap(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// Matrix product `a . b`, or `acc + a . b`. Each sum is a [`dot`](crate::arithmetic::dot), to which `acc` is added
    /// last. `acc` has the shape of the result, or is one row that is added to every row.
    fn gemm(
        &self,
        a: MatrixRef<'_, Self::Tensor>,
        b: MatrixRef<'_, Self::Tensor>,
        acc: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// `fma(alpha * a, b, c)` of each element. `b` defaults to 1. Without `c` the result is the product
    /// `(alpha * a) * b`. `b` and `c` have the shape of `a`, or are one row that is broadcast to every row.
    fn mul_add(
        &self,
        alpha: f32,
        a: &Self::Tensor,
        b: Option<&Self::Tensor>,
        c: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// [`sigmoid`](crate::arithmetic::sigmoid) of each element.
    fn sigmoid(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// [`tanh`](crate::arithmetic::tanh) of each element.
    fn tanh(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// [`clip`](crate::arithmetic::clip) of each element to `[-bound, bound]`. The bound is positive and finite.
    fn clip(&self, x: Self::Tensor, bound: f32) -> Result<Self::Tensor>;

    /// `x` where `low < by < high` or any of these is NaN, else +0. This is the gradient of a clipped gate. `by` has
    /// the shape of `x`; `low` and `high` are one row each, which is broadcast to every row.
    fn select_between(
        &self,
        x: Self::Tensor,
        by: &Self::Tensor,
        low: &Self::Tensor,
        high: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// A copy of a range of rows and columns. Neither range may be empty.
    fn slice(&self, x: &Self::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Self::Tensor>;

    /// A copy of `parts`, joined along `axis`.
    fn concat(&self, axis: ConcatAxis, parts: &[Self::Tensor]) -> Result<Self::Tensor>;
}
