//! The forecaster: year-over-year growth in, next month's growth out.

use std::{collections::BTreeMap, path::Path};

use lstm_core::{
    Backend, Lstm, StateDict,
    ndarray::{Array3, s},
};

use crate::{Error, Result, series::YEAR};

/// An LSTM, a linear head on its output, and the scale of what it reads and tells.
pub(crate) struct Model<B: Backend> {
    lstm: Lstm<B>,
    head: Vec<f32>,
    bias: f32,
    growth: Growth,
}

impl<B: Backend> Model<B> {
    /// Loads what the training script saved. A tensor that is missing, misshapen or left over is an error.
    pub(crate) fn open(backend: &B, path: &Path) -> Result<Self> {
        let mut dict = StateDict::open(path)?;
        let growth = Growth::from_metadata(dict.metadata()).map_err(|why| Error::file(path, why))?;
        let weights = dict.take_lstm("lstm.").map_err(|e| Error::file(path, e))?;
        let (inputs, outputs) = (weights.config().input_size, weights.config().output_size());
        if inputs != Growth::FEATURES {
            return Err(Error::file(path, format!("expected an LSTM of {} inputs, found {inputs}", Growth::FEATURES)));
        }
        let mut take = |name, shape: &[usize]| dict.take(name, shape).map_err(|e| Error::file(path, e));
        let head = take("head.weight", &[1, outputs])?.into_iter().collect();
        let bias = take("head.bias", &[1])?.sum();
        dict.finish().map_err(|e| Error::file(path, e))?;
        Ok(Model { lstm: Lstm::new(backend, weights)?, head, bias, growth })
    }

    /// One line for people.
    pub(crate) fn describe(&self) -> String {
        let (config, paths) = (self.lstm.config(), self.lstm.paths());
        let paths: Vec<_> = paths.iter().map(ToString::to_string).collect();
        let (inputs, hidden) = (config.input_size, config.hidden_size);
        format!("LSTM({inputs} -> {hidden}) on {} ({})", self.lstm.backend().name(), paths.join(", "))
    }

    /// Continues a series of more than a year by `months`, feeding predictions back. Also returns the LSTM's outputs
    /// behind them, a row each.
    pub(crate) fn forecast(&self, known: &[f64], months: usize) -> Result<(Vec<f64>, Vec<f32>)> {
        let mut logs: Vec<f64> = known.iter().map(|v| v.ln()).collect();
        let mut outputs = Vec::new();

        // Features look back only: a new month changes none of the old ones, and the stream's state stays good.
        let x = (1, logs.len() - YEAR, Growth::FEATURES);
        let x = Array3::from_shape_fn(x, |(_, step, k)| self.growth.features(&logs, YEAR + step)[k]);
        let mut stream = self.lstm.stream(1)?;
        let mut y = stream.chunk(x.view())?.slice(s![0, -1, ..]).to_vec();
        for month in 0..months {
            if month > 0 {
                stream.step(&self.growth.features(&logs, logs.len() - 1), &mut y)?;
            }
            let dot: f64 = self.head.iter().zip(&y).map(|(&w, &v)| f64::from(w) * f64::from(v)).sum();
            let growth = (dot + f64::from(self.bias)) * self.growth.std + self.growth.mean;
            logs.push(logs[logs.len() - YEAR] + growth);
            outputs.extend_from_slice(&y);
        }
        Ok((logs[known.len()..].iter().map(|v| v.exp()).collect(), outputs))
    }
}

/// Growth of the logarithm over a year, standardised by the training data's mean and standard deviation.
struct Growth {
    mean: f64,
    std: f64,
}

impl Growth {
    const FEATURES: usize = 2;

    fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let number = |key: &str| {
            let text = metadata.get(key).ok_or_else(|| format!("metadata `{key}` is missing"))?;
            let number = text.parse().ok().filter(|v: &f64| v.is_finite());
            number.ok_or_else(|| format!("metadata `{key}`: expected a number, found {text:?}"))
        };
        let growth = Growth { mean: number("mean")?, std: number("std")? };
        if growth.std > 0.0 { Ok(growth) } else { Err(format!("metadata `std`: {} is not positive", growth.std)) }
    }

    /// What the LSTM reads at month `t`, a year or more after the first: the month's growth, and that of the month a year
    /// before the one to be forecast (0 where the series is too short).
    fn features(&self, logs: &[f64], t: usize) -> [f32; Self::FEATURES] {
        let growth = |t: usize| (logs[t] - logs[t - YEAR] - self.mean) / self.std;
        let year_before = t + 1 - YEAR;
        let old = if year_before >= YEAR { growth(year_before) } else { 0.0 };
        [growth(t) as f32, old as f32]
    }
}

#[cfg(test)]
mod tests {
    use lstm_core::LstmConfig;
    use lstm_cpu::Cpu;

    use super::*;

    #[test]
    fn streaming_equals_running_the_series_again() -> Result<()> {
        let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(2, 5), 1)?;
        let model =
            Model { lstm, head: vec![0.5, -1.0, 0.25, 2.0, 1.0], bias: 0.1, growth: Growth { mean: 0.1, std: 0.2 } };
        let mut series: Vec<f64> = (0..30).map(|t| 100.0 + f64::from(t * 37 % 23)).collect();
        let (forecast, outputs) = model.forecast(&series, 15)?;
        let known = series.len();
        series.extend_from_slice(&forecast);

        // In one go, over features of the finished series; its last month is not an input any more.
        let logs: Vec<f64> = series.iter().map(|v| v.ln()).collect();
        let x = Array3::from_shape_fn((1, logs.len() - 1 - YEAR, 2), |(_, step, k)| {
            model.growth.features(&logs, YEAR + step)[k]
        });
        let (y, _) = model.lstm.forward(&x)?;
        let again = y.slice(s![0, known - YEAR - 1.., ..]);
        assert_eq!(again.len(), outputs.len());
        // exp and ln need not be exact inverses.
        assert!(again.iter().zip(&outputs).all(|(a, b)| (a - b).abs() < 1e-6));
        Ok(())
    }

    #[test]
    fn features_are_those_of_training() {
        let growth = Growth { mean: 1.0, std: 2.0 };
        let logs: Vec<f64> = (0..30).map(|t| f64::from(t * t)).collect();
        // t^2 - (t - 12)^2 = 24 t - 144
        assert_eq!(growth.features(&logs, 12), [71.5, 0.0]);
        assert_eq!(growth.features(&logs, 22), [191.5, 0.0]);
        assert_eq!(growth.features(&logs, 23), [203.5, 71.5]);
    }

    #[test]
    fn metadata_must_be_there() {
        let growth = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
            Growth::from_metadata(&pairs.collect()).err()
        };
        assert_eq!(growth(&[("mean", "0.5"), ("std", "1e-2")]), None);
        assert_eq!(growth(&[("mean", "0.5")]).as_deref(), Some("metadata `std` is missing"));
        let error = growth(&[("mean", "inf"), ("std", "1")]);
        assert_eq!(error.as_deref(), Some("metadata `mean`: expected a number, found \"inf\""));
        let error = growth(&[("mean", "0"), ("std", "0")]);
        assert_eq!(error.as_deref(), Some("metadata `std`: 0 is not positive"));
    }
}
