//! Models: opening, describing, saving, and whole sequences.

use std::{ptr::null_mut, slice};

use lstm::{
    Cpu, Error, HostState, Isa, LstmConfig, Model, ModelInput, ModelLayer, ModelWeights, Precision, Result, StateDict,
    arithmetic::Digest,
    formats::{Format, ModelFile, OpenOptions, detect, open_bytes},
    ndarray::{Array2, ArrayView3},
};
use serde_json::json;

use crate::{
    memory::optional_slice,
    metadata::CONVERTED_FROM_KEY,
    result::{ok_or_set_message, set_result},
};

/// A model on the CPU.
pub(crate) struct WebModel {
    pub(crate) model: Model<Cpu>,
    /// The number of time steps of each sequence, if the model fixes it.
    pub(crate) steps: Option<usize>,
}

impl WebModel {
    fn open(bytes: &[u8], precision: Option<Precision>, isa: Option<Isa>) -> Result<Self> {
        let mut options = OpenOptions::default();
        options.precision = precision;
        let file = open_bytes(bytes, &options)?;
        file.check_weights_suffice()?;
        let cpu = Cpu::builder().threads(1);
        let cpu = isa.map_or(cpu, |isa| cpu.isa(isa)).build()?;
        Ok(WebModel { steps: file.steps, model: Model::new(&cpu, file.weights)? })
    }

    /// Checks that the model runs sequences of any length, as a stream requires.
    pub(crate) fn check_any_length(&self) -> Result<()> {
        let Some(steps) = self.steps else { return Ok(()) };
        let reason =
            format!("expected one for sequences of any length, got one for {steps} time steps; run it with `forward`");
        Err(Error::config("model", format!("stream: {reason}")))
    }

    pub(crate) fn weights(&self) -> &ModelWeights {
        self.model.weights()
    }

    /// What JavaScript needs to know of the model, as JSON.
    fn describe(&self) -> String {
        let weights = self.weights();
        let layers = weights.layers().iter().enumerate().map(|(k, layer)| {
            let precision = weights.layer_precision(k).filter(|precision| *precision != Precision::F32);
            layer.to_string() + &precision.map(|precision| format!(", {precision}")).unwrap_or_default()
        });
        let tokens = match weights.layers().first() {
            Some(ModelLayer::Embedding { weight, .. }) => weight.nrows(),
            _ => 0,
        };
        let mut metadata = weights.metadata().clone();
        let converted_from = metadata.remove(CONVERTED_FROM_KEY);
        metadata.remove(ModelFile::STEPS_KEY);
        let mut text = json!({
            "layers": layers.collect::<Vec<_>>(),
            "inputSize": weights.input_size(),
            "outputSize": weights.output_size(),
            "numTokens": tokens,
            "readsTokens": weights.reads_tokens(),
            "returnsLastStep": weights.returns_last_step(),
            "parameters": weights.num_params(),
            "metadata": metadata,
            "instructions": self.model.backend().isa().to_string(),
            "paths": self.model.paths().iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        // Properties that a model may lack.
        if let Some(format) = converted_from {
            text["convertedFrom"] = format.into();
        }
        if let Some(steps) = self.steps {
            text["steps"] = steps.into();
        }
        text.to_string()
    }

    /// The digest of all parameters, in the order of their names.
    fn digest(&self) -> Result<Digest> {
        let mut file = StateDict::from_bytes(self.weights().to_bytes()?)?;
        let mut names: Vec<String> = file.names().map(str::to_owned).collect();
        names.sort();
        let mut digest = Digest::default();
        for name in names {
            file.take_any(&name)?.iter().for_each(|&value| digest.add(value));
        }
        Ok(digest)
    }

    /// The initial states of a batch from a flat array, in the order of [`state_size`].
    fn states(&self, values: &[f32], batch: usize) -> Result<Vec<HostState>> {
        let mut values = values.iter();
        let states = self.weights().lstms().map(|lstm| {
            let mut state = HostState::zeros(lstm.config(), batch)?;
            let elements = state.h.iter_mut().chain(state.c.iter_mut());
            elements.zip(&mut values).for_each(|(element, value)| *element = *value);
            Ok(state)
        });
        states.collect()
    }
}

/// Checks the number of time steps of sequences, where `expected` is that of the model.
pub(crate) fn check_steps(op: &str, expected: Option<usize>, steps: usize) -> Result<()> {
    match expected {
        Some(expected) if expected != steps => Err(Error::shape(format!("{op}: steps"), expected, steps)),
        _ => Ok(()),
    }
}

/// Number of floats of the states of `batch` sequences: of each LSTM in order `h` and then `c`. Saturates at
/// `usize::MAX`.
fn state_size(weights: &ModelWeights, batch: usize) -> usize {
    let size =
        |config: &LstmConfig| config.num_layers * config.num_directions() * (config.state_size() + config.hidden_size);
    weights.lstms().map(|lstm| size(lstm.config())).sum::<usize>().saturating_mul(batch)
}

/// Whether a model file must be converted before it is opened. If so, puts the name of its format into the buffer.
///
/// # Safety
/// `bytes` has `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_needs_conversion(bytes: *const u8, size: usize) -> bool {
    // SAFETY: guaranteed by the caller.
    let format = detect(unsafe { slice::from_raw_parts(bytes, size) });
    let format = format.filter(|format| matches!(format, Format::Onnx | Format::Keras | Format::PyTorch));
    format.map(|format| set_result(format.to_string())).is_some()
}

/// Opens a model. Returns 0 after an error. `precision` is 0 for that of the file, or 8 or 12 for int8 and int12; `plain` is 1
/// for kernels without vector instructions, which are for comparison.
///
/// # Safety
/// `bytes` has `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_open(bytes: *const u8, size: usize, precision: u32, plain: u32) -> *mut WebModel {
    // SAFETY: guaranteed by the caller.
    let bytes = unsafe { slice::from_raw_parts(bytes, size) };
    let precision = match precision {
        8 => Some(Precision::Int8),
        12 => Some(Precision::Int12),
        _ => None,
    };
    let model = ok_or_set_message(WebModel::open(bytes, precision, (plain == 1).then_some(Isa::Plain)));
    model.map_or(null_mut(), |model| Box::into_raw(Box::new(model)))
}

/// Frees a model. Streams and trainers of the model stay valid.
///
/// # Safety
/// `model` was returned by this module and not freed.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_free(model: *mut WebModel) {
    // SAFETY: guaranteed by the caller.
    drop(unsafe { Box::from_raw(model) });
}

/// Leaves a description of the model in the buffer, as JSON.
///
/// # Safety
/// `model` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_describe(model: *const WebModel) {
    // SAFETY: guaranteed by the caller.
    set_result(unsafe { &*model }.describe());
}

/// Leaves the digest of all parameters in the buffer. Returns whether that succeeded.
///
/// # Safety
/// `model` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_digest(model: *const WebModel) -> bool {
    // SAFETY: guaranteed by the caller.
    ok_or_set_message(unsafe { &*model }.digest()).map(|digest| set_result(digest.to_string())).is_some()
}

/// Leaves the model's safetensors file in the buffer. Returns whether that succeeded.
///
/// # Safety
/// `model` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_save(model: *const WebModel) -> bool {
    // SAFETY: guaranteed by the caller.
    ok_or_set_message(unsafe { &*model }.weights().to_bytes()).map(set_result).is_some()
}

/// Number of floats of the states of `batch` sequences.
///
/// # Safety
/// `model` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_state_size(model: *const WebModel, batch: usize) -> usize {
    // SAFETY: guaranteed by the caller.
    state_size(unsafe { &*model }.weights(), batch)
}

/// Runs a model over a batch of sequences: `x` has the shape `(batch, steps, input size)`, or `(batch, steps)` of i32 if
/// the model reads tokens. `lengths` (u32 of each sequence) and `initial` (states) may be 0. `y` gets the outputs, whose number
/// must be `y_len`, and `states` the final states. Returns whether that succeeded.
///
/// # Safety
/// `model` is valid; `x` has the elements of its shape, `lengths` is 0 or has `batch`, `initial` is 0 or has those of
/// [`model_state_size`], `y` has `y_len`, and `states` has those of [`model_state_size`].
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_forward(
    model: *const WebModel,
    x: *const f32,
    batch: usize,
    steps: usize,
    lengths: *const u32,
    initial: *const f32,
    y: *mut f32,
    y_len: usize,
    states: *mut f32,
) -> bool {
    // SAFETY: guaranteed by the caller.
    let model = unsafe { &*model };
    let weights = model.weights();
    let state_len = state_size(weights, batch);
    let forward = || -> Result<()> {
        check_steps("forward", model.steps, steps)?;
        let too_large =
            || Error::shape("forward: x", "sequences that fit in memory", format!("{batch} of {steps} steps"));
        let positions = batch.checked_mul(steps).ok_or_else(too_large)?;
        // SAFETY: guaranteed by the caller.
        let (lengths, initial) = unsafe { (optional_slice(lengths, batch), optional_slice(initial, state_len)) };
        let lengths: Option<Vec<usize>> = lengths.map(|lengths| lengths.iter().map(|&len| len as usize).collect());
        let initial = initial.map(|values| model.states(values, batch)).transpose()?;
        let tokens;
        let mut input = if weights.reads_tokens() {
            // SAFETY: guaranteed by the caller.
            let values = unsafe { slice::from_raw_parts(x.cast::<i32>(), positions) };
            tokens = Array2::from_shape_fn((batch, steps), |(b, t)| i64::from(values[b * steps + t]));
            ModelInput::from(&tokens)
        } else {
            let shape = (batch, steps, weights.input_size());
            let len = positions.checked_mul(weights.input_size()).ok_or_else(too_large)?;
            // SAFETY: guaranteed by the caller.
            let values = unsafe { slice::from_raw_parts(x, len) };
            let view = ArrayView3::from_shape(shape, values);
            view.map_err(|error| Error::shape("forward: x", format!("{shape:?}"), error))?.into()
        };
        input = lengths.iter().fold(input, |input, lengths| input.lengths(lengths));
        input = initial.iter().fold(input, |input, states| input.states(states));
        let output = model.model.forward(input)?;
        if output.y.len() != y_len {
            return Err(Error::shape("forward: y", format!("space for {} values", output.y.len()), y_len));
        }
        let final_states = output.states.iter().flat_map(|state| state.h.iter().chain(&state.c));
        // SAFETY: guaranteed by the caller.
        unsafe {
            copy(output.y.iter(), slice::from_raw_parts_mut(y, y_len));
            copy(final_states, slice::from_raw_parts_mut(states, state_len));
        }
        Ok(())
    };
    ok_or_set_message(forward()).is_some()
}

/// Copies values to a slice of the same length.
fn copy<'a>(from: impl Iterator<Item = &'a f32>, to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
}
