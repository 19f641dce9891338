//! Training on several ranks: what is exchanged, and in which order gradients are summed.

use std::ops::Range;

use ndarray::{Array3, s};

use crate::{
    arithmetic::Digest,
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::HostState,
    shape::zeros,
    train::tree::{TreeSum, part, subtrees},
};

/// Communication between the ranks of a training run: processes that run one program and train one model together, as
/// MPI's communicator and PyTorch's process group. The crate `lstm-mpi` implements it with MPI.
///
/// Every rank calls the same methods in the same order. A method returns when this rank has all its data. Ranks are
/// numbered from 0. Messages are bytes, which must arrive unchanged.
///
/// If a rank ends, the others must not wait for it forever: either the calls on the other ranks fail, or their processes
/// end too, as `mpirun` does.
pub trait Collective {
    /// Number of this rank, counted from 0.
    fn rank(&self) -> usize;

    /// Number of ranks, at least 1.
    fn size(&self) -> usize;

    /// Sends a message to every rank and receives one of every rank, as `MPI_Alltoallv`. `sent` holds the messages to
    /// all ranks, in their order, of `sent_counts` bytes each. The messages of all ranks are written to `received`, in
    /// their order, of `received_counts` bytes each. Counts are known to both sides; their sum is less than 2^31.
    ///
    /// # Errors
    /// [`Error::Device`] if a rank cannot be reached.
    fn all_to_all(
        &self,
        sent: &[u8],
        sent_counts: &[usize],
        received: &mut [u8],
        received_counts: &[usize],
    ) -> Result<()>;

    /// Sends one message to all ranks and receives those of all ranks, this rank's included, as `MPI_Allgatherv`. The
    /// messages are written to `received`, in the order of the ranks, of `received_counts` bytes each. Counts are known
    /// to both sides; their sum is less than 2^31.
    ///
    /// # Errors
    /// [`Error::Device`] if a rank cannot be reached.
    fn all_gather(&self, sent: &[u8], received: &mut [u8], received_counts: &[usize]) -> Result<()>;
}

/// The only rank of a run on one process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SingleRank;

impl Collective for SingleRank {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn all_to_all(&self, sent: &[u8], _: &[usize], received: &mut [u8], _: &[usize]) -> Result<()> {
        received.copy_from_slice(sent);
        Ok(())
    }

    fn all_gather(&self, sent: &[u8], received: &mut [u8], _: &[usize]) -> Result<()> {
        received.copy_from_slice(sent);
        Ok(())
    }
}

/// The operation in error messages.
const OP: &str = "exchange between ranks";

/// Number of elements of the gradients that are exchanged at a time. It bounds the memory of messages, and keeps their
/// lengths below 2^31 bytes.
const CHUNK: usize = 1 << 22;

/// Gathers one message of each rank, of any length.
fn gather_messages(collective: &impl Collective, message: &[u8]) -> Result<Vec<Vec<u8>>> {
    let mut lengths = memory::filled(OP, &[collective.size(), 8], 0u8)?;
    let counts = memory::filled(OP, &[collective.size()], 8)?;
    collective.all_gather(&(message.len() as u64).to_le_bytes(), &mut lengths, &counts)?;
    let counts: Vec<usize> = words(&lengths).map(|len| len as usize).collect();
    let mut received = memory::filled(OP, &[counts.iter().sum()], 0u8)?;
    collective.all_gather(message, &mut received, &counts)?;
    let mut rest = &received[..];
    counts
        .into_iter()
        .map(|count| {
            let (message, others) = rest.split_at(count);
            rest = others;
            memory::copy(OP, message)
        })
        .collect()
}

/// Little-endian 64-bit words.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).map(|bytes| bytes.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)))
}

/// Checks that named values are equal on all ranks, for example options of the program and a digest of its data. Call
/// it on every rank before the first training step, so that no rank trains something else. The trainers compare their
/// own settings, their parameters and each batch themselves.
///
/// # Errors
/// On every rank, [`Error::Rank`], which names the first rank that differs from rank 0, and the value.
pub fn compare_ranks(collective: &impl Collective, values: &[(&str, String)]) -> Result<()> {
    let mut message = Vec::new();
    for text in values.iter().flat_map(|(name, value)| [*name, value]) {
        message.extend((text.len() as u64).to_le_bytes());
        message.extend(text.as_bytes());
    }
    let messages = gather_messages(collective, &message)?;
    let texts = |message: &[u8]| {
        let (mut rest, mut texts) = (message.to_vec(), Vec::new());
        while rest.len() >= 8 {
            let len = words(&rest[..8]).next().unwrap_or_default() as usize;
            let end = len.saturating_add(8).min(rest.len());
            texts.push(String::from_utf8_lossy(&rest[8..end]).into_owned());
            rest.drain(..end);
        }
        texts
    };
    let Some(rank) = messages.iter().position(|message| *message != messages[0]) else { return Ok(()) };
    let (first, others) = (texts(&messages[0]), texts(&messages[rank]));
    let mut pairs = first.chunks(2).zip(others.chunks(2));
    let reason = match pairs.find(|(expected, got)| expected != got) {
        Some(([name, expected], [other_name, got])) if name == other_name => {
            format!("{name}: expected {expected}, as on rank 0, got {got}")
        }
        Some(([name, ..], [other_name, ..])) => {
            format!("expected a value of `{name}`, as on rank 0, got `{other_name}`")
        }
        _ => format!("expected {} values, as on rank 0, got {}", first.len() / 2, others.len() / 2),
    };
    Err(Error::Rank { rank, reason })
}

/// Gathers the final states of all sequences of a training step on every rank. A report of a step on several ranks holds
/// the final states of the sequences of this rank, and NaN for all others; after this call, it holds all of
/// them. The next step on the same ranks needs only those of its own sequences. A checkpoint that another number of ranks
/// resumes needs all.
///
/// `shards` is the number of [shards](crate::train::TrainerConfig::shards()).
///
/// # Errors
/// [`Error::Shape`] if there are fewer shards than ranks, or more than sequences; the errors of the collective.
pub fn gather_state(collective: &impl Collective, shards: usize, state: &mut HostState) -> Result<()> {
    let (ranks, batch) = (collective.size(), state.h.dim().1);
    if state.c.dim().1 != batch {
        return Err(Error::shape("gather_state: state.c", format!("{batch} sequences, as in h"), state.c.dim().1));
    }
    if shards < ranks || shards > batch {
        return Err(Error::shape("gather_state: shards", format!("from {ranks} ranks to {batch} sequences"), shards));
    }
    let rows = |rank: usize| {
        let shards_of_rank = part(shards, ranks, rank);
        part(batch, shards, shards_of_rank.start).start..part(batch, shards, shards_of_rank.end - 1).end
    };
    let gather = |array: &mut Array3<f32>| {
        let (entries, _, cols) = array.dim();
        // In pieces of one layer and direction, which bounds the length of a message.
        for entry in 0..entries {
            let own = array.slice(s![entry, rows(collective.rank()), ..]);
            let message: Vec<u8> = memory::collect(OP, own.len() * 4, own.iter().flat_map(|v| v.to_le_bytes()))?;
            let counts: Vec<usize> = (0..ranks).map(|rank| rows(rank).len() * cols * 4).collect();
            let mut received = memory::filled(OP, &[batch, cols, 4], 0u8)?;
            collective.all_gather(&message, &mut received, &counts)?;
            array.slice_mut(s![entry, .., ..]).iter_mut().zip(floats(&received)).for_each(|(v, new)| *v = new);
        }
        Ok(())
    };
    gather(&mut state.h)?;
    gather(&mut state.c)
}

/// Little-endian f32 values.
fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes))
}

/// The shards of a rank.
pub(super) fn own_shards(collective: &impl Collective, shards: usize) -> Result<Range<usize>> {
    let (ranks, rank) = (collective.size(), collective.rank());
    if shards < ranks {
        let reason =
            format!("expected at least {ranks}, the number of ranks, because each has at least one; got {shards}");
        return Err(Error::config("shards", reason));
    }
    Ok(part(shards, ranks, rank))
}

/// What a rank tells the others after its passes.
pub(super) enum Outcome {
    /// The loss of each of its shards.
    Losses(Vec<f64>),
    /// The text of its error.
    Failed(String),
}

/// Exchanges the outcome of each rank, and compares digests of everything on which the step depends. Returns the losses
/// of all shards in their order. `describe` returns the same things as pairs of name and value.
///
/// # Errors
/// On every rank, [`Error::Rank`] for the first rank that differs from rank 0, or else for the first that failed.
pub(super) fn exchange_outcomes(
    collective: &impl Collective,
    digest: Digest,
    describe: impl FnOnce() -> Vec<(&'static str, String)>,
    outcome: &Outcome,
) -> Result<Vec<f64>> {
    let mut message = digest.0.to_le_bytes().to_vec();
    match outcome {
        Outcome::Losses(losses) => {
            message.push(1);
            message.extend(losses.iter().flat_map(|loss| loss.to_le_bytes()));
        }
        Outcome::Failed(text) => {
            message.push(0);
            message.extend(text.as_bytes());
        }
    }
    let messages = gather_messages(collective, &message)?;
    if messages.iter().any(|message| message.len() < 9) {
        let reason = "the ranks are at different calls: one of them went on after an error".into();
        return Err(Error::Device { backend: "collective".into(), op: OP, reason });
    }
    if messages.iter().any(|message| message[..8] != messages[0][..8]) {
        compare_ranks(collective, &describe())?;
        let reason = "its settings, parameters or batch differ from those of rank 0";
        let is_other = |message: &Vec<u8>| message[..8] != messages[0][..8];
        let rank = messages.iter().position(is_other).unwrap_or_default();
        return Err(Error::Rank { rank, reason: reason.into() });
    }
    if let Some(rank) = messages.iter().position(|message| message[8] == 0) {
        return Err(Error::Rank { rank, reason: String::from_utf8_lossy(&messages[rank][9..]).into_owned() });
    }
    Ok(messages.iter().flat_map(|message| words(&message[9..]).map(f64::from_bits)).collect())
}

/// Returns the result of this rank if all ranks succeeded, or all failed.
///
/// # Errors
/// [`Error::Rank`] on every rank if only some failed, for the first of them.
pub(super) fn succeed_together<T>(collective: &impl Collective, result: Result<T>) -> Result<T> {
    if collective.size() == 1 {
        return result;
    }
    let message = result.as_ref().err().map(|error| format!("{error} ")).unwrap_or_default();
    let messages = gather_messages(collective, message.as_bytes())?;
    match messages.iter().position(|message| !message.is_empty()) {
        Some(rank) if messages.iter().any(Vec::is_empty) => {
            let reason = String::from_utf8_lossy(&messages[rank]).trim_end().to_owned();
            Err(Error::Rank { rank, reason })
        }
        _ => result,
    }
}

/// All-reduce: sums the gradients of all ranks in the order of the tree over `shards` shards. `own` holds the gradients of
/// this rank: the arrays of each of the largest subtrees that consist of its shards, summed over the subtree. Afterwards
/// the arrays of the first subtree hold the sum over all ranks; the others are unchanged.
///
/// It is a reduce-scatter, then an all-gather. In the reduce-scatter, each rank receives one piece of the arrays of all
/// subtrees of all ranks, by an all-to-all, and sums it. The all-gather sends the sums of all pieces to all ranks.
pub(super) fn sum_over_ranks(collective: &impl Collective, shards: usize, own: &mut [Vec<&mut [f32]>]) -> Result<()> {
    let (ranks, rank) = (collective.size(), collective.rank());
    let subtrees_of_ranks =
        (0..ranks).map(|rank| subtrees(shards, part(shards, ranks, rank))).collect::<Result<Vec<_>>>()?;
    let num_subtrees = subtrees_of_ranks.iter().map(Vec::len).sum();
    let total: usize = own.first().map_or(0, |arrays| arrays.iter().map(|array| array.len()).sum());
    for start in (0..total).step_by(CHUNK) {
        let len = CHUNK.min(total - start);
        let pieces: Vec<_> = (0..ranks).map(|rank| part(len, ranks, rank)).collect();
        let mut sent = memory::with_capacity(OP, &[own.len(), len, 4])?;
        for piece in &pieces {
            for arrays in own.iter() {
                let range = start + piece.start..start + piece.end;
                overlaps(arrays.iter().map(|array| array.len()), range).for_each(|(k, range)| {
                    sent.extend(arrays[k][range].iter().flat_map(|v| v.to_le_bytes()));
                });
            }
        }
        let piece_len = pieces[rank].len();
        let sent_counts: Vec<_> = pieces.iter().map(|piece| piece.len() * own.len() * 4).collect();
        let received_counts: Vec<_> = subtrees_of_ranks.iter().map(|subtrees| subtrees.len() * piece_len * 4).collect();
        let mut received = memory::filled(OP, &[num_subtrees, piece_len, 4], 0u8)?;
        collective.all_to_all(&sent, &sent_counts, &mut received, &received_counts)?;

        let mut tree = TreeSum::new(shards);
        for (k, subtree) in subtrees_of_ranks.iter().flatten().enumerate() {
            let values = floats(&received[k * piece_len * 4..(k + 1) * piece_len * 4]);
            tree.push(subtree.clone(), memory::collect(OP, piece_len, values)?, |sum: &mut Vec<f32>, values| {
                let _environment = FloatEnvironment::set_default();
                sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                Ok(())
            })?;
        }
        let sum = tree.into_subtrees().pop().map(|(_, sum)| sum).unwrap_or(zeros(OP, &[piece_len])?);
        let message: Vec<u8> = memory::collect(OP, piece_len * 4, sum.iter().flat_map(|v| v.to_le_bytes()))?;
        let mut received = memory::filled(OP, &[len, 4], 0u8)?;
        let counts: Vec<_> = pieces.iter().map(|piece| piece.len() * 4).collect();
        collective.all_gather(&message, &mut received, &counts)?;
        let mut values = floats(&received);
        if let Some(arrays) = own.first_mut() {
            let lengths: Vec<_> = arrays.iter().map(|array| array.len()).collect();
            overlaps(lengths.into_iter(), start..start + len).for_each(|(k, range)| {
                arrays[k][range].iter_mut().zip(&mut values).for_each(|(v, new)| *v = new);
            });
        }
    }
    Ok(())
}

/// The arrays that overlap with a range of their concatenation: the index of each, and the elements.
fn overlaps(lengths: impl Iterator<Item = usize>, range: Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> {
    let mut start = 0;
    let bounds = lengths.map(move |len| {
        start += len;
        start - len..start
    });
    bounds.enumerate().filter_map(move |(k, array)| {
        let (first, end) = (array.start.max(range.start), array.end.min(range.end));
        (first < end).then(|| (k, first - array.start..end - array.start))
    })
}
