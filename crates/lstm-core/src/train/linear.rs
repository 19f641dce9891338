//! A fully connected layer, such as a model's head, and its gradients.

use ndarray::{Array, Array1, Array2, ArrayView, Dimension, Ix2};
use ndarray_rand::rand::{SeedableRng, distr::Distribution};
use rand_chacha::ChaCha8Rng;

use crate::{
    arithmetic::Scale,
    backend::Backend,
    config::check::check_size,
    error::{Error, Result},
    model::{reserved, wait},
    shape::{MatrixRef, MatrixShape, zeros},
    weights::{
        init::Symmetric,
        state_dict::{StateDict, StateDictWriter},
    },
};

/// A fully connected layer on a backend, `y = x W^T + b`: `torch.nn.Linear`, with `weight (out, in)` and, maybe,
/// `bias (out)`. `docs/arithmetic.md` gives its bits, under Linear.
///
/// It works on the last axis of an array; each row along it is one `x`, whatever the other axes are. The weights on the
/// host stay exactly as they were given; the device's copy is snapped.
///
/// ```no_run
/// # use lstm_core::{Backend, Result, ndarray::{Array3, array}, train::Linear};
/// # fn example<B: Backend>(backend: &B) -> Result<()> {
/// let head = Linear::new(backend, array![[1.0, 2.0], [0.0, -1.0], [0.5, 0.5]], Some(array![0.0, 1.0, 2.0]))?;
/// let x = Array3::<f32>::zeros((4, 10, 2));
/// let y = head.forward(x.view())?; // (4, 10, 3)
/// let gradients = head.backward(x.view(), y.view())?; // of the sum of y^2 / 2
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Linear<B: Backend> {
    backend: B,
    weight: Array2<f32>,
    bias: Option<Array1<f32>>,
    device: OnDevice<B::Tensor>,
}

/// Snapped: `weight [out, in]`, `bias [1, out]`.
#[derive(Clone)]
struct OnDevice<T> {
    weight: T,
    bias: Option<T>,
}

/// What [`Linear::backward`] returns.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LinearGradients<D: Dimension> {
    /// Of the input, of its shape.
    pub x: Array<f32, D>,
    /// Of the weight, `(out, in)`.
    pub weight: Array2<f32>,
    /// Of the bias, `(out)`, if there is one.
    pub bias: Option<Array1<f32>>,
}

impl<B: Backend> std::fmt::Debug for Linear<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bias = if self.bias.is_some() { "" } else { ", no bias" };
        write!(f, "Linear({} to {}{bias} on {})", self.input_size(), self.output_size(), self.backend.name())
    }
}

impl<B: Backend> Linear<B> {
    /// Brings a weight `(out, in)` and a bias `(out)` to the backend's device.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that are not from 1 to 2^24; [`Error::TensorShape`] for a bias that is not as long as
    /// the weight has rows; what the device refuses.
    pub fn new(backend: &B, weight: Array2<f32>, bias: Option<Array1<f32>>) -> Result<Self> {
        let (output, input) = weight.dim();
        check_size("input_size", input)?;
        check_size("output_size", output)?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != output) {
            return Err(Error::TensorShape { name: "bias".into(), expected: vec![output], found: vec![bias.len()] });
        }
        let weight = weight.as_standard_layout().into_owned();
        let bias = bias.map(|bias| bias.as_standard_layout().into_owned());
        let snapped = |rows, cols, values: Option<&[f32]>| {
            let values = values.expect("row-major, by the lines above");
            backend.snap(backend.upload(MatrixShape::new(rows, cols), values)?)
        };
        let device = OnDevice {
            weight: snapped(output, input, weight.as_slice())?,
            bias: bias.as_ref().map(|bias| snapped(1, output, bias.as_slice())).transpose()?,
        };
        Ok(Linear { backend: backend.clone(), weight, bias, device })
    }

    /// A layer with a bias, all of it drawn from `U(-1/sqrt(in), 1/sqrt(in))`, PyTorch's default; the same seed means
    /// the same weights for ever. The weight is drawn first, row by row, then the bias, from the generator and on the
    /// grid of [`Weights::init`](crate::Weights::init): a head takes another seed than the LSTM below it, or it gets the
    /// same draws.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that are not from 1 to 2^24; [`Error::TooLarge`]; what the device refuses.
    pub fn random(backend: &B, input: usize, output: usize, seed: u64) -> Result<Self> {
        const OP: &str = "Linear::random";
        check_size("input_size", input)?;
        check_size("output_size", output)?;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let uniform = Symmetric::root(1.0 / input as f64);
        let mut draw = |sizes: &[usize]| {
            let mut values = zeros(OP, sizes)?;
            values.iter_mut().for_each(|v| *v = uniform.sample(&mut rng));
            Ok::<_, Error>(values)
        };
        let weight = draw(&[output, input])?;
        let weight = Array2::from_shape_vec((output, input), weight).map_err(|e| Error::shape(OP, "a matrix", e))?;
        let bias = draw(&[output])?;
        Self::new(backend, weight, Some(bias.into()))
    }

    /// Takes a layer from a file: the tensors `weight` and, if it is there, `bias` behind `prefix`, such as `"head."`.
    /// Other tensors behind the prefix stay.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if there is no weight; [`Error::Shape`] if it is no matrix; [`Error::TensorShape`] if the
    /// bias does not fit it; as for [`StateDict::take`] and [`new`](Self::new). Then nothing is taken.
    pub fn take(backend: &B, dict: &mut StateDict, prefix: &str) -> Result<Self> {
        let [weight, bias] = ["weight", "bias"].map(|name| format!("{prefix}{name}"));
        let matrix = dict.read(&weight)?;
        let shape = format!("{:?}", matrix.shape());
        let matrix = matrix.into_dimensionality::<Ix2>();
        let matrix = matrix.map_err(|_| Error::shape(format!("tensor `{weight}`"), "(out, in)", shape))?;
        let vector = match dict.shape(&bias) {
            None => None,
            Some(_) => {
                dict.check(&bias, &[matrix.nrows()])?;
                Some(dict.read(&bias)?.into_iter().collect())
            }
        };
        let layer = Self::new(backend, matrix, vector)?;
        dict.remove(&weight);
        dict.remove(&bias);
        Ok(layer)
    }

    /// Adds the layer to a file: `weight` and `bias` behind `prefix`, what [`take`](Self::take) reads.
    ///
    /// # Errors
    /// [`Error::Format`] if a name is already there.
    pub fn put(&self, writer: StateDictWriter, prefix: &str) -> Result<StateDictWriter> {
        let writer = writer.tensor(format!("{prefix}weight"), &self.weight)?;
        match &self.bias {
            Some(bias) => writer.tensor(format!("{prefix}bias"), bias),
            None => Ok(writer),
        }
    }

    /// Features of an input.
    pub fn input_size(&self) -> usize {
        self.weight.ncols()
    }

    /// Features of an output.
    pub fn output_size(&self) -> usize {
        self.weight.nrows()
    }

    /// The weight as it was given, unsnapped.
    pub fn weight(&self) -> &Array2<f32> {
        &self.weight
    }

    /// The bias as it was given, unsnapped.
    pub fn bias(&self) -> Option<&Array1<f32>> {
        self.bias.as_ref()
    }

    /// The backend.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Replaces the weights by others of the same shapes.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument if a shape differs, or if one has a bias and the other has none; what the
    /// device refuses. The layer is then unchanged.
    pub fn set_weights(&mut self, weight: Array2<f32>, bias: Option<Array1<f32>>) -> Result<()> {
        let expect = |what: &str, want: Option<&[usize]>, got: Option<&[usize]>| {
            let show = |shape: Option<&[usize]>| shape.map_or("none".into(), |shape| format!("{shape:?}"));
            let misfit = || Error::shape(format!("Linear::set_weights: {what}"), show(want), show(got));
            if want == got { Ok(()) } else { Err(misfit()) }
        };
        expect("weight", Some(self.weight.shape()), Some(weight.shape()))?;
        expect("bias", self.bias.as_ref().map(Array::shape), bias.as_ref().map(Array::shape))?;
        *self = Self::new(&self.backend, weight, bias)?;
        Ok(())
    }

    /// The outputs, with the axes of `x` but the last, which is `in` there and `out` here. No rows give no rows.
    ///
    /// # Errors
    /// [`Error::Shape`] if `x` has no axes or another last one; what the device refuses.
    pub fn forward<D: Dimension>(&self, x: ArrayView<'_, f32, D>) -> Result<Array<f32, D>> {
        wait(self.forward_async(x))
    }

    /// [`forward`](Self::forward) without blocking the thread.
    ///
    /// # Errors
    /// As for `forward`.
    pub async fn forward_async<D: Dimension>(&self, x: ArrayView<'_, f32, D>) -> Result<Array<f32, D>> {
        let dim = self.output_dim("forward", &x)?;
        let y = match self.rows(x)? {
            Some(x) => {
                let weight = MatrixRef::from(&self.device.weight).t();
                let y = self.backend.gemm((&x).into(), weight, self.device.bias.as_ref())?;
                self.backend.download_vec(y).await?
            }
            None => Vec::new(),
        };
        array(dim, y)
    }

    /// The gradients from `dy`, the loss's derivative by the outputs for `x`: by the input, the weight and the bias,
    /// summed over all rows. No rows give zero gradients.
    ///
    /// One scale, a power of two, keeps small gradients from being snapped; what is smaller than 2^-100 at either end
    /// becomes 0.
    ///
    /// # Errors
    /// [`Error::Shape`] naming the argument, what was expected and what came; what the device refuses.
    pub fn backward<D: Dimension>(
        &self,
        x: ArrayView<'_, f32, D>,
        dy: ArrayView<'_, f32, D>,
    ) -> Result<LinearGradients<D>> {
        wait(self.backward_async(x, dy))
    }

    /// [`backward`](Self::backward) without blocking the thread.
    ///
    /// # Errors
    /// As for `backward`.
    pub async fn backward_async<D: Dimension>(
        &self,
        x: ArrayView<'_, f32, D>,
        dy: ArrayView<'_, f32, D>,
    ) -> Result<LinearGradients<D>> {
        let (b, dim, want) = (&self.backend, x.raw_dim(), self.output_dim("backward", &x)?);
        if dy.raw_dim() != want {
            let (want, got) = (format!("{:?}", want.slice()), format!("{:?}", dy.shape()));
            return Err(Error::shape("Linear::backward: dy", want, got));
        }
        let scale = Scale::of(&dy);
        let (Some(x), Some(dy)) = (self.rows(x)?, self.rows(dy.mapv(|v| scale.apply(v)).view())?) else {
            let weight = Array2::zeros(self.weight.raw_dim());
            let bias = self.bias.as_ref().map(|bias| Array1::zeros(bias.raw_dim()));
            return Ok(LinearGradients { x: array(dim, Vec::new())?, weight, bias });
        };
        let dx = b.gemm((&dy).into(), (&self.device.weight).into(), None)?;
        let weight = b.gemm(MatrixRef::from(&dy).t(), (&x).into(), None)?;
        let bias = match self.bias {
            Some(_) => {
                let ones = MatrixShape::new(1, b.shape(&dy).rows);
                let ones = b.upload(ones, &vec![1.0; ones.len()])?;
                Some(b.gemm((&ones).into(), (&dy).into(), None)?)
            }
            None => None,
        };
        Ok(LinearGradients {
            x: array(dim, self.download(dx, scale).await?)?,
            weight: array(self.weight.raw_dim(), self.download(weight, scale).await?)?,
            bias: match bias {
                Some(bias) => Some(self.download(bias, scale).await?.into()),
                None => None,
            },
        })
    }

    /// The outputs' shape.
    fn output_dim<D: Dimension>(&self, op: &str, x: &ArrayView<'_, f32, D>) -> Result<D> {
        let mut dim = x.raw_dim();
        match dim.slice_mut().last_mut() {
            Some(last) if *last == self.input_size() => *last = self.output_size(),
            _ => {
                let want = format!("[.., {}]", self.input_size());
                return Err(Error::shape(format!("Linear::{op}: x"), want, format!("{:?}", x.shape())));
            }
        }
        Ok(dim)
    }

    /// The rows of `x` on the device, snapped; none if there are none.
    fn rows<D: Dimension>(&self, x: ArrayView<'_, f32, D>) -> Result<Option<B::Tensor>> {
        let (Some(&cols), false) = (x.shape().last(), x.is_empty()) else { return Ok(None) };
        let shape = MatrixShape::new(x.len() / cols, cols);
        let rows = match x.as_slice() {
            Some(rows) => self.backend.upload(shape, rows)?,
            None => {
                // A view may be larger than what it looks at.
                let mut rows = reserved(x.len())?;
                rows.extend(x.iter().copied());
                self.backend.upload_vec(shape, rows)?
            }
        };
        Ok(Some(self.backend.snap(rows)?))
    }

    async fn download(&self, gradient: B::Tensor, scale: Scale) -> Result<Vec<f32>> {
        let mut values = self.backend.download_vec(gradient).await?;
        values.iter_mut().for_each(|v| *v = scale.undo(*v));
        Ok(values)
    }
}

fn array<D: Dimension>(dim: D, values: Vec<f32>) -> Result<Array<f32, D>> {
    let shape = format!("{:?}", dim.slice());
    Array::from_shape_vec(dim, values).map_err(|why| Error::shape("Linear", shape, why))
}
