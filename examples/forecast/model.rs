//! The forecasting model: predicts the year-over-year growth of the next month from that of earlier months.

use std::{collections::BTreeMap, path::Path};

use lstm::{
    Backend, Linear, Lstm, StateDict,
    ndarray::{Array3, aview1, s},
};

use crate::{
    error::{Error, Result},
    series::MONTHS_PER_YEAR,
};

/// An LSTM with a linear head, and the normalization of its inputs and outputs.
pub(crate) struct Model<B: Backend> {
    pub(crate) lstm: Lstm<B>,
    pub(crate) head: Linear<B>,
    pub(crate) growth: GrowthNormalization,
}

impl<B: Backend> Model<B> {
    /// Loads a model saved by this program or by PyTorch. Fails if a tensor is missing, has a wrong shape, or is unused.
    pub(crate) fn open(backend: &B, path: &Path) -> Result<Self> {
        let mut dict = StateDict::open(path)?;
        let growth = GrowthNormalization::from_metadata(dict.metadata()).map_err(|why| Error::file(path, why))?;
        let weights = dict.take_lstm("lstm.").map_err(|e| Error::file(path, e))?;
        let (inputs, outputs) = (weights.config().input_size, weights.config().output_size());
        if inputs != GrowthNormalization::FEATURE_COUNT {
            return Err(Error::file(
                path,
                format!("expected an LSTM with {} inputs, got {inputs}", GrowthNormalization::FEATURE_COUNT),
            ));
        }
        let head = Linear::take(backend, &mut dict, "head.").map_err(|e| Error::file(path, e))?;
        if (head.input_size(), head.output_size()) != (outputs, 1) {
            let why = format!(
                "expected a head with {outputs} inputs and 1 output, got {} and {}",
                head.input_size(),
                head.output_size()
            );
            return Err(Error::file(path, why));
        }
        dict.finish().map_err(|e| Error::file(path, e))?;
        Ok(Model { lstm: Lstm::new(backend, weights)?, head, growth })
    }

    /// Describes the model in one line.
    pub(crate) fn describe(&self) -> String {
        let (config, paths) = (self.lstm.config(), self.lstm.paths());
        let paths: Vec<_> = paths.iter().map(ToString::to_string).collect();
        let (inputs, hidden) = (config.input_size, config.hidden_size);
        format!("LSTM({inputs} -> {hidden}) on {} ({})", self.lstm.backend().name(), paths.join(", "))
    }

    /// Forecasts the `months` months that follow a series of more than a year. Each forecast is the input for the next
    /// one. Returns the forecast, and the outputs of the LSTM for each month, row-major.
    pub(crate) fn forecast(&self, known_values: &[f64], months: usize) -> Result<(Vec<f64>, Vec<f32>)> {
        let mut log_values: Vec<f64> = known_values.iter().map(|v| v.ln()).collect();
        let mut outputs = Vec::new();

        // Features depend on earlier months only, so a new month does not change earlier inputs, and the stream continues.
        let x = self.growth.inputs(&log_values);
        let mut stream = self.lstm.stream(1)?;
        let mut y = stream.chunk(x.view())?.slice(s![0, -1, ..]).to_vec();
        for month in 0..months {
            if month > 0 {
                stream.step(&self.growth.features(&log_values, log_values.len() - 1), &mut y)?;
            }
            let growth = f64::from(self.head.forward(aview1(&y))?[0]);
            log_values
                .push(log_values[log_values.len() - MONTHS_PER_YEAR] + growth * self.growth.std + self.growth.mean);
            outputs.extend_from_slice(&y);
        }
        Ok((log_values[known_values.len()..].iter().map(|v| v.exp()).collect(), outputs))
    }
}

/// Mean and standard deviation of the year-over-year growth in the training data, by which growth is normalized. Growth
/// is the difference between the logarithms of two values that are a year apart.
#[derive(Clone, Copy)]
pub(crate) struct GrowthNormalization {
    /// Mean growth.
    pub(crate) mean: f64,
    /// Standard deviation of the growth.
    std: f64,
}

impl GrowthNormalization {
    /// Number of input features of the LSTM.
    pub(crate) const FEATURE_COUNT: usize = 2;

    /// Computes the normalization from a series of more than a year.
    pub(crate) fn from_series(known_values: &[f64]) -> Result<Self, String> {
        let growths: Vec<f64> =
            known_values.iter().zip(&known_values[MONTHS_PER_YEAR..]).map(|(old, new)| new.ln() - old.ln()).collect();
        let mean = growths.iter().sum::<f64>() / growths.len() as f64;
        let sum_of_squares: f64 = growths.iter().map(|growth| (growth - mean).powi(2)).sum();
        let std = (sum_of_squares / (growths.len() as f64 - 1.0)).sqrt();
        // NaN for a single value.
        if std > 0.0 {
            Ok(GrowthNormalization { mean, std })
        } else {
            Err("expected year-over-year growth that varies, got constant growth".into())
        }
    }

    /// Reads the normalization from the metadata of a file.
    fn from_metadata(metadata: &BTreeMap<String, String>) -> Result<Self, String> {
        let parse_number = |key: &str| {
            let text = metadata.get(key).ok_or_else(|| format!("metadata `{key}` is missing"))?;
            let number = text.parse().ok().filter(|v: &f64| v.is_finite());
            number.ok_or_else(|| format!("metadata `{key}`: expected a number, got {text:?}"))
        };
        let growth = GrowthNormalization { mean: parse_number("mean")?, std: parse_number("std")? };
        if growth.std > 0.0 {
            Ok(growth)
        } else {
            Err(format!("metadata `std`: expected a positive number, got {}", growth.std))
        }
    }

    /// Returns the normalization as metadata for a file. `{:?}` formats numbers so that they parse to the same bits.
    pub(crate) fn metadata(&self) -> BTreeMap<String, String> {
        [("mean", self.mean), ("std", self.std)].map(|(key, value)| (key.into(), format!("{value:?}"))).into()
    }

    /// Inputs of the LSTM for all months from the second year on, shape `(1, months, FEATURE_COUNT)`. `log_values` are
    /// the logarithms of the series.
    pub(crate) fn inputs(&self, log_values: &[f64]) -> Array3<f32> {
        let shape = (1, log_values.len() - MONTHS_PER_YEAR, Self::FEATURE_COUNT);
        Array3::from_shape_fn(shape, |(_, step, k)| self.features(log_values, MONTHS_PER_YEAR + step)[k])
    }

    /// Input of the LSTM at month `t`, which must be a year or more after the first month. The first feature is the
    /// normalized growth of month `t`. The second is that of month `t - 11`, a year before the month to forecast, or 0
    /// if the series starts too late for it.
    fn features(&self, log_values: &[f64], t: usize) -> [f32; Self::FEATURE_COUNT] {
        let normalized_growth = |t: usize| (log_values[t] - log_values[t - MONTHS_PER_YEAR] - self.mean) / self.std;
        let year_before = t + 1 - MONTHS_PER_YEAR;
        let year_ago_growth = if year_before >= MONTHS_PER_YEAR { normalized_growth(year_before) } else { 0.0 };
        [normalized_growth(t) as f32, year_ago_growth as f32]
    }
}

#[cfg(test)]
mod tests {
    use lstm::{Cpu, LstmConfig};

    use super::*;

    #[test]
    fn streaming_matches_whole_sequence() -> Result<()> {
        let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(2, 5), 1)?;
        let head = Linear::random(&Cpu::new(), 5, 1, 2)?;
        let model = Model { lstm, head, growth: GrowthNormalization { mean: 0.1, std: 0.2 } };
        let mut series: Vec<f64> = (0..30).map(|t| 100.0 + f64::from(t * 37 % 23)).collect();
        let (forecast, outputs) = model.forecast(&series, 15)?;
        let known_count = series.len();
        series.extend_from_slice(&forecast);

        // In a single call, over the features of the extended series. Its last month is not an input.
        let log_values: Vec<f64> = series.iter().map(|v| v.ln()).collect();
        let x = model.growth.inputs(&log_values[..log_values.len() - 1]);
        let (y, _) = model.lstm.forward(&x)?;
        let whole_sequence_outputs = y.slice(s![0, known_count - MONTHS_PER_YEAR - 1.., ..]);
        assert_eq!(whole_sequence_outputs.len(), outputs.len());
        // Not bit-identical, because exp and ln are not exact inverses.
        assert!(whole_sequence_outputs.iter().zip(&outputs).all(|(a, b)| (a - b).abs() < 1e-6));
        Ok(())
    }

    #[test]
    fn features_match_hand_calculation() {
        let growth = GrowthNormalization { mean: 1.0, std: 2.0 };
        let log_values: Vec<f64> = (0..30).map(|t| f64::from(t * t)).collect();
        // t^2 - (t - 12)^2 = 24 t - 144
        assert_eq!(growth.features(&log_values, 12), [71.5, 0.0]);
        assert_eq!(growth.features(&log_values, 22), [191.5, 0.0]);
        assert_eq!(growth.features(&log_values, 23), [203.5, 71.5]);
    }

    #[test]
    fn normalization_matches_hand_calculation() {
        let known_values: Vec<f64> = (0..14).map(|t| f64::from(t * t).exp()).collect();
        // The growths are 144 and 168.
        let growth = GrowthNormalization::from_series(&known_values).expect("the growth varies");
        assert!((growth.mean - 156.0).abs() < 1e-9 && (growth.std - 288.0f64.sqrt()).abs() < 1e-9);
        assert!(
            GrowthNormalization::from_series(&known_values[..13]).is_err()
                && GrowthNormalization::from_series(&[1.0; 30]).is_err()
        );
    }

    #[test]
    fn rejects_missing_and_invalid_metadata() {
        let growth = |pairs: &[(&str, &str)]| {
            let pairs = pairs.iter().map(|&(k, v)| (k.to_owned(), v.to_owned()));
            GrowthNormalization::from_metadata(&pairs.collect()).err()
        };
        assert_eq!(growth(&[("mean", "0.5"), ("std", "1e-2")]), None);
        assert_eq!(growth(&[("mean", "0.5")]).as_deref(), Some("metadata `std` is missing"));
        let error = growth(&[("mean", "inf"), ("std", "1")]);
        assert_eq!(error.as_deref(), Some("metadata `mean`: expected a number, got \"inf\""));
        let error = growth(&[("mean", "0"), ("std", "0")]);
        assert_eq!(error.as_deref(), Some("metadata `std`: expected a positive number, got 0"));
    }
}
