//! The backward pass of a layer over a whole sequence: step by step the gates' gradients and the products that lead to
//! the step before, then for each chunk of steps the weights' gradients as a few large products. Threads share a step by
//! units and meet at barriers; no sum is ever split between them.

mod products;
mod scratch;

use std::ptr::{self, null, null_mut};

use lstm_core::{
    CellKind, Result,
    arithmetic::{self, BLOCK, CHUNK, snap},
};

pub(crate) use scratch::Scratch;
use scratch::Sizes;

use crate::{
    buffer::Buffer,
    kernels::{PANEL_VECTORS, Strided, TileArgs},
    layer::{Packed, Plan},
    pool::{Member, Pool},
    reversed::Reversed,
    sequence::share,
    step_backward::{Bounds, CellBackwardArgs},
    trace::Trace,
};

/// Where the gradients go; all of them row-major without padding.
pub(crate) struct Outputs<'a> {
    /// `[steps * batch, input]`, zero at first.
    pub(crate) x: Option<&'a mut [f32]>,
    pub(crate) w: &'a mut [f32],
    pub(crate) u: &'a mut [f32],
    pub(crate) bias: Option<&'a mut [f32]>,
    pub(crate) projection: Option<&'a mut [f32]>,
    pub(crate) peephole: Option<[&'a mut [f32]; 3]>,
    /// Whether the weights' gradients are added to what is there.
    pub(crate) onto: bool,
    /// The initial state's.
    pub(crate) h: &'a mut [f32],
    pub(crate) c: &'a mut [f32],
}

/// What the threads share. They write to disjoint units and columns between barriers.
struct Run<'a> {
    layer: &'a Packed,
    reversed: &'a Reversed,
    /// See [`Packed::reversed_input`]; null where the input's gradient is not wanted.
    reversed_input: *const f32,
    trace: &'a Trace,
    sizes: Sizes,
    bounds: Option<Bounds>,
    dy: *const f32,
    carry: *mut f32,
    total: *mut f32,
    dc: *mut f32,
    f: *mut f32,
    unprojected: *mut f32,
    projected: *mut f32,
    operand: *mut f32,
    dz: *mut f32,
    product: *mut f32,
    dx: *mut f32,
    dw: *mut f32,
    du: *mut f32,
    bias: *mut f32,
    projection: *mut f32,
    peephole: [*mut f32; 3],
    onto: bool,
}

// SAFETY: threads write to disjoint parts between barriers, as described at `Run`.
unsafe impl Sync for Run<'_> {}

/// The gradients of a layer from `dy: [steps * batch, state]` and those of the final state, which the caller has checked.
pub(crate) fn run(
    pool: &Pool,
    layer: &Packed,
    plan: &mut Plan,
    trace: &Trace,
    dy: &[f32],
    (dh, dc): (&[f32], &[f32]),
    out: Outputs<'_>,
) -> Result<()> {
    let (spec, batch, steps) = (&layer.spec, trace.batch, trace.steps);
    // What the unsafe code below relies on.
    assert!(plan.batch == batch && plan.fits(layer) && trace.fits(layer) && steps > 0);
    let reversed = layer.reversed()?;
    let reversed_input = if out.x.is_some() { layer.reversed_input()?.as_ptr() } else { null() };
    let kept = plan.backward.take().filter(|kept| kept.chunk >= CHUNK.min(steps));
    let scratch = match kept {
        Some(kept) => plan.backward.insert(kept),
        None => plan.backward.insert(Scratch::new(layer, batch, steps, plan.threads)?),
    };
    let len = |rows: usize, cols: usize| rows.checked_mul(cols);
    let (hidden, state, gates) = (spec.hidden_size, spec.state_size(), 4 * spec.hidden_size);
    assert_eq!(len(steps * batch, state), Some(dy.len()));
    assert!(len(batch, state) == Some(dh.len()) && len(batch, hidden) == Some(dc.len()));
    assert!(dh.len() == out.h.len() && dc.len() == out.c.len());
    assert!(len(gates, spec.input_size) == Some(out.w.len()) && len(gates, state) == Some(out.u.len()));
    assert!(out.x.as_ref().is_none_or(|x| len(steps * batch, spec.input_size) == Some(x.len())));
    assert!(out.bias.as_ref().is_none_or(|bias| bias.len() == gates));
    assert!(out.projection.as_ref().is_none_or(|p| len(state, hidden) == Some(p.len()) && spec.proj_size.is_some()));
    let vectors = out.peephole.as_ref().map(|p| p.iter().all(|v| v.len() == hidden));
    assert_eq!(vectors, (spec.cell == CellKind::PeepholeDiagonal).then_some(true));

    let sizes = Sizes::new(layer, scratch.chunk, batch);
    let fill = |to: &mut Buffer, from: &[f32], stride: usize| {
        for (to, from) in to.as_mut_slice().chunks_exact_mut(stride).zip(from.chunks_exact(from.len() / batch)) {
            to.iter_mut().zip(from).for_each(|(to, v)| *to = snap(*v));
        }
    };
    fill(&mut scratch.carry, dh, sizes.padded_state);
    fill(&mut scratch.dc, dc, sizes.hidden_panels);
    let bounds = spec.clip.map(|b| Bounds {
        sigmoid: [arithmetic::sigmoid(-b), arithmetic::sigmoid(b)],
        tanh: [arithmetic::tanh(-b), arithmetic::tanh(b)],
    });
    let or_null = |slice: Option<&mut [f32]>| slice.map_or(null_mut(), <[f32]>::as_mut_ptr);
    let run = Run {
        layer,
        reversed,
        reversed_input,
        trace,
        sizes,
        bounds,
        dy: dy.as_ptr(),
        carry: scratch.carry.as_mut_ptr(),
        total: scratch.total.as_mut_ptr(),
        dc: scratch.dc.as_mut_ptr(),
        f: scratch.f.as_mut_ptr(),
        unprojected: scratch.unprojected.as_mut_ptr(),
        projected: scratch.projected.as_mut_ptr(),
        operand: scratch.operand.as_mut_ptr(),
        dz: scratch.dz.as_mut_ptr(),
        product: scratch.product.as_mut_ptr(),
        dx: or_null(out.x),
        dw: out.w.as_mut_ptr(),
        du: out.u.as_mut_ptr(),
        bias: or_null(out.bias),
        projection: or_null(out.projection),
        peephole: out.peephole.map_or([null_mut(); 3], |p| p.map(<[f32]>::as_mut_ptr)),
        onto: out.onto,
    };
    // SAFETY: the slices have the sizes that were checked above, the scratch memory those that it was made for.
    pool.run(scratch.threads, &|member| unsafe { run.work(member) });

    for b in 0..batch {
        out.h[b * state..][..state].copy_from_slice(&scratch.carry.as_slice()[b * sizes.padded_state..][..state]);
        out.c[b * hidden..][..hidden].copy_from_slice(&scratch.dc.as_slice()[b * sizes.hidden_panels..][..hidden]);
    }
    Ok(())
}

impl Run<'_> {
    fn reverse(&self) -> bool {
        self.layer.spec.reverse
    }

    /// One thread's part.
    ///
    /// # Safety
    /// The pointers cover what [`Scratch`], [`Trace`] and [`Outputs`] describe; no two members of a team have the same
    /// rank.
    unsafe fn work(&self, member: Member<'_>) {
        let steps = self.trace.steps;
        let chunks = steps.div_ceil(CHUNK);
        for k in 0..chunks {
            let first = if self.reverse() { k } else { chunks - 1 - k } * CHUNK;
            let chunk = first..steps.min(first + CHUNK);
            for n in 0..chunk.len() {
                let t = if self.reverse() { chunk.start + n } else { chunk.end - 1 - n };
                // SAFETY: the caller's promise; so below.
                unsafe { self.step(member, t, t - chunk.start) };
            }
            // SAFETY: as above.
            unsafe { self.products(member, chunk, self.onto || k > 0) };
            // The next chunk's steps overwrite what the products read.
            member.barrier();
        }
    }

    /// Step `t`, the `place`th of its chunk.
    ///
    /// # Safety
    /// As for [`work`](Self::work).
    unsafe fn step(&self, member: Member<'_>, t: usize, place: usize) {
        let (spec, kernels, sizes) = (&self.layer.spec, self.layer.kernels, self.sizes);
        let Sizes { width, padded, padded_state, hidden_panels, .. } = sizes;
        let (batch, state, active) = (self.trace.batch, spec.state_size(), self.trace.active(t));
        let state_panels = share(padded_state / width, member);
        // SAFETY: offsets follow the layouts in `Scratch` and `Trace`; columns are this member's own.
        unsafe {
            let dz = self.dz.add(place * batch * BLOCK);
            let projected = self.projected.wrapping_add(place * batch * padded_state);
            let operand = self.operand.wrapping_add(place * batch * padded);

            // dh = snap(dy + carry)
            let cols = state_panels.start * width..(state_panels.end * width).min(state);
            for row in 0..active {
                let at = row * padded_state + cols.start;
                let dy = self.dy.add((t * batch + row) * state + cols.start);
                let total = self.total.add(at);
                (kernels.mul_add)(1.0, dy, null(), self.carry.add(at), total, cols.len());
                (kernels.snap)(total, cols.len());
                if spec.proj_size.is_some() {
                    ptr::copy_nonoverlapping(total, projected.add(at), cols.len());
                }
            }
            if spec.proj_size.is_some() {
                for row in active..batch {
                    ptr::write_bytes(projected.add(row * padded_state + cols.start), 0, cols.len());
                }
            }
            member.barrier();
            if active > 0 && spec.proj_size.is_some() {
                for p in share(hidden_panels / width, member) {
                    let out = self.unprojected.add(p * width);
                    let panel = self.reversed.projection.as_ptr().add(p * state * width);
                    let (a, ldo) = (Strided::rows(self.total, padded_state), hidden_panels);
                    let args = TileArgs::new(state, a, panel, out, ldo);
                    kernels.rows(active, args);
                    (0..active).for_each(|row| (kernels.snap)(out.add(row * ldo), width));
                }
                member.barrier();
            }

            // The gates' gradients.
            let (old, new) = Trace::places(spec.reverse, t);
            let panels = share(self.layer.panels, member);
            for p in panels.clone() {
                let at = p * kernels.lanes;
                let (dh, ldh) = match spec.proj_size {
                    Some(_) => (self.unprojected, hidden_panels),
                    None => (self.total, padded_state),
                };
                let c = |place: usize| self.trace.c.as_ptr().add(place * batch * padded + at);
                (kernels.cell_backward)(&CellBackwardArgs {
                    rows: active,
                    gates: self.trace.gates.as_ptr().add((p * self.trace.steps + t) * batch * width),
                    peephole: self.layer.peephole.as_ptr().wrapping_add(3 * at),
                    c_old: c(old),
                    c_new: c(new),
                    stride: padded,
                    dh: dh.add(at),
                    ldh,
                    dc: self.dc.add(at),
                    f: self.f.wrapping_add(at),
                    ldc: hidden_panels,
                    h: if spec.proj_size.is_some() { operand.add(at) } else { null_mut() },
                    dz: dz.add(sizes.unit(at)),
                    gate: sizes.gate,
                    ldz: BLOCK,
                    cell: spec.cell,
                    coupled: spec.coupled,
                    bounds: self.bounds,
                });
            }
            let (from, len) = (panels.start * kernels.lanes, panels.len() * kernels.lanes);
            for row in active..batch {
                for (gate, p) in (0..PANEL_VECTORS).flat_map(|gate| panels.clone().map(move |p| (gate, p))) {
                    let at = gate * sizes.gate + sizes.unit(p * kernels.lanes) + row * BLOCK;
                    ptr::write_bytes(dz.add(at), 0, kernels.lanes);
                }
                if spec.proj_size.is_some() {
                    ptr::write_bytes(operand.add(row * padded + from), 0, len);
                }
            }
            member.barrier();
            if active == 0 {
                return;
            }

            // What the step before gets through U.
            let dense = spec.cell == CellKind::PeepholeDense;
            let z = self.product.add(member.rank * sizes.product);
            for p in state_panels {
                let panel = self.reversed.u.as_ptr().add(p * PANEL_VECTORS * spec.hidden_size * width);
                self.gates_product(active, dz, panel, z, |gate| gate == 2 && dense);
                (kernels.snap)(z, active * width);
                for row in 0..active {
                    let (from, at) = (z.add(row * width), p * width);
                    if dense {
                        let dc = self.dc.add(row * hidden_panels + at);
                        (kernels.mul_add)(1.0, dc, self.f.add(row * hidden_panels + at), from, dc, width);
                        (kernels.snap)(dc, width);
                        ptr::write_bytes(self.carry.add(row * padded_state + at), 0, width);
                    } else {
                        ptr::copy_nonoverlapping(from, self.carry.add(row * padded_state + at), width);
                    }
                }
            }
        }
    }

    /// `((i + f) + g) + o` of the products of each gate's part of `dz` with its part of a panel, into `z`, which has room
    /// for the rows twice. Gates that have no gradient, or that `blind` names, are left out: they would add +0.
    ///
    /// # Safety
    /// `rows` rows of each block of `dz`; `[4 gates][hidden][panel]`; as for [`work`](Self::work).
    unsafe fn gates_product(
        &self,
        rows: usize,
        dz: *const f32,
        panel: *const f32,
        z: *mut f32,
        blind: impl Fn(usize) -> bool,
    ) {
        let (kernels, hidden, width) = (self.layer.kernels, self.layer.spec.hidden_size, self.sizes.width);
        // SAFETY: the caller's promise.
        unsafe {
            for gate in 0..PANEL_VECTORS {
                if gate == 1 && self.layer.spec.coupled || blind(gate) {
                    continue;
                }
                let out = if gate == 0 { z } else { z.add(rows * width) };
                let a = Strided { at: dz.add(gate * self.sizes.gate), row: BLOCK, col: 1, block: self.sizes.block };
                let panel = panel.add(gate * hidden * width);
                let args = TileArgs::new(hidden, a, panel, out, width);
                kernels.rows(rows, args);
                if gate > 0 {
                    (kernels.mul_add)(1.0, z, null(), out, z, rows * width);
                }
            }
        }
    }
}
