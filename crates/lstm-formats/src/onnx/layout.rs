//! Layouts of arrays in a graph: which axes are time steps and sequences, and what the other elements are.

use ndarray::{ArrayD, IxDyn};

use super::sizes::{Size, TRIALS};

/// A factor of the size of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Factor {
    /// A fixed number of elements.
    Fixed(usize),
    Batch,
    Steps,
}

/// The layout of an array whose elements are known by sequence, time step and a fixed element, such as a feature.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Layout<E> {
    /// The factors of each axis, the slowest varying first.
    axes: Vec<Vec<Factor>>,
    /// What each combination of the fixed factors is, in row-major order.
    pub(crate) elements: Vec<E>,
    /// Whether time steps are in reverse order.
    reversed: bool,
}

/// Where an element of an array comes from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Origin<E> {
    pub(crate) element: E,
    pub(crate) batch: usize,
    pub(crate) step: usize,
}

impl<E: Copy + PartialEq> Layout<E> {
    /// Finds the layout of arrays with the same layout, one for each trial, from where their elements come.
    pub(crate) fn find(arrays: &[ArrayD<Origin<E>>; TRIALS], batch: Size, steps: Size) -> Option<Self> {
        let array = &arrays[0];
        let first = *array.first()?;
        let reversed = steps[0] > 1 && first.step + 1 == steps[0] && array.iter().any(|origin| origin.step == 0);
        let mut axes = Vec::new();
        for axis in 0..array.ndim() {
            let at = |j: usize| {
                let mut index = vec![0; array.ndim()];
                index[axis] = j;
                array[IxDyn(&index)]
            };
            let n = array.shape()[axis];
            let batch_stride = (1..n).find(|&j| at(j).batch != first.batch);
            let step_stride = (1..n).find(|&j| at(j).step != first.step);
            let mut parts: Vec<(usize, usize, Factor)> = Vec::new();
            parts.extend(batch_stride.map(|stride| (stride, batch[0], Factor::Batch)));
            parts.extend(step_stride.map(|stride| (stride, steps[0], Factor::Steps)));
            parts.sort_by_key(|&(stride, ..)| std::cmp::Reverse(stride));
            let (mut factors, mut rest) = (Vec::new(), n);
            for (stride, size, factor) in parts {
                factors.extend([Factor::Fixed(rest.checked_div(stride.checked_mul(size)?)?), factor]);
                rest = stride;
            }
            factors.push(Factor::Fixed(rest));
            factors.retain(|&factor| factor != Factor::Fixed(1));
            axes.push(factors);
        }
        let fixed: usize = axes.iter().flatten().map(|f| if let Factor::Fixed(n) = f { *n } else { 1 }).product();
        if fixed > array.len() {
            return None;
        }
        let mut layout = Layout { axes, elements: vec![first.element; fixed], reversed };
        for (trial, array) in arrays.iter().enumerate() {
            let sizes = (batch[trial], steps[trial]);
            if layout.shape(sizes) != array.shape() {
                return None;
            }
            if trial == 0 {
                let fixed: Vec<usize> = layout.walk(sizes).map(|(fixed, ..)| fixed).collect();
                for (origin, fixed) in array.iter().zip(fixed) {
                    layout.elements[fixed] = origin.element;
                }
            }
            let has_steps = layout.axes.iter().flatten().any(|&factor| factor == Factor::Steps);
            let has_batch = layout.axes.iter().flatten().any(|&factor| factor == Factor::Batch);
            let matches = |(origin, (fixed, b, t)): (&Origin<E>, (usize, usize, usize))| {
                layout.elements[fixed] == origin.element
                    // A single sequence of a batch must be the first one, which is all that a run without a batch has.
                    && origin.batch == if has_batch { b } else { 0 }
                    && (!has_steps || origin.step == t)
            };
            if !array.iter().zip(layout.walk(sizes)).all(matches) {
                return None;
            }
        }
        Some(layout)
    }

    /// The shape of the array for a number of sequences and of time steps.
    pub(crate) fn shape(&self, (batch, steps): (usize, usize)) -> Vec<usize> {
        let size = |factor: &Factor| match factor {
            Factor::Fixed(n) => *n,
            Factor::Batch => batch,
            Factor::Steps => steps,
        };
        self.axes.iter().map(|factors| factors.iter().map(size).product()).collect()
    }

    /// Whether the time steps are in reverse order.
    pub(crate) fn is_reversed(&self) -> bool {
        self.reversed
    }

    /// Whether an axis contains the time steps.
    pub(crate) fn has_steps(&self) -> bool {
        self.axes.iter().flatten().any(|&factor| factor == Factor::Steps)
    }

    /// The numbers of sequences and of time steps that follow from the sizes of axes that are known.
    pub(crate) fn fixed_sizes(&self, shape: &[Option<usize>]) -> (Option<usize>, Option<usize>) {
        let size_of = |wanted: Factor| {
            let axis = self.axes.iter().position(|factors| factors.contains(&wanted))?;
            let others = self.axes[axis].iter().filter(|&&factor| factor != wanted);
            let fixed = others.map(|factor| if let Factor::Fixed(n) = factor { Some(*n) } else { None });
            (*shape.get(axis)?)?.checked_div(fixed.product::<Option<usize>>()?)
        };
        (size_of(Factor::Batch), size_of(Factor::Steps))
    }

    /// The numbers of sequences and time steps of an array of this shape; 1 if the layout has no such axis. `None` if
    /// the shape does not fit.
    pub(crate) fn sizes(&self, shape: &[usize]) -> Option<(usize, usize)> {
        if shape.len() != self.axes.len() {
            return None;
        }
        let (mut batch, mut steps) = (1, 1);
        for (factors, &n) in self.axes.iter().zip(shape) {
            let fixed: usize = factors.iter().map(|f| if let Factor::Fixed(n) = f { *n } else { 1 }).product();
            match (factors.contains(&Factor::Batch), factors.contains(&Factor::Steps)) {
                (true, false) => batch = n.checked_div(fixed)?,
                (false, true) => steps = n.checked_div(fixed)?,
                // Which part of the axis is which can't be told.
                (true, true) => return None,
                (false, false) => {}
            }
        }
        (self.shape((batch, steps)) == shape).then_some((batch, steps))
    }

    /// The fixed element, sequence and time step of each element of an array, in row-major order.
    pub(crate) fn walk(&self, (batch, steps): (usize, usize)) -> impl Iterator<Item = (usize, usize, usize)> {
        let factors: Vec<Factor> = self.axes.iter().flatten().copied().collect();
        let size = move |factor: &Factor| match factor {
            Factor::Fixed(n) => *n,
            Factor::Batch => batch,
            Factor::Steps => steps,
        };
        let len: usize = factors.iter().map(size).product();
        let reversed = self.reversed;
        let mut digits = vec![0; factors.len()];
        (0..len).map(move |_| {
            let (mut fixed, mut b, mut t) = (0, 0, 0);
            for (factor, &digit) in factors.iter().zip(&digits) {
                match factor {
                    Factor::Fixed(n) => fixed = fixed * n + digit,
                    Factor::Batch => b = digit,
                    Factor::Steps => t = if reversed { steps - 1 - digit } else { digit },
                }
            }
            for (digit, factor) in digits.iter_mut().zip(&factors).rev() {
                *digit += 1;
                if *digit < size(factor) {
                    break;
                }
                *digit = 0;
            }
            (fixed, b, t)
        })
    }
}

impl<E> Layout<E> {
    /// The same layout with other elements.
    pub(crate) fn with_elements<F>(self, elements: Vec<F>) -> Layout<F> {
        Layout { axes: self.axes, elements, reversed: self.reversed }
    }
}
