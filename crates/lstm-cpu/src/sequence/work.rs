//! One thread's part of a sequence: blocks of input products, and step by step the recurrent products and the gates.

use std::{
    ops::Range,
    ptr::{self, null},
};

use lstm_core::CellKind;

use super::{Run, share};
use crate::{
    kernels::{Solo, Strided, TileArgs},
    layer::{GATES, Packed, Plan, seeing},
    pool::Member,
    step::{Apart, CellArgs, SoloArgs},
    trace::Trace,
};

/// See [`Run::places`].
struct Places {
    h_old: usize,
    h_new: usize,
    c_old: usize,
    c_new: usize,
}

impl Run<'_> {
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
    pub(super) unsafe fn work(&self, member: Member<'_>) {
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
                true => {
                    let gates = seeing(spec.cell).len();
                    Apart::panels(kernels, self.block * width, gates * lanes, self.steps * width)
                }
                false => Apart::rows(kernels, padded, self.ldy),
            };
            // Where the products of the recurrent panel `r` go. Of a single sequence two threads may both make a panel.
            let z = |r: usize| match single {
                true => self.z.add((r + member.rank) * width),
                false => {
                    let place = member.rank * self.layer.recurrent_each() + self.layer.recurrent_place(r);
                    self.z.add(place * self.batch * width)
                }
            };
            let y = |p: usize| match spec.proj_size {
                Some(_) => ptr::null_mut(),
                None => self.y.add(t * self.batch * self.ldy + p * lanes),
            };
            let cell = |p: usize| CellArgs {
                count: if single { panels.len() } else { active },
                apart,
                x: self.x.add((p * self.block + in_block) * self.batch * width),
                z: GATES.map(|gate| {
                    let (r, vector) = self.layer.recurrent_gate(p, gate);
                    z(r).add(vector * lanes).cast_const()
                }),
                bias: self.layer.bias.as_ptr().add(p * width),
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
                // Back and forth: the panels that the last step used last are still in cache.
                let groups = self.layer.groups(panels.clone());
                // This thread's panels of the `n`th group that is walked.
                let own = |n: usize| {
                    let n = if k.is_multiple_of(2) { groups.start + n } else { groups.end - 1 - n };
                    let group = self.layer.group(n);
                    panels.start.max(group.start)..panels.end.min(group.end)
                };
                for n in 0..groups.len() {
                    // A column of many rows, each on a line of its own, is written faster if the lines are on their way. With
                    // one row that was slower; two were not measured.
                    if active > 2 && spec.proj_size.is_none() {
                        own(n).for_each(|p| (kernels.fetch)(y(p), active, self.ldy));
                    }
                    let recurrent = self.layer.recurrent(own(n));
                    let next = self.layer.recurrent(own((n + 1).min(groups.len() - 1))).start;
                    for r in recurrent.clone() {
                        let next = if r + 1 < recurrent.end { r + 1 } else { next };
                        let (panel, next) = (u.add(r * state * width), u.add(next * state * width));
                        let args = TileArgs::new(state, Strided::rows(operand, stride), panel, z(r), width);
                        kernels.rows(active, TileArgs { next, ..args });
                    }
                    if !single {
                        own(n).for_each(|p| (kernels.cell)(&cell(p)));
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
