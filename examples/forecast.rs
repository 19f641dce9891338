//! Trains an LSTM on ten years of airline passengers, forecasts two more with it, and draws both.
//!
//! `cargo run --release --example forecast` reads data from the repository. The model sees the monthly figures of ten
//! years, then runs freely: each forecast month becomes the input of the next. With `--weights` it is not trained but
//! read from a file.

mod backend;
#[path = "forecast/chart.rs"]
mod chart;
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
use lstm_core::Backend;

use crate::{
    backend::{BackendName, on},
    error::{Error, Result},
    model::{Growth, Model},
    report::{Report, SHARE, TOLERANCE, read_expected},
    series::{Series, YEAR},
    train::{MAX_LOSS, Recipe, train},
};

/// How many months are forecast.
const HORIZON: usize = 2 * YEAR;

/// Trains an LSTM on monthly airline passengers, forecasts their last two years with it, and draws both.
///
/// Ends with an error unless the loss has fallen and the forecast is far better than repeating the last year.
#[derive(Parser)]
struct Options {
    /// Passengers: a CSV with the columns `month` and `passengers_thousands` [default: the repository's]
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,

    #[command(flatten)]
    recipe: Recipe,

    /// Where to save the trained weights, as safetensors that PyTorch reads [default: target/forecast.safetensors in the
    /// workspace]
    #[arg(long, value_name = "FILE", conflicts_with = "weights")]
    save: Option<PathBuf>,

    /// Do not train, take these weights: a PyTorch state dict with `lstm.*`, `head.*` and the metadata `mean` and `std`,
    /// such as tests/data/passengers/model.safetensors
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,

    /// Forecast to check that of the weights against, as the training script writes it [default: expected.json beside
    /// the weights, if it is there and no other data are given]
    #[arg(long, value_name = "FILE", requires = "weights")]
    expected: Option<PathBuf>,

    /// Where to draw the picture, as SVG [default: target/forecast.svg in the workspace]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// What to compute on
    #[arg(long, value_name = "NAME", value_enum, default_value = "cpu")]
    backend: BackendName,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let result = on!(options.backend, backend => run(&backend, &options));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run<B: Backend>(backend: &B, options: &Options) -> Result<()> {
    let data = options.data.clone().unwrap_or_else(|| repository_data("passengers.csv"));
    let series = Series::read(&data, HORIZON)?;
    match &options.weights {
        Some(weights) => forecast(backend, options, &series, weights),
        None => train_and_forecast(backend, options, &series, &data),
    }
}

fn train_and_forecast<B: Backend>(backend: &B, options: &Options, series: &Series, data: &Path) -> Result<()> {
    let (recipe, known) = (&options.recipe, series.known());
    let growth = Growth::of(known).map_err(|why| Error::file(data, why))?;
    println!("Training on {} to {}: {recipe}.", series.month(0), series.month(known.len() - 1));
    let start = Instant::now();
    let trained = train(backend, known, growth, recipe)?;
    if let (Some(first), Some(last)) = (trained.losses.first(), trained.losses.last()) {
        println!("Trained in {:.1} s: the loss went from {first:.4} to {last:.4}.\n", start.elapsed().as_secs_f64());
    }

    let file = options.save.clone().unwrap_or_else(|| workspace().join("target/forecast.safetensors"));
    trained.save(&file)?;
    let model = Model::open(backend, &file)?;
    let report = show(series, &model, &file)?;
    if !report.same_bits(&Report::new(series, &trained.model(), &file)?) {
        return Err(Error::Reloaded { path: file });
    }
    println!(
        "Weights: {} (the forecast is made from this file; the model in memory gives the same bits)",
        shortened(&file).display()
    );
    draw(&report, &trained.losses, options)?;
    trained.check_loss()?;
    report.check_skill()?;
    let share = SHARE * 100.0;
    println!("Checked: the loss is at most {MAX_LOSS}, the error at most {share:.0} % of repeating the last year's.");
    Ok(())
}

fn forecast<B: Backend>(backend: &B, options: &Options, series: &Series, weights: &Path) -> Result<()> {
    let report = show(series, &Model::open(backend, weights)?, weights)?;
    draw(&report, &[], options)?;
    let beside =
        || Some(weights.with_file_name("expected.json")).filter(|file| options.data.is_none() && file.exists());
    let Some(expected) = options.expected.clone().or_else(beside) else {
        println!("Not checked: no forecast is known for these weights and data; see --expected.");
        return Ok(());
    };
    let worst = report.check(&read_expected(&expected, HORIZON)?)?;
    println!("Checked: within {worst:.1e} of PyTorch's forecast in double precision (at most {TOLERANCE:e} passes).");
    Ok(())
}

/// Forecasts with the model in `file` and prints the table.
fn show<'a, B: Backend>(series: &'a Series, model: &Model<B>, file: &Path) -> Result<Report<'a>> {
    let report = Report::new(series, model, file)?;
    println!("{}", model.describe());
    println!("It reads {} to {}, then its own forecasts.\n", series.month(0), series.month(series.known().len() - 1));
    println!("{report}");
    Ok(report)
}

fn draw(report: &Report<'_>, losses: &[f64], options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| workspace().join("target/forecast.svg"));
    chart::draw(report, losses, &out)?;
    println!("Picture: {}", shortened(&out).display());
    Ok(())
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
    use lstm_core::Reference;
    use lstm_cpu::Cpu;

    use super::*;

    fn passengers() -> Result<Series> {
        Series::read(&repository_data("passengers.csv"), HORIZON)
    }

    #[test]
    fn the_forecast_is_the_expected_one() -> Result<()> {
        let (series, file) = (passengers()?, repository_data("model.safetensors"));
        let report = Report::new(&series, &Model::open(&Cpu::new(), &file)?, &file)?;
        let mut expected = read_expected(&repository_data("expected.json"), HORIZON)?;
        assert!(report.check(&expected)? < TOLERANCE);
        assert!((report.error - 5.933_473_596_246_486).abs() < 0.01);

        let reference = Model::open(&Reference(Cpu::new()), &file)?;
        assert!(report.same_bits(&Report::new(&series, &reference, &file)?));

        expected[3] *= 1.002;
        let error = report.check(&expected).expect_err("a difference of 2e-3");
        assert!(error.to_string().starts_with("1959-04: the forecast 380."), "{error}");
        expected[5] = f64::NAN;
        let error = report.check(&expected).expect_err("NaN");
        assert!(error.to_string().starts_with("1959-06: "), "{error}");
        Ok(())
    }

    #[test]
    fn training_gives_the_same_bits_on_every_path_and_from_the_file() -> Result<()> {
        fn trained<B: Backend>(backend: &B, recipe: &Recipe, file: &Path) -> Result<(Vec<f64>, Vec<u64>)> {
            let series = passengers()?;
            let growth = Growth::of(series.known()).expect("growth that varies");
            let trained = train(backend, series.known(), growth, recipe)?;
            trained.save(file)?;
            let report = Report::new(&series, &Model::open(backend, file)?, file)?;
            assert!(report.same_bits(&Report::new(&series, &trained.model(), file)?));
            Ok((trained.losses, report.forecast.iter().map(|v| v.to_bits()).collect()))
        }
        let file = env::temp_dir().join(format!("forecast-{}/new/model.safetensors", std::process::id()));
        let recipe = Recipe { steps: 30, seed: 1, hidden: 9, rate: 0.01 };
        let (losses, forecast) = trained(&Cpu::new(), &recipe, &file)?;
        assert!(losses[29] < 0.9 * losses[0], "{losses:?}");
        let one = Cpu::builder().threads(1).build()?;
        assert_eq!(trained(&one, &recipe, &file)?, (losses.clone(), forecast.clone()));
        #[cfg(feature = "cuda-host")]
        match lstm_cuda_sim::Host::builder().build() {
            Ok(host) => assert_eq!(trained(&host, &recipe, &file)?, (losses.clone(), forecast.clone())),
            Err(error) => eprintln!("cuda-host: not run: {error}"),
        }
        assert_eq!(trained(&Reference(one), &recipe, &file)?, (losses, forecast));

        let error = trained(&Cpu::new(), &Recipe { rate: 1e30, ..recipe }, &file).expect_err("a rate that is absurd");
        assert!(error.to_string().contains("step "), "{error}");
        std::fs::remove_dir_all(file.ancestors().nth(2).expect("a folder of its own")).expect("what was written");
        Ok(())
    }

    #[test]
    fn a_forecast_must_be_far_better_than_the_last_year() -> Result<()> {
        let (series, file) = (passengers()?, repository_data("model.safetensors"));
        let mut report = Report::new(&series, &Model::open(&Cpu::new(), &file)?, &file)?;
        report.check_skill()?;
        for error in [SHARE * report.error_repeated + 0.1, f64::NAN] {
            report.error = error;
            assert!(report.check_skill().is_err());
        }
        Ok(())
    }

    #[test]
    fn the_options_are_consistent() {
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
