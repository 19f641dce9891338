//! Ring buffers of states: memory that holds `h: [slot_count, batch, state]`, then `c: [slot_count, batch, hidden]`.

use std::sync::Arc;

use lstm_core::{LayerSpec, MatrixShape, Result, State, shape::checked_len};

use crate::{
    device::Gpu,
    memory::{DeviceMemory, Tensor},
    shader::CopyParameters,
};

/// Position of a state in a ring buffer.
#[derive(Clone, Copy)]
pub(super) struct StateSlot {
    /// Number of states in the ring buffer.
    pub(super) slot_count: usize,
    /// Number of sequences.
    pub(super) batch: usize,
    /// Index of the state.
    pub(super) index: usize,
}

/// Allocates a ring buffer and copies `state` to `slot`, snapped. The other slots are unspecified.
pub(super) fn allocate_states(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    slot: StateSlot,
    state: &State<Tensor>,
) -> Result<Arc<DeviceMemory>> {
    let rows = checked_len(op, &[slot.slot_count, slot.batch])?;
    let memory = gpu.allocate(op, checked_len(op, &[rows, spec.state_size() + spec.hidden_size])?)?;
    write_state(gpu, op, spec, &memory, slot, state)?;
    Ok(memory)
}

/// Copies `state` to `slot` of a ring buffer, snapped.
pub(super) fn write_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<DeviceMemory>,
    StateSlot { slot_count, batch, index }: StateSlot,
    state: &State<Tensor>,
) -> Result<()> {
    let copy_snapped = |x: &Tensor, offset: usize| {
        let (rows, cols) = (x.shape.rows as u32, x.shape.cols as u32);
        let y_offset = offset as u32;
        let parameters =
            CopyParameters { rows, cols, x_offset: 0, x_stride: cols, y_offset, y_stride: cols, snap_values: 1 };
        gpu.copy_rectangle(op, &x.memory, memory, &parameters)
    };
    copy_snapped(&state.h, index * batch * spec.state_size())?;
    copy_snapped(&state.c, slot_count * batch * spec.state_size() + index * batch * spec.hidden_size)
}

/// Copies the state at `slot` of a ring buffer to new tensors.
pub(super) fn read_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<DeviceMemory>,
    StateSlot { slot_count, batch, index }: StateSlot,
) -> Result<State<Tensor>> {
    let (state, hidden) = (MatrixShape::new(batch, spec.state_size()), MatrixShape::new(batch, spec.hidden_size));
    Ok(State {
        h: gpu.copy_rows(op, memory, index * state.len(), state)?,
        c: gpu.copy_rows(op, memory, slot_count * state.len() + index * hidden.len(), hidden)?,
    })
}
