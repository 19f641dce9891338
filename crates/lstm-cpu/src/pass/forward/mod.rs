//! The forward pass of a layer over whole sequences.
//!
//! The pass first computes the input products `W x` for a block of time steps. For each time step it then computes the
//! recurrent products and the gates. Threads divide the units of a time step and meet at a barrier after it. No sum is
//! split between threads, so results do not depend on their number. Both directions of a bidirectional layer may run at
//! the same time, each on half of the threads.

mod thread;

use std::{ops::Range, ptr};

use crate::{
    kernel::quantized::IntegerRows,
    layer::{PackedLayer, Plan},
    pass::trace::Trace,
    pool::{Team, ThreadPool},
};

/// The data of a forward pass, which its threads share. Between barriers, threads write to disjoint memory: to the
/// columns of their panels in `h`, `c` and `y`, to their panels in `wx`, to their rows of `quantized_input`, and to their
/// own part of `uh` and `quantized_state`.
struct ForwardPass<'a> {
    layer: &'a PackedLayer,
    /// Number of time steps.
    steps: usize,
    /// Number of sequences.
    batch: usize,
    /// Number of time steps whose input products are computed at once.
    block_steps: usize,
    /// Index of the half of [`Plan::h`] that holds the initial state, in a pass without a trace.
    initial_state_index: usize,
    /// Length of each sequence, in descending order.
    lengths: Option<&'a [usize]>,
    /// Snapped input, `[steps * batch, input_size]`.
    input: *const f32,
    /// Output, `steps * batch` rows that are `ldy` floats apart. Points to the first of this layer's columns.
    y: *mut f32,
    /// Leading dimension of `y`, in floats.
    ldy: usize,
    /// Hidden state, as in [`Plan`] or [`Trace`].
    h: *mut f32,
    /// Cell state, as in [`Plan`] or [`Trace`].
    c: *mut f32,
    /// `h` before the projection, as in [`Plan`].
    h_unprojected: *mut f32,
    /// Input products `W x`, as in [`Plan`].
    wx: *mut f32,
    /// Recurrent products `U h`, as in [`Plan`].
    uh: *mut f32,
    /// Quantized inputs of a block, as in [`Plan`].
    quantized_input: IntegerRows,
    /// Quantized operands, as in [`Plan`].
    quantized_state: IntegerRows,
    /// Gates saved for the backward pass, `[panels][steps * batch][panel]`, or null without a trace. With a trace, `h`
    /// and `c` hold the states before and after every time step.
    gates: *mut f32,
}

// SAFETY: between barriers, threads write to disjoint memory, as described at `ForwardPass`.
unsafe impl Sync for ForwardPass<'_> {}

/// The input sequences of a layer.
#[derive(Clone, Copy)]
pub(crate) struct SequenceInput<'a> {
    /// Number of time steps of the longest sequence.
    pub(crate) steps: usize,
    /// Number of time steps of each sequence, in descending order. `None` if all have `steps`.
    pub(crate) lengths: Option<&'a [usize]>,
    /// Snapped input, `[steps * batch, input_size]`, time-major.
    pub(crate) x: &'a [f32],
}

/// Runs a layer from the state in `plan` and writes its hidden states to `y: [steps * batch, state_size]`. Rows beyond
/// the length of a sequence are not written; without lengths, all of `y` is written. With a trace, starts from the
/// state in the trace instead and fills the trace. Allocates nothing.
///
/// # Safety
/// `y` is valid for writes, and nothing else accesses it during the call.
pub(crate) unsafe fn run(
    pool: &ThreadPool,
    layer: &PackedLayer,
    plan: &mut Plan,
    input: SequenceInput<'_>,
    y: *mut [f32],
    trace: Option<&mut Trace>,
) {
    let cols = layer.spec.state_size();
    let pass = ForwardPass::new(layer, plan, input, y, (0..cols, cols), trace);
    let (blocks, blocks_per_run) = pass.blocks();
    // SAFETY: the slices have the sizes for which the plan was made and that `ForwardPass::new` checked. That `y` is
    // valid is guaranteed by the caller.
    pool.run_parts(plan.threads, blocks, blocks_per_run, &|member, blocks| unsafe { pass.run_thread(member, blocks) });
    pass.update_plan(plan);
}

/// Runs both directions of a layer, as [`run`] does, and writes their hidden states to `y` side by side, `layers[0]`
/// first. Allocates nothing.
///
/// # Safety
/// As for [`run`].
pub(crate) unsafe fn run_bidirectional(
    pool: &ThreadPool,
    layers: [&PackedLayer; 2],
    plans: [&mut Plan; 2],
    input: SequenceInput<'_>,
    y: *mut [f32],
) {
    let [a, b] = layers.map(|layer| layer.spec.state_size());
    let [plan, reverse_plan] = plans;
    let pass = ForwardPass::new(layers[0], plan, input, y, (0..a, a + b), None);
    let passes = [pass, ForwardPass::new(layers[1], reverse_plan, input, y, (a..a + b, a + b), None)];
    let threads_per_direction =
        (pool.threads() / 2).min(plan.threads_per_direction).min(reverse_plan.threads_per_direction);
    if threads_per_direction > 0 {
        let teams = [Team::new(threads_per_direction), Team::new(threads_per_direction)];
        pool.run(2 * threads_per_direction, &|member| match member.split(&teams) {
            // SAFETY: as in `run`; the two passes write to different plans and columns.
            Some((direction, member)) => unsafe {
                passes[direction].run_thread(member, 0..passes[direction].blocks().0)
            },
            // SAFETY: as in `run`.
            None => passes.iter().for_each(|pass| unsafe { pass.run_thread(member, 0..pass.blocks().0) }),
        });
    } else {
        for (pass, threads) in passes.iter().zip([plan.threads, reverse_plan.threads]) {
            let (blocks, blocks_per_run) = pass.blocks();
            // SAFETY: as in `run`.
            pool.run_parts(threads, blocks, blocks_per_run, &|member, blocks| unsafe {
                pass.run_thread(member, blocks)
            });
        }
    }
    passes[0].update_plan(plan);
    passes[1].update_plan(reverse_plan);
}

/// Number of time steps that run on the same threads, rounded to whole blocks. Starting the threads anew takes one or two
/// microseconds.
const STEPS_PER_RUN: usize = 256;

impl<'a> ForwardPass<'a> {
    /// The number of blocks of time steps, and how many of them run on the same threads.
    fn blocks(&self) -> (usize, usize) {
        (self.steps.div_ceil(self.block_steps), STEPS_PER_RUN.div_ceil(self.block_steps))
    }

    /// Prepares a pass that writes to `columns` of `y`, whose rows are `ldy` floats apart.
    ///
    /// # Panics
    /// If sizes do not match: the unsafe code relies on them. Callers check them first and report errors.
    fn new(
        layer: &'a PackedLayer,
        plan: &mut Plan,
        input: SequenceInput<'a>,
        y: *mut [f32],
        (columns, ldy): (Range<usize>, usize),
        trace: Option<&mut Trace>,
    ) -> Self {
        let SequenceInput { steps, lengths, x: input } = input;
        assert!(plan.matches(layer) && columns.len() == layer.spec.state_size());
        let rows = steps.checked_mul(plan.batch);
        assert_eq!(rows.and_then(|rows| rows.checked_mul(layer.spec.input_size)), Some(input.len()));
        assert!(rows.and_then(|rows| rows.checked_mul(ldy)) == Some(y.len()) && columns.end <= ldy);
        assert!(lengths.is_none_or(|lengths| lengths.len() == plan.batch));
        let trace_matches = |trace: &Trace| trace.matches(layer) && (trace.steps, trace.batch) == (steps, plan.batch);
        assert!(trace.as_deref().is_none_or(trace_matches));
        let (h, c, gates) = match trace {
            Some(trace) => (trace.h.as_mut_ptr(), trace.c.as_mut_ptr(), trace.gates.as_mut_ptr()),
            None => (plan.h.as_mut_ptr(), plan.c.as_mut_ptr(), ptr::null_mut()),
        };
        ForwardPass {
            layer,
            steps,
            batch: plan.batch,
            block_steps: plan.block_steps,
            initial_state_index: plan.current_state_index,
            lengths,
            input: input.as_ptr(),
            y: y.cast::<f32>().wrapping_add(columns.start),
            ldy,
            h,
            c,
            gates,
            h_unprojected: plan.h_unprojected.as_mut_ptr(),
            wx: plan.wx.as_mut_ptr(),
            uh: plan.uh.as_mut_ptr(),
            quantized_input: plan.quantized_input.rows(),
            quantized_state: plan.quantized_state.rows(),
        }
    }

    /// Records in `plan` which half of `h` holds the final state.
    fn update_plan(&self, plan: &mut Plan) {
        if self.gates.is_null() {
            plan.current_state_index = (plan.current_state_index + self.steps) % 2;
        }
    }
}
