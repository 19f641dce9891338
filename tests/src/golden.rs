//! Golden cases: float32 inputs and weights with outputs and gradients computed in float64, in the format of
//! `tests/data/golden/make.py`, and how far a backend is from them.

use std::{collections::BTreeMap, fmt, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Backend, Bias, CellKind, Checkpointing, HostState, Lstm, LstmConfig, State, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::{Array3, ArrayD, Ix3},
};
use serde::Deserialize;

use crate::{
    cases::Data,
    check::passes,
    compare::{Outputs, Passes},
    verify::Compared,
};

/// A file's name for the gradient of anything starts so.
const GRADIENT: &str = "grad.";

/// A file's `config`.
#[derive(Debug, Deserialize)]
// A setting that is not known here is one that would be ignored.
#[serde(deny_unknown_fields)]
struct TrainerConfig {
    cell: String,
    input_size: usize,
    hidden_size: usize,
    batch: usize,
    seq: usize,
    num_layers: usize,
    bidirectional: bool,
    bias: bool,
    proj_size: usize,
}

/// A file's contents.
#[derive(Debug)]
pub struct Golden {
    /// The file's name without its extension.
    pub name: String,
    weights: Weights,
    /// The loss is `sum(y * r) + sum(h_n) + sum(c_n)`; `dy` is r.
    data: Data,
    /// Outputs and gradients by name, in float64, and PyTorch's own error in float32.
    want: Vec<(String, ArrayD<f64>, f64)>,
}

/// How far one array of a case is from the truth.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    /// `y`, `h_n`, `c_n`, or `grad.` and what it is the gradient of.
    pub group: String,
    /// `max |got - want| / (1 + |want|)`; infinite where a NaN came.
    pub error: f64,
    /// PyTorch's own error on this case in float32.
    pub float32_error: f64,
}

impl Score {
    /// The greatest error that passes.
    pub fn limit(&self) -> f64 {
        4.0 * self.float32_error + 1e-7
    }

    /// The error as a part of the limit.
    pub fn ratio(&self) -> f64 {
        self.error / self.limit()
    }

    /// Whether it is within the limit.
    pub fn passes(&self) -> bool {
        self.error <= self.limit()
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Score { group, error, float32_error, .. } = self;
        let verdict = if self.passes() { "ok" } else { "FAIL" };
        write!(
            f,
            "{group:<26} error {error:.2e}  float32_error {float32_error:.2e}  limit {:.2e}  {verdict}",
            self.limit()
        )
    }
}

impl Golden {
    fn read(path: &Path) -> Result<Self> {
        let mut file = StateDict::open(path)?;
        let metadata = |key| file.metadata().get(key).with_context(|| format!("metadata `{key}` is missing"));
        let settings: TrainerConfig = serde_json::from_str(metadata("config")?).context("metadata `config`")?;
        let errors: BTreeMap<String, f64> =
            serde_json::from_str(metadata("float32_error")?).context("metadata `float32_error`")?;

        let config = settings.config()?;
        let (batch, steps) = (settings.batch, settings.seq);
        let zeros = HostState::zeros(&config, batch)?;
        let has: Vec<bool> = ["h0", "c0", "lengths"].iter().map(|name| file.shape(name).is_some()).collect();
        ensure!(has[0] == has[1], "one of h0 and c0 without the other");
        let three = |array: ArrayD<f32>| array.into_dimensionality::<Ix3>().context("three dimensions were asked for");
        let x = three(file.take("x", &[batch, steps, config.input_size])?)?;
        let mut state = |name, like: &Array3<f32>| three(file.take(name, like.shape())?);
        let state = match has[0] {
            true => Some(State { h: state("h0", &zeros.h)?, c: state("c0", &zeros.c)? }),
            false => None,
        };
        let lengths = match has[2] {
            true => Some(file.take_i64("lengths")?.into_iter().map(usize::try_from).collect::<Result<_, _>>()?),
            false => None,
        };
        let output = [batch, steps, config.output_size()];
        let loss_weight = three(file.take("loss_weight", &output)?)?;
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let compared =
            names.iter().filter(|name| ["y", "h_n", "c_n"].contains(&name.as_str()) || name.starts_with(GRADIENT));
        let mut want = Vec::new();
        for name in compared {
            let error = errors.get(name).with_context(|| format!("float32_error has no `{name}`"))?;
            want.push((name.clone(), file.take_f64(name)?, *error));
        }
        for name in ["y", "h_n", "c_n", "grad.x"] {
            ensure!(want.iter().any(|(there, ..)| there == name), "`{name}` is missing");
        }
        let dstate = State { h: Array3::ones(zeros.h.dim()), c: Array3::ones(zeros.c.dim()) };
        let data = Data { x, state, lengths, training: None, dy: loss_weight, dstate };
        let weights = file.take_lstm_as("", config.cell)?;
        file.finish()?;
        ensure!(*weights.config() == config, "the tensors are of {:?}, `config` says {config:?}", weights.config());
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Golden { name, weights, data, want })
    }
}

impl Compared for Golden {
    type Score = Score;

    const EXTENSION: &str = "safetensors";

    fn open(path: &Path) -> Result<Self> {
        Golden::read(path).with_context(|| format!("{}", path.display()))
    }

    fn name(&self) -> &str {
        &self.name
    }

    /// Forward and backward: one score for each array that the file has; one that the model has besides is an error.
    fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        let model = Lstm::new(b, self.weights.clone())?;
        let Passes { outputs: Outputs { y, state }, gradients } =
            passes(&model, &self.data, Checkpointing::Everything)?;
        let mut got: BTreeMap<String, ArrayD<f32>> = BTreeMap::new();
        got.insert("y".into(), y.into_dyn());
        got.insert("h_n".into(), state.h.into_dyn());
        got.insert("c_n".into(), state.c.into_dyn());
        got.insert(format!("{GRADIENT}h0"), gradients.state.h.into_dyn());
        got.insert(format!("{GRADIENT}c0"), gradients.state.c.into_dyn());
        got.insert(format!("{GRADIENT}x"), gradients.x.context("it was asked for")?.into_dyn());
        // By way of a file in memory, the gradients get the names and the layout of the weights.
        let notebook = self.want.iter().any(|(name, ..)| name == "grad.W");
        let names = if notebook { TensorNames::Notebook } else { TensorNames::PyTorch };
        let bytes = StateDictWriter::new().lstm(GRADIENT, &gradients.weights, names)?.to_bytes()?;
        let mut weights = StateDict::from_bytes(bytes)?;
        for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
            ensure!(self.want.iter().any(|(there, ..)| *there == name), "the file has no `{name}`");
            got.insert(name.clone(), weights.take_any(&name)?);
        }
        let scores = self.want.iter().map(|(name, want, float32_error)| {
            let got = got.get(name).with_context(|| format!("the model has no `{name}`"))?;
            Ok(Score { group: name.clone(), error: error(want, got), float32_error: *float32_error })
        });
        scores.collect()
    }

    fn ratio(score: &Score) -> f64 {
        score.ratio()
    }
}

impl TrainerConfig {
    fn config(&self) -> Result<LstmConfig> {
        let mut config = LstmConfig::new(self.input_size, self.hidden_size).layers(self.num_layers);
        config = config.cell(match self.cell.as_str() {
            "standard" => CellKind::Fused,
            "peephole-dense" => CellKind::PeepholeDense,
            "peephole-diagonal" => CellKind::PeepholeDiagonal,
            other => bail!("metadata `config`: unknown cell `{other}`"),
        });
        if self.bidirectional {
            config = config.bidirectional();
        }
        config.bias = match (self.bias, config.cell) {
            (false, _) => Bias::None,
            // The notebook's cell has one.
            (true, CellKind::PeepholeDense) => Bias::One,
            (true, _) => Bias::Two,
        };
        if self.proj_size > 0 {
            config = config.proj_size(self.proj_size);
        }
        config.validate()?;
        Ok(config)
    }
}

/// `max |got - want| / (1 + |want|)`; anything that is not a number counts as infinitely far.
pub fn error(want: &ArrayD<f64>, got: &ArrayD<f32>) -> f64 {
    if want.shape() != got.shape() {
        return f64::INFINITY;
    }
    let errors = want.iter().zip(got).map(|(want, &got)| (f64::from(got) - want).abs() / (1.0 + want.abs()));
    errors.fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstm_core::ndarray::array;

    #[test]
    fn the_error_is_relative_and_nan_is_infinite() {
        let got = array![[[1.0f32, 3.5]]].into_dyn();
        assert_eq!(error(&array![[[1.0, 3.0]]].into_dyn(), &got), 0.125);
        assert_eq!(error(&array![[[1.0, f64::NAN]]].into_dyn(), &got), f64::INFINITY);
        assert_eq!(error(&array![[[1.0], [3.0]]].into_dyn(), &got), f64::INFINITY);
        let score = Score { group: "y".into(), error: f64::INFINITY, float32_error: 1e-7 };
        assert!(!score.passes());
        assert!(score.to_string().ends_with("FAIL"));
    }

    #[test]
    fn directories_without_cases_and_unreadable_files_are_errors() {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(Golden::files(&dir.join("no-such-directory")).is_err());
        assert!(Golden::files(&dir.join("src")).expect_err("no cases").to_string().contains("no cases"));
        let error = Golden::open(&dir.join("Cargo.toml")).expect_err("not safetensors");
        assert!(format!("{error:#}").contains("Cargo.toml"));
    }
}
