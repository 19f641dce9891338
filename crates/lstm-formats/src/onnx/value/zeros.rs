//! Zero tensors with symbolic shapes. Exporters build zero initial states of the batch size of the input.

use super::dim::{Dim, MAX_RANK, slice_range};
use crate::onnx::proto::Tensor;

/// A float tensor whose elements are all +0.
#[derive(Clone, Debug)]
pub(crate) struct Zeros<'a> {
    /// The constant in the file; `None` if nodes compute the tensor.
    pub(crate) tensor: Option<&'a Tensor>,
    /// Size of each axis; `None` if the rank is unknown.
    pub(crate) shape: Option<Vec<Dim<'a>>>,
}

impl<'a> Zeros<'a> {
    /// Zeros that nodes compute. A shape of more than `MAX_RANK` axes counts as unknown.
    pub(crate) fn computed(shape: Option<Vec<Dim<'a>>>) -> Self {
        Zeros { tensor: None, shape: shape.filter(|shape| shape.len() <= MAX_RANK) }
    }

    /// Zeros of unknown shape and rank.
    pub(crate) fn unknown() -> Self {
        Zeros::computed(None)
    }

    /// Number of axes, if known.
    pub(crate) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Broadcasts to the shape `target`, as the operator `Expand` does.
    pub(crate) fn expand(&self, target: &[Dim<'a>]) -> Result<Self, String> {
        let Some(shape) = &self.shape else { return Ok(Zeros::unknown()) };
        let rank = shape.len().max(target.len());
        // Shapes are aligned at their last axes.
        let aligned = |sizes: &[Dim<'a>], k: usize| match (k + sizes.len()).checked_sub(rank) {
            Some(k) => sizes[k],
            None => Dim::Known(1),
        };
        let broadcast = |k| match (aligned(shape, k), aligned(target, k)) {
            (Dim::Known(a), Dim::Known(b)) if a != b && a != 1 && b != 1 => {
                Err(format!("cannot expand zeros of shape {shape:?} to {target:?}"))
            }
            (Dim::Known(1), size) | (size, Dim::Known(1)) => Ok(size),
            // The other size must be 1 or equal.
            (size @ Dim::Known(_), _) | (_, size @ Dim::Known(_)) => Ok(size),
            (a, b) => Ok(if a.equals(b) { a } else { Dim::Unknown }),
        };
        Ok(Zeros::computed(Some((0..rank).map(broadcast).collect::<Result<_, _>>()?)))
    }

    /// Reshapes to `target`, in which -1 is inferred. With `zero_copies_size`, 0 copies the old size.
    pub(crate) fn reshape(&self, target: &[Dim<'a>], zero_copies_size: bool) -> Result<Self, String> {
        let old_size = |k: usize| self.shape.as_ref().and_then(|old| old.get(k)).copied().unwrap_or(Dim::Unknown);
        let new_size = |(k, size): (usize, &Dim<'a>)| match size {
            Dim::Known(0) if zero_copies_size => old_size(k),
            size => *size,
        };
        let mut shape: Vec<_> = target.iter().enumerate().map(new_size).collect();
        let product = |sizes: &[Dim<'a>]| sizes.iter().fold(Dim::Known(1), |n, &size| n.multiply(size));
        let total = self.shape.as_ref().map_or(Dim::Unknown, |old| product(old));
        if let Some(k) = shape.iter().position(|size| matches!(size, Dim::Known(-1))) {
            shape[k] = Dim::Known(1);
            shape[k] = match (total, product(&shape)) {
                (Dim::Known(total), Dim::Known(rest)) if rest > 0 && total % rest == 0 => Dim::Known(total / rest),
                _ => Dim::Unknown,
            };
        }
        match (total, product(&shape)) {
            (Dim::Known(a), Dim::Known(b)) if a != b => Err(format!("cannot reshape {a} zeros to {target:?}")),
            _ => Ok(Zeros::computed(Some(shape))),
        }
    }

    /// Removes the given axes, which must have size 1; without `axes`, all axes of size 1.
    pub(crate) fn squeeze(&self, axes: Option<&[usize]>) -> Result<Self, String> {
        let Some(shape) = &self.shape else { return Ok(Zeros::unknown()) };
        let Some(axes) = axes else {
            let all_known = shape.iter().all(|size| size.known().is_some());
            let kept = || shape.iter().copied().filter(|size| !size.is_one()).collect();
            return Ok(Zeros::computed(all_known.then(kept)));
        };
        if let Some(k) = axes.iter().find(|&&k| shape[k].known().is_some_and(|size| size != 1)) {
            return Err(format!("axis {k} of zeros of shape {shape:?} does not have size 1"));
        }
        let kept = shape.iter().enumerate().filter(|(k, _)| !axes.contains(k));
        Ok(Zeros::computed(Some(kept.map(|(_, size)| *size).collect())))
    }

    /// Slices one axis by Python's `[start:end]`.
    pub(crate) fn slice(&self, axis: usize, start: i64, end: i64) -> Self {
        let mut shape = self.shape.clone();
        if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
            let len = size.known().and_then(|size| usize::try_from(size).ok());
            *size = len.map_or(Dim::Unknown, |len| Dim::Known(slice_range(start, end, len).len() as i64));
        }
        Zeros::computed(shape)
    }

    /// Concatenates two zero tensors along an axis.
    pub(crate) fn concat(&self, other: &Self, axis: usize) -> Result<Self, String> {
        let (Some(a), Some(b)) = (&self.shape, &other.shape) else { return Ok(Zeros::unknown()) };
        let mismatch = || Err(format!("cannot concatenate zeros of shapes {a:?} and {b:?} along axis {axis}"));
        if a.len() != b.len() || axis >= a.len() {
            return mismatch();
        }
        let mut shape = a.clone();
        for (k, (a, b)) in shape.iter_mut().zip(b).enumerate() {
            *a = match (*a, *b) {
                (Dim::Known(m), Dim::Known(n)) if k == axis => m.checked_add(n).map_or(Dim::Unknown, Dim::Known),
                _ if k == axis => Dim::Unknown,
                (Dim::Known(m), Dim::Known(n)) if m != n => return mismatch(),
                (size @ Dim::Known(_), _) | (_, size) => size,
            };
        }
        Ok(Zeros::computed(Some(shape)))
    }
}
