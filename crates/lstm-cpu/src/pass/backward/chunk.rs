//! The contributions of a chunk of time steps to the gradients of the weights and of the input.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::{CellKind, arithmetic::DOT_BLOCK};

use super::{BackwardPass, scratch::ScratchLayout};
use crate::{
    kernel::{
        elementwise::ColumnSumArgs,
        matmul::{Addend, MAX_ROWS_PER_PRODUCT, MatMul},
        strided::StridedMatrix,
        table::PANEL_VECTORS,
    },
    pass::trace::Trace,
    pool::TeamMember,
};

impl BackwardPass<'_> {
    /// Computes this thread's part of the gradients that the time steps in `chunk` contribute. Writes the gradient of
    /// the input. Adds to the gradients of the weights if `accumulate`, else overwrites them.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    pub(super) unsafe fn accumulate_chunk(&self, member: TeamMember<'_>, chunk: Range<usize>, accumulate: bool) {
        let (spec, kernels, trace, layout) = (&self.layer.spec, self.layer.kernels, self.trace, self.layout);
        let (hidden, input, state, batch) = (spec.hidden_size, spec.input_size, spec.state_size(), trace.batch);
        let ScratchLayout { panel_width: width, padded_hidden, padded_state, .. } = layout;
        let k = chunk.len() * batch;
        let addend = if accumulate { Addend::ExistingOutput } else { Addend::None };
        // Tasks go to the threads round-robin: those of one kind take equally long.
        let mut task_index = 0;
        let mut is_own_task = || {
            task_index += 1;
            task_index % member.size == member.rank
        };
        // SAFETY: offsets follow the layouts in `Scratch`, `Trace` and `GradientBuffers`. Tasks write to disjoint rows
        // or columns, and each thread has its own part of `product_scratch`.
        unsafe {
            let sums = self.product_scratch.add(member.rank * layout.product_scratch_len);
            let scratch = std::slice::from_raw_parts_mut(sums, layout.product_scratch_len);
            let x = StridedMatrix::row_major(trace.x.as_slice().as_ptr().add(chunk.start * batch * input), input);
            let first_state_row = Trace::state_indices(spec.reverse, chunk.start).0 * batch;
            let is_dense = spec.cell == CellKind::PeepholeDense;
            let (recurrent_operand, stride) =
                if is_dense { (&trace.c, padded_hidden) } else { (&trace.h, self.layer.padded_state()) };
            let recurrent_operand =
                StridedMatrix::row_major(recurrent_operand.as_ptr().add(first_state_row * stride), stride);
            // The candidate of the dense peephole cell has no recurrent weights: its part of `du` is not written.
            for (n, b, out, skip_candidate) in
                [(input, x, self.dw, false), (state, recurrent_operand, self.du, is_dense)]
            {
                // Returns the product that computes the weight gradient of one block of units of one gate.
                let gradient_matmul = |gate: usize, first_unit: usize| {
                    let dz = self.dz.add(gate * layout.gate_stride + layout.unit_offset(first_unit));
                    let a = StridedMatrix::row_major(dz, DOT_BLOCK).transposed();
                    let prefetch_ptr = dz.wrapping_add(layout.block_stride);
                    let out = out.add((gate * hidden + first_unit) * n);
                    MatMul {
                        kernels,
                        m: DOT_BLOCK.min(hidden - first_unit),
                        k,
                        n,
                        a,
                        b,
                        addend,
                        prefetch_ptr,
                        out,
                        ldo: n,
                    }
                };
                // All gates share a packed panel, unless there are too few panels for all threads.
                let gates_per_panel = if n / width < 2 * member.size { 1 } else { PANEL_VECTORS };
                for (p, _) in (0..n).step_by(width).enumerate() {
                    for first_gate in (0..PANEL_VECTORS).step_by(gates_per_panel).filter(|_| is_own_task()) {
                        gradient_matmul(first_gate, 0).pack_panel(p, scratch);
                        for gate in
                            (first_gate..first_gate + gates_per_panel).filter(|gate| !(skip_candidate && *gate == 2))
                        {
                            for unit in (0..hidden).step_by(DOT_BLOCK) {
                                let matmul = gradient_matmul(gate, unit);
                                matmul.multiply_packed_panel(p, 0..matmul.m, scratch);
                            }
                        }
                    }
                }
            }
            if !self.projection.is_null() {
                let a = StridedMatrix::row_major(self.dh_projected, padded_state).transposed();
                let b = StridedMatrix::row_major(self.h_unprojected, padded_hidden);
                let (out, ldo) = (self.projection, hidden);
                let matmul = MatMul { kernels, m: state, k, n: hidden, a, b, addend, prefetch_ptr: null(), out, ldo };
                for p in (0..matmul.panel_count()).filter(|_| is_own_task()) {
                    matmul.compute_panel(p, 0..state, scratch);
                }
            }
            if !self.dx.is_null() {
                for (p, first_col) in (0..input).step_by(width).enumerate() {
                    let panel = self.input_weights.add(p * PANEL_VECTORS * hidden * width);
                    let len = width.min(input - first_col);
                    for first_row in (0..k).step_by(MAX_ROWS_PER_PRODUCT).filter(|_| is_own_task()) {
                        let row_count = MAX_ROWS_PER_PRODUCT.min(k - first_row);
                        self.sum_gate_products(row_count, self.dz.add(first_row * DOT_BLOCK), panel, sums, |_| false);
                        for r in 0..row_count {
                            let to = self.dx.add((chunk.start * batch + first_row + r) * input + first_col);
                            ptr::copy_nonoverlapping(sums.add(r * width), to, len);
                        }
                    }
                }
            }
            // Writes the column sums of `dz`, or of `dz * y`, for one vector of units of a gate.
            let column_sums = |first_unit: usize, gate: usize, y: *const f32, out: *mut f32| {
                let mut sums = [0.0; 16];
                let x = self.dz.add(gate * layout.gate_stride + layout.unit_offset(first_unit));
                let sums_ptr = sums.as_mut_ptr();
                (kernels.column_sums)(&ColumnSumArgs {
                    rows: k,
                    x,
                    ldx: DOT_BLOCK,
                    y,
                    ldy: padded_hidden,
                    out: sums_ptr,
                });
                for (j, sum) in sums[..kernels.lanes.min(hidden - first_unit)].iter().enumerate() {
                    let out = out.add(first_unit + j);
                    *out = if accumulate { *out + sum } else { *sum };
                }
            };
            let c = |index: usize, first_unit: usize| trace.c.as_ptr().add(index * batch * padded_hidden + first_unit);
            let (old_index, new_index) = Trace::state_indices(spec.reverse, chunk.start);
            for first_unit in (0..hidden).step_by(kernels.lanes).filter(|_| is_own_task()) {
                for gate in 0..if self.bias.is_null() { 0 } else { PANEL_VECTORS } {
                    column_sums(first_unit, gate, null(), self.bias.add(gate * hidden));
                }
                for (out, (gate, index)) in
                    self.peephole.into_iter().zip([(0, old_index), (1, old_index), (3, new_index)])
                {
                    if !out.is_null() {
                        column_sums(first_unit, gate, c(index, first_unit), out);
                    }
                }
            }
        }
    }
}
