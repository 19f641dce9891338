//! Writes each docstring of `_lstm.pyi` to a file of its own, such as `docs/LSTM.stream`, from which the classes and functions
//! have their texts at run time.

use std::{env, fs, path::Path};

/// The declarations of the module, with their docstrings.
const DECLARATIONS: &str = "python/lstm/_lstm.pyi";

fn main() {
    println!("cargo::rerun-if-changed={DECLARATIONS}");
    let text = fs::read_to_string(DECLARATIONS).unwrap_or_else(|error| panic!("{DECLARATIONS}: {error}"));
    let dir = Path::new(&env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("docs");
    fs::create_dir_all(&dir).expect("OUT_DIR can be written");
    for (name, docstring) in docstrings(&text) {
        fs::write(dir.join(&name), docstring).expect("OUT_DIR can be written");
    }
}

/// The docstrings of classes, functions and methods with their names, such as `LSTM.stream`, without indentation. The file is
/// formatted: a docstring begins on the line after the declaration.
fn docstrings(text: &str) -> Vec<(String, String)> {
    let (mut class, mut name, mut found) = ("", String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let declared = |keyword| code.strip_prefix(keyword).and_then(|rest: &str| rest.split(['(', ':']).next());
        if let Some(declared) = declared("class ") {
            (class, name) = (declared, declared.to_owned());
        } else if let Some(declared) = declared("def ") {
            name = if indent == 0 { declared.to_owned() } else { format!("{class}.{declared}") };
        } else if let Some(mut rest) = code.strip_prefix("\"\"\"") {
            let mut docstring = String::new();
            while !rest.ends_with("\"\"\"") {
                docstring += rest.trim_end();
                docstring.push('\n');
                let next = lines.next().expect("a docstring ends");
                rest = next.get(indent..).unwrap_or_default();
            }
            docstring += rest.trim_end_matches('"');
            // A second text is that of an attribute.
            if !name.is_empty() && found.iter().all(|(other, _)| *other != name) {
                found.push((name.clone(), docstring.trim_end().to_owned()));
            }
        }
    }
    found
}
