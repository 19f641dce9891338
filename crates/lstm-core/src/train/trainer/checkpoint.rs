//! A run in a file: everything that the next step depends on, in names that PyTorch reads.

use std::{collections::BTreeMap, fmt::Display, path::Path, str::FromStr};

use ndarray::{Array1, Array2, ArrayD, ArrayView, Ix1, Ix2, Ix3, IxDyn};

use super::{
    Trainer, TrainerConfig,
    parameters::{HEAD, HeadKind, LSTM, layout},
};
use crate::{
    backend::Backend,
    config::LstmConfig,
    error::{Error, Result},
    model::{HostState, Lstm},
    train::{Linear, Optimizer},
    weights::{
        LayerWeights, Weights,
        names::TensorNames,
        state_dict::{StateDict, StateDictWriter, config_key},
    },
};

/// The version of what is written here.
const VERSION: &str = "1";

/// What the optimizer's tensors begin with.
const OPTIMIZER: &str = "optimizer.";

/// What a checkpoint's own metadata begins with; all other metadata are the caller's.
const OWN: &str = "trainer.";

/// What the tensors of the caller's begin with.
const EXTRA: &str = "extra.";

/// What a caller keeps in a checkpoint beside the run: the place in the data, a state for truncated backpropagation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extras {
    /// Lines of text by keys, which do not start with `trainer.`.
    pub text: BTreeMap<String, String>,
    /// Arrays by names.
    pub tensors: BTreeMap<String, ArrayD<f32>>,
}

/// The names of a state's tensors.
const STATE: [&str; 2] = ["state.h", "state.c"];

impl Extras {
    /// Adds a state, as the tensors `state.h` and `state.c`.
    pub fn with_state(mut self, state: &HostState) -> Self {
        for (name, array) in STATE.into_iter().zip([&state.h, &state.c]) {
            self.tensors.insert(name.into(), array.clone().into_dyn());
        }
        self
    }

    /// Takes the state that [`with_state`](Self::with_state) added, if any.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] for one half without the other; [`Error::Shape`] if one has not three dimensions. Then
    /// nothing is taken. Whether its sizes are a model's is for [`Lstm::forward`] to say.
    pub fn take_state(&mut self) -> Result<Option<HostState>> {
        let halves = STATE.map(|name| self.tensors.get(name));
        let (Some(h), Some(c)) = (halves[0], halves[1]) else {
            return match STATE.iter().zip(halves).find(|(_, half)| half.is_none()) {
                Some((name, _)) if halves.iter().any(Option::is_some) => {
                    Err(Error::MissingTensor { name: (*name).into(), expected: "both halves of a state".into() })
                }
                _ => Ok(None),
            };
        };
        let three = |array: &ArrayD<f32>| {
            let wrong = |_| Error::shape("take_state", "three dimensions", format!("{:?}", array.shape()));
            array.clone().into_dimensionality::<Ix3>().map_err(wrong)
        };
        let state = HostState { h: three(h)?, c: three(c)? };
        STATE.iter().for_each(|name| drop(self.tensors.remove(*name)));
        Ok(Some(state))
    }
}

impl<B: Backend> Trainer<B> {
    /// Saves the run: [`save_with`](Self::save_with) nothing else.
    ///
    /// # Errors
    /// As for `save_with`.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        self.save_with(path, &Extras::default())
    }

    /// Saves the run and what the caller adds to one safetensors file, which is replaced whole or not at all.
    ///
    /// Tensors: the model's as in [`save_model`](Self::save_model), and what the optimizer keeps of each, such as
    /// `optimizer.exp_avg.head.weight`, in the parameter's shape. Metadata, each as its type is displayed, or `none`:
    /// `trainer.format` (the version, 1), `trainer.model` (every option of the LSTM's), `trainer.head`
    /// (`linear outputs=1 bias=true`), `trainer.method`, `trainer.schedule`, `trainer.clip`, `trainer.keep`,
    /// `trainer.seed` and `trainer.steps`.
    ///
    /// What the caller carries from step to step is the caller's to add: a state for truncated backpropagation, the
    /// place in the data. Its tensors are `extra.` and their name.
    ///
    /// # Errors
    /// [`Error::Config`] for text whose key starts with `trainer.`; [`Error::Io`]. A file that was there is then as it
    /// was.
    pub fn save_with(&self, path: impl AsRef<Path>, extras: &Extras) -> Result<()> {
        let mut writer = self.model(&extras.text)?;
        for (name, tensor) in &extras.tensors {
            writer = writer.tensor(format!("{EXTRA}{name}"), tensor)?;
        }
        let settings = &self.settings;
        let head = self.head.as_ref().map(HeadKind::of);
        let or_none = |text: Option<String>| text.unwrap_or("none".into());
        for (key, value) in [
            ("format", VERSION.into()),
            ("model", self.lstm.config().to_string()),
            ("head", or_none(head.map(|head| head.to_string()))),
            ("method", settings.method.to_string()),
            ("schedule", settings.schedule.to_string()),
            ("clip", or_none(settings.clip.map(|clip| clip.to_string()))),
            ("keep", settings.keep.to_string()),
            ("seed", settings.seed.to_string()),
            ("steps", self.steps().to_string()),
        ] {
            writer = writer.metadata(format!("{OWN}{key}"), value);
        }
        let shapes: BTreeMap<_, _> = layout(self.lstm.config(), head).into_iter().collect();
        for (name, values) in self.optimizer.state() {
            let shape = name.split_once('.').and_then(|(_, parameter)| shapes.get(parameter));
            let shape = shape.map_or(vec![values.len()], Vec::clone);
            let values = ArrayView::from_shape(IxDyn(&shape), values);
            let values = values.map_err(|why| Error::shape("Trainer::save", format!("{shape:?} for `{name}`"), why))?;
            writer = writer.tensor(format!("{OPTIMIZER}{name}"), &values)?;
        }
        writer.save(path)
    }

    /// Saves the model alone, for inference: `lstm.weight_ih_l0` and so on, `head.weight` and `head.bias`, which are the
    /// names of a PyTorch module's state with an `nn.LSTM` called `lstm` and an `nn.Linear` called `head`, and the
    /// caller's metadata; and, where the LSTM has options that tensors don't tell (see [`StateDictWriter::lstm`]), these.
    ///
    /// # Errors
    /// As for [`save_with`](Self::save_with).
    pub fn save_model(&self, path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<()> {
        self.model(metadata)?.save(path)
    }

    fn model(&self, metadata: &BTreeMap<String, String>) -> Result<StateDictWriter> {
        let mut writer = StateDictWriter::new().lstm(LSTM, self.lstm.weights(), TensorNames::PyTorch)?;
        if let Some(head) = &self.head {
            writer = head.put(writer, HEAD)?;
        }
        for (key, value) in metadata {
            if key.starts_with(OWN) {
                let why = format!("keys that start with `{OWN}` are a checkpoint's own, got `{key}`");
                return Err(Error::config("metadata", why));
            }
            writer = writer.metadata(key, value);
        }
        Ok(writer)
    }

    /// Takes up a [saved](Self::save_with) run on `backend`, and returns it with what the caller added. It goes on with
    /// the bits that it would have had: weights, what the optimizer keeps, losses.
    ///
    /// # Errors
    /// - [`Error::Io`] if the file can't be read.
    /// - [`Error::Format`] naming the file: it is no safetensors file or is cut short; it is no checkpoint or one of
    ///   another version; and naming the key: text that is missing, unknown, or does not say what it should.
    /// - [`Error::MissingTensor`], [`Error::TensorShape`], [`Error::UnusedTensors`] and [`Error::TensorType`] naming
    ///   tensors that don't fit what the text says.
    /// - What the device refuses.
    pub fn resume(backend: &B, path: impl AsRef<Path>) -> Result<(Self, Extras)> {
        Checkpoint::open(path.as_ref())?.run(backend)
    }

    /// [`resume`](Self::resume) where the caller knows which model it should be: the configuration, and how many outputs
    /// the head has, if there should be one.
    ///
    /// # Errors
    /// As for `resume`; [`Error::Config`] naming the first option that differs, and the file.
    pub fn resume_as(
        backend: &B,
        path: impl AsRef<Path>,
        config: &LstmConfig,
        outputs: Option<usize>,
    ) -> Result<(Self, Extras)> {
        let checkpoint = Checkpoint::open(path.as_ref())?;
        checkpoint.expect(config, outputs)?;
        checkpoint.run(backend)
    }
}

/// A file whose text was read, and whose tensors were not.
struct Checkpoint {
    file: String,
    dict: StateDict,
    config: LstmConfig,
    head: Option<HeadKind>,
    settings: TrainerConfig,
    steps: u64,
    metadata: BTreeMap<String, String>,
}

impl Checkpoint {
    fn open(path: &Path) -> Result<Self> {
        let (file, dict) = (path.display().to_string(), StateDict::open(path)?);
        let (own, mut metadata): (BTreeMap<_, _>, BTreeMap<_, _>) =
            dict.metadata().clone().into_iter().partition(|(key, _)| key.starts_with(OWN));
        metadata.remove(&config_key(LSTM));
        let mut text = Text { file: &file, own };
        match text.own.remove("trainer.format") {
            Some(version) if version == VERSION => {}
            Some(version) => {
                return Err(Error::format(
                    file,
                    format!("expected a checkpoint of version {VERSION}, got `{version}`"),
                ));
            }
            None => return Err(Error::format(file, "no checkpoint: its metadata have no `trainer.format`")),
        }
        let config = text.parse("model")?;
        if let Some(other) = dict.lstm_config(LSTM)?.filter(|other| *other != config) {
            let why = format!("metadata `trainer.model`, {config}, and `{}`, {other}, differ", config_key(LSTM));
            return Err(Error::format(file, why));
        }
        let head = text.parse::<OrNone<HeadKind>>("head")?.0;
        let mut settings = TrainerConfig::new(text.parse("method")?, text.parse("schedule")?);
        settings.clip = text.parse::<OrNone<_>>("clip")?.0;
        settings.keep = text.parse("keep")?;
        settings.seed = text.parse("seed")?;
        let steps = text.parse("steps")?;
        if let Some(key) = text.own.keys().next() {
            return Err(Error::format(file, format!("unknown metadata `{key}`")));
        }
        Ok(Checkpoint { file, dict, config, head, settings, steps, metadata })
    }

    /// Compares with what the caller knows.
    fn expect(&self, config: &LstmConfig, outputs: Option<usize>) -> Result<()> {
        let differs = |option, want: &str, got: &str| {
            Err(Error::config(option, format!("expected {want}, got a checkpoint, {}, with {got}", self.file)))
        };
        for ((option, want), (_, got)) in config.options().into_iter().zip(self.config.options()) {
            if want != got {
                return differs(option, &want, &got);
            }
        }
        let got = self.head.map(|head| head.outputs);
        let show = |outputs: Option<usize>| outputs.map_or("none".into(), |n| format!("one of {n} outputs"));
        if outputs == got { Ok(()) } else { differs("head", &show(outputs), &show(got)) }
    }

    /// Takes the tensors, each of which has to be there, and starts where the run ended.
    fn run<B: Backend>(mut self, backend: &B) -> Result<(Trainer<B>, Extras)> {
        // Text may claim any number of layers; before they are listed, there have to be two weights for each.
        let LstmConfig { num_layers, direction, .. } = self.config;
        let least = num_layers.saturating_mul(2 * direction.reverse_flags().len());
        let there = self.dict.names().count();
        if there < least {
            let last = format!("{LSTM}weight_ih_l{}", num_layers - 1);
            let expected = format!("the last of {num_layers} layers; {there} tensors are too few for so many");
            return Err(Error::MissingTensor { name: last, expected });
        }
        let layout = layout(&self.config, self.head);
        let mut values = layout.iter().map(|(name, shape)| self.dict.take(name, shape)).collect::<Result<Vec<_>>>()?;
        let method = &self.settings.method;
        let slots = if self.steps == 0 { &[] } else { method.slots() };
        let mut state = Vec::new();
        for (slot, (name, shape)) in slots.iter().flat_map(|slot| layout.iter().map(move |entry| (slot, entry))) {
            let name = format!("{slot}.{name}");
            let kept = self.dict.take(&format!("{OPTIMIZER}{name}"), shape)?;
            state.push((name, kept.into_iter().collect()));
        }
        let mut extras = Extras { text: self.metadata, ..Extras::default() };
        for name in self.dict.names().map(str::to_owned).collect::<Vec<_>>() {
            if let Some(own) = name.strip_prefix(EXTRA) {
                extras.tensors.insert(own.into(), self.dict.take_any(&name)?);
            }
        }
        self.dict.finish()?;
        let optimizer = Optimizer::restore(method.clone(), self.steps, state)?;

        let mut values = values.drain(..);
        let layers = self.config.layer_specs().into_iter().map(|spec| {
            let values = values.by_ref().take(spec.params().len()).collect();
            LayerWeights::new(spec, values)
        });
        let layers = layers.collect::<Result<_>>()?;
        let lstm = Lstm::new(backend, Weights::new(self.config, layers)?)?;
        let wrong = |why| Error::shape("Trainer::resume: head", "a matrix and a vector", why);
        let weight: Option<Array2<f32>> =
            values.next().map(|weight| weight.into_dimensionality::<Ix2>()).transpose().map_err(wrong)?;
        let bias: Option<Array1<f32>> =
            values.next().map(|bias| bias.into_dimensionality::<Ix1>()).transpose().map_err(wrong)?;
        let head = weight.map(|weight| Linear::new(backend, weight, bias)).transpose()?;
        let mut trainer = Trainer::new(lstm, head, self.settings)?;
        trainer.optimizer = optimizer;
        Ok((trainer, extras))
    }
}

/// A checkpoint's own metadata that nobody has asked for yet.
struct Text<'a> {
    file: &'a str,
    own: BTreeMap<String, String>,
}

impl Text<'_> {
    fn parse<T: FromStr<Err: Display>>(&mut self, key: &str) -> Result<T> {
        let key = format!("{OWN}{key}");
        let Some(text) = self.own.remove(&key) else {
            return Err(Error::format(self.file, format!("metadata `{key}` are missing")));
        };
        text.parse().map_err(|why| Error::format(self.file, format!("metadata `{key}`, which are `{text}`: {why}")))
    }
}

/// A value, or the word `none`.
struct OrNone<T>(Option<T>);

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        Ok(OrNone(if text == "none" { None } else { Some(text.parse()?) }))
    }
}
