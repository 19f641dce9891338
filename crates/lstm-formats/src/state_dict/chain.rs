//! Orders the layers of a state dict to a chain, where names and sizes leave one choice.

use std::collections::BTreeSet;

use super::layers::{Layer, LayerKind, list};

/// A layer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Link {
    /// Index of the layer.
    pub(super) layer: usize,
    /// Whether a matrix is an embedding.
    pub(super) is_embedding: bool,
}

/// Words in the names of embeddings.
const EMBEDDING_WORDS: [&str; 4] = ["emb", "wte", "vocab", "lookup"];

/// Words in the names of linear layers before an LSTM.
const INPUT_WORDS: [&str; 6] = ["input", "in_proj", "proj_in", "fc_in", "pre", "enc"];

/// Words in the names of linear layers after an LSTM.
const OUTPUT_WORDS: [&str; 8] = ["out", "head", "classif", "decoder", "final", "last", "logit", "predict"];

/// Words in the names of linear layers beside an LSTM.
const SIDE_WORDS: [&str; 9] = ["gate", "skip", "resid", "shortcut", "h0_", "init", "query", "key", "att"];

/// Maximum number of layers for which an order is suggested.
const MAX_LAYERS: usize = 32;

/// Maximum number of steps of the search for an order of the layers.
const MAX_STEPS: usize = 20_000;

/// The chain of the layers: an optional embedding, LSTMs, and at most one linear layer. The layers are sorted by name.
///
/// # Errors
/// What is not supported or not determined, and what the user can write.
pub(super) fn infer(layers: &[Layer]) -> Result<Vec<Link>, String> {
    if layers.is_empty() {
        return Err("no tensors in the file".into());
    }
    let lstms: Vec<usize> = (0..layers.len()).filter(|&k| layers[k].is_lstm()).collect();
    let others = layers.iter().filter_map(|layer| match &layer.kind {
        LayerKind::Other(what) => Some(what.clone()),
        _ => None,
    });
    let others: Vec<String> = others.collect();
    if lstms.is_empty() && !others.is_empty() {
        return Err(format!("no LSTM in the file: {}", list(others.into_iter())));
    }
    if lstms.is_empty() {
        return Err(format!("no LSTM in the file, only {}", describe(layers)));
    }
    if !others.is_empty() {
        let others = list(others.into_iter());
        return Err(format!("{others}, which is not supported; {}", model_advice(layers)));
    }

    let fails = || Err(ambiguous(layers));
    let Some(order) = order_lstms(layers, &lstms) else { return fails() };
    let (first, last) = (&layers[order[0]].kind, &layers[order[order.len() - 1]].kind);
    let (&LayerKind::Lstm { input, .. }, &LayerKind::Lstm { output, .. }) = (first, last) else { return fails() };
    let (mut embedding, mut head) = (None, None);
    for (k, layer) in layers.iter().enumerate().filter(|(_, layer)| !layer.is_lstm()) {
        let has_word = |words: &[&str]| {
            let name = layer.path.to_ascii_lowercase();
            words.iter().any(|word| name.contains(word))
        };
        let (slot, is_embedding) = match layer.kind {
            // An embedding of positions would be added to another one.
            LayerKind::Matrix { cols, .. } if cols == input && has_word(&EMBEDDING_WORDS) && !has_word(&["pos"]) => {
                (&mut embedding, true)
            }
            LayerKind::Matrix { rows, cols } if cols == output && cols != input && rows != input => (&mut head, false),
            LayerKind::Linear { input: from, output: to } if from == output => {
                // A layer that fits on both sides of the LSTM, or beside it.
                let fits_before = to == input && (has_word(&INPUT_WORDS) || (from == to && !has_word(&OUTPUT_WORDS)));
                if fits_before || has_word(&SIDE_WORDS) {
                    return fails();
                }
                (&mut head, false)
            }
            _ => return fails(),
        };
        if slot.replace(Link { layer: k, is_embedding }).is_some() {
            return fails();
        }
    }
    let lstms = order.into_iter().map(|layer| Link { layer, is_embedding: false });
    Ok(embedding.into_iter().chain(lstms).chain(head).collect())
}

/// The order of several LSTMs: that of the numbers in their names, if the sizes fit. `None` if names and sizes leave
/// several choices.
fn order_lstms(layers: &[Layer], lstms: &[usize]) -> Option<Vec<usize>> {
    if lstms.len() == 1 {
        return Some(lstms.to_vec());
    }
    let stem = |k: usize| layers[k].path.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = |k: usize| layers[k].path[stem(k).len()..].parse::<usize>().ok();
    let sizes = |k: usize| match layers[k].kind {
        LayerKind::Lstm { input, output } => (input, output),
        _ => (0, 0),
    };
    let (first_stem, first_number) = (stem(lstms[0]), number(lstms[0])?);
    let are_numbered = lstms.iter().zip(first_number..).all(|(&k, n)| stem(k) == first_stem && number(k) == Some(n));
    let do_fit = lstms.windows(2).all(|pair| sizes(pair[0]).1 == sizes(pair[1]).0);
    // A list `cells.0`, `cells.1` of `LSTMCell` is a stack. LSTMs may be side by side, unless their sizes rule it out.
    let is_cell = |k: usize| layers[k].tensors.iter().any(|name| name.ends_with("weight_ih"));
    let is_list = (first_stem.is_empty() || first_stem.ends_with('.')) && lstms.iter().all(|&k| is_cell(k));
    let same_sizes = lstms.iter().all(|&k| sizes(k) == sizes(lstms[0]));
    (are_numbered && do_fit && (is_list || !same_sizes)).then(|| lstms.to_vec())
}

/// The message for layers whose order or activations are not determined.
fn ambiguous(layers: &[Layer]) -> String {
    let what = format!("a state_dict does not say how its layers are connected: {}", describe(layers));
    match search(layers) {
        Some(chain) => {
            let names = chain.iter().map(|link| layers[link.layer].name.as_str()).collect::<Vec<_>>().join(", ");
            let linear = |layer: &&Layer| matches!(layer.kind, LayerKind::Linear { .. });
            let example = chain.iter().map(|link| &layers[link.layer]).find(linear);
            let activations = example.map(|layer| format!(", and activations as in `{}:relu`", layer.name));
            format!(
                "{what}. State them in the order of the model's code: --layers \"{names}\" is a guess by their sizes; write `last` after the LSTM if the model \
                 takes its last step{}. Or {}",
                activations.unwrap_or_default(),
                name_advice(layers)
            )
        }
        None => format!("{what}; their sizes do not fit one after the other in any order; {}", name_advice(layers)),
    }
}

/// An order in which the sizes of all layers fit, for a suggestion. Prefers LSTMs first, then the order of names.
fn search(layers: &[Layer]) -> Option<Vec<Link>> {
    fn extend(layers: &[Layer], chain: &mut Vec<Link>, size: Option<usize>, steps: &mut usize) -> bool {
        if chain.len() == layers.len() {
            return true;
        }
        for k in 0..layers.len() {
            *steps += 1;
            if *steps > MAX_STEPS {
                return false;
            }
            if chain.iter().any(|link| link.layer == k) {
                continue;
            }
            let choices = match layers[k].kind {
                LayerKind::Lstm { input, output } | LayerKind::Linear { input, output } => {
                    vec![(false, input, output)]
                }
                LayerKind::Matrix { rows, cols } if chain.is_empty() => vec![(true, cols, cols), (false, cols, rows)],
                LayerKind::Matrix { rows, cols } => vec![(false, cols, rows)],
                LayerKind::Other(_) => Vec::new(),
            };
            for (is_embedding, input, output) in choices {
                if size.is_none_or(|size| size == input) {
                    chain.push(Link { layer: k, is_embedding });
                    if extend(layers, chain, Some(output), steps) {
                        return true;
                    }
                    chain.pop();
                }
            }
        }
        false
    }
    if layers.len() > MAX_LAYERS {
        return None;
    }
    // Embeddings and LSTMs are more likely the first layer than a linear layer.
    let mut order: Vec<usize> = (0..layers.len()).collect();
    let rank = |k: &usize| match layers[*k].kind {
        LayerKind::Matrix { .. } => 0,
        LayerKind::Lstm { .. } => 1,
        _ => 2,
    };
    order.sort_by_key(rank);
    let sorted: Vec<Layer> = order.iter().map(|&k| layers[k].clone()).collect();
    let mut chain = Vec::new();
    let found = extend(&sorted, &mut chain, None, &mut 0);
    let chain = chain.into_iter().map(|link| Link { layer: order[link.layer], ..link });
    found.then(|| chain.collect())
}

/// The layers with their sizes, for error messages.
pub(super) fn describe(layers: &[Layer]) -> String {
    list(layers.iter().map(|layer| format!("`{}` ({})", layer.name, layer.kind)))
}

/// The path of a layer for error messages.
pub(super) fn display_path(layer: &Layer) -> &str {
    if layer.path.is_empty() { &layer.name } else { &layer.path }
}

/// How to open the part of a file that is supported: a model beside other tensors, or one LSTM alone.
fn model_advice(layers: &[Layer]) -> String {
    let is_other = |layer: &&Layer| matches!(layer.kind, LayerKind::Other(_));
    let parents = layers.iter().filter(|layer| !is_other(layer)).map(|layer| layer.path.rsplit_once('.'));
    let parents: Option<BTreeSet<&str>> = parents.map(|split| split.map(|(parent, _)| parent)).collect();
    // The parent of one layer is the parent of all, if there is one.
    let parent = parents.and_then(|parents| {
        let parent = parents.into_iter().min_by_key(|parent| parent.len())?;
        let is_inside = |layer: &Layer| layer.path.strip_prefix(parent).is_some_and(|rest| rest.starts_with('.'));
        layers.iter().all(|layer| is_inside(layer) != is_other(&layer)).then_some(parent)
    });
    match parent {
        Some(parent) => format!("--name {parent} opens the model `{parent}` without them; {}", name_advice(layers)),
        None => name_advice(layers),
    }
}

/// How to open one LSTM alone.
pub(super) fn name_advice(layers: &[Layer]) -> String {
    let names = layers.iter().filter(|layer| layer.is_lstm()).map(|layer| format!("--name {}", display_path(layer)));
    match names.clone().count() {
        0 => "there is no LSTM to use alone".into(),
        1 => format!("{} opens the LSTM alone", list(names)),
        _ => format!("{} opens one LSTM alone", list(names).replace(", ", " or ")),
    }
}
