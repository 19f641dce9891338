//! Runs the kernels as NVRTC compiled them. This translates their PTX to C++, one line of C++ per line of PTX. Each
//! instruction becomes a call of the function of its name in `cpp/ptx.h`. An instruction that is not defined there is a
//! compile error.

use std::{env, fmt::Write, fs};

use lstm_cuda::kernels;

use crate::{PTX_DIR, Result, configurations, dir, ensure, simulated_driver::SimulatedDriver};

/// The file with the translated kernels, in the directory `PTX_DIR`. `executor.cpp` includes it.
pub(crate) const TRANSLATED_KERNELS: &str = "lstm_ptx.cpp";

/// Compiles the kernels to PTX with NVIDIA's NVRTC, and writes them as C++.
pub(crate) fn compile() -> Result<String> {
    let ((major, minor), supported) = match kernels::nvrtc_capabilities() {
        Ok(found) => found,
        // With one of these variables, NVRTC is required.
        Err(error) if ["LSTM_NVRTC", "LSTM_REQUIRE"].iter().all(|name| env::var_os(name).is_none()) => {
            return Ok(format!("not run: {error}; set LSTM_NVRTC to the directory of the library"));
        }
        Err(error) => return Err(error.to_string()),
    };
    // For an architecture that NVRTC does not support, it compiles PTX of the newest older one. That must have
    // clusters, which sm_90 introduced.
    let unsupported = (91..).find(|architecture| !supported.contains(architecture)).expect("the list is finite");
    let compiled = kernels::compile(unsupported).map_err(|e| e.to_string())?;
    let ptx = String::from_utf8(compiled.image).map_err(|e| e.to_string())?;
    let (cpp, kernels) = translate(ptx.trim_end_matches('\0'))?;
    let description = format!("{kernels} kernels by NVRTC {major}.{minor}, {} lines of PTX", ptx.lines().count());
    let cpp = format!("extern \"C\" const char *sim_ptx_description() {{ return \"{description}\"; }}\n{cpp}");
    fs::write(dir(PTX_DIR).join(TRANSLATED_KERNELS), cpp).map_err(|e| e.to_string())?;
    Ok(description)
}

/// Runs the tests of `configurations` with the translated kernels.
pub(crate) fn run() -> Result<String> {
    let description = SimulatedDriver::load()?.ptx_description().ok_or("the kernels were not translated from PTX")?;
    configurations::run().map(|summary| format!("{description}; {summary}"))
}

/// The declaration of a kernel.
#[derive(Default)]
struct Entry<'a> {
    name: &'a str,
    /// The parameter's name.
    parameter: &'a str,
    /// The parameter's size.
    bytes: usize,
    /// The largest number of threads in a block.
    max_threads: usize,
}

/// Translates PTX to C++. Also returns the number of kernels.
fn translate(ptx: &str) -> Result<(String, usize)> {
    // Lines keep their numbers, so that messages of the compiler and of kernels refer to lines of the PTX.
    let mut cpp = "#line 1 \"lstm.ptx\"\n".to_owned();
    let (mut entry, mut inside, mut kernels) = (Entry::default(), false, 0);
    for (at, line) in ptx.lines().enumerate() {
        let line = line.split("//").next().unwrap_or_default().trim();
        let translated = if inside && line == "}" {
            (inside, kernels) = (false, kernels + 1);
            let Entry { name, bytes, max_threads, .. } = entry;
            Ok(format!(
                "}} static const executor::Kernel {name}_entry(\"{name}\", {bytes}, {max_threads}, {name}_ptx);"
            ))
        } else if inside {
            statement(line)
        } else if line == "{" {
            inside = true;
            Ok(format!(
                "static void {}_ptx(const void *args) {{ const u64 {} = (u64)args;",
                entry.name, entry.parameter
            ))
        } else {
            declaration(line, &mut entry).map(|()| String::new())
        };
        let translated = translated.map_err(|error| format!("line {} of the PTX, `{line}`: {error}", at + 1))?;
        cpp = cpp + &translated + "\n";
    }
    ensure!(!inside && kernels > 0, "the PTX has no kernels, or ends inside a kernel");
    Ok((cpp, kernels))
}

/// Parses a line outside of kernels' bodies, which may declare a part of a kernel.
fn declaration<'a>(line: &'a str, entry: &mut Entry<'a>) -> Result<()> {
    let number = |text: &str| text.trim().parse().map_err(|_| format!("`{text}` is not a number"));
    if let Some((_, rest)) = line.split_once(".entry ") {
        *entry = Entry { name: rest.trim_end_matches(['(', ' ']), ..Entry::default() };
    } else if let Some(rest) = line.strip_prefix(".param ") {
        let (_, rest) = rest.split_once(".b8 ").ok_or("the parameter is not a struct")?;
        let (name, size) = rest.split_once('[').ok_or("the parameter has no size")?;
        (entry.parameter, entry.bytes) = (name, number(size.trim_end_matches([']', ',', ')']))?);
    } else if let Some(rest) = line.strip_prefix(".maxntid ") {
        entry.max_threads = number(rest.split(',').next().unwrap_or_default())?;
    }
    Ok(())
}

/// Translates a line of a kernel's body.
fn statement(line: &str) -> Result<String> {
    if line.is_empty() || line.starts_with(".pragma") {
        return Ok(String::new());
    }
    if let Some(label) = line.strip_suffix(':') {
        return Ok(format!("{}:;", label.replace('$', "L_")));
    }
    let line = line.strip_suffix(';').ok_or("neither a label nor a statement")?;
    if let Some(registers) = line.strip_prefix(".reg ") {
        return register_declaration(registers);
    }
    let (condition, line) = match line.strip_prefix('@').map(|rest| rest.split_once(char::is_whitespace)) {
        Some(Some((predicate, rest))) => (format!("if ({}) ", predicate.replace('%', "")), rest.trim()),
        Some(None) => return Err("a predicate without an instruction".into()),
        None => (String::new(), line),
    };
    let (name, operands) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    Ok(match name {
        "bra" | "bra.uni" => format!("{condition}goto {};", operands.trim().replace('$', "L_")),
        "ret" => format!("{condition}return;"),
        _ => {
            // The elements of a vector become separate operands.
            let operands = operands.split([',', '{', '}']).map(str::trim).filter(|operand| !operand.is_empty());
            let operands = operands.map(operand).collect::<Result<Vec<_>>>()?.join(", ");
            format!("{condition}{}({operands});", name.replace("::", "_").replace('.', "_"))
        }
    })
}

/// Translates a declaration of registers of one type, such as `.f32 %f<12>`. Their initial values are arbitrary.
fn register_declaration(registers: &str) -> Result<String> {
    let (kind, names) = registers.split_once(char::is_whitespace).ok_or("no register names")?;
    let (kind, initial) = match kind {
        ".pred" => ("bool", "false"),
        ".b16" => ("u16", "0xdead"),
        ".b32" => ("u32", "0xdeadbeef"),
        ".f32" => ("float", "__uint_as_float(0x7fc0dead)"),
        ".b64" => ("u64", "0xdeadbeefdeadbeef"),
        _ => return Err(format!("unknown register type {kind}")),
    };
    let (name, count) = names.trim().trim_start_matches('%').split_once('<').ok_or("no number of registers")?;
    let count: usize =
        count.trim_end_matches('>').parse().map_err(|_| format!("`{count}` is not a number of registers"))?;
    let mut declaration = kind.to_owned();
    for n in 0..count {
        let _ = write!(declaration, "{} {name}{n} = {initial}", if n > 0 { "," } else { "" });
    }
    Ok(declaration + ";")
}

/// Translates an operand: a register, a number, or an address.
fn operand(text: &str) -> Result<String> {
    if let Some(address) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (base, offset) = address.split_once('+').unwrap_or((address, "0"));
        return Ok(format!("{} + {}", operand(base)?, operand(offset)?));
    }
    if let Some(bits) = text.strip_prefix("0f") {
        return Ok(format!("__uint_as_float(0x{bits}u)"));
    }
    if text.starts_with(|c: char| c.is_ascii_digit() || c == '-') {
        let value: i128 = text.parse().map_err(|_| format!("`{text}` is not an integer"))?;
        // C++ has no literal for the smallest integer.
        return Ok(if value < 0 { format!("(-{}ll - 1)", -(value + 1)) } else { format!("{value}ll") });
    }
    let name = text.strip_prefix('%').unwrap_or(text).replace('.', "_");
    ensure!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_'), "`{text}` is not an operand");
    Ok(name)
}
