//! CUDA's inexact TF32 mode: it runs only on request and is always reported as inexact.

use lstm_cpu::LstmConfig;

use super::{TempDir, run_json, save_npy, sequences};
#[cfg(feature = "cuda-host")]
use super::{Value, run};

/// The mode runs and is reported as inexact, or the error tells which feature or device is missing.
#[test]
fn cuda_tf32_runs_or_reports_why_not() {
    let dir = TempDir::new();
    let (_, model) = dir.model(LstmConfig::new(3, 5));
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(2, 4, 3));
    let (code, report) = run_json(&["run", &model, "-i", &input, "--digest", "--backend", "cuda-tf32"]);
    match report["error"]["message"].as_str() {
        None => assert_eq!((code, &report["exact"]), (0, &false.into()), "{report}"),
        Some(why) if cfg!(feature = "cuda") => {
            assert!(code == 4 && why.starts_with("backend cuda-tf32: cuda"), "{why}");
        }
        Some(why) => assert!(code == 4 && why.ends_with("build with `--features cuda`"), "{why}"),
    }
}

#[cfg(feature = "cuda-host")]
#[test]
fn tf32_is_always_reported_as_inexact() {
    let dir = TempDir::new();
    // Tensor cores are used from 16 rows, 8 columns and a depth of 8 on.
    let (_, model) = dir.model(LstmConfig::new(16, 24));
    let input = dir.path("x.npy");
    save_npy(&input, &sequences(20, 8, 16));
    let label = "inexact, not bit-identical to other devices: ";
    for command in [&["devices"][..], &["inspect", &model]] {
        let rows = run_json(command).1["backends"].clone();
        let is = |row: &&Value| row["name"] == "cuda-host-tf32" || row["backend"] == "cuda-host-tf32";
        let row = rows.as_array().unwrap().iter().find(is).unwrap();
        assert_eq!(row["exact"], false, "{row}");
        assert!(row["arithmetic"].as_str().unwrap().starts_with(label), "{row}");
        assert!(String::from_utf8(run(command).stdout).unwrap().contains(label), "{command:?}");
    }

    let on = |backend| ["run", &model, "-i", &input, "--digest", "--backend", backend];
    let (exact, fast) = (run_json(&on("cuda-host")).1, run_json(&on("cuda-host-tf32")).1);
    assert_eq!((&exact["exact"], &fast["exact"]), (&true.into(), &false.into()), "{exact} {fast}");
    assert!(exact["digest"].is_string() && exact["digest"] != fast["digest"], "{exact} {fast}");
    assert!(fast["arithmetic"].as_str().unwrap().starts_with(label), "{fast}");
    let [exact, fast] = ["cuda-host", "cuda-host-tf32"].map(|name| String::from_utf8(run(&on(name)).stdout).unwrap());
    assert!(fast.contains(label) && !exact.contains(label), "{exact} {fast}");

    // The exact run is the base of the comparison in any order of names. Only a tolerance makes the comparison fail.
    let compare = ["compare", &model, "-i", &input, "--backend", "cuda-host-tf32,cpu"];
    for (more, code, within) in [
        (&[][..], 0, None),
        (&["--tolerance", "1e-2"], 0, Some(true)),
        (&["--tolerance", "1e-9"], 3, Some(false)),
        (&["--tolerance", "0"], 3, Some(false)),
    ] {
        let args = [&compare[..], more].concat();
        let (got, report) = run_json(&args);
        let [reference, cpu, fast] = [0, 1, 2].map(|k| &report["runs"][k]);
        assert_eq!((got, &report["exact_runs_identical"]), (code, &true.into()), "{report}");
        assert_eq!([&reference["backend"], &cpu["backend"], &fast["backend"]], ["cpu", "cpu", "cuda-host-tf32"]);
        assert_eq!([&cpu["differing"], &cpu["values"]], [0, 20 * 24 * (8 + 2)], "{report}");
        assert!(fast["exact"] == false && fast["differing"].as_u64() > Some(0), "{report}");
        let largest = fast["largest_difference"].as_f64().unwrap();
        assert!((1e-9..1e-2).contains(&largest), "{report}");
        assert_eq!((cpu["within_tolerance"].as_bool(), fast["within_tolerance"].as_bool()), (None, within), "{report}");
        let text = String::from_utf8(run(&args).stdout).unwrap();
        let difference = format!(
            "is inexact: {} of 4800 values differ from those of cpu (reference), by at most {largest:.1e}",
            fast["differing"]
        );
        assert!(text.contains(&difference) && text.contains("MORE than the tolerance") == (code == 3), "{text}");
    }
    // Without an exact run, there is no verdict.
    let (code, report) = run_json(&["compare", &model, "-i", &input, "--backend", "cuda-host-tf32"]);
    assert_eq!((code, &report["exact_runs_identical"]), (0, &Value::Null), "{report}");
    // By default only exact backends run.
    let report = run_json(&["compare", &model, "-i", &input]).1;
    let runs = report["runs"].as_array().unwrap();
    assert!(runs.iter().any(|run| run["backend"] == "cuda-host") && !report.to_string().contains("tf32"), "{report}");
}
