//! candle, which runs batch-first inputs step by step.

use std::path::Path;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor, Var};
use candle_nn::{
    VarBuilder,
    rnn::{LSTM, LSTMState, RNN},
};
use lstm_benches::{
    case::{Case, CaseKind},
    job::{PreparedCase, STREAM_STEPS},
};

use crate::{Model, swap_axes};

/// A case prepared with candle.
struct Candle {
    kind: CaseKind,
    lstm: LSTM,
    /// Recurrent weights, for their gradient.
    recurrent: Var,
    /// Input, shape `(batch, steps, input)`, or `(batch, input)` for a single step.
    x: Tensor,
    state: LSTMState,
}

/// Prepares a case with candle.
pub(crate) fn prepare(case: &Case, dir: &Path) -> Result<Box<dyn PreparedCase>> {
    let model = Model::one_layer(case, dir)?;
    let mut vars = std::collections::HashMap::new();
    for (name, tensor) in &model.tensors {
        vars.insert(name.clone(), Var::from_vec(tensor.data.clone(), tensor.shape.clone(), &Device::Cpu)?);
    }
    let recurrent = vars.get("weight_hh_l0").context("expected `weight_hh_l0`")?.clone();
    let tensors = vars.into_iter().map(|(name, var)| (name, var.as_tensor().clone())).collect();
    let builder = VarBuilder::from_tensors(tensors, candle_core::DType::F32, &Device::Cpu);
    let lstm = candle_nn::lstm(case.input, case.hidden, Default::default(), builder)?;
    let x = swap_axes(&model.x.data, [case.seq, case.batch, case.input]);
    let x = match case.kind {
        CaseKind::Step => Tensor::from_vec(x, (case.batch, case.input), &Device::Cpu)?,
        _ => Tensor::from_vec(x, (case.batch, case.seq, case.input), &Device::Cpu)?,
    };
    let state = lstm.zero_state(case.batch)?;
    Ok(Box::new(Candle { kind: case.kind, lstm, recurrent, x, state }))
}

impl Candle {
    /// Outputs of the forward pass, batch-first.
    fn forward(&self) -> candle_core::Result<Tensor> {
        self.lstm.states_to_tensor(&self.lstm.seq(&self.x)?)
    }

    /// Outputs, and gradients of the mean of their squares.
    fn forward_backward(&self) -> candle_core::Result<(Tensor, candle_core::backprop::GradStore)> {
        let y = self.forward()?;
        let gradients = y.sqr()?.mean_all()?.backward()?;
        Ok((y, gradients))
    }
}

impl PreparedCase for Candle {
    fn run(&mut self) -> Result<()> {
        match self.kind {
            // Detached, so that the autodiff graph does not grow with every step.
            CaseKind::Step => {
                let next = self.lstm.step(&self.x, &self.state)?;
                self.state = LSTMState::new(next.h().detach(), next.c().detach());
            }
            CaseKind::Forward => drop(std::hint::black_box(self.forward()?)),
            CaseKind::Train => drop(std::hint::black_box(self.forward_backward()?)),
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        let time_major = |y: &Tensor| y.transpose(0, 1)?.flatten_all()?.to_vec1::<f32>();
        Ok(match self.kind {
            CaseKind::Step => {
                self.state = self.lstm.zero_state(self.x.dim(0)?)?;
                for _ in 0..STREAM_STEPS {
                    self.run()?;
                }
                self.state.h().flatten_all()?.to_vec1()?
            }
            CaseKind::Forward => time_major(&self.forward()?)?,
            CaseKind::Train => {
                let (y, gradients) = self.forward_backward()?;
                let recurrent = gradients.get(&self.recurrent).context("no gradient of the recurrent weights")?;
                [time_major(&y)?, recurrent.flatten_all()?.to_vec1()?].concat()
            }
        })
    }
}
