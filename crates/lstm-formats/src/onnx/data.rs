//! Tensors while a graph is evaluated: known numbers, or labels that say where each element comes from.
//!
//! Operators that only move elements treat labels like numbers. After any arrangement of them, the labels show which
//! elements of which tensor arrive at a node, and in which order.

use ndarray::{ArcArray, ArrayD, IxDyn};

use super::proto::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, Tensor};
use super::tensor;
use lstm_core::{Error, Result};

/// Where an element comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Label {
    /// The tensor: an index into the list of sources, or [`Label::CONSTANT`].
    pub(crate) source: u32,
    /// The position in the source: which sequence and time step. For a graph input the index of the element.
    pub(crate) position: u32,
    /// The feature at that position. For a constant, its bits.
    pub(crate) feature: u32,
}

impl Label {
    /// The source of constant elements.
    const CONSTANT: u32 = u32::MAX;

    /// The label of a known number.
    fn constant(value: f32) -> Self {
        Label { source: Label::CONSTANT, position: 0, feature: value.to_bits() }
    }

    /// The number, if it is known.
    pub(crate) fn as_constant(self) -> Option<f32> {
        (self.source == Label::CONSTANT).then(|| f32::from_bits(self.feature))
    }
}

/// An array that is cheap to clone.
pub(crate) type Shared<T> = ArcArray<T, IxDyn>;

/// The elements of a tensor.
#[derive(Clone, Debug)]
pub(crate) enum Elements {
    Floats(Shared<f32>),
    /// Integers, and booleans as 0 and 1.
    Ints(Shared<i64>),
    Labels(Shared<Label>),
}

/// A tensor.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    /// The ONNX element type.
    pub(crate) elem_type: i32,
    pub(crate) elements: Elements,
}

/// Applies a generic expression to the elements of a tensor, whatever their type. The result is a tensor.
macro_rules! map_elements {
    ($data:expr, $array:ident => $result:expr) => {{
        let data: &Data = $data;
        let elements = match &data.elements {
            Elements::Floats($array) => Elements::Floats($result),
            Elements::Ints($array) => Elements::Ints($result),
            Elements::Labels($array) => Elements::Labels($result),
        };
        Data { elem_type: data.elem_type, elements }
    }};
}
pub(crate) use map_elements;

/// Whether this is a float type that can be read.
pub(crate) fn is_float_type(elem_type: i32) -> bool {
    [FLOAT, FLOAT16, BFLOAT16, DOUBLE].contains(&elem_type)
}

/// Whether this is an integer type that can be read.
pub(crate) fn is_int_type(elem_type: i32) -> bool {
    [INT32, INT64, BOOL].contains(&elem_type)
}

impl Data {
    pub(crate) fn floats(array: ArrayD<f32>) -> Self {
        Data { elem_type: FLOAT, elements: Elements::Floats(array.into_shared()) }
    }

    pub(crate) fn ints(array: ArrayD<i64>) -> Self {
        Data { elem_type: INT64, elements: Elements::Ints(array.into_shared()) }
    }

    /// Decodes a constant.
    pub(crate) fn constant(t: &Tensor, dir: Option<&std::path::Path>) -> Result<Self> {
        let elem_type = t.data_type.unwrap_or_default();
        let elements = match is_int_type(elem_type) {
            true => {
                let values = tensor::ints(t, dir)?;
                let shape = IxDyn(&tensor::shape(t)?);
                let array = ArrayD::from_shape_vec(shape, values).map_err(|e| Error::format(&t.name, e))?;
                Elements::Ints(array.into_shared())
            }
            false => Elements::Floats(tensor::floats(t, dir)?.into_shared()),
        };
        Ok(Data { elem_type, elements })
    }

    /// The size of each axis.
    pub(crate) fn shape(&self) -> &[usize] {
        match &self.elements {
            Elements::Floats(array) => array.shape(),
            Elements::Ints(array) => array.shape(),
            Elements::Labels(array) => array.shape(),
        }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.shape().iter().product()
    }

    /// The floats, if all elements are known floats.
    pub(crate) fn as_floats(&self) -> Option<&Shared<f32>> {
        if let Elements::Floats(array) = &self.elements { Some(array) } else { None }
    }

    /// The integers, if all elements are known integers.
    pub(crate) fn as_ints(&self) -> Option<&Shared<i64>> {
        if let Elements::Ints(array) = &self.elements { Some(array) } else { None }
    }

    /// The label of each element. If the elements are known floats, each gets the label of a constant. `None` if they are
    /// integers, which have no labels.
    pub(crate) fn to_labels(&self) -> Option<Shared<Label>> {
        match &self.elements {
            Elements::Floats(array) => Some(array.mapv(Label::constant).into_shared()),
            Elements::Ints(_) => None,
            Elements::Labels(array) => Some(array.clone()),
        }
    }

    /// Whether no element has a label.
    pub(crate) fn is_known(&self) -> bool {
        !matches!(self.elements, Elements::Labels(_))
    }
}

/// Bounds the memory that folding constants and tracking labels may take, so that a small file can't ask for much.
pub(crate) struct Budget {
    remaining_bytes: usize,
}

impl Budget {
    /// The bytes that any file may take.
    const BASE: usize = 128 << 20;

    /// The budget of a file of this size.
    pub(crate) fn new(file_bytes: usize) -> Self {
        Budget { remaining_bytes: file_bytes.saturating_mul(24).saturating_add(Budget::BASE) }
    }

    /// Deducts the size of an array of this shape from the budget.
    pub(crate) fn charge<T>(&mut self, shape: &[usize]) -> std::result::Result<(), String> {
        let bytes = shape.iter().try_fold(size_of::<T>(), |bytes, &n| bytes.checked_mul(n.max(1)));
        match bytes.and_then(|bytes| self.remaining_bytes.checked_sub(bytes)) {
            Some(remaining) => {
                self.remaining_bytes = remaining;
                Ok(())
            }
            None => Err(format!("a tensor of shape {shape:?} is out of proportion to the size of the file")),
        }
    }
}
