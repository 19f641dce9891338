//! Models: opening, describing, and whole sequences.

use std::{
    collections::BTreeMap,
    ffi::{CString, c_char},
    fmt::Write as _,
};

use library::{
    Device, ExecutionPath, HostState, LstmConfig, Model, ModelInput, ModelLayer, ModelWeights, Ops, Precision,
    formats::{self, ModelFile, OpenOptions},
    ndarray::{Array3, ArrayView2, ArrayView3},
};

use crate::{
    options::LstmOptions,
    pointers::{check, check_disjoint, free, input, object, output, return_object, text},
    status::{Failure, LstmStatus, call},
};

/// A model on a device. Several threads may use it at the same time.
pub struct LstmModel {
    pub(crate) model: Model<Device>,
    /// The number of time steps that the model is for; `None` for any number.
    pub(crate) steps: Option<usize>,
    /// Whether a step of a stream neither allocates nor enters the operating system.
    is_real_time: bool,
    description: CString,
    metadata: BTreeMap<String, CString>,
}

impl LstmModel {
    pub(crate) fn weights(&self) -> &ModelWeights {
        self.model.weights()
    }

    /// Loads a model file on the device of the options.
    fn load(file: ModelFile, options: &LstmOptions) -> Result<Self, Failure> {
        file.check_weights_suffice()?;
        let (format, steps) = (file.format, file.steps);
        let model = Model::new(&options.open_device()?, file.weights)?;
        let c_text = |text: &str| CString::new(text.replace('\0', " ")).unwrap_or_default();
        let metadata = model.weights().metadata().iter().map(|(key, value)| (key.clone(), c_text(value))).collect();
        let description = c_text(&describe(&format.to_string(), &model));
        let has_kernels = || model.paths().iter().all(|path| matches!(path, ExecutionPath::Fused(_)));
        let is_real_time = model.backend().name() == "cpu" && options.threads() == Some(1) && has_kernels();
        Ok(LstmModel { model, steps, is_real_time, description, metadata })
    }

    /// The number of tokens that exist; `None` if the model reads features.
    pub(crate) fn num_tokens(&self) -> Option<usize> {
        match self.weights().layers().first() {
            Some(ModelLayer::Embedding { weight, .. }) => Some(weight.nrows()),
            _ => None,
        }
    }

    /// Number of time steps of the outputs for an input of `steps`.
    fn output_steps(&self, steps: usize) -> usize {
        if self.weights().returns_last_step() { 1 } else { steps }
    }

    /// Number of values of the states of `batch` sequences; `None` if it is too large.
    pub(crate) fn state_size(&self, batch: usize) -> Option<usize> {
        let size = |config: &LstmConfig| {
            let rows = config.num_layers * config.num_directions();
            rows.checked_mul(config.state_size() + config.hidden_size)?.checked_mul(batch)
        };
        self.weights().lstms().try_fold(0usize, |sum, lstm| sum.checked_add(size(lstm.config())?))
    }
}

/// Converts the values of [`lstm_model_forward`]'s states to arrays.
pub(crate) fn to_states(weights: &ModelWeights, mut values: &[f32], batch: usize) -> Result<Vec<HostState>, Failure> {
    let mut states = Vec::new();
    for lstm in weights.lstms() {
        let mut state = HostState::zeros(lstm.config(), batch)?;
        for array in [&mut state.h, &mut state.c] {
            let (head, tail) = values.split_at_checked(array.len()).ok_or_else(wrong_state_size)?;
            array.iter_mut().zip(head).for_each(|(to, value)| *to = *value);
            values = tail;
        }
        states.push(state);
    }
    if values.is_empty() { Ok(states) } else { Err(wrong_state_size()) }
}

fn wrong_state_size() -> Failure {
    Failure::argument("the state has another size than lstm_model_state_size gives")
}

/// Copies states to the caller's array, which has their size.
pub(crate) fn copy_states(states: &[HostState], to: &mut [f32]) {
    let values = states.iter().flat_map(|state| state.h.iter().chain(&state.c));
    to.iter_mut().zip(values).for_each(|(to, value)| *to = *value);
}

/// One line for each layer, and one for the device.
fn describe(format: &str, model: &Model<Device>) -> String {
    let weights = model.weights();
    let input = match weights.reads_tokens() {
        true => "a token".to_owned(),
        false => format!("{} features", weights.input_size()),
    };
    let per = if weights.returns_last_step() { "sequence" } else { "step" };
    let mut text = format!(
        "{format}, {} parameters: {input} per step -> {} outputs per {per}\n",
        weights.num_params(),
        weights.output_size()
    );
    for (k, layer) in weights.layers().iter().enumerate() {
        let precision = weights.layer_precision(k).filter(|precision| *precision != Precision::F32);
        let precision = precision.map(|precision| format!(", {precision}")).unwrap_or_default();
        let _ = writeln!(text, "{k}: {layer}{precision}");
    }
    let device = model.backend();
    let mut paths: Vec<String> = model.paths().iter().map(ToString::to_string).collect();
    paths.dedup();
    let _ = write!(text, "device {}, arithmetic {}: {}", device.name(), device.arithmetic(), paths.join("; "));
    text
}

/// Opens a model file of any supported format; the content determines the format. `options` may be NULL for the
/// default options. On success `out` is a model, which `lstm_model_destroy` frees.
///
/// # Safety
/// `path` is NULL or ends with a zero; `options` is NULL or valid; `out` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_open(
    path: *const c_char,
    options: *const LstmOptions,
    out: *mut *mut LstmModel,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    let open = |open: &OpenOptions| Ok(formats::open(unsafe { text("path", path) }?, open)?);
    // SAFETY: as above.
    unsafe { open_with(options, out, open) }
}

/// Opens a model from the `size` bytes of its file, which may be freed afterwards. Otherwise as `lstm_model_open`. An
/// ONNX file whose tensors are in other files can't be opened in this way.
///
/// # Safety
/// `bytes` is NULL or has `size` bytes; `options` is NULL or valid; `out` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_open_memory(
    bytes: *const u8,
    size: usize,
    options: *const LstmOptions,
    out: *mut *mut LstmModel,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    let open = |open: &OpenOptions| Ok(formats::open_bytes(unsafe { input("bytes", bytes, size) }?, open)?);
    // SAFETY: as above.
    unsafe { open_with(options, out, open) }
}

/// Opens a model by `open`, and writes its handle to `out`.
///
/// # Safety
/// `options` is NULL or valid; `out` is NULL or can be written.
unsafe fn open_with(
    options: *const LstmOptions,
    out: *mut *mut LstmModel,
    open: impl FnOnce(&OpenOptions) -> Result<ModelFile, Failure>,
) -> LstmStatus {
    call(|| {
        let default_options = LstmOptions::default();
        let options = match options.is_null() {
            true => &default_options,
            // SAFETY: the caller guarantees the pointer.
            false => unsafe { object("options", options) }?,
        };
        // Before the work of opening.
        check("out", out, 1)?;
        let model = LstmModel::load(open(&options.open)?, options)?;
        // SAFETY: as above.
        Ok(unsafe { return_object(out, model) }?)
    })
}

/// Destroys a model. Streams of the model stay valid. Does nothing for NULL.
///
/// # Safety
/// `model` is NULL, or comes from this library and was not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_destroy(model: *mut LstmModel) {
    call(|| {
        // SAFETY: the caller guarantees the pointer.
        unsafe { free(model) };
        Ok(())
    });
}

/// Number of features of the input at each time step; 1 for a model that reads tokens. 0 for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_input_size(model: *const LstmModel) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.map_or(0, |model| model.weights().input_size())
}

/// The vocabulary size of a model that reads tokens; valid tokens are below it. 0 for other models and for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_num_tokens(model: *const LstmModel) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.ok().and_then(LstmModel::num_tokens).unwrap_or(0)
}

/// Number of outputs at each time step. 0 for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_output_size(model: *const LstmModel) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.map_or(0, |model| model.weights().output_size())
}

/// Number of parameters. 0 for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_num_params(model: *const LstmModel) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.map_or(0, |model| model.weights().num_params())
}

/// Whether the input is tokens rather than features. False for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_reads_tokens(model: *const LstmModel) -> bool {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.is_ok_and(|model| model.weights().reads_tokens())
}

/// Whether the model has outputs for the last time step only, rather than for each. False for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_returns_last_step(model: *const LstmModel) -> bool {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.is_ok_and(|model| model.weights().returns_last_step())
}

/// Whether the steps of this model's streams are for real-time threads: they neither allocate, lock nor enter the
/// operating system. That is so on the CPU with one thread, if the CPU has kernels for every LSTM. It has none for other
/// activations of the gates than sigmoid and tanh, which the description then says: `reference`. False for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_is_real_time(model: *const LstmModel) -> bool {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.is_ok_and(|model| model.is_real_time)
}

/// A description of the layers, with their precision, and of the device: text of several lines that is valid as long
/// as the model. Empty for NULL.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_description(model: *const LstmModel) -> *const c_char {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.map_or(c"".as_ptr(), |model| model.description.as_ptr())
}

/// Number of floats of the states of `batch` sequences: for each LSTM in order, the hidden states `h` of shape
/// `(layers * directions, batch, hidden size)`, or with a projection its size, and then the cell states `c` of shape
/// `(layers * directions, batch, hidden size)`. 0 for NULL, or if the number is too large.
///
/// # Safety
/// `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_state_size(model: *const LstmModel, batch: usize) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("model", model) }.ok().and_then(|model| model.state_size(batch)).unwrap_or(0)
}

/// A text that the file carries along, such as `sample_rate`, or NULL if it has none of this name. Valid as long as the
/// model.
///
/// # Safety
/// `model` is NULL or valid; `key` is NULL or ends with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_metadata(model: *const LstmModel, key: *const c_char) -> *const c_char {
    // SAFETY: the caller guarantees the pointers.
    let (model, key) = unsafe { (object("model", model), text("key", key)) };
    let (Ok(model), Ok(key)) = (model, key) else { return std::ptr::null() };
    model.metadata.get(key).map_or(std::ptr::null(), |value| value.as_ptr())
}

/// Runs the model over a batch of sequences. `x` has the shape `(batch, steps, input size)`. `y` has the shape
/// `(batch, steps, output size)`, or `(batch, 1, output size)` for a model that returns the last step. All arrays are
/// row-major and must not overlap.
///
/// - `lengths`: the number of time steps of each sequence, or NULL if all have `steps`; outputs beyond are 0
/// - `initial_state`, `final_state`: states as `lstm_model_state_size` describes them, or NULL
///
/// # Safety
/// Each pointer is NULL or has the described number of elements; `model` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_forward(
    model: *const LstmModel,
    x: *const f32,
    batch: usize,
    steps: usize,
    lengths: *const usize,
    initial_state: *const f32,
    y: *mut f32,
    final_state: *mut f32,
) -> LstmStatus {
    call(|| {
        // SAFETY: the caller guarantees the pointers.
        unsafe {
            let model = object("model", model)?;
            if model.weights().reads_tokens() {
                return Err(Failure::argument("the model reads tokens; use lstm_model_forward_tokens"));
            }
            let x = Input::Features(input("x", x, product(&[batch, steps, model.weights().input_size()])?)?);
            forward(model, x, [batch, steps], lengths, initial_state, y, final_state)
        }
    })
}

/// Runs a model that reads tokens: `tokens` has the shape `(batch, steps)`. Otherwise as `lstm_model_forward`.
///
/// # Safety
/// As for `lstm_model_forward`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_model_forward_tokens(
    model: *const LstmModel,
    tokens: *const i64,
    batch: usize,
    steps: usize,
    lengths: *const usize,
    initial_state: *const f32,
    y: *mut f32,
    final_state: *mut f32,
) -> LstmStatus {
    call(|| {
        // SAFETY: the caller guarantees the pointers.
        unsafe {
            let model = object("model", model)?;
            if !model.weights().reads_tokens() {
                return Err(Failure::argument("the model reads features; use lstm_model_forward"));
            }
            let tokens = Input::Tokens(input("tokens", tokens, product(&[batch, steps])?)?);
            forward(model, tokens, [batch, steps], lengths, initial_state, y, final_state)
        }
    })
}

/// The caller's input, of all sequences.
#[derive(Clone, Copy)]
enum Input<'a> {
    Features(&'a [f32]),
    Tokens(&'a [i64]),
}

/// Runs a model over sequences.
///
/// # Safety
/// As for [`lstm_model_forward`].
unsafe fn forward(
    model: &LstmModel,
    x: Input<'_>,
    [batch, steps]: [usize; 2],
    lengths: *const usize,
    initial_state: *const f32,
    y: *mut f32,
    final_state: *mut f32,
) -> Result<(), Failure> {
    if let Some(expected) = model.steps.filter(|&expected| expected != steps) {
        return Err(Failure::argument(format_args!("steps: the model is for {expected} time steps, got {steps}")));
    }
    let y_len = product(&[batch, model.output_steps(steps), model.weights().output_size()])?;
    let state_len = model.state_size(batch).ok_or_else(too_large)?;
    // SAFETY: the caller guarantees the pointers.
    unsafe {
        let lengths = if lengths.is_null() { None } else { Some(input("lengths", lengths, batch)?) };
        let state_len_of = |state: *const f32| if state.is_null() { 0 } else { state_len };
        let initial = input("initial_state", initial_state, state_len_of(initial_state))?;
        let final_len = state_len_of(final_state);
        for output in [(y, y_len), (final_state, final_len)] {
            match x {
                Input::Features(x) => check_disjoint((x.as_ptr(), x.len()), output)?,
                Input::Tokens(x) => check_disjoint((x.as_ptr(), x.len()), output)?,
            }
            check_disjoint((initial.as_ptr(), initial.len()), output)?;
            let lengths = lengths.unwrap_or_default();
            check_disjoint((lengths.as_ptr(), lengths.len()), output)?;
        }
        check_disjoint((y.cast_const(), y_len), (final_state, final_len))?;
        let y = output("y", y, y_len)?;
        let final_state = output("final_state", final_state, final_len)?;
        let states = if initial_state.is_null() { None } else { Some(to_states(model.weights(), initial, batch)?) };
        let shape = (batch, steps, model.weights().input_size());
        let mut model_input = match x {
            Input::Features(x) => ModelInput::from(ArrayView3::from_shape(shape, x).map_err(Failure::argument)?),
            Input::Tokens(x) => ModelInput::from(ArrayView2::from_shape((batch, steps), x).map_err(Failure::argument)?),
        };
        if let Some(lengths) = lengths {
            model_input = model_input.lengths(lengths);
        }
        if let Some(states) = &states {
            model_input = model_input.states(states);
        }
        let result = model.model.forward(model_input)?;
        copy(&result.y, y);
        copy_states(&result.states, final_state);
    }
    Ok(())
}

/// Copies an array to the caller's, which has its size.
fn copy(from: &Array3<f32>, to: &mut [f32]) {
    match from.as_slice() {
        Some(from) => to.copy_from_slice(from),
        None => to.iter_mut().zip(from).for_each(|(to, value)| *to = *value),
    }
}

fn product(sizes: &[usize]) -> Result<usize, Failure> {
    sizes.iter().try_fold(1usize, |product, &size| product.checked_mul(size)).ok_or_else(too_large)
}

fn too_large() -> Failure {
    Failure::argument("the sizes are too large")
}
