//! Views of graph inputs and of LSTM outputs, in which the position of every axis is tracked.
//!
//! Exporters surround LSTMs with nodes that only move axes and compute sizes. Tracking every axis through these nodes
//! shows whether the result is the plain sequence or state that the next LSTM node or the caller expects.

use super::dim::{Dim, OPEN_SLICE_END, slice_range};
use crate::onnx::proto::{BFLOAT16, DOUBLE, FLOAT, FLOAT16, type_name};

/// The tensor that a [`TensorView`] refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source<'a> {
    /// A graph input, or an output of an ignored node, by name.
    Input(&'a str),
    /// The output sequence of a layer, with axes steps, directions, batch and features.
    Sequence(LayerOutputs),
    /// Rows `start..end` of the final `h` of a [`HostState`](lstm_core::HostState), with axes rows, batch and features.
    FinalH(usize, usize),
    /// Rows `start..end` of the final `c` of a [`HostState`](lstm_core::HostState), with axes rows, batch and features.
    FinalC(usize, usize),
}

/// What is known about an output sequence: the layer that computes it, its directions and its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LayerOutputs {
    /// Index of the layer in the stack.
    pub(crate) layer: usize,
    /// For each direction, whether it runs from the last step to the first.
    pub(crate) reverse_flags: &'static [bool],
    /// Whether all sequences are as long as the input.
    pub(crate) full_length: bool,
}

/// The result of operators that move, merge, slice or remove axes of a source tensor.
#[derive(Clone, Debug)]
pub(crate) struct TensorView<'a> {
    /// The tensor that the view refers to.
    pub(crate) source: Source<'a>,
    /// Size of each axis of the source.
    pub(crate) source_dims: Vec<Dim<'a>>,
    /// For each axis of the view, the indices of the source axes that it contains: several if axes were merged, the
    /// slowest varying first. An axis with an empty list has size 1. Source axes of size 1 may be in no list.
    pub(crate) axes: Vec<Vec<usize>>,
    /// For a [`Source::Input`], the selected range of the first source axis; `None` if the whole axis is selected.
    pub(crate) row_range: Option<(i64, i64)>,
    /// For a [`Source::Sequence`], the selected time step, negative if counted from the end; `None` for all steps.
    pub(crate) step: Option<i64>,
    /// For a [`Source::Sequence`], the selected direction, 0 (forward) or 1 (reverse); `None` for all directions.
    pub(crate) direction: Option<usize>,
    /// ONNX element type of a graph input; `None` for values that nodes compute.
    pub(crate) elem_type: Option<i32>,
    /// Probability of the `Dropout` node that was applied, if any. Dropout is the identity in inference.
    pub(crate) dropout: Option<f32>,
}

impl<'a> TensorView<'a> {
    /// Creates a view of the whole source, with its axes unchanged.
    pub(crate) fn new(source: Source<'a>, source_dims: Vec<Dim<'a>>) -> Self {
        let axes = (0..source_dims.len()).map(|k| vec![k]).collect();
        TensorView {
            source,
            source_dims,
            axes,
            row_range: None,
            step: None,
            direction: None,
            elem_type: None,
            dropout: None,
        }
    }

    /// Returns the size of an axis of the view that merges the source axes with the indices `axis`.
    pub(crate) fn dim(&self, axis: &[usize]) -> Dim<'a> {
        axis.iter().fold(Dim::Known(1), |dim, &k| dim.multiply(self.source_dims[k]))
    }

    /// Returns the sizes of the axes of the view.
    pub(crate) fn shape(&self) -> Vec<Dim<'a>> {
        self.axes.iter().map(|axis| self.dim(axis)).collect()
    }

    /// Describes the view in words for error messages.
    pub(crate) fn describe(&self) -> String {
        let source = match self.source {
            Source::Input(name) => format!("`{name}`{}", self.type_suffix()),
            Source::Sequence(outputs) => format!("the outputs of layer {}", outputs.layer),
            Source::FinalH(start, end) => format!("rows {start}..{end} of the final h"),
            Source::FinalC(start, end) => format!("rows {start}..{end} of the final c"),
        };
        let direction = self.direction.map(|d| format!(", direction {d} only")).unwrap_or_default();
        let step = self.step.map(|step| format!(", step {step} only")).unwrap_or_default();
        format!("{source}{direction}{step} with axes {:?}", self.axes)
    }

    /// Whether the elements are floats.
    pub(crate) fn is_float(&self) -> bool {
        self.elem_type.is_none_or(|elem_type| [FLOAT, FLOAT16, DOUBLE, BFLOAT16].contains(&elem_type))
    }

    /// Returns ` of TYPE`, for error messages, if the elements are not floats; otherwise an empty string.
    pub(super) fn type_suffix(&self) -> String {
        let non_float_type = self.elem_type.filter(|_| !self.is_float());
        non_float_type.map(|elem_type| format!(" of {}", type_name(elem_type))).unwrap_or_default()
    }

    /// Whether each axis of the view merges exactly the source axes that `expected` lists for it. Source axes of size 1
    /// do not count.
    pub(crate) fn has_axes(&self, expected: &[&[usize]]) -> bool {
        self.axes.len() == expected.len()
            && self
                .axes
                .iter()
                .zip(expected)
                .all(|(axis, expected)| self.non_unit_axes(axis) == self.non_unit_axes(expected))
    }

    /// Returns those of the source axes `axis` that may have a size other than 1.
    fn non_unit_axes(&self, axis: &[usize]) -> Vec<usize> {
        axis.iter().copied().filter(|&k| !self.source_dims[k].is_one()).collect()
    }

    /// Reshapes to the sizes `target_shape`, as the operator `Reshape` does. Returns `None` unless the reshape only
    /// merges axes, or adds or removes axes of size 1. With `zero_copies_size`, a size of 0 copies the size of the same
    /// axis of the view.
    pub(crate) fn reshape(&self, target_shape: &[Dim<'a>], zero_copies_size: bool) -> Option<Self> {
        let mut axes = Vec::new();
        // With two inferred sizes, the result would be ambiguous.
        let num_inferred = target_shape.iter().filter(|size| matches!(size, Dim::Known(-1))).count();
        let is_supported = num_inferred <= 1 && self.merge_axes(0, target_shape, zero_copies_size, &mut axes);
        is_supported.then(|| TensorView { axes, ..self.clone() })
    }

    /// Divides the axes with indices from `first_axis` into consecutive groups, so that merging each group gives the
    /// sizes `target_shape`. Appends the source axes of each group to `merged_axes`. Returns whether such a division
    /// exists.
    fn merge_axes(
        &self,
        first_axis: usize,
        target_shape: &[Dim<'a>],
        zero_copies_size: bool,
        merged_axes: &mut Vec<Vec<usize>>,
    ) -> bool {
        let Some((&size, other_sizes)) = target_shape.split_first() else {
            return first_axis == self.axes.len();
        };
        for end_axis in first_axis..=self.axes.len() {
            let source_axes = self.axes[first_axis..end_axis].concat();
            let size_matches = match size {
                Dim::Known(-1) => true,
                Dim::Known(0) if zero_copies_size => end_axis == first_axis + 1 && first_axis == merged_axes.len(),
                size => self.dim(&source_axes).equals(size),
            };
            if !size_matches {
                continue;
            }
            merged_axes.push(source_axes);
            if self.merge_axes(end_axis, other_sizes, zero_copies_size, merged_axes) {
                return true;
            }
            merged_axes.pop();
        }
        false
    }

    /// Slices one axis by Python's `[start:end]`.
    ///
    /// Supported are the whole axis, rows of an input or of a final state, one step, and one direction.
    pub(crate) fn slice(&self, axis: usize, start: i64, end: i64) -> Result<Self, String> {
        let source_axes = self.axes.get(axis).ok_or_else(|| format!("there is no axis {axis}"))?;
        let size = self.dim(source_axes).as_known().and_then(|size| usize::try_from(size).ok());
        let range = size.map(|size| slice_range(start, end, size));
        if range == size.map(|size| 0..size) && range.is_some() || (start, size) == (0, None) && end >= OPEN_SLICE_END {
            return Ok(self.clone());
        }
        let unsupported_message =
            || format!("slice [{start}:{end}] of axis {axis} of {} is not supported", self.describe());
        let non_unit_axes = self.non_unit_axes(source_axes);
        let mut out = self.clone();
        match self.source {
            // The initial states of some layers, from an input with those of all layers.
            Source::Input(_) if *source_axes == [0] && self.row_range.is_none() => {
                let size = size.map_or(i64::MAX, |size| size as i64);
                let end = if end < 0 { end.saturating_add(size) } else { end.min(size) };
                if !(0..end).contains(&start) {
                    return Err(format!("expected a non-empty range of the {size} rows, got {start}..{end}"));
                }
                out.row_range = Some((start, end));
                out.source_dims[0] = Dim::Known(end - start);
            }
            Source::FinalH(from, _) | Source::FinalC(from, _) if non_unit_axes == [0] => {
                let range = range.filter(|range| !range.is_empty()).ok_or_else(unsupported_message)?;
                let rows = (from + range.start, from + range.end);
                out.source = match self.source {
                    Source::FinalH(..) => Source::FinalH(rows.0, rows.1),
                    _ => Source::FinalC(rows.0, rows.1),
                };
                out.source_dims[0] = Dim::Known(range.len() as i64);
            }
            Source::Sequence(_) if *source_axes == [0] => {
                out.step = Some(selected_step(start, end, size).ok_or_else(unsupported_message)?);
                out.source_dims[0] = Dim::Known(1);
            }
            // One direction, from the axis of directions or from directions merged with features.
            Source::Sequence(_) if non_unit_axes == [1] || non_unit_axes == [1, 3] => {
                let direction_width =
                    non_unit_axes.iter().skip(1).fold(Dim::Known(1), |n, &k| n.multiply(self.source_dims[k]));
                let (Some(range), Dim::Known(direction_width)) = (range, direction_width) else {
                    return Err(unsupported_message());
                };
                if range.len() as i64 != direction_width || range.start as i64 % direction_width != 0 {
                    return Err(unsupported_message());
                }
                out.direction = Some((range.start as i64 / direction_width) as usize);
                out.source_dims[1] = Dim::Known(1);
            }
            _ => return Err(unsupported_message()),
        }
        Ok(out.last_step_as_final_h())
    }

    /// Replaces a view of the step that a direction computes last by a view of the final `h` of that direction: they
    /// are equal if no sequence is shorter than the input. Other views stay as they are.
    fn last_step_as_final_h(self) -> Self {
        let (Source::Sequence(outputs), Some(step)) = (self.source, self.step) else { return self };
        let only_direction = (outputs.reverse_flags.len() == 1).then_some(0);
        let Some(direction) = self.direction.or(only_direction).filter(|_| outputs.full_length) else { return self };
        if step != if outputs.reverse_flags[direction] { 0 } else { -1 } {
            return self;
        }
        let row = outputs.layer * outputs.reverse_flags.len() + direction;
        // Source axes were steps, directions, batch, features, and become rows, batch, features.
        let axis = |axis: &Vec<usize>| axis.iter().filter(|&&k| k != 0).map(|k| k - 1).collect();
        let axes = self.axes.iter().map(axis).collect();
        let source_dims = self.source_dims[1..].to_vec();
        TensorView { source: Source::FinalH(row, row + 1), source_dims, axes, step: None, direction: None, ..self }
    }

    /// Concatenates two views along the axis `concat_axis`: final states of consecutive rows, or the sequences
    /// of both directions of one layer.
    pub(crate) fn concat(&self, other: &Self, concat_axis: usize) -> Result<Self, String> {
        let (source, source_axis) = match (self.source, other.source) {
            (Source::FinalH(start, m), Source::FinalH(n, end)) if m == n => (Source::FinalH(start, end), 0),
            (Source::FinalC(start, m), Source::FinalC(n, end)) if m == n => (Source::FinalC(start, end), 0),
            (Source::Sequence(x), Source::Sequence(y))
                if x == y && (self.direction, other.direction) == (Some(0), Some(1)) && self.step == other.step =>
            {
                (self.source, 1)
            }
            _ => {
                let (a, b) = (self.describe(), other.describe());
                let expected = "the final states of consecutive layers, or the outputs of both directions of one layer";
                return Err(format!("expected {expected}, got {a} and then {b}"));
            }
        };
        // The concatenated source axis must be the slowest of axis `concat_axis`. If its size is 1, its position is
        // irrelevant.
        let other_axes = |view: &Self| {
            let varies_slowest = view.axes.get(concat_axis).and_then(|axis| axis.first()) == Some(&source_axis);
            let remove_source_axis =
                |axis: &Vec<usize>| axis.iter().copied().filter(|&k| k != source_axis).collect::<Vec<_>>();
            (varies_slowest || view.source_dims[source_axis].is_one())
                .then(|| view.axes.iter().map(remove_source_axis).collect::<Vec<_>>())
        };
        let sizes = (self.source_dims[source_axis], other.source_dims[source_axis]);
        let (Some(mut axes), (Dim::Known(m), Dim::Known(n))) = (other_axes(self), sizes) else {
            return Err(format!("concatenation along axis {concat_axis} of {} is not supported", self.describe()));
        };
        if other_axes(other).as_ref() != Some(&axes) || self.dropout != other.dropout || concat_axis >= axes.len() {
            let (a, b) = (self.describe(), other.describe());
            return Err(format!("expected parts with the same layout, got {a} and {b}"));
        }
        axes[concat_axis].insert(0, source_axis);
        let mut source_dims = self.source_dims.clone();
        source_dims[source_axis] = Dim::Known(m.saturating_add(n));
        Ok(TensorView { source, source_dims, axes, direction: None, ..self.clone() })
    }
}

/// Returns the step that `[start:end]` selects from `size` steps, if it selects exactly one. The last step is -1; a
/// step can also be counted from the end if `size` is unknown.
fn selected_step(start: i64, end: i64, size: Option<usize>) -> Option<i64> {
    match size {
        Some(size) => {
            let range = slice_range(start, end, size);
            (range.len() == 1).then_some(if range.end == size { -1 } else { range.start as i64 })
        }
        None if start == -1 && end >= OPEN_SLICE_END => Some(-1),
        None => (start != -1 && start.checked_add(1) == Some(end)).then_some(start),
    }
}
