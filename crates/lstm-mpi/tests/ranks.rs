//! Runs the examples `check` and `char_lm` on several ranks of this machine.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::{Duration, Instant},
};

/// Runs the example `check` on `ranks` ranks, with these options.
fn mpirun(ranks: usize, options: &[&str]) -> Output {
    mpirun_example("check", ranks, options)
}

/// Runs an example on `ranks` ranks, with these options.
fn mpirun_example(name: &str, ranks: usize, options: &[&str]) -> Output {
    // target/debug/deps/ranks-...: cargo builds examples next to the folder of tests.
    let test = env::current_exe().unwrap();
    let program = test.parent().unwrap().parent().unwrap().join("examples").join(name);
    // Root needs a flag, which others may use as well.
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", &ranks.to_string()]).arg(program).args(options);
    command.output().expect("mpirun, of the Debian package openmpi-bin, starts")
}

/// The digest that a run prints, which must succeed.
#[track_caller]
fn digest(ranks: usize, options: &[&str]) -> String {
    let output = mpirun(ranks, options);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{ranks} ranks: {}: {err}", output.status);
    let start = format!("Mpi(rank 0 of {ranks}): digest ");
    let digest = out.lines().find_map(|line| line.strip_prefix(&start));
    digest.unwrap_or_else(|| panic!("{ranks} ranks: {out}")).to_owned()
}

/// A path in the folder for temporary files of tests, without a file.
fn path(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_file(&path);
    path
}

#[test]
fn a_run_of_four_ranks_resumes_on_one_and_three() {
    let want = digest(2, &["--steps", "6"]);
    let run = path("run.safetensors");
    let run = run.to_str().unwrap();
    digest(4, &["--steps", "3", "--save", run]);
    for ranks in [1, 3] {
        assert_eq!(digest(ranks, &["--steps", "6", "--resume", run]), want, "{ranks} ranks");
    }
    assert_ne!(digest(1, &["--steps", "6", "--shards", "6"]), want, "the number of shards has no effect");
}

#[test]
fn a_rank_that_ends_ends_the_job() {
    for fail in ["kill", "panic", "error"] {
        let (run, start) = (path(&format!("{fail}.safetensors")), Instant::now());
        let file = run.to_str().unwrap();
        let output = mpirun(3, &["--steps", "6", "--save", file, "--fail", fail]);
        assert!(!output.status.success(), "{fail}");
        assert!(start.elapsed() < Duration::from_secs(30), "{fail}: {:?}", start.elapsed());
        // The checkpoint of step 2 is whole.
        assert_eq!(digest(2, &["--steps", "6", "--resume", file]), digest(1, &["--steps", "6"]), "{fail}");
    }
}

#[test]
fn ranks_that_differ_are_errors_on_every_rank() {
    for (option, what, part) in [
        ("--change", "shards", "rank 2: shards: expected 7, as on rank 0, got 8"),
        ("--change", "seed", "rank 2: seed: expected 7, as on rank 0, got 8"),
        ("--change", "input", "rank 2: batch: expected (11, 24, 5)"),
        ("--fail", "nan", "rank 2: training step 3: the loss of shard 4 is NaN"),
    ] {
        let output = mpirun(3, &[option, what]);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{what}");
        for rank in 0..3 {
            let line = format!("rank {rank}: error: {part}");
            assert!(text.contains(&line), "{what}: expected {line}, got {text}");
        }
    }
    let output = mpirun(3, &["--shards", "2"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("shards: expected at least 3, the number of ranks"), "{text}");
}

/// Runs the example `char_lm` with a small model. The options that are given replace others.
fn char_lm(ranks: usize, text: &Path, checkpoint: &Path, options: &[&str]) -> Output {
    let small = "--shards 3 --hidden 8 --batch 6 --steps 8 --train-steps 12 --save-every 5 --checkpoint";
    let mut all: Vec<_> = small.split(' ').chain([checkpoint.to_str().unwrap()]).collect();
    all.extend(options.iter().copied().chain([text.to_str().unwrap()]));
    mpirun_example("char_lm", ranks, &all)
}

/// A file with a text. Texts with different seeds have the same characters.
fn text(name: &str, seed: usize) -> PathBuf {
    let text: Vec<u8> = (0..1000).map(|k| b'a' + (k * (3 + 4 * seed) % 10) as u8).collect();
    let path = path(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn a_language_model_resumes_and_draws_its_losses() {
    let text = text("resumed.txt", 0);
    let run = |name: &str, parts: &[(usize, &str)]| {
        let (checkpoint, curve) = (path(&format!("{name}.safetensors")), path(&format!("{name}.svg")));
        for &(ranks, steps) in parts {
            let options = ["--train-steps", steps, "--curve", curve.to_str().unwrap()];
            let output = char_lm(ranks, &text, &checkpoint, &options);
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
        (fs::read(checkpoint).unwrap(), fs::read_to_string(curve).unwrap())
    };
    let (checkpoint, curve) = run("whole", &[(3, "12")]);
    assert!(curve.contains("bits per character") && curve.contains("<polyline"), "{curve}");
    assert!(run("parts", &[(2, "7"), (1, "12")]) == (checkpoint, curve), "the resumed run differs");
}

#[test]
fn a_language_model_resumes_with_its_own_options_only() {
    let (first, other, checkpoint) = (text("first.txt", 0), text("other.txt", 1), path("own.safetensors"));
    let output = char_lm(2, &first, &checkpoint, &["--train-steps", "5"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let before = fs::read(&checkpoint).unwrap();
    let file = checkpoint.display();
    for (text, options, want) in [
        (&first, &["--batch", "5"], format!("--batch: expected 6, as in {file}, got 5")),
        (&first, &["--steps", "9"], format!("--steps: expected 8, as in {file}, got 9")),
        (&first, &["--shards", "4"], format!("--shards: expected 3, as in {file}, got 4")),
        (&other, &["--batch", "6"], "text: expected 1000 bytes of digest ".to_owned()),
    ] {
        let output = char_lm(2, text, &checkpoint, options);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{options:?}");
        for rank in 0..2 {
            let line = format!("rank {rank}: error: {want}");
            assert!(text.contains(&line), "{options:?}: expected {line}, got {text}");
        }
        assert_eq!(fs::read(&checkpoint).unwrap(), before, "{options:?}: the checkpoint has changed");
    }
}
