//! Finds circular dependencies among sibling modules by a simple scan of their sources.
//!
//! Siblings are the files and folders of one folder. A module depends on a sibling if one of its files names it, in a
//! `use` declaration or in a path that starts with `crate`, `self` or `super`. Names that the parent module re-exports
//! count as those of the module that defines them. Test modules (`#[cfg(test)]`) are left out. Macros are not expanded.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// Path of a module within its crate: `crate::onnx::node` is `["onnx", "node"]`.
type ModulePath = Vec<String>;

/// The siblings that each module depends on.
type Graph = BTreeMap<String, BTreeSet<String>>;

/// Returns a circular dependency among the modules of a folder below a crate's `src`, as the names of the modules on it.
///
/// # Errors
/// The folder or one of its files can't be read.
pub(crate) fn find(folder: &Path) -> Result<Option<Vec<String>>> {
    Ok(cycle(&graph(folder)?))
}

/// Builds the graph of the dependencies among the modules of a folder.
fn graph(folder: &Path) -> Result<Graph> {
    let parent = module_path(&folder.join("mod.rs"));
    let root = ["mod.rs", "lib.rs", "main.rs"].map(|name| folder.join(name)).into_iter().find(|path| path.is_file());
    let root = root.map_or(Ok(String::new()), |path| read(&path))?;
    let tests: BTreeSet<String> = test_modules(&tokens(&root));
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in rust_files(folder)? {
        let module = module_path(&path);
        // A test module of a module below has the usual name.
        let is_test = module.last().is_some_and(|name| name == "tests");
        if let Some(name) = module.get(parent.len()).filter(|name| !is_test && !tests.contains(*name)) {
            files.entry(name.clone()).or_default().push(path);
        }
    }
    // Names that the parent module takes from one of its children.
    let mut exports = BTreeMap::new();
    for path in references(&parent, &tokens(&root)) {
        if let [child, .., name] = &path[parent.len().min(path.len())..] {
            exports.insert(name.clone(), child.clone());
        }
    }
    let mut graph = Graph::new();
    for (name, paths) in &files {
        let siblings = graph.entry(name.clone()).or_default();
        for path in paths {
            for reference in references(&module_path(path), &tokens(&read(path)?)) {
                let Some(target) = reference.strip_prefix(&parent[..]).and_then(<[String]>::first) else { continue };
                let sibling = if files.contains_key(target) { Some(target) } else { exports.get(target) };
                siblings.extend(sibling.filter(|sibling| *sibling != name && files.contains_key(*sibling)).cloned());
            }
        }
    }
    Ok(graph)
}

/// Returns the modules on a cycle of the graph.
fn cycle(graph: &Graph) -> Option<Vec<String>> {
    /// Follows the dependencies of the last module of `path`; `done` are modules that lead to no cycle.
    fn follow(graph: &Graph, path: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
        let module = path.last()?.clone();
        for next in graph.get(&module).into_iter().flatten().cloned() {
            if done.contains(&next) {
                continue;
            }
            if let Some(start) = path.iter().position(|module| *module == next) {
                return Some(path[start..].to_vec());
            }
            path.push(next);
            if let Some(cycle) = follow(graph, path, done) {
                return Some(cycle);
            }
            path.pop();
        }
        done.insert(module);
        None
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|start| follow(graph, &mut vec![start.clone()], &mut done))
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// All `.rs` files of a folder and the folders below it.
fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}

/// The path of a file's module within its crate.
fn module_path(file: &Path) -> ModulePath {
    let mut path: ModulePath = file.components().map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
    let source = path.iter().rposition(|part| part == "src").map_or(0, |source| source + 1);
    path.drain(..source);
    match path.pop().unwrap_or_default().as_str() {
        "mod.rs" | "lib.rs" | "main.rs" => {}
        name => path.push(name.trim_end_matches(".rs").to_owned()),
    }
    path
}

/// Splits a source into identifiers, `::` and other single characters, without comments, strings and characters.
fn tokens(source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if let Some(hashes) = raw_string(rest) {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 2;
            rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
        } else if first == '"' {
            quoted(rest, '"')
        } else if first == '\'' && (rest[1..].starts_with('\\') || rest.chars().nth(2) == Some('\'')) {
            quoted(rest, '\'')
        } else if first.is_alphanumeric() || first == '_' {
            let len = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(rest[..len].to_owned());
            len
        } else {
            let len = if rest.starts_with("::") { 2 } else { first.len_utf8() };
            if !first.is_whitespace() {
                found.push(rest[..len].to_owned());
            }
            len
        };
        rest = &rest[len..];
    }
    found
}

/// The number of hashes of the raw string that a text starts with.
fn raw_string(text: &str) -> Option<usize> {
    let after = text.strip_prefix('r')?;
    let hashes = after.len() - after.trim_start_matches('#').len();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// The length of the literal that a text starts with, up to and including the closing quote.
fn quoted(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if character == quote => return at + character.len_utf8(),
            _ => {}
        }
    }
    text.len()
}

/// `#[cfg(test)]` as tokens.
const TEST_ATTRIBUTE: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];

/// The modules that are declared for tests only.
fn test_modules(tokens: &[String]) -> BTreeSet<String> {
    let declarations = tokens.windows(TEST_ATTRIBUTE.len() + 2);
    let tests = declarations.filter(|window| window.starts_with(&TEST_ATTRIBUTE.map(str::to_owned)));
    tests.filter(|window| window[7] == "mod").map(|window| window[8].clone()).collect()
}

/// The paths that a module's source refers to, from the root of its crate.
fn references(module: &[String], tokens: &[String]) -> Vec<ModulePath> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].starts_with(&TEST_ATTRIBUTE.map(str::to_owned)) {
            at = end_of_item(tokens, at + TEST_ATTRIBUTE.len());
        } else if tokens[at] == "use" {
            at += 1;
            use_tree(module, &[], tokens, &mut at, &mut found);
        } else if ["crate", "self", "super"].contains(&tokens[at].as_str()) {
            let mut path = vec![tokens[at].clone()];
            while tokens.get(at + 1).is_some_and(|token| token == "::") && at + 2 < tokens.len() {
                at += 2;
                path.push(tokens[at].clone());
            }
            found.push(resolve(module, &path));
            at += 1;
        } else {
            at += 1;
        }
    }
    found
}

/// The position after an item: after its `;`, or the `}` of its block.
fn end_of_item(tokens: &[String], start: usize) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate().skip(start) {
        match token.as_str() {
            "{" => depth += 1,
            "}" if depth == 1 => return at + 1,
            "}" => depth -= 1,
            ";" if depth == 0 => return at + 1,
            _ => {}
        }
    }
    tokens.len()
}

/// Reads the tree of a `use` declaration, adds the path of each leaf, and moves `at` after it.
fn use_tree(module: &[String], prefix: &[String], tokens: &[String], at: &mut usize, found: &mut Vec<ModulePath>) {
    let mut path = prefix.to_vec();
    while let Some(token) = tokens.get(*at) {
        match token.as_str() {
            "{" => {
                *at += 1;
                while tokens.get(*at).is_some_and(|token| token != "}") {
                    use_tree(module, &path, tokens, at, found);
                    *at += usize::from(tokens.get(*at).is_some_and(|token| token == ","));
                }
                *at += 1;
                return;
            }
            "," | "}" | ";" => break,
            // The new name of `path as name`.
            "as" => *at += 1,
            "::" => {}
            "self" if !path.is_empty() => {}
            name => path.push(name.to_owned()),
        }
        *at += 1;
    }
    found.push(resolve(module, &path));
}

/// Makes a path that a module contains absolute; a path of another crate becomes one below the module itself.
fn resolve(module: &[String], path: &[String]) -> ModulePath {
    let mut absolute = module.to_vec();
    for part in path {
        match part.as_str() {
            "crate" => absolute.clear(),
            "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name.to_owned()),
        }
    }
    absolute
}

#[test]
fn references_come_from_use_declarations_and_paths() {
    let source = r##"
        use super::{node::{self, Op}, value::Dim as Size}; // use super::comment;
        use std::fmt;
        const TEXT: &str = "use super::string;";
        fn f() -> super::tensor::Shape { crate::rtneural::read('"', r#"super::raw"#) }
        #[cfg(test)]
        mod tests { use super::super::test; }
        use crate::onnx::port;
    "##;
    let module = ["onnx", "layer"].map(str::to_owned);
    let found: Vec<String> = references(&module, &tokens(source)).iter().map(|path| path.join("::")).collect();
    let expected = [
        "onnx::node",
        "onnx::node::Op",
        "onnx::value::Dim",
        "onnx::layer::std::fmt",
        "onnx::tensor::Shape",
        "rtneural::read",
        "onnx::port",
    ];
    assert_eq!(found, expected);
}

#[test]
fn module_paths_start_below_src() {
    assert_eq!(module_path(Path::new("crates/a/src/onnx/node.rs")), ["onnx", "node"]);
    assert_eq!(module_path(Path::new("crates/a/src/onnx/mod.rs")), ["onnx"]);
    assert!(module_path(Path::new("crates/a/src/lib.rs")).is_empty());
}

#[test]
fn finds_cycles_of_any_length() {
    let graph = |edges: &[(&str, &str)]| {
        let mut graph = Graph::new();
        for (from, to) in edges {
            graph.entry((*from).to_owned()).or_default().insert((*to).to_owned());
        }
        graph
    };
    assert_eq!(cycle(&graph(&[("a", "b"), ("a", "c"), ("b", "c"), ("c", "d")])), None);
    assert_eq!(cycle(&graph(&[("a", "b"), ("b", "c"), ("c", "b")])).unwrap(), ["b", "c"]);
    assert_eq!(cycle(&graph(&[("a", "b"), ("b", "c"), ("c", "a")])).unwrap(), ["a", "b", "c"]);
}

#[test]
fn finds_dependencies_in_files() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("lstm-module-cycles-{}", std::process::id()));
    let source = folder.join("src/format");
    std::fs::create_dir_all(source.join("graph"))?;
    let files = [
        ("mod.rs", "mod graph; mod node; mod value; #[cfg(test)] mod examples; pub use value::Value;"),
        ("graph/mod.rs", "mod edge; use super::node::Node;"),
        ("graph/edge.rs", "use super::super::Value;"),
        ("node.rs", "use super::value;"),
        ("value.rs", "use std::fmt; #[cfg(test)] mod tests { use crate::format::graph; }"),
        ("examples.rs", "use super::graph; use super::examples;"),
    ];
    for (name, text) in files {
        std::fs::write(source.join(name), text)?;
    }
    let found = graph(&source)?;
    std::fs::write(source.join("value.rs"), "use super::graph::edge::Edge;")?;
    let cycle = find(&source)?;
    std::fs::remove_dir_all(folder)?;
    let siblings = |name: &str| found[name].iter().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(found.keys().collect::<Vec<_>>(), ["graph", "node", "value"]);
    assert_eq!((siblings("graph"), siblings("node")), (vec!["node", "value"], vec!["value"]));
    assert!(siblings("value").is_empty());
    assert_eq!(cycle.unwrap(), ["graph", "node", "value"]);
    Ok(())
}
