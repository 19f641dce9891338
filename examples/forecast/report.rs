//! Compares a forecast with the actual values: table, errors and checks.

use std::{fmt, fs, path::Path};

use lstm_core::{Backend, arithmetic::Digest};

use crate::{
    error::{Error, Result},
    model::Model,
    series::{Series, YEAR},
};

/// Largest accepted relative difference to an expected forecast.
pub(crate) const TOLERANCE: f64 = 1e-3;

/// Largest accepted error of a trained model, divided by the error of repeating the last year.
pub(crate) const MAX_ERROR_RATIO: f64 = 0.6;

/// A forecast of the last months of a series.
pub(crate) struct Report<'a> {
    /// The whole series with all actual values.
    pub(crate) series: &'a Series,
    /// Forecast of the last months.
    pub(crate) forecast: Vec<f64>,
    /// Baseline: the last known year, repeated over the same months.
    pub(crate) repeated: Vec<f64>,
    /// Mean absolute error of the forecast in percent.
    pub(crate) error: f64,
    /// Mean absolute error of the repeated year in percent.
    pub(crate) error_repeated: f64,
    /// Mean absolute error in percent of the last known year increased by the mean growth. A model that has learned
    /// only the mean would forecast this.
    error_grown: f64,
    /// Digest of the outputs of the LSTM.
    digest: Digest,
}

impl<'a> Report<'a> {
    /// Forecasts the held-back months of a series. `file` is the path of the model for error messages.
    pub(crate) fn new<B: Backend>(series: &'a Series, model: &Model<B>, file: &Path) -> Result<Self> {
        let (known, actual) = (series.known(), series.held_back());
        let (forecast, outputs) = model.forecast(known, actual.len())?;
        if let Some(k) = forecast.iter().position(|v| !v.is_finite()) {
            let why = format!("the forecast of {} is {}", series.month(known.len() + k), forecast[k]);
            return Err(Error::file(file, why));
        }
        let repeated: Vec<f64> = known[known.len() - YEAR..].iter().copied().cycle().take(actual.len()).collect();
        let years = (0..actual.len()).map(|k| (k / YEAR + 1) as f64);
        let grown: Vec<f64> = repeated.iter().zip(years).map(|(v, n)| v * (n * model.growth.mean).exp()).collect();
        Ok(Report {
            error: mean_error(&forecast, actual),
            error_repeated: mean_error(&repeated, actual),
            error_grown: mean_error(&grown, actual),
            digest: Digest::of(&outputs),
            series,
            forecast,
            repeated,
        })
    }

    /// Whether both forecasts and the outputs of the LSTM are bit-identical.
    pub(crate) fn is_bit_identical(&self, other: &Report<'_>) -> bool {
        let bits = |report: &Report<'_>| report.forecast.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        self.digest == other.digest && bits(self) == bits(other)
    }

    /// Fails if the error is more than [`MAX_ERROR_RATIO`] times that of repeating the last year.
    pub(crate) fn check_accuracy(&self) -> Result<()> {
        let Report { error, error_repeated, .. } = *self;
        if error <= MAX_ERROR_RATIO * error_repeated {
            Ok(())
        } else {
            Err(Error::InaccurateForecast { error, error_repeated })
        }
    }

    /// Compares the forecast with `expected` and returns the largest relative difference. Fails if it exceeds [`TOLERANCE`].
    pub(crate) fn check(&self, expected: &[f64]) -> Result<f64> {
        let differences = self.forecast.iter().zip(expected).map(|(got, want)| ((got - want) / want).abs());
        // `total_cmp` orders NaN above all numbers, so NaN fails the check.
        let Some((k, difference)) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return Ok(0.0);
        };
        if difference <= TOLERANCE {
            return Ok(difference);
        }
        let month = self.month(k);
        Err(Error::ForecastMismatch { month, got: self.forecast[k], want: expected[k], difference })
    }

    /// Name of a forecast month.
    fn month(&self, k: usize) -> String {
        self.series.month(self.series.known().len() + k).to_string()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "month      actual  forecast   error")?;
        for (k, (&got, &a)) in self.forecast.iter().zip(self.series.held_back()).enumerate() {
            writeln!(f, "{}  {a:8.0}  {got:8.1}  {:+5.1} %", self.month(k), (got - a) / a * 100.0)?;
        }
        let Report { error, error_repeated, error_grown, digest, .. } = self;
        writeln!(f, "\nMean absolute error: {error:.2} %.")?;
        writeln!(
            f,
            "Repeating the last year: {error_repeated:.2} %; repeating it with mean growth: {error_grown:.2} %."
        )?;
        write!(f, "Digest of the LSTM's {} outputs: {digest}", self.forecast.len())
    }
}

/// Mean absolute error in percent of the actual values.
fn mean_error(forecast: &[f64], actual: &[f64]) -> f64 {
    let sum: f64 = forecast.iter().zip(actual).map(|(f, a)| ((f - a) / a).abs()).sum();
    sum / actual.len() as f64 * 100.0
}

/// Reads the expected forecast from the JSON file of the training script.
pub(crate) fn read_expected(path: &Path, months: usize) -> Result<Vec<f64>> {
    #[derive(serde::Deserialize)]
    struct Expected {
        forecast_thousands: Vec<f64>,
    }
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let Expected { forecast_thousands } = serde_json::from_str(&text).map_err(|e| Error::file(path, e))?;
    if forecast_thousands.len() != months {
        let why = format!("`forecast_thousands`: expected {months} months, got {}", forecast_thousands.len());
        return Err(Error::file(path, why));
    }
    Ok(forecast_thousands)
}
