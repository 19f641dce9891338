//! burn on any of its backends. It runs batch-first inputs, with a separate product for each gate.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use burn::{
    backend::Autodiff,
    module::{AutodiffModule, Param},
    nn::{GateController, Lstm, LstmConfig, LstmState},
    tensor::{Tensor, TensorData, backend::Backend},
};
use lstm_benches::{
    case::{Case, CaseKind},
    job::{PreparedCase, STREAM_STEPS},
};

use crate::{Model, swap_axes};

/// A case prepared with burn.
struct Burn<B: Backend> {
    kind: CaseKind,
    device: B::Device,
    train: Lstm<Autodiff<B>>,
    infer: Lstm<B>,
    /// Input, shape `(batch, steps, input)`.
    x: Tensor<B, 3>,
    state: Option<LstmState<B, 2>>,
}

/// Prepares a case with burn.
pub(crate) fn prepare<B: Backend + 'static>(case: &Case, dir: &Path) -> Result<Box<dyn PreparedCase>> {
    let model = Model::one_layer(case, dir)?;
    let device = B::Device::default();
    let mut train = LstmConfig::new(case.input, case.hidden, true).init::<Autodiff<B>>(&device);
    let Lstm { input_gate, forget_gate, cell_gate, output_gate, .. } = &mut train;
    for (k, gate) in [input_gate, forget_gate, cell_gate, output_gate].into_iter().enumerate() {
        set_gate(gate, &model, k, case.hidden, &device)?;
    }
    let x = swap_axes(&model.x.data, [case.seq, case.batch, case.input]);
    let x = Tensor::from_data(TensorData::new(x, [case.batch, case.seq, case.input]), &device);
    Ok(Box::new(Burn { kind: case.kind, infer: train.valid(), train, device, x, state: None }))
}

/// Sets the weights and biases of gate `k` from PyTorch's matrices, which are the transposes of burn's.
fn set_gate<B: Backend>(
    gate: &mut GateController<B>,
    model: &Model,
    k: usize,
    hidden: usize,
    device: &B::Device,
) -> Result<()> {
    let sides = [(&mut gate.input_transform, "ih"), (&mut gate.hidden_transform, "hh")];
    for (linear, side) in sides {
        let weight = model.get(&format!("weight_{side}_l0"))?;
        let cols = weight.shape[1];
        let rows = weight.data[k * hidden * cols..][..hidden * cols].to_vec();
        let rows = Tensor::<B, 2>::from_data(TensorData::new(rows, [hidden, cols]), device);
        linear.weight = Param::from_tensor(rows.transpose());
        let bias = model.get(&format!("bias_{side}_l0"))?.data[k * hidden..][..hidden].to_vec();
        linear.bias = Some(Param::from_tensor(Tensor::from_data(TensorData::new(bias, [hidden]), device)));
    }
    Ok(())
}

/// Downloads the values of a tensor.
fn values<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Result<Vec<f32>> {
    tensor.into_data().to_vec().map_err(|error| anyhow!("{error:?}"))
}

impl<B: Backend> Burn<B> {
    /// Outputs, and gradients of the recurrent weights of each gate. Waits until the device is done.
    fn forward_backward(&self) -> Result<(Tensor<B, 3>, [Tensor<B, 2>; 4])> {
        let (y, _) = self.train.forward(Tensor::from_inner(self.x.clone()), None);
        let gradients = (y.clone() * y.clone()).mean().backward();
        let Lstm { input_gate, forget_gate, cell_gate, output_gate, .. } = &self.train;
        let gradient_of = |gate: &GateController<Autodiff<B>>| gate.hidden_transform.weight.grad(&gradients);
        let all = [gradient_of(input_gate), gradient_of(forget_gate), gradient_of(cell_gate), gradient_of(output_gate)];
        let [Some(i), Some(f), Some(g), Some(o)] = all else { anyhow::bail!("no gradient of the recurrent weights") };
        B::sync(&self.device).map_err(|error| anyhow!("{error:?}"))?;
        Ok((y.inner(), [i, f, g, o]))
    }
}

impl<B: Backend> PreparedCase for Burn<B> {
    fn run(&mut self) -> Result<()> {
        match self.kind {
            CaseKind::Step => {
                let (y, state) = self.infer.forward(self.x.clone(), self.state.take());
                self.state = Some(state);
                std::hint::black_box(y.into_data());
            }
            CaseKind::Forward => drop(std::hint::black_box(self.infer.forward(self.x.clone(), None).0.into_data())),
            CaseKind::Train => drop(std::hint::black_box(self.forward_backward()?)),
        }
        Ok(())
    }

    fn output(&mut self) -> Result<Vec<f32>> {
        Ok(match self.kind {
            CaseKind::Step => {
                self.state = None;
                for _ in 0..STREAM_STEPS {
                    self.run()?;
                }
                values(self.state.as_ref().context("missing state")?.hidden.clone())?
            }
            CaseKind::Forward => values(self.infer.forward(self.x.clone(), None).0.swap_dims(0, 1))?,
            CaseKind::Train => {
                let (y, gradients) = self.forward_backward()?;
                let mut all = values(y.swap_dims(0, 1))?;
                for gradient in gradients {
                    all.extend(values(gradient.transpose())?);
                }
                all
            }
        })
    }
}
