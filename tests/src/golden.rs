//! Golden cases: float32 inputs and weights with outputs and gradients that PyTorch computed in float64, in the format of
//! `tests/data/golden/make.py`.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{
    Backend, Bias, CellKind, Checkpointing, HostState, Lstm, LstmConfig, State, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::{Array3, ArrayD, Ix3},
};
use serde::Deserialize;

use crate::{
    cases::CaseData,
    check::run_passes,
    compare::{Outputs, PassResults},
    score::{Score, relative_error},
};

/// Prefix of the names of gradients in a golden file.
const GRADIENT_PREFIX: &str = "grad.";

/// The metadata entry `config` of a golden file: the configuration of the model and the size of its input.
#[derive(Debug, Deserialize)]
// Unknown settings must not be ignored.
#[serde(deny_unknown_fields)]
struct CaseConfig {
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

/// A golden case: a model with inputs, and expected outputs and gradients that PyTorch computed in float64.
#[derive(Debug)]
pub struct GoldenCase {
    /// Name of the file without the extension.
    pub name: String,
    weights: Weights,
    /// Inputs of the model. The loss is `sum(y * r) + sum(h_n) + sum(c_n)`, where `r` is `dy`.
    data: CaseData,
    /// Expected outputs and gradients: the name, the float64 values, and the error of PyTorch in float32.
    want: Vec<(String, ArrayD<f64>, f64)>,
}

impl GoldenCase {
    /// Reads a golden case from a safetensors file.
    ///
    /// # Errors
    /// The file can't be read, lacks an array or contains an unknown one.
    pub fn open(path: &Path) -> Result<Self> {
        GoldenCase::read(path).with_context(|| format!("{}", path.display()))
    }

    fn read(path: &Path) -> Result<Self> {
        let mut file = StateDict::open(path)?;
        let metadata = |key| file.metadata().get(key).with_context(|| format!("metadata `{key}` is missing"));
        let settings: CaseConfig = serde_json::from_str(metadata("config")?).context("metadata `config`")?;
        let float32_errors: BTreeMap<String, f64> =
            serde_json::from_str(metadata("float32_error")?).context("metadata `float32_error`")?;

        let config = settings.config()?;
        let (batch, steps) = (settings.batch, settings.seq);
        let zeros = HostState::zeros(&config, batch)?;
        let [has_h0, has_c0, has_lengths] = ["h0", "c0", "lengths"].map(|name| file.shape(name).is_some());
        ensure!(has_h0 == has_c0, "expected both h0 and c0, or neither");
        let into_3d = |array: ArrayD<f32>| array.into_dimensionality::<Ix3>().context("expected three dimensions");
        let x = into_3d(file.take("x", &[batch, steps, config.input_size])?)?;
        let mut state = |name, like: &Array3<f32>| into_3d(file.take(name, like.shape())?);
        let state = match has_h0 {
            true => Some(State { h: state("h0", &zeros.h)?, c: state("c0", &zeros.c)? }),
            false => None,
        };
        let lengths = match has_lengths {
            true => Some(file.take_i64("lengths")?.into_iter().map(usize::try_from).collect::<Result<_, _>>()?),
            false => None,
        };
        let output_shape = [batch, steps, config.output_size()];
        let loss_weight = into_3d(file.take("loss_weight", &output_shape)?)?;
        let names: Vec<String> = file.names().map(str::to_owned).collect();
        let compared_names = names
            .iter()
            .filter(|name| ["y", "h_n", "c_n"].contains(&name.as_str()) || name.starts_with(GRADIENT_PREFIX));
        let mut want = Vec::new();
        for name in compared_names {
            let error = float32_errors.get(name).with_context(|| format!("float32_error has no `{name}`"))?;
            want.push((name.clone(), file.take_f64(name)?, *error));
        }
        for name in ["y", "h_n", "c_n", "grad.x"] {
            ensure!(want.iter().any(|(wanted, ..)| wanted == name), "`{name}` is missing");
        }
        let dstate = State { h: Array3::ones(zeros.h.dim()), c: Array3::ones(zeros.c.dim()) };
        let data = CaseData { x, state, lengths, dropout_seed: None, dy: loss_weight, dstate };
        let weights = file.take_lstm_as("", config.cell)?;
        file.finish()?;
        ensure!(
            *weights.config() == config,
            "the tensors belong to {:?}, but metadata `config` says {config:?}",
            weights.config()
        );
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(GoldenCase { name, weights, data, want })
    }

    /// Runs the forward and the backward pass on a backend. Returns one score for each array of the file.
    ///
    /// # Errors
    /// The backend returns an error, or the model has a gradient that is not in the file.
    pub fn score<B: Backend>(&self, b: &B) -> Result<Vec<Score>> {
        let model = Lstm::new(b, self.weights.clone())?;
        let PassResults { outputs: Outputs { y, state }, gradients } =
            run_passes(&model, &self.data, Checkpointing::SaveEverything)?;
        let gradients = gradients.context("golden cases have f32 weights")?;
        let mut got: BTreeMap<String, ArrayD<f32>> = BTreeMap::new();
        got.insert("y".into(), y.into_dyn());
        got.insert("h_n".into(), state.h.into_dyn());
        got.insert("c_n".into(), state.c.into_dyn());
        got.insert(format!("{GRADIENT_PREFIX}h0"), gradients.state.h.into_dyn());
        got.insert(format!("{GRADIENT_PREFIX}c0"), gradients.state.c.into_dyn());
        got.insert(
            format!("{GRADIENT_PREFIX}x"),
            gradients.x.context("the gradient of the input is missing")?.into_dyn(),
        );
        // Writing the gradients like weights gives them the names and the layout of the file.
        let has_notebook_names = self.want.iter().any(|(name, ..)| name == "grad.W");
        let names = if has_notebook_names { TensorNames::Notebook } else { TensorNames::PyTorch };
        let bytes = StateDictWriter::new().lstm(GRADIENT_PREFIX, &gradients.weights, names)?.to_bytes()?;
        let mut weights = StateDict::from_bytes(bytes)?;
        for name in weights.names().map(str::to_owned).collect::<Vec<_>>() {
            ensure!(self.want.iter().any(|(wanted, ..)| *wanted == name), "the file has no tensor `{name}`");
            got.insert(name.clone(), weights.take_any(&name)?);
        }
        let scores = self.want.iter().map(|(name, want, float32_error)| {
            let got = got.get(name).with_context(|| format!("the model does not compute `{name}`"))?;
            Ok(Score {
                array: name.clone(),
                error: relative_error(want, got),
                limit: 4.0 * float32_error + 1e-7,
                float32_error: Some(*float32_error),
            })
        });
        scores.collect()
    }
}

impl CaseConfig {
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
            // The cell of the original notebook has one bias.
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
