//! Forecasts two years of airline passengers with an LSTM that PyTorch trained, and draws them.
//!
//! `cargo run --release --example forecast` reads weights and data from the repository. The model sees ten years of
//! monthly figures, then runs freely: each forecast month becomes the input of the next.

#[path = "forecast/chart.rs"]
mod chart;
#[path = "forecast/model.rs"]
mod model;
#[path = "forecast/series.rs"]
mod series;

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Parser, ValueEnum};
use lstm_core::{Backend, arithmetic::Digest};

use crate::{
    chart::Chart,
    model::Model,
    series::{Series, YEAR},
};

/// How many months are forecast.
const HORIZON: usize = 2 * YEAR;

/// The largest relative difference to the expected forecast that passes.
const TOLERANCE: f64 = 1e-3;

/// Forecasts the last two years of monthly airline passengers with an LSTM trained by PyTorch, and draws them.
#[derive(Parser)]
struct Options {
    /// Weights: a PyTorch state dict with `lstm.*`, `head.*` and the metadata `mean` and `std` [default: the
    /// repository's]
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,

    /// Passengers: a CSV with the columns `month` and `passengers_thousands` [default: the repository's]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    /// Forecast to check against, as the training script writes it [default: the repository's, unless other weights or
    /// data are given]
    #[arg(long, value_name = "FILE")]
    expected: Option<PathBuf>,

    /// Where to draw the picture, as SVG [default: target/forecast.svg in the workspace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// What to compute on
    #[arg(long, value_name = "NAME", value_enum, default_value = "cpu")]
    backend: BackendName,
}

/// The backends that this program was built with.
#[derive(Clone, Copy, ValueEnum)]
enum BackendName {
    /// The CPU, with all its threads
    Cpu,
}

/// Everything that can go wrong, with the place where it did.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },

    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },

    #[error(transparent)]
    Lstm(#[from] lstm_core::Error),

    #[error(
        "{month}: the forecast {got} differs from the expected {want} by {difference:.1e}, more than {TOLERANCE:e}"
    )]
    Check { month: String, got: f64, want: f64, difference: f64 },
}

impl Error {
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { path: path.into(), source }
    }

    fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.into(), why: why.to_string() }
    }
}

type Result<T, E = Error> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = match options.backend {
        BackendName::Cpu => run(&lstm_cpu::Cpu::new(), &options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run<B: Backend>(backend: &B, options: &Options) -> Result<()> {
    let or_repository = |path: &Option<PathBuf>, name| path.clone().unwrap_or_else(|| repository_data(name));
    let weights = or_repository(&options.weights, "model.safetensors");
    let model = Model::open(backend, &weights)?;
    let data = or_repository(&options.data, "passengers.csv");
    let series = Series::read(&data)?;
    let (known, actual) = series.split_last(HORIZON).map_err(|why| Error::file(&data, why))?;

    let (forecast, outputs) = model.forecast(known, HORIZON)?;
    if let Some(k) = forecast.iter().position(|v| !v.is_finite()) {
        let why = format!("the forecast of {} is {}", series.month(known.len() + k), forecast[k]);
        return Err(Error::file(&weights, why));
    }
    let repeated: Vec<f64> = known[known.len() - YEAR..].iter().copied().cycle().take(HORIZON).collect();
    let (error, error_repeated) = (mean_error(&forecast, actual), mean_error(&repeated, actual));

    println!("{}", model.describe());
    println!("It reads {} to {}, then its own forecasts.\n", series.month(0), series.month(known.len() - 1));
    println!("month      actual  forecast   error");
    for (k, (&f, &a)) in forecast.iter().zip(actual).enumerate() {
        println!("{}  {a:8.0}  {f:8.1}  {:+5.1} %", series.month(known.len() + k), (f - a) / a * 100.0);
    }
    println!("\nMean absolute error: {error:.2} %; repeating the last year's figures: {error_repeated:.2} %.");
    println!("Digest of the LSTM's {HORIZON} outputs: {}", Digest::of(&outputs));

    let out = options.out.clone().unwrap_or_else(|| workspace().join("target/forecast.svg"));
    Chart { series: &series, forecast: &forecast, repeated: &repeated, error, error_repeated }.draw(&out)?;
    println!("Picture: {}", shortened(&out).display());

    let own_input = options.weights.is_some() || options.data.is_some();
    if own_input && options.expected.is_none() {
        println!("Not checked: what is expected is known for the repository's weights and data; see --expected.");
        return Ok(());
    }
    let expected = or_repository(&options.expected, "expected.json");
    let worst = check(&series, &forecast, &read_expected(&expected)?)?;
    println!("Checked: within {worst:.1e} of PyTorch's forecast in double precision (at most {TOLERANCE:e} passes).");
    Ok(())
}

/// The forecast in the training script's results.
fn read_expected(path: &Path) -> Result<Vec<f64>> {
    #[derive(serde::Deserialize)]
    struct Expected {
        forecast_thousands: Vec<f64>,
    }
    let text = fs::read_to_string(path).map_err(Error::io(path))?;
    let Expected { forecast_thousands } = serde_json::from_str(&text).map_err(|e| Error::file(path, e))?;
    if forecast_thousands.len() != HORIZON {
        let why = format!("`forecast_thousands`: expected {HORIZON} months, found {}", forecast_thousands.len());
        return Err(Error::file(path, why));
    }
    Ok(forecast_thousands)
}

/// The worst relative difference of `forecast` to `expected`, if it is small enough.
fn check(series: &Series, forecast: &[f64], expected: &[f64]) -> Result<f64> {
    let differences = forecast.iter().zip(expected).map(|(got, want)| ((got - want) / want).abs());
    // In the total order a NaN is the worst.
    let Some((k, difference)) = differences.enumerate().max_by(|a, b| a.1.total_cmp(&b.1)) else {
        return Ok(0.0);
    };
    if difference <= TOLERANCE {
        return Ok(difference);
    }
    let month = series.month(series.len() - HORIZON + k).to_string();
    Err(Error::Check { month, got: forecast[k], want: expected[k], difference })
}

/// Mean absolute error in percent of the actual figures.
fn mean_error(forecast: &[f64], actual: &[f64]) -> f64 {
    let sum: f64 = forecast.iter().zip(actual).map(|(f, a)| ((f - a) / a).abs()).sum();
    sum / actual.len() as f64 * 100.0
}

fn workspace() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package).into()
}

fn repository_data(name: &str) -> PathBuf {
    workspace().join("tests/data/passengers").join(name)
}

/// `path` as seen from the current folder, if it lies below.
fn shortened(path: &Path) -> &Path {
    env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forecast_is_the_expected_one() -> Result<()> {
        let model = Model::open(&lstm_cpu::Cpu::new(), &repository_data("model.safetensors"))?;
        let series = Series::read(&repository_data("passengers.csv"))?;
        let (known, actual) = series.split_last(HORIZON).expect("enough months");
        let (forecast, outputs) = model.forecast(known, HORIZON)?;
        let mut expected = read_expected(&repository_data("expected.json"))?;
        assert!(check(&series, &forecast, &expected)? < TOLERANCE);
        assert!((mean_error(&forecast, actual) - 5.933_473_596_246_486).abs() < 0.01);

        let reference = lstm_core::Reference(lstm_cpu::Cpu::new());
        let reference = Model::open(&reference, &repository_data("model.safetensors"))?;
        assert_eq!(reference.forecast(known, HORIZON)?, (forecast.clone(), outputs));

        expected[3] *= 1.002;
        let error = check(&series, &forecast, &expected).expect_err("a difference of 2e-3");
        assert!(error.to_string().starts_with("1959-04: the forecast 380."), "{error}");
        expected[5] = f64::NAN;
        let error = check(&series, &forecast, &expected).expect_err("NaN");
        assert!(error.to_string().starts_with("1959-06: "), "{error}");
        Ok(())
    }

    #[test]
    fn the_options_are_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
    }
}
