//! Zero tensors with symbolic shapes. Exporters compute zero initial states of the batch size of the input
//! with such tensors.

use super::dim::{Dim, MAX_RANK, slice_range};
use crate::onnx::proto::Tensor;

/// A float tensor whose elements are all +0.
#[derive(Clone, Debug)]
pub(crate) struct Zeros<'a> {
    /// The constant in the file; `None` if nodes compute the tensor.
    pub(crate) tensor: Option<&'a Tensor>,
    /// Size of each axis; `None` if the number of axes is unknown.
    pub(crate) shape: Option<Vec<Dim<'a>>>,
}

impl<'a> Zeros<'a> {
    /// Creates zeros that nodes compute. A shape of more than `MAX_RANK` axes is replaced by an unknown one.
    pub(crate) fn of_shape(shape: Option<Vec<Dim<'a>>>) -> Self {
        Zeros { tensor: None, shape: shape.filter(|shape| shape.len() <= MAX_RANK) }
    }

    /// Creates zeros of an unknown number of axes.
    pub(crate) fn of_unknown_shape() -> Self {
        Zeros::of_shape(None)
    }

    /// Number of axes, if known.
    pub(crate) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Broadcasts to the shape `target_shape`, as the operator `Expand` does.
    pub(crate) fn expand(&self, target_shape: &[Dim<'a>]) -> Result<Self, String> {
        let Some(shape) = &self.shape else { return Ok(Zeros::of_unknown_shape()) };
        let rank = shape.len().max(target_shape.len());
        // Shapes are aligned at their last axes.
        let aligned_size = |sizes: &[Dim<'a>], k: usize| match (k + sizes.len()).checked_sub(rank) {
            Some(k) => sizes[k],
            None => Dim::Known(1),
        };
        let broadcast_size = |k| match (aligned_size(shape, k), aligned_size(target_shape, k)) {
            (Dim::Known(a), Dim::Known(b)) if a != b && a != 1 && b != 1 => {
                Err(format!("cannot expand zeros of shape {shape:?} to {target_shape:?}"))
            }
            (Dim::Known(1), size) | (size, Dim::Known(1)) => Ok(size),
            // The other size must be 1 or equal.
            (size @ Dim::Known(_), _) | (_, size @ Dim::Known(_)) => Ok(size),
            (a, b) => Ok(if a.equals(b) { a } else { Dim::Unknown }),
        };
        Ok(Zeros::of_shape(Some((0..rank).map(broadcast_size).collect::<Result<_, _>>()?)))
    }

    /// Reshapes to the sizes `target_shape`, where -1 stands for a size that follows from the number of elements. With
    /// `zero_copies_size`, a size of 0 copies the old size of the same axis.
    pub(crate) fn reshape(&self, target_shape: &[Dim<'a>], zero_copies_size: bool) -> Result<Self, String> {
        let old_size = |k: usize| self.shape.as_ref().and_then(|old| old.get(k)).copied().unwrap_or(Dim::Unknown);
        let new_size = |(k, size): (usize, &Dim<'a>)| match size {
            Dim::Known(0) if zero_copies_size => old_size(k),
            size => *size,
        };
        let mut shape: Vec<_> = target_shape.iter().enumerate().map(new_size).collect();
        let product = |sizes: &[Dim<'a>]| sizes.iter().fold(Dim::Known(1), |n, &size| n.multiply(size));
        let num_elements = self.shape.as_ref().map_or(Dim::Unknown, |old| product(old));
        if let Some(k) = shape.iter().position(|size| matches!(size, Dim::Known(-1))) {
            shape[k] = Dim::Known(1);
            shape[k] = match (num_elements, product(&shape)) {
                (Dim::Known(num_elements), Dim::Known(other_product))
                    if other_product > 0 && num_elements % other_product == 0 =>
                {
                    Dim::Known(num_elements / other_product)
                }
                _ => Dim::Unknown,
            };
        }
        match (num_elements, product(&shape)) {
            (Dim::Known(a), Dim::Known(b)) if a != b => Err(format!("cannot reshape {a} zeros to {target_shape:?}")),
            _ => Ok(Zeros::of_shape(Some(shape))),
        }
    }

    /// Removes the axes with the indices `axes`, which must have size 1. Without `axes`, removes all axes of size 1.
    pub(crate) fn squeeze(&self, axes: Option<&[usize]>) -> Result<Self, String> {
        let Some(shape) = &self.shape else { return Ok(Zeros::of_unknown_shape()) };
        let Some(axes) = axes else {
            let all_sizes_known = shape.iter().all(|size| size.as_known().is_some());
            let non_unit_sizes = || shape.iter().copied().filter(|size| !size.is_one()).collect();
            return Ok(Zeros::of_shape(all_sizes_known.then(non_unit_sizes)));
        };
        if let Some(k) = axes.iter().find(|&&k| shape[k].as_known().is_some_and(|size| size != 1)) {
            return Err(format!("axis {k} of zeros of shape {shape:?} does not have size 1"));
        }
        let remaining_sizes = shape.iter().enumerate().filter(|(k, _)| !axes.contains(k));
        Ok(Zeros::of_shape(Some(remaining_sizes.map(|(_, size)| *size).collect())))
    }

    /// Slices one axis by Python's `[start:end]`.
    pub(crate) fn slice(&self, axis: usize, start: i64, end: i64) -> Self {
        let mut shape = self.shape.clone();
        if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
            let len = size.as_known().and_then(|size| usize::try_from(size).ok());
            *size = len.map_or(Dim::Unknown, |len| Dim::Known(slice_range(start, end, len).len() as i64));
        }
        Zeros::of_shape(shape)
    }

    /// Concatenates two zero tensors along an axis.
    pub(crate) fn concat(&self, other: &Self, axis: usize) -> Result<Self, String> {
        let (Some(a), Some(b)) = (&self.shape, &other.shape) else { return Ok(Zeros::of_unknown_shape()) };
        let mismatch_error = || Err(format!("cannot concatenate zeros of shapes {a:?} and {b:?} along axis {axis}"));
        if a.len() != b.len() || axis >= a.len() {
            return mismatch_error();
        }
        let mut shape = a.clone();
        for (k, (a, b)) in shape.iter_mut().zip(b).enumerate() {
            *a = match (*a, *b) {
                (Dim::Known(m), Dim::Known(n)) if k == axis => m.checked_add(n).map_or(Dim::Unknown, Dim::Known),
                _ if k == axis => Dim::Unknown,
                (Dim::Known(m), Dim::Known(n)) if m != n => return mismatch_error(),
                (size @ Dim::Known(_), _) | (_, size) => size,
            };
        }
        Ok(Zeros::of_shape(Some(shape)))
    }
}
