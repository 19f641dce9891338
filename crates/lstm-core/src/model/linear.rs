//! A fully connected layer, such as the head of a model, with its gradients.

use ndarray::{Array, Array1, Array2, ArrayView, Dimension};
use rand_chacha::{ChaCha8Rng, rand_core::SeedableRng};

use crate::{
    arithmetic::GradientScale,
    backend::{Backend, DeviceMatrix, LinearWeights},
    config::check::check_size,
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::{block_on::block_on, broadcast::check_repeated},
    shape::{MatrixRef, MatrixShape, zeros},
    weights::{QuantizedRows, init::SymmetricUniform},
};

/// A fully connected layer on a backend, `y = x W^T + b`, as `torch.nn.Linear`. The weight `W` has the shape
/// `(out, in)`; the optional bias `b` has the shape `(out)`. `docs/specification.md` defines the results to the bit
/// under "Linear".
///
/// The layer applies to the last axis of an array of any number of axes. The host keeps the weights exactly as given;
/// the copy on the device is snapped (see [`arithmetic::snap`](crate::arithmetic::snap)).
///
/// ```no_run
/// # use lstm_core::{Backend, Linear, Result, ndarray::{Array3, array}};
/// # fn example<B: Backend>(backend: &B) -> Result<()> {
/// let head = Linear::new(backend, array![[1.0, 2.0], [0.0, -1.0], [0.5, 0.5]], Some(array![0.0, 1.0, 2.0]))?;
/// let x = Array3::<f32>::zeros((4, 10, 2));
/// let y = head.forward(&x)?; // (4, 10, 3)
/// let gradients = head.backward(&x, &y)?; // gradients of the loss sum(y^2) / 2
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Linear<B: Backend> {
    backend: B,
    weight: Array2<f32>,
    bias: Option<Array1<f32>>,
    device_weights: B::Linear,
}

/// Gradients of a loss with respect to the input and the parameters of a [`Linear`] layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearGradients<D: Dimension> {
    /// Gradient with respect to the input, with the input's shape.
    pub x: Array<f32, D>,
    /// Gradient with respect to the weight, shape `(out, in)`.
    pub weight: Array2<f32>,
    /// Gradient with respect to the bias, shape `(out)`; `None` for a layer without a bias.
    pub bias: Option<Array1<f32>>,
}

impl<B: Backend> std::fmt::Debug for Linear<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bias = if self.bias.is_some() { "" } else { ", no bias" };
        write!(f, "Linear({} to {}{bias} on {})", self.input_size(), self.output_size(), self.backend.name())
    }
}

impl<B: Backend> Linear<B> {
    /// Creates a layer from a weight of shape `(out, in)` and an optional bias of shape `(out)`, and uploads both to
    /// the device.
    ///
    /// # Errors
    /// [`Error::Config`] if a size is not from 1 to 2^24; [`Error::TensorShape`] if the length of the bias is not the
    /// number of rows of the weight; errors of the device.
    pub fn new(backend: &B, weight: Array2<f32>, bias: Option<Array1<f32>>) -> Result<Self> {
        let (output, input) = weight.dim();
        check_size("input_size", input)?;
        check_size("output_size", output)?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != output) {
            return Err(Error::TensorShape { name: "bias".into(), expected: vec![output], found: vec![bias.len()] });
        }
        let weight = memory::row_major("Linear::new", weight)?;
        let bias = bias.map(|bias| memory::row_major("Linear::new", bias)).transpose()?;
        let device_weights = load_linear(backend, &weight, bias.as_ref(), None)?;
        Ok(Linear { backend: backend.clone(), weight, bias, device_weights })
    }

    /// Creates a layer with weight and bias drawn from `U(-1/sqrt(in), 1/sqrt(in))`, PyTorch's default. A seed gives
    /// bit-identical values on every machine and in every version.
    ///
    /// The weight is drawn first, row by row, then the bias, with the same generator and distribution as
    /// [`Weights::init`](crate::Weights::init). Use a different seed for the head than for the LSTM; otherwise both use
    /// the same random numbers.
    ///
    /// # Errors
    /// [`Error::Config`] if a size is not from 1 to 2^24; [`Error::TooLarge`] if the weight does not fit in memory;
    /// errors of the device.
    pub fn random(backend: &B, input: usize, output: usize, seed: u64) -> Result<Self> {
        const OP: &str = "Linear::random";
        check_size("input_size", input)?;
        check_size("output_size", output)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let uniform = SymmetricUniform::with_squared_bound(1.0 / input as f64);
        let mut draw_values = |sizes: &[usize]| {
            let mut values = zeros(OP, sizes)?;
            values.iter_mut().for_each(|v| *v = uniform.sample(&mut rng));
            Ok::<_, Error>(values)
        };
        let weight = draw_values(&[output, input])?;
        let weight = Array2::from_shape_vec((output, input), weight).map_err(|e| Error::shape(OP, "a matrix", e))?;
        let bias = draw_values(&[output])?;
        Self::new(backend, weight, Some(bias.into()))
    }

    /// Number of features of the input.
    pub fn input_size(&self) -> usize {
        self.weight.ncols()
    }

    /// Number of features of the output.
    pub fn output_size(&self) -> usize {
        self.weight.nrows()
    }

    /// The weight exactly as given, shape `(out, in)`.
    pub fn weight(&self) -> &Array2<f32> {
        &self.weight
    }

    /// The bias exactly as given, shape `(out)`; `None` for a layer without a bias.
    pub fn bias(&self) -> Option<&Array1<f32>> {
        self.bias.as_ref()
    }

    /// The backend on which the layer runs.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Replaces the weight and the bias. The shapes must stay the same.
    ///
    /// # Errors
    /// [`Error::Shape`] if a shape differs, or if a bias is added or removed; errors of the device. The layer is
    /// unchanged after an error.
    pub fn set_weights(&mut self, weight: Array2<f32>, bias: Option<Array1<f32>>) -> Result<()> {
        let check_shape = |argument: &str, expected: Option<&[usize]>, got: Option<&[usize]>| {
            let describe_shape = |shape: Option<&[usize]>| shape.map_or("none".into(), |shape| format!("{shape:?}"));
            let shape_error = || {
                Error::shape(format!("Linear::set_weights: {argument}"), describe_shape(expected), describe_shape(got))
            };
            if expected == got { Ok(()) } else { Err(shape_error()) }
        };
        check_shape("weight", Some(self.weight.shape()), Some(weight.shape()))?;
        check_shape("bias", self.bias.as_ref().map(Array::shape), bias.as_ref().map(Array::shape))?;
        *self = Self::new(&self.backend, weight, bias)?;
        Ok(())
    }

    /// Computes the output `(.., out)` for the input `x` of shape `(.., in)`. The input may be empty.
    ///
    /// # Errors
    /// [`Error::Shape`] if the last axis of `x` is not `in`; errors of the device.
    pub fn forward<'a, D: Dimension + 'a>(&self, x: impl Into<ArrayView<'a, f32, D>>) -> Result<Array<f32, D>> {
        block_on(self.forward_async(x))
    }

    /// Asynchronous [`forward`](Self::forward), which does not block the thread.
    ///
    /// # Errors
    /// As for [`forward`](Self::forward).
    pub async fn forward_async<'a, D: Dimension + 'a>(
        &self,
        x: impl Into<ArrayView<'a, f32, D>>,
    ) -> Result<Array<f32, D>> {
        let x = x.into();
        let dim = self.output_dim("forward", &x)?;
        check_repeated("forward: x", &x)?;
        let y = match self.upload_rows(x)? {
            Some(x) => self.backend.download_vec(self.device_weights.as_ref().multiply(&self.backend, &x)?).await?,
            None => Vec::new(),
        };
        memory::array_from_vec("Linear", dim, y)
    }

    /// Computes the output for rows that are given as slices: reads `x: [rows, in]` and writes `y: [rows, out]`, both
    /// row-major, for any number of rows. It is meant for the head of a [`Stream`](crate::Stream). The results are
    /// bit-identical to those of [`forward`](Self::forward). The CPU backend does not allocate here.
    ///
    /// # Errors
    /// [`Error::Shape`] if the slices do not have the same number of rows; errors of the device.
    pub fn step(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        block_on(self.step_async(x, y))
    }

    /// Asynchronous [`step`](Self::step), which does not block the thread.
    ///
    /// # Errors
    /// As for [`step`](Self::step).
    pub async fn step_async(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        self.backend.linear_step(&self.device_weights, x, y).await
    }

    /// Computes the gradients with respect to the input, the weight and the bias from `dy`, the gradient of the loss
    /// with respect to the output for the input `x`. The gradients of the weight and the bias are sums over all rows.
    /// For an empty input they are zero.
    ///
    /// The elements of `dy` are scaled by one power of two, so that small gradients are not snapped to zero, and the
    /// results are scaled back. Gradients of magnitude below 2^-100 become 0, both in `dy` and in the results.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` does not have the shape `(.., in)` or `dy` the shape `(.., out)`; errors of the device.
    pub fn backward<'a, D: Dimension + 'a>(
        &self,
        x: impl Into<ArrayView<'a, f32, D>>,
        dy: impl Into<ArrayView<'a, f32, D>>,
    ) -> Result<LinearGradients<D>> {
        block_on(self.backward_async(x, dy))
    }

    /// Asynchronous [`backward`](Self::backward), which does not block the thread.
    ///
    /// # Errors
    /// As for [`backward`](Self::backward).
    pub async fn backward_async<'a, D: Dimension + 'a>(
        &self,
        x: impl Into<ArrayView<'a, f32, D>>,
        dy: impl Into<ArrayView<'a, f32, D>>,
    ) -> Result<LinearGradients<D>> {
        let (x, dy) = (x.into(), dy.into());
        let (b, dim, expected) = (&self.backend, x.raw_dim(), self.output_dim("backward", &x)?);
        if dy.raw_dim() != expected {
            let (expected, got) = (format!("{:?}", expected.slice()), format!("{:?}", dy.shape()));
            return Err(Error::shape("Linear::backward: dy", expected, got));
        }
        let scale = GradientScale::of(&dy);
        let scaled_dy = memory::map_array("Linear::backward", dy, |v| scale.scale_value(v))?;
        let (Some(x), Some(dy)) = (self.upload_rows(x)?, self.upload_rows(scaled_dy.view())?) else {
            let zeros_like = |bias: &Array1<f32>| memory::zero_array("Linear::backward", bias.raw_dim());
            let weight = memory::zero_array("Linear::backward", self.weight.raw_dim())?;
            let bias = self.bias.as_ref().map(zeros_like).transpose()?;
            return Ok(LinearGradients { x: memory::array_from_vec("Linear", dim, Vec::new())?, weight, bias });
        };
        let dx = b.gemm((&dy).into(), self.device_weights.as_ref().weight.as_f32()?.into(), None)?;
        let weight = b.gemm(MatrixRef::from(&dy).t(), (&x).into(), None)?;
        let bias = match self.bias {
            Some(_) => {
                let ones = MatrixShape::new(1, b.shape(&dy).rows);
                let ones = b.upload_vec(ones, memory::filled("Linear::backward", &[ones.cols], 1.0)?)?;
                Some(b.gemm((&ones).into(), (&dy).into(), None)?)
            }
            None => None,
        };
        Ok(LinearGradients {
            x: memory::array_from_vec("Linear", dim, self.download(dx, scale).await?)?,
            weight: memory::array_from_vec("Linear", self.weight.raw_dim(), self.download(weight, scale).await?)?,
            bias: match bias {
                Some(bias) => Some(self.download(bias, scale).await?.into()),
                None => None,
            },
        })
    }

    /// Checks the last axis of `x` and returns the shape of the output.
    fn output_dim<D: Dimension>(&self, op: &str, x: &ArrayView<'_, f32, D>) -> Result<D> {
        let mut dim = x.raw_dim();
        match dim.slice_mut().last_mut() {
            Some(last) if *last == self.input_size() => *last = self.output_size(),
            _ => {
                let expected = format!("[.., {}]", self.input_size());
                return Err(Error::shape(format!("Linear::{op}: x"), expected, format!("{:?}", x.shape())));
            }
        }
        Ok(dim)
    }

    /// Uploads `x` as a matrix with one row per element of the leading axes, and snaps it. `None` if `x` is empty.
    fn upload_rows<D: Dimension>(&self, x: ArrayView<'_, f32, D>) -> Result<Option<B::Tensor>> {
        let (Some(&cols), false) = (x.shape().last(), x.is_empty()) else { return Ok(None) };
        let shape = MatrixShape::new(x.len() / cols, cols);
        let rows = match x.as_slice() {
            Some(rows) => self.backend.upload(shape, rows)?,
            None => {
                // A broadcast view can have more elements than its data, so the allocation may fail.
                let rows = memory::collect("Linear", x.len(), x.iter().copied())?;
                self.backend.upload_vec(shape, rows)?
            }
        };
        Ok(Some(self.backend.snap(rows)?))
    }

    /// Downloads a gradient and divides it by the factor `scale`.
    async fn download(&self, gradient: B::Tensor, scale: GradientScale) -> Result<Vec<f32>> {
        let mut values = self.backend.download_vec(gradient).await?;
        values.iter_mut().for_each(|v| *v = scale.unscale_value(*v));
        Ok(values)
    }
}

/// Uploads the weight `(out, in)`, snapped or quantized, and the bias `(out)` of a fully connected layer, snapped.
pub(crate) fn load_linear<B: Backend>(
    backend: &B,
    weight: &Array2<f32>,
    bias: Option<&Array1<f32>>,
    quantized: Option<QuantizedRows<'_>>,
) -> Result<B::Linear> {
    let _environment = FloatEnvironment::set_default();
    let upload = |bias: &Array1<f32>| {
        let values = memory::collect("load_linear", bias.len(), bias.iter().copied())?;
        backend.snap(backend.upload_vec(MatrixShape::new(1, bias.len()), values)?)
    };
    let bias = bias.map(upload).transpose()?;
    let values = weight.as_slice().expect("layers keep their arrays row-major");
    let weight = DeviceMatrix::load(backend, weight.ncols(), values, quantized)?;
    backend.load_linear(LinearWeights { weight, bias })
}
