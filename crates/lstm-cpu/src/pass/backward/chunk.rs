//! The contributions of a chunk of time steps to the gradients of the weights and of the input.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::{CellKind, arithmetic::BLOCK};

use super::{BackwardPass, scratch::ScratchLayout};
use crate::{
    kernel::{
        elementwise::ColumnSumArgs,
        matmul::{Addend, MatMul, ROWS_PER_PASS},
        strided::StridedMatrix,
        table::PANEL_VECTORS,
    },
    pass::trace::Trace,
    pool::Member,
};

impl BackwardPass<'_> {
    /// Computes this thread's part of the gradients that the time steps in `chunk` contribute. Writes the gradient of
    /// the input. Adds to the gradients of the weights if `accumulate`, else overwrites them.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    pub(super) unsafe fn accumulate_chunk(&self, member: Member<'_>, chunk: Range<usize>, accumulate: bool) {
        let (spec, kernels, trace, layout) = (&self.layer.spec, self.layer.kernels, self.trace, self.layout);
        let (hidden, input, state, batch) = (spec.hidden_size, spec.input_size, spec.state_size(), trace.batch);
        let ScratchLayout { panel_width: width, padded_hidden: padded, padded_state, .. } = layout;
        let k = chunk.len() * batch;
        let addend = if accumulate { Addend::Output } else { Addend::None };
        // Tasks go to the threads round-robin: those of one kind take equally long.
        let mut task = 0;
        let mut is_mine = || {
            task += 1;
            task % member.size == member.rank
        };
        // SAFETY: offsets follow the layouts in `Scratch`, `Trace` and `GradientBuffers`. Tasks write to disjoint rows
        // or columns, and each thread has its own part of `product`.
        unsafe {
            let sums = self.product.add(member.rank * layout.product_len);
            let scratch = std::slice::from_raw_parts_mut(sums, layout.product_len);
            let x = StridedMatrix::row_major(trace.x.as_slice().as_ptr().add(chunk.start * batch * input), input);
            let first_row = Trace::state_indices(spec.reverse, chunk.start).0 * batch;
            let dense = spec.cell == CellKind::PeepholeDense;
            let (operand, stride) = if dense { (&trace.c, padded) } else { (&trace.h, self.layer.padded_state()) };
            let operand = StridedMatrix::row_major(operand.as_ptr().add(first_row * stride), stride);
            // The candidate of the dense peephole cell has no recurrent weights: its part of `du` is not written.
            for (n, b, out, skip_candidate) in [(input, x, self.dw, false), (state, operand, self.du, dense)] {
                // The product for one block of units of one gate.
                let matmul = |gate: usize, first: usize| {
                    let dz = self.dz.add(gate * layout.gate_stride + layout.unit_offset(first));
                    let a = StridedMatrix::row_major(dz, BLOCK).transposed();
                    let prefetch = dz.wrapping_add(layout.block_stride);
                    let out = out.add((gate * hidden + first) * n);
                    MatMul { kernels, m: BLOCK.min(hidden - first), k, n, a, b, addend, prefetch, out, ldo: n }
                };
                // Gates share a packed panel, unless there are too few panels for all threads.
                let gates = if n / width < 2 * member.size { 1 } else { PANEL_VECTORS };
                for (p, _) in (0..n).step_by(width).enumerate() {
                    for first in (0..PANEL_VECTORS).step_by(gates).filter(|_| is_mine()) {
                        matmul(first, 0).pack_panel(p, scratch);
                        for gate in (first..first + gates).filter(|gate| !(skip_candidate && *gate == 2)) {
                            for unit in (0..hidden).step_by(BLOCK) {
                                let matmul = matmul(gate, unit);
                                matmul.multiply_packed(p, 0..matmul.m, scratch);
                            }
                        }
                    }
                }
            }
            if !self.projection.is_null() {
                let a = StridedMatrix::row_major(self.dh_projected, padded_state).transposed();
                let b = StridedMatrix::row_major(self.h_unprojected, padded);
                let (out, ldo) = (self.projection, hidden);
                let matmul = MatMul { kernels, m: state, k, n: hidden, a, b, addend, prefetch: null(), out, ldo };
                for p in (0..matmul.panel_count()).filter(|_| is_mine()) {
                    matmul.compute_panel(p, 0..state, scratch);
                }
            }
            if !self.dx.is_null() {
                for (p, first_col) in (0..input).step_by(width).enumerate() {
                    let panel = self.input_weights.add(p * PANEL_VECTORS * hidden * width);
                    let len = width.min(input - first_col);
                    for first in (0..k).step_by(ROWS_PER_PASS).filter(|_| is_mine()) {
                        let count = ROWS_PER_PASS.min(k - first);
                        self.sum_gate_products(count, self.dz.add(first * BLOCK), panel, sums, |_| false);
                        for r in 0..count {
                            let to = self.dx.add((chunk.start * batch + first + r) * input + first_col);
                            ptr::copy_nonoverlapping(sums.add(r * width), to, len);
                        }
                    }
                }
            }
            // Writes the column sums of `dz`, or of `dz * y`, for one vector of units of a gate.
            let column_sums = |first: usize, gate: usize, y: *const f32, out: *mut f32| {
                let mut sums = [0.0; 16];
                let x = self.dz.add(gate * layout.gate_stride + layout.unit_offset(first));
                let vector = sums.as_mut_ptr();
                (kernels.column_sums)(&ColumnSumArgs { rows: k, x, ldx: BLOCK, y, ldy: padded, out: vector });
                for (j, sum) in sums[..kernels.lanes.min(hidden - first)].iter().enumerate() {
                    let out = out.add(first + j);
                    *out = if accumulate { *out + sum } else { *sum };
                }
            };
            let c = |index: usize, first: usize| trace.c.as_ptr().add(index * batch * padded + first);
            let (old, new) = Trace::state_indices(spec.reverse, chunk.start);
            for first in (0..hidden).step_by(kernels.lanes).filter(|_| is_mine()) {
                for gate in 0..if self.bias.is_null() { 0 } else { PANEL_VECTORS } {
                    column_sums(first, gate, null(), self.bias.add(gate * hidden));
                }
                for (out, (gate, index)) in self.peephole.into_iter().zip([(0, old), (1, old), (3, new)]) {
                    if !out.is_null() {
                        column_sums(first, gate, c(index, first), out);
                    }
                }
            }
        }
    }
}
