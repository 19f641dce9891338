//! Training on several ranks: what is exchanged, and in which order gradients are summed.

use std::ops::Range;

use ndarray::{Array3, s};

use crate::{
    arithmetic::Digest,
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::HostState,
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

/// The most bytes of a text in which a rank describes itself or its error to the others. The rest is cut off, so that
/// the texts of two ranks fit into an array that needs no allocation.
const MAX_TEXT: usize = 1 << 14;

/// Bytes of the first message of [`agree`]: three words.
const HEADER: usize = 24;

/// The pair of values by which [`agree`] tells that ranks are at different calls.
pub(super) fn call_setting(call: &str) -> (&'static str, String) {
    ("call", call.into())
}

/// The first rank that failed, and its error.
pub(super) struct Failure {
    pub(super) error: Error,
    /// Whether all ranks failed.
    pub(super) is_on_all: bool,
}

/// Tells all ranks whether this one succeeded, and compares `values`, pairs of name and value, which must be equal on all.
/// `failure` is the text of this rank's error. Returns the same on all ranks.
///
/// After this call, a rank must not fail alone before the next call of the collective, or the others wait for it.
/// Here, all memory, 32 bytes for each rank, is allocated before the first message. A rank that fails to do so returns its
/// own error, while the others wait: it can call again, or end its process.
///
/// # Errors
/// On every rank, [`Error::Rank`] for the first rank whose values differ from those of rank 0.
pub(super) fn agree(
    collective: &impl Collective,
    values: &[(&str, String)],
    failure: Option<&str>,
) -> Result<Option<Failure>> {
    let (ranks, own_rank) = (collective.size(), collective.rank());
    let (mut text, mut text_len, mut digest) = ([0u8; MAX_TEXT], 0, Digest::default());
    for part in values.iter().flat_map(|(name, value)| [*name, value]) {
        for &byte in (part.len() as u64).to_le_bytes().iter().chain(part.as_bytes()) {
            digest.add(f32::from_bits(byte.into()));
            if let Some(next) = text.get_mut(text_len) {
                *next = byte;
                text_len += 1;
            }
        }
    }
    let failure_text = failure.unwrap_or_default().as_bytes();
    let failure_text = &failure_text[..failure_text.len().min(MAX_TEXT)];
    // An error may have no text.
    let failure_len = failure.map_or(0, |_| failure_text.len() + 1);
    let header = [digest.0, text_len as u64, failure_len as u64];
    let mut headers = memory::filled(OP, &[ranks, HEADER], 0u8)?;
    let mut counts = memory::filled(OP, &[ranks], HEADER)?;
    let mut received = [0u8; 2 * MAX_TEXT];

    collective.all_gather(header.map(u64::to_le_bytes).as_flattened(), &mut headers, &counts)?;
    let header = |rank: usize| {
        let mut words = words(&headers[rank * HEADER..]);
        [u64::MAX, MAX_TEXT as u64, MAX_TEXT as u64 + 1].map(|most| words.next().unwrap_or_default().min(most))
    };
    // Sends the texts of some ranks, of the given lengths, to all.
    let gather = |texts: &[(usize, u64)], text: &[u8], received: &mut [u8], counts: &mut [usize]| {
        counts.fill(0);
        texts.iter().for_each(|&(rank, len)| counts[rank] = len as usize);
        let len = counts.iter().sum();
        collective.all_gather(&text[..counts[own_rank]], &mut received[..len], counts).map(|()| len)
    };
    let [first_digest, first_len, _] = header(0);
    if let Some(rank) = (1..ranks).find(|&rank| header(rank)[0] != first_digest) {
        let len = gather(&[(0, first_len), (rank, header(rank)[1])], &text, &mut received, &mut counts)?;
        let (first, other) = received[..len].split_at(first_len as usize);
        return Err(Error::Rank { rank, reason: difference(first, other) });
    }
    let Some(rank) = (0..ranks).find(|&rank| header(rank)[2] > 0) else { return Ok(None) };
    let is_on_all = (0..ranks).all(|rank| header(rank)[2] > 0);
    let len = gather(&[(rank, header(rank)[2] - 1)], failure_text, &mut received, &mut counts)?;
    let reason = String::from_utf8_lossy(&received[..len]).into_owned();
    Ok(Some(Failure { error: Error::Rank { rank, reason }, is_on_all }))
}

/// Where the values of a rank differ from those of rank 0. Both are names and values, each after its length.
fn difference(first: &[u8], other: &[u8]) -> String {
    let parts = |mut text: &[u8]| {
        let mut parts = Vec::new();
        while let Some((len, rest)) = text.split_at_checked(8) {
            let len = words(len).next().unwrap_or_default() as usize;
            let (part, others) = rest.split_at(len.min(rest.len()));
            parts.push(String::from_utf8_lossy(part).into_owned());
            text = others;
        }
        parts
    };
    let (first, other) = (parts(first), parts(other));
    let mut pairs = first.chunks(2).zip(other.chunks(2));
    match pairs.find(|(expected, got)| expected != got) {
        Some(([name, expected], [other_name, got])) if name == other_name => {
            format!("{name}: expected {expected}, as on rank 0, got {got}")
        }
        Some(([name, ..], [other_name, ..])) => {
            format!("expected a value of `{name}`, as on rank 0, got `{other_name}`")
        }
        _ if first.len() != other.len() => {
            format!("expected {} values, as on rank 0, got {}", first.len() / 2, other.len() / 2)
        }
        _ => format!("its values differ from those of rank 0 after the first {MAX_TEXT} bytes"),
    }
}

/// Little-endian 64-bit words.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// Checks that named values are equal on all ranks, for example options of the program and a digest of its data. Call
/// it on every rank before the first training step, so that no rank trains something else. The trainers compare their
/// own settings, their parameters and each batch themselves.
///
/// # Errors
/// On every rank, [`Error::Rank`], which names the first rank that differs from rank 0, and the value.
pub fn compare_ranks(collective: &impl Collective, values: &[(&str, String)]) -> Result<()> {
    // No rank fails.
    agree(collective, values, None).map(|_| ())
}

/// Gathers the final states of all sequences of a training step on every rank. A report of a step on several ranks holds
/// the final states of the sequences of this rank, and NaN for all others; after this call, it holds all of
/// them. The next step on the same ranks needs only those of its own sequences. A checkpoint that another number of ranks
/// resumes needs all.
///
/// `shards` is the number of [shards](crate::train::TrainerConfig::shards()).
///
/// # Errors
/// [`Error::Shape`] if there are fewer shards than ranks, or more than sequences; [`Error::Rank`], on every rank, for the
/// first that differs from rank 0 in `shards` or the shape of the state, or else for the first that failed; the errors
/// of the collective.
pub fn gather_state(collective: &impl Collective, shards: usize, state: &mut HostState) -> Result<()> {
    let (ranks, batch) = (collective.size(), state.h.dim().1);
    let rows = |rank: usize| {
        let shards_of_rank = part(shards, ranks, rank);
        part(batch, shards, shards_of_rank.start).start..part(batch, shards, shards_of_rank.end - 1).end
    };
    let prepare = || {
        if state.c.dim().1 != batch {
            return Err(Error::shape("gather_state: state.c", format!("{batch} sequences, as in h"), state.c.dim().1));
        }
        if shards < ranks || shards > batch {
            let expected = format!("from {ranks} ranks to {batch} sequences");
            return Err(Error::shape("gather_state: shards", expected, shards));
        }
        let cols = state.h.dim().2.max(state.c.dim().2);
        let message = memory::with_capacity(OP, &[rows(collective.rank()).len(), cols, 4])?;
        let counts = memory::filled(OP, &[ranks], 0)?;
        Ok((message, memory::filled(OP, &[batch, cols, 4], 0u8)?, counts))
    };
    let values = [
        call_setting("gather_state"),
        ("shards", shards.to_string()),
        ("shape of state.h", format!("{:?}", state.h.dim())),
        ("shape of state.c", format!("{:?}", state.c.dim())),
    ];
    let (mut message, mut received, mut counts) = succeed_together(collective, &values, prepare())?;
    let mut gather = |array: &mut Array3<f32>| {
        let (entries, _, cols) = array.dim();
        counts.iter_mut().enumerate().for_each(|(rank, count)| *count = rows(rank).len() * cols * 4);
        let received = &mut received[..batch * cols * 4];
        // In pieces of one layer and direction, which bounds the length of a message.
        for entry in 0..entries {
            message.clear();
            let own = array.slice(s![entry, rows(collective.rank()), ..]);
            message.extend(own.iter().flat_map(|v| v.to_le_bytes()));
            collective.all_gather(&message, received, &counts)?;
            array.slice_mut(s![entry, .., ..]).iter_mut().zip(floats(received)).for_each(|(v, new)| *v = new);
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

/// Returns the result of this rank if all ranks succeeded, or all failed. `values` are compared as by [`agree`].
///
/// # Errors
/// On every rank, [`Error::Rank`] for the first rank whose values differ from those of rank 0, or else for the first that
/// failed, if others succeeded.
pub(super) fn succeed_together<T>(
    collective: &impl Collective,
    values: &[(&str, String)],
    result: Result<T>,
) -> Result<T> {
    if collective.size() == 1 {
        return result;
    }
    let failure = result.as_ref().err().map(Error::to_string);
    match agree(collective, values, failure.as_deref())? {
        Some(Failure { error, is_on_all: false }) => Err(error),
        _ => result,
    }
}

/// The exchange of the losses and gradients of a step. It has all the memory for that, so that no rank fails after they
/// agreed to exchange.
pub(super) struct StepExchange {
    shards: usize,
    /// The losses of the shards of this rank, as bytes.
    own_losses: Vec<u8>,
    /// Memory for those of all shards.
    losses: Vec<u8>,
    /// The largest subtrees that consist of the shards of each rank.
    subtrees: Vec<Vec<Range<usize>>>,
    /// Memory for the gradients of this rank's subtrees, and later for the sums over all ranks.
    sent: Vec<u8>,
    /// Memory for a piece of the gradients of all subtrees.
    received: Vec<u8>,
}

impl StepExchange {
    /// Allocates the memory for a step with `shards` shards. `losses` are those of the shards of this rank, and
    /// `num_gradients` is the number of elements of all gradients.
    pub(super) fn new(
        collective: &impl Collective,
        shards: usize,
        losses: &[f64],
        num_gradients: usize,
    ) -> Result<Self> {
        let ranks = collective.size();
        let subtrees =
            (0..ranks).map(|rank| subtrees(shards, part(shards, ranks, rank))).collect::<Result<Vec<_>>>()?;
        let num_subtrees = subtrees.iter().map(Vec::len).sum();
        let len = num_gradients.min(CHUNK);
        Ok(StepExchange {
            shards,
            own_losses: memory::collect(OP, losses.len() * 8, losses.iter().flat_map(|loss| loss.to_le_bytes()))?,
            losses: memory::filled(OP, &[shards, 8], 0)?,
            sent: memory::with_capacity(OP, &[subtrees[collective.rank()].len(), len, 4])?,
            received: memory::filled(OP, &[num_subtrees, len.div_ceil(ranks), 4], 0)?,
            subtrees,
        })
    }

    /// The losses of all shards, in their order.
    pub(super) fn gather_losses(&mut self, collective: &impl Collective) -> Result<impl Iterator<Item = f64>> {
        let ranks = collective.size();
        let counts: Vec<_> = (0..ranks).map(|rank| part(self.shards, ranks, rank).len() * 8).collect();
        collective.all_gather(&self.own_losses, &mut self.losses, &counts)?;
        Ok(words(&self.losses).map(f64::from_bits))
    }

    /// All-reduce: sums the gradients of all ranks in the order of the tree over all shards. `own` holds the gradients of
    /// this rank: the arrays of each of the largest subtrees that consist of its shards, summed over the subtree.
    /// Afterwards the arrays of the first subtree hold the sum over all ranks; the others are unchanged.
    ///
    /// It is a reduce-scatter, then an all-gather. In the reduce-scatter, each rank receives one piece of the arrays of
    /// all subtrees of all ranks, by an all-to-all, and sums it. The all-gather sends the sums of all pieces to all ranks.
    pub(super) fn sum_gradients(&mut self, collective: &impl Collective, own: &mut [Vec<&mut [f32]>]) -> Result<()> {
        let (ranks, rank) = (collective.size(), collective.rank());
        let total: usize = own.first().map_or(0, |arrays| arrays.iter().map(|array| array.len()).sum());
        for start in (0..total).step_by(CHUNK) {
            let len = CHUNK.min(total - start);
            let pieces: Vec<_> = (0..ranks).map(|rank| part(len, ranks, rank)).collect();
            self.sent.clear();
            for piece in &pieces {
                for arrays in own.iter() {
                    let range = start + piece.start..start + piece.end;
                    overlaps(arrays.iter().map(|array| array.len()), range).for_each(|(k, range)| {
                        self.sent.extend(arrays[k][range].iter().flat_map(|v| v.to_le_bytes()));
                    });
                }
            }
            let piece_bytes = pieces[rank].len() * 4;
            let sent_counts: Vec<_> = pieces.iter().map(|piece| piece.len() * own.len() * 4).collect();
            let received_counts: Vec<_> = self.subtrees.iter().map(|subtrees| subtrees.len() * piece_bytes).collect();
            let received = &mut self.received[..received_counts.iter().sum()];
            collective.all_to_all(&self.sent, &sent_counts, received, &received_counts)?;

            // Each value of the tree is the number of a piece, which the sum replaces. The last sum is in the first one.
            let mut tree = TreeSum::new(self.shards);
            for (k, subtree) in self.subtrees.iter().flatten().enumerate() {
                tree.push(subtree.clone(), k, |sum, k| {
                    let (sums, values) = received.split_at_mut(k * piece_bytes);
                    add_floats(&mut sums[*sum * piece_bytes..][..piece_bytes], &values[..piece_bytes]);
                    Ok(())
                })?;
            }
            let counts: Vec<_> = pieces.iter().map(|piece| piece.len() * 4).collect();
            let sums = &mut self.sent[..len * 4];
            collective.all_gather(&received[..piece_bytes], sums, &counts)?;
            let mut values = floats(sums);
            if let Some(arrays) = own.first_mut() {
                let lengths: Vec<_> = arrays.iter().map(|array| array.len()).collect();
                overlaps(lengths.into_iter(), start..start + len).for_each(|(k, range)| {
                    arrays[k][range].iter_mut().zip(&mut values).for_each(|(v, new)| *v = new);
                });
            }
        }
        Ok(())
    }
}

/// Adds little-endian f32 values to others, elementwise.
fn add_floats(sums: &mut [u8], values: &[u8]) {
    let _environment = FloatEnvironment::set_default();
    for (sum, value) in sums.as_chunks_mut().0.iter_mut().zip(values.as_chunks().0) {
        *sum = (f32::from_le_bytes(*sum) + f32::from_le_bytes(*value)).to_le_bytes();
    }
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
