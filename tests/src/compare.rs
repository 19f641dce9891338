//! Comparison bit by bit with a readable report, and how results look in a snapshot.

use std::fmt::Write;

use anyhow::{Result, ensure};
use lstm_core::{
    Gradients, HostState,
    arithmetic::Digest,
    ndarray::{Array3, ArrayView, ArrayView1, Dimension, IxDyn},
    weights::names,
};

/// What a model gives.
#[derive(Clone, Debug)]
pub struct Outputs {
    /// `(batch, steps, output)`
    pub y: Array3<f32>,
    /// The final state of all layers.
    pub state: HostState,
}

impl Outputs {
    /// The three arrays under the names that golden files and snapshots use.
    pub fn groups(&self) -> [(&'static str, &Array3<f32>); 3] {
        [("y", &self.y), ("h_n", &self.state.h), ("c_n", &self.state.c)]
    }
}

impl From<(Array3<f32>, HostState)> for Outputs {
    fn from((y, state): (Array3<f32>, HostState)) -> Self {
        Outputs { y, state }
    }
}

/// Whether two values count as the same: equal bits, or both NaN, whose payload is open.
pub fn is_same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

/// Fails unless both have the same shape and the same bits; says how much differs, where first, and how.
///
/// # Errors
/// The report.
pub fn same<D: Dimension>(what: &str, want: ArrayView<'_, f32, D>, got: ArrayView<'_, f32, D>) -> Result<()> {
    ensure!(want.shape() == got.shape(), "{what}: expected shape {:?}, got {:?}", want.shape(), got.shape());
    let pairs = || want.indexed_iter().zip(&got).map(|((at, &w), &g)| (at, w, g)).filter(|&(_, w, g)| !is_same(w, g));
    let Some((at, w, g)) = pairs().next() else { return Ok(()) };
    let bits: u32 = pairs().map(|(_, w, g)| (w.to_bits() ^ g.to_bits()).count_ones()).sum();
    anyhow::bail!(
        "{what}: {} of {} elements differ, in {bits} bits; first at {at:?}: expected {:08x} ({w:e}), got {:08x} ({g:e})",
        pairs().count(),
        want.len(),
        w.to_bits(),
        g.to_bits(),
    )
}

/// [`same`] for slices.
///
/// # Errors
/// The report.
pub fn same_slices(what: &str, want: &[f32], got: &[f32]) -> Result<()> {
    same(what, ArrayView1::from(want), ArrayView1::from(got))
}

/// [`same`] for outputs and states.
///
/// # Errors
/// The report.
pub fn same_outputs(what: &str, want: &Outputs, got: &Outputs) -> Result<()> {
    for ((name, want), (_, got)) in want.groups().into_iter().zip(got.groups()) {
        same(&format!("{what}: {name}"), want.view(), got.view())?;
    }
    Ok(())
}

/// A model's outputs and the gradients of all that they depend on.
#[derive(Clone, Debug)]
pub struct Passes {
    /// What the forward pass gives.
    pub outputs: Outputs,
    /// What the backward pass gives.
    pub gradients: Gradients,
}

impl Passes {
    /// All arrays under the names that golden files and snapshots use.
    pub fn arrays(&self) -> Vec<(String, ArrayView<'_, f32, IxDyn>)> {
        let outputs = self.outputs.groups().map(|(name, array)| (name.to_owned(), array.view().into_dyn()));
        outputs.into_iter().chain(self.gradients()).collect()
    }

    /// The gradients under the names that golden files and snapshots use, weights as in a file of PyTorch's.
    fn gradients(&self) -> Vec<(String, ArrayView<'_, f32, IxDyn>)> {
        let Gradients { x, state, weights, .. } = &self.gradients;
        let mut all =
            vec![("grad.h0".to_owned(), state.h.view().into_dyn()), ("grad.c0".to_owned(), state.c.view().into_dyn())];
        all.extend(x.iter().map(|x| ("grad.x".to_owned(), x.view().into_dyn())));
        let directions = weights.config().num_directions();
        for (k, layer) in weights.layers().iter().enumerate() {
            let spec = layer.spec();
            let name = |param| names::pytorch_name(k / directions, spec.reverse, spec.cell, param);
            all.extend(layer.iter().map(|(param, value)| (format!("grad.{}", name(param)), value.view())));
        }
        all
    }
}

/// [`same`] for outputs, states and gradients.
///
/// # Errors
/// The report.
pub fn same_passes(what: &str, want: &Passes, got: &Passes) -> Result<()> {
    same_outputs(what, &want.outputs, &got.outputs)?;
    let (want, got) = (want.gradients(), got.gradients());
    ensure!(want.len() == got.len(), "{what}: expected {} gradients, got {}", want.len(), got.len());
    for ((name, want), (_, got)) in want.into_iter().zip(got) {
        same(&format!("{what}: {name}"), want, got)?;
    }
    Ok(())
}

/// How many values a snapshot shows of each output, and of each gradient.
const SHOWN: [usize; 2] = [32, 4];

/// The text of a snapshot: for each array its shape, a digest of all of it, and the first values in hex and decimal.
pub fn render(passes: &Passes) -> String {
    let mut text = String::new();
    let outputs = passes.outputs.groups().map(|(name, array)| (name.to_owned(), array.view().into_dyn(), SHOWN[0]));
    let gradients = passes.gradients().into_iter().map(|(name, array)| (name, array, SHOWN[1]));
    for (name, array, shown) in outputs.into_iter().chain(gradients) {
        // Writing to a string can't fail.
        let _ = writeln!(text, "{name} {:?} digest {}", array.shape(), Digest::of(&array));
        let shown: Vec<String> =
            array.iter().take(shown).map(|v| format!("{:08x} {:>15}", v.to_bits(), format!("{v:e}"))).collect();
        for line in shown.chunks(4) {
            let _ = writeln!(text, "  {}", line.join("   "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_shows_both_values() {
        let report = same_slices("y", &[1.0, 2.0, f32::NAN], &[1.0, f32::from_bits(0x4000_0001), -f32::NAN]);
        let report = report.expect_err("one bit differs").to_string();
        assert!(
            report
                .starts_with("y: 1 of 3 elements differ, in 1 bits; first at 1: expected 40000000 (2e0), got 40000001")
        );
        assert!(same_slices("y", &[0.0], &[-0.0]).is_err());
        assert!(same_slices("y", &[0.0], &[0.0, 0.0]).is_err());
    }
}
