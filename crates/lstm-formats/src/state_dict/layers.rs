//! The layers of a state dict: groups of tensors whose names differ after the last dot only.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
};

use lstm_core::{StateDict, weights::state_dict::Dtype};

/// A layer of a state dict.
#[derive(Clone, Debug)]
pub(super) struct Layer {
    /// What precedes the last dot in the names of its tensors; empty for tensors without a dot.
    pub(super) path: String,
    /// The path without wrappers, such as `module.`; a name for the layer of the model.
    pub(super) name: String,
    /// What the layer is.
    pub(super) kind: LayerKind,
    /// Names of its tensors.
    pub(super) tensors: Vec<String>,
    /// The paths of layers with the same tensors: the same module under other names.
    pub(super) other_paths: Vec<String>,
}

/// What a layer is, as its tensors tell.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum LayerKind {
    /// An LSTM, or an `LSTMCell`.
    Lstm { input: usize, output: usize },
    /// A linear layer with a bias.
    Linear { input: usize, output: usize },
    /// A weight without a bias: an embedding, or a linear layer.
    Matrix { rows: usize, cols: usize },
    /// A layer that is not supported: a clause for error messages that names it.
    Other(String),
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerKind::Lstm { input, output } => write!(f, "LSTM, {input} -> {output}"),
            LayerKind::Linear { input, output } => write!(f, "linear, {input} -> {output}"),
            LayerKind::Matrix { rows, cols } => write!(f, "embedding {rows} x {cols} or linear {cols} -> {rows}"),
            LayerKind::Other(what) => f.write_str(what),
        }
    }
}

/// Components of names that wrap a model or a module. They say nothing about the layers.
const WRAPPERS: [&str; 14] = [
    "module",
    "_orig_mod",
    "model",
    "net",
    "network",
    "state_dict",
    "model_state_dict",
    "model_state",
    "weights",
    "params",
    "generator",
    "ema",
    "ema_model",
    "model_ema",
];

impl Layer {
    /// Whether this is an LSTM.
    pub(super) fn is_lstm(&self) -> bool {
        matches!(self.kind, LayerKind::Lstm { .. })
    }

    /// The prefix of the names of its tensors, with the last dot.
    pub(super) fn prefix(&self) -> String {
        if self.path.is_empty() { String::new() } else { format!("{}.", self.path) }
    }
}

/// The layer that a user means by `name`: its name, its path, or the end of its path if no other path ends so.
pub(super) fn find_named(layers: &[Layer], name: &str) -> Option<usize> {
    let paths =
        |layer: &Layer| -> Vec<String> { [&layer.path].into_iter().chain(&layer.other_paths).cloned().collect() };
    let exact = |layer: &Layer| layer.name == name || paths(layer).iter().any(|path| path == name);
    let ends = |layer: &Layer| {
        paths(layer).iter().any(|path| path.strip_suffix(name).is_some_and(|start| start.ends_with('.')))
    };
    let mut by_end = (0..layers.len()).filter(|&k| ends(&layers[k]));
    layers.iter().position(exact).or_else(|| by_end.next().filter(|_| by_end.next().is_none()))
}

/// The layers of a state dict, sorted by name, numbers in names by their value. Layers with the same tensors are one.
pub(super) fn find_layers(dict: &StateDict) -> Vec<Layer> {
    let lstm_prefixes: BTreeSet<String> = dict.lstm_prefixes().into_iter().collect();
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for name in dict.names() {
        groups.entry(name.rsplit_once('.').map_or("", |(path, _)| path)).or_default().push(name);
    }
    let mut layers: Vec<Layer> = Vec::new();
    for (path, tensors) in groups {
        let tensors: Vec<String> = tensors.into_iter().map(str::to_owned).collect();
        let (name, other_paths) = (String::new(), Vec::new());
        let mut layer =
            Layer { path: path.to_owned(), name, kind: LayerKind::Other(String::new()), tensors, other_paths };
        layer.kind = kind(dict, &layer, lstm_prefixes.contains(&layer.prefix()));
        layers.push(layer);
    }
    layers.sort_by(|a, b| compare_names(&a.path, &b.path));
    let layers = merge_tied(dict, layers);
    name_layers(layers)
}

/// Joins layers that are the same module under two names, of which one ends with the other, such as `rnn` and
/// `wrapped.rnn`. A module that is used twice, such as `cells.0` and `cells.1`, stays two layers. A single matrix stays,
/// because an embedding and the linear layer at the end may share it.
fn merge_tied(dict: &StateDict, layers: Vec<Layer>) -> Vec<Layer> {
    let is_same = |a: &Layer, b: &Layer| {
        let (a_prefix, b_prefix) = (a.prefix(), b.prefix());
        let same_tensor = |a_name: &str, b_name: &str| {
            a_name.strip_prefix(&a_prefix) == b_name.strip_prefix(&b_prefix)
                && dict.shape(a_name) == dict.shape(b_name)
                && dict.dtype(a_name) == dict.dtype(b_name)
                && dict.bytes(a_name) == dict.bytes(b_name)
        };
        // Two layers of zeros, or of another constant, are not the same layer.
        let is_constant = |name: &str| {
            let bytes = dict.bytes(name).unwrap_or_default();
            bytes.windows(9).all(|window| window[0] == window[8])
        };
        let ends_with = |a: &str, b: &str| b.is_empty() || a.strip_suffix(b).is_some_and(|start| start.ends_with('.'));
        (ends_with(&a.path, &b.path) || ends_with(&b.path, &a.path))
            && a.kind == b.kind
            && a.tensors.len() == b.tensors.len()
            && a.tensors.iter().zip(&b.tensors).all(|(a, b)| same_tensor(a, b))
            && !a.tensors.iter().all(|name| is_constant(name))
    };
    let hash = |layer: &Layer| {
        let mut hasher = DefaultHasher::new();
        layer.tensors.iter().for_each(|name| dict.bytes(name).hash(&mut hasher));
        hasher.finish()
    };
    let (mut merged, mut by_hash): (Vec<Layer>, HashMap<u64, usize>) = Default::default();
    for layer in layers {
        if matches!(layer.kind, LayerKind::Lstm { .. } | LayerKind::Linear { .. }) {
            let first = *by_hash.entry(hash(&layer)).or_insert(merged.len());
            if let Some(other) = merged.get_mut(first).filter(|other| is_same(other, &layer)) {
                other.other_paths.push(layer.path);
                continue;
            }
        }
        merged.push(layer);
    }
    merged
}

/// Gives each layer its path without wrappers as a name, or the whole path where these names would not tell the layers
/// apart.
fn name_layers(mut layers: Vec<Layer>) -> Vec<Layer> {
    let mut paths: Vec<Vec<&str>> = layers
        .iter()
        .map(|layer| layer.path.split('.').filter(|part| !["_orig_mod", "module"].contains(part)).collect())
        .collect();
    while let Some(first) = paths.first().and_then(|path| path.first()).copied()
        && WRAPPERS.contains(&first)
        && paths.iter().all(|path| path.first() == Some(&first))
    {
        for path in &mut paths {
            path.remove(0);
        }
    }
    let names: Vec<String> = paths.iter().map(|path| path.join(".")).collect();
    let whole: Vec<String> = layers.iter().map(|layer| layer.path.clone()).collect();
    let names = if names.iter().collect::<BTreeSet<_>>().len() == names.len() { names } else { whole };
    let sorted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for (layer, name) in layers.iter_mut().zip(&names) {
        // The name must not be the start of another one, up to a dot.
        let child = format!("{name}.");
        let is_parent = sorted.range(child.as_str()..).next().is_some_and(|next| next.starts_with(&child));
        let own = if layer.is_lstm() { "lstm" } else { "layer" };
        layer.name = match (name.is_empty(), is_parent) {
            (true, _) => own.to_owned(),
            (false, true) => format!("{name}.{own}"),
            (false, false) => name.clone(),
        };
    }
    layers
}

/// What a group of tensors is. `is_recurrent` says whether it has the input weights of a recurrent layer.
fn kind(dict: &StateDict, layer: &Layer, is_recurrent: bool) -> LayerKind {
    let prefix = layer.prefix();
    let leaves: Vec<&str> = layer.tensors.iter().filter_map(|name| name.strip_prefix(&prefix)).collect();
    let shape = |leaf: &str| dict.shape(&format!("{prefix}{leaf}"));
    let has = |leaf: &str| leaves.contains(&leaf);
    if is_recurrent {
        return recurrent_kind(&layer.path, &leaves, shape);
    }
    let other = |what: &str| LayerKind::Other(format!("`{}` is {what}", layer.path));
    if has("running_mean") {
        return other("a batch normalization");
    }
    if has("in_proj_weight") {
        return other("an attention layer");
    }
    if has("weight_orig") {
        return match has("weight_mask") {
            true => other("a pruned layer; call `torch.nn.utils.prune.remove` on it and save again"),
            false => {
                other("a layer with spectral norm; call `torch.nn.utils.remove_spectral_norm` on it and save again")
            }
        };
    }
    let is_plain = leaves.iter().all(|leaf| ["weight", "bias"].contains(leaf));
    match (is_plain, shape("weight"), shape("bias")) {
        (true, Some(&[output, input]), Some(&[len])) if len == output => LayerKind::Linear { input, output },
        (true, Some(&[rows, cols]), None) => LayerKind::Matrix { rows, cols },
        (true, Some([_]), Some([_])) => other("a normalization layer, such as LayerNorm"),
        (true, Some(shape @ ([_, _, _] | [_, _, _, _] | [_, _, _, _, _])), _) => {
            other(&format!("a convolution {shape:?}"))
        }
        _ => {
            let describe = |name: &String| {
                let dtype = dict.dtype(name).filter(|dtype| *dtype != Dtype::F32);
                let dtype = dtype.map(|dtype| format!("{dtype} ")).unwrap_or_default();
                format!("`{name}` ({dtype}{:?})", dict.shape(name).unwrap_or_default())
            };
            let tensors = list(layer.tensors.iter().map(describe));
            LayerKind::Other(match layer.tensors.len() {
                1 => format!("{tensors} is a tensor of an unknown layer"),
                _ => format!("{tensors} are tensors of an unknown layer"),
            })
        }
    }
}

/// The kind of the recurrent layer to which a group of tensors with input weights belongs. `shape` returns the shape of a
/// tensor by the last part of its name.
fn recurrent_kind<'a>(path: &str, leaves: &[&str], shape: impl Fn(&str) -> Option<&'a [usize]>) -> LayerKind {
    let first = |names: &[&str]| {
        let found = names.iter().find_map(|name| shape(name));
        found.and_then(|shape| <[usize; 2]>::try_from(shape).ok())
    };
    let input = first(&["weight_ih_l0", "weight_ih_l0_reverse", "weight_ih"]);
    let recurrent = first(&["weight_hh_l0", "weight_hh_l0_reverse", "weight_hh"]);
    let projection = first(&["weight_hr_l0", "weight_hr_l0_reverse"]);
    if let (Some([rows, cols]), Some([_, hidden]), None) = (input, recurrent, projection) {
        let name = leaves.iter().find(|leaf| leaf.starts_with("weight_ih")).copied().unwrap_or_default();
        let has = |factor: usize| hidden.checked_mul(factor) == Some(rows);
        if has(3) || has(1) {
            let (what, factor) = if has(3) { ("a GRU", "3 x ") } else { ("a plain RNN", "") };
            return LayerKind::Other(format!(
                "`{path}` is {what} (`{name}` has {factor}{hidden} rows and {cols} columns), where an LSTM has 4 x {hidden} rows"
            ));
        }
    }
    let directions = if shape("weight_ih_l0").is_some() && shape("weight_ih_l0_reverse").is_some() { 2 } else { 1 };
    let output = projection.map(|[rows, _]| rows).or(input.map(|[rows, _]| rows / 4));
    // The names of the notebook: `W` is `[input, 4 * hidden]`, and `U_i` is `[input, hidden]`.
    let packed = first(&["W"]).map(|[rows, cols]| [cols / 4, rows]);
    let gates = first(&["U_i"]).map(|[rows, cols]| [cols, rows]);
    let [notebook_output, notebook_input] = packed.or(gates).unwrap_or_default();
    LayerKind::Lstm {
        input: input.map_or(notebook_input, |[_, cols]| cols),
        output: output.map_or(notebook_output, |output| output.saturating_mul(directions)),
    }
}

/// Orders names as people do: numbers by their value, so that `cells.10` follows `cells.9`.
pub(super) fn compare_names(a: &str, b: &str) -> Ordering {
    let key = |name: &str| -> Vec<(String, Option<u64>)> {
        let mut parts: Vec<(String, Option<u64>)> = vec![(String::new(), None)];
        for c in name.chars() {
            let part = parts.last_mut().expect("there is always a part");
            match (c.to_digit(10), &mut part.1) {
                (Some(digit), Some(number)) => {
                    *number = number.saturating_mul(10).saturating_add(digit.into());
                }
                (Some(digit), number) => *number = Some(digit.into()),
                (None, None) => part.0.push(c),
                (None, Some(_)) => parts.push((c.to_string(), None)),
            }
        }
        parts
    };
    key(a).cmp(&key(b)).then_with(|| a.cmp(b))
}

/// Maximum number of names in an error message.
const MAX_LISTED: usize = 10;

/// Some texts for an error message, and how many others there are.
pub(super) fn list(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    match texts.len().saturating_sub(MAX_LISTED) {
        0 => texts.join(", "),
        others => format!("{} and {others} others", texts[..MAX_LISTED].join(", ")),
    }
}
