//! The layers and parameters of a model on the host.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ndarray::{Array, Array1, Array2, Dimension};

use crate::{
    config::{Precision, check::check_size},
    error::{Error, Result},
    memory,
    model::HostState,
    network::Activation,
    weights::{QuantizedRows, Scales, Weights, check_finite, integers, quantize},
};

/// One layer of a model. `name` is the prefix of the layer's tensors in a state dict, without the last dot.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum ModelLayer {
    /// Maps each token to a row of `weight`, as `torch.nn.Embedding`. Only as the first layer.
    Embedding {
        /// Prefix of the layer's tensor.
        name: String,
        /// Shape `(num_embeddings, embedding_dim)`.
        weight: Array2<f32>,
    },
    /// A stack of LSTM layers of one configuration. A model may have several, of different sizes.
    Lstm {
        /// Prefix of the layer's tensors.
        name: String,
        /// The configuration and the parameters.
        weights: Arc<Weights>,
        /// The model's own initial state, for a batch of 1, which applies to every sequence. `None` means zeros.
        initial_state: Option<HostState>,
    },
    /// A fully connected layer, `y = x W^T + b`, as `torch.nn.Linear`.
    Linear {
        /// Prefix of the layer's tensors.
        name: String,
        /// The weight `W`, shape `(out, in)`.
        weight: Array2<f32>,
        /// The bias `b`, shape `(out)`.
        bias: Option<Array1<f32>>,
    },
    /// An activation function.
    Activation(Activation),
    /// Keeps the output at the last time step of each sequence: PyTorch's `y[:, -1]`, or `y[b, length - 1]` for
    /// sequences of different lengths.
    LastStep,
    /// Keeps the final hidden state of the LSTM before it: PyTorch's `h_n` of the last layer, the directions side by
    /// side. In a model that only runs forward this is the same as [`LastStep`](Self::LastStep), except for a sequence of
    /// length 0: there it is the initial hidden state, and `LastStep` gives zeros. Only directly after an LSTM.
    FinalState,
    /// Dropout with this probability, in training only.
    Dropout(f32),
}

/// Writes the kind, the name, the sizes and the options.
impl fmt::Display for ModelLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelLayer::Embedding { name, weight } => {
                write!(f, "embedding `{name}`, {} rows of {}", weight.nrows(), weight.ncols())
            }
            ModelLayer::Lstm { name, weights, initial_state } => {
                let state = if initial_state.is_some() { ", with an initial state" } else { "" };
                write!(f, "lstm `{name}`, {}{state}", weights.config())
            }
            ModelLayer::Linear { name, weight, bias } => {
                let bias = if bias.is_some() { "" } else { ", no bias" };
                write!(f, "linear `{name}`, {} to {}{bias}", weight.ncols(), weight.nrows())
            }
            ModelLayer::Activation(activation) => write!(f, "{activation}"),
            ModelLayer::LastStep | ModelLayer::FinalState => f.write_str(self.kind()),
            ModelLayer::Dropout(p) => write!(f, "dropout {p}"),
        }
    }
}

impl ModelLayer {
    /// The prefix of the layer's tensors; `None` for a layer without parameters.
    pub fn name(&self) -> Option<&str> {
        match self {
            ModelLayer::Embedding { name, .. } | ModelLayer::Lstm { name, .. } | ModelLayer::Linear { name, .. } => {
                Some(name)
            }
            _ => None,
        }
    }

    /// The layer's kind, such as `linear`, for reports.
    pub fn kind(&self) -> &'static str {
        match self {
            ModelLayer::Embedding { .. } => "embedding",
            ModelLayer::Lstm { .. } => "lstm",
            ModelLayer::Linear { .. } => "linear",
            ModelLayer::Activation(_) => "activation",
            ModelLayer::LastStep => "last_step",
            ModelLayer::FinalState => "final_state",
            ModelLayer::Dropout(_) => "dropout",
        }
    }

    /// The layer with row-major arrays.
    fn into_standard_layout(self) -> Result<Self> {
        fn row_major<D: Dimension>(array: Array<f32, D>) -> Result<Array<f32, D>> {
            memory::row_major("ModelWeights::new", array)
        }
        Ok(match self {
            ModelLayer::Embedding { name, weight } => ModelLayer::Embedding { name, weight: row_major(weight)? },
            ModelLayer::Lstm { name, weights, initial_state } => {
                let row_major_state =
                    |state: HostState| Ok::<_, Error>(HostState { h: row_major(state.h)?, c: row_major(state.c)? });
                ModelLayer::Lstm { name, weights, initial_state: initial_state.map(row_major_state).transpose()? }
            }
            ModelLayer::Linear { name, weight, bias } => {
                ModelLayer::Linear { name, weight: row_major(weight)?, bias: bias.map(row_major).transpose()? }
            }
            other => other,
        })
    }

    /// A copy of the layer. The weights of an LSTM are shared.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    fn try_clone(&self) -> Result<Self> {
        fn copy<D: Dimension>(array: &Array<f32, D>) -> Result<Array<f32, D>> {
            memory::copy_array("model", array.view())
        }
        Ok(match self {
            ModelLayer::Embedding { name, weight } => {
                ModelLayer::Embedding { name: name.clone(), weight: copy(weight)? }
            }
            ModelLayer::Lstm { name, weights, initial_state } => ModelLayer::Lstm {
                name: name.clone(),
                weights: weights.clone(),
                initial_state: initial_state.as_ref().map(HostState::try_clone).transpose()?,
            },
            ModelLayer::Linear { name, weight, bias } => ModelLayer::Linear {
                name: name.clone(),
                weight: copy(weight)?,
                bias: bias.as_ref().map(copy).transpose()?,
            },
            // The others have a fixed size.
            other => other.clone(),
        })
    }

    /// Number of features of the output; `None` if it is that of the input.
    pub(super) fn output_size(&self) -> Option<usize> {
        match self {
            ModelLayer::Embedding { weight, .. } => Some(weight.ncols()),
            ModelLayer::Lstm { weights, .. } => Some(weights.config().output_size()),
            ModelLayer::Linear { weight, .. } => Some(weight.nrows()),
            _ => None,
        }
    }

    /// Number of scalar parameters.
    pub fn num_params(&self) -> usize {
        match self {
            ModelLayer::Embedding { weight, .. } => weight.len(),
            ModelLayer::Lstm { weights, .. } => weights.len(),
            ModelLayer::Linear { weight, bias, .. } => weight.len() + bias.as_ref().map_or(0, Array1::len),
            _ => 0,
        }
    }
}

/// The layers and parameters of a whole model, and what surrounds the chain of layers:
///
/// `y = output_gain * (layers(input_gain * x) + input_gain * x[.., ..output_size])`, where the second term, the skip
/// connection, is optional.
///
/// ```
/// use lstm_core::{Activation, Init, LstmConfig, ModelLayer, ModelWeights, Weights, ndarray::Array2};
/// let lstm = Weights::init(LstmConfig::new(3, 5), &Init::default(), 1)?;
/// let model = ModelWeights::new(vec![
///     ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None },
///     ModelLayer::LastStep,
///     ModelLayer::Linear { name: "lin".into(), weight: Array2::zeros((2, 5)), bias: None },
///     ModelLayer::Activation(Activation::Softmax),
/// ])?;
/// assert_eq!((model.input_size(), model.output_size()), (3, 2));
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ModelWeights {
    layers: Vec<ModelLayer>,
    skip: bool,
    input_gain: f32,
    output_gain: f32,
    metadata: BTreeMap<String, String>,
    /// The scales of the matrix of each embedding and fully connected layer that is quantized; `None` for other layers.
    scales: Vec<Option<Scales>>,
    /// Number of features of the input; 1 for tokens.
    input_size: usize,
    output_size: usize,
}

impl ModelWeights {
    /// Creates a model without a skip connection and gains.
    ///
    /// # Errors
    /// [`Error::Config`], which names the layer, for: no layers; a layer whose input size is not the output size of the
    /// layer before it; an embedding that is not the first layer; a softmax that is not the last layer; more than one
    /// `LastStep` or `FinalState`, or an LSTM after it; a `FinalState` that does not follow an LSTM; a dropout
    /// probability outside `[0, 1)`; an empty name, a name that occurs twice, or one that is another name followed by a
    /// dot and more; a bias or an initial state of the wrong shape; a size that is 0 or too large; a hard sigmoid with a
    /// parameter that is not finite.
    pub fn new(layers: Vec<ModelLayer>) -> Result<Self> {
        let (input_size, output_size) = check_layers(&layers)?;
        check_names(&layers)?;
        let layers: Vec<_> = layers.into_iter().map(ModelLayer::into_standard_layout).collect::<Result<_>>()?;
        Ok(ModelWeights {
            scales: vec![None; layers.len()],
            layers,
            skip: false,
            input_gain: 1.0,
            output_gain: 1.0,
            metadata: BTreeMap::new(),
            input_size,
            output_size,
        })
    }

    /// Adds a skip connection: the first features of the input are added to the output.
    ///
    /// # Errors
    /// [`Error::Config`] if the model reads tokens, returns only the last step, ends with a softmax, or has more
    /// outputs than inputs.
    pub fn with_skip(self) -> Result<Self> {
        let reason = if self.reads_tokens() {
            "a model that reads tokens has no input to add".into()
        } else if self.returns_last_step() {
            "expected outputs of all time steps, got a model that returns the last one".into()
        } else if matches!(self.layers.last(), Some(ModelLayer::Activation(activation)) if activation.is_softmax()) {
            "expected no softmax at the end".into()
        } else if self.output_size > self.input_size {
            format!("expected at most {} outputs, as many as inputs, got {}", self.input_size, self.output_size)
        } else {
            return Ok(ModelWeights { skip: true, ..self });
        };
        Err(Error::config("skip", reason))
    }

    /// Sets the factors of the input and of the output.
    ///
    /// # Errors
    /// [`Error::Config`] for a gain that is not finite, or an input gain other than 1 for a model that reads tokens.
    pub fn with_gains(self, input_gain: f32, output_gain: f32) -> Result<Self> {
        if !input_gain.is_finite() || (self.reads_tokens() && input_gain != 1.0) {
            return Err(Error::config("input_gain", format!("expected a finite gain, 1 for tokens, got {input_gain}")));
        }
        if !output_gain.is_finite() {
            return Err(Error::config("output_gain", format!("expected a finite gain, got {output_gain}")));
        }
        Ok(ModelWeights { input_gain, output_gain, ..self })
    }

    /// Sets text by key that the model carries along, such as its author. It does not affect results.
    #[must_use]
    pub fn with_metadata(self, metadata: BTreeMap<String, String>) -> Self {
        ModelWeights { metadata, ..self }
    }

    /// The same model with other parameters, such as gradients. The shapes are those of this model.
    pub(super) fn with_layers(&self, layers: Vec<ModelLayer>) -> Self {
        let scales = vec![None; layers.len()];
        ModelWeights { layers, scales, metadata: self.metadata.clone(), ..*self }
    }

    /// A copy of the model. The weights of LSTMs are shared.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        let scales = self.scales.iter().map(|scales| scales.as_ref().map(Scales::try_clone).transpose());
        Ok(ModelWeights {
            layers: memory::try_collect("model", self.layers.len(), self.layers.iter().map(ModelLayer::try_clone))?,
            scales: scales.collect::<Result<_>>()?,
            metadata: self.metadata.clone(),
            ..*self
        })
    }

    /// The layers, whose kinds and shapes must stay the same.
    #[cfg(feature = "train")]
    pub(super) fn layers_mut(&mut self) -> &mut [ModelLayer] {
        &mut self.layers
    }

    /// A text of what surrounds the layers, and of each layer, without the parameters. It differs if the models differ.
    pub(super) fn describe(&self) -> Vec<String> {
        let (skip, gains) = (self.skip, (self.input_gain, self.output_gain));
        let around = format!("skip {skip}, input gain {:?}, output gain {:?}", gains.0, gains.1);
        let layers = self.layers.iter().enumerate().map(|(k, layer)| {
            let precision = self.scales[k].as_ref().map_or(String::new(), |scales| format!(", {}", scales.precision));
            format!("layer {k}: {layer}{precision}")
        });
        [around].into_iter().chain(layers).collect()
    }

    /// The model in another precision: every layer with parameters as [`quantize_layer`](Self::quantize_layer) does it.
    ///
    /// ```
    /// # use lstm_core::{Backend, Model, ModelWeights, Precision, Result};
    /// # fn example<B: Backend>(device: &B, weights: &ModelWeights) -> Result<()> {
    /// let model = Model::new(device, weights.quantize(Precision::Int8)?)?;
    /// # let _ = model; Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As for [`quantize_layer`](Self::quantize_layer).
    pub fn quantize(&self, precision: Precision) -> Result<Self> {
        (0..self.layers.len()).try_fold(self.try_clone()?, |model, k| model.quantize_layer(k, precision))
    }

    /// The model with layer `index` in another precision, as [`Weights::quantize`] does it; the matrix of a fully
    /// connected layer or an embedding likewise, row by row. Biases stay f32, and layers without parameters are
    /// unchanged. So the layers that need it can have more precision than the others.
    ///
    /// # Errors
    /// [`Error::Config`] names the layer, if its weights are quantized already and `precision` is another quantized one,
    /// or if a weight is not finite or larger than 2^127; or if the model has no layer `index`.
    pub fn quantize_layer(&self, index: usize, precision: Precision) -> Result<Self> {
        let mut model = self.try_clone()?;
        let from = self.layer_precision(index);
        let (Some(layer), Some(from)) = (model.layers.get_mut(index), from) else {
            return match index < self.layers.len() {
                true => Ok(model),
                false => {
                    Err(Error::config("layers", format!("the model has {} layers, none {index}", self.layers.len())))
                }
            };
        };
        let label = format!("layer {index} ({} `{}`)", layer.kind(), layer.name().unwrap_or_default());
        let error = |reason: String| Error::config("precision", format!("{label}: {reason}"));
        if let ModelLayer::Lstm { weights, .. } = layer {
            let quantized = weights.quantize(precision).map_err(|e| match e {
                Error::Config { reason, .. } => error(reason),
                e => e,
            })?;
            *weights = Arc::new(quantized);
            return Ok(model);
        }
        if let (ModelLayer::Linear { bias: Some(bias), .. }, Some(_)) = (&*layer, precision.format()) {
            check_finite(&format!("{label}: the bias"), bias.as_slice().unwrap_or_default())?;
        }
        let (ModelLayer::Linear { weight, .. } | ModelLayer::Embedding { weight, .. }) = layer else {
            return Ok(model);
        };
        match (from, precision.format()) {
            _ if from == precision => {}
            (_, None) => model.scales[index] = None,
            (Precision::F32, Some(format)) => {
                let cols = weight.ncols();
                let values = weight.as_slice_mut().expect("ModelWeights::new makes arrays row-major");
                let values = quantize(&label, values, cols, format)?;
                model.scales[index] = Some(Scales { precision, values });
            }
            (from, Some(_)) => {
                return Err(error(format!(
                    "the weights are {from} already; quantize the original f32 weights to {precision}"
                )));
            }
        }
        Ok(model)
    }

    /// The precision of the weights of a layer; `None` for a layer without parameters.
    pub fn layer_precision(&self, index: usize) -> Option<Precision> {
        match self.layers.get(index)? {
            ModelLayer::Lstm { weights, .. } => Some(weights.config().precision),
            ModelLayer::Linear { .. } | ModelLayer::Embedding { .. } => {
                Some(self.scales[index].as_ref().map_or(Precision::F32, |scales| scales.precision))
            }
            _ => None,
        }
    }

    /// The integers and scales of the matrix of a quantized fully connected layer or embedding; `None` for other layers.
    ///
    /// # Errors
    /// [`Error::Config`] if the values were changed after they were quantized.
    pub fn quantized(&self, index: usize) -> Result<Option<QuantizedRows<'_>>> {
        let (Some(Some(scales)), Some(layer)) = (self.scales.get(index), self.layers.get(index)) else {
            return Ok(None);
        };
        let (ModelLayer::Linear { weight, name, .. } | ModelLayer::Embedding { weight, name }) = layer else {
            return Ok(None);
        };
        integers(name, weight.as_slice().unwrap_or_default(), &scales.values, scales.precision)
    }

    /// Sets the scales of a layer whose values are those that the integers stand for.
    #[cfg(feature = "safetensors")]
    pub(super) fn set_scales(&mut self, index: usize, scales: Option<Scales>) {
        self.scales[index] = scales;
    }

    /// Checks that all weights are f32, as training needs them.
    ///
    /// # Errors
    /// [`Error::Config`] for quantized weights.
    pub(crate) fn check_trainable(&self) -> Result<()> {
        let precisions = (0..self.layers.len()).filter_map(|k| self.layer_precision(k));
        match precisions.into_iter().find(|precision| *precision != Precision::F32) {
            Some(precision) => Err(Error::quantized_gradients(precision)),
            None => Ok(()),
        }
    }

    /// Whether a training pass must know whether to apply dropout.
    pub(super) fn has_dropout(&self) -> bool {
        self.layers.iter().any(|layer| match layer {
            ModelLayer::Dropout(p) => *p > 0.0,
            ModelLayer::Lstm { weights, .. } => weights.config().dropout > 0.0,
            _ => false,
        })
    }

    /// The layers, from the first to the last. The scales of quantized linear layers and embeddings are not part of them: a
    /// [`new`](Self::new) model of the same layers has these in f32, with the values that the integers stand for.
    pub fn layers(&self) -> &[ModelLayer] {
        &self.layers
    }

    /// Whether the first features of the input are added to the output.
    pub fn skip(&self) -> bool {
        self.skip
    }

    /// The factor of the input; 1 by default.
    pub fn input_gain(&self) -> f32 {
        self.input_gain
    }

    /// The factor of the output; 1 by default.
    pub fn output_gain(&self) -> f32 {
        self.output_gain
    }

    /// Text by key that the model carries along.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Number of features of the input at each time step; 1 for a model that reads tokens.
    pub fn input_size(&self) -> usize {
        self.input_size
    }

    /// Number of features of the output.
    pub fn output_size(&self) -> usize {
        self.output_size
    }

    /// Whether the first layer is an embedding, so that the input is tokens.
    pub fn reads_tokens(&self) -> bool {
        matches!(self.layers.first(), Some(ModelLayer::Embedding { .. }))
    }

    /// Whether the output has one row per sequence instead of one per time step.
    pub fn returns_last_step(&self) -> bool {
        self.layers.iter().any(|layer| matches!(layer, ModelLayer::LastStep | ModelLayer::FinalState))
    }

    /// The LSTMs of the model, from the first to the last.
    pub fn lstms(&self) -> impl Iterator<Item = &Arc<Weights>> {
        self.layers.iter().filter_map(|layer| match layer {
            ModelLayer::Lstm { weights, .. } => Some(weights),
            _ => None,
        })
    }

    /// Number of scalar parameters.
    pub fn num_params(&self) -> usize {
        self.layers.iter().map(ModelLayer::num_params).sum()
    }
}

/// Checks each layer by itself and in its place. Returns the input size and the output size of the chain.
fn check_layers(layers: &[ModelLayer]) -> Result<(usize, usize)> {
    let (mut input_size, mut size) = (None, None);
    let mut steps_end = None;
    for (k, layer) in layers.iter().enumerate() {
        let error = |reason: String| {
            let name = layer.name().map_or(String::new(), |name| format!(" `{name}`"));
            Err(Error::config("layers", format!("layer {k} ({}{name}): {reason}", layer.kind())))
        };
        let (expected, output) = match layer {
            ModelLayer::Embedding { weight, .. } => {
                if k != 0 {
                    return error("an embedding is only possible as the first layer".into());
                }
                check_size("num_embeddings", weight.nrows())?;
                check_size("embedding_dim", weight.ncols())?;
                (Some(1), Some(weight.ncols()))
            }
            ModelLayer::Lstm { weights, initial_state, .. } => {
                let config = weights.config();
                if let Some(before) = steps_end {
                    return error(format!("expected a sequence, got the single step that layer {before} returns"));
                }
                if let Some(state) = initial_state {
                    state.check("initial_state", config, 1)?;
                }
                (Some(config.input_size), Some(config.output_size()))
            }
            ModelLayer::Linear { weight, bias, .. } => {
                check_size("in_features", weight.ncols())?;
                check_size("out_features", weight.nrows())?;
                if let Some(len) = bias.as_ref().map(Array1::len).filter(|&len| len != weight.nrows()) {
                    return error(format!("expected a bias of {} values, got {len}", weight.nrows()));
                }
                (Some(weight.ncols()), Some(weight.nrows()))
            }
            ModelLayer::Activation(activation) => {
                if activation.is_softmax() && k + 1 != layers.len() {
                    return error(format!("{activation} is only possible as the last layer"));
                }
                if let Activation::HardSigmoid { alpha, beta } = activation
                    && !(alpha.is_finite() && beta.is_finite())
                {
                    return error(format!("expected finite parameters, got {activation}"));
                }
                (None, size)
            }
            ModelLayer::LastStep | ModelLayer::FinalState => {
                if let Some(before) = steps_end {
                    return error(format!("layer {before} already returns a single step"));
                }
                let follows_lstm = k > 0 && matches!(layers[k - 1], ModelLayer::Lstm { .. });
                if matches!(layer, ModelLayer::FinalState) && !follows_lstm {
                    return error("expected an LSTM directly before it".into());
                }
                steps_end = Some(k);
                (None, size)
            }
            ModelLayer::Dropout(probability) => {
                if !(0.0..1.0).contains(probability) {
                    return error(format!("expected a probability 0 <= p < 1, got {probability}"));
                }
                (None, size)
            }
        };
        if let (Some(expected), Some(size)) = (expected, size)
            && expected != size
        {
            return error(format!("it reads {expected} features, but the layer before it returns {size}"));
        }
        input_size = input_size.or(expected);
        size = output;
    }
    match (input_size, size) {
        (Some(input_size), Some(output_size)) => Ok((input_size, output_size)),
        _ => Err(Error::config("layers", "expected at least an LSTM, a linear layer or an embedding, found none")),
    }
}

/// Checks that the names tell the tensors of the layers apart in a state dict.
fn check_names(layers: &[ModelLayer]) -> Result<()> {
    let names: Vec<&str> = layers.iter().filter_map(ModelLayer::name).collect();
    for (k, name) in names.iter().enumerate() {
        let is_ambiguous = |other: &str| {
            other == *name || other.strip_prefix(name).is_some_and(|rest| rest.starts_with('.') || name.is_empty())
        };
        let mut others = names.iter().enumerate().filter(|(j, _)| *j != k);
        if name.is_empty() {
            return Err(Error::config("layers", "expected a name for each layer with parameters, got an empty one"));
        }
        if let Some((_, other)) = others.find(|(_, other)| is_ambiguous(other)) {
            let reason = format!("the layers `{name}` and `{other}` need names of which neither starts with the other");
            return Err(Error::config("layers", reason));
        }
    }
    Ok(())
}
