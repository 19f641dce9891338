//! What model a set of tensor names and shapes is: sizes, layers, direction, biases, projection, cell.
//!
//! A size is what most of the tensors that know it say, so that one misshapen tensor is the one that is blamed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
};

use super::names::{Parsed, Scheme, parse};
use crate::{
    config::{Bias, CellKind, Direction, LstmConfig, Param},
    error::{Error, Result},
};

/// What is missing where there is nothing.
pub(crate) const NO_LSTM: &str = "an LSTM; no tensor of one has this prefix";

/// The tensors under a prefix: names without it, and shapes.
pub(crate) struct Found<'a> {
    pub(crate) prefix: &'a str,
    pub(crate) shapes: BTreeMap<&'a str, &'a [usize]>,
}

impl Found<'_> {
    /// The model that the recognised names say, all of it valid but for tensors that may be missing, misshapen or left
    /// over. Work and memory are bounded by the number of tensors, whatever numbers stand in their names.
    pub(crate) fn infer(&self, hint: Option<CellKind>) -> Result<(LstmConfig, Scheme)> {
        let known: Vec<_> = self.shapes.iter().filter_map(|(name, shape)| Some((parse(name)?, *shape))).collect();
        let (config, scheme) = if !known.is_empty() {
            (self.pytorch(&known, hint)?, Scheme::PyTorch)
        } else if self.shapes.keys().any(|name| gate_name(name).is_some()) {
            let scheme = Scheme::Gates(if self.has_gate('g') && !self.has_gate('c') { 'g' } else { 'c' });
            (self.gates(hint)?, scheme)
        } else if ["W", "U", "bias"].iter().any(|name| self.shapes.contains_key(name)) {
            (self.packed(hint)?, Scheme::Packed)
        } else {
            let name = format!("{}weight_ih_l0", self.prefix);
            return Err(Error::MissingTensor { name, expected: NO_LSTM.into() });
        };
        config.validate()?;
        Ok((config, scheme))
    }

    fn pytorch(&self, known: &[(Parsed, &[usize])], hint: Option<CellKind>) -> Result<LstmConfig> {
        let any = |test: &dyn Fn(&Parsed) -> bool| known.iter().any(|(p, _)| test(p));
        let has = |params: &[Param]| any(&|p| params.contains(&p.param));
        let projected = has(&[Param::WeightHr]);

        let named: &[CellKind] = if any(&|p| p.dense) {
            &[CellKind::PeepholeDense]
        } else if has(&[Param::PeepholeI, Param::PeepholeF, Param::PeepholeO]) {
            &[CellKind::PeepholeDiagonal]
        } else {
            &[CellKind::Fused, CellKind::Unfused]
        };
        let direction = match (any(&|p| !p.reverse), any(&|p| p.reverse)) {
            (true, true) => Direction::Bidirectional,
            (false, true) => Direction::Reverse,
            _ => Direction::Forward,
        };
        let bias = match (has(&[Param::BiasIh, Param::BiasHh]), has(&[Param::Bias])) {
            (true, _) => Bias::Two,
            (false, true) => Bias::One,
            _ => Bias::None,
        };
        // At a gap in the numbers the model ends with the layer that is missing.
        let layers: BTreeSet<usize> = known.iter().map(|(p, _)| p.layer).collect();
        let whole = (0..).zip(&layers).take_while(|(k, layer)| k == *layer).count();
        let num_layers = whole + usize::from(whole < layers.len());

        let input = known.iter().filter(|(p, _)| p.layer == 0 && p.param == Param::WeightIh);
        let input_size = vote(input.filter_map(|(_, shape)| matrix(shape)).map(|[_, cols]| cols));
        let hidden_size = vote(known.iter().flat_map(|(p, shape)| hidden_sizes(p.param, shape, projected)));
        let sizes = |param, axis: usize| {
            let these = known.iter().filter(move |(p, _)| p.param == param);
            these.filter_map(move |(_, shape)| Some(matrix(shape)?[axis]))
        };
        let proj_size = vote(sizes(Param::WeightHr, 0).chain(sizes(Param::WeightHh, 1)));

        let suffix = if direction == Direction::Reverse { "_reverse" } else { "" };
        let first = format!("weight_ih_l0{suffix}");
        let hidden = self.size(hidden_size, &first, "[4 * hidden, input]")?;
        let input = self.size(input_size, &first, &format!("[{}, input]", hidden.saturating_mul(4)))?;
        let config = LstmConfig::new(input, hidden).layers(num_layers).direction(direction);
        let config = config.cell(self.cell(named, hint)?).bias(bias);
        if !projected {
            return Ok(config);
        }
        Ok(config.proj_size(self.size(proj_size, &format!("weight_hr_l0{suffix}"), &format!("[proj, {hidden}]"))?))
    }

    fn gates(&self, hint: Option<CellKind>) -> Result<LstmConfig> {
        let cell = self.cell(&[CellKind::Unfused, CellKind::Fused], hint)?;
        let gate = |letter| self.shapes.iter().filter(move |(name, _)| gate_name(name).is_some_and(|n| n.0 == letter));
        let matrices = |letter| gate(letter).filter_map(|(_, shape)| matrix(shape));
        let hidden = matrices('V').flatten().chain(matrices('U').map(|[_, cols]| cols));
        let bias = gate('b').next().map_or(Bias::None, |_| Bias::One);
        let hidden = self.size(vote(hidden), "U_i", "[input, hidden]")?;
        let input = vote(matrices('U').map(|[rows, _]| rows));
        let input = self.size(input, "U_i", &format!("[input, {hidden}]"))?;
        Ok(LstmConfig::new(input, hidden).cell(cell).bias(bias))
    }

    fn packed(&self, hint: Option<CellKind>) -> Result<LstmConfig> {
        let named = [CellKind::Fused, CellKind::PeepholeDense, CellKind::Unfused];
        if hint.is_none() {
            let why = format!(
                "`{0}W`, `{0}U`, `{0}bias` may be the fused or the dense peephole cell: say which (take_lstm_as)",
                self.prefix
            );
            return Err(Error::config("cell", why));
        }
        let shape = |name| self.shapes.get(name).copied();
        let (input, state) = (shape("W").and_then(matrix), shape("U").and_then(matrix));
        let bias = shape("bias").and_then(|shape| shape.first().copied());
        let wide = [input.map(|[_, cols]| cols), state.map(|[_, cols]| cols), bias];
        let hidden = vote(wide.into_iter().flatten().filter_map(quarter).chain(state.map(|[rows, _]| rows)));
        let hidden = self.size(hidden, "W", "[input, 4 * hidden]")?;
        let input = self.size(input.map(|[rows, _]| rows), "W", &format!("[input, {}]", hidden.saturating_mul(4)))?;
        let bias = bias.map_or(Bias::None, |_| Bias::One);
        Ok(LstmConfig::new(input, hidden).cell(self.cell(&named, hint)?).bias(bias))
    }

    fn has_gate(&self, gate: char) -> bool {
        self.shapes.keys().any(|name| gate_name(name).is_some_and(|(_, x)| x == gate))
    }

    /// The cell asked for, if it is one of those that the names allow; else the first of these.
    fn cell(&self, named: &[CellKind], hint: Option<CellKind>) -> Result<CellKind> {
        match hint {
            None => Ok(named[0]),
            Some(cell) if named.contains(&cell) => Ok(cell),
            Some(cell) => {
                let names = named.iter().map(|c| format!("{c:?}")).collect::<Vec<_>>().join(" or ");
                let why = format!("{cell:?} was asked for, but the names under `{}` are those of {names}", self.prefix);
                Err(Error::config("cell", why))
            }
        }
    }

    /// A size, or what is wrong with the tensor that should tell it.
    fn size(&self, size: Option<usize>, name: &str, expected: &str) -> Result<usize> {
        let full = format!("{}{name}", self.prefix);
        match (size, self.shapes.get(name)) {
            (Some(size), _) => Ok(size),
            (None, None) => Err(Error::MissingTensor { name: full, expected: format!("shape {expected}") }),
            (None, Some(shape)) => Err(Error::shape(format!("tensor `{full}`"), expected, format!("{shape:?}"))),
        }
    }
}

/// Splits `U_i` and its like; both letters of the candidate count.
fn gate_name(name: &str) -> Option<(char, char)> {
    match name.as_bytes() {
        &[letter @ (b'U' | b'V' | b'b'), b'_', gate @ (b'i' | b'f' | b'c' | b'g' | b'o')] => {
            Some((letter.into(), gate.into()))
        }
        _ => None,
    }
}

fn matrix(shape: &[usize]) -> Option<[usize; 2]> {
    shape.try_into().ok()
}

fn quarter(rows: usize) -> Option<usize> {
    rows.is_multiple_of(4).then_some(rows / 4)
}

/// What a tensor says of the hidden size.
fn hidden_sizes(param: Param, shape: &[usize], projected: bool) -> impl Iterator<Item = usize> {
    let sizes = match (param, shape) {
        (Param::WeightHh, &[rows, cols]) if !projected => [quarter(rows), Some(cols)],
        (Param::WeightIh | Param::WeightHh, &[rows, _]) => [quarter(rows), None],
        (Param::Bias | Param::BiasIh | Param::BiasHh, &[len]) => [quarter(len), None],
        (Param::WeightHr, &[_, cols]) => [Some(cols), None],
        (Param::PeepholeI | Param::PeepholeF | Param::PeepholeO, &[len]) => [Some(len), None],
        _ => [None, None],
    };
    sizes.into_iter().flatten()
}

/// The most frequent value; of several, the one that came first.
fn vote(values: impl Iterator<Item = usize>) -> Option<usize> {
    let mut counts: BTreeMap<usize, (usize, Reverse<usize>)> = BTreeMap::new();
    for (k, value) in values.enumerate() {
        counts.entry(value).or_insert((0, Reverse(k))).0 += 1;
    }
    counts.into_iter().max_by_key(|(_, rank)| *rank).map(|(value, _)| value)
}
