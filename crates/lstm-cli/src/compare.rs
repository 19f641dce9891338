//! `lstm compare`: runs the same sequences on several backends and compares their results bit by bit.

use std::{fmt, process::ExitCode, sync::Arc};

use lstm::{BackendInfo, Device, HostState, ModelWeights, Ops, Precision, arithmetic::Digest, ndarray::Array3};
use serde::Serialize;

use crate::{
    backends::{self, RunnableModel, describe_paths},
    error::{Error, Result},
    model,
    report::{OutputSettings, path_text},
    run, sequences,
};

/// Run a model on every backend and compare outputs and final states bit by bit
///
/// Each backend runs its own kernels. The first one also runs the reference path, which defines the results. The exit
/// code is 3 if two exact backends differ in any bit. For inexact backends, the largest difference from the first run
/// is reported; with --tolerance, a larger difference is exit code 3 too. Backends that are not available are listed.
///
/// With several precisions, such as `--precision f32,int12,int8`, the runs of each one are compared with each other, and
/// the outputs of each one with those of the first: root mean square and largest difference.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    model: model::ModelArgs,

    #[command(flatten)]
    sequences: sequences::SequenceArgs,

    /// Backends to compare; each must be available [default: all available ones except cuda-tf32, which is inexact]
    #[arg(long, short, value_name = "NAME,...", value_delimiter = ',', value_parser = backends::parse_backend)]
    backend: Option<Vec<&'static BackendInfo>>,

    /// Run the reference path on every backend, not only on the first
    #[arg(long)]
    references: bool,

    /// Largest allowed absolute difference between a value of an inexact backend and the first run's; exact backends
    /// must always be bit-identical
    #[arg(long, value_name = "DIFFERENCE", value_parser = parse_tolerance)]
    tolerance: Option<f64>,

    #[command(flatten)]
    options: backends::BackendOptions,
}

fn parse_tolerance(text: &str) -> Result<f64, String> {
    let tolerance = text.parse().ok().filter(|&v: &f64| v.is_finite() && v >= 0.0);
    tolerance.ok_or_else(|| "expected a finite number of at least 0, such as 1e-3".into())
}

#[derive(Serialize)]
struct Report {
    model: String,
    input: String,
    batch: usize,
    steps: usize,
    /// Whether all runs on exact backends are bit-identical; `None` if there is no such run.
    exact_runs_identical: Option<bool>,
    tolerance: Option<f64>,
    runs: Vec<Run>,
    not_run: Vec<UnavailableBackend>,
    /// How the outputs of each precision differ from those of the first; empty for a single precision.
    precisions: Vec<PrecisionError>,
    unused: Vec<String>,
}

/// How the outputs in a precision differ from those in the first one.
#[derive(Serialize)]
struct PrecisionError {
    precision: String,
    /// Root mean square of the differences.
    rms_error: f64,
    largest_error: f64,
    /// Root mean square of the outputs of the first precision.
    rms_output: f64,
}

/// One run of the model on one backend, and how its results differ from those of the first run of the same precision.
#[derive(Default, Serialize)]
struct Run {
    backend: String,
    path: String,
    precision: String,
    arithmetic: String,
    exact: bool,
    digest: String,
    /// Number of compared values, in outputs and final states.
    values: u64,
    /// Number of values that differ. Two NaNs count as equal.
    differing: u64,
    /// Number of bits that differ, over all values.
    differing_bits: u64,
    /// Largest absolute difference from a value of the first run. Infinite (`null` in JSON) if exactly one of two
    /// values is NaN.
    largest_difference: f64,
    /// Whether an inexact run is within the tolerance; `None` for exact runs or without a tolerance.
    within_tolerance: Option<bool>,
    /// Digest of the outputs that the run has computed so far.
    #[serde(skip)]
    running_digest: Digest,
    /// The first run of the same precision, with which this one is compared.
    #[serde(skip)]
    first_index: usize,
}

#[derive(Serialize)]
struct UnavailableBackend {
    backend: String,
    why: String,
}

impl Run {
    /// Compares values of this run with those of the first run, and counts the differences.
    fn compare(&mut self, want: &Array3<f32>, got: &Array3<f32>) {
        for (want, got) in want.iter().zip(got) {
            self.values += 1;
            let bit_count = (want.to_bits() ^ got.to_bits()).count_ones();
            if bit_count > 0 && !(want.is_nan() && got.is_nan()) {
                self.differing += 1;
                self.differing_bits += u64::from(bit_count);
                let difference = (f64::from(*want) - f64::from(*got)).abs();
                let difference = if difference.is_nan() { f64::INFINITY } else { difference };
                self.largest_difference = self.largest_difference.max(difference);
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heading_cells =
            ["backend", "precision", "path", "digest", "differing", "bits", "largest", "arithmetic"].map(String::from);
        let rows = self.runs.iter().map(|row| {
            let Run { backend, precision, path, digest, differing, differing_bits, arithmetic, .. } = row;
            let largest_difference = row.largest_difference;
            let number_cells = [differing.to_string(), differing_bits.to_string(), format!("{largest_difference:.1e}")];
            let [differing, bits, largest] = number_cells;
            let precision = precision.clone();
            [backend.clone(), precision, path.clone(), digest.clone(), differing, bits, largest, arithmetic.clone()]
        });
        let rows: Vec<_> = std::iter::once(heading_cells).chain(rows).collect();
        for row in &rows {
            let column_width = |k: usize| rows.iter().map(|row| row[k].chars().count()).max().unwrap_or(0);
            let cells: Vec<_> =
                row.iter().enumerate().map(|(k, cell)| format!("{cell:<width$}", width = column_width(k))).collect();
            writeln!(f, "{}", cells.join("  ").trim_end())?;
        }
        for UnavailableBackend { backend, why } in &self.not_run {
            writeln!(f, "not run: {backend}: {why}")?;
        }
        let verdict = match self.exact_runs_identical {
            Some(true) => "all exact runs are bit-identical",
            Some(false) => "exact runs are DIFFERENT",
            None => "no run is exact",
        };
        model::write_unused(f, &self.unused)?;
        writeln!(f, "{} x {} steps: {verdict}", self.batch, self.steps)?;
        if let Some((first, others)) = self.precisions.split_first() {
            for PrecisionError { precision, rms_error, largest_error, .. } in others {
                let (name, rms) = (&first.precision, first.rms_output);
                write!(f, "{precision} against {name}: rms error {rms_error:.1e}, largest {largest_error:.1e}")?;
                writeln!(f, ", of outputs with rms {rms:.1e}")?;
            }
        }
        for (_, row) in self.runs.iter().enumerate().filter(|(k, row)| row.first_index != *k && !row.exact) {
            let first_run = &self.runs[row.first_index];
            let Run { backend, path, differing, values, largest_difference, .. } = row;
            write!(f, "{backend} ({path}) is inexact: {differing} of {values} values differ from those of ")?;
            write!(f, "{} ({}), by at most {largest_difference:.1e}", first_run.backend, first_run.path)?;
            match (self.tolerance, row.within_tolerance) {
                (Some(tolerance), Some(true)) => writeln!(f, ", within the tolerance of {tolerance:e}")?,
                (Some(tolerance), _) => writeln!(f, ", MORE than the tolerance of {tolerance:e}")?,
                (None, _) => writeln!(f)?,
            }
        }
        Ok(())
    }
}

pub(crate) fn run(args: &Args, output: OutputSettings) -> Result<ExitCode> {
    let loaded_model = args.model.load_as(None)?;
    loaded_model.check_arrangement()?;
    let precisions = match &args.model.precision[..] {
        [] => vec![(loaded_model.precisions(), loaded_model.weights.clone())],
        precisions => {
            let convert = |&precision: &Precision| {
                let weights = loaded_model.weights.quantize(precision);
                let weights = weights.map_err(|e| Error::from(e).with_path(&args.model.path))?;
                Ok((precision.to_string(), Arc::new(weights)))
            };
            precisions.iter().map(convert).collect::<Result<Vec<(String, Arc<ModelWeights>)>>>()?
        }
    };
    let sequences = args.sequences.open(&loaded_model, output)?;
    let mut not_run = Vec::new();
    let devices = open_devices(args, &mut not_run)?;
    let mut models: Vec<Box<dyn RunnableModel>> = Vec::new();
    let mut rows: Vec<Run> = Vec::new();
    for (precision, weights) in &precisions {
        let first_index = rows.len();
        for (k, device) in devices.iter().enumerate() {
            for reference in if k == 0 || args.references { &[true, false][..] } else { &[false] } {
                let model = backends::load_model(device, weights, *reference)?;
                let arithmetic = device.arithmetic();
                rows.push(Run {
                    backend: device.name().to_owned(),
                    path: describe_paths(&model.paths()),
                    precision: precision.clone(),
                    arithmetic: arithmetic.to_string(),
                    exact: arithmetic.is_exact(),
                    first_index,
                    ..Run::default()
                });
                models.push(model);
            }
        }
    }
    if args.tolerance.is_some() && rows.iter().all(|row| row.exact) {
        return Err(Error::option(
            "tolerance",
            "all of these backends are exact and must be bit-identical, so a tolerance has no effect",
        ));
    }
    let (sequence_shape, input) = (sequences.sequence_shape(), path_text(sequences.path()));
    sequences::catch_interrupts();
    let first_runs: Vec<usize> =
        rows.iter().enumerate().filter(|(k, row)| row.first_index == *k).map(|(k, _)| k).collect();
    let mut errors = vec![ErrorSum::default(); first_runs.len()];
    let states = sequences.run_models(&mut models, |outputs| {
        for (row, y) in rows.iter_mut().zip(outputs) {
            run::add_to_digest(&mut row.running_digest, y);
            row.compare(&outputs[row.first_index], y);
        }
        for (error, &k) in errors.iter_mut().zip(&first_runs) {
            error.add(&outputs[0], &outputs[k]);
        }
        Ok(())
    })?;
    for (row, run_states) in rows.iter_mut().zip(&states) {
        for (want, HostState { h, c }) in states[row.first_index].iter().zip(run_states) {
            row.compare(&want.h, h);
            row.compare(&want.c, c);
        }
        row.digest = row.running_digest.to_string();
        row.within_tolerance =
            args.tolerance.filter(|_| !row.exact).map(|tolerance| row.largest_difference <= tolerance);
    }
    let exact_runs_identical = exact_runs_identical(&rows);
    let passed = exact_runs_identical != Some(false) && rows.iter().all(|row| row.within_tolerance != Some(false));
    let precision_errors =
        errors.iter().zip(&precisions).map(|(error, (precision, _))| error.report(precision.clone()));
    output.report(&Report {
        precisions: if precisions.len() > 1 { precision_errors.collect() } else { Vec::new() },
        model: path_text(&args.model.path),
        input,
        batch: sequence_shape.batch,
        steps: sequence_shape.steps,
        exact_runs_identical,
        tolerance: args.tolerance,
        runs: rows,
        not_run,
        unused: loaded_model.unused_names,
    })?;
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// The sums from which a [`PrecisionError`] is computed.
#[derive(Clone, Copy, Default)]
struct ErrorSum {
    values: f64,
    squared_errors: f64,
    squared_outputs: f64,
    largest: f64,
}

impl ErrorSum {
    /// Adds the differences between two arrays of outputs. A difference that is not a number counts as infinite.
    fn add(&mut self, want: &Array3<f32>, got: &Array3<f32>) {
        for (&want, &got) in want.iter().zip(got) {
            let (want, got) = (f64::from(want), f64::from(got));
            let error =
                if want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan() { 0.0 } else { (want - got).abs() };
            let error = if error.is_nan() { f64::INFINITY } else { error };
            self.values += 1.0;
            self.squared_errors += error * error;
            self.squared_outputs += want * want;
            self.largest = self.largest.max(error);
        }
    }

    fn report(&self, precision: String) -> PrecisionError {
        let rms = |squares: f64| (squares / self.values.max(1.0)).sqrt();
        PrecisionError {
            precision,
            rms_error: rms(self.squared_errors),
            largest_error: self.largest,
            rms_output: rms(self.squared_outputs),
        }
    }
}

/// Whether all runs on exact backends are bit-identical. `rows` must list them before the inexact runs. The result is
/// `None` if there are none, that is, if the first run is inexact.
fn exact_runs_identical(rows: &[Run]) -> Option<bool> {
    let is_identical = |row: &Run| row.differing == 0 || !row.exact;
    rows.first().filter(|first| first.exact).map(|_| rows.iter().all(is_identical))
}

/// Opens the devices, sorted so that exact ones come first. Backends that are not available go to `not_run`, unless the
/// user named them: then they are an error.
fn open_devices(args: &Args, not_run: &mut Vec<UnavailableBackend>) -> Result<Vec<Device>> {
    let backends = args.backend.clone().unwrap_or_else(|| backends::default_backends().collect());
    args.options.check_applicable(&backends)?;
    let mut devices = Vec::new();
    for info in backends {
        match backends::open_device(info, args.options) {
            Ok(device) => devices.push(device),
            Err(Error::Backend { name, why }) if args.backend.is_none() => {
                not_run.push(UnavailableBackend { backend: name, why })
            }
            Err(error) => return Err(error),
        }
    }
    if devices.is_empty() {
        let why = not_run.iter().map(|n| format!("{}: {}", n.backend, n.why)).collect::<Vec<_>>().join("; ");
        return Err(Error::Backend { name: "any".into(), why: format!("none is available: {why}") });
    }
    devices.sort_by_key(|device| !device.arithmetic().is_exact());
    Ok(devices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_differing_bits_and_requires_identity_of_exact_runs_only() {
        let want = Array3::from_shape_vec((1, 2, 2), vec![1.0, -0.0, f32::NAN, 2.0]).unwrap();
        let mut got = want.clone();
        let mut row = Run { exact: true, ..Run::default() };
        row.compare(&want, &got);
        assert_eq!((row.differing, row.differing_bits), (0, 0));
        got[[0, 0, 1]] = 0.0;
        got[[0, 1, 0]] = -f32::NAN;
        got[[0, 1, 1]] = f32::from_bits(2.0f32.to_bits() + 3);
        row.compare(&want, &got);
        assert_eq!((row.differing, row.differing_bits), (2, 3));
        assert_eq!(row.largest_difference, 3.0 * 2.0 * f64::from(f32::EPSILON));
        assert_eq!(row.values, 8);
        // NaN against a number is an infinite difference.
        got[[0, 1, 0]] = 1.0;
        row.compare(&want, &got);
        assert_eq!(row.largest_difference, f64::INFINITY);

        let rows = |base: bool, other: bool| {
            let row = Run { exact: other, differing: 2, ..Run::default() };
            exact_runs_identical(&[Run { exact: base, ..Run::default() }, row])
        };
        assert_eq!([rows(true, true), rows(true, false), rows(false, false)], [Some(false), Some(true), None]);
    }
}
