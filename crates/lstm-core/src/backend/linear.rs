//! A fully connected layer on a device.

use crate::{
    backend::{matrix::DeviceMatrix, ops::Ops, shape::MatrixShape},
    error::{Error, Result},
    quantized::OperandRange,
};

/// The weights of a fully connected layer `y = x W^T + b` on a device, after [`snap`](crate::arithmetic::snap).
#[derive(Clone, Debug)]
pub struct LinearWeights<T> {
    /// The weight `W`, `[out, in]`.
    pub weight: DeviceMatrix<T>,
    /// The bias `b`, `[1, out]`; `None` for a layer without a bias.
    pub bias: Option<T>,
}

impl<T> AsRef<LinearWeights<T>> for LinearWeights<T> {
    fn as_ref(&self) -> &LinearWeights<T> {
        self
    }
}

impl<T: Clone> LinearWeights<T> {
    /// Computes `x W^T + b` for each row of `x`, whose values must be snapped.
    pub fn multiply<B: Ops<Tensor = T>>(&self, b: &B, x: &T) -> Result<T> {
        self.weight.multiply(b, x, OperandRange::Any, self.bias.as_ref())
    }

    /// Checks that the bias is one row with an element for each row of the weight. Every
    /// [`Backend::load_linear`](crate::Backend::load_linear) calls this; `shape` returns the shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Shape`] gives both shapes.
    pub fn check(&self, shape: impl Fn(&T) -> MatrixShape) -> Result<()> {
        let expected = MatrixShape::new(1, self.weight.shape(&shape).rows);
        match self.bias.as_ref().map(shape) {
            Some(got) if got != expected => Err(Error::shape("load_linear: bias", expected, got)),
            _ => Ok(()),
        }
    }

    /// Checks the lengths of the arguments of [`Backend::linear_step`](crate::Backend::linear_step) and returns the
    /// number of rows. `shape` is the shape of the weight, `[out, in]`.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` does not consist of rows of `in` values, or `y` does not consist of as many rows of
    /// `out` values.
    pub fn check_step(shape: MatrixShape, x: &[f32], y: &[f32]) -> Result<usize> {
        let MatrixShape { rows: output_size, cols: input_size } = shape;
        if input_size == 0 || !x.len().is_multiple_of(input_size) {
            let expected = format!("rows of {input_size} values");
            return Err(Error::shape("Linear::step: x", expected, format!("{} values", x.len())));
        }
        let rows = x.len() / input_size;
        if rows.checked_mul(output_size) != Some(y.len()) {
            let expected = format!("{} values ({rows} x {output_size})", rows.saturating_mul(output_size));
            return Err(Error::shape("Linear::step: y", expected, format!("{} values", y.len())));
        }
        Ok(rows)
    }
}

/// The default implementation of [`Backend::linear_step`](crate::Backend::linear_step): uploads `x`, computes the
/// matrix product and downloads it to `y`.
pub(super) async fn step<B: Ops>(b: &B, linear: &LinearWeights<B::Tensor>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let shape = linear.weight.shape(|t| b.shape(t));
    let rows = LinearWeights::<B::Tensor>::check_step(shape, x, y)?;
    if rows == 0 {
        return Ok(());
    }
    let x = b.snap(b.upload(MatrixShape::new(rows, shape.cols), x)?)?;
    b.download(&linear.multiply(b, &x)?, y).await
}
