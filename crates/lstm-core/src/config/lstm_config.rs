//! Sizes and options of a whole LSTM.

use std::{fmt, str::FromStr};

use super::{
    CellKind, GateActivations, LayerSpec, Precision,
    check::{MAX_PARAMS, check_size},
    text::{OptionValue, ParsedOptions, write_options},
};
use crate::error::{Error, Result};

/// The order in which a layer processes the time steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first time step to the last.
    #[default]
    Forward,
    /// From the last time step to the first. With sequence lengths, each sequence starts at its own last step.
    Reverse,
    /// Both directions. The output is the forward features followed by the reverse features.
    Bidirectional,
}

impl Direction {
    pub(super) const ALL: [Direction; 3] = [Direction::Forward, Direction::Reverse, Direction::Bidirectional];

    /// The name in the text form of a configuration.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Direction::Forward => "forward",
            Direction::Reverse => "reverse",
            Direction::Bidirectional => "bidirectional",
        }
    }

    /// One element per direction of a layer: whether that direction runs from the last time step to the first.
    pub fn reverse_flags(self) -> &'static [bool] {
        match self {
            Direction::Forward => &[false],
            Direction::Reverse => &[true],
            Direction::Bidirectional => &[false, true],
        }
    }
}

/// Number of bias vectors of a layer. Two bias vectors are added once, when the weights are uploaded to the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bias {
    /// No bias.
    None,
    /// One bias, as in Keras.
    One,
    /// Two biases, one for the input weights and one for the recurrent weights, as in PyTorch and ONNX.
    Two,
}

impl Bias {
    pub(super) const ALL: [Bias; 3] = [Bias::None, Bias::One, Bias::Two];

    /// The name in the text form of a configuration.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::One => "one",
            Bias::Two => "two",
        }
    }
}

/// Sizes and options of an LSTM. [`LstmConfig::new`] sets PyTorch's defaults; each builder method changes one option.
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
#[must_use]
pub struct LstmConfig {
    /// Number of features of the input at each time step.
    pub input_size: usize,
    /// Number of features of the cell state.
    pub hidden_size: usize,
    /// Number of stacked layers; 1 by default.
    pub num_layers: usize,
    /// Direction of every layer; forward by default.
    pub direction: Direction,
    /// The cell's equations; [`CellKind::Fused`] by default.
    pub cell: CellKind,
    /// Number of bias vectors of each layer; two by default, as in PyTorch.
    pub bias: Bias,
    /// Number of features of the projected hidden state, less than `hidden_size`; no projection by default
    /// (Sak et al. 2014; PyTorch's `proj_size`).
    pub proj_size: Option<usize>,
    /// Whether the input and forget gates are coupled, `f = 1 - i` (ONNX's `input_forget`); false by default.
    pub coupled: bool,
    /// Bound `b` on the inputs of the gate activations, peephole terms included, which are clipped to `[-b, b]`
    /// (ONNX's `clip`); no clipping by default.
    pub clip: Option<f32>,
    /// Probability with which dropout sets an element that one layer passes to the next to zero. It applies in training
    /// only; 0 by default.
    pub dropout: f32,
    /// The activation functions of the gates, the candidate and the output (ONNX's `activations`, Keras's
    /// `recurrent_activation` and `activation`); sigmoid, tanh and tanh by default.
    pub activations: GateActivations,
    /// The precision of the weight matrices; f32 by default. [`Weights::quantize`](crate::Weights::quantize) changes it.
    pub precision: Precision,
}

impl LstmConfig {
    /// Creates the configuration of one forward layer of the fused cell with two biases, without projection, clipping
    /// or dropout.
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
            activations: GateActivations::default(),
            precision: Precision::F32,
        }
    }

    /// Sets the number of stacked layers.
    pub fn layers(self, num_layers: usize) -> Self {
        LstmConfig { num_layers, ..self }
    }

    /// Sets the direction to [`Direction::Bidirectional`].
    pub fn bidirectional(self) -> Self {
        self.direction(Direction::Bidirectional)
    }

    /// Sets the direction of every layer.
    pub fn direction(self, direction: Direction) -> Self {
        LstmConfig { direction, ..self }
    }

    /// Sets the kind of cell.
    pub fn cell(self, cell: CellKind) -> Self {
        LstmConfig { cell, ..self }
    }

    /// Sets the number of bias vectors of each layer.
    pub fn bias(self, bias: Bias) -> Self {
        LstmConfig { bias, ..self }
    }

    /// Adds a projection of the hidden state to `size` features.
    pub fn proj_size(self, size: usize) -> Self {
        LstmConfig { proj_size: Some(size), ..self }
    }

    /// Couples the input and forget gates: `f = 1 - i`.
    pub fn coupled(self) -> Self {
        LstmConfig { coupled: true, ..self }
    }

    /// Clips the inputs of the gate activations to `[-bound, bound]`.
    pub fn clip(self, bound: f32) -> Self {
        LstmConfig { clip: Some(bound), ..self }
    }

    /// Sets the dropout probability between layers.
    pub fn dropout(self, probability: f32) -> Self {
        LstmConfig { dropout: probability, ..self }
    }

    /// Sets the activation functions. Functions other than the default ones run by the
    /// [reference path](crate::reference).
    pub fn activations(self, activations: GateActivations) -> Self {
        LstmConfig { activations, ..self }
    }

    /// Sets the precision of the weight matrices. Random weights are drawn in f32 and then quantized.
    pub fn precision(self, precision: Precision) -> Self {
        LstmConfig { precision, ..self }
    }

    /// Number of directions of each layer: 1 or 2.
    pub fn num_directions(&self) -> usize {
        self.direction.reverse_flags().len()
    }

    /// Number of features of the hidden state of one direction: `proj_size`, or `hidden_size` without a projection.
    pub fn state_size(&self) -> usize {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Number of features of the output at each time step: [`state_size`](Self::state_size) times
    /// [`num_directions`](Self::num_directions).
    pub fn output_size(&self) -> usize {
        self.state_size().saturating_mul(self.num_directions())
    }

    /// Checks every option and every combination of options.
    ///
    /// # Errors
    /// [`Error::Config`], which names the option:
    /// - a size or number of layers of 0 or more than 2^24, or more than 2^34 parameters in total;
    /// - a projection that is not smaller than `hidden_size`, or one with the dense peephole cell;
    /// - a `clip` that is not positive and finite;
    /// - a parameter of an activation function that is not finite, or a candidate other than tanh with the dense
    ///   peephole cell;
    /// - a `dropout` outside `[0, 1)`, or a positive one with a single layer.
    pub fn validate(&self) -> Result<()> {
        check_size("num_layers", self.num_layers)?;
        let first_layer = self.layer_spec(0, false);
        first_layer.validate()?;
        let later_layer = LayerSpec { input_size: self.output_size(), ..first_layer };
        let count_params =
            |spec: &LayerSpec, layers: usize| spec.num_params().saturating_mul(layers * self.num_directions());
        let num_params = count_params(&first_layer, 1).saturating_add(count_params(&later_layer, self.num_layers - 1));
        if num_params > MAX_PARAMS {
            let reason = format!("expected at most {MAX_PARAMS} parameters in total, got {num_params}");
            return Err(Error::config("hidden_size", reason));
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("dropout", format!("expected 0 <= p < 1, got {}", self.dropout)));
        }
        if self.dropout > 0.0 && self.num_layers == 1 {
            return Err(Error::config("dropout", format!("expected 0 with a single layer, got {}", self.dropout)));
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
            activations: self.activations,
            precision: self.precision,
            reverse,
        }
    }

    /// One [`LayerSpec`] per layer and direction, in the order layer 0 forward, layer 0 reverse, layer 1 forward, ...
    pub fn layer_specs(&self) -> Vec<LayerSpec> {
        let reverse_flags = self.direction.reverse_flags();
        (0..self.num_layers)
            .flat_map(|layer| reverse_flags.iter().map(move |&reverse| self.layer_spec(layer, reverse)))
            .collect()
    }

    /// The name and text of every option, in the order of the configuration's text form. `activations` and
    /// `precision` are included only if they are not the default ones, because files of earlier versions do not have
    /// them.
    ///
    /// ```
    /// use lstm_core::LstmConfig;
    /// assert!(LstmConfig::new(3, 5).options().contains(&("hidden_size", "5".into())));
    /// ```
    pub fn options(&self) -> Vec<(&'static str, String)> {
        let mut options = self.all_options();
        let is_default = |name| match name {
            "activations" => self.activations.is_default(),
            "precision" => self.precision == Precision::F32,
            _ => false,
        };
        options.retain(|(name, _)| !is_default(*name));
        options
    }

    /// The name and text of every option, including the default ones.
    pub(crate) fn all_options(&self) -> Vec<(&'static str, String)> {
        vec![
            ("input_size", self.input_size.to_text()),
            ("hidden_size", self.hidden_size.to_text()),
            ("num_layers", self.num_layers.to_text()),
            ("direction", self.direction.to_text()),
            ("cell", self.cell.to_text()),
            ("bias", self.bias.to_text()),
            ("proj_size", self.proj_size.to_text()),
            ("coupled", self.coupled.to_text()),
            ("clip", self.clip.to_text()),
            ("dropout", self.dropout.to_text()),
            ("activations", self.activations.to_text()),
            ("precision", self.precision.to_text()),
        ]
    }
}

/// Writes `lstm` followed by every option as `name=value`, on one line. Parsing the text gives an equal configuration.
///
/// ```
/// use lstm_core::LstmConfig;
/// let text = "lstm input_size=3 hidden_size=5 num_layers=2 direction=bidirectional cell=fused bias=two \
///             proj_size=none coupled=false clip=none dropout=0.25";
/// let config = LstmConfig::new(3, 5).layers(2).bidirectional().dropout(0.25);
/// assert_eq!(config.to_string(), text);
/// assert_eq!(text.parse::<LstmConfig>()?, config);
/// # Ok::<(), lstm_core::Error>(())
/// ```
impl fmt::Display for LstmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_options(f, "lstm", &self.options())
    }
}

/// Parses `lstm` followed by options as `name=value`, in any order. `input_size` and `hidden_size` are required; the
/// other options default to those of [`LstmConfig::new`]. Fails with [`Error::Format`] for any other text and with
/// [`Error::Config`] for a configuration that [`LstmConfig::validate`] rejects.
impl FromStr for LstmConfig {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("model", text)?;
        if options.kind() != "lstm" {
            return Err(options.unexpected_kind("lstm"));
        }
        let mut config = LstmConfig::new(options.read_required("input_size")?, options.read_required("hidden_size")?);
        options.read_into("num_layers", &mut config.num_layers)?;
        options.read_into("direction", &mut config.direction)?;
        options.read_into("cell", &mut config.cell)?;
        options.read_into("bias", &mut config.bias)?;
        options.read_into("proj_size", &mut config.proj_size)?;
        options.read_into("coupled", &mut config.coupled)?;
        options.read_into("clip", &mut config.clip)?;
        options.read_into("dropout", &mut config.dropout)?;
        options.read_into("activations", &mut config.activations)?;
        options.read_into("precision", &mut config.precision)?;
        options.finish()?;
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GateActivation;

    #[test]
    fn rejects_invalid_options_by_name() {
        let valid_config = LstmConfig::new(3, 5);
        let hard_sigmoid = |alpha, beta| GateActivations {
            gate: GateActivation::HardSigmoid { alpha, beta },
            ..GateActivations::default()
        };
        let relu_candidate = GateActivations { candidate: GateActivation::Relu, ..GateActivations::default() };
        for (config, option) in [
            (LstmConfig::new(0, 5), "input_size"),
            (LstmConfig::new(3, 0), "hidden_size"),
            (LstmConfig::new(usize::MAX, 5), "input_size"),
            (LstmConfig::new(1 << 24, 1 << 24), "hidden_size"),
            (LstmConfig::new(1, 1 << 12).layers(1 << 20), "hidden_size"),
            (valid_config.clone().layers(0), "num_layers"),
            (valid_config.clone().proj_size(5), "proj_size"),
            (valid_config.clone().proj_size(0), "proj_size"),
            (valid_config.clone().cell(CellKind::PeepholeDense).proj_size(2), "proj_size"),
            (valid_config.clone().clip(-1.0), "clip"),
            (valid_config.clone().clip(f32::NAN), "clip"),
            (valid_config.clone().layers(2).dropout(1.0), "dropout"),
            (valid_config.clone().dropout(0.5), "dropout"),
            (valid_config.clone().activations(hard_sigmoid(f32::NAN, 0.5)), "activations"),
            (valid_config.clone().activations(hard_sigmoid(0.2, f32::INFINITY)), "activations"),
            (valid_config.clone().cell(CellKind::PeepholeDense).activations(relu_candidate), "activations"),
        ] {
            match config.validate() {
                Err(Error::Config { option: named, .. }) => assert_eq!(named, option),
                other => panic!("{config:?}: {other:?}"),
            }
        }
        let dense_config = valid_config.clone().cell(CellKind::PeepholeDense).activations(hard_sigmoid(0.2, 0.5));
        assert!(dense_config.validate().is_ok());
        assert!(valid_config.layers(2).dropout(0.5).proj_size(2).coupled().clip(1.0).validate().is_ok());
    }

    #[test]
    fn text_round_trip_is_exact() {
        let long_decimal = f32::from_bits(0x3dcc_ccce);
        let base_config = LstmConfig::new(3, 5);
        let mut configs = vec![
            base_config.clone().layers(2).dropout(long_decimal).clip(long_decimal).coupled(),
            base_config.clone().proj_size(4),
        ];
        configs.extend(Direction::ALL.map(|direction| base_config.clone().direction(direction)));
        configs.extend(CellKind::ALL.map(|cell| base_config.clone().cell(cell)));
        for candidate in [GateActivation::Relu, GateActivation::HardSigmoid { alpha: long_decimal, beta: -0.5 }] {
            let activations = GateActivations { candidate, ..GateActivations::default() };
            configs.push(base_config.clone().activations(activations));
            assert!(configs.last().unwrap().to_string().contains(&format!(" activations=sigmoid/{candidate}/tanh")));
        }
        assert!(!base_config.to_string().contains("activations"), "the text of earlier versions does not change");
        configs.extend(Bias::ALL.map(|bias| base_config.clone().bias(bias)));
        for config in configs {
            assert_eq!(config.to_string().parse::<LstmConfig>().unwrap(), config);
        }
        assert_eq!("lstm hidden_size=5 input_size=3".parse::<LstmConfig>().unwrap(), base_config);
    }

    #[test]
    fn rejects_other_text() {
        let sizes_text = "lstm input_size=3 hidden_size=5";
        for (text, part) in [
            ("gru input_size=3", "expected lstm, got `gru`"),
            ("lstm input_size=3", "`lstm` requires the option hidden_size"),
            (&format!("{sizes_text} cell=x"), "peephole-dense, peephole-diagonal, got `x`"),
            (&format!("{sizes_text} bias="), "bias: expected one of none, one, two, got ``"),
            (&format!("{sizes_text} clip=big"), "clip: expected none or a number, got `big`"),
            (&format!("{sizes_text} clip=NaN"), "option clip: expected a positive finite bound"),
            (&format!("{sizes_text} dropout=NaN num_layers=2"), "option dropout"),
            (&format!("{sizes_text} gates=4"), "no option `gates`"),
            (&format!("{sizes_text} activations=relu"), "activations: expected three of sigmoid, tanh, relu"),
            (&format!("{sizes_text} activations=hard_sigmoid(inf,1)/tanh/tanh"), "expected finite parameters"),
            ("lstm input_size=3 hidden_size=0", "option hidden_size"),
        ] {
            let error = text.parse::<LstmConfig>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}: {part}");
        }
    }
}
