//! Weight norm: folds the two tensors of a normalized weight into the weight.

use lstm_core::{Error, Result, StateDict, ndarray::ArrayD, weights::state_dict::Dtype};

/// Replaces the tensors of weight norm by the weight `g * v / |v|`, where `|v|` is the norm of each row of `v`: those of
/// `torch.nn.utils.weight_norm` (`weight_g` and `weight_v`) and of `torch.nn.utils.parametrizations.weight_norm`
/// (`parametrizations.weight.original0` and `original1`), for any name of the weight. The sums are computed in f64.
///
/// # Errors
/// [`Error::Format`], which names the tensor, for a norm along another dimension, a row of zeros, and other
/// parametrizations, such as spectral norm; the errors of [`StateDict::take_any`].
pub(super) fn fold_weight_norm(dict: &mut StateDict) -> Result<()> {
    let names: Vec<String> = dict.names().map(str::to_owned).collect();
    for name in &names {
        let Some((weight, direction)) = weight_and_direction(name) else { continue };
        if dict.shape(&direction).is_none() {
            continue;
        }
        let (g, v) = (dict.take_any(name)?, dict.take_any(&direction)?);
        let folded = fold(name, &g, &direction, &v)?;
        let bytes: Vec<u8> = folded.iter().flat_map(|value| value.to_le_bytes()).collect();
        dict.insert(weight, Dtype::F32, v.shape(), &bytes)?;
    }
    match dict.names().find(|name| name.contains(".parametrizations.") || name.starts_with("parametrizations.")) {
        None => Ok(()),
        Some(name) => Err(Error::format(
            format!("tensor `{name}`"),
            "a parametrization other than weight norm; call `torch.nn.utils.parametrize.remove_parametrizations` on the \
             module and save again",
        )),
    }
}

/// For the name of a tensor of norms `g`: the name of the weight and that of the directions `v`.
fn weight_and_direction(name: &str) -> Option<(String, String)> {
    if let Some(weight) = name.strip_suffix("_g") {
        return weight.contains("weight").then(|| (weight.to_owned(), format!("{weight}_v")));
    }
    let stem = name.strip_suffix(".original0")?;
    let (module, weight) = stem.rsplit_once('.')?;
    let module = module.strip_suffix("parametrizations")?;
    Some((format!("{module}{weight}"), format!("{stem}.original1")))
}

fn fold(g_name: &str, g: &ArrayD<f32>, v_name: &str, v: &ArrayD<f32>) -> Result<Vec<f32>> {
    let rows = v.shape().first().copied().unwrap_or(0);
    let one_norm_per_row = g.shape().first() == Some(&rows) && g.len() == rows && g.ndim() == v.ndim();
    if !one_norm_per_row || rows == 0 {
        let remove = match g_name.ends_with("_g") {
            true => "remove_weight_norm",
            false => "parametrize.remove_parametrizations",
        };
        let reason = format!(
            "expected weight norm with one norm per row of `{v_name}` {:?} (dim=0), got the shape {:?}; call \
             `torch.nn.utils.{remove}` on the module and save again",
            v.shape(),
            g.shape()
        );
        return Err(Error::format(format!("tensor `{g_name}`"), reason));
    }
    let v_values: Vec<f32> = v.iter().copied().collect();
    let mut folded = Vec::with_capacity(v_values.len());
    for (row, &g) in v_values.chunks(v_values.len().max(rows) / rows).zip(g) {
        let norm = row.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        if norm == 0.0 {
            return Err(Error::format(format!("tensor `{v_name}`"), "weight norm of a row of zeros"));
        }
        folded.extend(row.iter().map(|&v| (f64::from(g) * f64::from(v) / norm) as f32));
    }
    Ok(folded)
}

/// Puts the weights of fastai's `WeightDropout` in place: `rnn.weight_hh_l0_raw` is what `rnn.module.weight_hh_l0` is in
/// inference. The latter may lack the elements that were dropped in the last training step.
pub(super) fn restore_dropped_weights(dict: &mut StateDict) -> Result<()> {
    let names: Vec<String> = dict.names().map(str::to_owned).collect();
    for raw in &names {
        let (outer, leaf) = raw.rsplit_once('.').map_or(("", &**raw), |(outer, leaf)| (&raw[..outer.len() + 1], leaf));
        let Some(leaf) = leaf.strip_suffix("_raw").filter(|leaf| leaf.starts_with("weight_hh_l")) else { continue };
        let name = format!("{outer}module.{leaf}");
        if let (Some(dtype), Some(shape), Some(bytes)) = (dict.dtype(raw), dict.shape(raw), dict.bytes(raw))
            && dict.shape(&name) == Some(shape)
        {
            let (shape, bytes) = (shape.to_vec(), bytes.to_vec());
            dict.retain(|other| other != name && other != raw);
            dict.insert(name, dtype, &shape, &bytes)?;
        }
    }
    Ok(())
}
