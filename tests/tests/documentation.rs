//! Links in Markdown files lead somewhere, their commands exist, and `docs/cookbook.md` shows the programs in `examples`.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// The most lines of a program of the cookbook.
const MAX_LINES: usize = 60;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the manifest is in a folder of the repository")
}

/// Collects all Markdown files below `folder`, except build outputs.
fn markdown_files(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("{}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir()
            && !path.is_symlink()
            && !name.starts_with('.')
            && !["target", "node_modules"].contains(&&*name)
        {
            markdown_files(&path, found)?;
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
    Ok(())
}

/// The lines of a Markdown text that are not in a block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_fence && !is_code
    })
}

/// The targets of the links in a Markdown text.
fn links(text: &str) -> Vec<&str> {
    let targets = prose(text).flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()));
    targets.filter_map(|target| target.split(' ').next()).collect()
}

/// The anchors of the headings of a Markdown text, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let headings = prose(text).filter_map(|line| line.strip_prefix('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The links of a Markdown file that lead nowhere. Links to other sites are not followed.
fn dead_links(file: &Path, text: &str) -> Vec<String> {
    let is_dead = |target: &&str| {
        if target.contains("://") || target.starts_with("mailto:") {
            return false;
        }
        match target.split_once('#') {
            None => !file.with_file_name(target).exists(),
            Some(("", anchor)) => !anchors(text).contains(anchor),
            Some((path, anchor)) => {
                !fs::read_to_string(file.with_file_name(path)).is_ok_and(|text| anchors(&text).contains(anchor))
            }
        }
    };
    links(text).into_iter().filter(is_dead).map(str::to_owned).collect()
}

#[test]
fn links_lead_somewhere() -> Result<()> {
    let mut files = Vec::new();
    markdown_files(root(), &mut files)?;
    ensure!(files.len() > 20, "only {} Markdown files", files.len());
    let mut dead = Vec::new();
    for file in files {
        let found = dead_links(&file, &fs::read_to_string(&file)?);
        dead.extend(found.into_iter().map(|target| format!("{}: {target}", file.display())));
    }
    ensure!(dead.is_empty(), "links that lead nowhere:\n{}", dead.join("\n"));
    Ok(())
}

#[test]
fn dead_links_are_found() {
    let text =
        "# One, two\n[a](CHANGELOG.md) [b](no.md)\n```\n[c](no.md)\n```\n[d](#one-two) [e](#two) [f](https://x.y/z)";
    let text = format!("{text}\n[g](README.md#use) [h](README.md#no-such-heading)");
    assert_eq!(dead_links(&root().join("README.md"), &text), ["no.md", "#two", "README.md#no-such-heading"]);
}

/// The text after `option` in a command, such as `forecast` after `--example`.
fn value<'a>(command: &'a str, option: &str) -> Option<&'a str> {
    let mut words = command.split_whitespace().skip_while(|word| *word != option);
    words.nth(1).map(|word| word.trim_end_matches(['.', ',', ')', ':', ';']))
}

/// What a command of cargo names and the workspace with the metadata `packages` does not have.
fn missing(command: &str, packages: &[Value]) -> Option<String> {
    let name = |value: &Value| value["name"].as_str().unwrap_or_default().to_owned();
    let package = value(command, "-p");
    let chosen: Vec<&Value> = packages.iter().filter(|p| package.is_none_or(|package| name(p) == package)).collect();
    if chosen.is_empty() {
        return package.map(|package| format!("package {package}"));
    }
    for kind in ["test", "bin", "example", "bench"] {
        let Some(target) = value(command, &format!("--{kind}")) else { continue };
        let has =
            |t: &Value| name(t) == target && t["kind"].as_array().is_some_and(|kinds| kinds.contains(&kind.into()));
        if !chosen.iter().any(|p| p["targets"].as_array().is_some_and(|targets| targets.iter().any(has))) {
            return Some(format!("{kind} {target}"));
        }
    }
    let mut features = value(command, "--features").into_iter().flat_map(|features| features.split(','));
    let feature = |feature: &str| feature.rsplit('/').next().unwrap_or_default().to_owned();
    let unknown = features.find(|f| chosen.iter().all(|p| p["features"].get(feature(f)).is_none()));
    unknown.map(|feature| format!("feature {feature}"))
}

#[test]
fn the_specification_has_the_version_of_the_arithmetic() -> Result<()> {
    let text = fs::read_to_string(root().join("docs/specification.md"))?;
    let title = format!("# Specification of the arithmetic, version {}", lstm_core::arithmetic::VERSION);
    assert_eq!(text.lines().next(), Some(&*title));
    Ok(())
}

#[test]
fn commands_of_cargo_exist() -> Result<()> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("cargo metadata: `packages` is missing")?;
    ensure!(missing("cargo test -p lstm-tests --test documentation", packages).is_none());
    ensure!(missing("cargo run --example forecasts", packages).as_deref() == Some("example forecasts"));
    ensure!(missing("cargo run --features wgpu,web", packages).as_deref() == Some("feature web"));
    ensure!(missing("cargo test -p lstm-test", packages).as_deref() == Some("package lstm-test"));

    let (mut files, mut wrong, mut count) = (Vec::new(), Vec::new(), 0);
    markdown_files(root(), &mut files)?;
    for file in files.into_iter().filter(|file| !file.ends_with("CHANGELOG.md")) {
        let text = fs::read_to_string(&file)?;
        for line in text.lines() {
            let commands = line.match_indices("cargo ").map(|(at, _)| &line[at..]);
            for command in commands.filter_map(|command| command.split(['`', '#']).next()) {
                if ["run", "test", "build", "bench"].map(Some).contains(&command.split(' ').nth(1)) {
                    count += 1;
                    let found = missing(command, packages);
                    wrong.extend(found.map(|missing| format!("{}: {command}: no {missing}", file.display())));
                }
            }
        }
    }
    ensure!(wrong.is_empty() && count > 30, "of {count} commands:\n{}", wrong.join("\n"));
    Ok(())
}

/// The blocks of Rust in a Markdown text.
fn rust_blocks(text: &str) -> Vec<Vec<&str>> {
    let blocks = text.split("```rust\n").skip(1);
    blocks.map(|block| block.lines().take_while(|line| *line != "```").map(str::trim).collect()).collect()
}

#[test]
fn the_cookbook_shows_the_programs() -> Result<()> {
    let cookbook = fs::read_to_string(root().join("docs/cookbook.md"))?;
    let manifest = fs::read_to_string(root().join("examples/Cargo.toml"))?;
    let mut names = BTreeSet::new();
    for section in cookbook.split("\n## ").skip(1) {
        let title = section.lines().next().unwrap_or_default();
        if title == "Larger programs" {
            continue;
        }
        let name = section.split("(../examples/").nth(1).and_then(|rest| rest.split(".rs)").next());
        let name = name.with_context(|| format!("section `{title}` has no link to its program in ../examples"))?;
        ensure!(names.insert(name), "two sections show {name}");
        let program = fs::read_to_string(root().join(format!("examples/{name}.rs")))
            .with_context(|| format!("section `{title}`: examples/{name}.rs"))?;
        ensure!(manifest.contains(&format!("name = \"{name}\"")), "examples/Cargo.toml has no example `{name}`");
        ensure!(program.lines().count() <= MAX_LINES, "{name} has more than {MAX_LINES} lines");
        let command = format!("cargo run --release --example {name}");
        ensure!(program.starts_with("//! ") && program.contains(&command), "{name} does not start with its command");
        ensure!(section.contains(&command), "section `{title}` does not have the command `{command}`");

        let lines: Vec<&str> = program.lines().map(str::trim).collect();
        let blocks = rust_blocks(section);
        ensure!(!blocks.is_empty(), "section `{title}` shows no lines of {name}");
        for block in blocks {
            let is_shown = !block.is_empty() && lines.windows(block.len()).any(|lines| lines == block);
            ensure!(is_shown, "section `{title}` shows lines that {name} does not have:\n{}", block.join("\n"));
        }
    }
    ensure!(names.len() >= 10, "only {} programs", names.len());
    Ok(())
}
