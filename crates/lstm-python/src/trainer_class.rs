//! The class `Trainer`: training without another library.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError, TryLockError},
};

use lstm::{
    Device, Error, Input, Linear, Lstm,
    ndarray::{Array, Array2, Array3, ArrayView, ArrayView2, ArrayView3, ArrayViewD, Dimension, Ix2, Ix3},
    shape::memory,
    train::{
        CheckpointExtras, IGNORE_INDEX, LossGradient, LossInput, ModelOutputs, Trainer, TrainerConfig,
        binary_cross_entropy_with_logits, cross_entropy, masked_binary_cross_entropy_with_logits,
        masked_mean_squared_error, mean_squared_error,
    },
};
use numpy::{IntoPyArray, PyArray1, PyArray2, PyReadonlyArrayDyn, ToPyArray};
use pyo3::{
    exceptions::{PyRuntimeError, PyValueError},
    prelude::*,
    types::PyDict,
};

use crate::{
    arguments::{self, checked_unsigned, text},
    arrays::{Features, copy_of_shape, read, read_lengths},
    device::DeviceOptions,
    error::{IntoPyResult, to_python},
    lstm_class::LstmClass,
};

/// The metadata of a saved run that says whether its arrays have the batch as their first axis.
const BATCH_FIRST: &str = "python.batch_first";

#[doc = doc!("Trainer")]
#[pyclass(frozen, name = "Trainer", module = "lstm")]
pub(crate) struct TrainerClass {
    /// Replaced as a whole by a step, and locked for that moment only.
    trainer: Mutex<Trainer<Device>>,
    /// Locked during a step, so that a step of another thread is an error.
    step: Mutex<()>,
    device: DeviceOptions,
    batch_first: bool,
}

/// The target of a loss: an array, borrowed.
enum Target<'py> {
    /// Of the shape of the outputs.
    Floats(PyReadonlyArrayDyn<'py, f32>),
    /// A class for each row of the outputs.
    Classes(PyReadonlyArrayDyn<'py, i64>),
}

/// A loss, as the pass calls it without the GIL.
enum Loss<'a> {
    /// Mean squared error.
    SquaredError(ArrayViewD<'a, f32>),
    /// Binary cross entropy of logits.
    BinaryCrossEntropy(ArrayViewD<'a, f32>),
    /// Cross entropy of logits.
    CrossEntropy(ArrayViewD<'a, i64>),
    /// A function of Python: from the outputs to the loss and its gradient.
    Function(&'a Py<PyAny>),
}

/// A Python exception, to which errors of the library convert.
struct LossError(PyErr);

impl From<Error> for LossError {
    fn from(error: Error) -> Self {
        LossError(to_python(error))
    }
}

impl From<PyErr> for LossError {
    fn from(error: PyErr) -> Self {
        LossError(error)
    }
}

impl<'py> Target<'py> {
    /// Borrows the target of the loss of this name.
    fn read(loss: &str, target: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let Some(target) = target else {
            return Err(PyValueError::new_err(format!("target: the loss {loss} needs one, got None")));
        };
        let interop = target.py().import("lstm._interop")?;
        match loss {
            "mse" | "bce" => {
                let array = interop.call_method1("import_array", (target, "target"))?.get_item(0)?;
                Ok(Target::Floats(read(&array, "target", "an array")?))
            }
            "cross_entropy" => {
                let array = interop.call_method1("to_integers", (target, "target"))?;
                Ok(Target::Classes(read(&array, "target", "an array")?))
            }
            _ => {
                let text = format!("loss: expected a function or one of mse, bce, cross_entropy, got `{loss}`");
                Err(PyValueError::new_err(text))
            }
        }
    }

    /// The loss of this name with this target.
    fn loss(&self, name: &str) -> Loss<'_> {
        match self {
            Target::Floats(target) if name == "mse" => Loss::SquaredError(target.as_array()),
            Target::Floats(target) => Loss::BinaryCrossEntropy(target.as_array()),
            Target::Classes(target) => Loss::CrossEntropy(target.as_array()),
        }
    }
}

/// The classes of rows as the library takes them. The class of row `k` is ignored if it is PyTorch's `ignore_index`, -100,
/// or if `is_ignored(k)`.
fn classes(target: ArrayViewD<'_, i64>, shape: &[usize], is_ignored: impl Fn(usize) -> bool) -> PyResult<Vec<usize>> {
    check_target(target.shape(), shape)?;
    let mut classes = memory::with_capacity("classes", shape).py()?;
    for (k, &class) in target.iter().enumerate() {
        classes.push(match class {
            _ if is_ignored(k) => IGNORE_INDEX,
            -100 => IGNORE_INDEX,
            _ => usize::try_from(class).map_err(|_| {
                let expected = "expected a class from 0 on, or -100 to ignore the row";
                PyValueError::new_err(format!("target: {expected}, got {class}"))
            })?,
        });
    }
    Ok(classes)
}

/// Fails unless the target has the shape that the outputs need.
fn check_target(got: &[usize], expected: &[usize]) -> PyResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("target: expected the shape {expected:?}, got {got:?}")))
}

/// A target with the shape of the outputs.
fn target_as<'a, D: Dimension>(target: ArrayViewD<'a, f32>, shape: &[usize]) -> PyResult<ArrayView<'a, f32, D>> {
    check_target(target.shape(), shape)?;
    target.into_dimensionality().map_err(|error| PyValueError::new_err(format!("target: {error}")))
}

/// Calls a function of Python with the outputs. Returns the loss and its gradient.
fn call_function<D: Dimension>(
    function: &Py<PyAny>,
    outputs: ArrayView<'_, f32, D>,
) -> Result<(f64, Array<f32, D>), LossError> {
    Python::attach(|py| {
        let result = function.bind(py).call1((outputs.to_pyarray(py),))?;
        let (loss, gradient) = result.extract::<(f64, Bound<'_, PyAny>)>()?;
        let name = "gradient of the loss";
        let gradient = read::<f32, D>(&gradient, name, &format!("the shape {:?}", outputs.shape()))?;
        Ok((loss, copy_of_shape(gradient.as_array(), name, outputs.shape())?))
    })
}

impl Loss<'_> {
    /// The loss of the outputs of all time steps, and its gradient.
    fn of_outputs(
        &self,
        y: ArrayView3<'_, f32>,
        lengths: Option<&[usize]>,
        batch_first: bool,
    ) -> Result<(f64, LossGradient), LossError> {
        // The losses with lengths take the batch first.
        let permuted = |mut y: ArrayView3<'_, f32>| {
            if !batch_first {
                y.swap_axes(0, 1);
            }
            memory::copy_array("loss", y)
        };
        let restored = |mut gradient: Array3<f32>| {
            if !batch_first {
                gradient.swap_axes(0, 1);
            }
            memory::row_major("loss", gradient).map(LossGradient::from)
        };
        match self {
            Loss::SquaredError(target) => {
                let target = target_as::<Ix3>(target.view(), y.shape())?;
                let (loss, gradient) = match lengths {
                    None => return Ok(mean_squared_error(y, target).map(|(a, b)| (a, b.into()))?),
                    Some(lengths) => masked_mean_squared_error(permuted(y)?.view(), permuted(target)?.view(), lengths)?,
                };
                Ok((loss, restored(gradient)?))
            }
            Loss::BinaryCrossEntropy(target) => {
                let target = target_as::<Ix3>(target.view(), y.shape())?;
                let (y, target) = (permuted(y)?, permuted(target)?);
                let (loss, gradient) = match lengths {
                    None => binary_cross_entropy_with_logits(y.view(), target.view())?,
                    Some(lengths) => masked_binary_cross_entropy_with_logits(y.view(), target.view(), lengths)?,
                };
                Ok((loss, restored(gradient)?))
            }
            Loss::CrossEntropy(target) => {
                let columns = y.dim().1;
                let is_beyond_length = |k: usize| {
                    let (row, column) = (k / columns, k % columns);
                    let (sequence, step) = if batch_first { (row, column) } else { (column, row) };
                    lengths.is_some_and(|lengths| step >= lengths[sequence])
                };
                let (loss, gradient) = cross_entropy(y, &classes(target.view(), &y.shape()[..2], is_beyond_length)?)?;
                Ok((loss, gradient.into()))
            }
            Loss::Function(function) => call_function(function, y).map(|(loss, gradient)| (loss, gradient.into())),
        }
    }

    /// The loss of the last states, and its gradient.
    fn of_last(&self, last: ArrayView2<'_, f32>) -> Result<(f64, LossGradient), LossError> {
        let (loss, gradient): (f64, Array2<f32>) = match self {
            Loss::SquaredError(target) => mean_squared_error(last, target_as::<Ix2>(target.view(), last.shape())?)?,
            Loss::BinaryCrossEntropy(target) => {
                binary_cross_entropy_with_logits(last, target_as::<Ix2>(target.view(), last.shape())?)?
            }
            Loss::CrossEntropy(target) => cross_entropy(last, &classes(target.view(), &last.shape()[..1], |_| false)?)?,
            Loss::Function(function) => call_function(function, last)?,
        };
        Ok((loss, gradient.into()))
    }
}

impl TrainerClass {
    /// The trainer as it is now. A clone is cheap, and shares the weights.
    fn trainer(&self) -> Trainer<Device> {
        self.trainer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn read_x<'py>(&self, x: &Bound<'py, PyAny>) -> PyResult<Features<'py>> {
        let array = x.py().import("lstm._interop")?.call_method1("import_array", (x, "x"))?.get_item(0)?;
        let order = if self.batch_first { "(batch, steps, " } else { "(steps, batch, " };
        let expected = format!("the shape {order}{})", self.trainer().lstm().config().input_size);
        match Features::read(&array, "x", self.trainer().lstm().config().input_size, &expected)? {
            Features::One(_) => Err(PyValueError::new_err(format!("x: expected {expected}, got 2 dimensions"))),
            features => Ok(features),
        }
    }

    fn input<'a>(&self, x: &'a Features<'_>, lengths: Option<&'a [usize]>) -> Input<'a> {
        let mut input = Input::from(x.view());
        if !self.batch_first {
            input = input.time_major();
        }
        lengths.into_iter().fold(input, Input::lengths)
    }
}

#[pymethods]
impl TrainerClass {
    #[new]
    #[pyo3(signature = (model, output_size = None, *, optimizer = "adam", schedule = "constant rate=0.001", clip = None, seed = 0))]
    fn new(
        py: Python<'_>,
        model: &Bound<'_, LstmClass>,
        #[pyo3(from_py_with = arguments::output_size)] output_size: Option<i128>,
        #[pyo3(from_py_with = arguments::optimizer)] optimizer: &str,
        #[pyo3(from_py_with = arguments::schedule)] schedule: &str,
        #[pyo3(from_py_with = arguments::gradient_clip)] clip: Option<String>,
        #[pyo3(from_py_with = arguments::seed)] seed: i128,
    ) -> PyResult<Self> {
        let seed = checked_unsigned("seed", seed)?;
        let output_size = output_size.map(|size| checked_unsigned("output_size", size)).transpose()?;
        let model = model.get();
        let lstm = Lstm::clone(&model.lstm());
        let mut config = TrainerConfig::new(optimizer.parse().py()?, schedule.parse().py()?).seed(seed);
        if let Some(clip) = clip {
            config = config.clip(clip.parse().py()?);
        }
        let head = output_size.map(|size| Linear::random(lstm.backend(), lstm.config().output_size(), size, seed));
        let trainer = py.detach(|| Trainer::new(lstm, head.transpose()?, config)).py()?;
        let (device, batch_first) = (model.device_options().clone(), model.is_batch_first());
        Ok(TrainerClass { trainer: Mutex::new(trainer), step: Mutex::new(()), device, batch_first })
    }

    #[doc = doc!("Trainer.resume")]
    #[staticmethod]
    #[pyo3(signature = (path, *, batch_first = None, device = "cpu", threads = None))]
    fn resume(
        py: Python<'_>,
        path: PathBuf,
        #[pyo3(from_py_with = arguments::optional_batch_first)] batch_first: Option<bool>,
        #[pyo3(from_py_with = arguments::device)] device: &str,
        #[pyo3(from_py_with = arguments::threads)] threads: Option<i128>,
    ) -> PyResult<Self> {
        let device = DeviceOptions::new(device, threads)?;
        let opened = device.open(py)?;
        let (trainer, extras): (_, CheckpointExtras) = py.detach(|| Trainer::resume(&opened, &path)).py()?;
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
        Ok(TrainerClass { trainer: Mutex::new(trainer), step: Mutex::new(()), device, batch_first })
    }

    #[doc = doc!("Trainer.save")]
    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        let text = [(BATCH_FIRST.to_owned(), self.batch_first.to_string())].into();
        let trainer = self.trainer();
        py.detach(|| trainer.save_with(path, &CheckpointExtras::default().with_text(text))).py()
    }

    #[doc = doc!("Trainer.step")]
    #[pyo3(signature = (x, target = None, *, loss = None, lengths = None, last = false))]
    fn step<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        target: Option<&Bound<'py, PyAny>>,
        loss: Option<Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
        #[pyo3(from_py_with = arguments::last)] last: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let (function, name) = match loss {
            None => (None, "mse".to_owned()),
            Some(loss) if loss.is_callable() => (Some(loss.unbind()), String::new()),
            Some(loss) => (None, text("loss", &loss)?.to_owned()),
        };
        let given: Target<'_>;
        let loss = match &function {
            Some(_) if target.is_some() => {
                return Err(PyValueError::new_err("target: expected None, because the loss is a function"));
            }
            Some(function) => Loss::Function(function),
            None => {
                given = Target::read(&name, target)?;
                given.loss(&name)
            }
        };
        let x = self.read_x(x)?;
        let batch_first = self.batch_first;
        let lengths = lengths.map(|lengths| read_lengths(lengths, x.batch(!batch_first))).transpose()?;
        let lengths = lengths.as_deref();
        let _step = match self.step.try_lock() {
            Ok(step) => step,
            // The trainer is replaced after a step, so that one that panicked has changed nothing.
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let text =
                    "a step of this trainer is running, in another thread or around this call; expected one at a time";
                return Err(PyRuntimeError::new_err(text));
            }
        };
        let mut trainer = self.trainer();
        let input = self.input(&x, lengths);
        let step = || match last {
            true => trainer.step(input, LossInput::LastState, |out: ModelOutputs<'_>, _: &_| loss.of_last(out.last()?)),
            false => trainer.step(input, LossInput::Outputs, |out: ModelOutputs<'_>, _: &_| {
                loss.of_outputs(out.y()?, lengths, batch_first)
            }),
        };
        let report = py.detach(step).map_err(|LossError(error)| error)?;
        *self.trainer.lock().unwrap_or_else(PoisonError::into_inner) = trainer;
        let dict = PyDict::new(py);
        dict.set_item("step", report.step)?;
        dict.set_item("loss", report.loss)?;
        dict.set_item("gradient_norm", report.gradient_norm)?;
        dict.set_item("learning_rate", report.learning_rate)?;
        Ok(dict)
    }

    #[doc = doc!("Trainer.predict")]
    #[pyo3(signature = (x, *, lengths = None))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let x = self.read_x(x)?;
        let lengths = lengths.map(|lengths| read_lengths(lengths, x.batch(!self.batch_first))).transpose()?;
        let input = self.input(&x, lengths.as_deref());
        let trainer = self.trainer();
        let (y, _) = py.detach(|| trainer.predict(input)).py()?;
        Ok(y.into_pyarray(py).into_any())
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

    fn __repr__(&self) -> String {
        let trainer = self.trainer();
        let config = trainer.config();
        format!(
            "Trainer({}, {}, {}, {} steps done)",
            trainer.lstm().config(),
            config.optimizer,
            config.schedule,
            trainer.steps()
        )
    }
}
