//! Division of a sequence into the chunks of steps over which weight gradients are summed.

use lstm_core::arithmetic::CHUNK_STEPS;

/// A series of chunks of steps, equally long and equally spaced, in the order in which their weight gradients are
/// added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chunks {
    /// The first step of the first chunk.
    pub(super) first_step: usize,
    /// Number of steps per chunk.
    pub(super) steps: usize,
    /// Number of chunks.
    pub(super) count: usize,
    /// Number of steps from the start of one chunk to the start of the next, negative if the chunks run backward.
    pub(super) stride: isize,
}

impl Chunks {
    /// Returns the chunks of a sequence, in the order of the backward pass: one item for the chunks of full length, and
    /// one for the shorter chunk at the end of the sequence, if there is one.
    pub(super) fn of(steps: usize, reverse: bool) -> impl Iterator<Item = Self> {
        let (count, remaining_steps) = (steps / CHUNK_STEPS, steps % CHUNK_STEPS);
        let (first_step, stride) = if reverse {
            (0, CHUNK_STEPS as isize)
        } else {
            (count.max(1) * CHUNK_STEPS - CHUNK_STEPS, -(CHUNK_STEPS as isize))
        };
        let full_chunks = Chunks { first_step, steps: CHUNK_STEPS, count, stride };
        let partial_chunk = Chunks {
            first_step: count * CHUNK_STEPS,
            steps: remaining_steps,
            count: remaining_steps.min(1),
            stride: 0,
        };
        let ordered_chunks = if reverse { [full_chunks, partial_chunk] } else { [partial_chunk, full_chunks] };
        ordered_chunks.into_iter().filter(|chunks| chunks.count > 0)
    }
}
