//! The table of timed cases, `cases.json`, and the weights and inputs of each case.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lstm_core::{CellKind, Init, LstmConfig, Weights, ndarray::Array3};
use ndarray_rand::{RandomExt, rand::SeedableRng, rand_distr::Uniform};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// One case of the table.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// Name in reports: ASCII letters, digits and dashes.
    pub name: String,
    /// Kind of work that is timed.
    pub kind: CaseKind,
    /// Number of input features.
    pub input: usize,
    /// Hidden size.
    pub hidden: usize,
    /// Batch size.
    pub batch: usize,
    /// Number of steps of each sequence.
    pub seq: usize,
    /// Number of layers.
    pub layers: usize,
    /// Whether the layers are bidirectional.
    pub bidir: bool,
    /// Cell kind; fused by default. In JSON, it is written as [`CellKind::name`] without the prefix `peephole-`.
    #[serde(
        default,
        serialize_with = "serialize_cell",
        deserialize_with = "deserialize_cell",
        skip_serializing_if = "is_default_cell"
    )]
    pub cell: CellKind,
    /// The size that varies over the series of cases to which this case belongs; `None` if it belongs to no series.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series: Option<VariedSize>,
}

/// The kind of work that a case times.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum CaseKind {
    /// One time step of a stream, which keeps its state between calls.
    Step,
    /// Forward pass over whole sequences, starting from a state of zeros, with time-major input.
    Forward,
    /// Forward pass, mean of the squared outputs as the loss, and backward pass to the gradients of the weights.
    Train,
}

/// The size that varies over a series of cases, while the other sizes are constant.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum VariedSize {
    /// Hidden size, with an equal input size.
    Hidden,
    /// Batch size.
    Batch,
    /// Number of steps.
    Seq,
}

/// Name of a cell kind in the table of cases.
fn cell_name(cell: CellKind) -> &'static str {
    let name = cell.name();
    name.strip_prefix("peephole-").unwrap_or(name)
}

fn serialize_cell<S: Serializer>(cell: &CellKind, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(cell_name(*cell))
}

fn deserialize_cell<'de, D: Deserializer<'de>>(deserializer: D) -> Result<CellKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    CellKind::ALL.into_iter().find(|cell| cell_name(*cell) == name).ok_or_else(|| {
        let names = CellKind::ALL.map(cell_name).join(", ");
        D::Error::custom(format!("cell: expected one of {names}, got `{name}`"))
    })
}

fn is_default_cell(cell: &CellKind) -> bool {
    *cell == CellKind::default()
}

/// Largest size of a case, to reject mistyped sizes.
const MAX_SIZE: usize = 1 << 16;

/// Loads the table of cases from a file, or the built-in table if `path` is `None`.
///
/// # Errors
/// If the file can't be read, is not a valid table, or has two cases of the same name.
pub fn load(path: Option<&Path>) -> Result<Vec<Case>> {
    let (name, text) = match path {
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
        case.validate().with_context(|| format!("case `{}`", case.name))?;
        ensure!(cases[..k].iter().all(|other| other.name != case.name), "case `{}`: expected a unique name", case.name);
    }
    Ok(cases)
}

impl Case {
    /// Checks that the name and sizes are valid.
    fn validate(&self) -> Result<()> {
        let is_valid_name = !self.name.is_empty() && self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
        ensure!(is_valid_name, "name: expected letters, digits and dashes");
        for (size, what) in [
            (self.input, "input"),
            (self.hidden, "hidden"),
            (self.batch, "batch"),
            (self.seq, "seq"),
            (self.layers, "layers"),
        ] {
            ensure!((1..=MAX_SIZE).contains(&size), "{what}: expected 1 to {MAX_SIZE}, got {size}");
        }
        if self.kind == CaseKind::Step {
            ensure!(self.seq == 1, "seq: expected 1 for kind `step`, got {}", self.seq);
            ensure!(!self.bidir, "bidir: expected false for kind `step`, because streams run forward only");
        }
        Ok(self.config().validate()?)
    }

    /// Configuration of the model.
    pub fn config(&self) -> LstmConfig {
        let config = LstmConfig::new(self.input, self.hidden).layers(self.layers).cell(self.cell);
        if self.bidir { config.bidirectional() } else { config }
    }

    /// Weights of the model, identical in every call.
    ///
    /// # Errors
    /// The errors of [`Weights::init`].
    pub fn weights(&self) -> lstm_core::Result<Weights> {
        Weights::init(self.config(), &Init::default(), 1)
    }

    /// Input of shape `(steps, batch, input)` with values from -1 to 1, identical in every call.
    pub fn x(&self) -> Array3<f32> {
        let uniform = Uniform::new(-1.0, 1.0).expect("the bounds are finite and in order");
        Array3::random_using((self.seq, self.batch, self.input), uniform, &mut ChaCha8Rng::seed_from_u64(1))
    }

    /// Number of time steps of all sequences together.
    pub fn total_steps(&self) -> usize {
        self.seq * self.batch
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_table_is_valid_and_complete() {
        let cases = load(None).unwrap();
        for kind in [CaseKind::Step, CaseKind::Forward, CaseKind::Train] {
            assert!(cases.iter().any(|case| case.kind == kind), "{kind:?}");
        }
        for cell in CellKind::ALL {
            assert!(cases.iter().any(|case| case.cell == cell), "{cell:?}");
        }
    }

    #[test]
    fn rejects_invalid_tables() {
        let case_json = |name: &str, more_fields: &str| {
            format!(
                r#"{{"name":"{name}","kind":"step","input":1,"hidden":2,"batch":1,"layers":1,"bidir":false{more_fields}}}"#
            )
        };
        for (text, want) in [
            ("[]".to_owned(), "at least one case"),
            ("[1]".to_owned(), "invalid type"),
            (format!("[{}]", case_json("a", "")), "missing field `seq`"),
            (format!("[{}]", case_json("a", r#","seq":1,"depth":2"#)), "unknown field `depth`"),
            (format!("[{}]", case_json("a", r#","seq":0"#)), "seq: expected 1 to 65536, got 0"),
            (format!("[{}]", case_json("a", r#","seq":2"#)), "seq: expected 1 for kind"),
            (format!("[{}]", case_json("../a", r#","seq":1"#)), "letters, digits and dashes"),
            (format!("[{0},{0}]", case_json("a", r#","seq":1"#)), "expected a unique name"),
            (
                format!("[{}]", case_json("a", r#","seq":1,"cell":"gru""#)),
                "expected one of fused, unfused, dense, diagonal, got `gru`",
            ),
        ] {
            let error = format!("{:#}", parse(&text).unwrap_err());
            assert!(error.contains(want), "{error}");
        }
    }
}
