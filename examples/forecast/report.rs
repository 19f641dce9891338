//! Compares a forecast with the actual values: table, errors and checks.

use std::{fmt, fs, path::Path};

use lstm::{Backend, arithmetic::Digest};

use crate::{
    error::{Error, Result},
    model::Model,
    series::{MONTHS_PER_YEAR, Series},
};

/// Largest accepted relative difference between a forecast and the expected forecast.
pub(crate) const MAX_RELATIVE_DIFFERENCE: f64 = 1e-3;

/// Largest accepted error of a trained model, divided by the error of repeating the last year.
pub(crate) const MAX_ERROR_RATIO: f64 = 0.6;

/// A forecast of the last months of a series.
pub(crate) struct Report<'a> {
    /// The whole series with all actual values.
    pub(crate) series: &'a Series,
    /// Forecast of the last months.
    pub(crate) forecast: Vec<f64>,
    /// Baseline for comparison: the last known year, repeated in the months of the forecast.
    pub(crate) repeated_year: Vec<f64>,
    /// Mean absolute error of the forecast in percent.
    pub(crate) error: f64,
    /// Mean absolute error of the repeated year in percent.
    pub(crate) repeated_year_error: f64,
    /// Mean absolute error in percent of another baseline: the last known year, increased by the mean growth. A model
    /// that has learned only the mean would forecast this.
    grown_year_error: f64,
    /// Digest of the outputs of the LSTM.
    output_digest: Digest,
}

impl<'a> Report<'a> {
    /// Forecasts the held-back months of a series. `file` is the path of the model for error messages.
    pub(crate) fn new<B: Backend>(series: &'a Series, model: &Model<B>, file: &Path) -> Result<Self> {
        let (known_values, actual) = (series.known_values(), series.held_back_values());
        let (forecast, outputs) = model.forecast(known_values, actual.len())?;
        if let Some(k) = forecast.iter().position(|v| !v.is_finite()) {
            let why = format!("the forecast of {} is {}", series.month(known_values.len() + k), forecast[k]);
            return Err(Error::file(file, why));
        }
        let repeated_year: Vec<f64> =
            known_values[known_values.len() - MONTHS_PER_YEAR..].iter().copied().cycle().take(actual.len()).collect();
        let year_counts = (0..actual.len()).map(|k| (k / MONTHS_PER_YEAR + 1) as f64);
        let grown_year: Vec<f64> =
            repeated_year.iter().zip(year_counts).map(|(v, n)| v * (n * model.growth.mean).exp()).collect();
        Ok(Report {
            error: mean_error(&forecast, actual),
            repeated_year_error: mean_error(&repeated_year, actual),
            grown_year_error: mean_error(&grown_year, actual),
            output_digest: Digest::of(&outputs),
            series,
            forecast,
            repeated_year,
        })
    }

    /// Whether the forecasts of both reports, and the outputs of their LSTMs, are bit-identical.
    pub(crate) fn is_bit_identical(&self, other: &Report<'_>) -> bool {
        let forecast_bits = |report: &Report<'_>| report.forecast.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        self.output_digest == other.output_digest && forecast_bits(self) == forecast_bits(other)
    }

    /// Fails if the error of the forecast is more than [`MAX_ERROR_RATIO`] times the error of repeating the last year.
    pub(crate) fn check_accuracy(&self) -> Result<()> {
        let Report { error, repeated_year_error, .. } = *self;
        if error <= MAX_ERROR_RATIO * repeated_year_error {
            Ok(())
        } else {
            Err(Error::InaccurateForecast { error, repeated_year_error })
        }
    }

    /// Compares the forecast with `expected` and returns the largest relative difference. Fails if it exceeds
    /// [`MAX_RELATIVE_DIFFERENCE`].
    pub(crate) fn check_forecast(&self, expected: &[f64]) -> Result<f64> {
        let differences = self.forecast.iter().zip(expected).map(|(got, want)| ((got - want) / want).abs());
        // `total_cmp` orders NaN above all numbers, so NaN fails the check.
        let Some((k, difference)) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else {
            return Ok(0.0);
        };
        if difference <= MAX_RELATIVE_DIFFERENCE {
            return Ok(difference);
        }
        let month = self.month_name(k);
        Err(Error::ForecastMismatch { month, got: self.forecast[k], want: expected[k], difference })
    }

    /// Name of forecast month `k`, such as `1959-01`.
    fn month_name(&self, k: usize) -> String {
        self.series.month(self.series.known_values().len() + k).to_string()
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "month      actual  forecast   error")?;
        for (k, (&got, &a)) in self.forecast.iter().zip(self.series.held_back_values()).enumerate() {
            writeln!(f, "{}  {a:8.0}  {got:8.1}  {:+5.1} %", self.month_name(k), (got - a) / a * 100.0)?;
        }
        let Report { error, repeated_year_error, grown_year_error, output_digest, .. } = self;
        writeln!(f, "\nMean absolute error: {error:.2} %.")?;
        writeln!(
            f,
            "Repeating the last year: {repeated_year_error:.2} %; repeating it with mean growth: {grown_year_error:.2} %."
        )?;
        write!(f, "Digest of the LSTM's {} outputs: {output_digest}", self.forecast.len())
    }
}

/// Mean absolute error of a forecast, in percent of the actual values.
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
