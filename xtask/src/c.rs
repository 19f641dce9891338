//! `cargo xtask c`: builds the C library, installs it to a folder, and runs its tests and examples.

use std::{
    ffi::{OsStr, OsString},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::cargo::{self, not_run, succeed};

/// Build the C library, install it to a folder, and compile and run its tests and examples
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Folder to install to: `include`, `lib` and `lib/pkgconfig` [default: target/c]
    #[arg(long)]
    prefix: Option<PathBuf>,
    /// Features of the package lstm-c, such as wgpu,cuda
    #[arg(long, value_delimiter = ',')]
    features: Vec<String>,
    /// Regenerate include/lstm.h, after the functions changed
    #[arg(long)]
    update_header: bool,
    /// Only install; run no tests
    #[arg(long)]
    no_tests: bool,
}

const PACKAGE: &str = "lstm-c";
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../crates/lstm-c");
const MODELS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/models");

pub(crate) fn run(args: &Args) -> Result<bool> {
    ensure!(cfg!(unix), "expected Linux, macOS or another Unix, where `cc` compiles C");
    let features = args.features.join(",");
    if !args.no_tests || args.update_header {
        // Compares the header with the source, and all results with the Rust library.
        let mut tests = cargo_release();
        tests.args(["test", "--release", "--package", PACKAGE, "--features", &features]);
        if args.update_header {
            tests.env("UPDATE_HEADER", "1");
        }
        succeed(&mut tests)?;
    }
    let mut build = cargo_release();
    build.args(["rustc", "--release", "--package", PACKAGE, "--features", &features]);
    if cfg!(target_os = "linux") {
        build.args(["--", &format!("-Clink-arg=-Wl,-soname,{}", soname())]);
    }
    succeed(&mut build)?;
    let target = cargo::read_workspace()?.target_dir;
    let prefix = args.prefix.clone().unwrap_or_else(|| target.join("c"));
    install(&target.join("release"), &prefix)?;
    if args.no_tests {
        return Ok(true);
    }
    check_symbols(&prefix)?;
    let programs = Programs { prefix: fs::canonicalize(&prefix)?, out: target.join("c-tests") };
    fs::create_dir_all(&programs.out)?;
    let model = |name: &str| Path::new(MODELS).join(name).into_os_string();
    let source = Path::new(SOURCE);
    let interface = source.join("tests/interface.c");
    let (amp, forward) = (source.join("examples/amp.cpp"), source.join("examples/forward.c"));
    programs.run(&interface, "interface", Link::Shared, &[], &[])?;
    programs.run(&interface, "interface-static", Link::Static, &[], &[])?;
    // A C program is a C++ program, too, as far as the header is concerned.
    programs.run(&interface, "interface-cpp", Link::Shared, &["-x", "c++"], &[])?;
    let sanitizer = ["-fsanitize=address", "-g"];
    programs.run(&interface, "interface-asan", Link::Shared, &sanitizer, &[])?;
    programs.run(&forward, "forward", Link::Shared, &[], &[model("two-sizes.onnx")])?;
    programs.run(&forward, "forward-asan", Link::Static, &sanitizer, &[model("nam-two.nam")])?;
    let out = programs.out.join("amp.wav").into_os_string();
    programs.run(&amp, "amp", Link::Shared, &[], &[model("nam.nam")])?;
    let tone = programs.out.join("tone.wav");
    write_tone(&tone)?;
    programs.run(&amp, "amp-asan", Link::Static, &sanitizer, &[model("nam.nam"), tone.into(), out])?;
    if cfg!(all(target_os = "linux", target_env = "gnu")) {
        let models = ["nam.nam", "aidax.json", "guitarml.json"].map(model);
        programs.run(&source.join("tests/realtime.c"), "realtime", Link::Shared, &[], &models)?;
    } else {
        not_run("realtime.c, which needs Linux with glibc")?;
    }
    programs.check_pkg_config(&forward)?;
    println!("installed to {}", prefix.display());
    Ok(true)
}

/// A command that runs cargo. The libraries have no debug information, which would be five times their size.
fn cargo_release() -> Command {
    let mut command = cargo::cargo_command();
    command.env("CARGO_PROFILE_RELEASE_DEBUG", "false");
    command
}

/// How a program is linked with the library.
#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
}

/// Compiles and runs programs against an installed library.
struct Programs {
    prefix: PathBuf,
    /// Folder of the compiled programs.
    out: PathBuf,
}

impl Programs {
    /// Compiles a source file as C11 or C++17, where a warning is an error, and runs it.
    fn run(&self, source: &Path, name: &str, link: Link, flags: &[&str], args: &[OsString]) -> Result<()> {
        let is_cpp = source.extension() == Some(OsStr::new("cpp")) || flags.contains(&"c++");
        let program = self.out.join(name);
        let mut compile = compiler(is_cpp);
        compile.args(["-O2", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]).args(flags);
        compile.arg(if is_cpp { "-std=c++17" } else { "-std=c11" }).arg(source).args(["-x", "none"]);
        compile.arg("-I").arg(self.prefix.join("include")).arg("-o").arg(&program);
        let lib = self.prefix.join("lib");
        match link {
            Link::Shared => compile.arg("-L").arg(&lib).arg("-llstm").arg(rpath(&lib)),
            Link::Static => compile.arg(lib.join("liblstm.a")),
        };
        succeed(compile.args(["-lpthread", "-lm", "-ldl"]))?;
        println!("-- {name}");
        succeed(Command::new(&program).args(args))
    }

    /// Compiles an example with the flags that pkg-config gives.
    fn check_pkg_config(&self, source: &Path) -> Result<()> {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", self.prefix.join("lib/pkgconfig")).args(["--cflags", "--libs", "lstm"]);
        let Ok(output) = pkg_config.output() else {
            return not_run("pkg-config, which is not installed");
        };
        ensure!(output.status.success(), "pkg-config: {}", String::from_utf8_lossy(&output.stderr));
        let flags = String::from_utf8(output.stdout)?;
        let program = self.out.join("forward-pkg-config");
        succeed(compiler(false).arg(source).args(flags.split_whitespace()).arg("-o").arg(program))
    }
}

/// The C or C++ compiler, which the variables `CC` and `CXX` name.
fn compiler(is_cpp: bool) -> Command {
    let (variable, default) = if is_cpp { ("CXX", "c++") } else { ("CC", "cc") };
    Command::new(std::env::var_os(variable).unwrap_or_else(|| default.into()))
}

/// The name under which programs look for the shared library at run time. While the version is 0.x, a minor version may
/// change functions.
fn soname() -> String {
    format!("liblstm.so.{}.{}", env!("CARGO_PKG_VERSION_MAJOR"), env!("CARGO_PKG_VERSION_MINOR"))
}

fn rpath(folder: &Path) -> OsString {
    let mut flag = OsString::from("-Wl,-rpath,");
    flag.push(folder);
    flag
}

/// Copies the header, the libraries and the file for pkg-config.
fn install(build: &Path, prefix: &Path) -> Result<()> {
    let version = env!("CARGO_PKG_VERSION");
    let (include, lib) = (prefix.join("include"), prefix.join("lib"));
    for folder in [&include, &lib.join("pkgconfig")] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let prefix = fs::canonicalize(prefix)?;
    copy(&Path::new(SOURCE).join("include/lstm.h"), &include.join("lstm.h"))?;
    copy(&build.join("liblstm.a"), &lib.join("liblstm.a"))?;
    if cfg!(target_os = "macos") {
        copy(&build.join("liblstm.dylib"), &lib.join("liblstm.dylib"))?;
    } else {
        // The usual names: the file, the name that programs look for, and the name that the linker looks for.
        let file = format!("liblstm.so.{version}");
        copy(&build.join("liblstm.so"), &lib.join(&file))?;
        link(&file, &lib.join(soname()))?;
        link(&soname(), &lib.join("liblstm.so"))?;
    }
    let template = fs::read_to_string(Path::new(SOURCE).join("lstm.pc.in"))?;
    let text = template.replace("@prefix@", &prefix.display().to_string()).replace("@version@", version);
    fs::write(lib.join("pkgconfig/lstm.pc"), text)?;
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    // A program that is running keeps the old file.
    if to.exists() {
        fs::remove_file(to)?;
    }
    let size = fs::copy(from, to).with_context(|| format!("{} to {}", from.display(), to.display()))?;
    println!("{}: {} KiB", to.display(), size.div_ceil(1024));
    Ok(())
}

/// Replaces a symbolic link.
#[cfg(unix)]
fn link(target: &str, link: &Path) -> Result<()> {
    if link.symlink_metadata().is_ok() {
        fs::remove_file(link)?;
    }
    std::os::unix::fs::symlink(target, link).with_context(|| link.display().to_string())
}

#[cfg(not(unix))]
fn link(_target: &str, _link: &Path) -> Result<()> {
    bail!("symbolic links need a Unix")
}

/// Checks that the shared library exports the functions of the header, and nothing else.
fn check_symbols(prefix: &Path) -> Result<()> {
    let library = prefix.join("lib/liblstm.so");
    let output = Command::new("nm").args(["-D", "--defined-only"]).arg(&library).output();
    let Some(output) = output.ok().filter(|output| output.status.success()) else {
        return not_run("the check of exported symbols, which needs `nm` and a shared library");
    };
    let text = String::from_utf8(output.stdout)?;
    let exported = text.lines().filter_map(|line| line.split_whitespace().nth(2)).map(str::to_owned);
    let exported: std::collections::BTreeSet<String> = exported.collect();
    let header = fs::read_to_string(prefix.join("include/lstm.h"))?;
    let words =
        header.lines().filter(|line| !line.trim_start().starts_with('*')).flat_map(|line| line.split(['(', ' ', '*']));
    let declared: std::collections::BTreeSet<String> =
        words.filter(|word| word.starts_with("lstm_")).map(str::to_owned).collect();
    if exported != declared {
        let only = |a: &std::collections::BTreeSet<String>, b| a.difference(b).cloned().collect::<Vec<_>>().join(", ");
        bail!(
            "exported but not declared: {}; declared but not exported: {}",
            only(&exported, &declared),
            only(&declared, &exported)
        );
    }
    println!("{} exported functions", exported.len());
    Ok(())
}

/// Writes a WAV file of 16-bit samples in two channels.
fn write_tone(path: &Path) -> Result<()> {
    let samples: Vec<u8> =
        (0..48_000u32).flat_map(|k| (((k * 440 % 48_000) / 2) as i16).to_le_bytes().repeat(2)).collect();
    let len = samples.len() as u32;
    let mut bytes = Vec::new();
    for part in [&b"RIFF"[..], &(36 + len).to_le_bytes(), b"WAVEfmt ", &16u32.to_le_bytes()] {
        bytes.extend(part);
    }
    for value in [1u16, 2] {
        bytes.extend(value.to_le_bytes());
    }
    for value in [48_000u32, 48_000 * 4] {
        bytes.extend(value.to_le_bytes());
    }
    for value in [4u16, 16] {
        bytes.extend(value.to_le_bytes());
    }
    for part in [&b"data"[..], &len.to_le_bytes(), &samples] {
        bytes.extend(part);
    }
    Ok(fs::write(path, bytes)?)
}
