//! The class `LSTM`, with the arguments and the call of `torch.nn.LSTM`.

use std::sync::{
    Arc, PoisonError, RwLock,
    atomic::{AtomicBool, AtomicU64, Ordering},
};

use lstm::{
    Bias, Device, Dropout, ExecutionPath, HostState, Input, LayerSpec, Lstm, LstmConfig, StateDict, StateDictWriter,
    TensorNames,
    arithmetic::Digest,
    ndarray::{Array3, Axis},
};
use numpy::{IntoPyArray, PyUntypedArray};
use pyo3::{
    exceptions::PyUserWarning,
    prelude::*,
    types::{PyBytes, PyDict, PyTuple},
};

use crate::{
    arguments::{self, checked_unsigned},
    arrays::{Features, read_lengths, read_state},
    device::DeviceOptions,
    error::IntoPyResult,
    parameters,
    stream::{AnyStream, StreamClass},
};

#[doc = doc!("LSTM")]
#[pyclass(frozen, name = "LSTM", module = "lstm")]
pub(crate) struct LstmClass {
    /// Replaced as a whole by other weights, so that a running pass keeps the ones that it started with.
    lstm: RwLock<Arc<Lstm<Device>>>,
    device: DeviceOptions,
    options: Options,
    training: AtomicBool,
    /// Number of passes with dropout so far. Each has a seed of its own.
    passes: AtomicU64,
}

/// What is not part of the library's configuration.
#[derive(Clone, Copy)]
struct Options {
    batch_first: bool,
    /// As PyTorch keeps it, also for a single layer, where it has no effect.
    dropout: f32,
    seed: u64,
}

/// A seed from the operating system.
fn random_seed(py: Python<'_>) -> PyResult<u64> {
    py.import("secrets")?.call_method1("randbits", (63,))?.extract()
}

/// The seed of a pass: output number `pass` of the generator SplitMix64 (Steele et al. 2014) that starts from `seed`. A sum
/// would give passes of objects with neighbouring seeds the same masks.
fn mix(seed: u64, pass: u64) -> u64 {
    let z = seed.wrapping_add(pass.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl LstmClass {
    /// The model with its current weights.
    pub(crate) fn lstm(&self) -> Arc<Lstm<Device>> {
        self.lstm.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the model, and returns it.
    pub(crate) fn set_lstm(&self, lstm: Lstm<Device>) -> Arc<Lstm<Device>> {
        let lstm = Arc::new(lstm);
        *self.lstm.write().unwrap_or_else(PoisonError::into_inner) = lstm.clone();
        lstm
    }

    /// The object of a model that was trained.
    pub(crate) fn from_parts(lstm: Lstm<Device>, device: DeviceOptions, batch_first: bool) -> Self {
        let dropout = lstm.config().dropout;
        LstmClass {
            lstm: RwLock::new(Arc::new(lstm)),
            device,
            options: Options { batch_first, dropout, seed: 0 },
            training: AtomicBool::new(false),
            passes: AtomicU64::new(0),
        }
    }

    /// The device, as the user named it.
    pub(crate) fn device_options(&self) -> &DeviceOptions {
        &self.device
    }

    /// Whether arrays have the batch as their first axis.
    pub(crate) fn is_batch_first(&self) -> bool {
        self.options.batch_first
    }

    /// Counts a pass with dropout and returns its number, from 1 on; `None` for a pass without.
    fn count_dropout_pass(&self, lstm: &Lstm<Device>) -> Option<u64> {
        let has_dropout = lstm.config().dropout > 0.0 && self.training.load(Ordering::Relaxed);
        has_dropout.then(|| self.passes.fetch_add(1, Ordering::Relaxed).wrapping_add(1))
    }

    /// Does not count a pass that failed, unless another thread has started the next.
    fn undo_pass(&self, pass: u64) {
        let _ = self.passes.compare_exchange(pass, pass.wrapping_sub(1), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The shapes of the input, for error messages.
    pub(crate) fn expected_x(&self, config: &LstmConfig) -> String {
        let batch = if self.options.batch_first { "(batch, steps, " } else { "(steps, batch, " };
        format!("the shape {batch}{0}) or (steps, {0})", config.input_size)
    }

    /// The arguments that make an LSTM like this one, without the device.
    pub(crate) fn describe_options(&self) -> String {
        let lstm = self.lstm();
        let config = lstm.config();
        let mut text = format!("{}, {}", config.input_size, config.hidden_size);
        if config.num_layers != 1 {
            text += &format!(", num_layers={}", config.num_layers);
        }
        for (name, is_set) in [
            ("bias=False", config.bias == Bias::None),
            ("batch_first=True", self.options.batch_first),
            ("bidirectional=True", config.num_directions() == 2),
            ("coupled=True", config.coupled),
        ] {
            if is_set {
                text += &format!(", {name}");
            }
        }
        if self.options.dropout > 0.0 {
            text += &format!(", dropout={}", self.options.dropout);
        }
        if let Some(size) = config.proj_size {
            text += &format!(", proj_size={size}");
        }
        if config.cell != lstm::CellKind::default() {
            text += &format!(", cell='{}'", config.cell);
        }
        if let Some(clip) = config.clip {
            text += &format!(", clip={clip}");
        }
        if config.precision != lstm::Precision::default() {
            text += &format!(", precision='{}'", config.precision);
        }
        text
    }

    /// Runs the model on arrays of NumPy.
    fn run_arrays<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        hx: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let lstm = self.lstm();
        let arguments = self.arguments(lstm.config(), x, hx, lengths)?;
        let pass = self.count_dropout_pass(&lstm);
        let input = arguments.input(pass.map_or(Dropout::Off, |pass| Dropout::Seed(mix(self.options.seed, pass))));
        let result = py.detach(|| lstm.forward(input));
        if let (Err(_), Some(pass)) = (&result, pass) {
            self.undo_pass(pass);
        }
        let (y, HostState { h, c }) = result.py()?;
        let is_unbatched = arguments.is_unbatched;
        let state = (to_python(py, h, 1, is_unbatched), to_python(py, c, 1, is_unbatched));
        (to_python(py, y, 0, is_unbatched), state).into_pyobject(py)
    }

    /// Reads and checks the arguments of a call.
    pub(crate) fn arguments<'py>(
        &self,
        config: &LstmConfig,
        x: &Bound<'py, PyAny>,
        hx: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Arguments<'py>> {
        let x = Features::read(x, "input", config.input_size, &self.expected_x(config))?;
        let is_unbatched = matches!(x, Features::One(_));
        let is_time_major = !is_unbatched && !self.options.batch_first;
        let batch = x.batch(is_time_major);
        let lengths = lengths.map(|lengths| read_lengths(lengths, batch)).transpose()?;
        let state = hx.map(|hx| read_state(hx, "hx", config, Some(batch), is_unbatched)).transpose()?;
        Ok(Arguments { x, state, lengths, is_unbatched, is_time_major })
    }
}

/// The arguments of a call of an LSTM.
pub(crate) struct Arguments<'py> {
    x: Features<'py>,
    state: Option<HostState>,
    lengths: Option<Vec<usize>>,
    /// Whether the input is one sequence, without a batch axis.
    pub(crate) is_unbatched: bool,
    is_time_major: bool,
}

impl Arguments<'_> {
    pub(crate) fn input(&self, dropout: Dropout) -> Input<'_> {
        let mut input = Input::from(self.x.view()).dropout(dropout);
        if self.is_time_major {
            input = input.time_major();
        }
        if let Some(state) = &self.state {
            input = input.state(state);
        }
        if let Some(lengths) = &self.lengths {
            input = input.lengths(lengths);
        }
        input
    }
}

/// The array, without its axis `axis` of length 1 if there is one sequence.
pub(crate) fn to_python(py: Python<'_>, array: Array3<f32>, axis: usize, is_unbatched: bool) -> Bound<'_, PyAny> {
    if is_unbatched { without_axis(py, array, axis).into_any() } else { array.into_pyarray(py).into_any() }
}

/// The array without its axis of length 1.
pub(crate) fn without_axis(py: Python<'_>, array: Array3<f32>, axis: usize) -> Bound<'_, numpy::PyArray2<f32>> {
    array.index_axis_move(Axis(axis), 0).into_pyarray(py)
}

/// The names of execution paths, without repetition.
pub(crate) fn describe_paths(paths: &[ExecutionPath]) -> String {
    let mut names: Vec<_> = paths.iter().map(ToString::to_string).collect();
    names.dedup();
    names.join(", ")
}

/// Whether all values are arrays of NumPy.
fn all_numpy(values: &[&Bound<'_, PyAny>]) -> bool {
    values.iter().all(|value| value.cast::<PyUntypedArray>().is_ok())
}

#[pymethods]
impl LstmClass {
    #[new]
    #[pyo3(signature = (
        input_size, hidden_size, num_layers = 1, bias = true, batch_first = false, dropout = 0.0, bidirectional = false,
        proj_size = 0, *, cell = "fused", clip = None, coupled = false, device = "cpu",
        precision = "f32", threads = None, seed = None
    ))]
    #[allow(clippy::too_many_arguments, reason = "they are those of torch.nn.LSTM")]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::input_size)] input_size: i128,
        #[pyo3(from_py_with = arguments::hidden_size)] hidden_size: i128,
        #[pyo3(from_py_with = arguments::num_layers)] num_layers: i128,
        #[pyo3(from_py_with = arguments::bias)] bias: bool,
        #[pyo3(from_py_with = arguments::batch_first)] batch_first: bool,
        #[pyo3(from_py_with = arguments::dropout)] dropout: f32,
        #[pyo3(from_py_with = arguments::bidirectional)] bidirectional: bool,
        #[pyo3(from_py_with = arguments::proj_size)] proj_size: i128,
        #[pyo3(from_py_with = arguments::cell)] cell: &str,
        #[pyo3(from_py_with = arguments::clip)] clip: Option<f32>,
        #[pyo3(from_py_with = arguments::coupled)] coupled: bool,
        #[pyo3(from_py_with = arguments::device)] device: &str,
        #[pyo3(from_py_with = arguments::precision)] precision: &str,
        #[pyo3(from_py_with = arguments::threads)] threads: Option<i128>,
        #[pyo3(from_py_with = arguments::optional_seed)] seed: Option<i128>,
    ) -> PyResult<Self> {
        let mut config =
            LstmConfig::new(checked_unsigned("input_size", input_size)?, checked_unsigned("hidden_size", hidden_size)?)
                .layers(checked_unsigned("num_layers", num_layers)?)
                .bias(if bias { Bias::Two } else { Bias::None })
                .cell(cell.parse().py()?)
                .precision(precision.parse().py()?);
        (config.clip, config.coupled) = (clip, coupled);
        config.proj_size = Some(checked_unsigned("proj_size", proj_size)?).filter(|&size| size > 0);
        if bidirectional {
            config = config.bidirectional();
        }
        config.dropout = dropout;
        if num_layers == 1 && (0.0..=1.0).contains(&dropout) && dropout > 0.0 {
            let text = c"dropout acts between layers, so it has no effect with num_layers=1";
            PyErr::warn(py, &py.get_type::<PyUserWarning>(), text, 1)?;
            config.dropout = 0.0;
        }
        config.validate().py()?;
        let seed = seed.map_or_else(|| random_seed(py), |seed| checked_unsigned("seed", seed))?;
        let device = DeviceOptions::new(device, threads)?;
        let opened = device.open(py)?;
        let lstm = py.detach(|| Lstm::random(&opened, config, seed)).py()?;
        Ok(LstmClass {
            lstm: RwLock::new(Arc::new(lstm)),
            device,
            options: Options { batch_first, dropout, seed },
            training: AtomicBool::new(true),
            passes: AtomicU64::new(0),
        })
    }

    #[pyo3(signature = (input, hx = None, *, lengths = None))]
    fn __call__<'py>(
        slf: &Bound<'py, Self>,
        input: &Bound<'py, PyAny>,
        hx: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let has_numpy_state =
            hx.is_none_or(|hx| hx.cast::<PyTuple>().is_ok_and(|hx| hx.iter().all(|array| all_numpy(&[&array]))));
        if has_numpy_state && all_numpy(&[input]) {
            return slf.get().run_arrays(py, input, hx, lengths);
        }
        let interop = py.import("lstm._interop")?;
        Ok(interop.call_method1("call", (slf, input, hx, lengths))?.cast_into()?)
    }

    #[doc = doc!("LSTM.forward")]
    #[pyo3(signature = (input, hx = None, *, lengths = None))]
    fn forward<'py>(
        slf: &Bound<'py, Self>,
        input: &Bound<'py, PyAny>,
        hx: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyTuple>> {
        Self::__call__(slf, input, hx, lengths)
    }

    #[doc = doc!("LSTM.stream")]
    #[pyo3(signature = (batch = 1))]
    fn stream(&self, #[pyo3(from_py_with = arguments::batch)] batch: i128) -> PyResult<StreamClass> {
        let stream = AnyStream::Lstm(Box::new(self.lstm().stream(checked_unsigned("batch", batch)?).py()?));
        Ok(StreamClass::new(stream, self.options.batch_first))
    }

    #[doc = doc!("LSTM.state_dict")]
    fn state_dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        parameters::to_dict(py, self.lstm().weights())
    }

    #[doc = doc!("LSTM.load_state_dict")]
    #[pyo3(signature = (state_dict, strict = true))]
    fn load_state_dict<'py>(
        &self,
        state_dict: &Bound<'py, PyAny>,
        #[pyo3(from_py_with = arguments::strict)] strict: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let py = state_dict.py();
        let mut lstm = Lstm::clone(&self.lstm());
        let (weights, missing, unexpected) = parameters::from_mapping(lstm.weights(), state_dict, strict)?;
        py.detach(|| lstm.set_weights(weights)).py()?;
        self.set_lstm(lstm);
        py.import("lstm._interop")?.call_method1("IncompatibleKeys", (missing, unexpected))
    }

    #[doc = doc!("LSTM.flatten_parameters")]
    fn flatten_parameters(&self) {}

    #[doc = doc!("LSTM.train")]
    #[pyo3(signature = (mode = true))]
    fn train(slf: Bound<'_, Self>, #[pyo3(from_py_with = arguments::mode)] mode: bool) -> Bound<'_, Self> {
        slf.get().training.store(mode, Ordering::Relaxed);
        slf
    }

    #[doc = doc!("LSTM.eval")]
    fn eval(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        Self::train(slf, false)
    }

    #[doc = doc!("LSTM.digest")]
    fn digest(&self) -> String {
        let lstm = self.lstm();
        let values = lstm.weights().layers().iter().flat_map(|layer| layer.iter().flat_map(|(_, value)| value));
        Digest::of(values).to_string()
    }

    #[doc = doc!("LSTM.input_size")]
    #[getter]
    fn input_size(&self) -> usize {
        self.lstm().config().input_size
    }

    #[doc = doc!("LSTM.hidden_size")]
    #[getter]
    fn hidden_size(&self) -> usize {
        self.lstm().config().hidden_size
    }

    #[doc = doc!("LSTM.num_layers")]
    #[getter]
    fn num_layers(&self) -> usize {
        self.lstm().config().num_layers
    }

    #[doc = doc!("LSTM.bias")]
    #[getter]
    fn bias(&self) -> bool {
        self.lstm().config().bias != Bias::None
    }

    #[doc = doc!("LSTM.batch_first")]
    #[getter]
    fn batch_first(&self) -> bool {
        self.options.batch_first
    }

    #[doc = doc!("LSTM.dropout")]
    #[getter(dropout)]
    fn dropout_probability(&self) -> f32 {
        self.options.dropout
    }

    #[doc = doc!("LSTM.bidirectional")]
    #[getter]
    fn bidirectional(&self) -> bool {
        self.lstm().config().num_directions() == 2
    }

    #[doc = doc!("LSTM.proj_size")]
    #[getter]
    fn proj_size(&self) -> usize {
        self.lstm().config().proj_size.unwrap_or(0)
    }

    #[doc = doc!("LSTM.cell")]
    #[getter]
    fn cell(&self) -> &'static str {
        self.lstm().config().cell.name()
    }

    #[doc = doc!("LSTM.clip")]
    #[getter]
    fn clip(&self) -> Option<f32> {
        self.lstm().config().clip
    }

    #[doc = doc!("LSTM.coupled")]
    #[getter]
    fn coupled(&self) -> bool {
        self.lstm().config().coupled
    }

    #[doc = doc!("LSTM.precision")]
    #[getter]
    fn precision(&self) -> &'static str {
        self.lstm().config().precision.name()
    }

    #[doc = doc!("LSTM.device")]
    #[getter]
    fn device(&self) -> &str {
        &self.device.name
    }

    #[doc = doc!("LSTM.threads")]
    #[getter]
    fn threads(&self) -> Option<usize> {
        self.device.threads
    }

    #[doc = doc!("LSTM.seed")]
    #[getter]
    fn seed(&self) -> u64 {
        self.options.seed
    }

    #[doc = doc!("LSTM.training")]
    #[getter]
    fn training(&self) -> bool {
        self.training.load(Ordering::Relaxed)
    }

    #[doc = doc!("LSTM.path")]
    #[getter]
    fn path(&self) -> String {
        describe_paths(&self.lstm().paths())
    }

    fn __repr__(&self) -> String {
        let lstm = self.lstm();
        let config = lstm.config();
        let mut text = format!("LSTM({}", self.describe_options());
        text += &format!(", device='{}'", self.device.name);
        if let Some(threads) = self.device.threads {
            text += &format!(", threads={threads}");
        }
        text += ")";
        let layers = config.layer_specs().into_iter().zip(lstm.paths()).enumerate();
        for (k, (spec, path)) in layers {
            let LayerSpec { input_size, reverse, .. } = spec;
            text += &format!(
                "\n  layer {}{}: {input_size} -> {}, {} parameters, {path}",
                k / config.num_directions(),
                if reverse { " reverse" } else { "" },
                spec.state_size(),
                spec.params().iter().map(|(_, shape)| shape.iter().product::<usize>()).sum::<usize>(),
            );
        }
        text
    }

    /// What `pickle` and `copy.deepcopy` call: the function that makes the object again, and its arguments.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let lstm = self.lstm();
        let bytes = StateDictWriter::new().lstm("", lstm.weights(), TensorNames::PyTorch).py()?.to_bytes().py()?;
        let Options { batch_first, dropout, seed } = self.options;
        let state = (
            PyBytes::new(py, &bytes),
            lstm.config().to_string(),
            (&self.device.name, self.device.threads),
            (batch_first, dropout, seed),
            (self.training(), self.passes.load(Ordering::Relaxed)),
        );
        (py.import("lstm._lstm")?.getattr("restore_lstm")?, state).into_pyobject(py)
    }
}

#[doc = doc!("restore_lstm")]
#[pyfunction]
pub(crate) fn restore_lstm(
    py: Python<'_>,
    bytes: Vec<u8>,
    config: &str,
    device: (String, Option<usize>),
    options: (bool, f32, u64),
    mode: (bool, u64),
) -> PyResult<LstmClass> {
    let config: LstmConfig = config.parse().py()?;
    let device = DeviceOptions { name: device.0, threads: device.1 };
    let opened = device.open(py)?;
    let lstm = py
        .detach(|| {
            let weights = StateDict::from_bytes(bytes)?.take_lstm_as("", config.cell)?.with_config(config)?;
            Lstm::new(&opened, weights)
        })
        .py()?;
    Ok(LstmClass {
        lstm: RwLock::new(Arc::new(lstm)),
        device,
        options: Options { batch_first: options.0, dropout: options.1, seed: options.2 },
        training: AtomicBool::new(mode.0),
        passes: AtomicU64::new(mode.1),
    })
}
