//! Checkpoints: one safetensors file with everything on which the later steps of a training run depend.

use std::{collections::BTreeMap, fmt::Display, num::NonZeroUsize, path::Path, str::FromStr};

use ndarray::{Array1, Array2, ArrayD, ArrayView, Ix1, Ix2, Ix3, IxDyn};

use super::{
    Trainer, TrainerConfig,
    parameters::{HEAD_PREFIX, HeadSpec, LSTM_PREFIX, parameter_shapes},
};
use crate::{
    backend::Backend,
    config::LstmConfig,
    error::{Error, Result},
    memory,
    model::{HostState, Linear, Lstm},
    network::ModelWeights,
    train::{Optimizer, OptimizerConfig},
    weights::{
        LayerWeights, Weights,
        names::TensorNames,
        state_dict::{
            CHECKPOINT_KEY, CHECKPOINT_PREFIXES, CHECKPOINT_VERSION_WITHOUT_CHECKSUM, StateDict, StateDictWriter,
            config_key,
        },
    },
};

/// Version of the checkpoint format.
const FORMAT_VERSION: &str = "2";

/// Prefix of the names of the optimizer's tensors.
pub(super) const OPTIMIZER_PREFIX: &str = CHECKPOINT_PREFIXES[0];

/// Prefix of the names of the caller's tensors.
pub(super) const EXTRA_PREFIX: &str = CHECKPOINT_PREFIXES[1];

/// Prefix of the metadata keys that a trainer writes. All other metadata of a checkpoint belong to the caller.
pub(super) const TRAINER_PREFIX: &str = "trainer.";

/// Additional data of the caller in a checkpoint, such as the position in the training data, or a state for truncated
/// backpropagation through time.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct CheckpointExtras {
    /// Metadata of the file: text by key. Keys must not start with `trainer.`.
    pub text: BTreeMap<String, String>,
    /// Arrays by name. In the file, their names have the prefix `extra.`.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
}

/// Names of the arrays that hold an LSTM state in [`CheckpointExtras::tensors`].
const STATE_NAMES: [&str; 2] = ["state.h", "state.c"];

impl CheckpointExtras {
    /// Adds metadata: text by key. A key that exists gets the new text.
    pub fn with_text(mut self, text: BTreeMap<String, String>) -> Self {
        self.text.extend(text);
        self
    }

    /// Adds an array, or replaces the one of this name.
    pub fn with_tensor(mut self, name: impl Into<String>, array: ArrayD<f32>) -> Self {
        self.tensors.insert(name.into(), array);
        self
    }

    /// Adds an LSTM state as the tensors `state.h` and `state.c`.
    pub fn with_state(mut self, state: &HostState) -> Self {
        for (name, array) in STATE_NAMES.into_iter().zip([&state.h, &state.c]) {
            self.tensors.insert(name.into(), array.clone().into_dyn());
        }
        self
    }

    /// Removes and returns the state that [`with_state`](Self::with_state) added; `None` without a state. The sizes are
    /// not compared with a model; [`Lstm::forward`] checks them.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] if only one of `state.h` and `state.c` exists; [`Error::Shape`] if one does not have
    /// three dimensions. Nothing is removed after an error.
    pub fn take_state(&mut self) -> Result<Option<HostState>> {
        let arrays = STATE_NAMES.map(|name| self.tensors.get(name));
        let (Some(h), Some(c)) = (arrays[0], arrays[1]) else {
            return match STATE_NAMES.iter().zip(arrays).find(|(_, array)| array.is_none()) {
                Some((name, _)) if arrays.iter().any(Option::is_some) => {
                    let expected = format!("both {} and {}", STATE_NAMES[0], STATE_NAMES[1]);
                    Err(Error::MissingTensor { name: (*name).into(), expected })
                }
                _ => Ok(None),
            };
        };
        let to_array3 = |array: &ArrayD<f32>| {
            let shape_error = |_| Error::shape("take_state", "three dimensions", format!("{:?}", array.shape()));
            memory::copy_array("take_state", array.view())?.into_dimensionality::<Ix3>().map_err(shape_error)
        };
        let state = HostState { h: to_array3(h)?, c: to_array3(c)? };
        STATE_NAMES.iter().for_each(|name| drop(self.tensors.remove(*name)));
        Ok(Some(state))
    }
}

impl<B: Backend> Trainer<B> {
    /// Saves the run to a checkpoint file without additional data. See [`save_with`](Self::save_with).
    ///
    /// # Errors
    /// As for [`save_with`](Self::save_with).
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &CheckpointExtras::default())
    }

    /// Saves the run and additional data of the caller to a checkpoint: one safetensors file, which is replaced
    /// atomically.
    ///
    /// Tensors of the file:
    /// - those of the model, as in [`save_model`](Self::save_model);
    /// - the optimizer state in the shape of its parameter, such as `optimizer.exp_avg.head.weight`;
    /// - the tensors of `extras`, with the prefix `extra.`.
    ///
    /// Metadata of the file, each in the text form of its type, or `none` for an option without a value:
    /// - `trainer.format`: the version of the format, 2; files of version 1, without a checksum, are read as well;
    /// - `lstm.checksum`, the checksum of the file;
    /// - `trainer.model`: the [`LstmConfig`];
    /// - `trainer.head`: `linear outputs=1 bias=true`;
    /// - `trainer.method`: the [`OptimizerConfig`](crate::train::OptimizerConfig);
    /// - `trainer.schedule`, `trainer.clip`, `trainer.keep` (the [`Checkpointing`](crate::Checkpointing)),
    ///   `trainer.seed`;
    /// - `trainer.shards`, unless it is 1;
    /// - `trainer.groups`, one [`ParameterGroup`](crate::train::ParameterGroup) per line, if there are any;
    /// - `trainer.steps`: the number of steps so far;
    /// - the text of `extras`.
    ///
    /// # Errors
    /// [`Error::Config`] if a key of `extras.text` starts with `trainer.`, or gradients are
    /// [accumulated](Self::accumulate), which a checkpoint does not hold; [`Error::Format`] if two tensors have the
    /// same name; [`Error::Io`] if the file cannot be written. An existing file is unchanged after an error.
    pub fn save_with(&self, path: impl AsRef<Path>, extras: &CheckpointExtras) -> Result<()> {
        self.run.check_nothing_accumulated("save")?;
        let mut writer = self.model_writer(&extras.text)?;
        for (name, tensor) in &extras.tensors {
            writer = writer.tensor(format!("{EXTRA_PREFIX}{name}"), tensor)?;
        }
        let head = self.head.as_ref().map(HeadSpec::of);
        writer = writer.metadata(format!("{TRAINER_PREFIX}model"), self.lstm.config().to_string());
        writer = writer.metadata(format!("{TRAINER_PREFIX}head"), text_or_none(head.as_ref()));
        let shapes = parameter_shapes(self.lstm.config(), head).into_iter().collect();
        writer = write_run(writer, &self.run.config, &self.run.optimizer, &shapes)?;
        writer.save(path)
    }

    /// Saves the model alone, for inference, to a safetensors file with the caller's metadata.
    ///
    /// The tensors are `lstm.weight_ih_l0` and so on, `head.weight` and `head.bias`. These are the names in the state
    /// dict of a PyTorch module with an `nn.LSTM` called `lstm` and an `nn.Linear` called `head`. Options of the LSTM
    /// that do not follow from its tensors are saved as metadata; see [`StateDictWriter::lstm`].
    ///
    /// # Errors
    /// As for [`save_with`](Self::save_with).
    pub fn save_model(&self, path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<()> {
        self.model_writer(metadata)?.save(path)
    }

    /// A writer with the tensors of the model and the caller's metadata.
    fn model_writer(&self, metadata: &BTreeMap<String, String>) -> Result<StateDictWriter> {
        let mut writer = StateDictWriter::new().lstm(LSTM_PREFIX, self.lstm.weights(), TensorNames::PyTorch)?;
        if let Some(head) = &self.head {
            writer = head.write_to(writer, HEAD_PREFIX)?;
        }
        for (key, value) in metadata {
            if key.starts_with(TRAINER_PREFIX) {
                let reason = format!("expected keys that do not start with `{TRAINER_PREFIX}`, got `{key}`");
                return Err(Error::config("metadata", reason));
            }
            writer = writer.metadata(key, value);
        }
        Ok(writer)
    }

    /// Resumes a [saved](Self::save_with) run on `backend`. Returns the trainer and the additional data of the caller.
    /// The weights, the optimizer state and the losses of later steps are bit-identical to those of an uninterrupted
    /// run.
    ///
    /// # Errors
    /// - [`Error::Io`] if the file cannot be read.
    /// - [`Error::Format`], which names the file, if it is not a safetensors file, not a checkpoint, or a checkpoint of
    ///   another version. It also names the metadata key if a key is missing, unknown or has invalid text.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::UnusedTensors`] or [`Error::TensorType`] if the
    ///   tensors do not match the metadata.
    /// - Errors of the device.
    pub fn resume(backend: &B, path: impl AsRef<Path>) -> Result<(Self, CheckpointExtras)> {
        Checkpoint::open(path.as_ref())?.into_trainer(backend)
    }

    /// Resumes a run as [`resume`](Self::resume), and checks that the model has the given configuration and that the
    /// head has `output_size` outputs. `output_size` is `None` for a model without a head.
    ///
    /// # Errors
    /// As for [`resume`](Self::resume); [`Error::Config`], which names the first option that differs, and the file.
    pub fn resume_as(
        backend: &B,
        path: impl AsRef<Path>,
        config: &LstmConfig,
        output_size: Option<usize>,
    ) -> Result<(Self, CheckpointExtras)> {
        let checkpoint = Checkpoint::open(path.as_ref())?;
        checkpoint.check_model(config, output_size)?;
        checkpoint.into_trainer(backend)
    }
}

/// The text of an option that may have no value.
fn text_or_none(option: Option<&impl Display>) -> String {
    option.map_or("none".into(), ToString::to_string)
}

/// Adds the configuration of the trainer, the number of steps and the state of the optimizer to a checkpoint. `shapes`
/// are the shapes of the parameters by name.
pub(super) fn write_run(
    mut writer: StateDictWriter,
    config: &TrainerConfig,
    optimizer: &Optimizer,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<StateDictWriter> {
    for (key, value) in [
        ("format", FORMAT_VERSION.into()),
        ("method", config.optimizer.to_string()),
        ("schedule", config.schedule.to_string()),
        ("clip", text_or_none(config.clip.as_ref())),
        ("keep", config.checkpointing.to_string()),
        ("seed", config.seed.to_string()),
        ("steps", optimizer.steps().to_string()),
    ] {
        writer = writer.metadata(format!("{TRAINER_PREFIX}{key}"), value);
    }
    // Earlier versions of the library read checkpoints without these keys.
    if config.shards != 1 {
        writer = writer.metadata(format!("{TRAINER_PREFIX}shards"), config.shards.to_string());
    }
    if !config.groups.is_empty() {
        let groups: Vec<_> = config.groups.iter().map(ToString::to_string).collect();
        writer = writer.metadata(format!("{TRAINER_PREFIX}groups"), groups.join("\n"));
    }
    for (name, values) in optimizer.state() {
        let shape = name.split_once('.').and_then(|(_, parameter)| shapes.get(parameter));
        let shape = shape.map_or(vec![values.len()], Vec::clone);
        let array = ArrayView::from_shape(IxDyn(&shape), values);
        let array = array.map_err(|e| Error::shape("Trainer::save", format!("{shape:?} for `{name}`"), e))?;
        writer = writer.tensor(format!("{OPTIMIZER_PREFIX}{name}"), &array)?;
    }
    Ok(writer)
}

/// Removes and returns the additional tensors of the caller.
pub(super) fn take_extra_tensors(dict: &mut StateDict) -> Result<BTreeMap<String, ArrayD<f32>>> {
    let mut tensors = BTreeMap::new();
    for name in dict.names().map(str::to_owned).collect::<Vec<_>>() {
        if let Some(extra_name) = name.strip_prefix(EXTRA_PREFIX) {
            tensors.insert(extra_name.into(), dict.take_any(&name)?);
        }
    }
    Ok(tensors)
}

/// Removes the state of the optimizer and returns the optimizer after `steps` steps. `shapes` are the names and shapes of
/// the parameters. The state dict must have no other tensors.
pub(super) fn take_optimizer(
    mut dict: StateDict,
    file_name: &str,
    config: &OptimizerConfig,
    steps: u64,
    shapes: &[(String, Vec<usize>)],
) -> Result<Optimizer> {
    let state_names = if steps == 0 { &[] } else { config.state_names() };
    let mut state = Vec::new();
    for (state_name, (name, shape)) in state_names.iter().flat_map(|s| shapes.iter().map(move |entry| (s, entry))) {
        let name = format!("{state_name}.{name}");
        let array = dict.take(&format!("{OPTIMIZER_PREFIX}{name}"), shape)?;
        state.push((name, memory::collect("resume", array.len(), array)?));
    }
    let is_of_another_optimizer = |name: &&str| {
        let state_name = name.strip_prefix(OPTIMIZER_PREFIX).and_then(|name| name.split('.').next());
        state_name.is_some_and(|name| !config.state_names().contains(&name))
    };
    if let Some(name) = dict.names().find(is_of_another_optimizer) {
        let reason = format!(
            "the checkpoint was not trained with the optimizer in its metadata `trainer.method`, `{config}`, which has no \
             state `{name}`; restore the text of the optimizer with which it was trained"
        );
        return Err(Error::format(file_name, reason));
    }
    dict.finish_with(None)?;
    Optimizer::restore(config.clone(), steps, state)
}

/// A checkpoint file with parsed metadata. Its tensors have not been read.
struct Checkpoint {
    file_name: String,
    dict: StateDict,
    lstm_config: LstmConfig,
    head: Option<HeadSpec>,
    config: TrainerConfig,
    steps: u64,
    /// Metadata that the caller added: text by key.
    extra_text: BTreeMap<String, String>,
}

impl Checkpoint {
    fn open(path: &Path) -> Result<Self> {
        let (file_name, dict) = (path.display().to_string(), StateDict::open(path)?);
        let (trainer_metadata, mut extra_text): (BTreeMap<_, _>, BTreeMap<_, _>) =
            dict.metadata().clone().into_iter().partition(|(key, _)| key.starts_with(TRAINER_PREFIX));
        extra_text.remove(&config_key(LSTM_PREFIX));
        let mut metadata = UnreadMetadata { file_name: &file_name, entries: trainer_metadata };
        metadata.check_version()?;
        if dict.metadata().contains_key(ModelWeights::METADATA_KEY) {
            let reason = "the checkpoint of a whole model; continue the run with ModelTrainer::resume";
            return Err(Error::format(file_name, reason));
        }
        let lstm_config = metadata.parse("model")?;
        if let Some(saved_config) = dict.lstm_config(LSTM_PREFIX)?.filter(|saved_config| *saved_config != lstm_config) {
            let key = config_key(LSTM_PREFIX);
            let reason = format!("metadata `trainer.model` ({lstm_config}) and `{key}` ({saved_config}) differ");
            return Err(Error::format(file_name, reason));
        }
        let head = metadata.parse::<OptionText<HeadSpec>>("head")?.0;
        let (config, steps) = metadata.finish()?;
        Ok(Checkpoint { file_name, dict, lstm_config, head, config, steps, extra_text })
    }

    /// Checks that the checkpoint has the model that the caller expects.
    fn check_model(&self, config: &LstmConfig, output_size: Option<usize>) -> Result<()> {
        let mismatch_error = |option, expected: &str, got: &str| {
            Err(Error::config(option, format!("expected {expected}, got {got} in the checkpoint {}", self.file_name)))
        };
        for ((option, expected), (_, got)) in config.all_options().into_iter().zip(self.lstm_config.all_options()) {
            if expected != got {
                return mismatch_error(option, &expected, &got);
            }
        }
        let got = self.head.map(|head| head.output_size);
        let describe =
            |output_size: Option<usize>| output_size.map_or("none".into(), |n| format!("one with {n} outputs"));
        if output_size == got { Ok(()) } else { mismatch_error("head", &describe(output_size), &describe(got)) }
    }

    /// Reads all tensors and creates a trainer in the saved state.
    fn into_trainer<B: Backend>(mut self, backend: &B) -> Result<(Trainer<B>, CheckpointExtras)> {
        // The metadata may claim any number of layers. A layer direction has at least two weights, so this check bounds
        // the length of the list of parameters before it is allocated.
        let LstmConfig { num_layers, direction, .. } = self.lstm_config;
        let min_tensors = num_layers.saturating_mul(2 * direction.reverse_flags().len());
        let num_tensors = self.dict.names().count();
        if num_tensors < min_tensors {
            let name = format!("{LSTM_PREFIX}weight_ih_l{}", num_layers - 1);
            let expected = format!("at least {min_tensors} tensors for {num_layers} layers, got {num_tensors}");
            return Err(Error::MissingTensor { name, expected });
        }
        let shapes = parameter_shapes(&self.lstm_config, self.head);
        let mut values = shapes.iter().map(|(name, shape)| self.dict.take(name, shape)).collect::<Result<Vec<_>>>()?;
        let mut extras = CheckpointExtras::default().with_text(self.extra_text);
        extras.tensors = take_extra_tensors(&mut self.dict)?;
        let optimizer = take_optimizer(self.dict, &self.file_name, &self.config.optimizer, self.steps, &shapes)?;

        let mut values = values.drain(..);
        let layers = self.lstm_config.layer_specs().into_iter().map(|spec| {
            let values = values.by_ref().take(spec.params().len()).collect();
            LayerWeights::new(spec, values)
        });
        let layers = layers.collect::<Result<_>>()?;
        let lstm = Lstm::new(backend, Weights::new(self.lstm_config, layers)?)?;
        let head_error = |e| Error::shape("Trainer::resume: head", "a matrix and a vector", e);
        let weight: Option<Array2<f32>> =
            values.next().map(|weight| weight.into_dimensionality::<Ix2>()).transpose().map_err(head_error)?;
        let bias: Option<Array1<f32>> =
            values.next().map(|bias| bias.into_dimensionality::<Ix1>()).transpose().map_err(head_error)?;
        let head = weight.map(|weight| Linear::new(backend, weight, bias)).transpose()?;
        let mut trainer = Trainer::new(lstm, head, self.config)?;
        trainer.run.optimizer = optimizer.with_groups(trainer.run.config.groups.clone())?;
        Ok((trainer, extras))
    }
}

/// The metadata entries of a checkpoint whose keys start with `trainer.` and that have not been read yet.
pub(super) struct UnreadMetadata<'a> {
    pub(super) file_name: &'a str,
    pub(super) entries: BTreeMap<String, String>,
}

impl UnreadMetadata<'_> {
    /// Checks that the file is a checkpoint of a known version.
    pub(super) fn check_version(&mut self) -> Result<()> {
        match self.entries.remove(CHECKPOINT_KEY) {
            Some(version) if [CHECKPOINT_VERSION_WITHOUT_CHECKSUM, FORMAT_VERSION].contains(&&*version) => Ok(()),
            Some(version) => {
                let reason = format!(
                    "expected checkpoint version {CHECKPOINT_VERSION_WITHOUT_CHECKSUM} or {FORMAT_VERSION}, got `{version}`"
                );
                Err(Error::format(self.file_name, reason))
            }
            None => {
                let reason = format!(
                    "not a checkpoint: the metadata key `{CHECKPOINT_KEY}` is missing; read a model without the state of a \
                     run with StateDict::take_lstm and Linear::take, or with ModelWeights::open, and start a run with \
                     Trainer::new or ModelTrainer::new"
                );
                Err(Error::format(self.file_name, reason))
            }
        }
    }

    /// Reads the configuration of the trainer and the number of steps, which must be the last entries.
    pub(super) fn finish(mut self) -> Result<(TrainerConfig, u64)> {
        let mut config = TrainerConfig::new(self.parse("method")?, self.parse("schedule")?);
        config.clip = self.parse::<OptionText<_>>("clip")?.0;
        config.checkpointing = self.parse("keep")?;
        config.seed = self.parse("seed")?;
        if self.entries.contains_key(&format!("{TRAINER_PREFIX}shards")) {
            config.shards = self.parse::<NonZeroUsize>("shards")?.get();
        }
        if self.entries.contains_key(&format!("{TRAINER_PREFIX}groups")) {
            config.groups = self.parse::<Lines<_>>("groups")?.0;
        }
        let steps = self.parse("steps")?;
        match self.entries.keys().next() {
            Some(key) => Err(Error::format(self.file_name, format!("unknown metadata key `{key}`"))),
            None => Ok((config, steps)),
        }
    }

    /// Removes the entry with the key `trainer.{key}` and parses its text.
    fn parse<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<T> {
        let key = format!("{TRAINER_PREFIX}{key}");
        let Some(text) = self.entries.remove(&key) else {
            return Err(Error::format(self.file_name, format!("the metadata key `{key}` is missing")));
        };
        text.parse()
            .map_err(|e| Error::format(self.file_name, format!("metadata `{key}`, with the text `{text}`: {e}")))
    }
}

/// An optional value, parsed from a text. The text `none` gives `None`.
struct OptionText<T>(Option<T>);

impl<T: FromStr> FromStr for OptionText<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        Ok(OptionText(if text == "none" { None } else { Some(text.parse()?) }))
    }
}

/// Several values, parsed from a text with one value per line.
struct Lines<T>(Vec<T>);

impl<T: FromStr> FromStr for Lines<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        text.lines().map(str::parse).collect::<Result<_, _>>().map(Lines)
    }
}
