//! The class `Model`: a model file of any format.

use std::path::{Path, PathBuf};

use lstm::{
    Device, Error, HostState, Model, ModelInput, ModelLayer, ModelOutput, ModelWeights, StateDict,
    arithmetic::Digest,
    formats::{Format, ModelFile, OpenOptions, open},
    ndarray::{ArrayView2, ArrayView3, Ix2},
};
use numpy::{IntoPyArray, PyUntypedArrayMethods};
use pyo3::{
    exceptions::PyValueError,
    prelude::*,
    types::{PyBytes, PyDict, PyList, PyTuple},
};

use crate::{
    arguments::{self, checked_unsigned},
    arrays::{Features, read, read_lengths, untyped},
    device::DeviceOptions,
    error::IntoPyResult,
    lstm_class::describe_paths,
    stream::{AnyStream, StreamClass, outputs, read_states},
};

#[doc = doc!("Model")]
#[pyclass(frozen, name = "Model", module = "lstm")]
pub(crate) struct ModelClass {
    model: Model<Device>,
    device: DeviceOptions,
    file: FileInfo,
}

/// What a file says besides the weights.
#[derive(Clone)]
pub(crate) struct FileInfo {
    format: String,
    dtypes: Vec<String>,
    unused: Vec<String>,
    /// The number of time steps that the model is for.
    steps: Option<usize>,
    /// Lengths and states of each sequence that the graph of an ONNX file has as constants.
    lengths: Option<Vec<usize>>,
    states: Option<Vec<HostState>>,
}

impl FileInfo {
    /// Takes what the model needs of a file.
    ///
    /// # Errors
    /// `ValueError` if the graph of an ONNX file computes something else than the model.
    fn new(file: &ModelFile, path: &Path) -> PyResult<Self> {
        let in_file = |error| Error::format(path.display().to_string(), error);
        file.check_weights_and_constants_suffice().map_err(in_file).py()?;
        let mut info = FileInfo {
            format: file.format.to_string(),
            dtypes: file.dtypes.clone(),
            unused: file.unused.clone(),
            steps: file.steps,
            lengths: None,
            states: None,
        };
        if let Some(graph) = &file.onnx {
            let constants = graph.constants().map_err(in_file).py()?;
            (info.lengths, info.states) = (constants.lengths, constants.states);
        }
        Ok(info)
    }
}

impl FileInfo {
    /// What is known of a model that this library saved.
    pub(crate) fn of_saved_model() -> Self {
        let (dtypes, unused) = (vec!["F32".into()], Vec::new());
        FileInfo { format: Format::Safetensors.to_string(), dtypes, unused, steps: None, lengths: None, states: None }
    }

    /// Fails for a file that has lengths, states or a number of steps, without which the model alone is another one.
    fn check_is_model_alone(&self, op: &str) -> PyResult<()> {
        if self.steps.is_some() || self.lengths.is_some() || self.states.is_some() {
            let text = "the file fixes the lengths, the number or the initial states of the sequences, which are not part of \
                        the model";
            return Err(PyValueError::new_err(format!("{op}: {text}; a model without them can be used")));
        }
        Ok(())
    }
}

impl ModelClass {
    /// The object of a model that was trained.
    pub(crate) fn from_parts(model: Model<Device>, device: DeviceOptions, file: FileInfo) -> Self {
        ModelClass { model, device, file }
    }

    /// What a trainer needs of a model.
    pub(crate) fn trainable_parts(&self) -> PyResult<(Model<Device>, FileInfo, DeviceOptions)> {
        self.file.check_is_model_alone("Trainer")?;
        Ok((self.model.clone(), self.file.clone(), self.device.clone()))
    }

    fn weights(&self) -> &ModelWeights {
        self.model.weights()
    }

    /// Runs the model on sequences of `steps` time steps, with the lengths and states of the file unless there are others.
    fn forward<'a>(
        &'a self,
        py: Python<'_>,
        mut input: ModelInput<'a>,
        steps: usize,
        lengths: Option<&'a [usize]>,
        states: Option<&'a [HostState]>,
    ) -> PyResult<ModelOutput> {
        if let Some(expected) = self.file.steps.filter(|&expected| expected != steps) {
            let text = format!("x: the model is for sequences of {expected} time steps, got {steps}");
            return Err(PyValueError::new_err(text));
        }
        if let Some(lengths) = lengths.or(self.file.lengths.as_deref()) {
            input = input.lengths(lengths);
        }
        if let Some(states) = states.or(self.file.states.as_deref()) {
            input = input.states(states);
        }
        py.detach(|| self.model.forward(input)).py()
    }

    /// Runs the model on an array of NumPy. Returns the outputs and the states.
    fn run_arrays<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        lengths: Option<&Bound<'py, PyAny>>,
        states: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let read_arguments = |batch| {
            let lengths = lengths.map(|lengths| read_lengths(lengths, batch)).transpose()?;
            let states = states.map(|states| read_states(states, "states", self.weights(), Some(batch))).transpose()?;
            Ok::<_, PyErr>((lengths, states))
        };
        let (output, is_unbatched) = if self.weights().reads_tokens() {
            let is_unbatched = untyped(x, "x")?.ndim() == 1;
            let x = if is_unbatched { x.call_method1("reshape", (1, -1))? } else { x.clone() };
            let tokens = read::<i64, Ix2>(&x, "x", "the shape (batch, steps) or (steps,) of tokens")?;
            let view: ArrayView2<'_, i64> = tokens.as_array();
            let (lengths, states) = read_arguments(view.nrows())?;
            (self.forward(py, view.into(), view.ncols(), lengths.as_deref(), states.as_deref())?, is_unbatched)
        } else {
            let expected = format!("the shape (batch, steps, {0}) or (steps, {0})", self.weights().input_size());
            let features = Features::read(x, "x", self.weights().input_size(), &expected)?;
            let view: ArrayView3<'_, f32> = features.view();
            let (lengths, states) = read_arguments(view.dim().0)?;
            let output = self.forward(py, view.into(), view.dim().1, lengths.as_deref(), states.as_deref())?;
            (output, matches!(features, Features::One(_)))
        };
        let states = output.states.into_iter().map(|HostState { h, c }| (h.into_pyarray(py), c.into_pyarray(py)));
        let states = PyList::new(py, states.collect::<Vec<_>>())?;
        Ok((outputs(py, output.y, is_unbatched, self.weights().returns_last_step())?, states.into_any()))
    }
}

#[pymethods]
impl ModelClass {
    #[doc = doc!("Model.open")]
    #[staticmethod]
    #[pyo3(signature = (
        path, *, name = None, layers = None, set = None, cell = None, clip = None, coupled = false, precision = None,
        device = "cpu", threads = None
    ))]
    #[allow(clippy::too_many_arguments, reason = "they are the options of a file")]
    fn open(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::path)] path: PathBuf,
        name: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::layers)] layers: Option<String>,
        set: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::optional_cell)] cell: Option<String>,
        #[pyo3(from_py_with = arguments::clip)] clip: Option<f32>,
        #[pyo3(from_py_with = arguments::coupled)] coupled: bool,
        #[pyo3(from_py_with = arguments::optional_precision)] precision: Option<String>,
        #[pyo3(from_py_with = arguments::device)] device: &str,
        #[pyo3(from_py_with = arguments::threads)] threads: Option<i128>,
    ) -> PyResult<Self> {
        let mut options = OpenOptions::default();
        options.names = match name {
            None => Vec::new(),
            Some(name) => {
                let one = name.extract::<String>().map(|name| vec![name]);
                one.or_else(|_| name.extract())
                    .map_err(|_| arguments::wrong("name", "a str, or a list of str", name))?
            }
        };
        options.set = set.map(arguments::set).transpose()?.unwrap_or_default();
        (options.layers, options.clip, options.coupled) = (layers, clip, coupled);
        options.cell = cell.map(|cell| cell.parse()).transpose().py()?;
        options.precision = precision.map(|precision| precision.parse()).transpose().py()?;
        let device = DeviceOptions::new(device, threads)?;
        let opened = device.open(py)?;
        let file = py.detach(|| open(&path, &options)).py()?;
        let info = FileInfo::new(&file, &path)?;
        let model = py.detach(|| Model::new(&opened, file.weights)).py()?;
        Ok(ModelClass { model, device, file: info })
    }

    #[doc = doc!("Model.run")]
    #[pyo3(signature = (x, *, lengths = None, states = None, return_states = false))]
    fn run<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        lengths: Option<&Bound<'py, PyAny>>,
        states: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = arguments::return_states)] return_states: bool,
    ) -> PyResult<Bound<'py, PyAny>> {
        let is_array = x.cast::<numpy::PyUntypedArray>().is_ok();
        let (mut y, states) = if is_array && !self.weights().reads_tokens() {
            self.run_arrays(py, x, lengths, states)?
        } else {
            let interop = py.import("lstm._interop")?;
            let imported = interop.call_method1("import_input", (x, self.weights().reads_tokens()))?;
            let (array, convert) = imported.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let (y, states) = self.run_arrays(py, &array, lengths, states)?;
            (convert.call1((y,))?, states)
        };
        if return_states {
            y = (y, states).into_pyobject(py)?.into_any();
        }
        Ok(y)
    }

    #[doc = doc!("Model.stream")]
    #[pyo3(signature = (batch = 1))]
    fn stream(&self, #[pyo3(from_py_with = arguments::batch)] batch: i128) -> PyResult<StreamClass> {
        if self.file.lengths.is_some() || self.file.steps.is_some() {
            let text = "stream: the file fixes the lengths of the sequences, so that they can't be streamed; use run";
            return Err(PyValueError::new_err(text));
        }
        let mut stream = self.model.stream(checked_unsigned("batch", batch)?).py()?;
        if let Some(states) = &self.file.states {
            stream.set_states(states).py()?;
        }
        Ok(StreamClass::new(AnyStream::Model(Box::new(stream), self.file.states.clone()), true))
    }

    #[doc = doc!("Model.save")]
    fn save(&self, py: Python<'_>, #[pyo3(from_py_with = arguments::path)] path: PathBuf) -> PyResult<()> {
        self.file.check_is_model_alone("save")?;
        py.detach(|| self.weights().save(path)).py()
    }

    #[doc = doc!("Model.digest")]
    fn digest(&self) -> String {
        let mut digest = Digest::default();
        fn add<'a>(digest: &mut Digest, values: impl IntoIterator<Item = &'a f32>) {
            values.into_iter().for_each(|&value| digest.add(value));
        }
        for layer in self.weights().layers() {
            match layer {
                ModelLayer::Embedding { weight, .. } => add(&mut digest, weight),
                ModelLayer::Linear { weight, bias, .. } => add(&mut digest, weight.iter().chain(bias.iter().flatten())),
                ModelLayer::Lstm { weights, initial_state, .. } => {
                    let params = weights.layers().iter().flat_map(|layer| layer.iter().map(|(_, value)| value));
                    params.for_each(|value| add(&mut digest, value));
                    initial_state.iter().for_each(|state| add(&mut digest, state.h.iter().chain(&state.c)));
                }
                _ => {}
            }
        }
        digest.to_string()
    }

    #[doc = doc!("Model.input_size")]
    #[getter]
    fn input_size(&self) -> usize {
        self.weights().input_size()
    }

    #[doc = doc!("Model.output_size")]
    #[getter]
    fn output_size(&self) -> usize {
        self.weights().output_size()
    }

    #[doc = doc!("Model.reads_tokens")]
    #[getter]
    fn reads_tokens(&self) -> bool {
        self.weights().reads_tokens()
    }

    #[doc = doc!("Model.returns_last_step")]
    #[getter]
    fn returns_last_step(&self) -> bool {
        self.weights().returns_last_step()
    }

    #[doc = doc!("Model.num_parameters")]
    #[getter]
    fn num_parameters(&self) -> usize {
        self.weights().num_params()
    }

    #[doc = doc!("Model.format")]
    #[getter]
    fn format(&self) -> &str {
        &self.file.format
    }

    #[doc = doc!("Model.dtypes")]
    #[getter]
    fn dtypes(&self) -> Vec<String> {
        self.file.dtypes.clone()
    }

    #[doc = doc!("Model.unused")]
    #[getter]
    fn unused(&self) -> Vec<String> {
        self.file.unused.clone()
    }

    #[doc = doc!("Model.steps")]
    #[getter]
    fn steps(&self) -> Option<usize> {
        self.file.steps
    }

    #[doc = doc!("Model.metadata")]
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        self.weights().metadata().into_pyobject(py)
    }

    #[doc = doc!("Model.layers")]
    #[getter]
    fn layers(&self) -> Vec<String> {
        self.weights().layers().iter().map(ToString::to_string).collect()
    }

    #[doc = doc!("Model.precision")]
    #[getter]
    fn precision(&self) -> String {
        let weights = self.weights();
        let mut names: Vec<_> = (0..weights.layers().len()).filter_map(|k| weights.layer_precision(k)).collect();
        names.dedup();
        names.iter().map(|precision| precision.name()).collect::<Vec<_>>().join(", ")
    }

    #[doc = doc!("Model.device")]
    #[getter]
    fn device(&self) -> &str {
        &self.device.name
    }

    #[doc = doc!("Model.threads")]
    #[getter]
    fn threads(&self) -> Option<usize> {
        self.device.threads
    }

    #[doc = doc!("Model.path")]
    #[getter]
    fn path(&self) -> String {
        describe_paths(&self.model.paths())
    }

    fn __repr__(&self) -> String {
        let weights = self.weights();
        let mut text = format!(
            "Model({}, {} -> {}, {} parameters, precision='{}', device='{}')",
            self.file.format,
            weights.input_size(),
            weights.output_size(),
            weights.num_params(),
            self.precision(),
            self.device.name
        );
        for (k, layer) in weights.layers().iter().enumerate() {
            text += &format!("\n  layer {k}: {layer}");
        }
        if weights.skip() {
            text += "\n  skip connection: the first features of the input are added to the output";
        }
        if (weights.input_gain(), weights.output_gain()) != (1.0, 1.0) {
            text += &format!("\n  gain of the input {}, of the output {}", weights.input_gain(), weights.output_gain());
        }
        text
    }

    /// What `pickle` and `copy.deepcopy` call: the function that makes the object again, and its arguments.
    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let FileInfo { format, dtypes, unused, steps, lengths, states } = self.file.clone();
        let states = states.map(|states| {
            states.into_iter().map(|HostState { h, c }| (h.into_pyarray(py), c.into_pyarray(py))).collect::<Vec<_>>()
        });
        let state = (
            PyBytes::new(py, &self.weights().to_bytes().py()?),
            (&self.device.name, self.device.threads),
            (format, dtypes, unused),
            (steps, lengths, states),
        );
        (py.import("lstm._lstm")?.getattr("restore_model")?, state).into_pyobject(py)
    }
}

#[doc = doc!("restore_model")]
#[pyfunction]
pub(crate) fn restore_model(
    py: Python<'_>,
    bytes: Vec<u8>,
    device: (String, Option<usize>),
    file: (String, Vec<String>, Vec<String>),
    constants: (Option<usize>, Option<Vec<usize>>, Option<Bound<'_, PyAny>>),
) -> PyResult<ModelClass> {
    let device = DeviceOptions { name: device.0, threads: device.1 };
    let opened = device.open(py)?;
    let model = py.detach(|| {
        let weights = ModelWeights::from_state_dict(StateDict::from_bytes(bytes)?)?;
        Model::new(&opened, weights)
    });
    let model = model.py()?;
    let states = constants.2.map(|states| read_states(&states, "states", model.weights(), None)).transpose()?;
    let (format, dtypes, unused) = file;
    let info = FileInfo { format, dtypes, unused, steps: constants.0, lengths: constants.1, states };
    Ok(ModelClass { model, device, file: info })
}
