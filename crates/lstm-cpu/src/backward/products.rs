//! What a chunk of steps adds to the gradients of weights and inputs.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::{CellKind, arithmetic::BLOCK};

use super::{Run, scratch::Sizes};
use crate::{
    elementwise::ColumnArgs,
    kernels::{PANEL_VECTORS, Strided},
    pool::Member,
    product::{Onto, Product, ROWS},
    trace::Trace,
};

impl Run<'_> {
    /// The gradients of weights and inputs that a chunk's steps give; the first are added to what is there if `onto`.
    ///
    /// # Safety
    /// As for [`work`](Self::work).
    pub(super) unsafe fn products(&self, member: Member<'_>, chunk: Range<usize>, onto: bool) {
        let (spec, kernels, trace, sizes) = (&self.layer.spec, self.layer.kernels, self.trace, self.sizes);
        let (hidden, input, state, batch) = (spec.hidden_size, spec.input_size, spec.state_size(), trace.batch);
        let Sizes { width, padded, padded_state, .. } = sizes;
        let k = chunk.len() * batch;
        let mode = if onto { Onto::Output } else { Onto::Nothing };
        // Dealt out in turn: pieces of one kind cost alike.
        let mut piece = 0;
        let mut mine = || {
            piece += 1;
            piece % member.size == member.rank
        };
        // SAFETY: offsets follow the layouts in `Scratch`, `Trace` and `Outputs`; pieces have rows or columns of their
        // own, and each member its part of `product`.
        unsafe {
            let z = self.product.add(member.rank * sizes.product);
            let scratch = std::slice::from_raw_parts_mut(z, sizes.product);
            let x = Strided::rows(trace.x.as_slice().as_ptr().add(chunk.start * batch * input), input);
            let before = Trace::places(spec.reverse, chunk.start).0 * batch;
            let dense = spec.cell == CellKind::PeepholeDense;
            let (seen, stride) = if dense { (&trace.c, padded) } else { (&trace.h, self.layer.padded_state()) };
            let seen = Strided::rows(seen.as_ptr().add(before * stride), stride);
            // The dense peephole's candidate does not see the state: its part stays as it is.
            for (n, b, out, blind) in [(input, x, self.dw, false), (state, seen, self.du, dense)] {
                // Of a gate, by blocks of units.
                let product = |gate: usize, first: usize| {
                    let at = self.dz.add(gate * sizes.gate + sizes.unit(first));
                    let (a, ahead) = (Strided::rows(at, BLOCK).t(), at.wrapping_add(sizes.block));
                    let out = out.add((gate * hidden + first) * n);
                    Product { kernels, m: BLOCK.min(hidden - first), k, n, a, b, onto: mode, ahead, out, ldo: n }
                };
                // Gates share a packed panel, unless there are too few panels for all members.
                let gates = if n / width < 2 * member.size { 1 } else { PANEL_VECTORS };
                for (p, _) in (0..n).step_by(width).enumerate() {
                    for first in (0..PANEL_VECTORS).step_by(gates).filter(|_| mine()) {
                        product(first, 0).pack(p, scratch);
                        for gate in (first..first + gates).filter(|gate| !(blind && *gate == 2)) {
                            for unit in (0..hidden).step_by(BLOCK) {
                                let product = product(gate, unit);
                                product.multiply(p, 0..product.m, scratch);
                            }
                        }
                    }
                }
            }
            if !self.projection.is_null() {
                let a = Strided::rows(self.projected, padded_state).t();
                let b = Strided::rows(self.operand, padded);
                let (out, ldo) = (self.projection, hidden);
                let product = Product { kernels, m: state, k, n: hidden, a, b, onto: mode, ahead: null(), out, ldo };
                for p in (0..product.panels()).filter(|_| mine()) {
                    product.panel(p, 0..state, scratch);
                }
            }
            if !self.dx.is_null() {
                for (p, first_col) in (0..input).step_by(width).enumerate() {
                    let panel = self.reversed_input.add(p * PANEL_VECTORS * hidden * width);
                    let len = width.min(input - first_col);
                    for first in (0..k).step_by(ROWS).filter(|_| mine()) {
                        let count = ROWS.min(k - first);
                        self.gates_product(count, self.dz.add(first * BLOCK), panel, z, |_| false);
                        for r in 0..count {
                            let to = self.dx.add((chunk.start * batch + first + r) * input + first_col);
                            ptr::copy_nonoverlapping(z.add(r * width), to, len);
                        }
                    }
                }
            }
            // Sums of columns, a vector of them at a time.
            let sums = |first: usize, gate: usize, y: *const f32, out: *mut f32| {
                let mut sums = [0.0; 16];
                let x = self.dz.add(gate * sizes.gate + sizes.unit(first));
                let out_vector = sums.as_mut_ptr();
                (kernels.column_sums)(&ColumnArgs { rows: k, x, ldx: BLOCK, y, ldy: padded, out: out_vector });
                for (j, sum) in sums[..kernels.lanes.min(hidden - first)].iter().enumerate() {
                    let out = out.add(first + j);
                    *out = if onto { *out + sum } else { *sum };
                }
            };
            let c = |place: usize, first: usize| trace.c.as_ptr().add(place * batch * padded + first);
            let (old, new) = Trace::places(spec.reverse, chunk.start);
            for first in (0..hidden).step_by(kernels.lanes).filter(|_| mine()) {
                for gate in 0..if self.bias.is_null() { 0 } else { PANEL_VECTORS } {
                    sums(first, gate, null(), self.bias.add(gate * hidden));
                }
                for (out, (gate, place)) in self.peephole.into_iter().zip([(0, old), (1, old), (3, new)]) {
                    if !out.is_null() {
                        sums(first, gate, c(place, first), out);
                    }
                }
            }
        }
    }
}
