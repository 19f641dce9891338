//! Inference of a model's configuration from the names and shapes of its tensors: sizes, layers, direction, biases,
//! projection, cell.
//!
//! Each size follows from the shapes of several tensors. If these disagree, the most common value is used, so that an
//! error names the tensor whose shape is wrong.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::names::{FileLayout, ParsedName, parse_cell_name, parse_pytorch_name};
use crate::{
    config::{Bias, CellKind, Direction, LstmConfig, Param},
    error::{Error, Result},
};

/// Text of the field `expected` of [`Error::MissingTensor`] if no tensor with the prefix belongs to an LSTM.
pub(crate) const EXPECTED_LSTM: &str = "an LSTM with this prefix";

/// The shapes of the tensors in a file whose names start with a given prefix.
pub(crate) struct TensorShapes<'a> {
    /// The prefix with which the names start.
    pub(crate) prefix: &'a str,
    /// Shape by name without the prefix.
    pub(crate) shapes: BTreeMap<&'a str, &'a [usize]>,
}

impl TensorShapes<'_> {
    /// Infers the configuration and the layout of the file. `cell` is the expected cell, if the caller knows it. The
    /// configuration is valid, but tensors may be missing, have wrong shapes or be unused. Time and memory depend on
    /// the number of tensors only, not on layer numbers in their names.
    pub(crate) fn infer(&self, cell: Option<CellKind>) -> Result<(LstmConfig, FileLayout)> {
        let parse_names = |parse: fn(&str) -> Option<ParsedName>| -> Vec<_> {
            self.shapes.iter().filter_map(|(name, shape)| Some((parse(name)?, *shape))).collect()
        };
        let (tensors, cell_tensors) = (parse_names(parse_pytorch_name), parse_names(parse_cell_name));
        let (config, layout) = if !tensors.is_empty() {
            (self.infer_pytorch(&tensors, cell, FileLayout::PyTorch)?, FileLayout::PyTorch)
        } else if !cell_tensors.is_empty() {
            (self.infer_pytorch(&cell_tensors, cell, FileLayout::PyTorchCell)?, FileLayout::PyTorchCell)
        } else if self.shapes.keys().any(|name| gate_name(name).is_some()) {
            let layout = FileLayout::NotebookPerGate(if self.has_gate('g') && !self.has_gate('c') { 'g' } else { 'c' });
            (self.infer_notebook_per_gate(cell)?, layout)
        } else if ["W", "U", "bias"].iter().any(|name| self.shapes.contains_key(name)) {
            (self.infer_notebook_packed(cell)?, FileLayout::NotebookPacked)
        } else {
            let name = format!("{}weight_ih_l0", self.prefix);
            return Err(Error::MissingTensor { name, expected: EXPECTED_LSTM.into() });
        };
        config.validate()?;
        Ok((config, layout))
    }

    /// Infers the configuration from PyTorch-style names. `layout` says how they are written.
    fn infer_pytorch(
        &self,
        tensors: &[(ParsedName, &[usize])],
        cell: Option<CellKind>,
        layout: FileLayout,
    ) -> Result<LstmConfig> {
        let any_name = |test: &dyn Fn(&ParsedName) -> bool| tensors.iter().any(|(p, _)| test(p));
        let has_param = |params: &[Param]| any_name(&|p| params.contains(&p.param));
        let has_projection = has_param(&[Param::WeightHr]);

        let possible_cells: &[CellKind] = if any_name(&|p| p.only_dense_peephole) {
            &[CellKind::PeepholeDense]
        } else if has_param(&[Param::PeepholeI, Param::PeepholeF, Param::PeepholeO]) {
            &[CellKind::PeepholeDiagonal]
        } else {
            &[CellKind::Fused, CellKind::Unfused]
        };
        let direction = match (any_name(&|p| !p.reverse), any_name(&|p| p.reverse)) {
            (true, true) => Direction::Bidirectional,
            (false, true) => Direction::Reverse,
            _ => Direction::Forward,
        };
        let bias = match (has_param(&[Param::BiasIh, Param::BiasHh]), has_param(&[Param::Bias])) {
            (true, _) => Bias::Two,
            (false, true) => Bias::One,
            _ => Bias::None,
        };
        // If layer numbers have a gap, the first missing layer is the last layer, so that the error names its tensor.
        let layers: BTreeSet<usize> = tensors.iter().map(|(p, _)| p.layer).collect();
        let num_consecutive_layers = (0..).zip(&layers).take_while(|(k, layer)| k == *layer).count();
        let num_layers = num_consecutive_layers + usize::from(num_consecutive_layers < layers.len());

        let input_weights = tensors.iter().filter(|(p, _)| p.layer == 0 && p.param == Param::WeightIh);
        let input_size = most_common(input_weights.filter_map(|(_, shape)| matrix_shape(shape)).map(|[_, cols]| cols));
        let hidden_size =
            most_common(tensors.iter().flat_map(|(p, shape)| hidden_sizes(p.param, shape, has_projection)));
        let axis_sizes = |param, axis: usize| {
            let tensors = tensors.iter().filter(move |(p, _)| p.param == param);
            tensors.filter_map(move |(_, shape)| Some(matrix_shape(shape)?[axis]))
        };
        let proj_size = most_common(axis_sizes(Param::WeightHr, 0).chain(axis_sizes(Param::WeightHh, 1)));

        let suffix = match (layout, direction) {
            (FileLayout::PyTorchCell, _) => "",
            (_, Direction::Reverse) => "_l0_reverse",
            _ => "_l0",
        };
        let first_name = format!("weight_ih{suffix}");
        let hidden = self.require_size(hidden_size, &first_name, "[4 * hidden, input]")?;
        let input = self.require_size(input_size, &first_name, &format!("[{}, input]", hidden.saturating_mul(4)))?;
        let config = LstmConfig::new(input, hidden).layers(num_layers).direction(direction);
        let config = config.cell(self.check_cell(possible_cells, cell)?).bias(bias);
        if !has_projection {
            return Ok(config);
        }
        Ok(config.proj_size(self.require_size(
            proj_size,
            &format!("weight_hr{suffix}"),
            &format!("[proj, {hidden}]"),
        )?))
    }

    /// Infers the configuration from names of [`TensorNames::Notebook`](super::names::TensorNames) with one matrix per
    /// gate.
    fn infer_notebook_per_gate(&self, cell: Option<CellKind>) -> Result<LstmConfig> {
        let cell = self.check_cell(&[CellKind::Unfused, CellKind::Fused], cell)?;
        let tensors_named_like =
            |letter| self.shapes.iter().filter(move |(name, _)| gate_name(name).is_some_and(|n| n.0 == letter));
        let matrix_shapes = |letter| tensors_named_like(letter).filter_map(|(_, shape)| matrix_shape(shape));
        let hidden = matrix_shapes('V').flatten().chain(matrix_shapes('U').map(|[_, cols]| cols));
        let bias = tensors_named_like('b').next().map_or(Bias::None, |_| Bias::One);
        let hidden = self.require_size(most_common(hidden), "U_i", "[input, hidden]")?;
        let input = most_common(matrix_shapes('U').map(|[rows, _]| rows));
        let input = self.require_size(input, "U_i", &format!("[input, {hidden}]"))?;
        Ok(LstmConfig::new(input, hidden).cell(cell).bias(bias))
    }

    /// Infers the configuration from the names `W`, `U` and `bias` of
    /// [`TensorNames::Notebook`](super::names::TensorNames). Each of these tensors holds all four gates.
    fn infer_notebook_packed(&self, cell: Option<CellKind>) -> Result<LstmConfig> {
        let possible_cells = [CellKind::Fused, CellKind::PeepholeDense, CellKind::Unfused];
        if cell.is_none() {
            let reason = format!(
                "`{0}W`, `{0}U`, `{0}bias` may be of the fused or the dense peephole cell; specify the cell",
                self.prefix
            );
            return Err(Error::config("cell", reason));
        }
        let shape_of = |name| self.shapes.get(name).copied();
        let (input, state) = (shape_of("W").and_then(matrix_shape), shape_of("U").and_then(matrix_shape));
        let bias = shape_of("bias").and_then(|shape| shape.first().copied());
        let packed_widths = [input.map(|[_, cols]| cols), state.map(|[_, cols]| cols), bias];
        let hidden =
            most_common(packed_widths.into_iter().flatten().filter_map(gate_rows).chain(state.map(|[rows, _]| rows)));
        let hidden = self.require_size(hidden, "W", "[input, 4 * hidden]")?;
        let input =
            self.require_size(input.map(|[rows, _]| rows), "W", &format!("[input, {}]", hidden.saturating_mul(4)))?;
        let bias = bias.map_or(Bias::None, |_| Bias::One);
        Ok(LstmConfig::new(input, hidden).cell(self.check_cell(&possible_cells, cell)?).bias(bias))
    }

    /// Whether any tensor has a name such as `U_i` of [`TensorNames::Notebook`](super::names::TensorNames) that ends
    /// with the letter `gate`.
    fn has_gate(&self, gate: char) -> bool {
        self.shapes.keys().any(|name| gate_name(name).is_some_and(|(_, x)| x == gate))
    }

    /// Returns `expected` if it is one of `possible_cells`, otherwise an error. If `expected` is `None`, returns the
    /// first of the possible cells.
    fn check_cell(&self, possible_cells: &[CellKind], expected: Option<CellKind>) -> Result<CellKind> {
        match expected {
            None => Ok(possible_cells[0]),
            Some(cell) if possible_cells.contains(&cell) => Ok(cell),
            Some(cell) => {
                let names = possible_cells.iter().map(|cell| cell.name()).collect::<Vec<_>>().join(" or ");
                let reason = format!("expected {cell}, got tensors of {names} with the prefix `{}`", self.prefix);
                Err(Error::config("cell", reason))
            }
        }
    }

    /// Returns `size`. If it is `None`, returns an error about the tensor `name`, which is missing or has a wrong
    /// shape.
    fn require_size(&self, size: Option<usize>, name: &str, expected: &str) -> Result<usize> {
        let full_name = format!("{}{name}", self.prefix);
        match (size, self.shapes.get(name)) {
            (Some(size), _) => Ok(size),
            (None, None) => Err(Error::MissingTensor { name: full_name, expected: format!("shape {expected}") }),
            (None, Some(shape)) => Err(Error::shape(format!("tensor `{full_name}`"), expected, format!("{shape:?}"))),
        }
    }
}

/// Splits a name such as `U_i` into the letter of the parameter (`U`, `V` or `b`) and the letter of the gate. The
/// letter of the candidate gate may be `c` or `g`.
fn gate_name(name: &str) -> Option<(char, char)> {
    match name.as_bytes() {
        &[letter @ (b'U' | b'V' | b'b'), b'_', gate @ (b'i' | b'f' | b'c' | b'g' | b'o')] => {
            Some((letter.into(), gate.into()))
        }
        _ => None,
    }
}

/// The numbers of rows and columns; `None` if the shape does not have two axes.
fn matrix_shape(shape: &[usize]) -> Option<[usize; 2]> {
    shape.try_into().ok()
}

/// The number of rows of each gate if `rows` rows hold all four gates: `rows / 4`. `None` if `rows` is not a multiple
/// of four.
fn gate_rows(rows: usize) -> Option<usize> {
    rows.is_multiple_of(4).then_some(rows / 4)
}

/// The values of the hidden size that follow from the shape of a parameter. `has_projection` says whether the model has
/// a projection.
fn hidden_sizes(param: Param, shape: &[usize], has_projection: bool) -> impl Iterator<Item = usize> {
    let sizes = match (param, shape) {
        (Param::WeightHh, &[rows, cols]) if !has_projection => [gate_rows(rows), Some(cols)],
        (Param::WeightIh | Param::WeightHh, &[rows, _]) => [gate_rows(rows), None],
        (Param::Bias | Param::BiasIh | Param::BiasHh, &[len]) => [gate_rows(len), None],
        (Param::WeightHr, &[_, cols]) => [Some(cols), None],
        (Param::PeepholeI | Param::PeepholeF | Param::PeepholeO, &[len]) => [Some(len), None],
        _ => [None, None],
    };
    sizes.into_iter().flatten()
}

/// The most frequent value; the first one of several equally frequent values.
fn most_common(values: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts: BTreeMap<usize, (usize, Reverse<usize>)> = BTreeMap::new();
    for (k, value) in values.enumerate() {
        counts.entry(value).or_insert((0, Reverse(k))).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, rank)| *rank).map(|(value, _)| value)
}
