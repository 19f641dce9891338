//! The shards of a training step: their losses, gradients and states, and the errors that name them.

use std::{fmt, ops::Range};

use ndarray::{Array3, Axis, Ix3, s};

use crate::{
    arithmetic::{Digest, VERSION},
    backend::Backend,
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    model::{HostState, nth_seed},
    train::{
        Collective, Optimizer, ParameterGroup, Shard, TrainerConfig,
        collective::{Failure, SingleRank, StepExchange, agree, call_setting},
        tree::TreeSum,
    },
};

/// The gradients of all parameters of a model.
pub(super) trait GradientArrays {
    /// The elements of each array, in the order of the parameters.
    fn slices(&mut self) -> Result<Vec<&mut [f32]>>;

    /// Adds the gradients of other shards to these, elementwise.
    fn add(&mut self, mut other: Self) -> Result<()>
    where
        Self: Sized,
    {
        let _environment = FloatEnvironment::set_default();
        for (sum, values) in self.slices()?.into_iter().zip(other.slices()?) {
            sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += *value);
        }
        Ok(())
    }
}

/// The sums over the shards that were run so far.
pub(super) struct ShardSums<T> {
    /// The loss of each shard.
    losses: Vec<f64>,
    /// Sums of gradients.
    gradients: TreeSum<T>,
    /// The final states of each LSTM, for the sequences of each shard.
    states: Vec<(Range<usize>, Vec<HostState>)>,
}

impl<T: GradientArrays> ShardSums<T> {
    /// Empty sums for a step of `shards` shards.
    pub(super) fn new(shards: usize) -> Self {
        ShardSums { losses: Vec::new(), gradients: TreeSum::new(shards), states: Vec::new() }
    }

    /// Adds the next shard.
    pub(super) fn push(&mut self, shard: &Shard, loss: f64, gradients: T, states: Vec<HostState>) -> Result<()> {
        self.losses.push(loss);
        self.states.push((shard.rows.clone(), states));
        self.gradients.push(shard.index..shard.index + 1, gradients, T::add)
    }

    /// The loss of a batch of `batch` sequences and the sum of the gradients, over the shards of all ranks, and the final
    /// states of each LSTM.
    ///
    /// `sums` are those of this rank. `settings` returns everything on which the step depends, as pairs of name and
    /// value, which must be equal on all ranks. `describe_error` returns the text of an error of the caller.
    ///
    /// # Errors
    /// The error in `sums`, an error of another rank, or [`Error::NotFinite`] if the loss is not finite.
    pub(super) fn combine<E>(
        collective: &impl Collective,
        step: u64,
        shards: usize,
        batch: usize,
        settings: impl FnOnce() -> Vec<(&'static str, String)>,
        describe_error: fn(&E) -> String,
        sums: Result<Self, StepError<E>>,
    ) -> Result<StepSums<T>, StepError<E>> {
        if collective.size() == 1 {
            let mut sums = sums?;
            let states = sums.take_states(batch)?;
            let loss = sum_losses(step, sums.losses)?;
            let (_, gradients) = sums.gradients.into_subtrees().pop().ok_or_else(no_shard)?;
            return Ok((loss, gradients, states));
        }
        let prepared = sums.and_then(|mut sums| {
            let states = sums.take_states(batch)?;
            let (mut subtrees, mut len) = (sums.gradients.into_subtrees(), 0);
            for (_, gradients) in &mut subtrees {
                // Makes the arrays this rank's own, so that this call can't fail later.
                len = gradients.slices()?.iter().map(|array| array.len()).sum();
            }
            Ok((StepExchange::new(collective, shards, &sums.losses, len)?, subtrees, states))
        });
        let failure = prepared.as_ref().err().map(|error| error.describe(describe_error));
        let agreed = agree(collective, &settings(), failure.as_deref());
        // The other ranks got the text of this error; the caller gets the error itself.
        let prepared = match prepared {
            Err(error @ StepError::Loss { .. }) => return Err(error),
            prepared => prepared,
        };
        if let Some(Failure { error, .. }) = agreed? {
            return Err(error.into());
        }
        // From here on, what can fail fails on all ranks, or in the collective.
        let (mut exchange, mut subtrees, states) = prepared?;
        let loss = sum_losses(step, exchange.gather_losses(collective)?)?;
        let mut arrays = subtrees.iter_mut().map(|(_, gradients)| gradients.slices()).collect::<Result<Vec<_>>>()?;
        exchange.sum_gradients(collective, &mut arrays)?;
        let (_, gradients) = subtrees.into_iter().next().ok_or_else(no_shard)?;
        Ok((loss, gradients, states))
    }

    /// [`combine`](Self::combine) for one rank, with errors in the caller's type.
    pub(super) fn of_one_rank<E: From<Error>>(
        step: u64,
        batch: usize,
        sums: Result<Self, StepError<E>>,
    ) -> Result<StepSums<T>, E> {
        // Nothing is compared with other ranks.
        Self::combine(&SingleRank, step, 1, batch, Vec::new, |_| String::new(), sums)
            .map_err(StepError::into_caller_error)
    }

    /// Removes and returns the final states of each LSTM for a batch of `batch` sequences. Those of sequences that are
    /// not in a shard that was run are NaN.
    fn take_states(&mut self, batch: usize) -> Result<Vec<HostState>> {
        let mut parts = std::mem::take(&mut self.states);
        if let [(rows, states)] = &mut parts[..]
            && rows.len() == batch
        {
            return Ok(std::mem::take(states));
        }
        let joined = |k: usize, array: fn(&HostState) -> &Array3<f32>| {
            let (entries, cols) =
                parts.first().map_or((0, 0), |(_, states)| (array(&states[k]).dim().0, array(&states[k]).dim().2));
            let mut all = memory::zero_array("Trainer::step: states", Ix3(entries, batch, cols))?;
            all.fill(f32::NAN);
            for (rows, states) in &parts {
                all.slice_mut(s![.., rows.clone(), ..]).assign(array(&states[k]));
            }
            Ok(all)
        };
        let count = parts.first().map_or(0, |(_, states)| states.len());
        (0..count).map(|k| Ok(HostState { h: joined(k, |state| &state.h)?, c: joined(k, |state| &state.c)? })).collect()
    }
}

/// The loss, the sum of the gradients, and the final states of each LSTM.
pub(super) type StepSums<T> = (f64, T, Vec<HostState>);

/// The error of a step without a shard. It can't occur: earlier checks reject such a step.
pub(super) fn no_shard() -> Error {
    Error::shape("Trainer::step", "at least one shard", "none")
}

/// The sum of the losses of all shards, in their order.
///
/// # Errors
/// [`Error::NotFinite`] if it is not finite.
pub(super) fn sum_losses(step: u64, losses: impl IntoIterator<Item = f64>) -> Result<f64> {
    let sum = losses.into_iter().reduce(|sum, loss| sum + loss).unwrap_or_default();
    if sum.is_finite() { Ok(sum) } else { Err(Error::NotFinite { step, quantity: "the loss".into(), value: sum }) }
}

/// The states of some sequences of a batch.
pub(crate) fn select_state(state: &HostState, rows: &Range<usize>) -> Result<HostState> {
    let select = |array: &Array3<f32>| {
        memory::copy_array("Trainer::step: states", array.slice_axis(Axis(1), (rows.start..rows.end).into()))
    };
    Ok(HostState { h: select(&state.h)?, c: select(&state.c)? })
}

/// Checks that no shard of a batch is empty.
pub(super) fn check_shards(shards: usize, batch: usize) -> Result<()> {
    if shards <= batch {
        return Ok(());
    }
    let reason = format!(
        "expected at most {batch}, the number of sequences in the batch, because each shard has at least one; got {shards}, \
         so shard 0 would be empty"
    );
    Err(Error::config("shards", reason))
}

/// The seed of a shard's dropout in training step `step` of a run with the seed `seed`.
pub(super) fn dropout_seed(seed: u64, step: u64, shard: usize) -> u64 {
    let step_seed = nth_seed(seed, step);
    if shard == 0 { step_seed } else { nth_seed(step_seed, shard as u64) }
}

/// An error of a training step: of the library, or of the caller's loss function.
#[derive(Debug)]
pub(super) enum StepError<E> {
    /// An error of this library.
    Library(Error),
    /// An error that the loss function returned, and the number of the shard and of all shards.
    Loss { error: E, shard: usize, shards: usize },
}

impl<E> From<Error> for StepError<E> {
    fn from(error: Error) -> Self {
        StepError::Library(error)
    }
}

impl<E: From<Error>> StepError<E> {
    /// The error in the caller's type.
    pub(super) fn into_caller_error(self) -> E {
        match self {
            StepError::Library(error) => error.into(),
            StepError::Loss { error, .. } => error,
        }
    }
}

impl<E> StepError<E> {
    /// The text of the error for other ranks. `describe` returns that of an error of the caller.
    fn describe(&self, describe: fn(&E) -> String) -> String {
        match self {
            StepError::Library(error) => error.to_string(),
            StepError::Loss { error, shard, shards } => {
                format!("shard {shard} (of {shards}, counted from 0): {}", describe(error))
            }
        }
    }

    /// Adds the shard's number to an error of the library, if the batch has several shards.
    pub(super) fn with_shard(self, shard: &Shard) -> Self {
        match self {
            StepError::Library(error) if shard.shards > 1 => StepError::Library(match error {
                Error::NotFinite { step, quantity, value } => {
                    Error::NotFinite { step, quantity: format!("{quantity} of shard {}", shard.index), value }
                }
                source => Error::Shard { index: shard.index, shards: shard.shards, source: Box::new(source) },
            }),
            other => other,
        }
    }
}

/// The settings of a run that all trainers have, as pairs of name and value that the ranks compare.
pub(super) fn run_settings<B: Backend>(
    backend: &B,
    config: &TrainerConfig,
    optimizer: &Optimizer,
) -> Vec<(&'static str, String)> {
    let TrainerConfig { optimizer: method, schedule, clip, checkpointing, seed, shards, groups } = config;
    let exact = if backend.arithmetic().is_exact() { "bit-exact" } else { "not bit-exact" };
    vec![
        call_setting("training step"),
        ("library", env!("CARGO_PKG_VERSION").into()),
        ("arithmetic", format!("specification {VERSION}, {exact}")),
        ("shards", shards.to_string()),
        ("optimizer", method.to_string()),
        ("groups", groups.iter().map(ParameterGroup::to_string).collect::<Vec<_>>().join("; ")),
        ("schedule", schedule.to_string()),
        ("clip", clip.map_or("none".into(), |clip| clip.to_string())),
        ("checkpointing", checkpointing.to_string()),
        ("seed", seed.to_string()),
        ("steps", optimizer.steps().to_string()),
    ]
}

/// The digest of the parameters and of the optimizer's state, as a pair of name and value.
pub(super) fn parameters_setting<'a>(
    values: impl IntoIterator<Item = &'a f32>,
    optimizer: &Optimizer,
) -> (&'static str, String) {
    let mut digest = Digest::of(values);
    optimizer.state().for_each(|(_, array)| array.iter().for_each(|v| digest.add(*v)));
    ("digest of parameters and optimizer", digest.to_string())
}

/// Number of elements of a batch in its digest, after the first step. Every rank has the whole batch, so the time for a
/// digest of all elements would not become shorter with more ranks, as that of the passes does.
const DIGEST_SAMPLES: usize = 1 << 12;

/// The indices of the elements of a batch of `len` elements that are part of its digest: all, or if `samples_only`, a
/// random one of each of [`DIGEST_SAMPLES`] ranges. Other steps sample other elements, so that all features are
/// compared in time.
pub(super) fn digest_indices(len: usize, step: u64, samples_only: bool) -> impl Iterator<Item = usize> {
    let count = if samples_only { len.min(DIGEST_SAMPLES) } else { len };
    let start = move |k: usize| (k as u128 * len as u128 / count as u128) as usize;
    (0..count).map(move |k| {
        let range = start(k)..start(k + 1);
        range.start + (nth_seed(step, k as u64) % range.len() as u64) as usize
    })
}

/// A description of the batch with its digest, as a pair of name and value.
pub(super) fn batch_setting(
    shape: impl fmt::Debug,
    lengths: Option<&[usize]>,
    has_states: bool,
    values: impl IntoIterator<Item = f32>,
) -> (&'static str, String) {
    let mut digest = Digest::default();
    values.into_iter().for_each(|v| digest.add(v));
    let words = lengths.into_iter().flatten().flat_map(|&len| [len as u32, (len as u64 >> 32) as u32]);
    words.for_each(|word| digest.add(f32::from_bits(word)));
    let (lengths, states) =
        (if lengths.is_some() { "with" } else { "without" }, if has_states { "with" } else { "without" });
    ("batch", format!("{shape:?} {lengths} lengths, {states} initial states, digest {digest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_have_distinct_dropout_seeds() {
        // The check values of `docs/specification.md`, from an independent implementation.
        let seeds = [0, 1, 2].map(|shard| dropout_seed(0, 1, shard));
        assert_eq!(seeds, [0xe220_a839_7b1d_cdaf, 0xa706_dd2f_4d19_7e6f, 0xb382_a305_f441_4f5e]);
        assert_eq!(dropout_seed(42, 1, 3), 0x7c81_6738_c129_03b2);
    }
}
