//! Splits a text into batches for truncated backpropagation through time.

use lstm::{ndarray::Array3, train::IGNORE_INDEX};

use crate::text::{Symbol, one_hot_value};

/// A text split into `batch` streams of equal length, which are processed in parallel in chunks of `steps` steps. Each chunk
/// continues where the previous chunk ended, so the model's state is carried over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches<'a> {
    symbols: &'a [Symbol],
    /// Number of different symbols.
    classes: usize,
    /// Number of streams.
    batch: usize,
    /// Number of steps of a chunk.
    steps: usize,
    /// Number of steps of a stream.
    length: usize,
}

/// Inputs and targets of a chunk.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// One-hot inputs, shape `(steps, batch, classes)`, with [`one_hot_value`] at the index of each symbol. All
    /// elements are zero after the end of the text.
    pub(crate) x: Array3<f32>,
    /// Next symbol for each row `step * batch + stream` of `x`, or [`IGNORE_INDEX`] after the end of the text.
    pub(crate) targets: Vec<usize>,
}

impl Chunk {
    /// Number of targets that are not ignored.
    pub(crate) fn target_count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE_INDEX).count()
    }
}

impl<'a> Batches<'a> {
    /// Splits `symbols` into `batch` streams of equal length, and these into chunks of `steps` steps.
    pub(crate) fn new(symbols: &'a [Symbol], classes: usize, batch: usize, steps: usize) -> Self {
        // The last symbol of the text is only a target, not an input.
        let length = symbols.len().saturating_sub(1).div_ceil(batch);
        Batches { symbols, classes, batch, steps: steps.min(length), length }
    }

    /// Number of chunks.
    pub(crate) fn len(&self) -> usize {
        self.length.div_ceil(self.steps.max(1))
    }

    /// Returns chunk number `k`.
    pub(crate) fn chunk(&self, k: usize) -> Chunk {
        let hot_value = one_hot_value(self.classes);
        let mut x = Array3::zeros((self.steps, self.batch, self.classes));
        let mut targets = Vec::with_capacity(self.steps * self.batch);
        for t in 0..self.steps {
            let step = k * self.steps + t;
            for stream in 0..self.batch {
                let position = stream * self.length + step;
                match self.symbols.get(position..position + 2) {
                    Some(&[symbol, next]) if step < self.length => {
                        x[[t, stream, symbol as usize]] = hot_value;
                        targets.push(next as usize);
                    }
                    _ => targets.push(IGNORE_INDEX),
                }
            }
        }
        Chunk { x, targets }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every symbol except the last is an input exactly once, in stream order, with the next symbol as its target.
    #[test]
    fn chunks_cover_every_symbol_once() {
        for (n, batch, steps) in [(2, 1, 1), (25, 4, 3), (100, 7, 5), (10, 6, 2), (9, 2, 64), (3, 5, 4)] {
            let symbols: Vec<_> = (0..n).collect();
            let batches = Batches::new(&symbols, symbols.len(), batch, steps);
            let mut streams = vec![Vec::new(); batch];
            for k in 0..batches.len() {
                let chunk = batches.chunk(k);
                assert!(chunk.target_count() > 0, "{n} {batch} {steps}: chunk {k} has no targets");
                let rows = chunk.x.rows().into_iter().zip(&chunk.targets).enumerate();
                for (row, (x, &target)) in rows {
                    let hot_indices: Vec<_> = (0..x.len()).filter(|&s| x[s] != 0.0).collect();
                    match target {
                        IGNORE_INDEX => assert_eq!(x.sum(), 0.0),
                        target => {
                            assert_eq!(hot_indices, [target - 1]);
                            streams[row % batch].push(target - 1);
                        }
                    }
                }
            }
            let visited_symbols: Vec<_> = streams.concat();
            assert_eq!(visited_symbols, (0..symbols.len() - 1).collect::<Vec<_>>(), "{n} {batch} {steps}");
        }
    }
}
