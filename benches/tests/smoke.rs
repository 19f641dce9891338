//! Runs the program `bench` with small cases, and checks its files, JSON lines, comparison and errors, but not the times.

use std::{
    path::Path,
    process::{Command, Output},
};

use lstm_benches::results::Results;

const CASES: &str = r#"[
 {"name":"step","kind":"step","input":2,"hidden":8,"batch":1,"seq":1,"layers":1,"bidir":false},
 {"name":"both","kind":"forward","input":3,"hidden":8,"batch":2,"seq":4,"layers":2,"bidir":true},
 {"name":"train","kind":"train","input":3,"hidden":8,"batch":2,"seq":4,"layers":1,"bidir":false},
 {"name":"train-dense","kind":"train","input":3,"hidden":8,"batch":2,"seq":4,"layers":1,"bidir":false,"cell":"dense"},
 {"name":"hidden-4","kind":"forward","input":4,"hidden":4,"batch":2,"seq":4,"layers":1,"bidir":false,"series":"hidden"},
 {"name":"hidden-8","kind":"forward","input":8,"hidden":8,"batch":2,"seq":4,"layers":1,"bidir":false,"series":"hidden"}
]"#;

/// Runs the program `bench` in a directory.
fn bench(dir: &Path, args: &[&str]) -> Output {
    let out = Command::new(env!("CARGO_BIN_EXE_bench")).args(args).current_dir(dir).output().unwrap();
    eprintln!("{}", String::from_utf8_lossy(&out.stderr));
    out
}

#[test]
fn quick_run_writes_results_and_reports() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("cases.json"), CASES).unwrap();
    // A library that can't run is reported and does not stop the run.
    let args = ["--quick", "--cases", "cases.json", "--backends", "cpu", "--threads", "1,2", "--out", "out", "--json"];
    let peers = ["--peers", "torch", "--python", "no-such-python"];
    let run = bench(dir.path(), &[&args[..], &peers].concat());
    assert!(run.status.success());

    let out = dir.path().join("out");
    let results = Results::read(&out.join("results.json")).unwrap();
    assert_eq!((results.cases.len(), results.times.len(), results.rooflines.len()), (6, 12, 12));
    assert_eq!(results.threads(), [1, 2]);
    for times in &results.times {
        assert_eq!((times.subject.as_str(), times.round_medians_s.len()), ("lstm-cpu", 2));
        assert!(times.min_s > 0.0 && times.median_s() >= times.min_s && times.runs > 0, "{times:?}");
        assert!(results.roofline_fraction(times).is_some_and(|fraction| fraction > 0.0), "{times:?}");
    }
    assert!(results.not_run.iter().any(|n| n.subject == "torch" && n.why.contains("no-such-python")));

    let lines = String::from_utf8(run.stdout).unwrap();
    assert_eq!(lines.lines().count(), 12);
    for line in lines.lines() {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let keys: Vec<_> = line.as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, ["case", "median_s", "peer", "runs", "threads"]);
        assert_eq!(line["peer"], "lstm-cpu");
    }

    let md = std::fs::read_to_string(out.join("report.md")).unwrap();
    for text in ["## This library", "## Cells", "## Machine limits", "| both | 2 | lstm-cpu |", "no-such-python"] {
        assert!(md.contains(text), "{text} in\n{md}");
    }
    let html = std::fs::read_to_string(out.join("report.html")).unwrap();
    // For each number of threads: times, and times by hidden size. For all of them: roofline fractions, cells, bandwidth.
    assert_eq!(html.matches("<svg").count(), 7, "{html}");
    assert_eq!(html.matches("</table>").count(), 5);
    assert!(!html.contains("<script") && !html.contains("<link") && !html.contains("<img"));

    // Write the reports again for one number of threads.
    let again = bench(dir.path(), &["--from", "out/results.json", "--threads", "1", "--out", "again"]);
    assert!(again.status.success());
    let again = Results::read(&dir.path().join("again/results.json")).unwrap();
    assert_eq!((again.threads(), again.times.len(), again.rooflines.len()), (vec![1], 6, 6));
    assert!(!bench(dir.path(), &["--from", "out/results.json", "--threads", "3", "--out", "again"]).status.success());

    // Compare with earlier results that are ten times as fast, and ten times as slow.
    for (factor, passes) in [(0.1, false), (10.0, true)] {
        let mut old = results.clone();
        old.times.iter_mut().for_each(|times| times.round_medians_s.iter_mut().for_each(|s| *s *= factor));
        std::fs::write(dir.path().join("old.json"), old.to_json().unwrap()).unwrap();
        // With only two rounds, one disturbed round would dominate the noise.
        let run =
            bench(dir.path(), &[&args[..], &["--only", "step", "--compare", "old.json", "--rounds", "5"]].concat());
        assert_eq!(run.status.code(), Some(if passes { 0 } else { 1 }));
    }
}

#[test]
fn rejects_invalid_arguments_before_timing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("bad.json"), "[{}]").unwrap();
    std::fs::write(dir.path().join("old.json"), r#"{"version":0}"#).unwrap();
    for (args, want) in [
        (&["--cases", "none.json"][..], "none.json"),
        (&["--cases", "bad.json"], "missing field `name`"),
        (&["--only", "nothing"], "no case has a name that contains `nothing`"),
        (&["--threads", "0"], "expected 1 to 1024"),
        (&["--rounds", "0"], "expected 1 to 1000"),
        (&["--seconds", "NaN"], "expected 0 to 600"),
        (&["--backends", "abacus"], "no backend `abacus`"),
        (&["--peers", "abacus"], "no peer `abacus`"),
        (&["--compare", "old.json"], "expected results of version 1, got 0"),
        (&["--publish", "../x"], "letters, digits and dashes"),
    ] {
        let run = bench(dir.path(), args);
        assert_eq!(run.status.code(), Some(2), "{args:?}");
        let error = String::from_utf8_lossy(&run.stderr).into_owned();
        assert!(error.contains(want), "{args:?}: {error}");
    }
    assert!(!dir.path().join("target").exists());
}
