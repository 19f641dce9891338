//! Trials that compare with a Python package. They are reported as not run if the package is missing.

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use lstm_core::Backend;
use lstm_tests::{
    backends::{self, BackendVisitor, NotRun},
    python,
    results::{Outcome, ResultLine, record_result},
};

/// A comparison with a Python package.
pub(crate) trait Compare {
    /// Compares one backend with the package. Returns a summary as text.
    ///
    /// # Errors
    /// The results differ, or the comparison fails.
    fn compare<B: Backend>(&self, b: &B) -> Result<String>;
}

/// Runs a comparison on each backend that it visits.
struct CompareAll<'a, C> {
    compare: &'a C,
    results: Vec<Result<String>>,
}

impl<C: Compare> BackendVisitor for CompareAll<'_, C> {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        self.results.push(self.compare.compare(&b).map(|summary| format!("{name}: {summary}")));
    }
}

/// Runs a comparison on every backend. Returns the summaries of all backends.
fn compare_all<C: Compare>(compare: &C) -> Result<String> {
    let mut all = CompareAll { compare, results: Vec::new() };
    backends::for_each_backend(backends::wanted_backends().as_deref(), &mut all);
    Ok(all.results.into_iter().collect::<Result<Vec<_>>>()?.join(", "))
}

/// Whether any backend was visited.
struct AnyBackend(bool);

impl BackendVisitor for AnyBackend {
    fn visit<B: Backend + Send + 'static>(&mut self, _: &str, _: B) {
        self.0 = true;
    }
}

/// The reason why comparisons can't run, or `None` if they can.
fn reason_not_to_run(modules: &str) -> Option<String> {
    let mut any = AnyBackend(false);
    let not_run = backends::for_each_backend(backends::wanted_backends().as_deref(), &mut any);
    match any.0 {
        true => python::import_error(modules),
        false => Some(not_run.iter().map(NotRun::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Runs the comparisons with the package `peer`, which needs the Python modules `modules`. `cases` returns the comparisons,
/// or the reason why they can't run. If a module is missing or `cases` fails, reports the trials as not run, also in the
/// table of `cargo xtask test-all`.
pub(crate) fn main<C: Compare + Send + 'static>(
    peer: &'static str,
    group: &'static str,
    modules: &str,
    cases: impl FnOnce() -> Result<Vec<(&'static str, C)>>,
) {
    let args = Arguments::from_args();
    let report = move |group, case, outcome, detail: &str| {
        println!("{peer}: {case} {detail}");
        record_result(&ResultLine { backend: peer, group, case, outcome, detail }).map_err(|error| format!("{error:#}"))
    };
    let mut trials = Vec::new();
    let cases = match reason_not_to_run(modules) {
        None if !args.list => cases().map_err(|error| format!("{error:#}")),
        reason => Err(reason.unwrap_or_default()),
    };
    match cases {
        Err(_) if args.list => {}
        Err(reason) => {
            if let Err(error) = report("", "", Outcome::NotRun, &format!("not run: {reason}")) {
                eprintln!("{error}");
            }
        }
        Ok(cases) => trials.extend(cases.into_iter().map(|(case, compare)| {
            Trial::test(format!("{peer}::{case}"), move || {
                let result = compare_all(&compare).map_err(|error| format!("{error:#}"));
                let (outcome, detail) = match &result {
                    Ok(summary) => (Outcome::Identical, summary),
                    Err(error) => (Outcome::Failed, error),
                };
                report(group, case, outcome, detail)?;
                Ok(result.map(drop)?)
            })
        })),
    }
    libtest_mimic::run(&args, trials).exit();
}
