//! The class `Loss`, and the losses of a training step with their gradients.

use lstm::{
    Error,
    ndarray::{Array, Array3, ArrayView, ArrayView2, ArrayView3, ArrayViewD, Dimension, Ix2, Ix3, RemoveAxis},
    shape::memory,
    train::{
        IGNORE_INDEX, LossGradient, binary_cross_entropy, cross_entropy, ctc_loss, gaussian_nll_loss, huber,
        masked_gaussian_nll_loss, masked_pointwise_loss, part_of_weighted_mean, pinball, pointwise_loss, squared_error,
        weighted_cross_entropy,
    },
};
use numpy::{PyReadonlyArrayDyn, ToPyArray};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
};

use crate::{
    arguments::{self, text},
    arrays::{copy_of_shape, read},
    error::{IntoPyResult, to_python},
};

/// The names of the losses that need no argument.
const NAMES: &str = "mse, bce, huber, cross_entropy, gaussian_nll, ctc";

#[doc = doc!("Loss")]
#[pyclass(frozen, eq, name = "Loss", module = "lstm")]
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct LossClass(Kind);

/// A loss with its options.
#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Pointwise(Pointwise),
    GaussianNll,
    CrossEntropy { weight: Option<Vec<f32>>, ignore_index: i64 },
    Ctc { blank: usize },
}

/// A loss that is the mean of a loss of each element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pointwise {
    SquaredError,
    BinaryCrossEntropy { pos_weight: f64 },
    Huber { delta: f64 },
    Pinball { quantile: f64 },
}

/// A loss of one element and its target, and the derivative.
type ElementLoss = Box<dyn Fn(f64, f64) -> (f64, f64)>;

impl Pointwise {
    fn element_loss(self) -> lstm::Result<ElementLoss> {
        Ok(match self {
            Pointwise::SquaredError => Box::new(squared_error),
            Pointwise::BinaryCrossEntropy { pos_weight } => {
                // The name of the option is PyTorch's.
                let named = |error| match error {
                    Error::Config { reason, .. } => Error::config("pos_weight", reason),
                    error => error,
                };
                Box::new(binary_cross_entropy(pos_weight).map_err(named)?)
            }
            Pointwise::Huber { delta } => Box::new(huber(delta)?),
            Pointwise::Pinball { quantile } => Box::new(pinball(quantile)?),
        })
    }

    /// The loss, if its option is valid.
    fn checked(self) -> PyResult<LossClass> {
        self.element_loss().map(drop).py()?;
        Ok(LossClass(Kind::Pointwise(self)))
    }
}

#[pymethods]
impl LossClass {
    #[doc = doc!("Loss.mse")]
    #[staticmethod]
    fn mse() -> Self {
        LossClass(Kind::Pointwise(Pointwise::SquaredError))
    }

    #[doc = doc!("Loss.bce")]
    #[staticmethod]
    #[pyo3(signature = (pos_weight = 1.0))]
    fn bce(#[pyo3(from_py_with = arguments::pos_weight)] pos_weight: f64) -> PyResult<Self> {
        Pointwise::BinaryCrossEntropy { pos_weight }.checked()
    }

    #[doc = doc!("Loss.huber")]
    #[staticmethod]
    #[pyo3(signature = (delta = 1.0))]
    fn huber(#[pyo3(from_py_with = arguments::delta)] delta: f64) -> PyResult<Self> {
        Pointwise::Huber { delta }.checked()
    }

    #[doc = doc!("Loss.pinball")]
    #[staticmethod]
    fn pinball(#[pyo3(from_py_with = arguments::quantile)] quantile: f64) -> PyResult<Self> {
        Pointwise::Pinball { quantile }.checked()
    }

    #[doc = doc!("Loss.gaussian_nll")]
    #[staticmethod]
    fn gaussian_nll() -> Self {
        LossClass(Kind::GaussianNll)
    }

    #[doc = doc!("Loss.cross_entropy")]
    #[staticmethod]
    #[pyo3(
        signature = (weight = None, ignore_index = -100),
        text_signature = "(weight=None, ignore_index=-100)"
    )]
    fn cross_entropy(
        weight: Option<&Bound<'_, PyAny>>,
        #[pyo3(from_py_with = arguments::ignore_index)] ignore_index: i64,
    ) -> PyResult<Self> {
        let expected = "one number for each class";
        let read_weight = |weight: &Bound<'_, PyAny>| -> PyResult<Vec<f32>> {
            let numpy = weight.py().import("numpy")?;
            let array = numpy.call_method1("asarray", (weight, "float32"));
            let array = array.map_err(|_| arguments::wrong("weight", expected, weight))?;
            let weight: Vec<f32> = array.extract().map_err(|_| arguments::wrong("weight", expected, weight))?;
            match weight.iter().find(|w| !(w.is_finite() && **w >= 0.0)) {
                None => Ok(weight),
                Some(bad) => {
                    Err(PyValueError::new_err(format!("weight: expected finite numbers of at least 0, got {bad}")))
                }
            }
        };
        Ok(LossClass(Kind::CrossEntropy { weight: weight.map(read_weight).transpose()?, ignore_index }))
    }

    #[doc = doc!("Loss.ctc")]
    #[staticmethod]
    #[pyo3(signature = (blank = 0))]
    fn ctc(#[pyo3(from_py_with = arguments::blank)] blank: i128) -> PyResult<Self> {
        Ok(LossClass(Kind::Ctc { blank: arguments::checked_unsigned("blank", blank)? }))
    }

    fn __repr__(&self) -> String {
        let call = match &self.0 {
            Kind::Pointwise(Pointwise::SquaredError) => "mse()".to_owned(),
            Kind::Pointwise(Pointwise::BinaryCrossEntropy { pos_weight }) => format!("bce(pos_weight={pos_weight:?})"),
            Kind::Pointwise(Pointwise::Huber { delta }) => format!("huber(delta={delta:?})"),
            Kind::Pointwise(Pointwise::Pinball { quantile }) => format!("pinball(quantile={quantile:?})"),
            Kind::GaussianNll => "gaussian_nll()".to_owned(),
            Kind::CrossEntropy { weight: None, ignore_index } => format!("cross_entropy(ignore_index={ignore_index})"),
            Kind::CrossEntropy { weight: Some(weight), ignore_index } => {
                format!("cross_entropy(weight={weight:?}, ignore_index={ignore_index})")
            }
            Kind::Ctc { blank } => format!("ctc(blank={blank})"),
        };
        format!("Loss.{call}")
    }
}

/// What `loss=` was given.
pub(crate) enum LossArgument {
    /// A loss of the library.
    Loss(LossClass),
    /// A function of Python: from the outputs to the loss and its gradient.
    Function(Py<PyAny>),
}

impl LossArgument {
    /// Reads a loss, the name of a loss with its default options, or a function; `None` is the mean squared error.
    pub(crate) fn read(value: Option<&Bound<'_, PyAny>>) -> PyResult<Self> {
        let Some(value) = value else { return Ok(LossArgument::Loss(LossClass::mse())) };
        if let Ok(loss) = value.cast::<LossClass>() {
            return Ok(LossArgument::Loss(loss.get().clone()));
        }
        if value.is_callable() {
            return Ok(LossArgument::Function(value.clone().unbind()));
        }
        let expected = format!("an lstm.Loss, a function, or one of {NAMES}");
        let Ok(name) = text("loss", value) else { return Err(arguments::wrong("loss", &expected, value)) };
        Ok(LossArgument::Loss(match name {
            "mse" => LossClass::mse(),
            "bce" => LossClass::bce(1.0)?,
            "huber" => LossClass::huber(1.0)?,
            "gaussian_nll" => LossClass::gaussian_nll(),
            "cross_entropy" => LossClass::cross_entropy(None, -100)?,
            "ctc" => LossClass::ctc(0)?,
            "pinball" => {
                let text = "loss: pinball needs a quantile; pass a loss such as lstm.Loss.pinball(0.9)";
                return Err(PyValueError::new_err(text));
            }
            name => return Err(PyValueError::new_err(format!("loss: expected {expected}, got '{name}'"))),
        }))
    }

    /// Borrows the target of the loss.
    pub(crate) fn read_target<'py>(
        &self,
        py: Python<'py>,
        target: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Target<'py>> {
        let loss = match (self, target) {
            (LossArgument::Function(_), None) => return Ok(Target::None),
            (LossArgument::Function(_), Some(_)) => {
                let text = "target: expected None, because the loss is a function, which has its own targets; or pass an \
                            lstm.Loss";
                return Err(PyValueError::new_err(text));
            }
            (LossArgument::Loss(loss), None) => {
                let text = format!("target: the loss {} needs one, got None", loss.__repr__());
                return Err(PyValueError::new_err(text));
            }
            (LossArgument::Loss(loss), Some(_)) => loss,
        };
        let Some(target) = target else { return Ok(Target::None) };
        let interop = py.import("lstm._interop")?;
        let integers = |value: &Bound<'py, PyAny>, name: &str| -> PyResult<PyReadonlyArrayDyn<'py, i64>> {
            read(&interop.call_method1("to_integers", (value, name))?, name, "an array")
        };
        match loss.0 {
            Kind::Pointwise(_) | Kind::GaussianNll => {
                let array = interop.call_method1("import_array", (target, "target"))?.get_item(0)?;
                Ok(Target::Floats(read(&array, "target", "an array")?))
            }
            Kind::CrossEntropy { .. } => Ok(Target::Classes(integers(target, "target")?)),
            Kind::Ctc { .. } => {
                let expected = "the labels of each sequence, such as [[1, 2], [2]]";
                let mut sequences = Vec::new();
                for (k, labels) in
                    target.try_iter().map_err(|_| arguments::wrong("target", expected, target))?.enumerate()
                {
                    let (labels, name) = (labels?, format!("target[{k}]"));
                    let array = integers(&labels, &name)?;
                    let array = array.as_array();
                    if array.ndim() != 1 {
                        let text = format!("{name}: expected one axis, of labels, got the shape {:?}", array.shape());
                        return Err(PyValueError::new_err(text));
                    }
                    let label = |&label: &i64| {
                        usize::try_from(label).map_err(|_| {
                            PyValueError::new_err(format!("{name}: expected labels from 0 on, got {label}"))
                        })
                    };
                    sequences.push(array.iter().map(label).collect::<PyResult<Vec<_>>>()?);
                }
                Ok(Target::Labels(sequences))
            }
        }
    }

    /// The loss with its target, which [`read_target`](Self::read_target) has read.
    pub(crate) fn with_target<'a>(&'a self, target: &'a Target<'_>) -> PyResult<Loss<'a>> {
        match (self, target) {
            (LossArgument::Function(function), _) => Ok(Loss::Function(function)),
            (LossArgument::Loss(LossClass(kind)), target) => match (kind, target) {
                (Kind::Pointwise(loss), Target::Floats(target)) => Ok(Loss::Pointwise(*loss, target.as_array())),
                (Kind::GaussianNll, Target::Floats(target)) => Ok(Loss::GaussianNll(target.as_array())),
                (Kind::CrossEntropy { weight, ignore_index }, Target::Classes(target)) => {
                    let (target, ignore_index) = (target.as_array(), *ignore_index);
                    Ok(Loss::CrossEntropy { target, weight: weight.as_deref(), ignore_index })
                }
                (Kind::Ctc { blank }, Target::Labels(labels)) => Ok(Loss::Ctc { labels, blank: *blank }),
                _ => Err(PyValueError::new_err("target: it does not belong to the loss")),
            },
        }
    }
}

/// The target of a loss.
pub(crate) enum Target<'py> {
    /// No target: the loss is a Python function, which knows the target itself.
    None,
    /// A number for each output, borrowed.
    Floats(PyReadonlyArrayDyn<'py, f32>),
    /// A class for each row of the outputs, borrowed.
    Classes(PyReadonlyArrayDyn<'py, i64>),
    /// The labels of each sequence.
    Labels(Vec<Vec<usize>>),
}

/// A loss with its target, as the pass calls it without the GIL.
pub(crate) enum Loss<'a> {
    Pointwise(Pointwise, ArrayViewD<'a, f32>),
    GaussianNll(ArrayViewD<'a, f32>),
    CrossEntropy { target: ArrayViewD<'a, i64>, weight: Option<&'a [f32]>, ignore_index: i64 },
    Ctc { labels: &'a [Vec<usize>], blank: usize },
    Function(&'a Py<PyAny>),
}

/// A Python exception, to which errors of the library convert.
pub(crate) struct LossError(pub(crate) PyErr);

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

/// Where the sequences of a batch end.
#[derive(Clone, Copy)]
pub(crate) struct Ends<'a> {
    /// The number of time steps of each sequence, if not all have the same.
    pub(crate) lengths: Option<&'a [usize]>,
    /// Whether arrays have the batch as their first axis.
    pub(crate) batch_first: bool,
}

impl Ends<'_> {
    /// Whether row `k` of the outputs, `(batch, steps)` or `(steps, batch)` rows with `columns` in the second axis, is beyond
    /// the end of its sequence.
    fn is_beyond(&self, k: usize, columns: usize) -> bool {
        let (row, column) = (k / columns, k % columns);
        let (sequence, step) = if self.batch_first { (row, column) } else { (column, row) };
        self.lengths.is_some_and(|lengths| step >= lengths[sequence])
    }
}

impl Loss<'_> {
    /// The loss of the outputs of all time steps and its gradient, both multiplied by `share`.
    pub(crate) fn of_outputs(
        &self,
        y: ArrayView3<'_, f32>,
        ends: Ends<'_>,
        share: f64,
    ) -> Result<(f64, LossGradient), LossError> {
        // The losses with lengths take the batch first.
        let permuted = |mut array: ArrayView3<'_, f32>| {
            if !ends.batch_first {
                array.swap_axes(0, 1);
            }
            memory::copy_array("loss", array)
        };
        let restored = |(loss, mut gradient): (f64, Array3<f32>)| {
            if !ends.batch_first {
                gradient.swap_axes(0, 1);
            }
            memory::row_major("loss", gradient).map(|gradient| (loss, gradient))
        };
        let columns = y.dim().1;
        let is_beyond = |row: usize| ends.is_beyond(row, columns);
        let result = match (self, ends.lengths) {
            (Loss::Pointwise(loss, target), lengths) => {
                let target = target_as::<Ix3>(target.view(), y.shape())?;
                loss.check_target(target, is_beyond)?;
                let element_loss = loss.element_loss()?;
                match lengths {
                    None => pointwise_loss(y, target, element_loss)?,
                    Some(lengths) => {
                        let (y, target) = (permuted(y)?, permuted(target)?);
                        restored(masked_pointwise_loss(y.view(), target.view(), lengths, element_loss)?)?
                    }
                }
            }
            (Loss::GaussianNll(target), lengths) => {
                let target = target_as::<Ix3>(target.view(), &gaussian_target(y.shape())?)?;
                match lengths {
                    None => gaussian_nll_loss(y, target)?,
                    Some(lengths) => {
                        let (y, target) = (permuted(y)?, permuted(target)?);
                        restored(masked_gaussian_nll_loss(y.view(), target.view(), lengths)?)?
                    }
                }
            }
            (Loss::CrossEntropy { target, weight, ignore_index }, _) => {
                class_loss(y, target.view(), *weight, *ignore_index, is_beyond)?
            }
            (Loss::Ctc { labels, blank }, lengths) => {
                let batch = if ends.batch_first { y.dim().0 } else { columns };
                if labels.len() != batch {
                    let text = format!("target: expected the labels of {batch} sequences, got {}", labels.len());
                    return Err(PyValueError::new_err(text).into());
                }
                let labels: Vec<_> = labels.iter().map(Vec::as_slice).collect();
                restored(ctc_loss(permuted(y)?.view(), lengths, &labels, *blank)?)?
            }
            (Loss::Function(function), _) => call_function(function, y)?,
        };
        let (loss, gradient) = part_of_weighted_mean(result, share, 1.0);
        Ok((loss, gradient.into()))
    }

    /// The loss of the last states and its gradient, both multiplied by `share`.
    pub(crate) fn of_last(&self, last: ArrayView2<'_, f32>, share: f64) -> Result<(f64, LossGradient), LossError> {
        let result = match self {
            Loss::Pointwise(loss, target) => {
                let target = target_as::<Ix2>(target.view(), last.shape())?;
                loss.check_target(target, |_| false)?;
                pointwise_loss(last, target, loss.element_loss()?)?
            }
            Loss::GaussianNll(target) => {
                gaussian_nll_loss(last, target_as::<Ix2>(target.view(), &gaussian_target(last.shape())?)?)?
            }
            Loss::CrossEntropy { target, weight, ignore_index } => {
                class_loss(last, target.view(), *weight, *ignore_index, |_| false)?
            }
            Loss::Ctc { .. } => {
                let text = "loss: ctc reads the outputs of all time steps, got last=True or a model that returns the last step";
                return Err(PyValueError::new_err(text).into());
            }
            Loss::Function(function) => call_function(function, last)?,
        };
        let (loss, gradient) = part_of_weighted_mean(result, share, 1.0);
        Ok((loss, gradient.into()))
    }
}

impl Pointwise {
    /// Fails for a target of the binary cross entropy that is no probability, in rows that are read.
    fn check_target<D: Dimension>(
        self,
        target: ArrayView<'_, f32, D>,
        is_beyond: impl Fn(usize) -> bool,
    ) -> PyResult<()> {
        let Pointwise::BinaryCrossEntropy { .. } = self else { return Ok(()) };
        let is_read = |(row, _): &(usize, ArrayView<'_, f32, lstm::ndarray::Ix1>)| !is_beyond(*row);
        let rows = target.rows().into_iter().enumerate().filter(is_read);
        for value in rows.flat_map(|(_, row)| row.into_iter()) {
            if !(0.0..=1.0).contains(value) {
                let text = format!("target: expected probabilities from 0 to 1, got {value}");
                return Err(PyValueError::new_err(text));
            }
        }
        Ok(())
    }
}

/// The shape of the target of the Gaussian negative log-likelihood of outputs.
fn gaussian_target(outputs: &[usize]) -> PyResult<Vec<usize>> {
    let mut shape = outputs.to_vec();
    if let Some(features) = shape.last_mut() {
        if !features.is_multiple_of(2) {
            let expected = "an even number of outputs: means, then logarithms of variances";
            return Err(PyValueError::new_err(format!("loss: gaussian_nll: expected {expected}; got {features}")));
        }
        *features /= 2;
    }
    Ok(shape)
}

/// The cross entropy of rows of logits, of which those with the class `ignore_index` and those for which `is_ignored` are left
/// out.
fn class_loss<D: Dimension + RemoveAxis>(
    logits: ArrayView<'_, f32, D>,
    target: ArrayViewD<'_, i64>,
    weight: Option<&[f32]>,
    ignore_index: i64,
    is_ignored: impl Fn(usize) -> bool,
) -> Result<(f64, Array<f32, D>), LossError> {
    let (shape, num_classes) = match logits.shape() {
        [rows @ .., classes] => (rows.to_vec(), *classes),
        [] => (Vec::new(), 0),
    };
    check_target(target.shape(), &shape)?;
    let mut classes = memory::with_capacity("target", &shape)?;
    for (k, &class) in target.iter().enumerate() {
        classes.push(match usize::try_from(class) {
            _ if is_ignored(k) || class == ignore_index => IGNORE_INDEX,
            Ok(class) if class < num_classes => class,
            _ => {
                let last = num_classes.saturating_sub(1);
                let expected = format!("classes from 0 to {last}, or {ignore_index} to ignore a row");
                return Err(PyValueError::new_err(format!("target: expected {expected}, got {class}")).into());
            }
        });
    }
    let mut used = classes.iter().filter(|&&class| class != IGNORE_INDEX).peekable();
    if used.peek().is_none() {
        let text = format!("target: expected at least one class, got only rows that are ignored ({ignore_index})");
        return Err(PyValueError::new_err(text).into());
    }
    let Some(weight) = weight else { return Ok(cross_entropy(logits, &classes)?) };
    if weight.len() != num_classes {
        let text = format!("weight: expected {num_classes} numbers, one for each class, got {}", weight.len());
        return Err(PyValueError::new_err(text).into());
    }
    if used.all(|&class| weight[class] == 0.0) {
        let text = "weight: expected a number above 0 for a class of the target, got only 0";
        return Err(PyValueError::new_err(text).into());
    }
    Ok(weighted_cross_entropy(logits, &classes, weight)?)
}

/// Fails unless the target has the shape that the outputs need.
fn check_target(got: &[usize], expected: &[usize]) -> PyResult<()> {
    if got == expected {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("target: expected the shape {expected:?}, got {got:?}")))
}

/// A target with the shape that the outputs need.
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
        let Ok((loss, gradient)) = result.extract::<(f64, Bound<'_, PyAny>)>() else {
            let got = result.get_type().fully_qualified_name()?;
            let expected = "expected the function to return the loss, a number, and its gradient, an array";
            return Err(PyTypeError::new_err(format!("loss: {expected}, got {got}")).into());
        };
        let name = "gradient of the loss";
        let gradient = py.import("lstm._interop")?.call_method1("import_array", (gradient, name))?.get_item(0)?;
        let gradient = read::<f32, D>(&gradient, name, &format!("the shape {:?}", outputs.shape()))?;
        Ok((loss, copy_of_shape(gradient.as_array(), name, outputs.shape())?))
    })
}
