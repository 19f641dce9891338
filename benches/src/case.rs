//! The table of timed cases, `cases.json`: what each one is, its weights and its input.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_core::{CellKind, Init, LstmConfig, Weights, ndarray::Array3};
use serde::{Deserialize, Serialize};

/// One line of the table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Its name in reports: letters, digits and dashes.
    pub name: String,
    /// What is timed.
    pub kind: Kind,
    /// Features of an input step.
    pub input: usize,
    /// Features of the cell state.
    pub hidden: usize,
    /// Sequences side by side.
    pub batch: usize,
    /// Steps.
    pub seq: usize,
    /// Stacked layers.
    pub layers: usize,
    /// Whether both directions are walked.
    pub bidir: bool,
    /// The cell; `fused` by default.
    #[serde(default, skip_serializing_if = "is_default")]
    pub cell: Cell,
    /// The size that grows along the cases of a chart; none by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<Series>,
}

/// What a case times.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// One step of a stream.
    Step,
    /// Whole sequences, time-major, from zero state.
    Forward,
    /// Forward, the mean of squares, and the weights' gradients.
    Train,
}

/// A cell, by the name that the case table of the tests has for it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Cell {
    /// [`CellKind::Fused`].
    #[default]
    Fused,
    /// [`CellKind::Unfused`].
    Unfused,
    /// [`CellKind::PeepholeDense`].
    Dense,
    /// [`CellKind::PeepholeDiagonal`].
    Diagonal,
}

/// A size that grows while the others stay.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Series {
    /// The hidden size; the input's is the same.
    Hidden,
    /// Sequences side by side.
    Batch,
    /// Steps.
    Seq,
}

fn is_default(cell: &Cell) -> bool {
    *cell == Cell::default()
}

/// Largest number of steps, sequences or features of a case: what is asked for by mistake should not be run.
const MAX: usize = 1 << 16;

/// The table in a file, or the one that is compiled in.
///
/// # Errors
/// What the file does not have, has too much of, or has twice, and where.
pub fn load(file: Option<&Path>) -> Result<Vec<Case>> {
    let (name, text) = match file {
        Some(path) => {
            let name = path.display().to_string();
            (name.clone(), std::fs::read_to_string(path).with_context(|| name)?)
        }
        None => ("benches/cases.json".to_owned(), include_str!("../cases.json").to_owned()),
    };
    parse(&text).with_context(|| name)
}

fn parse(text: &str) -> Result<Vec<Case>> {
    let cases: Vec<Case> = serde_json::from_str(text)?;
    ensure!(!cases.is_empty(), "expected at least one case, got none");
    for (k, case) in cases.iter().enumerate() {
        case.check().with_context(|| format!("case `{}`", case.name))?;
        ensure!(cases[..k].iter().all(|other| other.name != case.name), "case `{}`: the name is taken", case.name);
    }
    Ok(cases)
}

impl Case {
    fn check(&self) -> Result<()> {
        let named = !self.name.is_empty() && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(named, "name: expected letters, digits and dashes");
        for (size, what) in [
            (self.input, "input"),
            (self.hidden, "hidden"),
            (self.batch, "batch"),
            (self.seq, "seq"),
            (self.layers, "layers"),
        ] {
            ensure!((1..=MAX).contains(&size), "{what}: expected 1 to {MAX}, got {size}");
        }
        if self.kind == Kind::Step {
            ensure!(self.seq == 1, "seq: expected 1, since one step of a stream is timed, got {}", self.seq);
            ensure!(!self.bidir, "bidir: expected false, since a stream walks forward");
        }
        Ok(self.config().validate()?)
    }

    /// The model's configuration.
    pub fn config(&self) -> LstmConfig {
        let cell = match self.cell {
            Cell::Fused => CellKind::Fused,
            Cell::Unfused => CellKind::Unfused,
            Cell::Dense => CellKind::PeepholeDense,
            Cell::Diagonal => CellKind::PeepholeDiagonal,
        };
        let config = LstmConfig::new(self.input, self.hidden).layers(self.layers).cell(cell);
        if self.bidir { config.bidirectional() } else { config }
    }

    /// The model's weights, the same at every call.
    ///
    /// # Errors
    /// What [`Init::default`] or the configuration refuses.
    pub fn weights(&self) -> lstm_core::Result<Weights> {
        Weights::init(self.config(), &Init::default(), 1)
    }

    /// The input, `(steps, batch, input)`, in -1 to 1; the same at every call.
    pub fn x(&self) -> Array3<f32> {
        let mut seed = 1u32;
        Array3::from_shape_simple_fn((self.seq, self.batch, self.input), || {
            seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (seed >> 8) as f32 / 8_388_608.0 - 1.0
        })
    }

    /// Steps of all sequences together.
    pub fn steps(&self) -> usize {
        self.seq * self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_that_is_compiled_in_is_well_formed() {
        let cases = load(None).unwrap();
        for kind in [Kind::Step, Kind::Forward, Kind::Train] {
            assert!(cases.iter().any(|case| case.kind == kind), "{kind:?}");
        }
        for cell in [Cell::Fused, Cell::Unfused, Cell::Dense, Cell::Diagonal] {
            assert!(cases.iter().any(|case| case.cell == cell), "{cell:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_table_is_named() {
        let case = |name: &str, rest: &str| {
            format!(
                r#"{{"name":"{name}","kind":"step","input":1,"hidden":2,"batch":1,"layers":1,"bidir":false{rest}}}"#
            )
        };
        for (text, want) in [
            ("[]".to_owned(), "at least one case"),
            ("[1]".to_owned(), "invalid type"),
            (format!("[{}]", case("a", "")), "missing field `seq`"),
            (format!("[{}]", case("a", r#","seq":1,"depth":2"#)), "unknown field `depth`"),
            (format!("[{}]", case("a", r#","seq":0"#)), "seq: expected 1 to 65536, got 0"),
            (format!("[{}]", case("a", r#","seq":2"#)), "seq: expected 1, since"),
            (format!("[{}]", case("../a", r#","seq":1"#)), "letters, digits and dashes"),
            (format!("[{0},{0}]", case("a", r#","seq":1"#)), "the name is taken"),
            (format!("[{}]", case("a", r#","seq":1,"cell":"gru""#)), "unknown variant `gru`"),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
