//! Random numbers for training. Each number depends only on a seed and a counter, so checkpoints need no generator
//! state.

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};

use crate::{error::Result, memory};

/// The numbers `0..n` in a random order that depends only on `seed` and `epoch`. Use it as the order of the examples in
/// an epoch: each epoch has a different order, and a resumed run computes the same one again.
///
/// The algorithm is a Fisher-Yates shuffle with the ChaCha8 generator; `docs/specification.md` defines it under
/// "Training steps".
///
/// ```
/// use lstm_core::train::shuffled_indices;
/// assert_eq!(shuffled_indices(7, 0, 8)?, [3, 5, 1, 6, 2, 4, 0, 7]);
/// assert_eq!(shuffled_indices(7, 1, 8)?, [4, 3, 0, 6, 5, 1, 7, 2]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::TooLarge`](crate::Error::TooLarge) if the memory for `n` numbers cannot be allocated.
pub fn shuffled_indices(seed: u64, epoch: u64, n: usize) -> Result<Vec<usize>> {
    let mut indices = memory::collect("shuffled_indices", n, 0..n)?;
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch.wrapping_add(1));
    for i in (1..n).rev() {
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        indices.swap(i, j as usize);
    }
    Ok(indices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffles_are_different_permutations() {
        for n in [0, 1, 2, 3, 100] {
            let mut indices = shuffled_indices(3, 4, n).unwrap();
            indices.sort();
            assert!(indices.into_iter().eq(0..n));
        }
        assert_ne!(shuffled_indices(3, 4, 50).unwrap(), shuffled_indices(3, 5, 50).unwrap());
        assert_ne!(shuffled_indices(3, 4, 50).unwrap(), shuffled_indices(4, 4, 50).unwrap());
        // Computed by an independent implementation of the specification.
        assert_eq!(shuffled_indices(3, u64::MAX, 5).unwrap(), [1, 2, 4, 0, 3]);
        let weighted_sum = shuffled_indices(7, 5, 50)
            .unwrap()
            .into_iter()
            .enumerate()
            .map(|(position, index)| (position + 1) * index)
            .sum::<usize>();
        assert_eq!(weighted_sum, 29840);
        assert!(matches!(
            shuffled_indices(1, 1, usize::MAX),
            Err(crate::Error::TooLarge { op: "shuffled_indices", .. })
        ));
    }

    #[test]
    fn shuffle_is_uniform() {
        let mut counts = [[0; 4]; 4];
        for epoch in 0..4000 {
            shuffled_indices(1, epoch, 4)
                .unwrap()
                .into_iter()
                .enumerate()
                .for_each(|(position, index)| counts[position][index] += 1);
        }
        assert!(counts.iter().flatten().all(|n| (900..1100).contains(n)), "{counts:?}");
    }
}
