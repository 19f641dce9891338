//! Zeros and what is known of their shape: exporters compute initial states of zeros for whatever batch comes.

use super::{
    proto::Tensor,
    select,
    value::{Dim, MAX_RANK},
};

/// Floats that are all +0.
#[derive(Clone, Debug)]
pub(super) struct Zeros<'a> {
    /// The constant, if it is one.
    pub(super) tensor: Option<&'a Tensor>,
    /// Its sizes; `None` if the graph does not even tell how many.
    pub(super) shape: Option<Vec<Dim<'a>>>,
}

impl<'a> Zeros<'a> {
    /// Zeros that a node makes.
    pub(super) fn made(shape: Option<Vec<Dim<'a>>>) -> Self {
        Zeros { tensor: None, shape: shape.filter(|shape| shape.len() <= MAX_RANK) }
    }

    pub(super) fn rank(&self) -> Option<usize> {
        self.shape.as_ref().map(Vec::len)
    }

    /// Repeated along axes of size 1 until they have these sizes.
    pub(super) fn expand(&self, target: &[Dim<'a>]) -> Result<Self, String> {
        let Some(own) = &self.shape else { return Ok(Zeros::made(None)) };
        let rank = own.len().max(target.len());
        let at = |sizes: &[Dim<'a>], k: usize| match (k + sizes.len()).checked_sub(rank) {
            Some(k) => sizes[k],
            None => Dim::Known(1),
        };
        let both = |k| match (at(own, k), at(target, k)) {
            (Dim::Known(a), Dim::Known(b)) if a != b && a != 1 && b != 1 => {
                Err(format!("zeros of {own:?} don't expand to {target:?}"))
            }
            (Dim::Known(1), size) | (size, Dim::Known(1)) => Ok(size),
            // The other is 1 or the same.
            (size @ Dim::Known(_), _) | (_, size @ Dim::Known(_)) => Ok(size),
            (a, b) => Ok(if a.same(b) { a } else { Dim::Unknown }),
        };
        Ok(Zeros::made(Some((0..rank).map(both).collect::<Result<_, _>>()?)))
    }

    /// In these sizes, of which -1 is what is left, and 0 may be the old size.
    pub(super) fn reshape(&self, target: &[Dim<'a>], zero_copies: bool) -> Result<Self, String> {
        let old = |k: usize| self.shape.as_ref().and_then(|own| own.get(k)).copied().unwrap_or(Dim::Unknown);
        let size = |(k, size): (usize, &Dim<'a>)| match size {
            Dim::Known(0) if zero_copies => old(k),
            size => *size,
        };
        let mut shape: Vec<_> = target.iter().enumerate().map(size).collect();
        let count = |sizes: &[Dim<'a>]| sizes.iter().fold(Dim::Known(1), |n, &size| n.times(size));
        let all = self.shape.as_ref().map_or(Dim::Unknown, |own| count(own));
        if let Some(k) = shape.iter().position(|size| matches!(size, Dim::Known(-1))) {
            shape[k] = Dim::Known(1);
            shape[k] = match (all, count(&shape)) {
                (Dim::Known(all), Dim::Known(rest)) if rest > 0 && all % rest == 0 => Dim::Known(all / rest),
                _ => Dim::Unknown,
            };
        }
        match (all, count(&shape)) {
            (Dim::Known(a), Dim::Known(b)) if a != b => Err(format!("{a} zeros don't become {target:?}")),
            _ => Ok(Zeros::made(Some(shape))),
        }
    }

    /// Without these axes, or without those of size 1.
    pub(super) fn squeeze(&self, axes: Option<&[usize]>) -> Result<Self, String> {
        let Some(own) = &self.shape else { return Ok(Zeros::made(None)) };
        let Some(axes) = axes else {
            let known = own.iter().all(|size| matches!(size, Dim::Known(_)));
            return Ok(Zeros::made(known.then(|| own.iter().copied().filter(|size| !size.is_one()).collect())));
        };
        if let Some(k) = axes.iter().find(|&&k| matches!(own[k], Dim::Known(n) if n != 1)) {
            return Err(format!("axis {k} of zeros of {own:?} is not of size 1"));
        }
        let kept = own.iter().enumerate().filter(|(k, _)| !axes.contains(k));
        Ok(Zeros::made(Some(kept.map(|(_, size)| *size).collect())))
    }

    /// The part `[start:end]` of an axis.
    pub(super) fn cut(&self, axis: usize, start: i64, end: i64) -> Self {
        let mut shape = self.shape.clone();
        if let Some(size) = shape.as_mut().and_then(|shape| shape.get_mut(axis)) {
            *size = match *size {
                Dim::Known(n) => {
                    usize::try_from(n).map_or(Dim::Unknown, |n| Dim::Known(select::range(start, end, n).len() as i64))
                }
                _ => Dim::Unknown,
            };
        }
        Zeros::made(shape)
    }

    /// One after the other along an axis.
    pub(super) fn join(&self, other: &Self, axis: usize) -> Result<Self, String> {
        let (Some(a), Some(b)) = (&self.shape, &other.shape) else { return Ok(Zeros::made(None)) };
        let fail = || Err(format!("zeros of {a:?} and of {b:?} don't join along axis {axis}"));
        if a.len() != b.len() || axis >= a.len() {
            return fail();
        }
        let mut shape = a.clone();
        for (k, (a, b)) in shape.iter_mut().zip(b).enumerate() {
            *a = match (*a, *b) {
                (Dim::Known(m), Dim::Known(n)) if k == axis => m.checked_add(n).map_or(Dim::Unknown, Dim::Known),
                _ if k == axis => Dim::Unknown,
                (Dim::Known(m), Dim::Known(n)) if m != n => return fail(),
                (size @ Dim::Known(_), _) | (_, size) => size,
            };
        }
        Ok(Zeros::made(Some(shape)))
    }
}
