//! CUDA's inexact TF32 mode: it runs only on request and is always reported as inexact. The test `driver` of
//! lstm-cuda-sim has more of it, on a simulated GPU.

use lstm::{BackendInfo, LstmConfig};

use super::{TempDir, run_json, save_npy, sequences};

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
        Some(why) if BackendInfo::find("cuda-tf32").unwrap().is_compiled => {
            assert!(code == 4 && why.starts_with("backend cuda-tf32: cuda"), "{why}");
        }
        Some(why) => assert!(code == 4 && why.ends_with("build with `--features cuda`"), "{why}"),
    }
}
