//! `lstm compare`: the same sequences on every backend, bit by bit; what is not exact, by how far it is away.

use std::{fmt, process::ExitCode};

use lstm_core::{HostState, arithmetic::Digest, ndarray::Array3};
use serde::Serialize;

use crate::{
    backends::{self, Device, Known, Model, describe, describe_paths},
    error::{Error, Result},
    feed, model,
    report::{Output, text},
    run,
};

/// Run a model on every backend and compare outputs and final states bit by bit
///
/// Each backend runs by its own kernels, and the first also by the reference path, the definition. Ends with exit code 3
/// if backends that promise the same bits gave others. Those that promise less are told of, with how far they are from the
/// first; with --tolerance, further than that is exit code 3 as well. Those that can't run here are only told of.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    #[command(flatten)]
    feed: feed::FeedArgs,

    /// The backends, each of which must run; by default all of this build that can, without cuda-tf32, which is not exact
    #[arg(long, short, value_name = "NAME,...", value_delimiter = ',', value_parser = backends::named)]
    backend: Option<Vec<Known>>,

    /// Run every backend's primitives by the reference path too
    #[arg(long)]
    references: bool,

    /// How far a value of a backend that is not exact may be from the first run's; exact ones are held to their bits
    #[arg(long, value_name = "DIFFERENCE", value_parser = tolerance)]
    tolerance: Option<f64>,

    #[command(flatten)]
    options: backends::Options,
}

fn tolerance(text: &str) -> Result<f64, String> {
    let found = text.parse().ok().filter(|&v: &f64| v.is_finite() && v >= 0.0);
    found.ok_or_else(|| "expected a number from 0 on, such as 1e-3".into())
}

#[derive(Serialize)]
struct Report {
    model: String,
    input: String,
    batch: usize,
    steps: usize,
    /// Of the runs that are exact, whether all gave the same bits; none if no run is.
    exact_runs_identical: Option<bool>,
    tolerance: Option<f64>,
    runs: Vec<Row>,
    not_run: Vec<NotRun>,
}

/// How one run differs from the first.
#[derive(Default, Serialize)]
struct Row {
    backend: String,
    path: String,
    arithmetic: String,
    exact: bool,
    digest: String,
    /// Outputs and states.
    values: u64,
    /// Outputs and states that differ; any NaN is as good as another.
    differing: u64,
    /// Their bits that differ.
    differing_bits: u64,
    /// Infinite (in JSON `null`) if only one of the two values is NaN.
    largest_difference: f64,
    /// Of a run that is not exact, if a tolerance was given.
    within_tolerance: Option<bool>,
    #[serde(skip)]
    sum: Digest,
}

#[derive(Serialize)]
struct NotRun {
    backend: String,
    why: String,
}

impl Row {
    fn compare(&mut self, want: &Array3<f32>, got: &Array3<f32>) {
        for (want, got) in want.iter().zip(got) {
            self.values += 1;
            let bits = (want.to_bits() ^ got.to_bits()).count_ones();
            if bits > 0 && !(want.is_nan() && got.is_nan()) {
                self.differing += 1;
                self.differing_bits += u64::from(bits);
                let difference = (f64::from(*want) - f64::from(*got)).abs();
                let difference = if difference.is_nan() { f64::INFINITY } else { difference };
                self.largest_difference = self.largest_difference.max(difference);
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading = ["backend", "path", "digest", "differing", "bits", "largest", "arithmetic"].map(String::from);
        let rows = self.runs.iter().map(|row| {
            let Row { backend, path, digest, differing, differing_bits, largest_difference, arithmetic, .. } = row;
            let numbers = [differing.to_string(), differing_bits.to_string(), format!("{largest_difference:.1e}")];
            let [differing, bits, largest] = numbers;
            [backend.clone(), path.clone(), digest.clone(), differing, bits, largest, arithmetic.clone()]
        });
        let rows: Vec<_> = std::iter::once(heading).chain(rows).collect();
        for row in &rows {
            let width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
            let cells: Vec<_> =
                row.iter().enumerate().map(|(k, cell)| format!("{cell:<width$}", width = width(k))).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        for NotRun { backend, why } in &self.not_run {
            writeln!(f, "not run: {backend}: {why}")?;
        }
        let verdict = match self.exact_runs_identical {
            Some(true) => "what promises the same bits is identical",
            Some(false) => "what promises the same bits is DIFFERENT",
            None => "nothing here promises the bits of other devices",
        };
        writeln!(f, "{} x {} steps: {verdict}", self.batch, self.steps)?;
        let Some((first, others)) = self.runs.split_first() else { return Ok(()) };
        for row in others.iter().filter(|row| !row.exact) {
            let Row { backend, path, differing, values, largest_difference, .. } = row;
            write!(f, "{backend} ({path}) is not exact: {differing} of {values} values differ from those of ")?;
            write!(f, "{} ({}), by at most {largest_difference:.1e}", first.backend, first.path)?;
            match (self.tolerance, row.within_tolerance) {
                (Some(tolerance), Some(true)) => writeln!(f, ", within the tolerance of {tolerance:e}")?,
                (Some(tolerance), _) => writeln!(f, ", MORE than the tolerance of {tolerance:e}")?,
                (None, _) => writeln!(f)?,
            }
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args, output: Output) -> Result<ExitCode> {
    let loaded = args.model.load()?;
    let feed = args.feed.open(&loaded, output)?;
    let mut not_run = Vec::new();
    let devices = open(args, &mut not_run)?;
    let mut models: Vec<Box<dyn Model>> = Vec::new();
    let mut rows: Vec<Row> = Vec::new();
    for (k, device) in devices.iter().enumerate() {
        for reference in if k == 0 || args.references { &[true, false][..] } else { &[false] } {
            let model = device.load(&loaded.weights, *reference)?;
            let arithmetic = device.arithmetic();
            rows.push(Row {
                backend: device.name().to_owned(),
                path: describe_paths(&model.paths()),
                arithmetic: describe(&arithmetic),
                exact: arithmetic.is_exact(),
                ..Row::default()
            });
            models.push(model);
        }
    }
    if args.tolerance.is_some() && rows.iter().all(|row| row.exact) {
        return Err(Error::option("tolerance", "all of these backends are exact, and are held to their bits"));
    }
    let (extent, input) = (feed.extent(), text(feed.path()));
    feed::catch_interrupts();
    let states = feed.run(&mut models, |outputs| {
        for (row, y) in rows.iter_mut().zip(outputs) {
            run::add(&mut row.sum, y);
            row.compare(&outputs[0], y);
        }
        Ok(())
    })?;
    for (row, HostState { h, c }) in rows.iter_mut().zip(&states) {
        row.compare(&states[0].h, h);
        row.compare(&states[0].c, c);
        row.digest = row.sum.to_string();
        row.within_tolerance = args.tolerance.filter(|_| !row.exact).map(|most| row.largest_difference <= most);
    }
    let exact_runs_identical = identical(&rows);
    let passed = exact_runs_identical != Some(false) && rows.iter().all(|row| row.within_tolerance != Some(false));
    output.report(&Report {
        model: text(&args.model.path),
        input,
        batch: extent.batch,
        steps: extent.steps,
        exact_runs_identical,
        tolerance: args.tolerance,
        runs: rows,
        not_run,
    })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// Whether all that promise the same bits gave them. What promises less comes first only where nothing promises more: then
/// there is nothing to say.
fn identical(rows: &[Row]) -> Option<bool> {
    let same = |row: &Row| row.differing == 0 || !row.exact;
    rows.first().filter(|first| first.exact).map(|_| rows.iter().all(same))
}

/// The devices, the exact ones first; adds why others are missing.
fn open(args: &Args, not_run: &mut Vec<NotRun>) -> Result<Vec<Box<dyn Device>>> {
    let backends = args.backend.clone().unwrap_or_else(|| backends::usual().collect());
    args.options.check(&backends)?;
    let mut devices = Vec::new();
    for known in backends {
        match backends::open(known, args.options) {
            Ok(device) => devices.push(device),
            Err(Error::Backend { name, why }) if args.backend.is_none() => not_run.push(NotRun { backend: name, why }),
            Err(error) => return Err(error),
        }
    }
    if devices.is_empty() {
        let why = not_run.iter().map(|n| format!("{}: {}", n.backend, n.why)).collect::<Vec<_>>().join("; ");
        return Err(Error::Backend { name: "any".into(), why: format!("none can run here: {why}") });
    }
    devices.sort_by_key(|device| !device.arithmetic().is_exact());
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_that_differ_are_counted_and_only_promises_are_held() {
        let want = Array3::from_shape_vec((1, 2, 2), vec![1.0, -0.0, f32::NAN, 2.0]).unwrap();
        let mut got = want.clone();
        let mut row = Row { exact: true, ..Row::default() };
        row.compare(&want, &got);
        assert_eq!((row.differing, row.differing_bits), (0, 0));
        got[[0, 0, 1]] = 0.0;
        got[[0, 1, 0]] = -f32::NAN;
        got[[0, 1, 1]] = f32::from_bits(2.0f32.to_bits() + 3);
        row.compare(&want, &got);
        assert_eq!((row.differing, row.differing_bits), (2, 3));
        assert_eq!(row.largest_difference, 3.0 * 2.0 * f64::from(f32::EPSILON));
        assert_eq!(row.values, 8);
        // A number where a NaN was is further away than any tolerance.
        got[[0, 1, 0]] = 1.0;
        row.compare(&want, &got);
        assert_eq!(row.largest_difference, f64::INFINITY);

        let rows = |base: bool, other: bool| {
            let row = Row { exact: other, differing: 2, ..Row::default() };
            identical(&[Row { exact: base, ..Row::default() }, row])
        };
        assert_eq!([rows(true, true), rows(true, false), rows(false, false)], [Some(false), Some(true), None]);
    }
}
