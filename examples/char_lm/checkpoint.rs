//! A run, and the file from which it goes on.

use std::{collections::BTreeMap, path::Path};

use lstm_core::{
    Backend, HostState, Init, InitKind, Lstm, LstmConfig, Weights,
    train::{CheckpointExtras, Clip, Linear, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

use crate::{
    Error, Result,
    options::Options,
    text::{Text, Vocabulary},
};

/// Metadata beside the trainer's own. What defines the run is there too, as [`identity`] names it.
const VOCABULARY: &str = "vocabulary";

/// A run between two steps.
pub(crate) struct Run<B: Backend> {
    pub(crate) trainer: Trainer<B>,
    pub(crate) vocabulary: Vocabulary,
    /// Where the streams of the text stand: the state after the last step.
    pub(crate) state: Option<HostState>,
    identity: BTreeMap<String, String>,
}

/// All that the bits of a run depend on, as people know it.
fn identity(options: &Options, text: &Text) -> BTreeMap<String, String> {
    let pairs = [
        ("the text", text.to_string()),
        ("--min-count", options.min_count.to_string()),
        ("--layers", options.layers.to_string()),
        ("--hidden", options.hidden.to_string()),
        ("--dropout", options.dropout().to_string()),
        ("--cell", options.cell.to_string()),
        ("--train-steps", options.train_steps.to_string()),
        ("--batch", options.batch.to_string()),
        ("--steps", options.steps.to_string()),
        ("--rate", options.rate.to_string()),
        ("--min-rate", options.min_rate.to_string()),
        ("--warmup", options.warmup.to_string()),
        ("--weight-decay", options.weight_decay.to_string()),
        ("--clip", options.clip.to_string()),
        ("--seed", options.seed.to_string()),
    ];
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl<B: Backend> Run<B> {
    /// A model that has learned nothing.
    pub(crate) fn start(backend: &B, options: &Options, text: &Text) -> Result<Self> {
        let (symbols, seed) = (text.vocabulary.len(), options.seed);
        let config = LstmConfig::new(symbols, options.hidden).layers(options.layers);
        let config = config.dropout(options.dropout()).cell(options.cell.into());
        let init = Init { kind: InitKind::Orthogonal, forget_bias: None };
        let lstm = Lstm::new(backend, Weights::init(config, &init, seed)?)?;
        let head = Linear::random(backend, options.hidden, symbols, seed.wrapping_add(1))?;

        let decay = options.train_steps.saturating_sub(options.warmup).max(1);
        let schedule = Schedule::cosine(options.rate, decay, options.min_rate).warmup(options.warmup);
        let method = OptimizerConfig::adamw().weight_decay(options.weight_decay);
        let settings = TrainerConfig::new(method, schedule).clip(Clip::Norm(options.clip)).seed(seed);
        let trainer = Trainer::new(lstm, Some(head), settings)?;
        Ok(Run { trainer, vocabulary: text.vocabulary.clone(), state: None, identity: identity(options, text) })
    }

    /// The run in a file, whatever it is.
    pub(crate) fn open(backend: &B, path: &Path) -> Result<Self> {
        let (trainer, mut extras) = Trainer::resume(backend, path)?;
        let config = trainer.lstm().config();
        let vocabulary = extras.text.remove(VOCABULARY);
        let vocabulary =
            vocabulary.ok_or_else(|| Error::file(path, "it has no vocabulary: not a run of this program"))?;
        let vocabulary = Vocabulary::from_line(&vocabulary).map_err(|why| Error::file(path, why))?;
        let outputs = trainer.head().map(Linear::output_size);
        if config.input_size != vocabulary.len() || outputs != Some(vocabulary.len()) {
            return Err(Error::file(path, "its model does not fit its vocabulary"));
        }
        let state = extras.take_state().map_err(|why| Error::file(path, why))?;
        Ok(Run { state, vocabulary, identity: extras.text, trainer })
    }

    /// The run in a file, which must be the one that options and text define.
    pub(crate) fn resume(backend: &B, path: &Path, options: &Options, text: &Text) -> Result<Self> {
        let run = Self::open(backend, path)?;
        let differences = identity(options, text).into_iter().filter_map(|(name, now)| {
            let then = run.identity.get(&name).map_or("not there", String::as_str);
            (now != then).then(|| format!("{name} was {then}, now is {now}"))
        });
        let differences: Vec<_> = differences.collect();
        if differences.is_empty() { Ok(run) } else { Err(Error::OtherRun { path: path.into(), differences }) }
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut extras = CheckpointExtras { text: self.identity.clone(), ..CheckpointExtras::default() };
        extras.text.insert(VOCABULARY.into(), self.vocabulary.line());
        if let Some(state) = &self.state {
            extras = extras.with_state(state);
        }
        Ok(self.trainer.save_with(path, &extras)?)
    }

    /// Says what is trained.
    pub(crate) fn describe(&self) {
        let lstm = self.trainer.lstm();
        let (config, paths) = (lstm.config(), lstm.paths());
        let layers = lstm.weights().layers().iter().flat_map(|layer| layer.iter().map(|(_, values)| values.len()));
        let head = (config.hidden_size + 1) * self.vocabulary.len();
        let kernels: Vec<_> = paths.iter().map(ToString::to_string).collect();
        println!(
            "Model: {} layers of {} with a head, {} parameters, on {} ({}).",
            config.num_layers,
            config.hidden_size,
            layers.sum::<usize>() + head,
            lstm.backend().name(),
            kernels.join(", ")
        );
    }
}
