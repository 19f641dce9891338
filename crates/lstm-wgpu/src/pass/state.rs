//! Ring buffers of states: memory that holds `h: [slot_count, batch, state]`, then `c: [slot_count, batch, hidden]`.

use std::{ops::Range, sync::Arc};

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
    write_state(gpu, op, spec, &memory, slot, 0, state)?;
    Ok(memory)
}

/// Copies `state` to `slot` of a ring buffer, snapped, for the sequences from number `first_sequence` on.
pub(super) fn write_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<DeviceMemory>,
    StateSlot { slot_count, batch, index }: StateSlot,
    first_sequence: usize,
    state: &State<Tensor>,
) -> Result<()> {
    let copy_snapped = |x: &Tensor, offset: usize| {
        let (rows, cols) = (x.shape.rows as u32, x.shape.cols as u32);
        let y_offset = offset as u32;
        let parameters =
            CopyParameters { rows, cols, x_offset: 0, x_stride: cols, y_offset, y_stride: cols, snap_values: 1 };
        gpu.copy_rectangle(op, &x.memory, memory, &parameters)
    };
    let row = index * batch + first_sequence;
    copy_snapped(&state.h, row * spec.state_size())?;
    copy_snapped(&state.c, slot_count * batch * spec.state_size() + row * spec.hidden_size)
}

/// Copies the state of some sequences at `slot` of a ring buffer to new tensors.
pub(super) fn read_state(
    gpu: &Gpu,
    op: &'static str,
    spec: &LayerSpec,
    memory: &Arc<DeviceMemory>,
    StateSlot { slot_count, batch, index }: StateSlot,
    sequences: Range<usize>,
) -> Result<State<Tensor>> {
    let (row, state, hidden) = (index * batch + sequences.start, spec.state_size(), spec.hidden_size);
    let copy = |offset, cols| gpu.copy_rows(op, memory, offset, MatrixShape::new(sequences.len(), cols));
    Ok(State { h: copy(row * state, state)?, c: copy(slot_count * batch * state + row * hidden, hidden)? })
}
