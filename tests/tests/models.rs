//! Model files of other programs in `data/models`, each run whole on every backend.

use std::path::Path;

use lstm_tests::{
    backends::wanted_backends,
    verify_models::{parse_allowed, run},
};

#[test]
fn models_of_other_programs_are_right_on_every_backend() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/models");
    let allowed = parse_allowed(&std::fs::read_to_string(dir.join("allow.txt")).unwrap()).unwrap();
    // Each entry is a model that somebody has and can't use.
    assert!(allowed.len() <= 5, "{allowed:?}");
    let wanted = wanted_backends();
    let summary = run(&dir, wanted.as_deref(), &allowed).unwrap();
    // A backend that is not in this build, or has no device here, is reported by the conformance suite.
    let failures: Vec<_> = summary.failures.iter().filter(|failure| !failure.contains(": not run: ")).collect();
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(summary.right >= 46, "{summary:?}");
}
