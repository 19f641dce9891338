//! Runs the kernels on the CPU under AddressSanitizer and ThreadSanitizer, by the C++ program `cpp/sanitize.cpp`. Then
//! injects faults, which must be detected. With `LSTM_EXHAUSTIVE`, each barrier of the kernels is skipped once; otherwise
//! the first and the last.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    sync::Mutex,
    thread,
};

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    if let Some(reason) = reason_not_to_run() {
        println!("sanitizers: not run: {reason}");
        return if env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    match run() {
        Ok(faults) => {
            println!("sanitizers: no errors in the kernels; {faults} injected faults, all detected");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("sanitizers: FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Why the sanitizers can't run on this machine: its architecture, or a compiler that lacks them.
fn reason_not_to_run() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("running the kernels on a CPU needs x86-64 Linux".into());
    }
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")) {
        return Some("this CPU has no AVX2 and FMA".into());
    }
    let source = directory().join("trivial.cpp");
    let try_compile = |sanitizer: &str| {
        let out = directory().join("trivial");
        std::fs::write(&source, "int main() {}\n").map_err(|e| e.to_string())?;
        compile(&source, &out, sanitizer)
    };
    ["thread", "address"].into_iter().find_map(|sanitizer| try_compile(sanitizer).err())
}

/// The directory for compiled programs.
fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn compile(source: &Path, out: &Path, sanitizer: &str) -> Result<()> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-g1", "-mavx2", "-mfma", "-ffp-contract=off", "-Wno-unknown-pragmas"]);
    if sanitizer == "address" {
        // Also detects misaligned `float4` loads. Without optimization, which takes longer than it saves.
        command.args(["-fsanitize=alignment", "-fno-sanitize-recover=alignment"]);
    } else {
        command.arg("-O1");
    }
    command.arg(format!("-fsanitize={sanitizer}")).arg(source).arg("-o").arg(out);
    let output = command.output().map_err(|e| format!("{compiler}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{compiler} -fsanitize={sanitizer}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Runs everything; returns the number of injected faults.
fn run() -> Result<usize> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/sanitize.cpp");
    let build = |sanitizer: &str| {
        let out = directory().join(format!("sanitize-{sanitizer}"));
        compile(&source, &out, sanitizer).map(|()| out)
    };
    let under_address_sanitizer = || {
        let program = build("address")?;
        expect_success(&program, &[])?;
        expect_detected(&program, &["overflow"], "heap-buffer-overflow")?;
        expect_detected(&program, &["divergence"], "deadlock")?;
        expect_detected(&program, &["lane"], "deadlock")
    };
    let under_thread_sanitizer = || {
        let program = build("thread")?;
        let output = expect_success(&program, &[])?;
        Ok((program, output))
    };
    let ((program, output), ()) = in_parallel(under_thread_sanitizer, under_address_sanitizer)?;
    let barriers = output.lines().filter_map(|line| line.strip_prefix("barrier ")?.rsplit_once(' '));
    let barriers = barriers.collect::<Vec<_>>();
    if barriers.is_empty() {
        return Err("the kernels executed no barrier".into());
    }
    expect_detected(&program, &["no-release"], "data race")?;
    expect_success(&program, &["release"])?;
    let skipped = match barriers[..] {
        [first, .., last] if env::var_os("LSTM_EXHAUSTIVE").is_none() => vec![first, last],
        _ => barriers,
    };
    let queue = Mutex::new(skipped.iter());
    let next = || queue.lock().expect("no panic").next();
    let skip_barriers =
        || std::iter::from_fn(next).try_for_each(|&(file, line)| expect_detected(&program, &[file, line], "data race"));
    in_parallel(skip_barriers, skip_barriers)?;
    Ok(skipped.len() + 4)
}

/// Runs two functions at the same time.
fn in_parallel<A, B: Send>(a: impl FnOnce() -> Result<A>, b: impl FnOnce() -> Result<B> + Send) -> Result<(A, B)> {
    thread::scope(|scope| {
        let b = scope.spawn(b);
        let a = a();
        Ok((a?, b.join().expect("no panic")?))
    })
}

/// Runs a program, which must succeed without a message of a sanitizer. Returns its output.
fn expect_success(program: &Path, args: &[&str]) -> Result<String> {
    let output = start(program, args)?;
    let text = text(&output);
    let is_clean = output.status.success() && !text.contains("Sanitizer");
    if is_clean { Ok(text) } else { Err(format!("{} {args:?}: {}", program.display(), first_lines(&text))) }
}

/// Runs a program with an injected fault. It must fail with a message that contains `words`.
fn expect_detected(program: &Path, args: &[&str], words: &str) -> Result<()> {
    let output = start(program, args)?;
    let text = text(&output);
    if output.status.success() || !text.contains(words) {
        return Err(format!("injected fault {args:?}: no report of `{words}`: {}", first_lines(&text)));
    }
    Ok(())
}

fn start(program: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).env("TSAN_OPTIONS", "halt_on_error=1:exitcode=66");
    command.output().map_err(|e| format!("{}: {e}", program.display()))
}

/// Standard output and standard error.
fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn first_lines(text: &str) -> String {
    text.lines().take(30).collect::<Vec<_>>().join("\n")
}
