//! The command-line tool on the simulated GPU: how it reports TF32 mode, which is not exact. The tests of the tool
//! itself run on machines where no backend is inexact.

use std::{
    env, fs,
    path::Path,
    process::{Command, Output},
};

use lstm_core::{Init, LstmConfig, StateDictWriter, TensorNames, Weights};
use serde_json::Value;

use super::{Result, dir, ensure};

/// With this environment variable, this program is the tool.
pub(super) const AS_TOOL: &str = "LSTM_DRIVER_TEST_TOOL";

/// What the reports call the arithmetic of TF32 mode.
const LABEL: &str = "inexact, not bit-identical to other devices: ";

/// Runs the tool on the simulated driver.
fn run(args: &[&str]) -> Result<Output> {
    let program = env::current_exe().map_err(|e| e.to_string())?;
    Command::new(program).args(args).env(AS_TOOL, "1").output().map_err(|e| e.to_string())
}

/// Runs the tool with `--json` and returns the exit code and the report.
fn run_json(args: &[&str]) -> Result<(Option<i32>, Value)> {
    let output = run(&[args, &["--json"]].concat())?;
    let report = serde_json::from_slice(&output.stdout);
    Ok((output.status.code(), report.map_err(|e| format!("{args:?}: {e}: {output:?}"))?))
}

/// The text that the tool writes to stdout.
fn run_text(args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(args)?.stdout).into_owned())
}

pub(super) fn tf32() -> Result<String> {
    let folder = dir("driver-tool");
    fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
    let path = |name: &str| folder.join(name).display().to_string();
    let (model, input) = (path("model.safetensors"), path("x.csv"));
    write_files(&model, &input).map_err(|e| e.to_string())?;
    devices_and_models(&model)?;
    runs(&model, &input)?;
    comparisons(&model, &input)?;
    Ok("the tool reports TF32 mode as inexact".into())
}

/// Writes a model and 40 steps of input. Tensor cores are used from 16 rows, 8 columns and a depth of 8 on: here for
/// the product of the input.
fn write_files(model: &str, input: &str) -> lstm_core::Result<()> {
    let weights = Weights::init(LstmConfig::new(16, 24), &Init::default(), 3)?;
    StateDictWriter::new().lstm("", &weights, TensorNames::PyTorch)?.save(Path::new(model))?;
    let row = |t: usize| (0..16).map(|f| format!("{}", ((t * 7 + f * 3) % 17) as f32 * 0.1 - 0.7)).collect::<Vec<_>>();
    let rows: Vec<String> = (0..40).map(|t| row(t).join(",") + "\n").collect();
    fs::write(input, rows.concat()).map_err(|source| lstm_core::Error::Io { path: input.into(), source })
}

/// `devices` and `inspect` mark the mode as inexact.
fn devices_and_models(model: &str) -> Result<()> {
    for command in [&["devices"][..], &["inspect", model]] {
        let (code, report) = run_json(command)?;
        ensure!(code == Some(0), "{command:?}: {report}");
        for (name, exact) in [("cuda", true), ("cuda-tf32", false)] {
            let is = |row: &&Value| row["name"] == name || row["backend"] == name;
            let row = report["backends"].as_array().and_then(|rows| rows.iter().find(is));
            let row = row.ok_or_else(|| format!("{command:?}: {name} is missing in {report}"))?;
            let arithmetic = row["arithmetic"].as_str().unwrap_or_default();
            ensure!(row["exact"] == exact && arithmetic.starts_with(LABEL) != exact, "{command:?}: {row}");
        }
        ensure!(run_text(command)?.contains(LABEL), "{command:?}");
    }
    Ok(())
}

/// `run` does, too; its outputs differ from the exact ones.
fn runs(model: &str, input: &str) -> Result<()> {
    let on = |backend| ["run", model, "-i", input, "--digest", "--backend", backend];
    let [cpu, exact, fast] = ["cpu", "cuda", "cuda-tf32"].map(|backend| run_json(&on(backend)));
    let (cpu, exact, fast) = (cpu?.1, exact?.1, fast?.1);
    ensure!(exact["exact"] == true && fast["exact"] == false, "{exact} {fast}");
    ensure!(cpu["digest"].is_string() && cpu["digest"] == exact["digest"], "{cpu} {exact}");
    ensure!(fast["digest"].is_string() && exact["digest"] != fast["digest"], "{exact} {fast}");
    ensure!(fast["arithmetic"].as_str().is_some_and(|text| text.starts_with(LABEL)), "{fast}");
    let (exact, fast) = (run_text(&on("cuda"))?, run_text(&on("cuda-tf32"))?);
    ensure!(fast.contains(LABEL) && !exact.contains(LABEL), "{exact} {fast}");
    // The automatic choice takes the GPU, and never TF32 mode.
    let (code, automatic) = run_json(&on("auto"))?;
    ensure!(code == Some(0) && automatic["backend"] == "cuda" && automatic["exact"] == true, "{automatic}");
    Ok(())
}

/// `compare` takes an exact run as the base, in any order of names. Only a tolerance makes it fail.
fn comparisons(model: &str, input: &str) -> Result<()> {
    let compare = ["compare", model, "-i", input, "--backend", "cuda-tf32,cpu"];
    for (more, code, within) in [
        (&[][..], 0, None),
        (&["--tolerance", "1e-2"], 0, Some(true)),
        (&["--tolerance", "1e-9"], 3, Some(false)),
        (&["--tolerance", "0"], 3, Some(false)),
    ] {
        let args = [&compare[..], more].concat();
        let (got, report) = run_json(&args)?;
        let [reference, cpu, fast] = [0, 1, 2].map(|k| &report["runs"][k]);
        ensure!(got == Some(code) && report["exact_runs_identical"] == true, "{report}");
        let backends = [reference, cpu, fast].map(|run| run["backend"].as_str().unwrap_or_default());
        ensure!(backends == ["cpu", "cpu", "cuda-tf32"], "{report}");
        // The outputs and the final state.
        ensure!(cpu["differing"] == 0 && cpu["values"] == 24 * (40 + 2), "{report}");
        ensure!(fast["exact"] == false && fast["differing"].as_u64() > Some(0), "{report}");
        let largest = fast["largest_difference"].as_f64().unwrap_or(f64::NAN);
        ensure!((1e-9..1e-2).contains(&largest), "{report}");
        ensure!(cpu["within_tolerance"].is_null() && fast["within_tolerance"].as_bool() == within, "{report}");
        let text = run_text(&args)?;
        let difference = format!(
            "is inexact: {} of {} values differ from those of cpu (reference), by at most {largest:.1e}",
            fast["differing"], fast["values"]
        );
        ensure!(text.contains(&difference) && text.contains("MORE than the tolerance") == (code == 3), "{text}");
    }
    // Without an exact run, there is no verdict.
    let (code, report) = run_json(&["compare", model, "-i", input, "--backend", "cuda-tf32"])?;
    ensure!(code == Some(0) && report["exact_runs_identical"].is_null(), "{report}");
    // By default only exact backends run.
    let (_, report) = run_json(&["compare", model, "-i", input])?;
    let has_run = |name: &str| report["runs"].as_array().is_some_and(|runs| runs.iter().any(|r| r["backend"] == name));
    ensure!(has_run("cuda") && !report.to_string().contains("tf32"), "{report}");
    Ok(())
}
