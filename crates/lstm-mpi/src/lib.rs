//! Trains LSTMs on several machines with MPI. [`Mpi`] is a [`Collective`] for
//! [`Trainer::step_on`](lstm_core::train::Trainer::step_on) and
//! [`ModelTrainer::step_on`](lstm_core::train::ModelTrainer::step_on). Results are bit-identical for any number of
//! ranks.
//!
//! ```no_run
//! use lstm_core::{Error, Linear, Lstm, LstmConfig, ndarray::{Array3, s}};
//! use lstm_core::train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error, part_of_mean};
//! use lstm_cpu::Cpu;
//! use lstm_mpi::Mpi;
//!
//! fn main() -> std::process::ExitCode {
//!     lstm_mpi::run(|mpi: &Mpi| {
//!         let (x, target) = (Array3::zeros((64, 100, 3)), Array3::zeros((64, 100, 1)));
//!         let (lstm, head) = (Lstm::random(&Cpu::new(), LstmConfig::new(3, 64), 1)?, Linear::random(&Cpu::new(), 64, 1, 2)?);
//!         let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-3)).shards(16); // up to 16 ranks
//!         let mut trainer = Trainer::new(lstm, Some(head), config)?;
//!         for _ in 0..1000 {
//!             let report = trainer.step_on(mpi, &x, LossInput::Outputs, |out, shard| {
//!                 let mean = mean_squared_error(out.y()?, target.slice(s![shard.rows.clone(), .., ..]))?;
//!                 Ok::<_, Error>(part_of_mean(mean, shard.own_count, shard.count))
//!             })?;
//!             if mpi.is_first() {
//!                 println!("{}: {}", report.step, report.loss);
//!             }
//!         }
//!         if mpi.is_first() { trainer.save("run.safetensors") } else { Ok(()) }
//!     })
//! }
//! ```
//!
//! `mpirun -n 16 PROGRAM` starts it on 16 ranks. The page `docs/distributed.md` of the repository describes how to start
//! it on several machines, and what the exchange costs.

use std::{
    fmt::Display,
    io::Write,
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use lstm_core::{Error, train::Collective};
use mpi::{
    Count, Threading,
    datatype::{Partition, PartitionMut},
    environment::Universe,
    topology::{Communicator, SimpleCommunicator},
    traits::CommunicatorCollectives,
};

/// How long a rank with an error waits for the other ranks before it ends the job, so that they can report theirs.
const GRACE: Duration = Duration::from_secs(5);

/// The ranks of an MPI program: those of `MPI_COMM_WORLD`. Only the thread that initialized MPI may use it.
pub struct Mpi {
    world: SimpleCommunicator,
    /// A duplicate of `world` for the barrier at the end of the program: a rank with an error may reach it while others
    /// still exchange gradients through `world`.
    barrier_world: SimpleCommunicator,
    /// MPI was initialized for calls from one thread.
    _not_send: PhantomData<*const ()>,
    /// Finalizes MPI (`MPI_Finalize`) when it is dropped.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Mpi(rank {} of {})", self.rank(), self.size())
    }
}

impl Mpi {
    /// Initializes MPI. A program that `mpirun` did not start is the only rank. [`run`] also handles errors.
    ///
    /// # Errors
    /// [`Error::Device`] if MPI is already initialized.
    pub fn initialize() -> Result<Self, Error> {
        // The threads of a backend do not call MPI.
        let (universe, _) = mpi::initialize_with_threading(Threading::Funneled)
            .ok_or_else(|| error("initialize", "MPI is already initialized in this process"))?;
        let world = universe.world();
        Ok(Mpi { barrier_world: world.duplicate(), world, _not_send: PhantomData, _universe: universe })
    }

    /// Whether this is rank 0, which should print and save.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

impl Collective for Mpi {
    fn rank(&self) -> usize {
        self.world.rank() as usize
    }

    fn size(&self) -> usize {
        self.world.size() as usize
    }

    fn all_to_all(
        &self,
        sent: &[u8],
        sent_counts: &[usize],
        received: &mut [u8],
        received_counts: &[usize],
    ) -> Result<(), Error> {
        let (sent_counts, sent_starts) = counts_and_starts(sent_counts)?;
        let (received_counts, received_starts) = counts_and_starts(received_counts)?;
        let mut nothing = [0];
        let received = if received.is_empty() { &mut nothing[..0] } else { received };
        let sent = Partition::new(with_valid_address(sent), sent_counts, sent_starts);
        self.world.all_to_all_varcount_into(&sent, &mut PartitionMut::new(received, received_counts, received_starts));
        Ok(())
    }

    fn all_gather(&self, sent: &[u8], received: &mut [u8], received_counts: &[usize]) -> Result<(), Error> {
        let (counts, starts) = counts_and_starts(received_counts)?;
        let mut nothing = [0];
        let received = if received.is_empty() { &mut nothing[..0] } else { received };
        self.world.all_gather_varcount_into(with_valid_address(sent), &mut PartitionMut::new(received, counts, starts));
        Ok(())
    }
}

/// The same bytes at a valid address. The dangling address of an empty slice may be 1, which is Open MPI's `MPI_IN_PLACE`.
fn with_valid_address(bytes: &[u8]) -> &[u8] {
    if bytes.is_empty() { &[0][..0] } else { bytes }
}

/// The lengths of messages and where they start, as MPI takes them.
fn counts_and_starts(counts: &[usize]) -> Result<(Vec<Count>, Vec<Count>), Error> {
    let (mut counts_of_mpi, mut starts, mut start) = (Vec::new(), Vec::new(), 0usize);
    for &count in counts {
        let end = start.checked_add(count).filter(|&end| end <= Count::MAX as usize);
        let end = end.ok_or_else(|| error("exchange", "expected messages of less than 2^31 bytes"))?;
        // Both are at most `end`.
        counts_of_mpi.push(count as Count);
        starts.push(start as Count);
        start = end;
    }
    Ok((counts_of_mpi, starts))
}

fn error(op: &'static str, reason: &str) -> Error {
    Error::Device { backend: "MPI".into(), op, reason: reason.into() }
}

/// Runs the main function of an MPI program. Initializes MPI, calls `main`, and finalizes MPI. An error is printed to the
/// standard error stream with the number of the rank; the exit code is then 1.
///
/// If only this rank fails, by an error or a panic, the others would wait for it forever. If they have not ended 5
/// seconds after the error, it ends the job with `MPI_Abort`.
pub fn run<E: Display>(main: impl FnOnce(&Mpi) -> Result<(), E>) -> ExitCode {
    let mpi = match Mpi::initialize() {
        Ok(mpi) => mpi,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::FAILURE;
        }
    };
    let rank = mpi.rank();
    // After a panic, nothing but the rank's communicator is used.
    let result = catch_unwind(AssertUnwindSafe(|| main(&mpi)));
    let message = match result {
        Ok(Ok(())) => {
            // A blocking barrier does not match an immediate one.
            mpi.barrier_world.immediate_barrier().wait();
            return ExitCode::SUCCESS;
        }
        Ok(Err(error)) => format!("rank {rank}: error: {error}\n"),
        Err(_) => format!("rank {rank}: ends after a panic\n"),
    };
    // One write, so that the lines of the ranks do not mix. Nobody can be told if it fails.
    let _ = std::io::stderr().write_all(message.as_bytes());
    let (mut all_ended, deadline) = (mpi.barrier_world.immediate_barrier(), Instant::now() + GRACE);
    while let Err(waiting) = all_ended.test() {
        if Instant::now() > deadline {
            mpi.world.abort(1);
        }
        all_ended = waiting;
        thread::sleep(Duration::from_millis(10));
    }
    ExitCode::FAILURE
}
