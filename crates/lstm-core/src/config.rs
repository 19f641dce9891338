//! What an LSTM is made of: cell, sizes, options. Options that a cell does not have are errors.

use std::{fmt, str::FromStr};

use crate::{
    error::{Error, Result},
    shape::check_clip,
};

/// The gates in the order in which weights hold them: input, forget, candidate, output (PyTorch's order).
pub const GATES: [char; 4] = ['i', 'f', 'g', 'o'];

/// Which equations a layer computes. `docs/arithmetic.md` gives them to the bit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CellKind {
    /// The standard cell with one product for all four gates; what `torch.nn.LSTM` computes.
    #[default]
    Fused,
    /// The same equations and bits, with four input and four recurrent products: the notebook's first cell.
    Unfused,
    /// The notebook's third cell: the gates look at the cell state through a full matrix,
    /// `i, f, o = sigmoid(W x + U c + b)`, `c' = f c + i sigmoid(W_g x + b_g)`, `h' = tanh(o c')`.
    PeepholeDense,
    /// Gers & Schmidhuber 2000, ONNX's `P`: `i` and `f` see the old cell, `o` the new one, each through a vector.
    PeepholeDiagonal,
}

impl CellKind {
    /// All cell kinds.
    pub const ALL: [CellKind; 4] =
        [CellKind::Fused, CellKind::Unfused, CellKind::PeepholeDense, CellKind::PeepholeDiagonal];

    /// The name of the cell kind in text, files and command lines; [`FromStr`] parses it.
    ///
    /// ```
    /// use lstm_core::CellKind;
    /// assert_eq!(CellKind::PeepholeDense.name(), "peephole-dense");
    /// assert_eq!("peephole-dense".parse::<CellKind>()?, CellKind::PeepholeDense);
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            CellKind::Fused => "fused",
            CellKind::Unfused => "unfused",
            CellKind::PeepholeDense => "peephole-dense",
            CellKind::PeepholeDiagonal => "peephole-diagonal",
        }
    }

    /// Whether two cells give the same bits from the same parameters.
    pub(crate) fn is_equal_to(self, other: Self) -> bool {
        let standard = |cell| matches!(cell, CellKind::Fused | CellKind::Unfused);
        self == other || standard(self) && standard(other)
    }
}

/// Writes [`CellKind::name`].
impl fmt::Display for CellKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Parses a [`CellKind::name`]. Fails with [`Error::Config`] for any other text.
impl FromStr for CellKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        CellKind::ALL.into_iter().find(|cell| cell.name() == text).ok_or_else(|| {
            let names = CellKind::ALL.map(CellKind::name).join(", ");
            Error::config("cell", format!("expected one of {names}, got `{text}`"))
        })
    }
}

/// In which directions a layer walks the sequence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// First step to last.
    #[default]
    Forward,
    /// Last step to first; with lengths, each sequence starts at its own end.
    Reverse,
    /// Both; outputs are the forward features, then the reverse ones.
    Bidirectional,
}

impl Direction {
    /// For each direction of a layer in order, whether it walks in reverse.
    pub fn reversals(self) -> &'static [bool] {
        match self {
            Direction::Forward => &[false],
            Direction::Reverse => &[true],
            Direction::Bidirectional => &[false, true],
        }
    }
}

/// How many bias vectors a layer has. Two are added once, when the weights go to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bias {
    /// None.
    None,
    /// One, as in the notebook.
    One,
    /// One with the input weights and one with the recurrent weights, as in PyTorch and ONNX.
    Two,
}

/// An LSTM's sizes and options; `new` gives PyTorch's defaults, the methods change one each.
///
/// ```
/// use lstm_core::LstmConfig;
/// let config = LstmConfig::new(40, 128).layers(2).bidirectional();
/// assert_eq!(config.output_size(), 256);
/// config.validate()?;
/// assert!(LstmConfig::new(40, 128).proj_size(128).validate().is_err());
/// # Ok::<(), lstm_core::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LstmConfig {
    /// Features of an input step.
    pub input_size: usize,
    /// Features of the cell state.
    pub hidden_size: usize,
    /// Stacked layers; 1 by default.
    pub num_layers: usize,
    /// Direction of every layer; forward by default.
    pub direction: Direction,
    /// The cell; fused by default.
    pub cell: CellKind,
    /// Bias vectors; two by default, as in PyTorch (the notebook's cells have one).
    pub bias: Bias,
    /// Size of a projected `h`, less than `hidden_size`; none by default (Sak et al. 2014, PyTorch's `proj_size`).
    pub proj_size: Option<usize>,
    /// Coupled input and forget gates, `f = 1 - i` (ONNX's `input_forget`); off by default.
    pub coupled: bool,
    /// Bound on the inputs of the gate activations, peephole terms included (ONNX's `clip`); none by default.
    pub clip: Option<f32>,
    /// Probability with which an output between two layers is zeroed, in training only; 0 by default.
    pub dropout: f32,
}

impl LstmConfig {
    /// One forward layer of the fused cell with two biases.
    pub fn new(input_size: usize, hidden_size: usize) -> Self {
        LstmConfig {
            input_size,
            hidden_size,
            num_layers: 1,
            direction: Direction::Forward,
            cell: CellKind::Fused,
            bias: Bias::Two,
            proj_size: None,
            coupled: false,
            clip: None,
            dropout: 0.0,
        }
    }

    /// Sets the number of stacked layers.
    pub fn layers(self, num_layers: usize) -> Self {
        LstmConfig { num_layers, ..self }
    }

    /// Walks both directions.
    pub fn bidirectional(self) -> Self {
        self.direction(Direction::Bidirectional)
    }

    /// Sets the direction.
    pub fn direction(self, direction: Direction) -> Self {
        LstmConfig { direction, ..self }
    }

    /// Sets the cell.
    pub fn cell(self, cell: CellKind) -> Self {
        LstmConfig { cell, ..self }
    }

    /// Sets the number of bias vectors.
    pub fn bias(self, bias: Bias) -> Self {
        LstmConfig { bias, ..self }
    }

    /// Projects `h` to `size` features.
    pub fn proj_size(self, size: usize) -> Self {
        LstmConfig { proj_size: Some(size), ..self }
    }

    /// Couples the gates: `f = 1 - i`.
    pub fn coupled(self) -> Self {
        LstmConfig { coupled: true, ..self }
    }

    /// Bounds the gate activations' inputs to `[-bound, bound]`.
    pub fn clip(self, bound: f32) -> Self {
        LstmConfig { clip: Some(bound), ..self }
    }

    /// Sets the dropout between layers.
    pub fn dropout(self, probability: f32) -> Self {
        LstmConfig { dropout: probability, ..self }
    }

    /// Directions a layer has: 1 or 2.
    pub fn num_directions(&self) -> usize {
        self.direction.reversals().len()
    }

    /// Features of a direction's `h`: the projection's size, or the hidden size.
    pub fn state_size(&self) -> usize {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Features of an output step: [`state_size`](Self::state_size) times the directions.
    pub fn output_size(&self) -> usize {
        self.state_size().saturating_mul(self.num_directions())
    }

    /// Checks that the options exist and fit together.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option: sizes or layers that are 0 or add up to more than 2^34 parameters, a projection
    /// that is not smaller than the hidden size or with the dense peephole, a clip that is not positive and finite, a
    /// dropout outside `[0, 1)` or without a second layer.
    pub fn validate(&self) -> Result<()> {
        check_size("num_layers", self.num_layers)?;
        let first = self.layer_spec(0, false);
        first.validate()?;
        let inner = LayerSpec { input_size: self.output_size(), ..first };
        let of = |spec: &LayerSpec, n: usize| spec.num_params().saturating_mul(n * self.num_directions());
        let params = of(&first, 1).saturating_add(of(&inner, self.num_layers - 1));
        if params > MAX_PARAMS {
            let why = format!("expected at most {MAX_PARAMS} parameters in all, got {params}");
            return Err(Error::config("hidden_size", why));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", format!("expected 0 <= p < 1, got {}", self.dropout)));
        }
        if self.dropout > 0.0 && self.num_layers == 1 {
            return Err(Error::config("dropout", "acts between layers; there is only one layer"));
        }
        Ok(())
    }

    fn layer_spec(&self, layer: usize, reverse: bool) -> LayerSpec {
        LayerSpec {
            input_size: if layer == 0 { self.input_size } else { self.output_size() },
            hidden_size: self.hidden_size,
            proj_size: self.proj_size,
            cell: self.cell,
            bias: self.bias,
            coupled: self.coupled,
            clip: self.clip,
            reverse,
        }
    }

    /// One [`LayerSpec`] per layer and direction: layer 0 forward, layer 0 reverse, layer 1 forward, ...
    pub fn layer_specs(&self) -> Vec<LayerSpec> {
        let directions = self.direction.reversals();
        (0..self.num_layers)
            .flat_map(|layer| directions.iter().map(move |&reverse| self.layer_spec(layer, reverse)))
            .collect()
    }
}

/// Largest size of anything.
const MAX_SIZE: usize = 1 << 24;

/// Most parameters of a model: 64 GiB of f32.
const MAX_PARAMS: usize = if usize::BITS > 34 { 1 << 34 } else { usize::MAX >> 3 };

pub(crate) fn check_size(option: &'static str, size: usize) -> Result<()> {
    if (1..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    Err(Error::config(option, format!("expected 1 to {MAX_SIZE}, got {size}")))
}

/// One layer in one direction, as a backend sees it. Made by [`LstmConfig::layer_specs`]; weights exist only of valid ones.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerSpec {
    /// Features of an input step.
    pub input_size: usize,
    /// Features of `c`.
    pub hidden_size: usize,
    /// Features of a projected `h`.
    pub proj_size: Option<usize>,
    /// The cell.
    pub cell: CellKind,
    /// Bias vectors.
    pub bias: Bias,
    /// `f = 1 - i`.
    pub coupled: bool,
    /// Bound on the gate activations' inputs.
    pub clip: Option<f32>,
    /// Whether it walks from the last step to the first.
    pub reverse: bool,
}

impl LayerSpec {
    /// Features of `h` and of an output step.
    pub fn state_size(&self) -> usize {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Checks that the options exist and fit together; the part of [`LstmConfig::validate`] that is about one layer.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        check_size("input_size", self.input_size)?;
        check_size("hidden_size", self.hidden_size)?;
        if let Some(size) = self.proj_size {
            check_size("proj_size", size)?;
            if size >= self.hidden_size {
                let why = format!("expected less than hidden_size {}, got {size}", self.hidden_size);
                return Err(Error::config("proj_size", why));
            }
            if self.cell == CellKind::PeepholeDense {
                return Err(Error::config("proj_size", "the dense peephole feeds back c, not h: it has no projection"));
            }
        }
        let params = self.num_params();
        if params > MAX_PARAMS {
            let why = format!("expected at most {MAX_PARAMS} parameters, got {params}");
            return Err(Error::config("hidden_size", why));
        }
        self.clip.map_or(Ok(()), check_clip)
    }

    /// Number of scalar parameters, or the largest number if that does not fit.
    fn num_params(&self) -> usize {
        let len = |shape: &[usize]| shape.iter().fold(1, |n: usize, &size| n.saturating_mul(size));
        self.params().iter().fold(0, |n, (_, shape)| n.saturating_add(len(shape)))
    }

    /// The parameters it has and their shapes, in the order in which they are initialised, stored and named.
    pub fn params(&self) -> Vec<(Param, Vec<usize>)> {
        let (hidden, gates) = (self.hidden_size, self.hidden_size.saturating_mul(4));
        let mut params =
            vec![(Param::WeightIh, vec![gates, self.input_size]), (Param::WeightHh, vec![gates, self.state_size()])];
        match self.bias {
            Bias::None => {}
            Bias::One => params.push((Param::Bias, vec![gates])),
            Bias::Two => params.extend([(Param::BiasIh, vec![gates]), (Param::BiasHh, vec![gates])]),
        }
        if let Some(size) = self.proj_size {
            params.push((Param::WeightHr, vec![size, hidden]));
        }
        if self.cell == CellKind::PeepholeDiagonal {
            params.extend([Param::PeepholeI, Param::PeepholeF, Param::PeepholeO].map(|p| (p, vec![hidden])));
        }
        params
    }
}

/// A layer's parameters, in PyTorch's layout: gates `i, f, g, o` stacked along the first axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Param {
    /// Input weights `[4 * hidden, input]`.
    WeightIh,
    /// Recurrent weights `[4 * hidden, state]`; for the dense peephole they multiply `c`.
    WeightHh,
    /// The only bias `[4 * hidden]`.
    Bias,
    /// Bias beside the input weights `[4 * hidden]`.
    BiasIh,
    /// Bias beside the recurrent weights `[4 * hidden]`.
    BiasHh,
    /// Projection `[proj, hidden]`.
    WeightHr,
    /// Diagonal peephole of the input gate `[hidden]`.
    PeepholeI,
    /// Diagonal peephole of the forget gate `[hidden]`.
    PeepholeF,
    /// Diagonal peephole of the output gate `[hidden]`.
    PeepholeO,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_names_round_trip() {
        for cell in CellKind::ALL {
            assert_eq!(cell.to_string().parse::<CellKind>().unwrap(), cell);
        }
        for text in ["", "Fused", " fused", "gru"] {
            assert!(matches!(text.parse::<CellKind>(), Err(Error::Config { option: "cell", .. })), "{text}");
        }
    }

    #[test]
    fn impossible_options_are_named() {
        let ok = LstmConfig::new(3, 5);
        for (config, option) in [
            (LstmConfig::new(0, 5), "input_size"),
            (LstmConfig::new(3, 0), "hidden_size"),
            (LstmConfig::new(usize::MAX, 5), "input_size"),
            (LstmConfig::new(1 << 24, 1 << 24), "hidden_size"),
            (LstmConfig::new(1, 1 << 12).layers(1 << 20), "hidden_size"),
            (ok.clone().layers(0), "num_layers"),
            (ok.clone().proj_size(5), "proj_size"),
            (ok.clone().proj_size(0), "proj_size"),
            (ok.clone().cell(CellKind::PeepholeDense).proj_size(2), "proj_size"),
            (ok.clone().clip(-1.0), "clip"),
            (ok.clone().clip(f32::NAN), "clip"),
            (ok.clone().layers(2).dropout(1.0), "dropout"),
            (ok.clone().dropout(0.5), "dropout"),
        ] {
            match config.validate() {
                Err(Error::Config { option: named, .. }) => assert_eq!(named, option),
                other => panic!("{config:?}: {other:?}"),
            }
        }
        assert!(ok.layers(2).dropout(0.5).proj_size(2).coupled().clip(1.0).validate().is_ok());
    }
}
