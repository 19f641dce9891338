//! Division of a sequence into the chunks of steps over which weight gradients are summed.

use lstm_core::arithmetic::CHUNK;

/// Equally spaced chunks with the same number of steps each, in the order in which their weight gradients are added.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Chunks {
    /// The first step of the first chunk.
    pub(super) start: usize,
    /// Number of steps per chunk.
    pub(super) steps: usize,
    /// Number of chunks.
    pub(super) count: usize,
    /// Steps from the start of one chunk to the start of the next.
    pub(super) stride: isize,
}

impl Chunks {
    /// The chunks of a sequence, in the order of the backward pass: one item for the chunks of full length, and one for
    /// the shorter chunk at the end of the sequence, if there is one.
    pub(super) fn of(steps: usize, reverse: bool) -> impl Iterator<Item = Self> {
        let (count, rest) = (steps / CHUNK, steps % CHUNK);
        let (start, stride) =
            if reverse { (0, CHUNK as isize) } else { (count.max(1) * CHUNK - CHUNK, -(CHUNK as isize)) };
        let whole = Chunks { start, steps: CHUNK, count, stride };
        let rest = Chunks { start: count * CHUNK, steps: rest, count: rest.min(1), stride: 0 };
        let both = if reverse { [whole, rest] } else { [rest, whole] };
        both.into_iter().filter(|chunks| chunks.count > 0)
    }
}
