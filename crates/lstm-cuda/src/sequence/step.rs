//! Launches of one step of the forward pass.

use lstm_core::{LayerSpec, Result};

use crate::{
    driver::{Address, Driver, Launch, checked_u32},
    kernels::args::{CellOptions, ForwardStepArgs, ProjectionArgs},
    launch::{Operand, gemm, step_tile},
    layer::DeviceWeights,
};

/// Returns the launch that computes `z = bias + W x` for `rows` rows of `x`. The rows are snapped (magnitudes below
/// 2^-40 are replaced by zero) as they are read.
pub(crate) fn input_term_launch<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &DeviceWeights<D>,
    x: Address,
    rows: usize,
    z: Address,
) -> Result<Launch> {
    let LayerSpec { input_size, hidden_size, .. } = layer.spec;
    let x = Operand { snap: true, ..Operand::contiguous_depth(x, input_size) };
    let w = Operand::contiguous_depth(driver.address(&layer.w), input_size);
    let bias = layer.bias.as_ref().map(|bias| (driver.address(bias), 0));
    gemm(driver, op, [rows, 4 * hidden_size, input_size], 1, (x, w), bias, z)
}

/// The memory that one step of the forward pass reads and writes. The shapes are as in [`ForwardStepArgs`].
#[derive(Clone, Copy)]
pub(crate) struct StepBuffers {
    /// `bias + W x`.
    pub(crate) z: Address,
    /// h before and after the step.
    pub(crate) h: [Address; 2],
    /// c before and after the step.
    pub(crate) c: [Address; 2],
    /// The projection's input; 0 without a projection.
    pub(crate) projection_input: Address,
    /// The step's output; 0 if the caller reads the new h instead, which has the same values.
    pub(crate) y: Address,
    /// The gates' activations; 0 in inference.
    pub(crate) gates: Address,
}

/// Appends the launches of one step. Only the first `active_rows` sequences of the batch are long enough to have this
/// step; the others keep their state.
pub(crate) fn push_step_launches<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &DeviceWeights<D>,
    batch: usize,
    active_rows: usize,
    buffers: StepBuffers,
    launches: &mut Vec<Launch>,
) -> Result<()> {
    let spec = &layer.spec;
    let StepBuffers { z, h: [h_old, h_new], c: [c_old, c_new], projection_input, y, gates } = buffers;
    let has_projection = spec.proj_size.is_some();
    let null_if_projected = |address| if has_projection { 0 } else { address };
    let [batch_size, active_rows, hidden, state_size] = [
        checked_u32(op, batch)?,
        checked_u32(op, active_rows)?,
        checked_u32(op, spec.hidden_size)?,
        checked_u32(op, spec.state_size())?,
    ];
    let args = ForwardStepArgs {
        z,
        u: driver.address(&layer.u),
        h_old,
        c_old,
        peephole: layer.peephole_address(driver),
        h_new: null_if_projected(h_new),
        c_new,
        y: null_if_projected(y),
        gates,
        projection_input,
        batch: batch_size,
        active_rows,
        hidden,
        state_size,
        cell: CellOptions::new(spec),
    };
    let shape = [batch, 4 * spec.hidden_size];
    let tile = step_tile(driver, [shape[0], shape[1], spec.state_size()]);
    let kernels = ["forward_step_small", "forward_step_medium", "tf32_forward_step"];
    launches.push(tile.launch(op, &kernels, shape, args)?);
    if has_projection {
        let w_hr = layer.projection_address(driver);
        let args = ProjectionArgs {
            projection_input,
            w_hr,
            h_old,
            h_new,
            y,
            batch: batch_size,
            active_rows,
            hidden,
            state_size,
        };
        let shape = [batch, spec.state_size()];
        let tile = step_tile(driver, [shape[0], shape[1], spec.hidden_size]);
        let kernels = ["forward_projection_small", "forward_projection_medium", "tf32_forward_projection"];
        launches.push(tile.launch(op, &kernels, shape, args)?);
    }
    Ok(())
}
