//! A whole sequence: input products for some steps at once, then step by step the recurrent products with the gates in
//! their tail, or a small step in one go. Threads share a step by units and meet at a barrier; no sum is ever split between
//! them. Both directions of a layer may run at once, each on half of the threads.

mod work;

use std::{ops::Range, ptr};

use crate::{
    layer::{Packed, Plan},
    pool::{Member, Pool, Team},
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
        // What the unsafe code in `work` relies on; the callers have checked it and said so in an `Err`.
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
}
