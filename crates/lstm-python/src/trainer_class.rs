//! The class `Trainer`: training without another library.

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError},
};

use lstm::{
    Error, HostState, Linear, Lstm,
    train::{CheckpointExtras, ModelOutputs, ModelTrainer, ParameterGroup, Trainer, TrainerConfig},
};
use numpy::{PyArray1, PyArray2, ToPyArray};
use pyo3::{
    exceptions::{PyRuntimeError, PyTypeError, PyValueError},
    prelude::*,
    types::{PyDict, PyList, PyMapping, PyType},
};

use crate::{
    any_trainer::{AnyTrainer, BatchArguments, LossFunction, Numbers, Pass, check_rate},
    arguments::{self, checked_unsigned},
    device::DeviceOptions,
    error::{IntoPyResult, to_python},
    loss::{Ends, LossArgument, LossError},
    lstm_class::LstmClass,
    model_class::{FileInfo, ModelClass},
    stream::outputs,
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
    /// What the file of a whole model says.
    file: Option<FileInfo>,
}

/// The trainer, and what it computed last.
#[derive(Clone)]
struct Current {
    trainer: Arc<AnyTrainer>,
    /// The final states of each LSTM after the last pass.
    states: Option<Arc<Vec<HostState>>>,
}

/// What the loss is, as Python code says it.
struct LossArguments<'a, 'py> {
    target: Option<&'a Bound<'py, PyAny>>,
    loss: Option<&'a Bound<'py, PyAny>>,
    last: bool,
    /// The factor of the loss.
    share: f64,
}

impl TrainerClass {
    fn from_parts(trainer: AnyTrainer, device: DeviceOptions, batch_first: bool, file: Option<FileInfo>) -> Self {
        let current = Current { trainer: Arc::new(trainer), states: None };
        TrainerClass { current: Mutex::new(current), step: Mutex::new(()), device, batch_first, file }
    }

    /// The trainer as it is now.
    fn trainer(&self) -> Arc<AnyTrainer> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).trainer.clone()
    }

    /// Replaces the trainer, and the final states of the last pass if there are new ones.
    fn replace(&self, trainer: AnyTrainer, states: Option<Vec<HostState>>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        current.trainer = Arc::new(trainer);
        if let Some(states) = states {
            current.states = Some(Arc::new(states));
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

    /// Runs a forward and a backward pass by `run`, which returns also the final states, and replaces the trainer.
    fn pass<T: Send>(
        &self,
        py: Python<'_>,
        batch: &BatchArguments<'_, '_>,
        given: &LossArguments<'_, '_>,
        run: impl FnOnce(Pass<'_>, bool, LossFunction<'_>) -> Result<(T, Vec<HostState>), LossError> + Send,
    ) -> PyResult<T> {
        let trainer = self.trainer();
        let loss = LossArgument::read(given.loss)?;
        let target = loss.read_target(py, given.target)?;
        let loss = loss.with_target(&target)?;
        let share = given.share;
        if !(share.is_finite() && share > 0.0) {
            return Err(PyValueError::new_err(format!("share: expected a positive finite number, got {share}")));
        }
        if let (AnyTrainer::Model(_), true, false) = (&*trainer, given.last, trainer.returns_last_step()) {
            let text = "last: expected False, because the layers of the model give an output for each time step";
            return Err(PyValueError::new_err(text));
        }
        let last = given.last || trainer.returns_last_step();
        let batch = batch.read(&trainer, self.batch_first)?;
        let ends = Ends { lengths: batch.lengths.as_deref(), batch_first: self.batch_first };
        let _step = self.lock_step()?;
        let mut trainer = AnyTrainer::clone(&self.trainer());
        let pass = trainer.with_input(&batch)?;
        let mut of = |out: ModelOutputs<'_>| match last {
            true => loss.of_last(out.last()?, share),
            false => loss.of_outputs(out.y()?, ends, share),
        };
        let (result, states) = py.detach(|| run(pass, last, &mut of)).map_err(|LossError(error)| error)?;
        self.replace(trainer, Some(states));
        Ok(result)
    }

    /// Changes the configuration of the trainer.
    fn change(&self, change: impl FnOnce(&mut TrainerConfig)) -> PyResult<()> {
        let _step = self.lock_step()?;
        let mut trainer = AnyTrainer::clone(&self.trainer());
        let mut config = trainer.config().clone();
        change(&mut config);
        trainer.set_config(config).py()?;
        self.replace(trainer, None);
        Ok(())
    }
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
        model: &Bound<'_, PyAny>,
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
        let mut config = TrainerConfig::new(parse("optimizer", optimizer)?, parse("schedule", schedule)?)
            .checkpointing(parse("checkpointing", checkpointing)?)
            .seed(seed);
        config.clip = clip.map(|clip| parse("clip", &clip)).transpose()?;
        config.groups = groups.map(read_groups).transpose()?.unwrap_or_default();
        if let Ok(model) = model.cast::<ModelClass>() {
            if output_size.is_some() {
                let text = "output_size: expected None for an lstm.Model, which has its own layers";
                return Err(PyValueError::new_err(text));
            }
            let (model, file, device) = model.get().trainable_parts()?;
            let trainer = py.detach(|| ModelTrainer::new(model, config)).py()?;
            return Ok(TrainerClass::from_parts(AnyTrainer::Model(Box::new(trainer)), device, true, Some(file)));
        }
        let Ok(model) = model.cast::<LstmClass>() else {
            return Err(arguments::wrong("model", "an lstm.LSTM or an lstm.Model", model));
        };
        let model = model.get();
        let lstm = Lstm::clone(&model.lstm());
        let head = output_size.map(|size| Linear::random(lstm.backend(), lstm.config().output_size(), size, seed));
        let trainer = py.detach(|| Trainer::new(lstm, head.transpose()?, config)).py()?;
        let (device, batch_first) = (model.device_options().clone(), model.is_batch_first());
        Ok(TrainerClass::from_parts(AnyTrainer::Lstm(Box::new(trainer)), device, batch_first, None))
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
        let (trainer, extras) = py.detach(|| AnyTrainer::resume(&opened, &path)).py()?;
        let shards = trainer.config().shards;
        if shards != 1 {
            let text = format!("a run with {shards} shards can't be continued in Python, which has no shards");
            return Err(PyValueError::new_err(format!("{}: {text}", path.display())));
        }
        let saved = match trainer {
            AnyTrainer::Lstm(_) => extras.text.get(BATCH_FIRST).and_then(|text| text.parse().ok()),
            // The arrays of models always have the batch first.
            AnyTrainer::Model(_) => Some(true),
        };
        let batch_first = match (saved, batch_first) {
            (Some(saved), given) if given.is_none_or(|given| given == saved) => saved,
            (None, Some(given)) => given,
            (saved, _) => {
                let expected = saved.map_or("True or False, because the file does not say it", |saved| match saved {
                    true if matches!(trainer, AnyTrainer::Model(_)) => "True or None for a model",
                    true => "True or None, because the run was started with batch_first=True",
                    false => "False or None, because the run was started with batch_first=False",
                });
                return Err(PyValueError::new_err(format!("batch_first: expected {expected}: {}", path.display())));
            }
        };
        let file = matches!(trainer, AnyTrainer::Model(_)).then(FileInfo::of_saved_model);
        Ok(TrainerClass::from_parts(trainer, device, batch_first, file))
    }

    /// So that the type `Trainer[Model]` of the stubs can be written in programs.
    #[classmethod]
    fn __class_getitem__<'py>(cls: &Bound<'py, PyType>, item: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        cls.py().import("types")?.call_method1("GenericAlias", (cls, item))
    }

    #[doc = doc!("Trainer.save")]
    fn save(&self, py: Python<'_>, #[pyo3(from_py_with = arguments::path)] path: PathBuf) -> PyResult<()> {
        let text = [(BATCH_FIRST.to_owned(), self.batch_first.to_string())].into();
        let trainer = self.trainer();
        py.detach(|| trainer.save_with(&path, &CheckpointExtras::default().with_text(text))).py()
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
        check_rate(learning_rate)?;
        to_dict(py, &self.pass(py, &batch, &loss, |pass, last, loss| pass.step(learning_rate, last, loss))?)
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
        self.pass(py, &batch, &loss, |pass, last, loss| pass.accumulate(last, loss))
    }

    #[doc = doc!("Trainer.apply")]
    #[pyo3(signature = (*, learning_rate = None))]
    fn apply(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = arguments::learning_rate)] learning_rate: Option<f32>,
    ) -> PyResult<Py<PyDict>> {
        check_rate(learning_rate)?;
        let _step = self.lock_step()?;
        let mut trainer = AnyTrainer::clone(&self.trainer());
        let numbers = py.detach(|| trainer.apply(learning_rate));
        // Also after an error, which discards what was accumulated and changes nothing else.
        self.replace(trainer, None);
        to_dict(py, &numbers.py()?)
    }

    #[doc = doc!("Trainer.discard_accumulated")]
    fn discard_accumulated(&self) -> PyResult<()> {
        let _step = self.lock_step()?;
        let mut trainer = AnyTrainer::clone(&self.trainer());
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
    ) -> PyResult<Bound<'py, PyAny>> {
        let trainer = self.trainer();
        let batch = BatchArguments { x, hx, lengths }.read(&trainer, self.batch_first)?;
        outputs(py, trainer.predict(py, &batch)?.py()?, false, trainer.returns_last_step())
    }

    #[doc = doc!("Trainer.model")]
    #[getter]
    fn model<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let device = self.device.clone();
        Ok(match &*self.trainer() {
            AnyTrainer::Lstm(trainer) => {
                let model = LstmClass::from_parts(trainer.lstm().clone(), device, self.batch_first);
                Bound::new(py, model)?.into_any()
            }
            AnyTrainer::Model(trainer) => {
                let file = self.file.clone().unwrap_or_else(FileInfo::of_saved_model);
                Bound::new(py, ModelClass::from_parts(trainer.model().clone(), device, file))?.into_any()
            }
        })
    }

    #[doc = doc!("Trainer.head")]
    #[getter]
    #[allow(clippy::type_complexity, reason = "a pair of arrays")]
    fn head<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyArray2<f32>>, Option<Bound<'py, PyArray1<f32>>>)> {
        let trainer = self.trainer();
        let AnyTrainer::Lstm(trainer) = &*trainer else { return None };
        let head = trainer.head()?;
        Some((head.weight().to_pyarray(py), head.bias().map(|bias| bias.to_pyarray(py))))
    }

    #[doc = doc!("Trainer.state")]
    #[getter]
    fn state<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Current { trainer, states } = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(states) = states else { return Ok(None) };
        let pairs = states.iter().map(|state| (state.h.to_pyarray(py), state.c.to_pyarray(py)));
        let pairs = PyList::new(py, pairs.collect::<Vec<_>>())?;
        match &*trainer {
            AnyTrainer::Lstm(_) => pairs.get_item(0).map(Some),
            AnyTrainer::Model(_) => Ok(Some(pairs.into_any())),
        }
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
        let trainer = self.trainer();
        let config = trainer.config();
        let mut text = match &*trainer {
            AnyTrainer::Lstm(trainer) => {
                let lstm = LstmClass::from_parts(trainer.lstm().clone(), self.device.clone(), self.batch_first);
                let head = trainer.head().map(|head| format!(", {}", head.output_size()));
                format!("Trainer(LSTM({}){}", lstm.describe_options(), head.unwrap_or_default())
            }
            AnyTrainer::Model(trainer) => {
                let weights = trainer.model().weights();
                let (inputs, outputs) = (weights.input_size(), weights.output_size());
                format!("Trainer(Model({inputs} -> {outputs}, {} parameters)", weights.num_params())
            }
        };
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
