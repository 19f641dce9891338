//! Trials against a peer in Python, which are reported as not run where it is not there.

use anyhow::Result;
use libtest_mimic::{Arguments, Trial};
use lstm_core::Backend;
use lstm_tests::{
    backends::{self, NotRun, Visit},
    python,
    results::{Line, Outcome, record},
};

/// What is compared with a peer, on one backend.
pub(crate) trait Compare {
    /// Returns what was found, in words.
    ///
    /// # Errors
    /// What differs.
    fn compare<B: Backend>(&self, b: &B) -> Result<String>;
}

/// Compares on every backend that it visits.
struct All<'a, C> {
    compare: &'a C,
    results: Vec<Result<String>>,
}

impl<C: Compare> Visit for All<'_, C> {
    fn visit<B: Backend + Send + 'static>(&mut self, name: &str, b: B) {
        self.results.push(self.compare.compare(&b).map(|found| format!("{name}: {found}")));
    }
}

/// What each backend found.
fn everywhere<C: Compare>(compare: &C) -> Result<String> {
    let mut all = All { compare, results: Vec::new() };
    backends::for_each(backends::wanted().as_deref(), &mut all);
    Ok(all.results.into_iter().collect::<Result<Vec<_>>>()?.join(", "))
}

/// Finds out whether any backend runs.
struct Any(bool);

impl Visit for Any {
    fn visit<B: Backend + Send + 'static>(&mut self, _: &str, _: B) {
        self.0 = true;
    }
}

/// Why nothing can be compared, if so.
fn missing(modules: &str) -> Option<String> {
    let mut any = Any(false);
    let missed = backends::for_each(backends::wanted().as_deref(), &mut any);
    match any.0 {
        true => python::missing(modules),
        false => Some(missed.iter().map(NotRun::to_string).collect::<Vec<_>>().join(", ")),
    }
}

/// Runs `cases` against `peer`, which needs Python's `modules`. Without them nothing is run, and that is what is reported,
/// also in the table of `cargo xtask test-all`.
pub(crate) fn main<C: Compare + Send + 'static>(
    peer: &'static str,
    group: &'static str,
    modules: &str,
    cases: Vec<(&'static str, C)>,
) {
    let args = Arguments::from_args();
    let report = move |group, case, outcome, detail: &str| {
        println!("{peer}: {case} {detail}");
        record(&Line { backend: peer, group, case, outcome, detail }).map_err(|error| format!("{error:#}"))
    };
    let mut trials = Vec::new();
    match missing(modules) {
        Some(_) if args.list => {}
        Some(why) => {
            if let Err(error) = report("", "", Outcome::NotRun, &format!("not run: {why}")) {
                eprintln!("{error}");
            }
        }
        None => trials.extend(cases.into_iter().map(|(case, compare)| {
            Trial::test(format!("{peer}::{case}"), move || {
                let found = everywhere(&compare).map_err(|error| format!("{error:#}"));
                let (outcome, detail) = match &found {
                    Ok(found) => (Outcome::Identical, found),
                    Err(error) => (Outcome::Failed, error),
                };
                report(group, case, outcome, detail)?;
                Ok(found.map(drop)?)
            })
        })),
    }
    libtest_mimic::run(&args, trials).exit();
}
