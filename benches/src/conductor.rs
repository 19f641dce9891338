//! Starts one process for each that is timed, checks that all compute the same, and lets them take turns.

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
use lstm_core::{StateDictWriter, TensorNames};
use lstm_formats::OnnxWriter;

use crate::{
    case::{Case, Cell},
    results::{NotRun, Subject, Times},
    worker::{Reply, Request, Turn},
};

/// How a process is started that times one subject.
#[derive(Clone, Debug)]
pub struct Program {
    /// The subject's name.
    pub name: String,
    /// Whether it is ours.
    pub ours: bool,
    /// Whether it runs on the CPU's cores, in as many threads as it is told.
    pub cores: bool,
    /// The program, and its arguments before the number of threads.
    pub command: Vec<OsString>,
}

/// A process that is ready.
struct Player {
    program: Program,
    about: String,
    child: Child,
    /// `None` once it was stopped.
    requests: Option<ChildStdin>,
    replies: Receiver<std::io::Result<String>>,
    patience: Duration,
}

/// What a group of subjects under one number of threads gave.
#[derive(Debug, Default)]
pub struct Group {
    /// Those that were ready.
    pub subjects: Vec<Subject>,
    /// Their times.
    pub times: Vec<Times>,
    /// What could not be timed.
    pub not_run: Vec<NotRun>,
}

/// Turns.
#[derive(Clone, Copy, Debug)]
pub struct Turns {
    /// How many each has.
    pub rounds: usize,
    /// Seconds of one.
    pub seconds: f64,
    /// How long an answer may take before the process is stopped.
    pub patience: Duration,
}

/// Largest difference from our outputs that is put down to rounding: of outputs, which are in -1 to 1; of gradients, as a
/// part of the largest.
const TOLERANCE: f64 = 1e-4;

/// Threads of other libraries go on spinning for a while after their turn.
const PAUSE: Duration = Duration::from_millis(10);

impl Player {
    fn start(program: &Program, threads: usize, patience: Duration) -> Result<Self> {
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
        let (send, replies) = mpsc::channel();
        // Ends with the process, or when nobody listens any more.
        thread::spawn(move || lines.into_iter().try_for_each(|line| send.send(line)));
        let mut player = Player { program: program.clone(), about: String::new(), child, requests, replies, patience };
        match player.reply(patience)? {
            Reply::Ready(about) => player.about = about,
            Reply::Cannot(why) => bail!(why),
            other => bail!("expected that it is ready, got {other:?}"),
        }
        Ok(player)
    }

    fn reply(&mut self, patience: Duration) -> Result<Reply> {
        let line = match self.replies.recv_timeout(patience) {
            Ok(line) => line.context("reading its answer")?,
            Err(error) => {
                self.requests = None;
                let _ = self.child.kill();
                match error {
                    RecvTimeoutError::Timeout => {
                        bail!("no answer in {} s, so it was stopped", patience.as_secs_f64())
                    }
                    RecvTimeoutError::Disconnected => {
                        bail!("the process ended without an answer; what it wrote is above")
                    }
                }
            }
        };
        serde_json::from_str(&line).with_context(|| format!("expected an answer, got: {}", line.trim()))
    }

    /// The answer to a request that should take so long.
    fn ask(&mut self, request: &Request, seconds: f64) -> Result<Reply> {
        let requests = self.requests.as_mut().context("the process ended")?;
        if let Err(error) = writeln!(requests, "{}", serde_json::to_string(request)?) {
            self.requests = None;
            return Err(error).context("the process ended");
        }
        match self.reply(self.patience + Duration::from_secs_f64(seconds))? {
            Reply::Cannot(why) => bail!(why),
            reply => Ok(reply),
        }
    }

    /// Starts it again if a case before stopped it.
    fn again(&mut self, threads: usize) -> Result<()> {
        if self.requests.is_none() {
            *self = Player::start(&self.program, threads, self.patience)?;
        }
        Ok(())
    }

    /// Has it prepare a case; what it computes.
    fn prepare(&mut self, case: &Case, dir: &Path) -> Result<Vec<f32>> {
        let output = dir.join(format!("{}.f32", self.program.name));
        let request = Request::Prepare { case: case.clone(), dir: dir.to_owned(), output: output.clone() };
        match self.ask(&request, 0.0)? {
            Reply::Prepared => {}
            other => bail!("expected that it is prepared, got {other:?}"),
        }
        let bytes = std::fs::read(&output).with_context(|| output.display().to_string())?;
        Ok(bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
    }

    fn run(&mut self, seconds: f64) -> Result<Turn> {
        match self.ask(&Request::Run { seconds }, seconds)? {
            Reply::Timed(turn) => Ok(turn),
            other => bail!("expected times, got {other:?}"),
        }
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        // It ends when its input does, or is made to.
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

/// Times `cases` in some programs, which take turns. Ours come first: what the first computes, all are compared with.
///
/// # Errors
/// What is wrong on this side; what a program can't do is part of what comes back.
pub fn play(
    programs: &[Program],
    threads: usize,
    cases: &[Case],
    turns: Turns,
    dir: &Path,
    mut done: impl FnMut(&Case, &[Times]),
) -> Result<Group> {
    let mut group = Group::default();
    let mut players = Vec::new();
    let not_run = |program: &Program, case: Option<&Case>, error: anyhow::Error| NotRun {
        subject: program.name.clone(),
        case: case.map(|case| case.name.clone()),
        threads,
        why: format!("{error:#}"),
    };
    for program in programs {
        match Player::start(program, threads, turns.patience) {
            Ok(player) => {
                let Program { name, ours, cores, .. } = program.clone();
                group.subjects.push(Subject { name, about: player.about.clone(), ours, cores });
                players.push(player);
            }
            Err(error) => group.not_run.push(not_run(program, None, error)),
        }
    }
    for case in cases {
        let dir = write(case, dir)?;
        let mut reference: Option<Vec<f32>> = None;
        let mut playing = Vec::new();
        for player in &mut players {
            let checked =
                player.again(threads).and_then(|()| player.prepare(case, &dir)).and_then(|output| match &reference {
                    None => {
                        ensure!(output.iter().all(|v| v.is_finite()), "its outputs are not finite");
                        reference = Some(output);
                        Ok(0.0)
                    }
                    Some(want) => compare(case, want, &output),
                });
            match checked {
                Ok(difference) => {
                    let (case, subject) = (case.name.clone(), player.program.name.clone());
                    let times = Times {
                        case,
                        subject,
                        threads,
                        turns_s: Vec::new(),
                        min_s: f64::INFINITY,
                        runs: 0,
                        difference,
                    };
                    playing.push((player, times));
                }
                Err(error) => group.not_run.push(not_run(&player.program, Some(case), error)),
            }
        }
        for _ in 0..turns.rounds {
            let mut still = Vec::new();
            for (player, mut times) in playing {
                std::thread::sleep(PAUSE);
                match player.run(turns.seconds) {
                    Ok(turn) => {
                        times.turns_s.push(turn.median_s);
                        times.min_s = times.min_s.min(turn.min_s);
                        times.runs += turn.runs;
                        still.push((player, times));
                    }
                    Err(error) => group.not_run.push(not_run(&player.program, Some(case), error)),
                }
            }
            playing = still;
        }
        let all: Vec<Times> = playing.into_iter().map(|(_, times)| times).collect();
        done(case, &all);
        group.times.extend(all);
    }
    Ok(group)
}

/// Writes what others need of a case; returns where.
fn write(case: &Case, dir: &Path) -> Result<PathBuf> {
    let dir = dir.join(&case.name);
    // What an earlier run left is of another table.
    if dir.exists() {
        std::fs::remove_dir_all(&dir).with_context(|| dir.display().to_string())?;
    }
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let weights = case.weights()?;
    // The unfused cell computes the same from the same weights.
    let weights = if case.cell == Cell::Unfused { weights.pack()? } else { weights };
    let [state_dict, onnx] = ["weights.safetensors", "model.onnx"].map(|name| dir.join(name));
    let writer = StateDictWriter::new().tensor("x", &case.x())?;
    if case.cell == Cell::Fused || case.cell == Cell::Unfused {
        writer.lstm("", &weights, TensorNames::PyTorch)?.save(state_dict)?;
    } else {
        // PyTorch has no peepholes.
        writer.save(state_dict)?;
    }
    if case.cell != Cell::Dense {
        OnnxWriter::new(&weights).save(onnx)?;
    }
    Ok(dir)
}

/// The largest difference, or an error if it is more than rounding.
fn compare(case: &Case, want: &[f32], got: &[f32]) -> Result<f64> {
    ensure!(got.len() == want.len(), "expected {} outputs, got {}: it computes something else", want.len(), got.len());
    let outputs = case.steps() * case.config().output_size();
    let difference = |want: &[f32], got: &[f32]| {
        let each = want.iter().zip(got).map(|(want, got)| f64::from(want - got).abs());
        // A NaN is larger than all.
        each.fold(0.0, |a: f64, b| if b > a || b.is_nan() { b } else { a })
    };
    let (y, gradient) = want.split_at(outputs.min(want.len()));
    let of_outputs = difference(y, got);
    let largest = gradient.iter().fold(0.0, |a, v| v.abs().max(a));
    let of_gradient =
        if gradient.is_empty() { 0.0 } else { difference(gradient, &got[y.len()..]) / f64::from(largest) };
    for (difference, what) in [(of_outputs, "outputs"), (of_gradient, "gradients")] {
        ensure!(difference <= TOLERANCE, "its {what} differ by {difference:.2e}, more than {TOLERANCE:.0e}");
    }
    Ok(of_outputs.max(of_gradient))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case;

    /// A program of the shell.
    #[cfg(unix)]
    fn shell(script: &str) -> Program {
        let command = ["sh", "-c", script].map(OsString::from).to_vec();
        Program { name: "shell".to_owned(), ours: false, cores: true, command }
    }

    #[cfg(unix)]
    #[test]
    fn who_does_not_answer_is_stopped_and_starts_again() {
        let patience = Duration::from_millis(500);
        let error = Player::start(&shell("exec sleep 1000"), 1, patience).err().unwrap();
        assert!(error.to_string().contains("no answer in 0.5 s"), "{error}");
        let error = Player::start(&shell("exit 1"), 1, patience).err().unwrap();
        assert!(error.to_string().contains("ended without an answer"), "{error}");
        let ready = r#"echo '{"ready":"about"}'; read line; exec sleep 1000"#;
        let mut player = Player::start(&shell(ready), 1, Duration::from_secs(5)).unwrap();
        player.patience = patience;
        for _ in 0..2 {
            player.again(1).unwrap();
            let error = player.run(0.1).unwrap_err();
            assert!(error.to_string().contains("no answer in 0.6 s"), "{error}");
        }
        // Who ends between two requests starts again as well.
        let mut player = Player::start(&shell(r#"echo '{"ready":"about"}'"#), 1, Duration::from_secs(5)).unwrap();
        player.child.wait().unwrap();
        for _ in 0..2 {
            player.again(1).unwrap();
            player.child.wait().unwrap();
            assert!(player.run(0.1).is_err() && player.requests.is_none());
        }
    }

    #[test]
    fn what_computes_something_else_is_not_a_peer() {
        let cases = case::load(None).unwrap();
        let case = cases.iter().find(|case| case.name == "stream-h24").unwrap();
        let want = vec![0.5; 24];
        let with = |value: f32| [vec![0.5; 23], vec![value]].concat();
        assert!(compare(case, &want, &with(0.50005)).unwrap() > 4e-5);
        for (got, error) in
            [(with(0.5002), "outputs differ"), (with(f32::NAN), "outputs differ"), (vec![0.5; 23], "got 23")]
        {
            assert!(compare(case, &want, &got).unwrap_err().to_string().contains(error), "{error}");
        }
        // Beyond the outputs come gradients, which are small.
        let (want, got) = ([want.clone(), vec![1e-6]].concat(), [want, vec![1.1e-6]].concat());
        assert!(compare(case, &want, &got).unwrap_err().to_string().contains("gradients differ by 1.00e-1"));
    }
}
