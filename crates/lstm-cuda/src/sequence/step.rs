//! Launches of one step of the forward pass.

use lstm_core::{LayerSpec, Result};

use crate::{
    driver::{Address, Driver, Launch, kernel_size},
    kernels::args::{CellOptions, ForwardStepArgs, ProjectionArgs},
    launch::{Operand, gemm, step_tile},
    layer::DeviceWeights,
};

/// Computes `z = bias + W x` for `rows` rows of `x`, which are snapped as they are read.
pub(crate) fn input_gates<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &DeviceWeights<D>,
    x: Address,
    rows: usize,
    z: Address,
) -> Result<Launch> {
    let LayerSpec { input_size, hidden_size, .. } = layer.spec;
    let x = Operand { snap: true, ..Operand::contiguous_lines(x, input_size) };
    let w = Operand::contiguous_lines(driver.address(&layer.w), input_size);
    let bias = layer.bias.as_ref().map(|bias| (driver.address(bias), 0));
    gemm(driver, op, [rows, 4 * hidden_size, input_size], 1, (x, w), bias, z)
}

/// The memory that one step of the forward pass reads and writes. Shapes are those of [`ForwardStepArgs`].
#[derive(Clone, Copy)]
pub(crate) struct StepBuffers {
    /// `bias + W x`.
    pub(crate) z: Address,
    /// h before and after the step.
    pub(crate) h: [Address; 2],
    /// c before and after the step.
    pub(crate) c: [Address; 2],
    /// The projection's operand; 0 without a projection.
    pub(crate) unprojected: Address,
    /// The step's output; 0 if only the new h is needed, which has the same values.
    pub(crate) y: Address,
    /// The gates' activations; 0 in inference.
    pub(crate) gates: Address,
}

/// Appends the launches of one step. The first `active` of the batch's rows have the step; the others keep their state.
pub(crate) fn push_step<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &DeviceWeights<D>,
    batch: usize,
    active: usize,
    buffers: StepBuffers,
    launches: &mut Vec<Launch>,
) -> Result<()> {
    let spec = &layer.spec;
    let StepBuffers { z, h: [h_old, h_new], c: [c_old, c_new], unprojected, y, gates } = buffers;
    let has_projection = spec.proj_size.is_some();
    let null_if_projected = |address| if has_projection { 0 } else { address };
    let [batch_size, active, hidden, state_size] = [
        kernel_size(op, batch)?,
        kernel_size(op, active)?,
        kernel_size(op, spec.hidden_size)?,
        kernel_size(op, spec.state_size())?,
    ];
    let args = ForwardStepArgs {
        z,
        u: driver.address(&layer.u),
        h_old,
        c_old,
        peephole: layer.peephole(driver),
        h_new: null_if_projected(h_new),
        c_new,
        y: null_if_projected(y),
        gates,
        unprojected,
        batch: batch_size,
        active,
        hidden,
        state_size,
        cell: CellOptions::new(spec),
    };
    let shape = [batch, 4 * spec.hidden_size];
    let tile = step_tile(driver, [shape[0], shape[1], spec.state_size()]);
    let kernels = ["forward_step_small", "forward_step_medium", "tf32_forward_step"];
    launches.push(tile.launch(op, &kernels, shape, args)?);
    if has_projection {
        let w_hr = layer.projection(driver);
        let args = ProjectionArgs { unprojected, w_hr, h_old, h_new, y, batch: batch_size, active, hidden, state_size };
        let shape = [batch, spec.state_size()];
        let tile = step_tile(driver, [shape[0], shape[1], spec.hidden_size]);
        let kernels = ["forward_projection_small", "forward_projection_medium", "tf32_forward_projection"];
        launches.push(tile.launch(op, &kernels, shape, args)?);
    }
    Ok(())
}
