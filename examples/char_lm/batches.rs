//! A text as batches for truncated backpropagation: streams of it side by side, cut into chunks of some steps.

use lstm_core::{ndarray::Array3, train::IGNORE_INDEX};

use crate::text::{Symbol, hot};

/// A text in `batch` streams of equal length, walked side by side in chunks of `steps` steps. A chunk goes on where the
/// one before it ended, so a model's state may be carried from one to the next.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Batches<'a> {
    symbols: &'a [Symbol],
    /// How many symbols there are to tell apart.
    classes: usize,
    batch: usize,
    steps: usize,
    /// Steps in a stream.
    length: usize,
}

/// The symbols of a chunk and the ones to foretell.
#[derive(Debug)]
pub(crate) struct Chunk {
    /// [`hot`] at each symbol, time-major: `(steps, batch, classes)`. Zeros where the text is over.
    pub(crate) x: Array3<f32>,
    /// The next symbol of each row of `x`, or [`IGNORE_INDEX`] where the text is over.
    pub(crate) targets: Vec<usize>,
}

impl Chunk {
    /// How many symbols are to be foretold.
    pub(crate) fn count(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORE_INDEX).count()
    }
}

impl<'a> Batches<'a> {
    pub(crate) fn new(symbols: &'a [Symbol], classes: usize, batch: usize, steps: usize) -> Self {
        // The last symbol is foretold but has none to foretell.
        let length = symbols.len().saturating_sub(1).div_ceil(batch);
        Batches { symbols, classes, batch, steps: steps.min(length), length }
    }

    /// How many chunks there are.
    pub(crate) fn len(&self) -> usize {
        self.length.div_ceil(self.steps.max(1))
    }

    /// Chunk number `k`.
    pub(crate) fn chunk(&self, k: usize) -> Chunk {
        let hot = hot(self.classes);
        let mut x = Array3::zeros((self.steps, self.batch, self.classes));
        let mut targets = Vec::with_capacity(self.steps * self.batch);
        for t in 0..self.steps {
            let step = k * self.steps + t;
            for stream in 0..self.batch {
                let place = stream * self.length + step;
                match self.symbols.get(place..place + 2) {
                    Some(&[symbol, next]) if step < self.length => {
                        x[[t, stream, symbol as usize]] = hot;
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

    /// Every symbol but the last is an input once, in the order of its stream, with the next one as its target.
    #[test]
    fn every_character_is_visited_once() {
        for (n, batch, steps) in [(2, 1, 1), (25, 4, 3), (100, 7, 5), (10, 6, 2), (9, 2, 64), (3, 5, 4)] {
            let symbols: Vec<_> = (0..n).collect();
            let batches = Batches::new(&symbols, symbols.len(), batch, steps);
            let mut streams = vec![Vec::new(); batch];
            for k in 0..batches.len() {
                let chunk = batches.chunk(k);
                assert!(chunk.count() > 0, "{n} {batch} {steps}: chunk {k} has nothing to learn");
                let rows = chunk.x.rows().into_iter().zip(&chunk.targets).enumerate();
                for (row, (x, &target)) in rows {
                    let hot: Vec<_> = (0..x.len()).filter(|&s| x[s] != 0.0).collect();
                    match target {
                        IGNORE_INDEX => assert_eq!(x.sum(), 0.0),
                        target => {
                            assert_eq!(hot, [target - 1]);
                            streams[row % batch].push(target - 1);
                        }
                    }
                }
            }
            let visited: Vec<_> = streams.concat();
            assert_eq!(visited, (0..symbols.len() - 1).collect::<Vec<_>>(), "{n} {batch} {steps}");
        }
    }
}
