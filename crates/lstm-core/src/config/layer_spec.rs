//! One layer in one direction, and its parameters.

use super::{
    Bias, CellKind, GateActivations, Precision,
    check::{MAX_PARAMS, check_size},
};
use crate::{
    error::{Error, Result},
    quantized::OperandRange,
    shape::check_clip,
};

/// The configuration of one layer in one direction: its sizes and options. [`LstmConfig::layer_specs`] creates the
/// specs of a whole LSTM; [`LayerWeights`] can be created only for a valid spec.
///
/// [`LstmConfig::layer_specs`]: crate::LstmConfig::layer_specs
/// [`LayerWeights`]: crate::LayerWeights
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerSpec {
    /// Number of features of the input `x` at each time step.
    pub input_size: usize,
    /// Number of features of the cell state `c`.
    pub hidden_size: usize,
    /// Number of features of the projected hidden state `h`; `None` without a projection.
    pub proj_size: Option<usize>,
    /// The cell's equations.
    pub cell: CellKind,
    /// Number of bias vectors.
    pub bias: Bias,
    /// Whether the input and forget gates are coupled: `f = 1 - i`.
    pub coupled: bool,
    /// Bound `b` on the inputs of the gate activations, which are clipped to `[-b, b]`; `None` for no clipping.
    pub clip: Option<f32>,
    /// The activation functions; sigmoid, tanh and tanh by default.
    pub activations: GateActivations,
    /// The precision of the weight matrices; f32 by default.
    pub precision: Precision,
    /// Whether the layer runs from the last time step to the first.
    pub reverse: bool,
}

impl LayerSpec {
    /// Number of features of the hidden state `h`, which is the output of the layer: `proj_size`, or `hidden_size`
    /// without a projection.
    pub fn state_size(&self) -> usize {
        self.proj_size.unwrap_or(self.hidden_size)
    }

    /// Checks every option and every combination of options of one layer. [`LstmConfig::validate`] calls this method.
    ///
    /// # Errors
    /// [`Error::Config`], which names the option.
    ///
    /// [`LstmConfig::validate`]: crate::LstmConfig::validate
    pub fn validate(&self) -> Result<()> {
        check_size("input_size", self.input_size)?;
        check_size("hidden_size", self.hidden_size)?;
        if let Some(size) = self.proj_size {
            check_size("proj_size", size)?;
            if size >= self.hidden_size {
                let reason = format!("expected less than hidden_size {}, got {size}", self.hidden_size);
                return Err(Error::config("proj_size", reason));
            }
            if self.cell == CellKind::PeepholeDense {
                let reason = format!("expected none with cell {}, got {size}", self.cell);
                return Err(Error::config("proj_size", reason));
            }
        }
        let num_params = self.num_params();
        if num_params > MAX_PARAMS {
            let reason = format!("expected at most {MAX_PARAMS} parameters, got {num_params}");
            return Err(Error::config("hidden_size", reason));
        }
        self.activations.validate()?;
        let candidate = self.activations.candidate;
        if self.cell == CellKind::PeepholeDense && candidate != GateActivations::default().candidate {
            let reason = format!(
                "the candidate of cell {} has the function of its gates, expected tanh, got {candidate}",
                self.cell
            );
            return Err(Error::config("activations", reason));
        }
        self.clip.map_or(Ok(()), check_clip)
    }

    /// Whether a layer has the [default](GateActivations::default) activation functions and f32 weights. See
    /// [`check_default_kernels`](Self::check_default_kernels).
    pub fn has_default_kernels(&self) -> bool {
        self.activations.is_default() && self.precision == Precision::F32
    }

    /// Checks that the activation functions are the [default](GateActivations::default) ones and the weights f32. A
    /// backend whose kernels compute no other layers calls this method in [`Backend::load`](crate::Backend::load).
    /// [`Lstm`](crate::Lstm) runs other layers by the [reference path](crate::reference) and does not load them there.
    ///
    /// # Errors
    /// [`Error::Config`] names the functions or the precision.
    pub fn check_default_kernels(&self) -> Result<()> {
        if self.has_default_kernels() {
            return Ok(());
        }
        let reason = format!(
            "the kernels compute {} in f32 only, got {} in {}; use `Lstm` or the backend `Reference`",
            GateActivations::default(),
            self.activations,
            self.precision
        );
        let option = if self.activations.is_default() { "precision" } else { "activations" };
        Err(Error::config(option, reason))
    }

    /// The range of the operand of the recurrent weights: the hidden state, or the cell state in the dense peephole
    /// cell.
    pub fn recurrent_range(&self) -> OperandRange {
        match (self.proj_size, self.cell) {
            (None, CellKind::Fused | CellKind::Unfused | CellKind::PeepholeDiagonal) => OperandRange::Unit,
            _ => OperandRange::Any,
        }
    }

    /// Checks that the weights are f32, as training needs them.
    ///
    /// # Errors
    /// [`Error::Config`] for quantized weights.
    pub fn check_trainable(&self) -> Result<()> {
        match self.precision {
            Precision::F32 => Ok(()),
            precision => Err(Error::quantized_gradients(precision)),
        }
    }

    /// Number of scalar parameters, or `usize::MAX` on overflow.
    pub(super) fn num_params(&self) -> usize {
        let len = |shape: &[usize]| shape.iter().fold(1, |n: usize, &size| n.saturating_mul(size));
        self.params().iter().fold(0, |n, (_, shape)| n.saturating_add(len(shape)))
    }

    /// The layer's parameters with their shapes, in the order in which they are initialized and stored.
    pub fn params(&self) -> Vec<(Param, Vec<usize>)> {
        let (hidden, gate_rows) = (self.hidden_size, self.hidden_size.saturating_mul(4));
        let mut params = vec![
            (Param::WeightIh, vec![gate_rows, self.input_size]),
            (Param::WeightHh, vec![gate_rows, self.state_size()]),
        ];
        match self.bias {
            Bias::None => {}
            Bias::One => params.push((Param::Bias, vec![gate_rows])),
            Bias::Two => params.extend([(Param::BiasIh, vec![gate_rows]), (Param::BiasHh, vec![gate_rows])]),
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

/// A parameter of a layer, in PyTorch's layout: the gates `i, f, g, o` are stacked along the first axis.
///
/// `hidden` is `hidden_size`, `input` is `input_size`, `state` is [`LayerSpec::state_size`] and `proj` is `proj_size`.
///
/// The enum is exhaustive: when a parameter is added, a backend that matches on the enum does not compile until it
/// handles the new parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Param {
    /// Input weights, shape `[4 * hidden, input]`.
    WeightIh,
    /// Recurrent weights, shape `[4 * hidden, state]`. The dense peephole cell multiplies them by `c`, all other cells
    /// by `h`.
    WeightHh,
    /// The bias of a layer with [`Bias::One`], shape `[4 * hidden]`.
    Bias,
    /// The first bias of a layer with [`Bias::Two`], PyTorch's `bias_ih`, shape `[4 * hidden]`.
    BiasIh,
    /// The second bias of a layer with [`Bias::Two`], PyTorch's `bias_hh`, shape `[4 * hidden]`.
    BiasHh,
    /// Projection of the hidden state, PyTorch's `weight_hr`, shape `[proj, hidden]`.
    WeightHr,
    /// Diagonal peephole of the input gate, shape `[hidden]`.
    PeepholeI,
    /// Diagonal peephole of the forget gate, shape `[hidden]`.
    PeepholeF,
    /// Diagonal peephole of the output gate, shape `[hidden]`.
    PeepholeO,
}
