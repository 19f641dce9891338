//! A whole sequence: input products for some steps at once, then step by step the recurrent products with the gates in
//! their tail, or a small step in one go. Threads share a step by units and meet at a barrier; no sum is ever split between
//! them. Both directions of a layer may run at once, each on half of the threads.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::CellKind;

use crate::{
    kernels::{Solo, Strided, TileArgs},
    layer::{Packed, Plan},
    pool::{Member, Pool, Team},
    step::{Apart, CellArgs, SoloArgs},
    trace::Trace,
};

/// What the threads of a run share. They write to disjoint units: of `h`, `c` and `y` to the columns of their panels, of
/// `x` to their panels, of `z` to their own part.
struct Run<'a> {
    layer: &'a Packed,
    steps: usize,
    batch: usize,
    block: usize,
    current: usize,
    lengths: Option<&'a [usize]>,
    input: *const f32,
    /// The first of the columns that are this layer's; rows are `ldy` apart.
    y: *mut f32,
    ldy: usize,
    h: *mut f32,
    c: *mut f32,
    unprojected: *mut f32,
    x: *mut f32,
    z: *mut f32,
    /// `[panels][steps * batch][panel]`, where the gates are kept, or null. Then `h` and `c` have a place around each step
    /// instead of two.
    gates: *mut f32,
}

// SAFETY: threads write to disjoint parts between barriers, as described at `Run`.
unsafe impl Sync for Run<'_> {}

/// What a layer runs over: `steps` steps of snapped `x: [steps * batch, input]`. Lengths descend.
#[derive(Clone, Copy)]
pub(crate) struct Walk<'a> {
    pub(crate) steps: usize,
    pub(crate) lengths: Option<&'a [usize]>,
    pub(crate) x: &'a [f32],
}

/// Runs a layer from the plan's state, and writes `h` to `y: [steps * batch, state]`, but not where sequences have ended.
/// With a trace, starts from the state in that and fills it. Allocates nothing.
///
/// Without lengths all of `y` is written: its caller may rely on it.
///
/// # Safety
/// `y` may be written to, and nobody else looks there meanwhile.
pub(crate) unsafe fn run(
    pool: &Pool,
    layer: &Packed,
    plan: &mut Plan,
    walk: Walk<'_>,
    y: *mut [f32],
    trace: Option<&mut Trace>,
) {
    let cols = layer.spec.state_size();
    let run = Run::new(layer, plan, walk, y, (0..cols, cols), trace);
    // SAFETY: the slices have the sizes that the plan was made for and that were checked; the caller's promise.
    pool.run(plan.threads, &|member| unsafe { run.work(member) });
    run.finish(plan);
}

/// Runs both directions of a layer, and writes `h` of both side by side to `y`, as [`run`] does. Allocates nothing.
///
/// # Safety
/// As for [`run`].
pub(crate) unsafe fn run_both(pool: &Pool, layers: [&Packed; 2], plans: [&mut Plan; 2], walk: Walk<'_>, y: *mut [f32]) {
    let [a, b] = layers.map(|layer| layer.spec.state_size());
    let [plan, other] = plans;
    let run = Run::new(layers[0], plan, walk, y, (0..a, a + b), None);
    let runs = [run, Run::new(layers[1], other, walk, y, (a..a + b, a + b), None)];
    let half = (pool.threads() / 2).min(plan.threads_apart).min(other.threads_apart);
    if half > 0 {
        let teams = [Team::new(half), Team::new(half)];
        pool.run(2 * half, &|member| match member.part(&teams) {
            // SAFETY: as for `run`; the two runs write to different plans and columns.
            Some((part, member)) => unsafe { runs[part].work(member) },
            // SAFETY: as above.
            None => runs.iter().for_each(|run| unsafe { run.work(member) }),
        });
    } else {
        for (run, threads) in runs.iter().zip([plan.threads, other.threads]) {
            // SAFETY: as above.
            pool.run(threads, &|member| unsafe { run.work(member) });
        }
    }
    runs[0].finish(plan);
    runs[1].finish(other);
}

/// An even share of `n` things.
pub(crate) fn share(n: usize, member: Member<'_>) -> Range<usize> {
    match member.size {
        1 => 0..n, // Spares a streaming step the divisions.
        size => n * member.rank / size..n * (member.rank + 1) / size,
    }
}

/// See [`Run::places`].
struct Places {
    h_old: usize,
    h_new: usize,
    c_old: usize,
    c_new: usize,
}

impl<'a> Run<'a> {
    /// For `h` in some of the `ldy` columns of `y`.
    fn new(
        layer: &'a Packed,
        plan: &mut Plan,
        walk: Walk<'a>,
        y: *mut [f32],
        (columns, ldy): (Range<usize>, usize),
        trace: Option<&mut Trace>,
    ) -> Self {
        let Walk { steps, lengths, x: input } = walk;
        // What the unsafe code below relies on; the callers have checked it and said so in an `Err`.
        assert!(plan.fits(layer) && columns.len() == layer.spec.state_size());
        let rows = steps.checked_mul(plan.batch);
        assert_eq!(rows.and_then(|rows| rows.checked_mul(layer.spec.input_size)), Some(input.len()));
        assert!(rows.and_then(|rows| rows.checked_mul(ldy)) == Some(y.len()) && columns.end <= ldy);
        assert!(lengths.is_none_or(|lengths| lengths.len() == plan.batch));
        let same = |trace: &Trace| trace.fits(layer) && (trace.steps, trace.batch) == (steps, plan.batch);
        assert!(trace.as_deref().is_none_or(same));
        let (h, c, gates) = match trace {
            Some(trace) => (trace.h.as_mut_ptr(), trace.c.as_mut_ptr(), trace.gates.as_mut_ptr()),
            None => (plan.h.as_mut_ptr(), plan.c.as_mut_ptr(), ptr::null_mut()),
        };
        Run {
            layer,
            steps,
            batch: plan.batch,
            block: plan.block,
            current: plan.current,
            lengths,
            input: input.as_ptr(),
            y: y.cast::<f32>().wrapping_add(columns.start),
            ldy,
            h,
            c,
            gates,
            unprojected: plan.unprojected.as_mut_ptr(),
            x: plan.x.as_mut_ptr(),
            z: plan.z.as_mut_ptr(),
        }
    }

    /// The plan then holds the state after the run.
    fn finish(&self, plan: &mut Plan) {
        if self.gates.is_null() {
            plan.current = (plan.current + self.steps) % 2;
        }
    }

    /// How many sequences have a step `t`; they are the first rows.
    fn active(&self, t: usize) -> usize {
        self.lengths.map_or(self.batch, |lengths| lengths.partition_point(|&len| len > t))
    }

    /// The places of `h` and `c` before and after the `k`th step that is walked, step `t` of the sequence.
    fn places(&self, k: usize, t: usize) -> Places {
        if !self.gates.is_null() {
            let (old, new) = Trace::places(self.layer.spec.reverse, t);
            return Places { h_old: old, h_new: new, c_old: old, c_new: new };
        }
        let old = (self.current + k) % 2;
        let c = |h| Plan::c_index(self.layer.spec.cell, h);
        Places { h_old: old, h_new: 1 - old, c_old: c(old), c_new: c(1 - old) }
    }

    /// One thread's part.
    ///
    /// # Safety
    /// The pointers cover what [`Plan`] describes; no two members of a team have the same rank.
    unsafe fn work(&self, member: Member<'_>) {
        let panels = share(self.layer.panels, member);
        let solo = match self.batch == 1 && member.size == 1 {
            true => self.layer.kernels.solo.get(self.layer.panels - 1).copied(),
            false => None,
        };
        let mut first = 0;
        while first < self.steps {
            let count = self.block.min(self.steps - first);
            // The block's steps in memory, whichever way they are walked.
            let low = if self.layer.spec.reverse { self.steps - first - count } else { first };
            if solo.is_none() || self.block > 1 {
                // SAFETY: the caller's promise; so below.
                unsafe { self.input_products(panels.clone(), low, count) };
            }
            for k in first..first + count {
                let t = if self.layer.spec.reverse { self.steps - 1 - k } else { k };
                let active = self.active(t);
                if active == 0 && self.gates.is_null() {
                    continue;
                }
                // SAFETY: as above.
                unsafe {
                    self.step(panels.clone(), member, solo, k, t, t - low, active);
                    member.barrier();
                    if self.layer.spec.proj_size.is_some() {
                        self.project(member, k, t, active);
                        member.barrier();
                    }
                }
            }
            first += count;
        }
    }

    /// `W x` for `count` steps from `low` on.
    ///
    /// # Safety
    /// As for [`work`](Self::work).
    unsafe fn input_products(&self, panels: Range<usize>, low: usize, count: usize) {
        let (kernels, features) = (self.layer.kernels, self.layer.spec.input_size);
        let width = kernels.panel();
        // With lengths, only the rows that are there; they start anew at every step.
        let pieces = if self.lengths.is_some() { count } else { 1 };
        for p in panels {
            for piece in 0..pieces {
                let rows = if self.lengths.is_some() { self.active(low + piece) } else { count * self.batch };
                // SAFETY: panel p of `w` and `x`; rows of steps low..low + count of the input.
                unsafe {
                    let a = Strided::rows(self.input.add((low + piece) * self.batch * features), features);
                    let panel = self.layer.w.as_ptr().add(p * features * width);
                    let out = self.x.add((p * self.block + piece) * self.batch * width);
                    let args = TileArgs::new(features, a, panel, out, width);
                    kernels.rows(rows, args);
                }
            }
        }
    }

    /// The `k`th step that is walked, step `t` of the sequence, `in_block` of the block, for the first `active` rows; in one
    /// go by `solo`, input product included where a block is one step.
    ///
    /// # Safety
    /// As for [`work`](Self::work).
    #[expect(clippy::too_many_arguments, reason = "called from one place")]
    unsafe fn step(
        &self,
        panels: Range<usize>,
        member: Member<'_>,
        solo: Option<Solo>,
        k: usize,
        t: usize,
        in_block: usize,
        active: usize,
    ) {
        let Packed { spec, kernels, .. } = self.layer;
        let (lanes, width) = (kernels.lanes, kernels.panel());
        let (padded, padded_state, state) = (self.layer.padded(), self.layer.padded_state(), spec.state_size());
        let at = self.places(k, t);
        // SAFETY: offsets follow the layouts in `Packed`, `Plan` and `Trace`.
        unsafe {
            let (c_old, c_new) =
                (self.c.add(at.c_old * self.batch * padded), self.c.add(at.c_new * self.batch * padded));
            let h_old = self.h.add(at.h_old * self.batch * padded_state);
            let h_new = match spec.proj_size {
                Some(_) => self.unprojected,
                None => self.h.add(at.h_new * self.batch * padded),
            };
            let (operand, stride) =
                if spec.cell == CellKind::PeepholeDense { (c_old, padded) } else { (h_old, padded_state) };
            // A single sequence's panels have their gates together, others' rows panel by panel.
            let single = self.batch == 1;
            let apart = match single {
                true => Apart::panels(kernels, self.block * width, self.steps * width),
                false => Apart::rows(kernels, padded, self.ldy),
            };
            let z = |p: usize| self.z.add(if single { p } else { member.rank * self.batch } * width);
            let cell = |p: usize| CellArgs {
                count: if single { panels.len() } else { active },
                apart,
                x: self.x.add((p * self.block + in_block) * self.batch * width),
                z: z(p),
                bias: self.layer.bias.as_ptr().add(p * width),
                peephole: self.layer.peephole.as_ptr().wrapping_add(p * 3 * lanes),
                c_old: c_old.add(p * lanes),
                c_new: c_new.add(p * lanes),
                h: h_new.add(p * lanes),
                gates: match self.gates.is_null() {
                    true => self.gates,
                    false => self.gates.add(((p * self.steps + t) * self.batch) * width),
                },
                y: match spec.proj_size {
                    Some(_) => ptr::null_mut(),
                    None => self.y.add(t * self.batch * self.ldy + p * lanes),
                },
                units: spec.hidden_size - p * lanes,
                cell: spec.cell,
                coupled: spec.coupled,
                clip: spec.clip,
            };
            let u = self.layer.u.as_ptr();
            if let Some(solo) = solo.filter(|_| active > 0) {
                let n = spec.input_size;
                let input = if self.block == 1 { self.input.add(t * n) } else { null() };
                let w = self.layer.w.as_ptr();
                solo(&SoloArgs { k: state, operand, u, cell: cell(0), n, input, w });
            } else {
                for n in 0..panels.len() {
                    // Back and forth: the panels that the last step used last are still in cache.
                    let turn = |n: usize| if k.is_multiple_of(2) { panels.start + n } else { panels.end - 1 - n };
                    let (p, next) = (turn(n), turn((n + 1).min(panels.len() - 1)));
                    let (panel, next) = (u.add(p * state * width), u.add(next * state * width));
                    let args = TileArgs::new(state, Strided::rows(operand, stride), panel, z(p), width);
                    let cell = cell(p);
                    // A column of many rows, each on a line of its own, is written faster if the lines are on their way. With
                    // one row that was slower; two were not measured.
                    if active > 2 && !cell.y.is_null() {
                        (kernels.fetch)(cell.y, active, self.ldy);
                    }
                    kernels.rows(active, TileArgs { next, ..args });
                    if !single {
                        (kernels.cell)(&cell);
                    }
                }
                if single && active > 0 && !panels.is_empty() {
                    (kernels.cell)(&cell(panels.start));
                }
            }
            let from = panels.start * lanes;
            if !self.gates.is_null() {
                // Sequences without this step keep their state.
                for row in active..self.batch {
                    let at = row * padded + from;
                    ptr::copy_nonoverlapping(c_old.add(at), c_new.add(at), panels.len() * lanes);
                    if spec.proj_size.is_none() {
                        ptr::copy_nonoverlapping(h_old.add(at), h_new.add(at), panels.len() * lanes);
                    }
                }
            }
        }
    }

    /// `snap(W_hr h)` of a step.
    ///
    /// # Safety
    /// As for [`work`](Self::work).
    unsafe fn project(&self, member: Member<'_>, k: usize, t: usize, active: usize) {
        let Packed { spec, kernels, .. } = self.layer;
        let width = kernels.panel();
        let (padded, padded_state, state) = (self.layer.padded(), self.layer.padded_state(), spec.state_size());
        let at = self.places(k, t);
        for p in share(padded_state / width, member) {
            let len = width.min(state - p * width);
            // SAFETY: offsets follow the layouts in `Packed` and `Plan`; a thread's part of `z` has a panel row for
            // each sequence.
            unsafe {
                let z = self.z.add(member.rank * self.batch * width);
                let panel = self.layer.projection.as_ptr().add(p * spec.hidden_size * width);
                let (k, a) = (spec.hidden_size, Strided::rows(self.unprojected, padded));
                kernels.rows(active, TileArgs::new(k, a, panel, z, width));
                (kernels.snap)(z, active * width);
                for row in 0..active {
                    let from = z.add(row * width);
                    let h = self.h.add((at.h_new * self.batch + row) * padded_state + p * width);
                    ptr::copy_nonoverlapping(from, h, width);
                    let y = self.y.add((t * self.batch + row) * self.ldy + p * width);
                    ptr::copy_nonoverlapping(from, y, len);
                }
                for row in if self.gates.is_null() { 0..0 } else { active..self.batch } {
                    let place = |k: usize| self.h.add((k * self.batch + row) * padded_state + p * width);
                    ptr::copy_nonoverlapping(place(at.h_old), place(at.h_new), width);
                }
            }
        }
    }
}
