//! Bit-exact comparison of results with a readable report, and the text of snapshots.

use std::fmt::Write;

use anyhow::{Result, ensure};
use lstm_core::{
    Gradients, HostState,
    arithmetic::Digest,
    ndarray::{Array3, ArrayView, ArrayView1, Dimension, IxDyn},
    weights::names,
};

/// Outputs of a model.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// Output of the last layer, shape `(batch, steps, output)`.
    pub y: Array3<f32>,
    /// Final state of all layers.
    pub state: HostState,
}

impl Outputs {
    /// The three arrays with their names in golden files and snapshots.
    pub fn arrays(&self) -> [(&'static str, &Array3<f32>); 3] {
        [("y", &self.y), ("h_n", &self.state.h), ("c_n", &self.state.c)]
    }
}

impl From<(Array3<f32>, HostState)> for Outputs {
    fn from((y, state): (Array3<f32>, HostState)) -> Self {
        Outputs { y, state }
    }
}

/// Whether two values are bit-identical, or both NaN. The payload of a NaN is unspecified.
pub fn is_identical(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Checks that two arrays have the same shape and are bit-identical.
///
/// # Errors
/// The arrays differ. The message contains the number of different elements and the first of them.
pub fn check_same<D: Dimension>(what: &str, want: ArrayView<'_, f32, D>, got: ArrayView<'_, f32, D>) -> Result<()> {
    ensure!(want.shape() == got.shape(), "{what}: expected shape {:?}, got {:?}", want.shape(), got.shape());
    let different_elements =
        || want.indexed_iter().zip(&got).map(|((at, &w), &g)| (at, w, g)).filter(|&(_, w, g)| !is_identical(w, g));
    let Some((at, w, g)) = different_elements().next() else { return Ok(()) };
    let different_bits: u32 = different_elements().map(|(_, w, g)| (w.to_bits() ^ g.to_bits()).count_ones()).sum();
    anyhow::bail!(
        "{what}: {} of {} elements differ, in {different_bits} bits; first at {at:?}: expected {:08x} ({w:e}), got {:08x} ({g:e})",
        different_elements().count(),
        want.len(),
        w.to_bits(),
        g.to_bits(),
    )
}

/// Checks that two slices are bit-identical, as [`check_same`] does for arrays.
///
/// # Errors
/// The slices differ.
pub fn check_same_slices(what: &str, want: &[f32], got: &[f32]) -> Result<()> {
    check_same(what, ArrayView1::from(want), ArrayView1::from(got))
}

/// Checks that outputs and states are bit-identical, as [`check_same`] does for arrays.
///
/// # Errors
/// Some array differs.
pub fn check_same_outputs(what: &str, want: &Outputs, got: &Outputs) -> Result<()> {
    for ((name, want), (_, got)) in want.arrays().into_iter().zip(got.arrays()) {
        check_same(&format!("{what}: {name}"), want.view(), got.view())?;
    }
    Ok(())
}

/// Results of the forward and the backward pass of a model.
#[derive(Clone, Debug)]
pub struct PassResults {
    /// Results of the forward pass.
    pub outputs: Outputs,
    /// Results of the backward pass; `None` for quantized weights, which have none.
    pub gradients: Option<Gradients>,
}

impl PassResults {
    /// All arrays with their names in golden files and snapshots.
    pub fn arrays(&self) -> Vec<(String, ArrayView<'_, f32, IxDyn>)> {
        let outputs = self.outputs.arrays().map(|(name, array)| (name.to_owned(), array.view().into_dyn()));
        outputs.into_iter().chain(self.gradients()).collect()
    }

    /// The gradients with their names in golden files and snapshots. Weight
    /// gradients have PyTorch's names and layout.
    fn gradients(&self) -> Vec<(String, ArrayView<'_, f32, IxDyn>)> {
        let Some(Gradients { x, state, weights, .. }) = &self.gradients else { return Vec::new() };
        let mut named_gradients =
            vec![("grad.h0".to_owned(), state.h.view().into_dyn()), ("grad.c0".to_owned(), state.c.view().into_dyn())];
        named_gradients.extend(x.iter().map(|x| ("grad.x".to_owned(), x.view().into_dyn())));
        let directions = weights.config().num_directions();
        for (k, layer) in weights.layers().iter().enumerate() {
            let spec = layer.spec();
            let name = |param| names::pytorch_name(k / directions, spec.reverse, spec.cell, param);
            named_gradients.extend(layer.iter().map(|(param, value)| (format!("grad.{}", name(param)), value.view())));
        }
        named_gradients
    }
}

/// Checks that outputs, states and gradients are bit-identical, as [`check_same`] does for arrays.
///
/// # Errors
/// Some array differs.
pub fn check_same_passes(what: &str, want: &PassResults, got: &PassResults) -> Result<()> {
    check_same_outputs(what, &want.outputs, &got.outputs)?;
    let (want, got) = (want.gradients(), got.gradients());
    ensure!(want.len() == got.len(), "{what}: expected {} gradients, got {}", want.len(), got.len());
    for ((name, want), (_, got)) in want.into_iter().zip(got) {
        check_same(&format!("{what}: {name}"), want, got)?;
    }
    Ok(())
}

/// Number of values of each output array that a snapshot lists.
const VALUES_PER_OUTPUT: usize = 32;

/// Number of values of each gradient array that a snapshot lists.
const VALUES_PER_GRADIENT: usize = 4;

/// Returns the text of a snapshot: for each array the shape, the digest of all values, and the first values in
/// hexadecimal and decimal.
pub fn snapshot_text(passes: &PassResults) -> String {
    let mut text = String::new();
    let outputs =
        passes.outputs.arrays().map(|(name, array)| (name.to_owned(), array.view().into_dyn(), VALUES_PER_OUTPUT));
    let gradients = passes.gradients().into_iter().map(|(name, array)| (name, array, VALUES_PER_GRADIENT));
    for (name, array, count) in outputs.into_iter().chain(gradients) {
        write_array(&mut text, &name, array, count);
    }
    text
}

/// Writes the shape of an array, the digest of all values, and the first `count` values in hexadecimal and decimal.
pub fn write_array(text: &mut String, name: &str, array: ArrayView<'_, f32, IxDyn>, count: usize) {
    // Writing to a string can't fail.
    let _ = writeln!(text, "{name} {:?} digest {}", array.shape(), Digest::of(&array));
    let values: Vec<String> =
        array.iter().take(count).map(|v| format!("{:08x} {:>15}", v.to_bits(), format!("{v:e}"))).collect();
    for line in values.chunks(4) {
        let _ = writeln!(text, "  {}", line.join("   "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_shows_the_first_difference() {
        let report = check_same_slices("y", &[1.0, 2.0, f32::NAN], &[1.0, f32::from_bits(0x4000_0001), -f32::NAN]);
        let report = report.expect_err("one bit differs").to_string();
        assert!(
            report
                .starts_with("y: 1 of 3 elements differ, in 1 bits; first at 1: expected 40000000 (2e0), got 40000001")
        );
        assert!(check_same_slices("y", &[0.0], &[-0.0]).is_err());
        assert!(check_same_slices("y", &[0.0], &[0.0, 0.0]).is_err());
    }
}
