//! Randomness that a run can take up again: everything follows from a seed and a number, and nothing needs to be saved.

use ndarray_rand::rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::error::{Error, Result};

/// The numbers 0 to n - 1 in an order that `seed` and `epoch` determine: which example comes when. Each epoch of a run
/// has another order, and a run that was resumed finds the order of its epoch again.
///
/// Fisher and Yates' shuffle by ChaCha8; `docs/arithmetic.md` gives it under Training steps.
///
/// ```
/// use lstm_core::train::order;
/// assert_eq!(order(7, 0, 8)?, [3, 5, 1, 6, 2, 4, 0, 7]);
/// assert_eq!(order(7, 1, 8)?, [4, 3, 0, 6, 5, 1, 7, 2]);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # Errors
/// [`Error::TooLarge`] if there is no memory for it.
pub fn order(seed: u64, epoch: u64, n: usize) -> Result<Vec<usize>> {
    let mut order = Vec::new();
    order.try_reserve_exact(n).map_err(|_| Error::TooLarge { op: "order", sizes: vec![n] })?;
    order.extend(0..n);
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(epoch.wrapping_add(1));
    for i in (1..n).rev() {
        let j = (u128::from(rng.next_u64()) * (i as u128 + 1)) >> 64;
        order.swap(i, j as usize);
    }
    Ok(order)
}

/// The number at `step`, counted from 1, of SplitMix64 started from `seed` (Steele et al. 2014): the seed of a step's
/// dropout.
pub(super) fn dropout_seed(seed: u64, step: u64) -> u64 {
    let z = seed.wrapping_add(step.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_those_of_splitmix64() {
        // The first outputs for seed 0 that its authors' program gives.
        let seeds = [1, 2, 3].map(|step| dropout_seed(0, step));
        assert_eq!(seeds, [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4, 0x06c4_5d18_8009_454f]);
        dropout_seed(u64::MAX, u64::MAX);
    }

    #[test]
    fn orders_are_permutations_that_differ() {
        for n in [0, 1, 2, 3, 100] {
            let mut order = order(3, 4, n).unwrap();
            order.sort();
            assert!(order.into_iter().eq(0..n));
        }
        assert_ne!(order(3, 4, 50).unwrap(), order(3, 5, 50).unwrap());
        assert_ne!(order(3, 4, 50).unwrap(), order(4, 4, 50).unwrap());
        // By another program, written from the specification.
        assert_eq!(order(3, u64::MAX, 5).unwrap(), [1, 2, 4, 0, 3]);
        let sum = order(7, 5, 50).unwrap().into_iter().enumerate().map(|(at, k)| (at + 1) * k).sum::<usize>();
        assert_eq!(sum, 29840);
        assert!(matches!(order(1, 1, usize::MAX), Err(Error::TooLarge { op: "order", .. })));
    }

    #[test]
    fn every_place_is_as_likely() {
        let mut counts = [[0; 4]; 4];
        for epoch in 0..4000 {
            order(1, epoch, 4).unwrap().into_iter().enumerate().for_each(|(at, k)| counts[at][k] += 1);
        }
        assert!(counts.iter().flatten().all(|n| (900..1100).contains(n)), "{counts:?}");
    }
}
