//! Trains an LSTM on ten years of monthly airline passengers, forecasts the next two years, and draws a chart.
//!
//! `cargo run --release --example forecast` uses data in the repository. The model reads the months of ten years, then runs
//! autoregressively: each forecast month becomes the input for the next one. With `--weights`, the model is read from a file
//! instead of trained.

mod backend;
#[path = "forecast/chart.rs"]
mod chart;
mod charts;
#[path = "forecast/error.rs"]
mod error;
#[path = "forecast/model.rs"]
mod model;
#[path = "forecast/report.rs"]
mod report;
#[path = "forecast/series.rs"]
mod series;
#[path = "forecast/train.rs"]
mod train;

use std::{
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Parser;
use lstm::{Backend, Device};

use crate::{
    error::{Error, Result},
    model::{GrowthNormalization, Model},
    report::{MAX_ERROR_RATIO, MAX_RELATIVE_DIFFERENCE, Report, read_expected},
    series::{MONTHS_PER_YEAR, Series},
    train::{MAX_LOSS, TrainingOptions, train},
};

/// Number of months to forecast.
const HORIZON_MONTHS: usize = 2 * MONTHS_PER_YEAR;

/// Train an LSTM on monthly airline passengers, forecast the last two years, and draw a chart
///
/// Fails unless training reduces the loss and the forecast is much better than repeating the last year.
#[derive(Parser)]
struct Options {
    /// Data: a CSV file with the columns `month` and `passengers_thousands` [default: the data in the repository]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    #[command(flatten)]
    training: TrainingOptions,

    /// File for the trained weights, safetensors with PyTorch's tensor names [default: target/forecast.safetensors in the
    /// workspace]
    #[arg(long, value_name = "FILE", conflicts_with = "weights")]
    save: Option<PathBuf>,

    /// Use the weights in this file instead of training: safetensors with PyTorch's tensor names `lstm.*` and `head.*` and the
    /// metadata `mean` and `std`, such as tests/data/passengers/model.safetensors
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,

    /// JSON file with the expected forecast, as tests/data/passengers/train.py writes it [default: expected.json in the
    /// directory of the weights, if it exists and --data is not given]
    #[arg(long, value_name = "FILE", requires = "weights")]
    expected: Option<PathBuf>,

    /// File for the chart, SVG [default: target/forecast.svg in the workspace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Backend to run on; auto takes a GPU if there is one
    #[arg(long, value_name = "NAME", value_parser = backend::name_parser(), default_value = "cpu")]
    backend: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = Device::open(&options.backend).map_err(Error::from).and_then(|device| run(&device, &options));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the program on a backend.
fn run<B: Backend>(backend: &B, options: &Options) -> Result<()> {
    let data = options.data.clone().unwrap_or_else(|| repository_data("passengers.csv"));
    let series = Series::read(&data, HORIZON_MONTHS)?;
    match &options.weights {
        Some(weights) => forecast_from_weights(backend, options, &series, weights),
        None => train_and_forecast(backend, options, &series, &data),
    }
}

/// Trains a model, forecasts with it, and checks the loss and the forecast.
fn train_and_forecast<B: Backend>(backend: &B, options: &Options, series: &Series, data: &Path) -> Result<()> {
    let (training, known_values) = (&options.training, series.known_values());
    let growth = GrowthNormalization::from_series(known_values).map_err(|why| Error::file(data, why))?;
    println!("Training on {} to {}: {training}.", series.month(0), series.month(known_values.len() - 1));
    let start = Instant::now();
    let trained_model = train(backend, known_values, growth, training)?;
    if let (Some(first_loss), Some(last_loss)) = (trained_model.losses.first(), trained_model.losses.last()) {
        println!(
            "Trained in {:.1} s: the loss decreased from {first_loss:.4} to {last_loss:.4}.\n",
            start.elapsed().as_secs_f64()
        );
    }

    let file = options.save.clone().unwrap_or_else(|| workspace_dir().join("target/forecast.safetensors"));
    trained_model.save(&file)?;
    let model = Model::open(backend, &file)?;
    let report = print_forecast(series, &model, &file)?;
    if !report.is_bit_identical(&Report::new(series, &trained_model.model(), &file)?) {
        return Err(Error::ReloadMismatch { path: file });
    }
    println!(
        "Weights: {} (the forecast uses this file; the model in memory gives a bit-identical forecast)",
        relative_path(&file).display()
    );
    draw(&report, &trained_model.losses, options)?;
    trained_model.check_loss()?;
    report.check_accuracy()?;
    let max_error_percent = MAX_ERROR_RATIO * 100.0;
    println!(
        "Checked: the loss is at most {MAX_LOSS}, and the error at most {max_error_percent:.0} % of that of repeating the last year."
    );
    Ok(())
}

/// Forecasts with the model in a file, and checks the forecast if an expected one is available.
fn forecast_from_weights<B: Backend>(backend: &B, options: &Options, series: &Series, weights: &Path) -> Result<()> {
    let report = print_forecast(series, &Model::open(backend, weights)?, weights)?;
    draw(&report, &[], options)?;
    let default_file =
        || Some(weights.with_file_name("expected.json")).filter(|file| options.data.is_none() && file.exists());
    let Some(expected) = options.expected.clone().or_else(default_file) else {
        println!("Not checked: there is no expected forecast for these weights and data; use --expected.");
        return Ok(());
    };
    let largest_difference = report.check_forecast(&read_expected(&expected, HORIZON_MONTHS)?)?;
    println!(
        "Checked: the largest relative difference to PyTorch's forecast in double precision is {largest_difference:.1e} (limit {MAX_RELATIVE_DIFFERENCE:e})."
    );
    Ok(())
}

/// Forecasts with a model and prints the table of the forecast. `file` is the model's path for error messages.
fn print_forecast<'a, B: Backend>(series: &'a Series, model: &Model<B>, file: &Path) -> Result<Report<'a>> {
    let report = Report::new(series, model, file)?;
    println!("{}", model.describe());
    println!(
        "Input: {} to {}, then the model's own forecasts.\n",
        series.month(0),
        series.month(series.known_values().len() - 1)
    );
    println!("{report}");
    Ok(report)
}

/// Draws the chart of the forecast and of the training losses to the file that the options name.
fn draw(report: &Report<'_>, losses: &[f64], options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| workspace_dir().join("target/forecast.svg"));
    chart::draw(report, losses, &out)?;
    println!("Chart: {}", relative_path(&out).display());
    Ok(())
}

/// Root directory of the workspace.
fn workspace_dir() -> PathBuf {
    let package_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    package_dir.parent().unwrap_or(package_dir).into()
}

/// Path of the file `name` in the directory with the data of this example.
fn repository_data(name: &str) -> PathBuf {
    workspace_dir().join("tests/data/passengers").join(name)
}

/// Returns `path` relative to the current directory if it is inside that directory, or `path` itself.
fn relative_path(path: &Path) -> &Path {
    env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok()).unwrap_or(path)
}

#[cfg(test)]
mod tests {
    use lstm::{Cpu, Reference};

    use super::*;

    fn read_passengers() -> Result<Series> {
        Series::read(&repository_data("passengers.csv"), HORIZON_MONTHS)
    }

    #[test]
    fn forecast_matches_pytorch() -> Result<()> {
        let (series, file) = (read_passengers()?, repository_data("model.safetensors"));
        let report = Report::new(&series, &Model::open(&Cpu::new(), &file)?, &file)?;
        let mut expected = read_expected(&repository_data("expected.json"), HORIZON_MONTHS)?;
        assert!(report.check_forecast(&expected)? < MAX_RELATIVE_DIFFERENCE);
        assert!((report.error - 5.933_473_596_246_486).abs() < 0.01);

        let reference_model = Model::open(&Reference(Cpu::new()), &file)?;
        assert!(report.is_bit_identical(&Report::new(&series, &reference_model, &file)?));

        expected[3] *= 1.002;
        let error = report.check_forecast(&expected).expect_err("difference of 2e-3");
        assert!(error.to_string().starts_with("1959-04: expected the forecast "), "{error}");
        expected[5] = f64::NAN;
        let error = report.check_forecast(&expected).expect_err("NaN");
        assert!(error.to_string().starts_with("1959-06: "), "{error}");
        Ok(())
    }

    #[test]
    fn training_is_bit_identical_on_all_paths_and_after_reload() -> Result<()> {
        fn train_and_reload<B: Backend>(
            backend: &B,
            training: &TrainingOptions,
            file: &Path,
        ) -> Result<(Vec<f64>, Vec<u64>)> {
            let series = read_passengers()?;
            let growth = GrowthNormalization::from_series(series.known_values()).expect("growth varies");
            let trained_model = train(backend, series.known_values(), growth, training)?;
            trained_model.save(file)?;
            let report = Report::new(&series, &Model::open(backend, file)?, file)?;
            assert!(report.is_bit_identical(&Report::new(&series, &trained_model.model(), file)?));
            Ok((trained_model.losses, report.forecast.iter().map(|v| v.to_bits()).collect()))
        }
        let file = env::temp_dir().join(format!("forecast-{}/new/model.safetensors", std::process::id()));
        let training = TrainingOptions { steps: 30, seed: 1, hidden: 9, rate: 0.01 };
        let (losses, forecast) = train_and_reload(&Cpu::new(), &training, &file)?;
        assert!(losses[29] < 0.9 * losses[0], "{losses:?}");
        let single_threaded = Cpu::builder().threads(1).build()?;
        assert_eq!(train_and_reload(&single_threaded, &training, &file)?, (losses.clone(), forecast.clone()));
        let device = Device::open("cpu")?;
        assert_eq!(train_and_reload(&device, &training, &file)?, (losses.clone(), forecast.clone()));
        assert_eq!(train_and_reload(&Reference(single_threaded), &training, &file)?, (losses, forecast));

        let error = train_and_reload(&Cpu::new(), &TrainingOptions { rate: 1e30, ..training }, &file)
            .expect_err("the loss diverges");
        assert!(error.to_string().contains("step "), "{error}");
        std::fs::remove_dir_all(file.ancestors().nth(2).expect("the file is in a subdirectory"))
            .expect("the directory exists");
        Ok(())
    }

    #[test]
    fn rejects_forecasts_little_better_than_the_last_year() -> Result<()> {
        let (series, file) = (read_passengers()?, repository_data("model.safetensors"));
        let mut report = Report::new(&series, &Model::open(&Cpu::new(), &file)?, &file)?;
        report.check_accuracy()?;
        for error in [MAX_ERROR_RATIO * report.repeated_year_error + 0.1, f64::NAN] {
            report.error = error;
            assert!(report.check_accuracy().is_err());
        }
        Ok(())
    }

    #[test]
    fn options_are_consistent() {
        use clap::CommandFactory;
        Options::command().debug_assert();
        let parse = |line: &str| Options::try_parse_from(line.split(' ')).map_err(|e| e.kind());
        assert!(parse("forecast --weights model.safetensors").is_ok());
        for line in ["--steps 5", "--save file"] {
            let error = parse(&format!("forecast --weights model.safetensors {line}")).err();
            assert_eq!(error, Some(clap::error::ErrorKind::ArgumentConflict), "{line}");
        }
    }
}
