//! Batches of sequences of different lengths.

use ndarray::{Array2, Array3, ArrayView2, s};

use crate::{
    arithmetic::Digest,
    error::{Error, Result},
    memory,
    model::nth_seed,
    train::{CheckpointExtras, IGNORE_INDEX, shuffled_indices},
};

/// The operation in error messages.
const OP: &str = "Batches";

/// Number of batches in a bucket, unless the caller chooses another.
const DEFAULT_BUCKET: usize = 100;

/// Keys in the text of [`CheckpointExtras`].
const POSITION_KEY: &str = "batches.position";
const SETTINGS_KEY: &str = "batches.settings";

/// Cuts a data set of sequences of different lengths into batches, epoch after epoch. Each epoch has every sequence once,
/// in another random order. Sequences of similar length share a batch, so that batches have little padding. It replaces
/// PyTorch's `DataLoader` with a bucketing sampler.
///
/// `Batches` knows the lengths only. A [`Batch`] gives the indices of its sequences, and pads the data that the caller
/// has.
///
/// ```
/// use lstm_core::{ModelInput, train::Batches};
///
/// let sentences = [vec![5i64, 2, 9], vec![4], vec![3, 8], vec![7, 7, 1, 2], vec![6, 1]];
/// let classes = [0usize, 1, 0, 0, 1];
/// let mut batches = Batches::new(sentences.iter().map(Vec::len), 2, 1)?;
/// // Two epochs.
/// while batches.position().0 < 2 {
///     let batch = batches.next_batch()?;
///     let (tokens, targets) = (batch.tokens(&sentences)?, batch.select(&classes)?);
///     let input = ModelInput::from(&tokens).lengths(&batch.lengths);
///     // trainer.step(input, |out, _| cross_entropy(out.last()?, &targets))?;
///     # let _ = (input, targets);
/// }
/// assert_eq!(batches.batches_per_epoch(), 3);
/// # Ok::<(), lstm_core::Error>(())
/// ```
///
/// # The order
/// It depends on the lengths, the batch size, the seed, the bucket and the number of the epoch, and on nothing else, so
/// it is the same on every machine. Let B be the batch size and k the [bucket](Self::bucket). In each epoch:
///
/// 1. The indices of the n sequences are in the order of [`shuffled_indices(seed, epoch, n)`](shuffled_indices). If the
///    last partial batch is [dropped](Self::drop_last), the last `n mod B` of them are left out.
/// 2. They are cut into buckets of `k * B`; the last one may be smaller. Within each bucket they are sorted by length,
///    the shortest first. Sequences of equal length stay in their order.
/// 3. The whole is cut into batches of B. Only the last one may be smaller.
/// 4. The batches come in the order of `shuffled_indices(seed', epoch, number of batches)`, where `seed'` is the first
///    number of SplitMix64 started with the seed, as in `docs/specification.md` under "Training steps".
///
/// The padding of all batches of one bucket together is at most `(B - 1) * (longest - shortest)` time steps, where
/// longest and shortest are the lengths in this bucket.
///
/// # Checkpoints
/// [`CheckpointExtras::with_batches`] saves the position, and [`resume`](Self::resume) goes on there, in the middle of
/// an epoch, too. A run with one batch for each step can also compute the position from the number of steps, see
/// [`seek`](Self::seek).
///
/// # Ranks
/// [`Trainer::step_on`](crate::train::Trainer::step_on) needs the whole batch on every rank. `Batches` with the same
/// arguments gives the same batches on every rank, without communication.
#[derive(Clone, Debug)]
pub struct Batches {
    lengths: Vec<usize>,
    batch_size: usize,
    seed: u64,
    bucket: usize,
    is_last_dropped: bool,
    /// Epoch and batch of the next batch.
    position: (u64, usize),
    /// Order of the epoch that was used last.
    order: Option<Order>,
}

/// The order of one epoch.
#[derive(Clone, Debug)]
struct Order {
    epoch: u64,
    /// Indices of the sequences, batch after batch.
    sequences: Vec<usize>,
    /// Numbers of the batches in the order in which they come.
    batches: Vec<usize>,
}

/// A batch of [`Batches`]: which sequences it has, and how long they are.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Batch {
    /// Number of the epoch, counted from 0.
    pub epoch: u64,
    /// Number of the batch within the epoch, counted from 0.
    pub batch: usize,
    /// Indices of the sequences in the data set.
    pub indices: Vec<usize>,
    /// Number of time steps of each sequence, for [`Input::lengths`](crate::Input::lengths) and
    /// [`ModelInput::lengths`](crate::ModelInput::lengths).
    pub lengths: Vec<usize>,
    /// Number of time steps after padding: the length of the longest sequence.
    pub steps: usize,
}

impl Batches {
    /// Batches of `batch_size` sequences of the given lengths. `seed` determines the order. Buckets have 100 batches,
    /// and the last batch of an epoch may be smaller.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are no sequences, or one has no time steps; [`Error::Config`] if `batch_size` is 0;
    /// [`Error::TooLarge`] if the lengths do not fit in memory.
    pub fn new(lengths: impl ExactSizeIterator<Item = usize>, batch_size: usize, seed: u64) -> Result<Self> {
        let lengths = memory::collect(OP, lengths.len(), lengths)?;
        if lengths.is_empty() {
            return Err(Error::shape(format!("{OP}: lengths"), "at least one sequence", "none"));
        }
        if let Some(index) = lengths.iter().position(|&length| length == 0) {
            let expected = "at least 1 time step; leave empty sequences out of the data";
            return Err(Error::shape(format!("{OP}: length of sequence {index}"), expected, 0));
        }
        if batch_size == 0 {
            return Err(Error::config("batch_size", "expected at least 1, got 0"));
        }
        let (bucket, position) = (DEFAULT_BUCKET, (0, 0));
        Ok(Batches { lengths, batch_size, seed, bucket, is_last_dropped: false, position, order: None })
    }

    /// Sets the number of batches in a bucket, within which sequences are sorted by length; 100 by default. A larger
    /// number gives less padding, a smaller one more variety. `usize::MAX` sorts the whole data set, and with 1 the
    /// batches are random.
    ///
    /// # Errors
    /// [`Error::Config`] if `batches` is 0.
    pub fn bucket(self, batches: usize) -> Result<Self> {
        if batches == 0 {
            return Err(Error::config("bucket", "expected at least 1 batch, got 0; 1 turns bucketing off"));
        }
        Ok(Batches { bucket: batches, order: None, ..self })
    }

    /// Drops the sequences that do not fill a batch at the end of an epoch, which differ from epoch to epoch. All batches
    /// then have the same size. By default they are a smaller batch.
    ///
    /// # Errors
    /// [`Error::Config`] if there are fewer sequences than a batch has, so that no batch would remain.
    pub fn drop_last(self) -> Result<Self> {
        if self.lengths.len() < self.batch_size {
            let (sequences, size) = (self.lengths.len(), self.batch_size);
            let reason =
                format!("no batch remains of {sequences} sequences with batches of {size}; use smaller batches");
            return Err(Error::config("drop_last", reason));
        }
        Ok(Batches { is_last_dropped: true, position: (0, 0), order: None, ..self })
    }

    /// Number of batches in each epoch, at least 1.
    pub fn batches_per_epoch(&self) -> usize {
        self.used_sequences().div_ceil(self.batch_size)
    }

    /// Number of sequences in each epoch: all, or those that fill batches.
    fn used_sequences(&self) -> usize {
        let sequences = self.lengths.len();
        if self.is_last_dropped { sequences - sequences % self.batch_size } else { sequences }
    }

    /// Epoch and number within the epoch of the [next batch](Self::next_batch), both counted from 0.
    pub fn position(&self) -> (u64, usize) {
        self.position
    }

    /// Goes to a batch of an epoch, both counted from 0. After `n` batches since the start, that is epoch `n /
    /// batches_per_epoch` and batch `n % batches_per_epoch`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the epoch has fewer batches.
    pub fn seek(&mut self, epoch: u64, batch: usize) -> Result<()> {
        let count = self.batches_per_epoch();
        if batch >= count {
            return Err(Error::shape("Batches::seek: batch", format!("a number below {count}"), batch));
        }
        self.position = (epoch, batch);
        Ok(())
    }

    /// The next batch. After the last one of an epoch comes the first one of the next epoch.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if the order of the epoch, or the batch, does not fit in memory. The position is then
    /// unchanged.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let (epoch, batch) = self.position;
        let order = match self.order.take().filter(|order| order.epoch == epoch) {
            Some(order) => order,
            None => self.order_of(epoch)?,
        };
        let start = order.batches[batch] * self.batch_size;
        let end = start.saturating_add(self.batch_size).min(order.sequences.len());
        let indices = memory::copy(OP, &order.sequences[start..end])?;
        self.order = Some(order);
        let lengths = memory::collect(OP, indices.len(), indices.iter().map(|&index| self.lengths[index]))?;
        let steps = lengths.iter().copied().max().unwrap_or_default();
        self.position =
            if batch + 1 < self.batches_per_epoch() { (epoch, batch + 1) } else { (epoch.wrapping_add(1), 0) };
        Ok(Batch { epoch, batch, indices, lengths, steps })
    }

    /// Computes the order of an epoch.
    fn order_of(&self, epoch: u64) -> Result<Order> {
        let used = self.used_sequences();
        let shuffled = shuffled_indices(self.seed, epoch, self.lengths.len())?;
        // With the position in the order, because a sort without allocation does not keep it.
        let keys = shuffled.into_iter().take(used).enumerate().map(|(at, index)| (self.lengths[index], at, index));
        let mut keys = memory::collect(OP, used, keys)?;
        keys.chunks_mut(self.bucket.saturating_mul(self.batch_size)).for_each(<[_]>::sort_unstable);
        let sequences = memory::collect(OP, used, keys.into_iter().map(|(.., index)| index))?;
        let batches = shuffled_indices(nth_seed(self.seed, 1), epoch, self.batches_per_epoch())?;
        Ok(Order { epoch, sequences, batches })
    }

    /// Everything on which the order depends, as text.
    fn settings(&self) -> String {
        let mut digest = Digest::default();
        for &length in &self.lengths {
            let length = length as u64;
            [length as u32, (length >> 32) as u32].into_iter().for_each(|half| digest.add(f32::from_bits(half)));
        }
        let Batches { batch_size, seed, bucket, is_last_dropped, .. } = self;
        let sequences = self.lengths.len();
        format!(
            "{sequences} sequences with lengths of digest {digest}, batch size {batch_size}, seed {seed}, bucket {bucket}, \
             drop last {is_last_dropped}"
        )
    }

    /// Goes to the position that [`CheckpointExtras::with_batches`] saved, and removes it from `extras`. The batches
    /// from then on are those of the run that was saved.
    ///
    /// # Errors
    /// [`Error::Format`] if `extras` has no position or an invalid one; [`Error::Config`] if the lengths, the batch size,
    /// the seed, the bucket or the treatment of the last batch differ from those that were saved. Nothing is changed
    /// after an error.
    pub fn resume(&mut self, extras: &mut CheckpointExtras) -> Result<()> {
        let entry = |key: &str| {
            let missing =
                || Error::format(key, "missing in the checkpoint; save it with CheckpointExtras::with_batches");
            extras.text.get(key).ok_or_else(missing)
        };
        let (position, saved) = (entry(POSITION_KEY)?, entry(SETTINGS_KEY)?);
        let settings = self.settings();
        if *saved != settings {
            let reason = format!(
                "the checkpoint has {saved}; got {settings}; use the data and options of the checkpoint, or start a new run"
            );
            return Err(Error::config("batches", reason));
        }
        let parsed =
            position.split_once(' ').and_then(|(epoch, batch)| Some((epoch.parse().ok()?, batch.parse().ok()?)));
        let invalid = || {
            let count = self.batches_per_epoch();
            let expected = format!("an epoch and a batch below {count}, separated by a space");
            Error::format(POSITION_KEY, format!("expected {expected}, got `{position}`"))
        };
        self.position = parsed.filter(|&(_, batch)| batch < self.batches_per_epoch()).ok_or_else(invalid)?;
        [POSITION_KEY, SETTINGS_KEY].iter().for_each(|key| drop(extras.text.remove(*key)));
        Ok(())
    }
}

impl CheckpointExtras {
    /// Adds the position of `batches`, and what their order depends on, as the texts `batches.position` and
    /// `batches.settings`. [`Batches::resume`] reads them.
    pub fn with_batches(mut self, batches: &Batches) -> Self {
        let (epoch, batch) = batches.position;
        self.text.insert(POSITION_KEY.into(), format!("{epoch} {batch}"));
        self.text.insert(SETTINGS_KEY.into(), batches.settings());
        self
    }
}

impl Batch {
    /// Pads the features of the sequences with 0: `(batch, steps, features)`. `sequences` is the whole data set, with a
    /// matrix `(length, features)` for each sequence. Targets for each time step that are numbers are padded in the same
    /// way, for [`masked_mean_squared_error`](crate::train::masked_mean_squared_error).
    ///
    /// ```
    /// # use lstm_core::{ndarray::{Array2, array}, train::Batches};
    /// let data = [array![[1.0f32, 2.0], [3.0, 4.0]], array![[5.0, 6.0]]];
    /// let batch = Batches::new(data.iter().map(|x| x.nrows()), 2, 0)?.next_batch()?;
    /// assert_eq!(batch.lengths, [1, 2]);
    /// assert_eq!(batch.features(&data)?, array![[[5.0, 6.0], [0.0, 0.0]], [[1.0, 2.0], [3.0, 4.0]]]);
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Shape`] if a sequence of the batch is missing or does not have its length, or the sequences have
    /// different numbers of features; [`Error::TooLarge`] if the array does not fit in memory.
    pub fn features<'a, S>(&self, sequences: &'a [S]) -> Result<Array3<f32>>
    where
        &'a S: Into<ArrayView2<'a, f32>>,
    {
        const OP: &str = "Batch::features";
        let mut padded: Option<Array3<f32>> = None;
        for (row, (index, length)) in self.rows().enumerate() {
            let sequence: ArrayView2<'a, f32> = get(OP, sequences, index)?.into();
            check_length(OP, index, length, sequence.nrows())?;
            let features = sequence.ncols();
            let array = match &mut padded {
                Some(array) => array,
                none => none.insert(memory::zero_array(OP, ndarray::Ix3(self.indices.len(), self.steps, features))?),
            };
            if array.dim().2 != features {
                let expected = format!("{}, as in sequence {}", array.dim().2, self.indices[0]);
                return Err(Error::shape(format!("{OP}: features of sequence {index}"), expected, features));
            }
            array.slice_mut(s![row, ..length, ..]).assign(&sequence);
        }
        padded.ok_or_else(|| Error::shape(OP, "at least one sequence", "none"))
    }

    /// Pads the tokens of the sequences with 0: `(batch, steps)`, for a [`Model`](crate::Model) with an embedding.
    /// `sequences` is the whole data set.
    ///
    /// # Errors
    /// [`Error::Shape`] if a sequence of the batch is missing or does not have its length; [`Error::TooLarge`] if the
    /// array does not fit in memory.
    pub fn tokens(&self, sequences: &[impl AsRef<[i64]>]) -> Result<Array2<i64>> {
        const OP: &str = "Batch::tokens";
        let tokens = self.padded(OP, sequences, 0)?;
        let shape = (self.indices.len(), self.steps);
        Array2::from_shape_vec(shape, tokens).map_err(|error| Error::shape(OP, format!("{shape:?}"), error))
    }

    /// Pads the classes of the time steps with [`IGNORE_INDEX`], for
    /// [`cross_entropy`](crate::train::cross_entropy): `batch * steps` numbers, sequence after sequence. `sequences` is
    /// the whole data set. For one class for each sequence, use [`select`](Self::select).
    ///
    /// # Errors
    /// As for [`tokens`](Self::tokens).
    pub fn targets(&self, sequences: &[impl AsRef<[usize]>]) -> Result<Vec<usize>> {
        self.padded("Batch::targets", sequences, IGNORE_INDEX)
    }

    /// What belongs to the sequences of the batch, such as their classes. `values` has one value for each sequence of the
    /// data set.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is none for a sequence of the batch; [`Error::TooLarge`] if the values do not fit in
    /// memory.
    pub fn select<T: Copy>(&self, values: &[T]) -> Result<Vec<T>> {
        const OP: &str = "Batch::select";
        memory::try_collect(OP, self.indices.len(), self.indices.iter().map(|&index| get(OP, values, index).copied()))
    }

    /// Index and length of each sequence.
    fn rows(&self) -> impl Iterator<Item = (usize, usize)> {
        self.indices.iter().copied().zip(self.lengths.iter().copied())
    }

    /// The values of the sequences, one sequence after the other, each padded with `padding`.
    fn padded<T: Copy>(&self, op: &'static str, sequences: &[impl AsRef<[T]>], padding: T) -> Result<Vec<T>> {
        let mut padded = memory::filled(op, &[self.indices.len(), self.steps], padding)?;
        for (row, (index, length)) in padded.chunks_exact_mut(self.steps.max(1)).zip(self.rows()) {
            let sequence = get(op, sequences, index)?.as_ref();
            check_length(op, index, length, sequence.len())?;
            row[..length].copy_from_slice(sequence);
        }
        Ok(padded)
    }
}

/// The value of sequence `index`.
fn get<'a, T>(op: &str, values: &'a [T], index: usize) -> Result<&'a T> {
    let missing = || {
        let expected = format!("the whole data set, with sequence {index} of a batch");
        Error::shape(format!("{op}: number of sequences"), expected, values.len())
    };
    values.get(index).ok_or_else(missing)
}

/// Checks that a sequence has the length that [`Batches::new`] was given.
fn check_length(op: &str, index: usize, expected: usize, got: usize) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    let expected = format!("{expected} time steps, as given to Batches::new");
    Err(Error::shape(format!("{op}: length of sequence {index}"), expected, got))
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    /// Lengths of 5 to 44 time steps.
    fn lengths(count: usize) -> impl ExactSizeIterator<Item = usize> {
        (0..count).map(|k| 5 + k * 17 % 40)
    }

    fn epoch(batches: &mut Batches) -> Vec<Batch> {
        let epoch = batches.position().0;
        std::iter::from_fn(|| (batches.position().0 == epoch).then(|| batches.next_batch().unwrap())).collect()
    }

    fn indices(epoch: &[Batch]) -> Vec<usize> {
        epoch.iter().flat_map(|batch| batch.indices.iter().copied()).collect()
    }

    #[test]
    fn an_epoch_has_each_sequence_once() {
        for (count, size, bucket) in [(1, 1, 1), (7, 3, 1), (100, 8, 3), (103, 8, 100), (5, usize::MAX, usize::MAX)] {
            let mut batches = Batches::new(lengths(count), size, 3).unwrap().bucket(bucket).unwrap();
            for number in 0..3 {
                let epoch = epoch(&mut batches);
                assert_eq!(epoch.len(), batches.batches_per_epoch(), "{count} {size} {bucket}");
                for (k, batch) in epoch.iter().enumerate() {
                    assert_eq!((batch.epoch, batch.batch), (number, k));
                    assert!(batch.lengths.iter().copied().eq(batch.indices.iter().map(|&i| 5 + i * 17 % 40)));
                    assert_eq!(batch.steps, *batch.lengths.iter().max().unwrap());
                }
                // All batches but one are full.
                assert!(epoch.iter().filter(|batch| batch.indices.len() < size).count() <= 1);
                let mut all = indices(&epoch);
                all.sort_unstable();
                assert!(all.into_iter().eq(0..count), "{count} {size} {bucket}");
            }
        }
    }

    #[test]
    fn the_last_partial_batch_can_be_dropped() {
        let mut batches = Batches::new(lengths(103), 10, 3).unwrap().drop_last().unwrap();
        assert_eq!(batches.batches_per_epoch(), 10);
        let mut dropped = Vec::new();
        for _ in 0..20 {
            let epoch = epoch(&mut batches);
            assert!(epoch.iter().all(|batch| batch.indices.len() == 10));
            let all = indices(&epoch);
            let left_out: Vec<usize> = (0..103).filter(|index| !all.contains(index)).collect();
            assert_eq!((all.len(), left_out.len()), (100, 3));
            dropped.extend(left_out);
        }
        dropped.sort_unstable();
        dropped.dedup();
        assert!(dropped.len() > 30, "the same sequences are always left out: {dropped:?}");
    }

    #[test]
    fn buckets_bound_the_padding() {
        let padding = |bucket: usize| {
            let mut batches = Batches::new(lengths(960), 16, 3).unwrap().bucket(bucket).unwrap();
            let epoch = epoch(&mut batches);
            epoch.iter().map(|batch| batch.steps * 16 - batch.lengths.iter().sum::<usize>()).sum::<usize>()
        };
        // The lengths differ by at most 39, and there are 60 batches.
        for bucket in [1, 2, 10, 60, 1000] {
            assert!(padding(bucket) <= 60usize.div_ceil(bucket) * 15 * 39, "{bucket}: {}", padding(bucket));
        }
        assert!(padding(1) > 10 * padding(60), "{} {}", padding(1), padding(60));
    }

    #[test]
    fn the_order_depends_on_seed_and_epoch() {
        let order = |seed, epochs: u64| {
            let mut batches = Batches::new(lengths(60), 4, seed).unwrap().bucket(5).unwrap();
            batches.seek(epochs, 0).unwrap();
            indices(&epoch(&mut batches))
        };
        assert_eq!(order(1, 0), order(1, 0));
        assert_ne!(order(1, 0), order(2, 0));
        assert_ne!(order(1, 0), order(1, 1));
        // Sequences of one length are in other batches in each epoch, even if the whole data set is one bucket.
        let mut equal = Batches::new((0..60).map(|_| 7), 4, 1).unwrap();
        let sets = |epoch: Vec<Batch>| {
            let mut sets: Vec<_> = epoch.into_iter().map(|batch| batch.indices).collect();
            sets.iter_mut().for_each(|indices| indices.sort_unstable());
            sets.sort();
            sets
        };
        assert_ne!(sets(epoch(&mut equal)), sets(epoch(&mut equal)));
    }

    /// The documented algorithm, with a stable sort.
    #[test]
    fn the_order_is_the_documented_one() {
        let (size, bucket, seed, number) = (4, 3, 9, 2);
        let lengths: Vec<usize> = lengths(50).map(|length| length % 6 + 1).collect();
        let mut order = shuffled_indices(seed, number, 50).unwrap();
        order.chunks_mut(size * bucket).for_each(|bucket| bucket.sort_by_key(|&index| lengths[index]));
        let batches: Vec<_> = order.chunks(size).collect();
        // SplitMix64's first number, from the specification.
        let mut z = 9u64.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let want = shuffled_indices(z ^ (z >> 31), number, 13).unwrap().into_iter().flat_map(|k| batches[k].to_vec());
        let mut got = Batches::new(lengths.iter().copied(), size, seed).unwrap().bucket(bucket).unwrap();
        got.seek(number, 0).unwrap();
        assert!(indices(&epoch(&mut got)).into_iter().eq(want));
    }

    #[test]
    fn a_resumed_run_sees_the_same_batches() {
        let new = || Batches::new(lengths(50), 8, 5).unwrap().bucket(2).unwrap();
        let mut whole = new();
        let want: Vec<_> = (0..20).map(|_| whole.next_batch().unwrap()).collect();
        // 7 batches in an epoch: the start, the middle and the end of one.
        for stop in [0, 4, 7, 13] {
            let mut stopped = new();
            (0..stop).for_each(|_| drop(stopped.next_batch().unwrap()));
            let mut extras = CheckpointExtras::default().with_batches(&stopped);
            let mut resumed = new();
            resumed.resume(&mut extras).unwrap();
            assert_eq!((resumed.position(), &extras), (stopped.position(), &CheckpointExtras::default()));
            let got: Vec<_> = (stop..20).map(|_| resumed.next_batch().unwrap()).collect();
            assert_eq!(got, want[stop..]);

            let mut sought = new();
            sought.seek(stop as u64 / 7, stop % 7).unwrap();
            assert_eq!(sought.next_batch().unwrap(), want[stop]);
        }
        let extras = CheckpointExtras::default().with_batches(&whole);
        let others = [
            Batches::new(lengths(50), 9, 5).unwrap().bucket(2).unwrap(),
            Batches::new(lengths(50), 8, 6).unwrap().bucket(2).unwrap(),
            Batches::new(lengths(50).map(|n| n + 1), 8, 5).unwrap().bucket(2).unwrap(),
            Batches::new(lengths(50), 8, 5).unwrap(),
            new().drop_last().unwrap(),
        ];
        for mut other in others {
            let (mut extras, position) = (extras.clone(), other.position());
            let error = other.resume(&mut extras).unwrap_err().to_string();
            assert!(error.contains("or start a new run"), "{error}");
            assert_eq!((other.position(), extras.text.len()), (position, 2));
        }
        let error = new().resume(&mut CheckpointExtras::default()).unwrap_err().to_string();
        assert!(error.starts_with("batches.position: missing in the checkpoint"), "{error}");
        for position in ["", "1", "1 7", "-1 0", "1 2 3"] {
            let mut extras = CheckpointExtras::default().with_batches(&new());
            extras.text.insert(POSITION_KEY.into(), position.into());
            let error = new().resume(&mut extras).unwrap_err().to_string();
            assert!(error.contains(&format!("a batch below 7, separated by a space, got `{position}`")), "{error}");
        }
    }

    #[test]
    fn pads_features_tokens_and_targets() {
        let batch = Batch { epoch: 0, batch: 0, indices: vec![2, 0], lengths: vec![1, 3], steps: 3 };
        let features = [array![[1.0f32], [2.0], [3.0]], array![[0.0]], array![[4.0]]];
        assert_eq!(batch.features(&features).unwrap(), array![[[4.0], [0.0], [0.0]], [[1.0], [2.0], [3.0]]]);
        let views = features.each_ref().map(|matrix| matrix.view());
        assert_eq!(batch.features(&views).unwrap(), batch.features(&features).unwrap());
        assert_eq!(batch.tokens(&[vec![1i64, 2, 3], vec![0], vec![4]]).unwrap(), array![[4, 0, 0], [1, 2, 3]]);
        let targets = batch.targets(&[&[1usize, 2, 3][..], &[0], &[4]]).unwrap();
        assert_eq!(targets, [4, IGNORE_INDEX, IGNORE_INDEX, 1, 2, 3]);
        assert_eq!(batch.select(&["a", "b", "c"]).unwrap(), ["c", "a"]);
    }

    #[test]
    fn bad_arguments_are_errors() {
        let message = |result: Result<Batches>| result.unwrap_err().to_string();
        assert_eq!(
            message(Batches::new(lengths(0), 1, 0)),
            "Batches: lengths: expected at least one sequence, got none"
        );
        let error = message(Batches::new([3, 0].into_iter(), 1, 0));
        assert!(error.starts_with("Batches: length of sequence 1: expected at least 1 time step"), "{error}");
        assert_eq!(message(Batches::new(lengths(3), 0, 0)), "option batch_size: expected at least 1, got 0");
        let new = || Batches::new(lengths(3), 4, 0).unwrap();
        assert!(message(new().bucket(0)).starts_with("option bucket: expected at least 1 batch, got 0"));
        assert!(message(new().drop_last()).contains("no batch remains of 3 sequences with batches of 4"));
        let error = new().seek(0, 1).unwrap_err().to_string();
        assert_eq!(error, "Batches::seek: batch: expected a number below 1, got 1");
        let huge = std::iter::repeat_n(1, usize::MAX);
        assert!(matches!(Batches::new(huge, 1, 0), Err(Error::TooLarge { op: "Batches", .. })));

        let batch = Batch { epoch: 0, batch: 0, indices: vec![1, 0], lengths: vec![1, 2], steps: 2 };
        let error = batch.tokens(&[vec![1i64, 2], vec![3, 4]]).unwrap_err().to_string();
        assert_eq!(
            error,
            "Batch::tokens: length of sequence 1: expected 1 time steps, as given to Batches::new, got 2"
        );
        let error = batch.select(&[1]).unwrap_err().to_string();
        assert!(error.ends_with("expected the whole data set, with sequence 1 of a batch, got 1"), "{error}");
        let error = batch.features(&[Array2::zeros((2, 3)), Array2::zeros((1, 4))]).unwrap_err().to_string();
        assert_eq!(error, "Batch::features: features of sequence 0: expected 4, as in sequence 1, got 3");
        let batch = Batch { lengths: vec![1, 1 << 60], steps: 1 << 60, ..batch };
        let sequences = [vec![], vec![1i64]];
        assert!(matches!(batch.tokens(&sequences), Err(Error::TooLarge { op: "Batch::tokens", .. })));
        let features = [Array2::zeros((0, 1)), Array2::zeros((1, 1))];
        assert!(matches!(batch.features(&features), Err(Error::TooLarge { op: "Batch::features", .. })));
    }
}
