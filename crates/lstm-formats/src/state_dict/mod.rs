//! Reads a model from a state dict: tensors with PyTorch's names, whatever file holds them.
//!
//! A state dict has no graph. Where names and shapes leave one choice, the layers follow from them: an optional
//! embedding, LSTMs, and at most one linear layer, whose output is that of all time steps. Otherwise the user states the
//! layers ([`OpenOptions::layers`]) or selects one LSTM ([`OpenOptions::names`]). Every tensor is part of the model, or
//! the file is rejected.
//!
//! - `mod.rs`: selects the tensors of the model and builds it.
//! - `layers.rs`: groups tensors to layers and says what each is.
//! - `chain.rs`: orders the layers.
//! - `text.rs`: the text in which a user states the layers.
//! - `normalization.rs`: folds weight norm.

mod chain;
mod layers;
mod normalization;
mod text;

use std::collections::{BTreeMap, BTreeSet};

use lstm_core::{
    Activation, Error, LstmConfig, ModelLayer, ModelWeights, Result, StateDict, Weights,
    ndarray::{Array1, Array2, ArrayD, Ix1, Ix2},
    weights::state_dict::Dtype,
};

use self::{
    chain::{Link, display_path, name_advice},
    layers::{Layer, LayerKind, compare_names, find_layers, find_named, list},
    text::Entry,
};
use crate::file::{Format, ModelFile, OpenOptions};

/// Metadata key by which a training checkpoint of this library is recognized.
const CHECKPOINT_KEY: &str = "trainer.format";

/// Metadata key under which a training checkpoint stores the configuration of its LSTM.
const CHECKPOINT_CONFIG_KEY: &str = "trainer.model";

/// Reads a safetensors file. `source` is its name for error messages.
pub(crate) fn read_safetensors(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    let dict = StateDict::from_bytes(bytes.to_vec()).map_err(|error| name_file(error, source))?;
    read(dict, Format::Safetensors, source, options)
}

/// Reads the model in a state dict from a file of this format.
///
/// # Errors
/// [`Error::Format`], which names the file, for a layer that is not supported, layers whose order is not determined, and
/// tensors that are not used.
pub(crate) fn read(dict: StateDict, format: Format, source: &str, options: &OpenOptions) -> Result<ModelFile> {
    build(dict, format, options).map_err(|error| name_file(error, source))
}

/// Adds the name of the file to an error.
fn name_file(error: Error, source: &str) -> Error {
    match error {
        Error::Format { input, reason } if input.is_empty() || input == "safetensors" => Error::format(source, reason),
        error => Error::format(source, error),
    }
}

/// An error about the whole file, to which [`name_file`] adds the name.
fn file_error(reason: impl ToString) -> Error {
    Error::format("", reason)
}

fn build(mut dict: StateDict, format: Format, options: &OpenOptions) -> Result<ModelFile> {
    if let Some(name) = options.set.keys().next() {
        let reason = format!("`{name}` is not an input: a state dict has no scalar inputs, only ONNX graphs have");
        return Err(Error::config("set", reason));
    }
    if dict.metadata().contains_key(ModelWeights::METADATA_KEY) {
        return build_saved_model(dict, format, options);
    }
    if let [prefix] = &dict.lstm_prefixes()[..]
        && ["", "_reverse"].iter().any(|end| dict.shape(&format!("{prefix}weight_ih_l0{end}.q")).is_some())
    {
        let prefix = prefix.clone();
        return build_quantized_lstm(dict, &prefix, format, options);
    }
    restore_shared_tensors(&mut dict)?;
    normalization::restore_dropped_weights(&mut dict)?;
    let without_effect: BTreeSet<String> =
        dict.names().filter(|name| is_without_effect(&dict, name)).map(str::to_owned).collect();
    dict.retain(|name| !without_effect.contains(name));
    let mut unused = select(&mut dict, options)?;
    let all_names: Vec<String> = dict.names().map(str::to_owned).collect();
    let all_dtypes = dtypes(&dict, &all_names);
    normalization::fold_weight_norm(&mut dict)?;
    let layers = find_layers(&dict);
    let stated = options.layers.as_deref().map(|text| stated_layers(text, &layers)).transpose()?;
    let chain = match stated {
        Some(chain) => chain,
        None => {
            let links = chain::infer(&layers).map_err(file_error)?;
            links.into_iter().map(|link| Step::Layer(link, None)).collect()
        }
    };
    let used: BTreeSet<usize> = chain.iter().filter_map(Step::layer).collect();
    let unused_layers: Vec<&Layer> =
        layers.iter().enumerate().filter(|(k, _)| !used.contains(k)).map(|(_, layer)| layer).collect();
    if !unused_layers.is_empty() && options.names.is_empty() {
        let describe = |layer: &&Layer| match &layer.kind {
            LayerKind::Other(what) => what.clone(),
            kind => format!("`{}` ({kind})", display_path(layer)),
        };
        let names = list(unused_layers.iter().map(describe));
        let used: Vec<&str> = chain.iter().filter_map(Step::layer).map(|k| display_path(&layers[k])).collect();
        let used = used.join(",");
        return Err(file_error(format!(
            "the stated layers do not use {names}; add what belongs to the model, or leave it out with --name {used}"
        )));
    }
    unused.extend(unused_layers.iter().flat_map(|layer| layer.tensors.clone()));
    unused.sort_by(|a, b| compare_names(a, b));
    let used_names: BTreeSet<&String> = used.iter().flat_map(|&k| &layers[k].tensors).collect();
    dict.retain(|name| used_names.contains(&name.to_owned()));
    // Folded tensors are not among those of the file: then the types of all are listed.
    let used_names: Vec<String> = used_names.into_iter().cloned().collect();
    let dtypes = match used_names.iter().all(|name| all_names.contains(name)) {
        true => dtypes(&dict, &used_names),
        false => all_dtypes,
    };
    let metadata = metadata_of_model(&dict);
    let weights = ModelWeights::new(take_layers(&mut dict, &layers, &chain, options)?)?.with_metadata(metadata);
    Ok(ModelFile::new(format, weights, dtypes.into_iter().collect(), unused))
}

/// Element types of some tensors, as text.
fn dtypes(dict: &StateDict, names: &[String]) -> BTreeSet<String> {
    names.iter().filter_map(|name| dict.dtype(name)).map(|dtype| dtype.to_string()).collect()
}

/// The metadata of the file that are not about its tensors.
fn metadata_of_model(dict: &StateDict) -> BTreeMap<String, String> {
    if dict.metadata().contains_key(CHECKPOINT_KEY) {
        return BTreeMap::new();
    }
    let is_other = |key: &str, value: &str| {
        // `format` is always `pt`.
        key != "format" && !key.ends_with("lstm.config") && !is_shared_tensor(key, value)
    };
    let metadata = dict.metadata().iter().filter(|(key, value)| is_other(key, value));
    metadata.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Builds the model that [`ModelWeights::save`] wrote, or one of its LSTMs alone.
fn build_saved_model(dict: StateDict, format: Format, options: &OpenOptions) -> Result<ModelFile> {
    if options.layers.is_some() || options.cell.is_some() || options.clip.is_some() || options.coupled {
        return Err(file_error(
            "its metadata contain the layers of the model; omit --layers, --cell, --clip and --coupled",
        ));
    }
    let names: Vec<String> = dict.names().map(str::to_owned).collect();
    let dtypes = dtypes(&dict, &names).into_iter().collect();
    let weights = ModelWeights::from_state_dict(dict)?;
    let steps = weights.metadata().get(ModelFile::STEPS_KEY).map(|text| match text.parse() {
        Ok(steps) if steps > 0 => Ok(steps),
        _ => {
            let key = ModelFile::STEPS_KEY;
            Err(file_error(format!("metadata `{key}`: expected a number of time steps of at least 1, got {text:?}")))
        }
    });
    let steps = steps.transpose()?;
    let [name] = &options.names[..] else {
        return match options.names[..] {
            [] => Ok(ModelFile { steps, ..ModelFile::new(format, weights, dtypes, Vec::new()) }),
            _ => Err(Error::config("name", format!("expected the name of one LSTM, got {}", options.names.len()))),
        };
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    let lstms = || weights.layers().iter().filter(|layer| matches!(layer, ModelLayer::Lstm { .. }));
    let Some(lstm) = lstms().find(|layer| layer.name() == Some(name)) else {
        let expected = list(lstms().filter_map(ModelLayer::name).map(|name| format!("`{name}`")));
        return Err(file_error(format!("no LSTM is named `{name}`; expected one of: {expected}")));
    };
    let unused = names.into_iter().filter(|tensor| !tensor.starts_with(&format!("{name}."))).collect();
    Ok(ModelFile::new(format, ModelWeights::new(vec![lstm.clone()])?, dtypes, unused))
}

/// Builds a model of the one quantized LSTM of a file that [`StateDictWriter`](lstm_core::StateDictWriter) wrote.
fn build_quantized_lstm(mut dict: StateDict, prefix: &str, format: Format, options: &OpenOptions) -> Result<ModelFile> {
    if options.layers.is_some() || options.cell.is_some() || options.clip.is_some() || options.coupled {
        let reason = "a file of one quantized LSTM says what it is; omit --layers, --cell, --clip and --coupled";
        return Err(file_error(reason));
    }
    let name = prefix.strip_suffix('.').unwrap_or(prefix);
    if let Some(other) = options.names.iter().find(|other| other.strip_suffix('.').unwrap_or(other) != name) {
        return Err(file_error(format!("no LSTM is named `{other}`; expected `{name}`")));
    }
    let names: Vec<String> = dict.names().map(str::to_owned).collect();
    let dtypes = dtypes(&dict, &names).into_iter().collect();
    let metadata = metadata_of_model(&dict);
    let weights = dict.take_lstm(prefix)?.into();
    if options.names.is_empty() {
        dict.finish()?;
    }
    let unused = names.into_iter().filter(|tensor| !tensor.starts_with(prefix)).collect();
    let name = if name.is_empty() { "lstm" } else { name };
    let layers = vec![ModelLayer::Lstm { name: name.into(), weights, initial_state: None }];
    Ok(ModelFile::new(format, ModelWeights::new(layers)?.with_metadata(metadata), dtypes, unused))
}

/// Whether an entry of the metadata says that `safetensors.torch.save_model` wrote the tensor `name` under the name `kept`
/// only.
fn is_shared_tensor(name: &str, kept: &str) -> bool {
    let leaf = |name: &str| name.rsplit('.').next().map(str::to_owned);
    name != kept && leaf(name) == leaf(kept)
}

/// `safetensors.torch.save_model` writes a tensor that occurs under several names once. The metadata have the other
/// names. Adds the tensors with these names.
fn restore_shared_tensors(dict: &mut StateDict) -> Result<()> {
    let shared: Vec<(String, String)> = dict
        .metadata()
        .iter()
        .filter(|(name, kept)| is_shared_tensor(name, kept) && dict.shape(name).is_none() && dict.shape(kept).is_some())
        .map(|(name, kept)| (name.clone(), kept.clone()))
        .collect();
    for (name, kept) in shared {
        if let (Some(dtype), Some(shape), Some(bytes)) = (dict.dtype(&kept), dict.shape(&kept), dict.bytes(&kept)) {
            let (shape, bytes) = (shape.to_vec(), bytes.to_vec());
            dict.insert(name, dtype, &shape, &bytes)?;
        }
    }
    Ok(())
}

/// Keeps the tensors of the model only: those that the user selected by name, or all but the state of an optimizer.
/// Returns the names of the tensors that the user's selection leaves.
fn select(dict: &mut StateDict, options: &OpenOptions) -> Result<Vec<String>> {
    if dict.metadata().contains_key(CHECKPOINT_KEY) {
        dict.retain(|name| !name.starts_with("optimizer.") && !name.starts_with("extra."));
    }
    match &options.names[..] {
        [] => {
            let beside: BTreeSet<String> =
                dict.names().filter(|name| is_beside_models(dict, name)).map(str::to_owned).collect();
            dict.retain(|name| !beside.contains(name));
            check_single_model(dict)?;
            Ok(Vec::new())
        }
        names => {
            let mut selected = BTreeSet::new();
            for name in names {
                selected.extend(select_by_name(dict, name)?);
            }
            let unused = dict.names().filter(|name| !selected.contains(*name)).map(str::to_owned).collect();
            dict.retain(|name| selected.contains(name));
            Ok(unused)
        }
    }
}

/// The first component of a name.
fn first_component(name: &str) -> &str {
    name.split_once('.').map_or("", |(first, _)| first)
}

/// Whether a tensor is not of a model, but of what training programs save beside it: the state of an optimizer, or of a
/// random number generator.
fn is_beside_models(dict: &StateDict, name: &str) -> bool {
    let is_random_state = name.to_ascii_lowercase().contains("rng") && dict.dtype(name) == Some(Dtype::U8);
    is_optimizer_tensor(name) || is_random_state
}

/// Whether a tensor has no part in what the layers compute: bytes that a module keeps beside its parameters
/// (`_extra_state`), and the number of models that `AveragedModel` has averaged.
fn is_without_effect(dict: &StateDict, name: &str) -> bool {
    let (outer, leaf) = name.rsplit_once('.').map_or(("", name), |(outer, leaf)| (&name[..outer.len() + 1], leaf));
    let is_bytes = dict.dtype(name) == Some(Dtype::U8) || dict.shape(name).is_some_and(|shape| shape.contains(&0));
    let has_module =
        || dict.names().any(|other| other.strip_prefix(outer).is_some_and(|rest| rest.starts_with("module.")));
    match leaf {
        "_extra_state" => is_bytes,
        "n_averaged" => dict.dtype(name) == Some(Dtype::I64) && dict.shape(name) == Some(&[]) && has_module(),
        _ => false,
    }
}

/// Whether a name is that of a tensor in the state of an optimizer, such as `optimizer.state.0.exp_avg`.
pub(crate) fn is_optimizer_tensor(name: &str) -> bool {
    let parts: Vec<&str> = name.split('.').collect();
    let is_number = |part: &str| part.parse::<u64>().is_ok();
    let is_optimizer = |part: &str| {
        let part = part.to_ascii_lowercase();
        part.contains("optim") || part == "opt" || part.starts_with("opt_")
    };
    let Some(optimizer) = parts.iter().position(|part| is_optimizer(part)) else { return false };
    parts[optimizer..].windows(2).any(|pair| ["state", "param_groups"].contains(&pair[0]) && is_number(pair[1]))
}

/// Fails if the file has several models side by side, such as `model` and `ema`.
fn check_single_model(dict: &StateDict) -> Result<()> {
    let components: BTreeSet<&str> = dict.names().map(first_component).collect();
    let with_lstm: BTreeSet<String> =
        dict.lstm_prefixes().iter().map(|prefix| first_component(prefix).to_owned()).collect();
    let is_state_dict = |component: &str| {
        let component = component.to_ascii_lowercase();
        component.contains("state_dict") || component.contains("ema")
    };
    let is_model =
        |component: &str| is_state_dict(component) || MODEL_WORDS.contains(&component.to_ascii_lowercase().as_str());
    let models: Vec<&String> = with_lstm.iter().filter(|component| is_model(component)).collect();
    let has_several_models =
        models.len() > 1 && models.iter().any(|model| is_state_dict(model) || components.len() == models.len());
    if has_several_models {
        let names = list(models.iter().map(|model| format!("`{model}`")));
        let first = models.iter().find(|model| !model.to_ascii_lowercase().contains("ema")).unwrap_or(&models[0]);
        return Err(file_error(format!("the file has several models: {names}; select one, such as --name {first}")));
    }
    if let [model] = models[..]
        && is_state_dict(model)
        && components.len() > 1
    {
        let others = dict.names().filter(|name| first_component(name) != model).map(|name| format!("`{name}`"));
        let others = list(others);
        return Err(file_error(format!(
            "the file has other tensors beside the model `{model}`: {others}; --name {model} opens the model and leaves \
             them"
        )));
    }
    Ok(())
}

/// Keys under which programs save whole models side by side.
const MODEL_WORDS: [&str; 11] = [
    "model",
    "net",
    "network",
    "generator",
    "discriminator",
    "student",
    "teacher",
    "actor",
    "critic",
    "policy",
    "target",
];

/// The tensors that the user selects by the name of an LSTM, or by the prefix of a model.
fn select_by_name(dict: &StateDict, name: &str) -> Result<BTreeSet<String>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let layers: Vec<Layer> = find_layers(dict);
    if let Some(lstm) = find_named(&layers, name).map(|layer| &layers[layer]).filter(|layer| layer.is_lstm()) {
        return Ok(lstm.tensors.iter().cloned().collect());
    }
    let is_below = |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'));
    let has_path = |layer: &Layer, test: &dyn Fn(&str) -> bool| {
        [&layer.path, &layer.name].into_iter().chain(&layer.other_paths).any(|path| test(path))
    };
    let mut inside: Vec<&Layer> = layers.iter().filter(|layer| has_path(layer, &is_below)).collect();
    // Tensors of the model itself that belong to no known layer are left, if it has layers.
    let is_other = |layer: &&Layer| matches!(layer.kind, LayerKind::Other(_));
    let has_layers = !inside.is_empty();
    inside.extend(
        layers.iter().filter(|layer| has_path(layer, &|path| path == name) && !(has_layers && is_other(layer))),
    );
    if !inside.is_empty() {
        let tensors = inside.iter().flat_map(|layer| &layer.tensors);
        return Ok(tensors.filter(|name| !is_beside_models(dict, name)).cloned().collect());
    }
    let lstms = layers.iter().filter(|layer| layer.is_lstm()).map(|layer| format!("`{}`", display_path(layer)));
    Err(file_error(match lstms.clone().count() {
        0 => format!("no LSTM is named `{name}`, and {}", chain::infer(&layers).err().unwrap_or_default()),
        _ => format!("no LSTM is named `{name}`; expected one of: {}", list(lstms)),
    }))
}

/// A layer of the model to build.
#[derive(Clone, Debug)]
enum Step {
    /// A layer with parameters, and the activation after it.
    Layer(Link, Option<Activation>),
    /// A layer without parameters.
    Other(ModelLayer),
}

impl Step {
    /// Index of the layer with parameters.
    fn layer(&self) -> Option<usize> {
        match self {
            Step::Layer(link, _) => Some(link.layer),
            Step::Other(_) => None,
        }
    }
}

/// The chain that the user states.
fn stated_layers(text: &str, layers: &[Layer]) -> Result<Vec<Step>> {
    let entries = text::parse(text).map_err(file_error)?;
    let mut steps: Vec<Step> = Vec::new();
    for (position, entry) in entries.iter().enumerate() {
        let (name, activation) = match entry {
            Entry::Last => {
                steps.push(Step::Other(ModelLayer::LastStep));
                continue;
            }
            Entry::FinalState => {
                steps.push(Step::Other(ModelLayer::FinalState));
                continue;
            }
            Entry::Dropout(probability) => {
                steps.push(Step::Other(ModelLayer::Dropout(*probability)));
                continue;
            }
            Entry::Layer { name, activation } => (name, activation),
        };
        let Some(layer) = find_named(layers, name) else {
            return Err(file_error(format!("no layer is named `{name}`; the file has {}", chain::describe(layers))));
        };
        if let LayerKind::Other(what) = &layers[layer].kind {
            let advice = name_advice(layers);
            return Err(file_error(format!("{what}, which is not supported; {advice}")));
        }
        if steps.iter().any(|step| step.layer() == Some(layer)) {
            return Err(file_error(format!("the layer `{name}` occurs twice; each layer is used once")));
        }
        let is_embedding = match layers[layer].kind {
            LayerKind::Matrix { rows, cols } if position == 0 => {
                is_embedding(name, rows, cols, next_input(&entries, layers))?
            }
            _ => false,
        };
        steps.push(Step::Layer(Link { layer, is_embedding }, *activation));
    }
    Ok(steps)
}

/// Number of features that the layer after the first entry reads, if it is known.
fn next_input(entries: &[Entry], layers: &[Layer]) -> Option<usize> {
    let next = entries.iter().skip(1).find_map(|entry| match entry {
        Entry::Layer { name, .. } => find_named(layers, name).map(|layer| &layers[layer]),
        _ => None,
    })?;
    match next.kind {
        LayerKind::Lstm { input, .. } | LayerKind::Linear { input, .. } => Some(input),
        _ => None,
    }
}

/// Whether the first layer, a matrix without a bias, is an embedding, given what the next layer reads.
fn is_embedding(name: &str, rows: usize, cols: usize, next_input: Option<usize>) -> Result<bool> {
    let (fits_embedding, fits_linear) = (next_input == Some(cols), next_input == Some(rows));
    match (fits_embedding, fits_linear) {
        (true, true) => Ok(name.to_ascii_lowercase().contains("emb")),
        (true, false) => Ok(true),
        (false, true) => Ok(false),
        (false, false) => Err(file_error(format!(
            "`{name}` is an embedding that returns {cols} features, or a linear layer without a bias that returns {rows}; \
             the next layer reads {}",
            next_input.map_or("neither".into(), |input| format!("{input} features"))
        ))),
    }
}

/// Takes the tensors of each layer from the state dict, which has no others.
fn take_layers(
    dict: &mut StateDict,
    layers: &[Layer],
    chain: &[Step],
    options: &OpenOptions,
) -> Result<Vec<ModelLayer>> {
    // The prefix of an LSTM may be the start of other layers' prefixes, so that the longest are taken first.
    let mut order: Vec<usize> = (0..chain.len()).collect();
    order.sort_by_key(|&k| std::cmp::Reverse(chain[k].layer().map(|layer| layers[layer].path.len())));
    let mut taken: BTreeMap<usize, ModelLayer> = BTreeMap::new();
    for k in order {
        if let Step::Layer(link, _) = &chain[k] {
            taken.insert(k, take_layer(dict, &layers[link.layer], link.is_embedding, options)?);
        }
    }
    let mut model = Vec::new();
    for (k, step) in chain.iter().enumerate() {
        match step {
            Step::Layer(_, activation) => {
                model.extend(taken.remove(&k));
                model.extend(activation.map(ModelLayer::Activation));
            }
            Step::Other(layer) => model.push(layer.clone()),
        }
    }
    Ok(model)
}

fn take_layer(dict: &mut StateDict, layer: &Layer, is_embedding: bool, options: &OpenOptions) -> Result<ModelLayer> {
    let (name, prefix) = (layer.name.clone(), layer.prefix());
    if layer.is_lstm() {
        let weights = take_lstm(dict, &prefix, options)?.into();
        return Ok(ModelLayer::Lstm { name, weights, initial_state: None });
    }
    let shape_error = |array: &ArrayD<f32>| Error::shape(format!("layer `{name}`"), "a matrix", format!("{array:?}"));
    let weight = dict.take_any(&format!("{prefix}weight"))?;
    let weight: Array2<f32> = match weight.ndim() {
        2 => weight.into_dimensionality::<Ix2>().map_err(|e| file_error(e.to_string()))?,
        _ => return Err(shape_error(&weight)),
    };
    if is_embedding {
        return Ok(ModelLayer::Embedding { name, weight });
    }
    let bias_name = format!("{prefix}bias");
    let bias: Option<Array1<f32>> = match dict.shape(&bias_name) {
        Some(_) => {
            let bias = dict.take(&bias_name, &[weight.nrows()])?;
            Some(bias.into_dimensionality::<Ix1>().map_err(|e| file_error(e.to_string()))?)
        }
        None => None,
    };
    Ok(ModelLayer::Linear { name, weight, bias })
}

/// Takes an LSTM, with the options of the metadata or of the user.
fn take_lstm(dict: &mut StateDict, prefix: &str, options: &OpenOptions) -> Result<Weights> {
    let checkpoint_config = dict.metadata().get(CHECKPOINT_CONFIG_KEY).map(|text| text.parse::<LstmConfig>());
    let stored = match dict.lstm_config(prefix)? {
        Some(config) => Some(config),
        None => checkpoint_config.transpose()?,
    };
    if let Some(config) = &stored
        && (options.clip.is_some() || options.coupled || options.cell.is_some_and(|cell| cell != config.cell))
    {
        return Err(file_error(format!(
            "its metadata contains the configuration ({config}); omit --cell, --clip and --coupled"
        )));
    }
    let weights = match stored.as_ref().map(|config| config.cell).or(options.cell) {
        Some(cell) => dict.take_lstm_as(prefix, cell),
        None => dict.take_lstm(prefix),
    }?;
    let config = stored.unwrap_or_else(|| {
        let mut config = weights.config().clone();
        (config.clip, config.coupled) = (options.clip, options.coupled);
        config
    });
    weights.with_config(config)
}

#[cfg(all(feature = "audio", feature = "pytorch"))]
#[cfg(test)]
mod tests {
    use lstm_core::{Param, StateDict, weights::state_dict::Dtype};

    use crate::{
        Format, OpenOptions,
        test_files::{check, data},
    };

    /// A state dict of F32 tensors with these names, shapes and values, the same for all elements.
    fn state_dict(tensors: &[(&str, &[usize], f32)]) -> StateDict {
        let mut dict = StateDict::default();
        for (name, shape, value) in tensors {
            let bytes = value.to_le_bytes().repeat(shape.iter().product());
            dict.insert((*name).to_owned(), Dtype::F32, shape, &bytes).unwrap();
        }
        dict
    }

    #[test]
    fn values_beside_the_parameters_are_skipped() {
        let read = |dict| super::read(dict, Format::PyTorch, "test", &OpenOptions::default());
        let averaged =
            || state_dict(&[("module.rec.weight_ih_l0", &[8, 3], 0.5), ("module.rec.weight_hh_l0", &[8, 2], 0.5)]);
        for (name, dtype, shape, len) in [
            ("n_averaged", Dtype::I64, &[][..], 8),
            ("module._extra_state", Dtype::U8, &[5], 5),
            ("module.rec._extra_state", Dtype::F32, &[0], 0),
        ] {
            let mut dict = averaged();
            dict.insert(name.to_owned(), dtype, shape, &vec![1; len]).unwrap();
            assert_eq!(read(dict).unwrap().weights, read(averaged()).unwrap().weights, "{name}");
        }
        // These could be parameters.
        for (name, shape) in [("n_averaged", &[1][..]), ("module._extra_state", &[2])] {
            let mut dict = averaged();
            dict.insert(name.to_owned(), Dtype::F32, shape, &vec![0; 4 * shape[0]]).unwrap();
            assert!(read(dict).unwrap_err().to_string().contains(&format!("`{name}`")));
        }
    }

    #[test]
    fn weights_that_fastai_drops_are_restored() {
        let read = |raw: &str, shape: &[usize]| {
            let (input, recurrent) = ("rnns.0.module.weight_ih_l0", "rnns.0.module.weight_hh_l0");
            let dict = state_dict(&[(input, &[8, 3], 0.5), (recurrent, &[8, 2], 0.0), (raw, shape, 0.25)]);
            super::read(dict, Format::PyTorch, "test", &OpenOptions::default())
        };
        let weights = read("rnns.0.weight_hh_l0_raw", &[8, 2]).unwrap().weights;
        let lstm = weights.lstms().next().unwrap();
        assert!(lstm.layers()[0].get(Param::WeightHh).unwrap().iter().all(|&v| v == 0.25));
        for (raw, shape) in [("rnns.0.weight_hh_l0_raw", [8, 3]), ("rnns.1.weight_hh_l0_raw", [8, 2])] {
            assert!(read(raw, &shape).unwrap_err().to_string().contains(raw));
        }
    }

    #[test]
    fn models_return_what_pytorch_returns() {
        // `evaluate` has no projections, which torch-lightning.pt has.
        for name in ["plain", "legacy", "checkpoint", "half", "embedding"] {
            let name = format!("models/torch-{name}");
            let expected = data(&format!("{name}.expected.safetensors"));
            check(&data(&format!("{name}.pt")), &expected, Format::PyTorch);
        }
        for name in ["cell", "cells"] {
            let name = format!("models/{name}");
            let expected = data(&format!("{name}.expected.safetensors"));
            check(&data(&format!("{name}.safetensors")), &expected, Format::Safetensors);
        }
    }
}
