//! What an optimizer can update in one step: LSTMs, fully connected layers, models and arrays, each with its gradients.

use ndarray::{Array, Array1, Array2, ArrayView, Dimension};

use super::{clip::Clip, optimizer::Optimizer};
use crate::{
    backend::Backend,
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::{Gradients, Linear, LinearGradients, Lstm},
    network::{Model, ModelGradients, ModelWeights},
    weights::{Weights, names::parameter_shapes},
};

/// Parameters that [`Optimizer::update`] can change, by gradients of the type `G`. It is implemented for
///
/// | parameters | gradients | from |
/// |---|---|---|
/// | [`Lstm`] | [`Gradients`] | [`Tape::backward`](crate::Tape::backward) |
/// | [`Linear`] | [`LinearGradients`] | [`Linear::backward`] |
/// | [`Model`] | [`ModelGradients`] | [`ModelTape::backward`](crate::ModelTape::backward) |
/// | an array, such as the rows of an embedding | an array of the same shape | the caller |
///
/// A type that consists of several of these can implement it by calling theirs.
pub trait Trainable<G>: Sized {
    /// The name and the row-major elements of each parameter. An array has one parameter, whose name is empty.
    ///
    /// # Errors
    /// [`Error::Config`] if the parameters are quantized; [`Error::TooLarge`] if the copy does not fit in memory.
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>>;

    /// The gradients of the parameters, row-major, in the order of [`parameters`](Self::parameters).
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not gradients of these parameters; [`Error::TooLarge`] if the copy does not fit in
    /// memory.
    fn gradients(&self, gradients: &G) -> Result<Vec<Vec<f32>>>;

    /// A copy of this module with the given parameter values, in the order of [`parameters`](Self::parameters).
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of parameters or of the elements of one differs; errors of the device.
    fn with_parameters(&self, values: Vec<Vec<f32>>) -> Result<Self>;
}

/// An LSTM, a fully connected layer, a model or an array together with its gradients, as an argument of
/// [`Optimizer::update`].
pub struct Module<'a> {
    name: &'a str,
    inner: Box<dyn ErasedModule + 'a>,
}

impl std::fmt::Debug for Module<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Module({})", self.name)
    }
}

impl<'a> Module<'a> {
    /// Joins parameters and their gradients. The name identifies them in later steps, in error messages and in the
    /// optimizer's [state](Optimizer::state): the weights of an LSTM with the name `encoder` are
    /// `encoder.weight_ih_l0` and so on, and an array's name is `encoder` itself.
    pub fn new<T: Trainable<G>, G>(name: &'a str, module: &'a mut T, gradients: &'a G) -> Self {
        Module { name, inner: Box::new(ModuleWithGradients { module, gradients, updated: None }) }
    }
}

/// A module with its gradients, whose types are erased.
trait ErasedModule {
    /// The parameters with their names.
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>>;

    /// Their gradients.
    fn gradients(&self) -> Result<Vec<Vec<f32>>>;

    /// Makes a copy with new values, which [`commit`](Self::commit) puts in place.
    fn prepare(&mut self, values: Vec<Vec<f32>>) -> Result<()>;

    /// Replaces the parameters. Does nothing unless they were prepared.
    fn commit(&mut self);
}

struct ModuleWithGradients<'a, T, G> {
    module: &'a mut T,
    gradients: &'a G,
    updated: Option<T>,
}

impl<T: Trainable<G>, G> ErasedModule for ModuleWithGradients<'_, T, G> {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        self.module.parameters()
    }

    fn gradients(&self) -> Result<Vec<Vec<f32>>> {
        self.module.gradients(self.gradients)
    }

    fn prepare(&mut self, values: Vec<Vec<f32>>) -> Result<()> {
        self.updated = Some(self.module.with_parameters(values)?);
        Ok(())
    }

    fn commit(&mut self) {
        if let Some(updated) = self.updated.take() {
            *self.module = updated;
        }
    }
}

impl Optimizer {
    /// Clips the gradients of all modules together and updates the parameters in one step with the learning rate `rate`,
    /// as [`Trainer::step`](super::Trainer::step) does for its model. Returns the
    /// [`gradient_norm`](super::gradient_norm) before clipping. The gradients themselves stay as they are.
    ///
    /// ```no_run
    /// use lstm_core::{Backend, Checkpointing::SaveEverything, Input, Linear, Lstm, Result, ndarray::Array3};
    /// use lstm_core::train::{Clip, Module, Optimizer, mean_squared_error};
    ///
    /// /// One training step of an encoder and a decoder, which starts from the encoder's final state.
    /// fn step<B: Backend>(
    ///     (encoder, decoder, head): (&mut Lstm<B>, &mut Lstm<B>, &mut Linear<B>),
    ///     optimizer: &mut Optimizer,
    ///     (x, previous, target): (&Array3<f32>, &Array3<f32>, &Array3<f32>),
    /// ) -> Result<f64> {
    ///     let encoded = encoder.forward_train(x, SaveEverything)?;
    ///     let decoded = decoder.forward_train(Input::from(previous).state(&encoded.state), SaveEverything)?;
    ///     let (loss, dy) = mean_squared_error(head.forward(&decoded.y)?.view(), target.view())?;
    ///     let of_head = head.backward(&decoded.y, &dy)?;
    ///     let of_decoder = decoded.tape.backward(&of_head.x)?;
    ///     let of_encoder = encoded.tape.backward(&of_decoder.state)?;
    ///     optimizer.update(1e-3, Some(Clip::Norm(1.0)), &mut [
    ///         Module::new("encoder", encoder, &of_encoder),
    ///         Module::new("decoder", decoder, &of_decoder),
    ///         Module::new("head", head, &of_head),
    ///     ])?;
    ///     Ok(loss)
    /// }
    /// ```
    ///
    /// The names and sizes of the modules must be the same in every step. Their order affects only the order in which
    /// the norm is summed.
    ///
    /// # Errors
    /// The modules and the optimizer are unchanged after an error.
    /// - [`Error::Config`] if the rate or the clipping bound is not valid, or a module is quantized.
    /// - [`Error::Shape`] if a module's gradients are those of another, or the modules differ from those of the first
    ///   step, as for [`step`](Self::step).
    /// - [`Error::NotFinite`], which gives the step and the first of these that is infinite or NaN: the gradient of a
    ///   parameter, its new value, its optimizer state.
    /// - Errors of the device.
    pub fn update(&mut self, rate: f32, clip: Option<Clip>, modules: &mut [Module<'_>]) -> Result<f64> {
        let (mut names, mut values, mut gradients, mut counts) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for Module { name: module, inner } in modules.iter() {
            let (parameters, of_module) = (inner.parameters()?, inner.gradients()?);
            if parameters.len() != of_module.len() {
                let expected = format!("{} gradients, one for each parameter", parameters.len());
                return Err(Error::shape(format!("Optimizer::update: `{module}`"), expected, of_module.len()));
            }
            counts.push(parameters.len());
            for (name, value) in parameters {
                names.push(if name.is_empty() { module.to_string() } else { format!("{module}.{name}") });
                values.push(value);
            }
            gradients.extend(of_module);
        }
        let (optimizer, gradient_norm) = self.clipped_step(
            clip,
            rate,
            &names,
            values.iter_mut().map(|value| &mut value[..]).collect(),
            gradients.iter_mut().map(|gradient| &mut gradient[..]).collect(),
        )?;
        let mut values = values.into_iter();
        for (module, count) in modules.iter_mut().zip(counts) {
            module.inner.prepare(values.by_ref().take(count).collect())?;
        }
        modules.iter_mut().for_each(|module| module.inner.commit());
        *self = optimizer;
        Ok(gradient_norm)
    }
}

/// Copies `values` to the parameters of `what`.
fn copy_parameters<'a>(
    what: &str,
    parameters: impl IntoIterator<Item = &'a mut [f32]>,
    values: Vec<Vec<f32>>,
) -> Result<()> {
    let parameters: Vec<_> = parameters.into_iter().collect();
    let sizes = |arrays: Vec<usize>| format!("arrays of {arrays:?} elements");
    let expected = parameters.iter().map(|array| array.len()).collect::<Vec<_>>();
    let got = values.iter().map(Vec::len).collect::<Vec<_>>();
    if expected != got {
        return Err(Error::shape(format!("with_parameters: {what}"), sizes(expected), sizes(got)));
    }
    parameters.into_iter().zip(values).for_each(|(to, from)| to.copy_from_slice(&from));
    Ok(())
}

/// The elements of an array in row-major order.
fn elements<D: Dimension>(array: &Array<f32, D>) -> Result<Vec<f32>> {
    memory::collect("Optimizer::update", array.len(), array.iter().copied())
}

/// The elements of each array of `weights`: the parameters of an LSTM, or their gradients.
///
/// # Errors
/// [`Error::Shape`] if they do not belong to an LSTM like that of `parameters`.
fn lstm_elements(parameters: &Weights, weights: &Weights) -> Result<Vec<Vec<f32>>> {
    let (expected, got) = (parameter_shapes(parameters.config()), parameter_shapes(weights.config()));
    check_same("an LSTM", expected, got)?;
    weights.layers().iter().flat_map(|layer| layer.iter()).map(|(_, array)| elements(array)).collect()
}

/// The elements of each array of `weights`: the parameters of a model, or their gradients.
///
/// # Errors
/// [`Error::Shape`] if they do not belong to a model like that of `parameters`.
fn model_elements(parameters: &ModelWeights, weights: &ModelWeights) -> Result<Vec<Vec<f32>>> {
    check_same("a Model", parameters.parameter_shapes(), weights.parameter_shapes())?;
    let mut weights = weights.try_clone()?;
    weights.parameters_mut()?.into_iter().map(|array| memory::copy("Optimizer::update", array)).collect()
}

/// The shapes of a layer's weight and bias, or of their gradients.
fn linear_shapes(weight: &Array2<f32>, bias: Option<&Array1<f32>>) -> Vec<Vec<usize>> {
    [weight.shape()].into_iter().chain(bias.map(Array::shape)).map(<[usize]>::to_vec).collect()
}

/// Checks that gradients belong to the parameters of `what`, by names or shapes.
fn check_same<T: PartialEq + std::fmt::Debug>(what: &str, expected: T, got: T) -> Result<()> {
    if expected == got {
        return Ok(());
    }
    Err(Error::shape(format!("gradients of {what}"), format!("{expected:?}"), format!("{got:?}")))
}

impl<B: Backend> Trainable<Gradients> for Lstm<B> {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        self.weights().check_trainable()?;
        let names = parameter_shapes(self.config()).into_iter().map(|(name, _)| name);
        Ok(names.zip(lstm_elements(self.weights(), self.weights())?).collect())
    }

    fn gradients(&self, gradients: &Gradients) -> Result<Vec<Vec<f32>>> {
        lstm_elements(self.weights(), &gradients.weights)
    }

    fn with_parameters(&self, values: Vec<Vec<f32>>) -> Result<Self> {
        let mut weights = self.weights().try_clone()?;
        copy_parameters("an LSTM", weights.iter_mut().map(|(_, array)| array), values)?;
        let mut lstm = self.clone();
        lstm.set_weights(weights)?;
        Ok(lstm)
    }
}

impl<B: Backend, D: Dimension> Trainable<LinearGradients<D>> for Linear<B> {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        let mut parameters = vec![("weight".into(), elements(self.weight())?)];
        if let Some(bias) = self.bias() {
            parameters.push(("bias".into(), elements(bias)?));
        }
        Ok(parameters)
    }

    fn gradients(&self, gradients: &LinearGradients<D>) -> Result<Vec<Vec<f32>>> {
        let got = linear_shapes(&gradients.weight, gradients.bias.as_ref());
        check_same("a Linear", linear_shapes(self.weight(), self.bias()), got)?;
        [elements(&gradients.weight)].into_iter().chain(gradients.bias.as_ref().map(elements)).collect()
    }

    fn with_parameters(&self, values: Vec<Vec<f32>>) -> Result<Self> {
        let mut weight = memory::copy_array("Linear", self.weight().view())?;
        let mut bias = self.bias().map(|bias| memory::copy_array("Linear", bias.view())).transpose()?;
        copy_parameters(
            "a Linear",
            weight.as_slice_mut().into_iter().chain(bias.as_mut().and_then(Array::as_slice_mut)),
            values,
        )?;
        Linear::new(self.backend(), weight, bias)
    }
}

impl<B: Backend> Trainable<ModelGradients> for Model<B> {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        self.weights().check_trainable()?;
        let names = self.weights().parameter_shapes().into_iter().map(|(name, _)| name);
        Ok(names.zip(model_elements(self.weights(), self.weights())?).collect())
    }

    fn gradients(&self, gradients: &ModelGradients) -> Result<Vec<Vec<f32>>> {
        model_elements(self.weights(), &gradients.weights)
    }

    fn with_parameters(&self, values: Vec<Vec<f32>>) -> Result<Self> {
        let mut weights = self.weights().try_clone()?;
        copy_parameters("a Model", weights.parameters_mut()?, values)?;
        let mut model = self.clone();
        model.set_weights(weights)?;
        Ok(model)
    }
}

impl<D: Dimension> Trainable<Array<f32, D>> for Array<f32, D> {
    fn parameters(&self) -> Result<Vec<(String, Vec<f32>)>> {
        Ok(vec![(String::new(), elements(self)?)])
    }

    fn gradients(&self, gradients: &Array<f32, D>) -> Result<Vec<Vec<f32>>> {
        check_same("an array", self.shape(), gradients.shape())?;
        Ok(vec![elements(gradients)?])
    }

    fn with_parameters(&self, values: Vec<Vec<f32>>) -> Result<Self> {
        let mut array = memory::copy_array("Optimizer::update", ArrayView::from(self))?;
        copy_parameters("an array", array.as_slice_mut(), values)?;
        Ok(array)
    }
}

/// Adds `factor` times `terms` to `sums`: `sum = sum + factor * term`, in f32, unfused.
fn add_scaled<'a>(sums: impl IntoIterator<Item = &'a mut [f32]>, factor: f32, terms: Vec<Vec<f32>>) {
    let _environment = FloatEnvironment::set_default();
    for (sum, term) in sums.into_iter().flatten().zip(terms.iter().flatten()) {
        *sum += factor * term;
    }
}

impl Gradients {
    /// Adds `factor` times the gradients of the weights in `other`, for gradient accumulation over several batches:
    /// `g = g + factor * other`, in f32, unfused. The gradients of the input and of the initial states, which belong to
    /// one batch, stay those of `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are gradients of another model. `self` is then unchanged.
    pub fn add_scaled(&mut self, factor: f32, other: &Self) -> Result<()> {
        let terms = lstm_elements(&self.weights, &other.weights)?;
        add_scaled(self.weights.iter_mut().map(|(_, array)| array), factor, terms);
        Ok(())
    }
}

impl<D: Dimension> LinearGradients<D> {
    /// Adds `factor` times the gradients of the weight and the bias in `other`, as [`Gradients::add_scaled`] does. The
    /// gradient of the input stays that of `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are gradients of another layer. `self` is then unchanged.
    pub fn add_scaled(&mut self, factor: f32, other: &Self) -> Result<()> {
        let shapes = |gradients: &Self| linear_shapes(&gradients.weight, gradients.bias.as_ref());
        check_same("a Linear", shapes(self), shapes(other))?;
        let _environment = FloatEnvironment::set_default();
        self.weight.zip_mut_with(&other.weight, |sum, &term| *sum += factor * term);
        if let (Some(sums), Some(terms)) = (&mut self.bias, &other.bias) {
            sums.zip_mut_with(terms, |sum, &term| *sum += factor * term);
        }
        Ok(())
    }
}

impl ModelGradients {
    /// Adds `factor` times the gradients of the parameters in `other`, as [`Gradients::add_scaled`] does. The gradients
    /// of the input and of the sequences' initial states stay those of `self`.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are gradients of another model; [`Error::TooLarge`] if a copy does not fit in memory.
    /// `self` is then unchanged.
    pub fn add_scaled(&mut self, factor: f32, other: &Self) -> Result<()> {
        let terms = model_elements(&self.weights, &other.weights)?;
        add_scaled(self.weights.parameters_mut()?, factor, terms);
        Ok(())
    }
}
