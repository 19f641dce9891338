//! Runs the benchmark: starts a worker process for each backend and library, checks that their outputs agree, and times them
//! in rounds.

use std::{
    ffi::OsString,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lstm_core::{CellKind, StateDictWriter, TensorNames};
use lstm_formats::OnnxWriter;

use crate::{
    case::Case,
    results::{F32, NotRun, Subject, Times},
    worker::{Reply, Request, RunTimes},
};

/// Command that starts the worker process of one subject (a backend or library).
#[derive(Clone, Debug)]
pub struct Program {
    /// Name of the subject.
    pub name: String,
    /// Whether the subject is a backend of this repository.
    pub ours: bool,
    /// Whether the subject runs on the CPU with a configurable number of threads.
    pub on_cpu: bool,
    /// Precision of the weights: `f32`, `int8`, `int12` or `bf16`.
    pub precision: String,
    /// Program and arguments. The number of threads is appended as the last argument.
    pub command: Vec<OsString>,
}

/// A running worker process.
struct Worker {
    program: Program,
    /// Description from [`Reply::Ready`].
    description: String,
    child: Child,
    /// Standard input of the process; `None` after the process ended or was stopped.
    requests: Option<ChildStdin>,
    /// Lines of the standard output of the process.
    replies: Receiver<std::io::Result<String>>,
    /// Longest time to wait for a reply, in addition to the time that the request asks for.
    timeout: Duration,
}

/// Results of a group of subjects that are timed with the same number of threads.
#[derive(Debug, Default)]
pub struct GroupResults {
    /// Subjects whose workers started.
    pub subjects: Vec<Subject>,
    /// Times of the subjects in each case.
    pub times: Vec<Times>,
    /// Subjects and cases that could not be timed.
    pub not_run: Vec<NotRun>,
}

/// How often and how long cases are timed.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Number of rounds. In each round, all subjects run the case, one after another.
    pub rounds: usize,
    /// Seconds for which each subject runs a case in one round.
    pub seconds: f64,
    /// Longest time to wait for a worker's reply, in addition to `seconds`; then the worker is stopped.
    pub timeout: Duration,
}

/// Largest accepted difference between the results of a subject with f32 weights and those of the first subject: absolute
/// for outputs, which are between -1 and 1, and relative to the largest gradient for gradients.
const MAX_DIFFERENCE: f64 = 1e-4;

/// The same for a subject with less precision.
const MAX_QUANTIZED_DIFFERENCE: f64 = 0.1;

/// Pause between the runs of two subjects, because threads of some libraries keep spinning for a while after a run.
const PAUSE: Duration = Duration::from_millis(10);

impl Worker {
    /// Starts the worker process and waits until it is ready.
    fn start(program: &Program, threads: usize, timeout: Duration) -> Result<Self> {
        let mut command = Command::new(&program.command[0]);
        command.args(&program.command[1..]).arg(threads.to_string());
        for variable in
            ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "RTEN_NUM_THREADS"]
        {
            command.env(variable, threads.to_string());
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {}", Path::new(&program.command[0]).display()))?;
        let requests = child.stdin.take();
        let lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let (sender, replies) = mpsc::channel();
        // The thread ends with the process, or when the receiver is dropped.
        thread::spawn(move || lines.into_iter().try_for_each(|line| sender.send(line)));
        let mut worker =
            Worker { program: program.clone(), description: String::new(), child, requests, replies, timeout };
        match worker.receive(timeout)? {
            Reply::Ready(description) => worker.description = description,
            Reply::Failed(why) => bail!(why),
            other => bail!("expected the reply `ready`, got {other:?}"),
        }
        Ok(worker)
    }

    /// Receives a reply. If none arrives within `timeout`, the process is stopped.
    fn receive(&mut self, timeout: Duration) -> Result<Reply> {
        let line = match self.replies.recv_timeout(timeout) {
            Ok(line) => line.context("reading a reply")?,
            Err(error) => {
                self.requests = None;
                let _ = self.child.kill();
                match error {
                    RecvTimeoutError::Timeout => {
                        bail!("no reply within {} s; the process was stopped", timeout.as_secs_f64())
                    }
                    RecvTimeoutError::Disconnected => {
                        bail!("the process ended without a reply; see its output above")
                    }
                }
            }
        };
        serde_json::from_str(&line).with_context(|| format!("expected a reply, got: {}", line.trim()))
    }

    /// Sends a request that takes about `seconds`, and receives the reply.
    fn request(&mut self, request: &Request, seconds: f64) -> Result<Reply> {
        let requests = self.requests.as_mut().context("the process ended")?;
        if let Err(error) = writeln!(requests, "{}", serde_json::to_string(request)?) {
            self.requests = None;
            return Err(error).context("the process ended");
        }
        match self.receive(self.timeout + Duration::from_secs_f64(seconds))? {
            Reply::Failed(why) => bail!(why),
            reply => Ok(reply),
        }
    }

    /// Restarts the process if it ended or was stopped in an earlier case.
    fn restart_if_stopped(&mut self, threads: usize) -> Result<()> {
        if self.requests.is_none() {
            *self = Worker::start(&self.program, threads, self.timeout)?;
        }
        Ok(())
    }

    /// Prepares a case and returns its output.
    fn prepare(&mut self, case: &Case, dir: &Path) -> Result<Vec<f32>> {
        let output = dir.join(format!("{}.f32", self.program.name));
        let request = Request::Prepare { case: case.clone(), dir: dir.to_owned(), output: output.clone() };
        match self.request(&request, 0.0)? {
            Reply::Prepared => {}
            other => bail!("expected the reply `prepared`, got {other:?}"),
        }
        let bytes = std::fs::read(&output).with_context(|| output.display().to_string())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    /// Times runs of the prepared case for about `seconds`.
    fn run(&mut self, seconds: f64) -> Result<RunTimes> {
        match self.request(&Request::Run { seconds }, seconds)? {
            Reply::Timed(times) => Ok(times),
            other => bail!("expected the reply `timed`, got {other:?}"),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The process ends at the end of its input, or is killed after a while.
        self.requests = None;
        for _ in 0..500 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(PAUSE);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Times `cases` in the workers of `programs`. The outputs of the first program that runs a case are the reference for all
/// others. Calls `after_case` after each case.
///
/// # Errors
/// If the files of a case can't be written. Failures of workers are part of the results, not errors.
pub fn time_cases(
    programs: &[Program],
    threads: usize,
    cases: &[Case],
    timing: Timing,
    dir: &Path,
    mut after_case: impl FnMut(&Case, &[Times]),
) -> Result<GroupResults> {
    let mut group_results = GroupResults::default();
    let mut workers = Vec::new();
    let not_run = |program: &Program, case: Option<&Case>, error: anyhow::Error| NotRun {
        subject: program.name.clone(),
        case: case.map(|case| case.name.clone()),
        threads,
        why: format!("{error:#}"),
    };
    for program in programs {
        match Worker::start(program, threads, timing.timeout) {
            Ok(worker) => {
                let Program { name, ours, on_cpu, precision, .. } = program.clone();
                let description = worker.description.clone();
                group_results.subjects.push(Subject { name, description, ours, on_cpu, precision });
                workers.push(worker);
            }
            Err(error) => group_results.not_run.push(not_run(program, None, error)),
        }
    }
    for case in cases {
        let dir = write_case_files(case, dir)?;
        let mut reference_output: Option<Vec<f32>> = None;
        let mut running_workers = Vec::new();
        for worker in &mut workers {
            let difference =
                worker.restart_if_stopped(threads).and_then(|()| worker.prepare(case, &dir)).and_then(|output| {
                    match &reference_output {
                        None => {
                            ensure!(output.iter().all(|v| v.is_finite()), "the outputs are not finite");
                            reference_output = Some(output);
                            Ok((0.0, 0.0))
                        }
                        Some(want) => {
                            let is_f32 = worker.program.precision == F32;
                            let limit = if is_f32 { MAX_DIFFERENCE } else { MAX_QUANTIZED_DIFFERENCE };
                            Ok((compare_with_reference(case, want, &output, limit)?, rms_difference(want, &output)))
                        }
                    }
                });
            match difference {
                Ok((difference, rms_difference)) => {
                    let (case, subject) = (case.name.clone(), worker.program.name.clone());
                    let times = Times {
                        case,
                        subject,
                        threads,
                        round_medians_s: Vec::new(),
                        min_s: f64::INFINITY,
                        runs: 0,
                        difference,
                        rms_difference,
                    };
                    running_workers.push((worker, times));
                }
                Err(error) => group_results.not_run.push(not_run(&worker.program, Some(case), error)),
            }
        }
        for _ in 0..timing.rounds {
            let mut remaining_workers = Vec::new();
            for (worker, mut times) in running_workers {
                std::thread::sleep(PAUSE);
                match worker.run(timing.seconds) {
                    Ok(round) => {
                        times.round_medians_s.push(round.median_s);
                        times.min_s = times.min_s.min(round.min_s);
                        times.runs += round.runs;
                        remaining_workers.push((worker, times));
                    }
                    Err(error) => group_results.not_run.push(not_run(&worker.program, Some(case), error)),
                }
            }
            running_workers = remaining_workers;
        }
        let case_times: Vec<Times> = running_workers.into_iter().map(|(_, times)| times).collect();
        after_case(case, &case_times);
        group_results.times.extend(case_times);
    }
    Ok(group_results)
}

/// Writes the weights and input of a case for other libraries. Returns the directory of the files.
fn write_case_files(case: &Case, dir: &Path) -> Result<PathBuf> {
    let dir = dir.join(&case.name);
    // Files of an earlier run may be from another table.
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let weights = case.weights()?;
    // The unfused cell is the fused cell with the weights of each gate in a separate matrix.
    let weights = if case.cell == CellKind::Unfused { weights.into_fused()? } else { weights };
    let [state_dict_path, onnx_path] = ["weights.safetensors", "model.onnx"].map(|name| dir.join(name));
    let writer = StateDictWriter::new().tensor("x", &case.x())?;
    if case.cell == CellKind::Fused || case.cell == CellKind::Unfused {
        writer.lstm("", &weights, TensorNames::PyTorch)?.save(state_dict_path)?;
    } else {
        // PyTorch has no peephole connections.
        writer.save(state_dict_path)?;
    }
    if case.cell != CellKind::PeepholeDense {
        OnnxWriter::new(&weights).save(onnx_path)?;
    }
    Ok(dir)
}

/// Compares the outputs `got` of a worker with the reference `want`. Returns the largest difference, or an error if it
/// exceeds `limit`.
fn compare_with_reference(case: &Case, want: &[f32], got: &[f32], limit: f64) -> Result<f64> {
    ensure!(got.len() == want.len(), "expected {} outputs, got {}", want.len(), got.len());
    let output_count = case.total_steps() * case.config().output_size();
    let max_difference = |want: &[f32], got: &[f32]| {
        let differences = want.iter().zip(got).map(|(want, got)| f64::from(want - got).abs());
        // NaN counts as the largest difference.
        differences.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a })
    };
    let (y, gradient) = want.split_at(output_count.min(want.len()));
    let output_difference = max_difference(y, got);
    let largest_gradient = gradient.iter().fold(0.0, |a, v| v.abs().max(a));
    let gradient_difference =
        if gradient.is_empty() { 0.0 } else { max_difference(gradient, &got[y.len()..]) / f64::from(largest_gradient) };
    for (difference, what) in [(output_difference, "outputs"), (gradient_difference, "gradients")] {
        ensure!(difference <= limit, "the {what} differ by {difference:.2e}, more than {limit:.0e}");
    }
    Ok(output_difference.max(gradient_difference))
}

/// The root mean square of the differences between two lists of the same length.
fn rms_difference(want: &[f32], got: &[f32]) -> f64 {
    let squares: f64 = want.iter().zip(got).map(|(want, got)| f64::from(want - got).powi(2)).sum();
    (squares / want.len().max(1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    /// Creates a program that runs `script` in a shell as its worker process.
    #[cfg(unix)]
    fn shell_worker(script: &str) -> Program {
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        Program { name: "shell".to_owned(), ours: false, on_cpu: true, precision: F32.to_owned(), command }
    }

    #[cfg(unix)]
    #[test]
    fn unresponsive_workers_are_stopped_and_restarted() {
        let timeout = Duration::from_millis(500);
        let error = Worker::start(&shell_worker("exec sleep 1000"), 1, timeout).err().unwrap();
        assert!(error.to_string().contains("no reply within 0.5 s"), "{error}");
        let error = Worker::start(&shell_worker("exit 1"), 1, timeout).err().unwrap();
        assert!(error.to_string().contains("ended without a reply"), "{error}");
        let ready_script = r#"echo '{"ready":"about"}'; read line; exec sleep 1000"#;
        let mut worker = Worker::start(&shell_worker(ready_script), 1, Duration::from_secs(5)).unwrap();
        worker.timeout = timeout;
        for _ in 0..2 {
            worker.restart_if_stopped(1).unwrap();
            let error = worker.run(0.1).unwrap_err();
            assert!(error.to_string().contains("no reply within 0.6 s"), "{error}");
        }
        // A process that ends between two requests is restarted too.
        let mut worker =
            Worker::start(&shell_worker(r#"echo '{"ready":"about"}'"#), 1, Duration::from_secs(5)).unwrap();
        worker.child.wait().unwrap();
        for _ in 0..2 {
            worker.restart_if_stopped(1).unwrap();
            worker.child.wait().unwrap();
            assert!(worker.run(0.1).is_err() && worker.requests.is_none());
        }
    }

    #[test]
    fn rejects_outputs_that_differ_from_the_reference() {
        let cases = case::load(None).unwrap();
        let case = cases.iter().find(|case| case.name == "stream-h24").unwrap();
        let want = vec![0.5; 24];
        let output_ending_with = |value: f32| [vec![0.5; 23], vec![value]].concat();
        assert!(compare_with_reference(case, &want, &output_ending_with(0.50005), MAX_DIFFERENCE).unwrap() > 4e-5);
        for (got, error) in [
            (output_ending_with(0.5002), "outputs differ"),
            (output_ending_with(f32::NAN), "outputs differ"),
            (vec![0.5; 23], "got 23"),
        ] {
            let message = compare_with_reference(case, &want, &got, MAX_DIFFERENCE).unwrap_err().to_string();
            assert!(message.contains(error), "{error}");
        }
        // Gradients follow the outputs and are compared relative to the largest one.
        let (want, got) = ([want.clone(), vec![1e-6]].concat(), [want, vec![1.1e-6]].concat());
        assert!(
            compare_with_reference(case, &want, &got, MAX_DIFFERENCE)
                .unwrap_err()
                .to_string()
                .contains("gradients differ by 1.00e-1")
        );
    }
}
