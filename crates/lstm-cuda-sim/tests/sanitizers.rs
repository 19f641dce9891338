//! The kernels on the host under AddressSanitizer and ThreadSanitizer, as a C++ program of its own: `cpp/sanitize.cpp`.
//! Then faults are planted, each of which must be caught: every barrier of the kernels is left out once.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Output},
    sync::Mutex,
    thread,
};

type Result<T> = std::result::Result<T, String>;

fn main() -> ExitCode {
    if let Some(why) = cannot_run() {
        println!("sanitizers: not run: {why}");
        return if env::var_os("LSTM_REQUIRE").is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    match run() {
        Ok(planted) => {
            println!("sanitizers: nothing found; {planted} planted faults, all of them caught");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("sanitizers: FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

/// The fibers' switch is written for one ABI; the compiler's sanitizers must be installed.
fn cannot_run() -> Option<String> {
    if !cfg!(all(target_arch = "x86_64", target_os = "linux")) {
        return Some("the runner's sanitizers need x86-64 Linux".into());
    }
    #[cfg(target_arch = "x86_64")]
    if !(std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2")) {
        return Some("this CPU has no AVX2 and FMA".into());
    }
    let trivial = directory().join("trivial.cpp");
    let linked = |sanitizer: &str| {
        let out = directory().join("trivial");
        std::fs::write(&trivial, "int main() {}\n").map_err(|e| e.to_string())?;
        compile(&trivial, &out, sanitizer)
    };
    ["thread", "address"].into_iter().find_map(|sanitizer| linked(sanitizer).err())
}

fn directory() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR"))
}

fn compile(source: &Path, out: &Path, sanitizer: &str) -> Result<()> {
    let compiler = env::var("CXX").unwrap_or_else(|_| "c++".into());
    let mut command = Command::new(&compiler);
    command.args(["-std=c++17", "-g1", "-mavx2", "-mfma", "-ffp-contract=off", "-Wno-unknown-pragmas"]);
    if sanitizer == "address" {
        // What vectors are read from, too. Not optimised: that takes longer than it saves.
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

fn run() -> Result<usize> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("cpp/sanitize.cpp");
    let build = |sanitizer: &str| {
        let out = directory().join(format!("sanitize-{sanitizer}"));
        compile(&source, &out, sanitizer).map(|()| out)
    };
    let address = || {
        let program = build("address")?;
        clean(&program)?;
        caught(&program, &["overflow"], "heap-buffer-overflow")?;
        caught(&program, &["divergence"], "no thread can go on")?;
        caught(&program, &["lane"], "no thread can go on")
    };
    let thread = || {
        let program = build("thread")?;
        let said = clean(&program)?;
        Ok((program, said))
    };
    let ((thread, said), ()) = both(thread, address)?;
    let sites = said.lines().filter_map(|line| line.strip_prefix("barrier ")?.rsplit_once(' '));
    let barriers = sites.collect::<Vec<_>>();
    if barriers.is_empty() {
        return Err("no barrier was met".into());
    }
    caught(&thread, &["no-release"], "data race")?;
    let ordered = start(&thread, &["release"])?;
    if !ordered.status.success() {
        return Err(format!("a race where there is none: {}", head(&text(&ordered))));
    }
    let waiting = Mutex::new(barriers.iter());
    let next = || waiting.lock().expect("no panic").next();
    let planted = || std::iter::from_fn(next).try_for_each(|&(file, line)| caught(&thread, &[file, line], "data race"));
    both(planted, planted)?;
    Ok(barriers.len() + 4)
}

/// Two things at the same time.
fn both<A, B: Send>(a: impl FnOnce() -> Result<A>, b: impl FnOnce() -> Result<B> + Send) -> Result<(A, B)> {
    thread::scope(|scope| {
        let b = scope.spawn(b);
        let a = a();
        Ok((a?, b.join().expect("no panic")?))
    })
}

/// What a program says in which there is nothing to find.
fn clean(program: &Path) -> Result<String> {
    let output = start(program, &[])?;
    let text = text(&output);
    let found = !output.status.success() || text.contains("Sanitizer");
    if found { Err(format!("{}: {}", program.display(), head(&text))) } else { Ok(text) }
}

fn start(program: &Path, args: &[&str]) -> Result<Output> {
    let mut command = Command::new(program);
    command.args(args).env("TSAN_OPTIONS", "halt_on_error=1:exitcode=66");
    command.output().map_err(|e| format!("{}: {e}", program.display()))
}

fn caught(program: &Path, args: &[&str], words: &str) -> Result<()> {
    let output = start(program, args)?;
    let text = text(&output);
    if output.status.success() || !text.contains(words) {
        return Err(format!("planted {args:?}: `{words}` was not reported: {}", head(&text)));
    }
    Ok(())
}

fn text(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}

fn head(text: &str) -> String {
    text.lines().take(30).collect::<Vec<_>>().join("\n")
}
