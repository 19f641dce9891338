//! The backward pass of a layer over whole sequences.
//!
//! Time steps run from the last to the first, in chunks. Each time step computes the gradients of the gates, and from
//! them the gradient of the state before the time step. After each chunk, its contributions to the weight gradients are
//! computed as a few large products. Threads divide the units of a time step and meet at barriers. No sum is split
//! between threads, so results do not depend on their number.

mod chunk;
mod scratch;

use std::{
    ops::Range,
    ptr::{self, null, null_mut},
};

use lstm_core::{
    CellKind, Result,
    arithmetic::{self, CHUNK_STEPS, DOT_BLOCK, snap},
};

pub(crate) use scratch::Scratch;
use scratch::ScratchLayout;

use crate::{
    kernel::{
        cell_backward::{CellBackwardArgs, ClipBounds},
        strided::StridedMatrix,
        table::PANEL_VECTORS,
        tile::TileArgs,
    },
    layer::{BackwardWeights, PackedLayer, Plan},
    memory::buffer::Buffer,
    pass::trace::Trace,
    pool::{TeamMember, ThreadPool},
};

/// The memory to which a backward pass writes the gradients. All gradients are row-major without padding, in the layout
/// of the parameters.
pub(crate) struct GradientBuffers<'a> {
    /// Gradient of the input, `[steps * batch, input_size]`, zero on entry. `None` if it is not needed.
    pub(crate) x: Option<&'a mut [f32]>,
    /// Gradient of the input weights, `[4 * hidden_size, input_size]`.
    pub(crate) w: &'a mut [f32],
    /// Gradient of the recurrent weights, `[4 * hidden_size, state_size]`.
    pub(crate) u: &'a mut [f32],
    /// Gradient of the bias, `[4 * hidden_size]`.
    pub(crate) bias: Option<&'a mut [f32]>,
    /// Gradient of the projection weights, `[proj_size, hidden_size]`.
    pub(crate) projection: Option<&'a mut [f32]>,
    /// Gradients of the diagonal peephole weights of the gates i, f and o, `[hidden_size]` each.
    pub(crate) peephole: Option<[&'a mut [f32]; 3]>,
    /// Whether the gradients of the weights are added to the present contents of their buffers.
    pub(crate) accumulate: bool,
    /// Gradient of the initial hidden state, `[batch, state_size]`.
    pub(crate) h: &'a mut [f32],
    /// Gradient of the initial cell state, `[batch, hidden_size]`.
    pub(crate) c: &'a mut [f32],
}

/// The data of a backward pass, which its threads share. Between barriers, threads write to disjoint units and columns.
/// The pointers refer to the fields of the same name in [`Scratch`] and [`GradientBuffers`].
struct BackwardPass<'a> {
    layer: &'a PackedLayer,
    weights: &'a BackwardWeights,
    /// Weights for the gradient of the input; see [`PackedLayer::backward_input_weights`]. Null if that gradient is not
    /// needed.
    input_weights: *const f32,
    trace: &'a Trace,
    layout: ScratchLayout,
    clip_bounds: Option<ClipBounds>,
    /// Gradient of the output, `[steps * batch, state_size]`.
    dy: *const f32,
    dh_carry: *mut f32,
    dh: *mut f32,
    dc: *mut f32,
    f: *mut f32,
    dh_unprojected: *mut f32,
    dh_projected: *mut f32,
    h_unprojected: *mut f32,
    dz: *mut f32,
    product_scratch: *mut f32,
    dx: *mut f32,
    dw: *mut f32,
    du: *mut f32,
    bias: *mut f32,
    projection: *mut f32,
    peephole: [*mut f32; 3],
    accumulate: bool,
}

// SAFETY: between barriers, threads write to disjoint memory, as described at `BackwardPass`.
unsafe impl Sync for BackwardPass<'_> {}

/// Computes the gradients of a layer from `dy: [steps * batch, state_size]` and from those of the final state,
/// `dh: [batch, state_size]` and `dc: [batch, hidden_size]`.
///
/// # Panics
/// If sizes do not match: the unsafe code relies on them. Callers check them first and report errors.
pub(crate) fn run(
    pool: &ThreadPool,
    layer: &PackedLayer,
    plan: &mut Plan,
    trace: &Trace,
    dy: &[f32],
    (dh, dc): (&[f32], &[f32]),
    out: GradientBuffers<'_>,
) -> Result<()> {
    let (spec, batch, steps) = (&layer.spec, trace.batch, trace.steps);
    assert!(plan.batch == batch && plan.matches(layer) && trace.matches(layer) && steps > 0);
    let weights = layer.backward_weights()?;
    let input_weights = if out.x.is_some() { layer.backward_input_weights()?.as_ptr() } else { null() };
    let reusable_scratch = plan.backward_scratch.take().filter(|scratch| scratch.chunk_steps >= CHUNK_STEPS.min(steps));
    let scratch = match reusable_scratch {
        Some(scratch) => plan.backward_scratch.insert(scratch),
        None => plan.backward_scratch.insert(Scratch::new(layer, batch, steps, plan.threads)?),
    };
    let checked_product = |rows: usize, cols: usize| rows.checked_mul(cols);
    let (hidden, state, gates) = (spec.hidden_size, spec.state_size(), 4 * spec.hidden_size);
    assert_eq!(checked_product(steps * batch, state), Some(dy.len()));
    assert!(checked_product(batch, state) == Some(dh.len()) && checked_product(batch, hidden) == Some(dc.len()));
    assert!(dh.len() == out.h.len() && dc.len() == out.c.len());
    assert!(
        checked_product(gates, spec.input_size) == Some(out.w.len())
            && checked_product(gates, state) == Some(out.u.len())
    );
    assert!(out.x.as_ref().is_none_or(|x| checked_product(steps * batch, spec.input_size) == Some(x.len())));
    assert!(out.bias.as_ref().is_none_or(|bias| bias.len() == gates));
    assert!(
        out.projection
            .as_ref()
            .is_none_or(|p| checked_product(state, hidden) == Some(p.len()) && spec.proj_size.is_some())
    );
    let peephole_lens_match = out.peephole.as_ref().map(|p| p.iter().all(|v| v.len() == hidden));
    assert_eq!(peephole_lens_match, (spec.cell == CellKind::PeepholeDiagonal).then_some(true));

    let layout = ScratchLayout::new(layer, scratch.chunk_steps, batch);
    let fill_snapped = |to: &mut Buffer, from: &[f32], stride: usize| {
        for (to, from) in to.as_mut_slice().chunks_exact_mut(stride).zip(from.chunks_exact(from.len() / batch)) {
            to.iter_mut().zip(from).for_each(|(to, v)| *to = snap(*v));
        }
    };
    fill_snapped(&mut scratch.dh_carry, dh, layout.padded_state);
    fill_snapped(&mut scratch.dc, dc, layout.ld_hidden);
    let clip_bounds = spec.clip.map(|b| ClipBounds {
        sigmoid: [arithmetic::sigmoid(-b), arithmetic::sigmoid(b)],
        tanh: [arithmetic::tanh(-b), arithmetic::tanh(b)],
    });
    let ptr_or_null = |slice: Option<&mut [f32]>| slice.map_or(null_mut(), <[f32]>::as_mut_ptr);
    let pass = BackwardPass {
        layer,
        weights,
        input_weights,
        trace,
        layout,
        clip_bounds,
        dy: dy.as_ptr(),
        dh_carry: scratch.dh_carry.as_mut_ptr(),
        dh: scratch.dh.as_mut_ptr(),
        dc: scratch.dc.as_mut_ptr(),
        f: scratch.f.as_mut_ptr(),
        dh_unprojected: scratch.dh_unprojected.as_mut_ptr(),
        dh_projected: scratch.dh_projected.as_mut_ptr(),
        h_unprojected: scratch.h_unprojected.as_mut_ptr(),
        dz: scratch.dz.as_mut_ptr(),
        product_scratch: scratch.product_scratch.as_mut_ptr(),
        dx: ptr_or_null(out.x),
        dw: out.w.as_mut_ptr(),
        du: out.u.as_mut_ptr(),
        bias: ptr_or_null(out.bias),
        projection: ptr_or_null(out.projection),
        peephole: out.peephole.map_or([null_mut(); 3], |p| p.map(<[f32]>::as_mut_ptr)),
        accumulate: out.accumulate,
    };
    let chunks = trace.steps.div_ceil(CHUNK_STEPS);
    // SAFETY: the sizes of the slices were checked above; the scratch memory was allocated for them.
    pool.run_parts(scratch.threads, chunks, CHUNKS_PER_RUN, &|member, chunks| unsafe {
        pass.run_thread(member, chunks)
    });

    for b in 0..batch {
        out.h[b * state..][..state].copy_from_slice(&scratch.dh_carry.as_slice()[b * layout.padded_state..][..state]);
        out.c[b * hidden..][..hidden].copy_from_slice(&scratch.dc.as_slice()[b * layout.ld_hidden..][..hidden]);
    }
    Ok(())
}

/// Number of chunks of time steps that run on the same threads. Starting the threads anew takes one or two microseconds.
const CHUNKS_PER_RUN: usize = 4;

impl BackwardPass<'_> {
    /// Whether the layer processes sequences from the last time step to the first.
    fn is_reverse(&self) -> bool {
        self.layer.spec.reverse
    }

    /// Runs one thread's part of some chunks of time steps, in the order of execution.
    ///
    /// # Safety
    /// The pointers are valid for what [`Scratch`], [`Trace`] and [`GradientBuffers`] describe. All members of a team
    /// call this, each with its own rank.
    unsafe fn run_thread(&self, member: TeamMember<'_>, chunks: Range<usize>) {
        let steps = self.trace.steps;
        let chunk_count = steps.div_ceil(CHUNK_STEPS);
        for k in chunks {
            let first_step = if self.is_reverse() { k } else { chunk_count - 1 - k } * CHUNK_STEPS;
            let chunk = first_step..steps.min(first_step + CHUNK_STEPS);
            for n in 0..chunk.len() {
                let t = if self.is_reverse() { chunk.start + n } else { chunk.end - 1 - n };
                // SAFETY: guaranteed by the caller.
                unsafe { self.step(member, t, t - chunk.start) };
            }
            // SAFETY: guaranteed by the caller.
            unsafe { self.accumulate_chunk(member, chunk, self.accumulate || k > 0) };
            // The time steps of the next chunk overwrite memory that this chunk's products read.
            member.barrier();
        }
    }

    /// Computes time step `t`, which has index `step_in_chunk` in its chunk: the gradients of the gates, and of the
    /// state before the time step.
    ///
    /// # Safety
    /// As for [`run_thread`](Self::run_thread).
    unsafe fn step(&self, member: TeamMember<'_>, t: usize, step_in_chunk: usize) {
        let (spec, kernels, layout) = (&self.layer.spec, self.layer.kernels, self.layout);
        let ScratchLayout { panel_width: width, padded_hidden, padded_state, ld_hidden, .. } = layout;
        let (batch, state, active_rows) = (self.trace.batch, spec.state_size(), self.trace.active_sequences(t));
        let state_panels = member.partition(padded_state / width);
        // SAFETY: offsets follow the layouts in `Scratch` and `Trace`. No other thread writes to these columns.
        unsafe {
            let dz = self.dz.add(step_in_chunk * batch * DOT_BLOCK);
            let dh_projected = self.dh_projected.wrapping_add(step_in_chunk * batch * padded_state);
            let h_unprojected = self.h_unprojected.wrapping_add(step_in_chunk * batch * padded_hidden);

            // dh = snap(dy + dh_carry)
            let cols = state_panels.start * width..(state_panels.end * width).min(state);
            for row in 0..active_rows {
                let offset = row * padded_state + cols.start;
                let dy = self.dy.add((t * batch + row) * state + cols.start);
                let dh = self.dh.add(offset);
                (kernels.mul_add)(1.0, dy, null(), self.dh_carry.add(offset), dh, cols.len());
                (kernels.snap)(dh, cols.len());
                if spec.proj_size.is_some() {
                    ptr::copy_nonoverlapping(dh, dh_projected.add(offset), cols.len());
                }
            }
            if spec.proj_size.is_some() {
                for row in active_rows..batch {
                    ptr::write_bytes(dh_projected.add(row * padded_state + cols.start), 0, cols.len());
                }
            }
            member.barrier();
            if active_rows > 0 && spec.proj_size.is_some() {
                for p in member.partition(ld_hidden / width) {
                    let out = self.dh_unprojected.add(p * width);
                    let panel = self.weights.projection.as_ptr().add(p * state * width);
                    let (a, ldo) = (StridedMatrix::row_major(self.dh, padded_state), ld_hidden);
                    let args = TileArgs::new(state, a, panel, out, ldo);
                    kernels.multiply_panel(active_rows, args);
                    (0..active_rows).for_each(|row| (kernels.snap)(out.add(row * ldo), width));
                }
                member.barrier();
            }

            // The gradients of the gates.
            let (old_index, new_index) = Trace::state_indices(spec.reverse, t);
            let panels = member.partition(self.layer.panels);
            for p in panels.clone() {
                let unit = p * kernels.lanes;
                let (dh, ldh) = match spec.proj_size {
                    Some(_) => (self.dh_unprojected, ld_hidden),
                    None => (self.dh, padded_state),
                };
                let c = |index: usize| self.trace.c.as_ptr().add(index * batch * padded_hidden + unit);
                (kernels.cell_backward)(&CellBackwardArgs {
                    rows: active_rows,
                    gates: self.trace.gates.as_ptr().add((p * self.trace.steps + t) * batch * width),
                    peephole: self.layer.peephole.as_ptr().wrapping_add(3 * unit),
                    c_old: c(old_index),
                    c_new: c(new_index),
                    ld_state: padded_hidden,
                    dh: dh.add(unit),
                    ldh,
                    dc: self.dc.add(unit),
                    f: self.f.wrapping_add(unit),
                    ldc: ld_hidden,
                    h: if spec.proj_size.is_some() { h_unprojected.add(unit) } else { null_mut() },
                    dz: dz.add(layout.unit_offset(unit)),
                    gate_stride: layout.gate_stride,
                    ldz: DOT_BLOCK,
                    kind: spec.cell,
                    coupled: spec.coupled,
                    clip_bounds: self.clip_bounds,
                });
            }
            let (first_unit, len) = (panels.start * kernels.lanes, panels.len() * kernels.lanes);
            for row in active_rows..batch {
                for (gate, p) in (0..PANEL_VECTORS).flat_map(|gate| panels.clone().map(move |p| (gate, p))) {
                    let offset = gate * layout.gate_stride + layout.unit_offset(p * kernels.lanes) + row * DOT_BLOCK;
                    ptr::write_bytes(dz.add(offset), 0, kernels.lanes);
                }
                if spec.proj_size.is_some() {
                    ptr::write_bytes(h_unprojected.add(row * padded_hidden + first_unit), 0, len);
                }
            }
            member.barrier();
            if active_rows == 0 {
                return;
            }

            // The gradient of the state before the time step, through the recurrent weights.
            let is_dense = spec.cell == CellKind::PeepholeDense;
            let sums = self.product_scratch.add(member.rank * layout.product_scratch_len);
            for p in state_panels {
                let panel = self.weights.u.as_ptr().add(p * PANEL_VECTORS * spec.hidden_size * width);
                self.sum_gate_products(active_rows, dz, panel, sums, |gate| gate == 2 && is_dense);
                (kernels.snap)(sums, active_rows * width);
                for row in 0..active_rows {
                    let (from, col) = (sums.add(row * width), p * width);
                    if is_dense {
                        let dc = self.dc.add(row * ld_hidden + col);
                        (kernels.mul_add)(1.0, dc, self.f.add(row * ld_hidden + col), from, dc, width);
                        (kernels.snap)(dc, width);
                        ptr::write_bytes(self.dh_carry.add(row * padded_state + col), 0, width);
                    } else {
                        ptr::copy_nonoverlapping(from, self.dh_carry.add(row * padded_state + col), width);
                    }
                }
            }
        }
    }

    /// Multiplies `dz` of each gate by the gate's part of a transposed panel, `[4 gates][hidden_size][panel]`, and
    /// writes the sum `((i + f) + g) + o` of the products to `out`. Skips the forget gate if it is coupled, and the
    /// gates for which `skip_gate` returns true: their products are +0.
    ///
    /// # Safety
    /// `dz` is valid for `rows` rows of each block, `out` for `2 * rows` panel rows; otherwise as for
    /// [`run_thread`](Self::run_thread).
    unsafe fn sum_gate_products(
        &self,
        rows: usize,
        dz: *const f32,
        panel: *const f32,
        out: *mut f32,
        skip_gate: impl Fn(usize) -> bool,
    ) {
        let (kernels, hidden, width) = (self.layer.kernels, self.layer.spec.hidden_size, self.layout.panel_width);
        // SAFETY: guaranteed by the caller.
        unsafe {
            for gate in 0..PANEL_VECTORS {
                if gate == 1 && self.layer.spec.coupled || skip_gate(gate) {
                    continue;
                }
                let product = if gate == 0 { out } else { out.add(rows * width) };
                let a = StridedMatrix {
                    ptr: dz.add(gate * self.layout.gate_stride),
                    row_stride: DOT_BLOCK,
                    col_stride: 1,
                    block_stride: self.layout.block_stride,
                };
                let panel = panel.add(gate * hidden * width);
                let args = TileArgs::new(hidden, a, panel, product, width);
                kernels.multiply_panel(rows, args);
                if gate > 0 {
                    (kernels.mul_add)(1.0, out, null(), product, out, rows * width);
                }
            }
        }
    }
}
