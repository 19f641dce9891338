//! Fails the n-th large allocation of one of several ranks, for every n until the operation succeeds. Each time, all ranks
//! return the same error, which names the rank, or all succeed: none waits for one that returned early. Afterwards the
//! operation succeeds on the same objects, with the same bits as ever.
//!
//! Sizes are chosen so that arrays whose size depends on the caller have at least 2048 bytes, and everything of a fixed size
//! has fewer. An allocation that cannot fail ends the test.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use lstm_cpu::{
    Cpu, Error, HostState, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelWeights, Result,
    ndarray::{Array3, s},
    train::{
        Collective, LossInput, ModelOutputs, ModelTrainer, OptimizerConfig, Schedule, Shard, Trainer, TrainerConfig,
        gather_state, mean_squared_error, part_of_mean,
    },
};
use thread_ranks::{ThreadRank, on_ranks};

#[path = "train/thread_ranks.rs"]
mod thread_ranks;

/// Minimum size of an allocation that is counted and made to fail.
const MIN_BYTES: usize = 2048;

const SHARDS: usize = 5;

/// The rank whose allocations fail.
const FAILING: usize = 1;

thread_local! {
    /// Number of large allocations of this thread until the one that fails; negative if none does.
    static UNTIL_FAILURE: Cell<isize> = const { Cell::new(-1) };
}

/// The system allocator, with one allocation that fails.
struct FailingAllocator;

// SAFETY: every call is passed on to the system allocator unchanged, or returns null, which reports a failure.
unsafe impl GlobalAlloc for FailingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let left = UNTIL_FAILURE.get();
        if layout.size() >= MIN_BYTES && left >= 0 {
            UNTIL_FAILURE.set(left - 1);
            if left == 0 {
                return std::ptr::null_mut();
            }
        }
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.dealloc(at, layout) }
    }

    // `realloc` and `alloc_zeroed` go through `alloc` by default.
}

#[global_allocator]
static ALLOCATOR: FailingAllocator = FailingAllocator;

/// A rank whose own allocations do not fail while it communicates.
struct Rank<'a>(&'a ThreadRank);

/// Runs a function in which no allocation fails.
fn without_failures<T>(run: impl FnOnce() -> T) -> T {
    let left = UNTIL_FAILURE.replace(-1);
    let result = run();
    UNTIL_FAILURE.set(left);
    result
}

impl Collective for Rank<'_> {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn size(&self) -> usize {
        self.0.size()
    }

    fn all_to_all(&self, sent: &[u8], sent_counts: &[usize], received: &mut [u8], counts: &[usize]) -> Result<()> {
        without_failures(|| self.0.all_to_all(sent, sent_counts, received, counts))
    }

    fn all_gather(&self, sent: &[u8], received: &mut [u8], counts: &[usize]) -> Result<()> {
        without_failures(|| self.0.all_gather(sent, received, counts))
    }
}

/// Runs an operation on three ranks, with objects that `make` makes on each, and fails every allocation of one of them.
/// The operation must leave the objects unchanged if it fails.
fn check<T, R: PartialEq + Send + Sync>(
    make: impl Fn() -> T + Sync,
    run: impl Fn(&mut T, &Rank<'_>) -> Result<R> + Sync,
) {
    let expected = on_ranks(3, |rank| run(&mut make(), &Rank(rank)).unwrap());
    let mut num_errors = 0;
    for n in 0.. {
        let results = on_ranks(3, |rank| {
            let (mut object, rank) = (make(), Rank(rank));
            UNTIL_FAILURE.set(if rank.rank() == FAILING { n } else { -1 });
            let result = run(&mut object, &rank);
            let is_reached = rank.rank() == FAILING && UNTIL_FAILURE.replace(-1) < 0;
            match result {
                Ok(result) => (Ok(result), is_reached),
                Err(error) => (Err((error, run(&mut object, &rank).unwrap())), is_reached),
            }
        });
        let is_reached = results[FAILING].1;
        let failed = results.iter().filter(|(result, _)| result.is_err()).count();
        assert!(failed == 0 || failed == 3 && is_reached, "allocation {n}: {failed} of 3 ranks failed");
        num_errors += failed;
        for (rank, (result, _)) in results.into_iter().enumerate() {
            let result = match result {
                Ok(result) => result,
                Err((Error::Rank { rank: FAILING, reason }, result)) if reason.contains("memory") => result,
                Err((error, _)) => panic!("allocation {n}, rank {rank}: {error}"),
            };
            assert!(result == expected[rank], "allocation {n}: other bits on rank {rank}");
        }
        if !is_reached {
            break;
        }
    }
    assert!(num_errors > 0, "no allocation was made to fail");
}

const BATCH: usize = 140;

fn x() -> Array3<f32> {
    Array3::from_shape_fn((BATCH, 2, 16), |(b, t, k)| ((b * 31 + t * 7 + k) % 17) as f32 * 0.1 - 0.8)
}

fn lstm() -> Lstm<Cpu> {
    Lstm::random(&Cpu::builder().threads(1).build().unwrap(), LstmConfig::new(16, 20).dropout(0.25).layers(2), 1)
        .unwrap()
}

fn config() -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)).shards(SHARDS)
}

/// The part of the mean squared error of a shard. The error of a loss would come back unchanged on its rank.
fn loss(out: ModelOutputs<'_>, shard: &Shard) -> Result<(f64, Array3<f32>)> {
    without_failures(|| {
        let mean = mean_squared_error(out.y()?, x().slice(s![shard.rows.clone(), .., ..]))?;
        Ok(part_of_mean(mean, shard.own_count, shard.count))
    })
}

#[test]
fn a_training_step_fails_on_all_ranks_or_none() {
    let x = x();
    let make = || {
        let lstm = lstm();
        let head = Linear::random(lstm.backend(), 20, 16, 2).unwrap();
        Trainer::new(lstm, Some(head), config()).unwrap()
    };
    check(make, |trainer, rank| {
        let report = trainer.step_on(rank, &x, LossInput::Outputs, loss)?;
        let head = trainer.head().unwrap().weight();
        Ok(without_failures(|| (report.loss.to_bits(), trainer.lstm().weights().clone(), head.clone())))
    });
}

#[test]
fn a_training_step_of_a_model_fails_on_all_ranks_or_none() {
    let x = x();
    let make = || {
        let lstm = lstm();
        let head = Linear::random(lstm.backend(), 20, 16, 2).unwrap();
        let layers = vec![
            ModelLayer::Lstm { name: "rec".into(), weights: lstm.weights().clone().into(), initial_state: None },
            ModelLayer::Linear { name: "out".into(), weight: head.weight().clone(), bias: head.bias().cloned() },
        ];
        ModelTrainer::new(Model::new(lstm.backend(), ModelWeights::new(layers).unwrap()).unwrap(), config()).unwrap()
    };
    check(make, |trainer, rank| {
        let report = trainer.step_on(rank, &x, loss)?;
        Ok(without_failures(|| (report.loss.to_bits(), trainer.model().weights().clone())))
    });
}

#[test]
fn states_are_gathered_on_all_ranks_or_none() {
    let make = || {
        let mut state = HostState::zeros(&LstmConfig::new(16, 20).layers(2), BATCH).unwrap();
        state.h.iter_mut().chain(&mut state.c).enumerate().for_each(|(k, v)| *v = k as f32);
        state
    };
    check(make, |state, rank| {
        gather_state(rank, SHARDS, state)?;
        Ok(without_failures(|| state.clone()))
    });
}
