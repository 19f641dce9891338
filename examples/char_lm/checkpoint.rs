//! A training run and its checkpoint file.

use std::{collections::BTreeMap, path::Path};

use lstm::{
    Backend, HostState, Init, InitKind, Linear, Lstm, LstmConfig, Weights,
    train::{CheckpointExtras, Clip, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

use crate::{
    Error, Result,
    curve::Losses,
    options::Options,
    text::{Text, Vocabulary},
};

/// Key under which the metadata of a checkpoint contains the vocabulary. The other entries are the [`run_settings`].
const VOCABULARY_KEY: &str = "vocabulary";

/// State of a training run between two steps.
pub(crate) struct Run<B: Backend> {
    /// Model and optimizer state.
    pub(crate) trainer: Trainer<B>,
    /// Characters that the model distinguishes.
    pub(crate) vocabulary: Vocabulary,
    /// LSTM state after the last step, to continue the streams of the text; `None` before the first step.
    pub(crate) state: Option<HostState>,
    /// Losses since the start of the run.
    pub(crate) losses: Losses,
    /// Settings of the run, from [`run_settings`].
    settings: BTreeMap<String, String>,
}

/// Returns all settings on which the results of a run depend, by name.
fn run_settings(options: &Options, text: &Text) -> BTreeMap<String, String> {
    let named_values = [
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
    named_values.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

impl<B: Backend> Run<B> {
    /// Starts a run with an untrained model.
    pub(crate) fn start(backend: &B, options: &Options, text: &Text) -> Result<Self> {
        let (symbols, seed) = (text.vocabulary.len(), options.seed);
        let config = LstmConfig::new(symbols, options.hidden).layers(options.layers);
        let config = config.dropout(options.dropout()).cell(options.cell);
        let init = Init::new(InitKind::Orthogonal);
        let lstm = Lstm::new(backend, Weights::init(config, &init, seed)?)?;
        let head = Linear::random(backend, options.hidden, symbols, seed.wrapping_add(1))?;

        let decay_steps = options.train_steps.saturating_sub(options.warmup).max(1);
        let schedule = Schedule::cosine(options.rate, decay_steps, options.min_rate).warmup(options.warmup);
        let optimizer = OptimizerConfig::adamw().weight_decay(options.weight_decay);
        let trainer_config = TrainerConfig::new(optimizer, schedule).clip(Clip::Norm(options.clip)).seed(seed);
        let trainer = Trainer::new(lstm, Some(head), trainer_config)?;
        let (vocabulary, settings) = (text.vocabulary.clone(), run_settings(options, text));
        Ok(Run { trainer, vocabulary, state: None, losses: Losses::default(), settings })
    }

    /// Opens the training run that is stored in a checkpoint file, with whatever settings it was started.
    pub(crate) fn open(backend: &B, path: &Path) -> Result<Self> {
        let (trainer, mut extras) = Trainer::resume(backend, path)?;
        let config = trainer.lstm().config();
        let vocabulary = extras.text.remove(VOCABULARY_KEY);
        let vocabulary = vocabulary.ok_or_else(|| {
            Error::file(path, "the file has no vocabulary, so it is not a checkpoint of this program")
        })?;
        let vocabulary = Vocabulary::from_line(&vocabulary).map_err(|why| Error::file(path, why))?;
        let outputs = trainer.head().map(Linear::output_size);
        if config.input_size != vocabulary.len() || outputs != Some(vocabulary.len()) {
            return Err(Error::file(path, "the sizes of the model do not match the vocabulary"));
        }
        let state = extras.take_state().map_err(|why| Error::file(path, why))?;
        let losses = Losses::take_from(&mut extras).map_err(|why| Error::file(path, why))?;
        Ok(Run { state, vocabulary, losses, settings: extras.text, trainer })
    }

    /// Opens the training run that is stored in a checkpoint file. Fails if its settings differ from those given by
    /// `options` and `text`.
    pub(crate) fn resume(backend: &B, path: &Path, options: &Options, text: &Text) -> Result<Self> {
        let run = Self::open(backend, path)?;
        let differences = run_settings(options, text).into_iter().filter_map(|(name, new_value)| {
            let saved_value = run.settings.get(&name).map_or("missing", String::as_str);
            (new_value != saved_value).then(|| format!("{name} was {saved_value}, now is {new_value}"))
        });
        let differences: Vec<_> = differences.collect();
        if differences.is_empty() { Ok(run) } else { Err(Error::DifferentRun { path: path.into(), differences }) }
    }

    /// Saves the run as a checkpoint file.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        let mut extras = CheckpointExtras::default().with_text(self.settings.clone());
        extras.text.insert(VOCABULARY_KEY.into(), self.vocabulary.line());
        extras = self.losses.add_to(extras);
        if let Some(state) = &self.state {
            extras = extras.with_state(state);
        }
        Ok(self.trainer.save_with(path, &extras)?)
    }

    /// Prints a description of the model.
    pub(crate) fn describe(&self) {
        let lstm = self.trainer.lstm();
        let (config, paths) = (lstm.config(), lstm.paths());
        let layers = lstm.weights().layers().iter().flat_map(|layer| layer.iter().map(|(_, values)| values.len()));
        let head_params = (config.hidden_size + 1) * self.vocabulary.len();
        let path_names: Vec<_> = paths.iter().map(ToString::to_string).collect();
        println!(
            "Model: {} LSTM layers with hidden size {} and a linear head, {} parameters, on {} ({}).",
            config.num_layers,
            config.hidden_size,
            layers.sum::<usize>() + head_params,
            lstm.backend().name(),
            path_names.join(", ")
        );
    }
}
