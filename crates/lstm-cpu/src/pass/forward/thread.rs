//! One thread's part of a forward pass.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::{CellKind, quantized::OperandRange};

use super::ForwardPass;
use crate::{
    kernel::{
        cell::{CellArgs, CellStrides},
        quantized::{IntegerRows, QuantizeArgs, QuantizedTileArgs},
        strided::StridedMatrix,
        table::MAX_PANEL_WIDTH,
        tile::TileArgs,
    },
    layer::{ALL_GATES, PackedLayer, Plan, QuantizedLayer, recurrent_gates},
    pass::trace::Trace,
    pool::TeamMember,
};

/// Indices, into the arrays of states `h` and `c`, of the states before and after a time step.
struct StateIndices {
    h_old_index: usize,
    h_new_index: usize,
    c_old_index: usize,
    c_new_index: usize,
}

/// A panel row of zeros, of the widest vectors: the addend of the projection.
static ZEROS: [f32; MAX_PANEL_WIDTH] = [0.0; MAX_PANEL_WIDTH];

impl ForwardPass<'_> {
    /// Number of sequences that have a time step `t`. They are the first rows of the batch.
    fn active_sequences(&self, t: usize) -> usize {
        self.lengths.map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }

    /// Indices of the states before and after time step `t`, which is the `k`th time step in the order of execution.
    fn state_indices(&self, k: usize, t: usize) -> StateIndices {
        if !self.gates.is_null() {
            let (old, new) = Trace::state_indices(self.layer.spec.reverse, t);
            return StateIndices { h_old_index: old, h_new_index: new, c_old_index: old, c_new_index: new };
        }
        let old = (self.initial_state_index + k) % 2;
        let c = |h| Plan::c_state_index(self.layer.spec.cell, h);
        StateIndices { h_old_index: old, h_new_index: 1 - old, c_old_index: c(old), c_new_index: c(1 - old) }
    }

    /// Runs one thread's part of some blocks of time steps, in the order of execution.
    ///
    /// # Safety
    /// The pointers are valid for what [`ForwardPass`] describes. All members of a team call this, each with its own
    /// rank.
    pub(super) unsafe fn run_thread(&self, member: TeamMember<'_>, blocks: Range<usize>) {
        let panels = member.partition(self.layer.panels);
        let has_single_row_kernel = self.batch == 1 && member.size == 1 && self.layer.has_single_row_kernel();
        for first_step in blocks.map(|block| block * self.block_steps) {
            let step_count = self.block_steps.min(self.steps - first_step);
            // First time step of the block in memory, for either direction.
            let block_start = if self.layer.spec.reverse { self.steps - first_step - step_count } else { first_step };
            if !has_single_row_kernel || self.block_steps > 1 {
                // SAFETY: guaranteed by the caller.
                unsafe {
                    if let Some(quantized) = &self.layer.quantized {
                        self.quantize_input(quantized, member, block_start, step_count);
                        // Threads read the rows of all threads until the barrier of a time step.
                        member.barrier();
                    }
                    self.input_products(panels.clone(), block_start, step_count);
                }
            }
            for k in first_step..first_step + step_count {
                let t = if self.layer.spec.reverse { self.steps - 1 - k } else { k };
                let active_rows = self.active_sequences(t);
                if active_rows == 0 && self.gates.is_null() {
                    continue;
                }
                // SAFETY: guaranteed by the caller.
                unsafe {
                    self.step(panels.clone(), member, has_single_row_kernel, k, t, t - block_start, active_rows);
                    member.barrier();
                    if self.layer.spec.proj_size.is_some() {
                        self.project(member, k, t, active_rows);
                        member.barrier();
                    }
                }
            }
        }
    }

    /// Quantizes this thread's share of the inputs of `step_count` time steps from `first_step` on.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    unsafe fn quantize_input(
        &self,
        quantized: &QuantizedLayer,
        member: TeamMember<'_>,
        first_step: usize,
        step_count: usize,
    ) {
        let input_size = self.layer.spec.input_size;
        // In a single time step, only the rows of sequences that have it.
        let rows = if step_count == 1 { self.active_sequences(first_step) } else { step_count * self.batch };
        let rows = member.partition(rows);
        // SAFETY: the input has these rows, and `quantized_input` has rows for a block of time steps.
        unsafe {
            (quantized.kernels.quantize_rows)(&QuantizeArgs {
                rows: rows.len(),
                k: input_size,
                x: self.input.add((first_step * self.batch + rows.start) * input_size),
                ldx: input_size,
                range: OperandRange::Any,
                table: &quantized.table,
                to: self.quantized_input.skip(rows.start),
            });
        }
    }

    /// Quantizes the first `count` rows of an operand of a time step into this thread's part of `quantized_state`, and
    /// returns that part.
    ///
    /// # Safety
    /// `x` has `count` rows of `k` values that are `ldx` floats apart; otherwise as for
    /// [`run_thread`](Self::run_thread).
    unsafe fn quantize_state(
        &self,
        quantized: &QuantizedLayer,
        member: TeamMember<'_>,
        count: usize,
        (x, k, ldx): (*const f32, usize, usize),
        range: OperandRange,
    ) -> IntegerRows {
        // SAFETY: each thread has a row for each sequence; otherwise guaranteed by the caller.
        unsafe {
            let to = self.quantized_state.skip(member.rank * self.batch);
            let table = &quantized.table;
            (quantized.kernels.quantize_rows)(&QuantizeArgs { rows: count, k, x, ldx, range, table, to });
            to
        }
    }

    /// Computes `W x` for `step_count` time steps from `first_step` on, or the sum of the bias and `W x` in a quantized
    /// layer, whose inputs are quantized already.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    unsafe fn input_products(&self, panels: Range<usize>, first_step: usize, step_count: usize) {
        let (kernels, input_size) = (self.layer.kernels, self.layer.spec.input_size);
        let width = kernels.panel_width();
        // With lengths, only the rows of sequences that have the time step, so one product per time step.
        let product_count = if self.lengths.is_some() { step_count } else { 1 };
        for p in panels {
            for product_index in 0..product_count {
                let rows = if self.lengths.is_some() {
                    self.active_sequences(first_step + product_index)
                } else {
                    step_count * self.batch
                };
                // SAFETY: `w` and `wx` have panel `p`; the input has rows for `step_count` time steps from `first_step`
                // on.
                unsafe {
                    let out = self.wx.add((p * self.block_steps + product_index) * self.batch * width);
                    if let Some(quantized) = &self.layer.quantized {
                        let args = QuantizedTileArgs {
                            rows: self.quantized_input.skip(product_index * self.batch),
                            panel: quantized.w.panel(p),
                            addend: self.layer.bias.as_ptr().add(p * width),
                            addend_stride: 0,
                            out,
                            ldo: width,
                            prefetch: null(),
                        };
                        let next_panel = quantized.w.panel((p + 1) % self.layer.panels).weights;
                        quantized.kernels.multiply_panel(rows, args, next_panel);
                        continue;
                    }
                    let a = StridedMatrix::row_major(
                        self.input.add((first_step + product_index) * self.batch * input_size),
                        input_size,
                    );
                    let panel = self.layer.w.as_ptr().add(p * input_size * width);
                    let args = TileArgs::new(input_size, a, panel, out, width);
                    kernels.multiply_panel(rows, args);
                }
            }
        }
    }

    /// Computes time step `t` of the first `active_rows` rows. `t` is the `k`th time step in the order of execution,
    /// and `step_in_block` is its index in the block of time steps. If `has_single_row_kernel`, that kernel computes the
    /// whole time step. It also computes the input products if the block has only one time step.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    #[expect(clippy::too_many_arguments, reason = "called from one place")]
    unsafe fn step(
        &self,
        panels: Range<usize>,
        member: TeamMember<'_>,
        has_single_row_kernel: bool,
        k: usize,
        t: usize,
        step_in_block: usize,
        active_rows: usize,
    ) {
        let PackedLayer { spec, kernels, .. } = self.layer;
        let (lanes, width) = (kernels.lanes, kernels.panel_width());
        let (padded_hidden, padded_state, state) =
            (self.layer.padded_hidden(), self.layer.padded_state(), spec.state_size());
        let indices = self.state_indices(k, t);
        let quantized = self.layer.quantized.as_ref();
        // SAFETY: offsets follow the layouts in `PackedLayer`, `Plan` and `Trace`.
        unsafe {
            let c_old = self.c.add(indices.c_old_index * self.batch * padded_hidden);
            let c_new = self.c.add(indices.c_new_index * self.batch * padded_hidden);
            let h_old = self.h.add(indices.h_old_index * self.batch * padded_state);
            let h_new = match spec.proj_size {
                Some(_) => self.h_unprojected,
                None => self.h.add(indices.h_new_index * self.batch * padded_hidden),
            };
            let (recurrent_operand, stride) =
                if spec.cell == CellKind::PeepholeDense { (c_old, padded_hidden) } else { (h_old, padded_state) };
            // For a single sequence, the cell kernel runs over the panels at once; else over the rows of each panel.
            let is_single_sequence = self.batch == 1;
            let strides = match is_single_sequence {
                true => {
                    let gates = recurrent_gates(spec.cell).len();
                    let wx =
                        if quantized.is_some() && !has_single_row_kernel { width } else { self.block_steps * width };
                    CellStrides::for_panels(kernels, wx, gates * lanes, self.steps * width)
                }
                false => CellStrides::for_rows(kernels, padded_hidden, self.ldy),
            };
            // Where the products of recurrent panel `r` go. For a single sequence, two threads may compute the same
            // panel, so each has its own copy.
            let uh = |r: usize| match is_single_sequence {
                true => self.uh.add((r + member.rank) * width),
                false => {
                    let index = member.rank * self.layer.recurrent_panels_per_group() + self.layer.index_in_group(r);
                    self.uh.add(index * self.batch * width)
                }
            };
            let y = |p: usize| match spec.proj_size {
                Some(_) => ptr::null_mut(),
                None => self.y.add(t * self.batch * self.ldy + p * lanes),
            };
            let wx = |p: usize| self.wx.add((p * self.block_steps + step_in_block) * self.batch * width);
            // The products of a quantized layer are complete sums in `uh`.
            let has_complete_sums = quantized.is_some() && !has_single_row_kernel;
            let panel_cell_args = |p: usize| CellArgs {
                item_count: if is_single_sequence { panels.len() } else { active_rows },
                strides,
                wx: if has_complete_sums { uh(p) } else { wx(p) },
                uh: ALL_GATES.map(|gate| {
                    let (r, vector_index) = self.layer.recurrent_vector_position(p, gate);
                    uh(r).add(vector_index * lanes).cast_const()
                }),
                bias: if has_complete_sums { null() } else { self.layer.bias.as_ptr().add(p * width) },
                peephole: self.layer.peephole.as_ptr().wrapping_add(p * 3 * lanes),
                c_old: c_old.add(p * lanes),
                c_new: c_new.add(p * lanes),
                h: h_new.add(p * lanes),
                gates: match self.gates.is_null() {
                    true => self.gates,
                    false => self.gates.add(((p * self.steps + t) * self.batch) * width),
                },
                y: y(p),
                units: spec.hidden_size - p * lanes,
                kind: spec.cell,
                coupled: spec.coupled,
                clip: spec.clip,
            };
            let u = self.layer.u.as_ptr();
            if has_single_row_kernel && active_rows > 0 {
                let input = if self.block_steps == 1 { self.input.add(t * spec.input_size) } else { null() };
                let scratch = [self.quantized_input.q, self.quantized_state.q];
                self.layer.single_row_step(input, recurrent_operand, panel_cell_args(0), scratch);
            } else {
                let integers = quantized.map(|quantized| {
                    let operand = (recurrent_operand.cast_const(), state, stride);
                    self.quantize_state(quantized, member, active_rows, operand, spec.recurrent_range())
                });
                // The order of the groups alternates: those that the previous time step used last are still in the
                // cache.
                let groups = self.layer.groups_of_panels(panels.clone());
                // This thread's panels in the `n`th group that runs.
                let own_panels = |n: usize| {
                    let n = if k.is_multiple_of(2) { groups.start + n } else { groups.end - 1 - n };
                    let group_panels = self.layer.panels_of_group(n);
                    panels.start.max(group_panels.start)..panels.end.min(group_panels.end)
                };
                for n in 0..groups.len() {
                    // Each row of a panel's output is on a cache line of its own, and writing many is faster with
                    // prefetch. With one row it was slower; two were not measured.
                    if active_rows > 2 && spec.proj_size.is_none() {
                        own_panels(n).for_each(|p| (kernels.prefetch_rows)(y(p), active_rows, self.ldy));
                    }
                    let recurrent_panels = self.layer.recurrent_panels(own_panels(n));
                    let next_group_start = self.layer.recurrent_panels(own_panels((n + 1).min(groups.len() - 1))).start;
                    for r in recurrent_panels.clone() {
                        let next_recurrent_panel = if r + 1 < recurrent_panels.end { r + 1 } else { next_group_start };
                        if let (Some(quantized), Some(rows)) = (quantized, integers) {
                            let args = QuantizedTileArgs {
                                rows,
                                panel: quantized.u.panel(r),
                                addend: wx(r),
                                addend_stride: width,
                                out: uh(r),
                                ldo: width,
                                prefetch: null(),
                            };
                            let next_panel = quantized.u.panel(next_recurrent_panel).weights;
                            quantized.kernels.multiply_panel(active_rows, args, next_panel);
                            continue;
                        }
                        let (panel, next_panel) =
                            (u.add(r * state * width), u.add(next_recurrent_panel * state * width));
                        let a = StridedMatrix::row_major(recurrent_operand, stride);
                        let args = TileArgs::new(state, a, panel, uh(r), width);
                        kernels.multiply_panel(active_rows, TileArgs { next_panel, ..args });
                    }
                    if !is_single_sequence {
                        own_panels(n).for_each(|p| (kernels.cell_forward)(&panel_cell_args(p)));
                    }
                }
                if is_single_sequence && active_rows > 0 && !panels.is_empty() {
                    (kernels.cell_forward)(&panel_cell_args(panels.start));
                }
            }
            let first_col = panels.start * lanes;
            if !self.gates.is_null() {
                // Sequences that have ended, or not yet started in reverse, keep their state.
                for row in active_rows..self.batch {
                    let offset = row * padded_hidden + first_col;
                    ptr::copy_nonoverlapping(c_old.add(offset), c_new.add(offset), panels.len() * lanes);
                    if spec.proj_size.is_none() {
                        ptr::copy_nonoverlapping(h_old.add(offset), h_new.add(offset), panels.len() * lanes);
                    }
                }
            }
        }
    }

    /// Computes the projection `snap(W_hr h)` for time step `t`, the `k`th time step in the order of execution.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    unsafe fn project(&self, member: TeamMember<'_>, k: usize, t: usize, active_rows: usize) {
        let PackedLayer { spec, kernels, .. } = self.layer;
        let width = kernels.panel_width();
        let (padded_hidden, padded_state, state) =
            (self.layer.padded_hidden(), self.layer.padded_state(), spec.state_size());
        let indices = self.state_indices(k, t);
        let quantized = self.layer.quantized.as_ref().and_then(|q| Some((q, q.projection.as_ref()?)));
        let integers = quantized.map(|(quantized, _)| {
            let operand = (self.h_unprojected.cast_const(), spec.hidden_size, padded_hidden);
            // SAFETY: `h_unprojected` has these rows.
            unsafe { self.quantize_state(quantized, member, active_rows, operand, OperandRange::Unit) }
        });
        for p in member.partition(padded_state / width) {
            let len = width.min(state - p * width);
            // SAFETY: offsets follow the layouts in `PackedLayer` and `Plan`. A thread's part of `uh` has a panel row
            // for each sequence.
            unsafe {
                let h_projected = self.uh.add(member.rank * self.batch * width);
                if let (Some((quantized, projection)), Some(rows)) = (quantized, integers) {
                    let args = QuantizedTileArgs {
                        rows,
                        panel: projection.panel(p),
                        addend: ZEROS.as_ptr(),
                        addend_stride: 0,
                        out: h_projected,
                        ldo: width,
                        prefetch: null(),
                    };
                    let next_panel = args.panel.weights.wrapping_add(args.panel.words * width);
                    quantized.kernels.multiply_panel(active_rows, args, next_panel);
                } else {
                    let panel = self.layer.projection.as_ptr().add(p * spec.hidden_size * width);
                    let (k, a) = (spec.hidden_size, StridedMatrix::row_major(self.h_unprojected, padded_hidden));
                    kernels.multiply_panel(active_rows, TileArgs::new(k, a, panel, h_projected, width));
                }
                (kernels.snap)(h_projected, active_rows * width);
                for row in 0..active_rows {
                    let from = h_projected.add(row * width);
                    let h = self.h.add((indices.h_new_index * self.batch + row) * padded_state + p * width);
                    ptr::copy_nonoverlapping(from, h, width);
                    let y = self.y.add((t * self.batch + row) * self.ldy + p * width);
                    ptr::copy_nonoverlapping(from, y, len);
                }
                for row in if self.gates.is_null() { 0..0 } else { active_rows..self.batch } {
                    let h = |index: usize| self.h.add((index * self.batch + row) * padded_state + p * width);
                    ptr::copy_nonoverlapping(h(indices.h_old_index), h(indices.h_new_index), width);
                }
            }
        }
    }
}
