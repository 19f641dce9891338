//! The class `Trainer`: training without another library.

use std::path::PathBuf;

use lstm::{
    Device, Error, Input, Linear, Lstm,
    ndarray::{Array2, Array3, ArrayD, ArrayView3, Axis, Dimension, Ix2, Ix3, IxDyn},
    train::{
        CheckpointExtras, IGNORE_INDEX, LossGradient, LossInput, ModelOutputs, Trainer, TrainerConfig,
        binary_cross_entropy_with_logits, cross_entropy, masked_binary_cross_entropy_with_logits,
        masked_mean_squared_error, mean_squared_error,
    },
};
use numpy::{IntoPyArray, PyArray1, PyArray2, ToPyArray};
use pyo3::{exceptions::PyValueError, prelude::*, types::PyDict};

use crate::{
    arrays::{Features, read, read_lengths},
    device::DeviceOptions,
    error::{IntoPyResult, to_python},
    lstm_class::LstmClass,
};

/// Trains an LSTM and a linear head; `_lstm.pyi` documents it.
#[pyclass(name = "Trainer", module = "lstm")]
pub(crate) struct TrainerClass {
    trainer: Trainer<Device>,
    device: DeviceOptions,
    batch_first: bool,
}

/// A loss of the library, with its targets.
enum Loss<'py> {
    /// Mean squared error.
    SquaredError(ArrayD<f32>),
    /// Binary cross entropy of logits.
    BinaryCrossEntropy(ArrayD<f32>),
    /// Cross entropy of logits, with a class for each row.
    CrossEntropy(ArrayD<i64>),
    /// A function of Python: from the outputs to the loss and its gradient.
    Function(Bound<'py, PyAny>),
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

impl<'py> Loss<'py> {
    fn new(loss: Bound<'py, PyAny>, target: Option<&Bound<'py, PyAny>>) -> PyResult<Self> {
        let py = loss.py();
        if loss.is_callable() {
            return match target {
                None => Ok(Loss::Function(loss)),
                Some(_) => Err(PyValueError::new_err("target: expected None, because the loss is a function")),
            };
        }
        let name: String = loss.extract()?;
        let Some(target) = target else {
            return Err(PyValueError::new_err(format!("target: the loss {name} needs one, got None")));
        };
        let interop = py.import("lstm._interop")?;
        let floats = || {
            let array = interop.call_method1("import_array", (target, "target"))?.get_item(0)?;
            Ok::<_, PyErr>(read::<f32, IxDyn>(&array, "target", "an array")?.as_array().to_owned())
        };
        match &*name {
            "mse" => Ok(Loss::SquaredError(floats()?)),
            "bce" => Ok(Loss::BinaryCrossEntropy(floats()?)),
            "cross_entropy" => {
                let array = interop.call_method1("to_integers", (target, "target"))?;
                Ok(Loss::CrossEntropy(read::<i64, IxDyn>(&array, "target", "an array")?.as_array().to_owned()))
            }
            _ => {
                let text = format!("loss: expected a function or one of mse, bce, cross_entropy, got `{name}`");
                Err(PyValueError::new_err(text))
            }
        }
    }
}

/// The classes of rows as the library takes them; -100 is PyTorch's `ignore_index`.
fn classes<'a>(target: impl Iterator<Item = &'a i64>) -> PyResult<Vec<usize>> {
    let class = |&class: &i64| match class {
        -100 => Ok(IGNORE_INDEX),
        _ => usize::try_from(class).map_err(|_| {
            PyValueError::new_err(format!("target: expected a class from 0 on, or -100 to ignore the row, got {class}"))
        }),
    };
    target.map(class).collect()
}

/// A target of the number of dimensions of the outputs.
fn target_as<T: Clone, D: Dimension>(target: &ArrayD<T>, shape: &[usize]) -> PyResult<lstm::ndarray::Array<T, D>> {
    if target.shape() != shape {
        let text = format!("target: expected the shape {shape:?}, got {:?}", target.shape());
        return Err(PyValueError::new_err(text));
    }
    target.clone().into_dimensionality().map_err(|error| PyValueError::new_err(format!("target: {error}")))
}

impl TrainerClass {
    /// The loss of the outputs of all time steps, and its gradient.
    fn loss_of_outputs(
        &self,
        loss: &Loss<'_>,
        y: ArrayView3<'_, f32>,
        lengths: Option<&[usize]>,
    ) -> Result<(f64, LossGradient), LossError> {
        // The losses with lengths take the batch first.
        let permuted = |y: ArrayView3<'_, f32>| -> Array3<f32> {
            let mut y = y.to_owned();
            if !self.batch_first {
                y.swap_axes(0, 1);
            }
            y.as_standard_layout().into_owned()
        };
        let restored = |mut gradient: Array3<f32>| {
            if !self.batch_first {
                gradient.swap_axes(0, 1);
            }
            LossGradient::from(gradient.as_standard_layout().into_owned())
        };
        match loss {
            Loss::SquaredError(target) => {
                let target = target_as::<_, Ix3>(target, y.shape())?;
                let (loss, gradient) = match lengths {
                    None => return Ok(mean_squared_error(y, target.view()).map(|(a, b)| (a, b.into()))?),
                    Some(lengths) => {
                        masked_mean_squared_error(permuted(y).view(), permuted(target.view()).view(), lengths)?
                    }
                };
                Ok((loss, restored(gradient)))
            }
            Loss::BinaryCrossEntropy(target) => {
                let target = target_as::<_, Ix3>(target, y.shape())?;
                let (y, target) = (permuted(y), permuted(target.view()));
                let (loss, gradient) = match lengths {
                    None => binary_cross_entropy_with_logits(y.view(), target.view())?,
                    Some(lengths) => masked_binary_cross_entropy_with_logits(y.view(), target.view(), lengths)?,
                };
                Ok((loss, restored(gradient)))
            }
            Loss::CrossEntropy(target) => {
                let mut target = target_as::<_, Ix2>(target, &y.shape()[..2])?;
                let sequences = Axis(usize::from(!self.batch_first));
                for (&length, mut sequence) in lengths.into_iter().flatten().zip(target.axis_iter_mut(sequences)) {
                    sequence.iter_mut().skip(length).for_each(|class| *class = -100);
                }
                let (loss, gradient) = cross_entropy(y, &classes(target.iter())?)?;
                Ok((loss, gradient.into()))
            }
            Loss::Function(_) => Err(LossError(PyValueError::new_err("loss: expected a loss of the library"))),
        }
    }

    /// The loss of the last states, and its gradient.
    fn loss_of_last(
        loss: &Loss<'_>,
        last: lstm::ndarray::ArrayView2<'_, f32>,
    ) -> Result<(f64, LossGradient), LossError> {
        let (loss, gradient): (f64, Array2<f32>) = match loss {
            Loss::SquaredError(target) => mean_squared_error(last, target_as(target, last.shape())?.view())?,
            Loss::BinaryCrossEntropy(target) => {
                binary_cross_entropy_with_logits(last, target_as(target, last.shape())?.view())?
            }
            Loss::CrossEntropy(target) => {
                let target = target_as::<_, lstm::ndarray::Ix1>(target, &last.shape()[..1])?;
                cross_entropy(last, &classes(target.iter())?)?
            }
            Loss::Function(_) => return Err(LossError(PyValueError::new_err("loss: expected a loss of the library"))),
        };
        Ok((loss, gradient.into()))
    }

    fn read_x<'py>(&self, x: &Bound<'py, PyAny>) -> PyResult<Features<'py>> {
        let array = x.py().import("lstm._interop")?.call_method1("import_array", (x, "x"))?.get_item(0)?;
        let order = if self.batch_first { "(batch, steps, " } else { "(steps, batch, " };
        let expected = format!("the shape {order}{})", self.trainer.lstm().config().input_size);
        match Features::read(&array, &expected)? {
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
        output_size: Option<usize>,
        optimizer: &str,
        schedule: &str,
        clip: Option<&str>,
        seed: u64,
    ) -> PyResult<Self> {
        let model = model.get();
        let lstm = Lstm::clone(&model.lstm());
        let mut config = TrainerConfig::new(optimizer.parse().py()?, schedule.parse().py()?).seed(seed);
        if let Some(clip) = clip {
            config = config.clip(clip.parse().py()?);
        }
        let head = output_size.map(|size| Linear::random(lstm.backend(), lstm.config().output_size(), size, seed));
        let trainer = py.detach(|| Trainer::new(lstm, head.transpose()?, config)).py()?;
        Ok(TrainerClass { trainer, device: model.device_options().clone(), batch_first: model.is_batch_first() })
    }

    #[staticmethod]
    #[pyo3(signature = (path, *, batch_first = false, device = "cpu", threads = None))]
    fn resume(
        py: Python<'_>,
        path: PathBuf,
        batch_first: bool,
        device: &str,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        let device = DeviceOptions { name: device.to_owned(), threads };
        let opened = device.open(py)?;
        let (trainer, _): (_, CheckpointExtras) = py.detach(|| Trainer::resume(&opened, path)).py()?;
        Ok(TrainerClass { trainer, device, batch_first })
    }

    fn save(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| self.trainer.save(path)).py()
    }

    #[pyo3(signature = (x, target = None, *, loss = None, lengths = None, last = false))]
    fn step<'py>(
        &mut self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        target: Option<&Bound<'py, PyAny>>,
        loss: Option<Bound<'py, PyAny>>,
        lengths: Option<&Bound<'py, PyAny>>,
        last: bool,
    ) -> PyResult<Bound<'py, PyDict>> {
        let loss = match loss {
            Some(loss) => loss,
            None => "mse".into_pyobject(py)?.into_any(),
        };
        let loss = Loss::new(loss, target)?;
        let x = self.read_x(x)?;
        let lengths = lengths.map(read_lengths).transpose()?;
        let loss_input = if last { LossInput::LastState } else { LossInput::Outputs };
        // A clone is cheap, and shares the weights.
        let mut trainer = self.trainer.clone();
        let input = self.input(&x, lengths.as_deref());
        let evaluate = |out: ModelOutputs<'_>, _: &_| -> Result<(f64, LossGradient), LossError> {
            match (&loss, last) {
                (Loss::Function(function), true) => {
                    let (loss, gradient) =
                        function.call1((out.last()?.to_pyarray(py),))?.extract::<(f64, Bound<'_, PyAny>)>()?;
                    let gradient = read::<f32, Ix2>(&gradient, "gradient of the loss", "2 dimensions")?;
                    Ok((loss, gradient.as_array().to_owned().into()))
                }
                (Loss::Function(function), false) => {
                    let (loss, gradient) =
                        function.call1((out.y()?.to_pyarray(py),))?.extract::<(f64, Bound<'_, PyAny>)>()?;
                    let gradient = read::<f32, Ix3>(&gradient, "gradient of the loss", "3 dimensions")?;
                    Ok((loss, gradient.as_array().to_owned().into()))
                }
                (loss, true) => Self::loss_of_last(loss, out.last()?),
                (loss, false) => self.loss_of_outputs(loss, out.y()?, lengths.as_deref()),
            }
        };
        let report = trainer.step(input, loss_input, evaluate).map_err(|LossError(error)| error)?;
        self.trainer = trainer;
        let dict = PyDict::new(py);
        dict.set_item("step", report.step)?;
        dict.set_item("loss", report.loss)?;
        dict.set_item("gradient_norm", report.gradient_norm)?;
        dict.set_item("learning_rate", report.learning_rate)?;
        Ok(dict)
    }

    #[pyo3(signature = (x, *, lengths = None))]
    fn predict<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        lengths: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let x = self.read_x(x)?;
        let lengths = lengths.map(read_lengths).transpose()?;
        let input = self.input(&x, lengths.as_deref());
        let (y, _) = py.detach(|| self.trainer.predict(input)).py()?;
        Ok(y.into_pyarray(py).into_any())
    }

    #[getter]
    fn model(&self) -> LstmClass {
        LstmClass::from_parts(self.trainer.lstm().clone(), self.device.clone(), self.batch_first)
    }

    #[getter]
    #[allow(clippy::type_complexity, reason = "a pair of arrays")]
    fn head<'py>(&self, py: Python<'py>) -> Option<(Bound<'py, PyArray2<f32>>, Option<Bound<'py, PyArray1<f32>>>)> {
        let head = self.trainer.head()?;
        Some((head.weight().to_pyarray(py), head.bias().map(|bias| bias.to_pyarray(py))))
    }

    #[getter]
    fn steps(&self) -> u64 {
        self.trainer.steps()
    }

    #[getter]
    fn learning_rate(&self) -> f32 {
        self.trainer.learning_rate()
    }

    fn __repr__(&self) -> String {
        let config = self.trainer.config();
        format!(
            "Trainer({}, {}, {}, {} steps done)",
            self.trainer.lstm().config(),
            config.optimizer,
            config.schedule,
            self.trainer.steps()
        )
    }
}
