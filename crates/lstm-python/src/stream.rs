//! Streams: one time step per call.

use std::sync::{Mutex, MutexGuard, TryLockError};

use lstm::{
    Device, HostState, ModelInput, ModelStream, ModelWeights, Stream,
    ndarray::{Array3, Ix2, IxDyn},
    shape::memory,
};
use numpy::{IntoPyArray, PyArrayMethods, PyReadonlyArrayDyn, PyUntypedArrayMethods};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    types::PyList,
};

use crate::{
    arguments,
    arrays::{Features, check_disjoint, read, read_state, untyped, write},
    error::IntoPyResult,
    lstm_class::without_axis,
};

/// A stream of an LSTM or of a whole model.
pub(crate) enum AnyStream {
    /// The stream of an LSTM.
    Lstm(Box<Stream<Device>>),
    /// The stream of a model, and the initial states of each sequence if the model's file has them.
    Model(Box<ModelStream<Device>>, Option<Vec<HostState>>),
}

/// Work of a step, in weights times sequences, from which on a step releases the GIL. Releasing it takes longer than a
/// smaller step.
const MIN_WORK_WITHOUT_GIL: usize = 200_000;

impl AnyStream {
    fn batch(&self) -> usize {
        match self {
            AnyStream::Lstm(stream) => stream.batch(),
            AnyStream::Model(stream, _) => stream.batch(),
        }
    }

    fn input_size(&self) -> usize {
        match self {
            AnyStream::Lstm(stream) => stream.lstm().config().input_size,
            AnyStream::Model(stream, _) => stream.model().weights().input_size(),
        }
    }

    fn output_size(&self) -> usize {
        match self {
            AnyStream::Lstm(stream) => stream.lstm().config().output_size(),
            AnyStream::Model(stream, _) => stream.model().weights().output_size(),
        }
    }

    fn num_params(&self) -> usize {
        match self {
            AnyStream::Lstm(stream) => stream.lstm().weights().len(),
            AnyStream::Model(stream, _) => stream.model().weights().num_params(),
        }
    }

    fn reads_tokens(&self) -> bool {
        matches!(self, AnyStream::Model(stream, _) if stream.model().weights().reads_tokens())
    }

    fn returns_last_step(&self) -> bool {
        matches!(self, AnyStream::Model(stream, _) if stream.model().weights().returns_last_step())
    }

    fn step(&mut self, x: &[f32], y: &mut [f32]) -> lstm::Result<()> {
        match self {
            AnyStream::Lstm(stream) => stream.step(x, y),
            AnyStream::Model(stream, _) => stream.step(x, y),
        }
    }

    fn states(&self) -> lstm::Result<Vec<HostState>> {
        match self {
            AnyStream::Lstm(stream) => stream.state().map(|state| vec![state]),
            AnyStream::Model(stream, _) => stream.states(),
        }
    }
}

#[doc = doc!("Stream")]
#[pyclass(frozen, name = "Stream", module = "lstm")]
pub(crate) struct StreamClass {
    /// Locked during a call, so that a call of another thread is an error.
    stream: Mutex<AnyStream>,
    releases_gil: bool,
    /// Whether the arrays of `run` have the batch as their first axis.
    batch_first: bool,
    batch: usize,
    input_size: usize,
    output_size: usize,
    reads_tokens: bool,
    returns_last_step: bool,
}

impl StreamClass {
    pub(crate) fn new(stream: AnyStream, batch_first: bool) -> Self {
        StreamClass {
            batch_first,
            releases_gil: stream.num_params().saturating_mul(stream.batch()) >= MIN_WORK_WITHOUT_GIL,
            batch: stream.batch(),
            input_size: stream.input_size(),
            output_size: stream.output_size(),
            reads_tokens: stream.reads_tokens(),
            returns_last_step: stream.returns_last_step(),
            stream: Mutex::new(stream),
        }
    }

    /// Locks the stream.
    ///
    /// # Errors
    /// `RuntimeError` if another thread runs it, or if an earlier call panicked.
    fn lock(&self) -> PyResult<MutexGuard<'_, AnyStream>> {
        match self.stream.try_lock() {
            Ok(stream) => Ok(stream),
            Err(TryLockError::Poisoned(_)) => {
                let text = "an earlier call of this stream panicked, so that its states are lost; make a new stream, with the \
                            method `stream`";
                Err(PyRuntimeError::new_err(text))
            }
            Err(TryLockError::WouldBlock) => {
                let text = "another thread runs this stream; make one stream for each thread, with the method `stream`";
                Err(PyRuntimeError::new_err(text))
            }
        }
    }

    /// Checks the shape of an argument of `step`: one row for each sequence. A single sequence needs no batch axis.
    fn check_shape(&self, name: &str, shape: &[usize], size: usize) -> PyResult<()> {
        let batch = self.batch;
        if *shape == [batch, size] || (batch == 1 && *shape == [size]) {
            return Ok(());
        }
        let or = if batch == 1 { format!(" or [{size}]") } else { String::new() };
        Err(PyValueError::new_err(format!("{name}: expected the shape [{batch}, {size}]{or}, got {shape:?}")))
    }

    fn step_tokens(&self, py: Python<'_>, tokens: &Bound<'_, PyAny>, y: &mut [f32]) -> PyResult<()> {
        let array = py.import("lstm._interop")?.call_method1("to_tokens", (tokens,))?;
        let tokens: PyReadonlyArrayDyn<'_, i64> = read(&array, "x", "one token for each sequence")?;
        if tokens.shape() != [self.batch] && !(self.batch == 1 && tokens.ndim() == 0) {
            let text = format!("x: expected the shape [{}] of tokens, got {:?}", self.batch, tokens.shape());
            return Err(PyValueError::new_err(text));
        }
        let tokens = memory::collect("step", self.batch, tokens.as_array().iter().copied()).py()?;
        match &mut *self.lock()? {
            AnyStream::Model(stream, _) => py.detach(|| stream.step_tokens(&tokens, y)).py(),
            AnyStream::Lstm(_) => Err(PyValueError::new_err("x: an LSTM reads features, not tokens")),
        }
    }

    fn step_into(&self, py: Python<'_>, x: &Bound<'_, PyAny>, y: &mut [f32]) -> PyResult<()> {
        if self.reads_tokens {
            return self.step_tokens(py, x, y);
        }
        let x = read::<f32, IxDyn>(x, "x", "an array")?;
        self.check_shape("x", x.shape(), self.input_size)?;
        let copy: Vec<f32>;
        let row_major = if x.is_c_contiguous() { x.as_slice().ok() } else { None };
        let x = match row_major {
            Some(x) => x,
            None => {
                copy = memory::collect("step", x.len(), x.as_array().iter().copied()).py()?;
                &copy
            }
        };
        let stream = &mut *self.lock()?;
        if self.releases_gil { py.detach(|| stream.step(x, y)).py() } else { stream.step(x, y).py() }
    }
}

#[pymethods]
impl StreamClass {
    #[doc = doc!("Stream.step")]
    #[pyo3(signature = (x, out = None))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        out: Option<Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if !self.reads_tokens && x.cast::<numpy::PyUntypedArray>().is_err() {
            // An array of another library, such as a tensor of PyTorch.
            let interop = py.import("lstm._interop")?;
            let (array, convert) =
                interop.call_method1("import_array", (x, "x"))?.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            return match out {
                None => convert.call1((self.step(py, &array, None)?,)),
                Some(out) => {
                    self.step(py, &array, Some(interop.call_method1("import_output", (&out,))?))?;
                    Ok(out)
                }
            };
        }
        if let Some(out) = out {
            if !self.reads_tokens {
                check_disjoint(x, &out)?;
            }
            let mut y = write(&out, "out")?;
            self.check_shape("out", y.shape(), self.output_size)?;
            let slice = y.as_slice_mut().map_err(|error| PyValueError::new_err(format!("out: {error}")))?;
            self.step_into(py, x, slice)?;
            drop(y);
            return Ok(out);
        }
        let batch = self.batch;
        let mut y = memory::filled("step", &[batch, self.output_size], 0.0).py()?;
        self.step_into(py, x, &mut y)?;
        let y = y.into_pyarray(py);
        let has_batch_axis = match self.reads_tokens {
            true => batch > 1,
            false => untyped(x, "x")?.ndim() == 2,
        };
        Ok(if has_batch_axis { y.reshape([batch, self.output_size])?.into_any() } else { y.into_any() })
    }

    #[doc = doc!("Stream.run")]
    fn run<'py>(&self, py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        if x.cast::<numpy::PyUntypedArray>().is_err() {
            let imported = py.import("lstm._interop")?.call_method1("import_input", (x, self.reads_tokens))?;
            let (array, convert) = imported.extract::<(Bound<'_, PyAny>, Bound<'_, PyAny>)>()?;
            let y = self.run(py, &array)?;
            return convert.call1((y,));
        }
        let (y, is_unbatched): (Array3<f32>, bool) = if self.reads_tokens {
            let array = py.import("lstm._interop")?.call_method1("to_tokens", (x,))?;
            let is_unbatched = untyped(&array, "x")?.ndim() == 1;
            let array = if is_unbatched { array.call_method1("reshape", (1, -1))? } else { array };
            let tokens = read::<i64, Ix2>(&array, "x", "the shape (batch, steps) or (steps,) of tokens")?;
            let view = tokens.as_array();
            let AnyStream::Model(stream, _) = &mut *self.lock()? else {
                return Err(PyValueError::new_err("x: an LSTM reads features, not tokens"));
            };
            (py.detach(|| stream.chunk(ModelInput::from(view))).py()?, is_unbatched)
        } else {
            let (batch, size) = (self.batch, self.input_size);
            let mut expected = match self.batch_first {
                true => format!("the shape ({batch}, steps, {size})"),
                false => format!("the shape (steps, {batch}, {size})"),
            };
            if batch == 1 {
                expected += &format!(" or (steps, {size})");
            }
            let features = Features::read(x, "x", size, &expected)?;
            let is_unbatched = matches!(features, Features::One(_));
            let is_time_major = !is_unbatched && !self.batch_first;
            if features.batch(is_time_major) != batch {
                let text = format!("x: expected {expected}, got the shape {:?}", untyped(x, "x")?.shape());
                return Err(PyValueError::new_err(text));
            }
            let (mut view, stream) = (features.view(), &mut *self.lock()?);
            if is_time_major {
                view.swap_axes(0, 1);
            }
            let mut y = py
                .detach(|| match stream {
                    AnyStream::Lstm(stream) => stream.chunk(view),
                    AnyStream::Model(stream, _) => stream.chunk(view),
                })
                .py()?;
            if is_time_major {
                y.swap_axes(0, 1);
                y = memory::row_major("run", y).py()?;
            }
            (y, is_unbatched)
        };
        outputs(py, y, is_unbatched, self.returns_last_step)
    }

    #[doc = doc!("Stream.reset")]
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let stream = &mut *self.lock()?;
        py.detach(|| match stream {
            AnyStream::Lstm(stream) => stream.reset(),
            AnyStream::Model(stream, None) => stream.reset(),
            AnyStream::Model(stream, Some(states)) => stream.set_states(states),
        })
        .py()
    }

    #[doc = doc!("Stream.batch")]
    #[getter]
    fn batch(&self) -> usize {
        self.batch
    }

    #[doc = doc!("Stream.state")]
    #[getter]
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let stream = self.lock()?;
        let mut states =
            stream.states().py()?.into_iter().map(|HostState { h, c }| (h.into_pyarray(py), c.into_pyarray(py)));
        match (&*stream, states.next()) {
            (AnyStream::Lstm(_), Some(state)) => Ok(state.into_pyobject(py)?.into_any()),
            (_, first) => Ok(PyList::new(py, first.into_iter().chain(states).collect::<Vec<_>>())?.into_any()),
        }
    }

    #[setter]
    fn set_state(&self, state: &Bound<'_, PyAny>) -> PyResult<()> {
        match &mut *self.lock()? {
            AnyStream::Lstm(stream) => {
                let state = read_state(state, "state", stream.lstm().config(), Some(self.batch), false)?;
                stream.set_state(&state).py()
            }
            AnyStream::Model(stream, _) => {
                let states = read_states(state, "state", stream.model().weights(), Some(self.batch))?;
                stream.set_states(&states).py()
            }
        }
    }

    fn __repr__(&self) -> String {
        format!("Stream(batch={}, {} -> {})", self.batch(), self.input_size, self.output_size)
    }
}

/// Reads a list of states, one for each LSTM of a model, for `batch` sequences, or any number of sequences if it is `None`.
pub(crate) fn read_states(
    states: &Bound<'_, PyAny>,
    name: &str,
    weights: &ModelWeights,
    batch: Option<usize>,
) -> PyResult<Vec<HostState>> {
    let mut read = Vec::new();
    let mut given =
        states.try_iter().map_err(|_| arguments::wrong(name, "a list of pairs (h, c), one for each LSTM", states))?;
    for (k, lstm) in weights.lstms().enumerate() {
        let Some(state) = given.next() else {
            let text = format!("{name}: expected {}, one for each LSTM, got {k}", weights.lstms().count());
            return Err(PyValueError::new_err(text));
        };
        read.push(read_state(&state?, &format!("{name}[{k}]"), lstm.config(), batch, false)?);
    }
    match given.next() {
        None => Ok(read),
        Some(_) => Err(PyValueError::new_err(format!("{name}: expected {}, one for each LSTM, got more", read.len()))),
    }
}

/// The outputs of a model as an array, without the axes that the caller's input does not have.
pub(crate) fn outputs(
    py: Python<'_>,
    y: Array3<f32>,
    is_unbatched: bool,
    returns_last_step: bool,
) -> PyResult<Bound<'_, PyAny>> {
    use lstm::ndarray::Axis;
    Ok(match (is_unbatched, returns_last_step) {
        (true, true) => y.index_axis_move(Axis(0), 0).index_axis_move(Axis(0), 0).into_pyarray(py).into_any(),
        (true, false) => without_axis(py, y, 0).into_any(),
        (false, true) => without_axis(py, y, 1).into_any(),
        (false, false) => y.into_pyarray(py).into_any(),
    })
}
