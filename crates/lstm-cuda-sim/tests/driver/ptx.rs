//! The kernels as NVRTC compiled them, run on the host: its PTX as C++, one line for each, in which an instruction is a call
//! of the function that `host/ptx.h` has of its name. An instruction that is not known there does not compile.

use std::{env, fmt::Write, fs};

use lstm_cuda::kernels;

use crate::{FROM_PTX, Result, configurations, dir, ensure, simulated_driver::SimulatedDriver};

/// The C++, in a directory of the stand-in that has it.
pub(crate) const SOURCE: &str = "lstm_ptx.cpp";

/// Compiles the kernels with NVRTC, and writes them as C++.
pub(crate) fn write() -> Result<String> {
    let ((major, minor), known) = match kernels::nvrtc() {
        Ok(found) => found,
        // Whoever names a directory, or asks for it, wants it to be there.
        Err(error) if ["LSTM_NVRTC", "LSTM_REQUIRE"].iter().all(|name| env::var_os(name).is_none()) => {
            return Ok(format!("not run: {error}; LSTM_NVRTC=... names a directory that has it"));
        }
        Err(error) => return Err(error.to_string()),
    };
    // Clusters came with sm_90. Of an architecture that NVRTC does not know there is PTX, of the one before.
    let unknown = (91..).find(|architecture| !known.contains(architecture)).expect("NVRTC knows few");
    let compiled = kernels::compile(unknown).map_err(|e| e.to_string())?;
    let ptx = String::from_utf8(compiled.image).map_err(|e| e.to_string())?;
    let (cpp, kernels) = translate(ptx.trim_end_matches('\0'))?;
    let about = format!("{kernels} kernels by NVRTC {major}.{minor}, {} lines of PTX", ptx.lines().count());
    let cpp = format!("extern \"C\" const char *sim_ptx() {{ return \"{about}\"; }}\n{cpp}");
    fs::write(dir(FROM_PTX).join(SOURCE), cpp).map_err(|e| e.to_string())?;
    Ok(about)
}

/// All that devices of several kinds are asked for.
pub(crate) fn run() -> Result<String> {
    let about = SimulatedDriver::load()?.ptx().ok_or("the stand-in has the kernels' sources, not PTX")?;
    configurations::run().map(|ran| format!("{about}; {ran}"))
}

/// A kernel's name and parameter, how large that is, and how many threads a block may have.
#[derive(Default)]
struct Entry<'a> {
    name: &'a str,
    parameter: &'a str,
    bytes: usize,
    threads: usize,
}

/// The C++, and how many kernels it has.
fn translate(ptx: &str) -> Result<(String, usize)> {
    // Lines keep their numbers: what the compiler or a kernel says is about the PTX.
    let mut cpp = "#line 1 \"lstm.ptx\"\n".to_owned();
    let (mut entry, mut inside, mut kernels) = (Entry::default(), false, 0);
    for (at, line) in ptx.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let said = if inside && line == "}" {
            (inside, kernels) = (false, kernels + 1);
            let Entry { name, bytes, threads, .. } = entry;
            Ok(format!("}} static const shim::Kernel {name}_entry(\"{name}\", {bytes}, {threads}, {name}_ptx);"))
        } else if inside {
            statement(line)
        } else if line == "{" {
            inside = true;
            Ok(format!(
                "static void {}_ptx(const void *args) {{ const u64 {} = (u64)args;",
                entry.name, entry.parameter
            ))
        } else {
            head(line, &mut entry).map(|()| String::new())
        };
        let said = said.map_err(|why| format!("line {} of the PTX, `{line}`: {why}", at + 1))?;
        cpp = cpp + &said + "\n";
    }
    ensure!(!inside && kernels > 0, "the PTX has no kernels, or ends in one");
    Ok((cpp, kernels))
}

/// Takes what a line outside of kernels' bodies says of one.
fn head<'a>(line: &'a str, entry: &mut Entry<'a>) -> Result<()> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is no number"));
    if let Some((_, rest)) = line.split_once(".entry ") {
        *entry = Entry { name: rest.trim_end_matches(['(', ' ']), ..Entry::default() };
    } else if let Some(rest) = line.strip_prefix(".param ") {
        let (_, rest) = rest.split_once(".b8 ").ok_or("not one struct")?;
        let (name, size) = rest.split_once('[').ok_or("no size")?;
        (entry.parameter, entry.bytes) = (name, number(size.trim_end_matches([']', ',', ')']))?);
    } else if let Some(rest) = line.strip_prefix(".maxntid ") {
        entry.threads = number(rest.split(',').next().unwrap_or_default())?;
    }
    Ok(())
}

/// A line of a kernel's body.
fn statement(line: &str) -> Result<String> {
    if line.is_empty() || line.starts_with(".pragma") {
        return Ok(String::new());
    }
    if let Some(label) = line.strip_suffix(':') {
        return Ok(format!("{}:;", label.replace('$', "L_")));
    }
    let line = line.strip_suffix(';').ok_or("neither a label nor a statement")?;
    if let Some(registers) = line.strip_prefix(".reg ") {
        return declaration(registers);
    }
    let (condition, line) = match line.strip_prefix('@').map(|rest| rest.split_once(char::is_whitespace)) {
        Some(Some((predicate, rest))) => (format!("if ({}) ", predicate.replace('%', "")), rest.trim()),
        Some(None) => return Err("a condition of nothing".into()),
        None => (String::new(), line),
    };
    let (name, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    Ok(match name {
        "bra" | "bra.uni" => format!("{condition}goto {};", operands.trim().replace('$', "L_")),
        "ret" => format!("{condition}return;"),
        _ => {
            // A vector is as many operands.
            let operands = operands.split([',', '{', '}']).map(str::trim).filter(|operand| !operand.is_empty());
            let operands = operands.map(operand).collect::<Result<Vec<_>>>()?.join(", ");
            format!("{condition}{}({operands});", name.replace("::", "_").replace('.', "_"))
        }
    })
}

/// Registers of a type, such as `.f32 %f<12>`, which hold nothing of use at first.
fn declaration(registers: &str) -> Result<String> {
    let (kind, names) = registers.split_once(char::is_whitespace).ok_or("no names")?;
    let (kind, initial) = match kind {
        ".pred" => ("bool", "false"),
        ".b16" => ("u16", "0xdead"),
        ".b32" => ("u32", "0xdeadbeef"),
        ".f32" => ("float", "__uint_as_float(0x7fc0dead)"),
        ".b64" => ("u64", "0xdeadbeefdeadbeef"),
        _ => return Err(format!("registers of type {kind}")),
    };
    let (name, count) = names.trim().trim_start_matches('%').split_once('<').ok_or("no count")?;
    let count: usize = count.trim_end_matches('>').parse().map_err(|_| format!("`{count}` is no count"))?;
    let mut all = kind.to_owned();
    for n in 0..count {
        let _ = write!(all, "{} {name}{n} = {initial}", if n > 0 { "," } else { "" });
    }
    Ok(all + ";")
}

/// A register, a number, or an address.
fn operand(text: &str) -> Result<String> {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        return Ok(format!("{} + {}", operand(base)?, operand(offset)?));
    }
    if let Some(bits) = text.strip_prefix("0f") {
        return Ok(format!("__uint_as_float(0x{bits}u)"));
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        let value: i128 = text.parse().map_err(|_| format!("`{text}` is no whole number"))?;
        // The smallest has no literal of its own.
        return Ok(if value < 0 { format!("(-{}ll - 1)", -(value + 1)) } else { format!("{value}ll") });
    }
    let name = text.strip_prefix('%').unwrap_or(text).replace('.', "_");
    ensure!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "`{text}` is no operand");
    Ok(name)
}
