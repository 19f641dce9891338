//! The class `Trainer`: training without another library.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
};

use lstm::{
    Device, Error, HostState, Input, Linear, Lstm,
    train::{
        CheckpointExtras, LossGradient, LossInput, ModelOutputs, ParameterGroup, StepReport, Trainer, TrainerConfig,
    },
};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyArray3, ToPyArray};
use pyo3::{
    exceptions::{PyRuntimeError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyList, PyMapping},
};

use crate::{
    arguments::{self, checked_unsigned},
    arrays::{Features, read_lengths, read_state},
    device::DeviceOptions,
    error::{IntoPyResult, to_python},
    loss::{Ends, LossArgument, LossError},
    lstm_class::LstmClass,
};

/// The metadata of a saved run that says whether its arrays have the batch as their first axis.
const BATCH_FIRST: &str = "python.batch_first";

#[doc = doc!("Trainer")]
#[pyclass(frozen, name = "Trainer", module = "lstm")]
pub(crate) struct TrainerClass {
    /// Replaced as a whole by a step, and locked for that moment only.
    current: Mutex<Current>,
    /// Locked during a step, so that a step of another thread is an error.
    step: Mutex<()>,
    device: DeviceOptions,
    batch_first: bool,
}

/// The trainer, and what it computed last.
#[derive(Clone)]
struct Current {
    trainer: Arc<Trainer<Device>>,
    /// The final states of the last pass.
    state: Option<Arc<HostState>>,
}

/// A batch as Python code gives it.
struct BatchArguments<'a, 'py> {
    x: &'a Bound<'py, PyAny>,
    hx: Option<&'a Bound<'py, PyAny>>,
    lengths: Option<&'a Bound<'py, PyAny>>,
}

/// A batch, whose input is borrowed.
struct Batch<'py> {
    x: Features<'py>,
    state: Option<HostState>,
    lengths: Option<Vec<usize>>,
    batch_first: bool,
}

impl Batch<'_> {
    fn input(&self) -> Input<'_> {
        let mut input = Input::from(self.x.view());
        if !self.batch_first {
            input = input.time_major();
        }
        if let Some(state) = &self.state {
            input = input.state(state);
        }
        self.lengths.as_deref().into_iter().fold(input, Input::lengths)
    }
}

/// What the loss is, as Python code says it.
struct LossArguments<'a, 'py> {
    target: Option<&'a Bound<'py, PyAny>>,
    loss: Option<&'a Bound<'py, PyAny>>,
    last: bool,
    /// The factor of the loss.
    share: f64,
}

/// The loss of a pass, from the outputs to the loss and its gradient.
type LossFunction<'a> = &'a mut (dyn FnMut(ModelOutputs<'_>) -> Result<(f64, LossGradient), LossError> + Send);

impl TrainerClass {
    fn from_parts(trainer: Trainer<Device>, device: DeviceOptions, batch_first: bool) -> Self {
        let current = Current { trainer: Arc::new(trainer), state: None };
        TrainerClass { current: Mutex::new(current), step: Mutex::new(()), device, batch_first }
    }

    /// The trainer as it is now.
    fn trainer(&self) -> Arc<Trainer<Device>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).trainer.clone()
    }

    /// Replaces the trainer, and the final states of the last pass if there are new ones.
    fn replace(&self, trainer: Trainer<Device>, state: Option<HostState>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.trainer = Arc::new(trainer);
        if let Some(state) = state {
            current.state = Some(Arc::new(state));
        }
    }

    /// Locks the trainer for a change.
    ///
    /// # Errors
    /// `RuntimeError` if another change is running.
    fn lock_step(&self) -> PyResult<MutexGuard<'_, ()>> {
        match self.step.try_lock() {
            Ok(step) => Ok(step),
            // The trainer is replaced after a step, so that one that panicked has changed nothing.
            Err(TryLockError::Poisoned(error)) => Ok(error.into_inner()),
            Err(TryLockError::WouldBlock) => {
                let text =
                    "a step of this trainer is running, in another thread or around this call; expected one at a time";
                Err(PyRuntimeError::new_err(text))
            }
        }
    }

    /// Reads and checks a batch.
    fn read<'py>(&self, given: &BatchArguments<'_, 'py>) -> PyResult<Batch<'py>> {
        let (x, trainer, batch_first) = (given.x, self.trainer(), self.batch_first);
        let config = trainer.lstm().config();
        let array = x.py().import("lstm._interop")?.call_method1("import_array", (x, "x"))?.get_item(0)?;
        let order = if batch_first { "(batch, steps, " } else { "(steps, batch, " };
        let expected = format!("the shape {order}{})", config.input_size);
        let x = Features::read(&array, "x", config.input_size, &expected)?;
        if let Features::One(_) = x {
            let text = format!("x: expected {expected}, got 2 dimensions; x[:, None] or x[None] adds the axis batch");
            return Err(PyValueError::new_err(text));
        }
        let batch = x.batch(!batch_first);
        let lengths = given.lengths.map(|lengths| read_lengths(lengths, batch)).transpose()?;
        let state = given.hx.map(|hx| read_state(hx, "hx", config, Some(batch), false)).transpose()?;
        Ok(Batch { x, state, lengths, batch_first })
    }

    /// Runs a forward and a backward pass by `run`, which returns also the final states, and replaces the trainer.
    fn pass<T: Send>(
        &self,
        py: Python<'_>,
        batch: &BatchArguments<'_, '_>,
        given: &LossArguments<'_, '_>,
        run: impl FnOnce(&mut Trainer<Device>, Input<'_>, LossInput, LossFunction<'_>) -> Result<(T, HostState), LossError>
        + Send,
    ) -> PyResult<T> {
        let loss = LossArgument::read(given.loss)?;
        let target = loss.read_target(py, given.target)?;
        let loss = loss.with_target(&target)?;
        let (share, last) = (given.share, given.last);
        if !(share.is_finite() && share > 0.0) {
            return Err(PyValueError::new_err(format!("share: expected a positive finite number, got {share}")));
        }
        let batch = self.read(batch)?;
        let ends = Ends { lengths: batch.lengths.as_deref(), batch_first: self.batch_first };
        let _step = self.lock_step()?;
        let (mut trainer, input) = (Trainer::clone(&self.trainer()), batch.input());
        let of_outputs = &mut |out: ModelOutputs<'_>| loss.of_outputs(out.y()?, ends, share);
        let of_last = &mut |out: ModelOutputs<'_>| loss.of_last(out.last()?, share);
        let result = py.detach(|| match last {
            true => run(&mut trainer, input, LossInput::LastState, of_last),
            false => run(&mut trainer, input, LossInput::Outputs, of_outputs),
        });
        let (result, state) = result.map_err(|LossError(error)| error)?;
        self.replace(trainer, Some(state));
        Ok(result)
    }

    /// Changes the configuration of the trainer.
    fn change(&self, change: impl FnOnce(&mut TrainerConfig)) -> PyResult<()> {
        let _step = self.lock_step()?;
        let mut trainer = Trainer::clone(&self.trainer());
        let mut config = trainer.config().clone();
        change(&mut config);
        trainer.set_config(config).py()?;
        self.replace(trainer, None);
        Ok(())
    }
}

/// The numbers of a report: the step, the loss, the norm of the gradients and the learning rate.
type Numbers = (u64, f64, f64, f32);

/// The numbers of a report, and the final states.
fn split(report: StepReport) -> (Numbers, HostState) {
    let StepReport { step, loss, gradient_norm, learning_rate, state, .. } = report;
    ((step, loss, gradient_norm, learning_rate), state)
}

/// The numbers of a report as a dictionary.
fn to_dict(py: Python<'_>, &(step, loss, gradient_norm, learning_rate): &Numbers) -> PyResult<Py<PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", step)?;
    dict.set_item("loss", loss)?;
    dict.set_item("gradient_norm", gradient_norm)?;
    dict.set_item("learning_rate", learning_rate)?;
    Ok(dict.unbind())
}

/// Reads the groups of parameters, a list of dictionaries.
fn read_groups(value: &Bound<'_, PyAny>) -> PyResult<Vec<ParameterGroup>> {
    const KEYS: &str = "parameters, rate_factor, weight_decay and frozen";
    let wrong = || arguments::wrong("groups", "a list of dicts", value);
    if value.cast::<PyMapping>().is_ok() {
        return Err(wrong());
    }
    let read_group = |(k, group): (usize, PyResult<Bound<'_, PyAny>>)| {
        let (group, name) = (group?, format!("groups[{k}]"));
        let Ok(group) = group.cast::<PyMapping>() else {
            return Err(arguments::wrong(&name, &format!("a dict with {KEYS}"), &group));
        };
        let mut read = ParameterGroup::new("");
        for item in group.items()?.iter() {
            let (key, value): (Bound<'_, PyAny>, Bound<'_, PyAny>) = item.extract()?;
            let key = arguments::text(&format!("{name}: a key"), &key)?;
            let name = format!("{name}: {key}");
            match key {
                "parameters" => read.parameters = arguments::text(&name, &value)?.to_owned(),
                "rate_factor" => read.rate_factor = arguments::number(&name, &value)?,
                "weight_decay" => read.weight_decay = arguments::optional(arguments::number, &name, &value)?,
                "frozen" => read.frozen = arguments::flag(&name, &value)?,
                _ => return Err(PyValueError::new_err(format!("{name}: there is no such option; expected {KEYS}"))),
            }
        }
        if read.parameters.is_empty() {
            let text = format!("{name}: parameters: expected a pattern of names, such as 'head.*', got none");
            return Err(PyTypeError::new_err(text));
        }
        read.validate().map_err(|error| match error {
            Error::Config { option, reason } => PyValueError::new_err(format!("{name}: {option}: {reason}")),
            error => PyValueError::new_err(format!("{name}: {error}")),
        })?;
        Ok(read)
    };
    value.try_iter().map_err(|_| wrong())?.enumerate().map(read_group).collect()
}

/// Reads an option of the configuration from its text. Errors about a part of it say the whole text.
fn parse<T: FromStr<Err = Error>>(name: &str, text: &str) -> PyResult<T> {
    text.parse().map_err(|error| match error {
        Error::Config { option, reason } if option != name => {
            PyValueError::new_err(format!("{name} `{text}`: {option}: {reason}"))
        }
        error => to_python(error),
    })
}

/// The learning rate of a step: the one that is given, or that of the schedule.
fn rate(given: Option<f32>, trainer: &Trainer<Device>) -> PyResult<f32> {
    match given {
        None => Ok(trainer.learning_rate()),
        Some(rate) if rate.is_finite() && rate >= 0.0 => Ok(rate),
        Some(rate) => {
            Err(PyValueError::new_err(format!("learning_rate: expected a finite number of at least 0, got {rate}")))
        }
    }
}

#[pymethods]
impl TrainerClass {
    #[new]
    #[pyo3(signature = (
        model, output_size = None, *, optimizer = "adam", schedule = "constant rate=0.001", clip = None, groups = None,
        checkpointing = "everything", seed = 0
    ))]
    #[allow(clippy::too_many_arguments, reason = "they are the options of a run")]
    fn new(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::model)] model: Bound<'_, LstmClass>,
        #[pyo3(from_py_with = arguments::output_size)] output_size: Option<i128>,
        #[pyo3(from_py_with = arguments::optimizer)] optimizer: &str,
        #[pyo3(from_py_with = arguments::schedule)] schedule: &str,
        #[pyo3(from_py_with = arguments::gradient_clip)] clip: Option<String>,
        groups: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::checkpointing)] checkpointing: &str,
        #[pyo3(from_py_with = arguments::seed)] seed: i128,
    ) -> PyResult<Self> {
        let seed = checked_unsigned("seed", seed)?;
        let output_size = output_size.map(|size| checked_unsigned("output_size", size)).transpose()?;
        let model = model.get();
        let lstm = Lstm::clone(&model.lstm());
        let mut config = TrainerConfig::new(parse("optimizer", optimizer)?, parse("schedule", schedule)?)
            .checkpointing(parse("checkpointing", checkpointing)?)
            .seed(seed);
        config.clip = clip.map(|clip| parse("clip", &clip)).transpose()?;
        config.groups = groups.map(read_groups).transpose()?.unwrap_or_default();
        let head = output_size.map(|size| Linear::random(lstm.backend(), lstm.config().output_size(), size, seed));
        let trainer = py.detach(|| Trainer::new(lstm, head.transpose()?, config)).py()?;
        Ok(TrainerClass::from_parts(trainer, model.device_options().clone(), model.is_batch_first()))
    }

    #[doc = doc!("Trainer.resume")]
    #[staticmethod]
    #[pyo3(signature = (path, *, batch_first = None, device = "cpu", threads = None))]
    fn resume(
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::path)] path: PathBuf,
        #[pyo3(from_py_with = arguments::optional_batch_first)] batch_first: Option<bool>,
        #[pyo3(from_py_with = arguments::device)] device: &str,
        #[pyo3(from_py_with = arguments::threads)] threads: Option<i128>,
    ) -> PyResult<Self> {
        let device = DeviceOptions::new(device, threads)?;
        let opened = device.open(py)?;
        let (trainer, extras): (_, CheckpointExtras) = py.detach(|| Trainer::resume(&opened, &path)).py()?;
        let shards = trainer.config().shards;
        if shards != 1 {
            let text = format!("a run with {shards} shards can't be continued in Python, which has no shards");
            return Err(PyValueError::new_err(format!("{}: {text}", path.display())));
        }
        let saved = extras.text.get(BATCH_FIRST).and_then(|text| text.parse().ok());
        let batch_first = match (saved, batch_first) {
            (Some(saved), given) if given.is_none_or(|given| given == saved) => saved,
            (None, Some(given)) => given,
            (saved, _) => {
                let expected = saved.map_or("True or False, because the file does not say it", |saved| match saved {
                    true => "True or None, because the run was started with batch_first=True",
                    false => "False or None, because the run was started with batch_first=False",
                });
                return Err(PyValueError::new_err(format!("batch_first: expected {expected}: {}", path.display())));
            }
        };
        Ok(TrainerClass::from_parts(trainer, device, batch_first))
    }

    #[doc = doc!("Trainer.save")]
    fn save(&self, py: Python<'_>, #[pyo3(from_py_with = arguments::path)] path: PathBuf) -> PyResult<()> {
        let text = [(BATCH_FIRST.to_owned(), self.batch_first.to_string())].into();
        let trainer = self.trainer();
        py.detach(|| trainer.save_with(path, &CheckpointExtras::default().with_text(text))).py()
    }

    #[doc = doc!("Trainer.step")]
    #[pyo3(signature = (x, target = None, *, loss = None, hx = None, lengths = None, last = false, learning_rate = None))]
    #[allow(clippy::too_many_arguments, reason = "they are the parts of a step")]
    fn step(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        target: Option<&Bound<'_, PyAny>>,
        loss: Option<&Bound<'_, PyAny>>,
        hx: Option<&Bound<'_, PyAny>>,
        lengths: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::last)] last: bool,
        #[pyo3(from_py_with = arguments::learning_rate)] learning_rate: Option<f32>,
    ) -> PyResult<Py<PyDict>> {
        let (batch, loss) = (BatchArguments { x, hx, lengths }, LossArguments { target, loss, last, share: 1.0 });
        let report = self.pass(py, &batch, &loss, |trainer, input, loss_input, loss| {
            let rate = rate(learning_rate, trainer)?;
            let report = trainer.step_at(rate, input, loss_input, |out, _: &_| loss(out))?;
            Ok(split(report))
        })?;
        to_dict(py, &report)
    }

    #[doc = doc!("Trainer.accumulate")]
    #[pyo3(signature = (x, target = None, *, loss = None, hx = None, lengths = None, last = false, share = 1.0))]
    #[allow(clippy::too_many_arguments, reason = "they are the parts of a step")]
    fn accumulate(
        &self,
        py: Python<'_>,
        x: &Bound<'_, PyAny>,
        target: Option<&Bound<'_, PyAny>>,
        loss: Option<&Bound<'_, PyAny>>,
        hx: Option<&Bound<'_, PyAny>>,
        lengths: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::last)] last: bool,
        #[pyo3(from_py_with = arguments::share)] share: f64,
    ) -> PyResult<f64> {
        let (batch, loss) = (BatchArguments { x, hx, lengths }, LossArguments { target, loss, last, share });
        self.pass(py, &batch, &loss, |trainer, input, loss_input, loss| {
            trainer.accumulate(input, loss_input, |out, _: &_| loss(out))
        })
    }

    #[doc = doc!("Trainer.apply")]
    #[pyo3(signature = (*, learning_rate = None))]
    fn apply(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::learning_rate)] learning_rate: Option<f32>,
    ) -> PyResult<Py<PyDict>> {
        let _step = self.lock_step()?;
        let mut trainer = Trainer::clone(&self.trainer());
        let rate = rate(learning_rate, &trainer)?;
        let report = py.detach(|| trainer.apply_at(rate));
        // Also after an error, which discards what was accumulated and changes nothing else.
        self.replace(trainer, None);
        to_dict(py, &split(report.py()?).0)
    }

    #[doc = doc!("Trainer.discard_accumulated")]
    fn discard_accumulated(&self) -> PyResult<()> {
        let _step = self.lock_step()?;
        let mut trainer = Trainer::clone(&self.trainer());
        trainer.discard_accumulated();
        self.replace(trainer, None);
        Ok(())
    }

    #[doc = doc!("Trainer.predict")]
    #[pyo3(signature = (x, *, hx = None, lengths = None))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        hx: Option<&Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyArray3<f32>>> {
        let batch = self.read(&BatchArguments { x, hx, lengths })?;
        let (input, trainer) = (batch.input(), self.trainer());
        let (y, _) = py.detach(|| trainer.predict(input)).py()?;
        Ok(y.into_pyarray(py))
    }

    #[doc = doc!("Trainer.model")]
    #[getter]
    fn model(&self) -> LstmClass {
        LstmClass::from_parts(self.trainer().lstm().clone(), self.device.clone(), self.batch_first)
    }

    #[doc = doc!("Trainer.head")]
    #[getter]
    #[allow(clippy::type_complexity, reason = "a pair of arrays")]
    fn head<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyArray2<f32>>, Option<Bound<'py, PyArray1<f32>>>)> {
        let trainer = self.trainer();
        let head = trainer.head()?;
        Some((head.weight().to_pyarray(py), head.bias().map(|bias| bias.to_pyarray(py))))
    }

    #[doc = doc!("Trainer.state")]
    #[getter]
    #[allow(clippy::type_complexity, reason = "a pair of arrays")]
    fn state<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyArray3<f32>>, Bound<'py, PyArray3<f32>>)> {
        let state = self.current.lock().unwrap_or_else(PoisonError::into_inner).state.clone()?;
        Some((state.h.to_pyarray(py), state.c.to_pyarray(py)))
    }

    #[doc = doc!("Trainer.steps")]
    #[getter]
    fn steps(&self) -> u64 {
        self.trainer().steps()
    }

    #[doc = doc!("Trainer.learning_rate")]
    #[getter]
    fn learning_rate(&self) -> f32 {
        self.trainer().learning_rate()
    }

    #[doc = doc!("Trainer.optimizer")]
    #[getter]
    fn optimizer(&self) -> String {
        self.trainer().config().optimizer.to_string()
    }

    #[doc = doc!("Trainer.schedule")]
    #[getter]
    fn schedule(&self) -> String {
        self.trainer().config().schedule.to_string()
    }

    #[setter]
    fn set_schedule(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let schedule = parse("schedule", arguments::schedule(value)?)?;
        self.change(|config| config.schedule = schedule)
    }

    #[doc = doc!("Trainer.clip")]
    #[getter]
    fn clip(&self) -> Option<String> {
        self.trainer().config().clip.map(|clip| clip.to_string())
    }

    #[setter]
    fn set_clip(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let clip = arguments::gradient_clip(value)?.map(|clip| parse("clip", &clip)).transpose()?;
        self.change(|config| config.clip = clip)
    }

    #[doc = doc!("Trainer.groups")]
    #[getter]
    fn groups<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let groups = PyList::empty(py);
        for group in &self.trainer().config().groups {
            let dict = PyDict::new(py);
            dict.set_item("parameters", &group.parameters)?;
            dict.set_item("rate_factor", group.rate_factor)?;
            dict.set_item("weight_decay", group.weight_decay)?;
            dict.set_item("frozen", group.frozen)?;
            groups.append(dict)?;
        }
        Ok(groups)
    }

    #[setter]
    fn set_groups(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let groups = read_groups(value)?;
        self.change(|config| config.groups = groups)
    }

    fn __repr__(&self) -> String {
        let (trainer, model) = (self.trainer(), self.model());
        let config = trainer.config();
        let mut text = format!("Trainer(LSTM({})", model.describe_options());
        if let Some(head) = trainer.head() {
            text += &format!(", {}", head.output_size());
        }
        text += &format!(", optimizer='{}', schedule='{}'", config.optimizer, config.schedule);
        if let Some(clip) = config.clip {
            text += &format!(", clip='{clip}'");
        }
        for group in &config.groups {
            text += &format!(", {group}");
        }
        format!("{text}, {} steps done)", trainer.steps())
    }
}
