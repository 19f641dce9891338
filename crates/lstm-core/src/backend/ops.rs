//! The primitive operations of a device, from which layers are composed.

use std::{future::Future, ops::Range};

use crate::{
    backend::{
        info::Arithmetic,
        quantized::QuantizedMatrix,
        send::{MaybeSend, MaybeSync},
        shape::{ConcatAxis, MatrixRef, MatrixShape, zeros},
    },
    error::Result,
    quantized::OperandRange,
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
/// the same [`Error::Shape`](crate::Error::Shape) or [`Error::Mismatch`](crate::Error::Mismatch). A failure of the
/// device is an [`Error::Device`](crate::Error::Device).
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
            let shape = self.shape(&x);
            let mut out = zeros("download", &[shape.rows, shape.cols])?;
            self.download(&x, &mut out).await?;
            Ok(out)
        }
    }

    /// Replaces each element of magnitude below 2^-40 by +0, as [`snap`](crate::arithmetic::snap) does.
    fn snap(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// Computes the matrix product `a . b`, or `acc + a . b`. Each element is a dot product as defined by
    /// [`dot`](crate::arithmetic::dot), to which the element of `acc` is added last. `acc` has the shape of the result,
    /// or is one row that is added to every row.
    fn gemm(
        &self,
        a: MatrixRef<'_, Self::Tensor>,
        b: MatrixRef<'_, Self::Tensor>,
        acc: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Computes `acc + a W^T` for a quantized matrix `W`, with the [quantized arithmetic](crate::quantized): each row of
    /// `a` is quantized with the scale `D` that follows from `range` and the row, and `z = fma(f32(V), s D, z)` is
    /// computed for each block of inputs, where `V` is the exact sum of the products of the block's integers and `s` is
    /// the scale of the row of weights. `z` starts as the element of `acc`, or as +0. `acc` has the shape of the result,
    /// or is one row that is added to every row. The values of `a` must be snapped.
    fn gemm_quantized(
        &self,
        a: &Self::Tensor,
        w: &QuantizedMatrix<Self::Tensor>,
        range: OperandRange,
        acc: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Computes `fma(alpha * a, b, c)` for each element. `b` defaults to 1. Without `c` the result is the product
    /// `(alpha * a) * b`. `b` and `c` have the shape of `a`, or are one row that is broadcast to every row.
    fn mul_add(
        &self,
        alpha: f32,
        a: &Self::Tensor,
        b: Option<&Self::Tensor>,
        c: Option<&Self::Tensor>,
    ) -> Result<Self::Tensor>;

    /// Computes [`sigmoid`](crate::arithmetic::sigmoid) of each element.
    fn sigmoid(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// Computes [`tanh`](crate::arithmetic::tanh) of each element.
    fn tanh(&self, x: Self::Tensor) -> Result<Self::Tensor>;

    /// Limits each element to `[-bound, bound]`, as [`clip`](crate::arithmetic::clip) does. The bound is positive and
    /// finite.
    fn clip(&self, x: Self::Tensor, bound: f32) -> Result<Self::Tensor>;

    /// Selects elementwise: `x` where `lower_bound < selector < upper_bound` or one of these three is NaN, else +0.
    /// This gives the gradient of a gate whose input is clipped. `selector` has the shape of `x`; `lower_bound` and
    /// `upper_bound` have one row, which is broadcast to every row of `x`.
    fn select_between(
        &self,
        x: Self::Tensor,
        selector: &Self::Tensor,
        lower_bound: &Self::Tensor,
        upper_bound: &Self::Tensor,
    ) -> Result<Self::Tensor>;

    /// Copies a range of rows and columns to a new matrix. Neither range may be empty.
    fn slice(&self, x: &Self::Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Self::Tensor>;

    /// Copies the matrices `parts` to a new matrix, in which they are joined along `axis`.
    fn concat(&self, axis: ConcatAxis, parts: &[Self::Tensor]) -> Result<Self::Tensor>;
}
