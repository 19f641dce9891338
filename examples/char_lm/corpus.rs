//! Reads the training text from files and directories in a fixed order.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// Largest number of skipped files that are listed by name.
const MAX_LISTED_FILES: usize = 5;

/// The text of one or more files.
#[derive(Debug, Default)]
pub(crate) struct Corpus {
    /// Concatenated contents of the files.
    pub(crate) text: String,
    /// Number of files read.
    pub(crate) files: usize,
    /// Files that were skipped because they are not UTF-8 text.
    pub(crate) skipped_files: Vec<PathBuf>,
}

impl Corpus {
    /// Reads the given files, and all text files in the given directories, recursively in sorted order. If `extensions`
    /// is not empty, a file in a directory is read only if it has one of these extensions. In directories, symbolic
    /// links and entries named `target` or with a name that starts with a dot are skipped.
    pub(crate) fn read(paths: &[PathBuf], extensions: &[String]) -> Result<Self> {
        let mut corpus = Corpus::default();
        for path in paths {
            if path.is_dir() { corpus.add_directory(path, extensions)? } else { corpus.add_file(path)? }
        }
        if corpus.text.is_empty() {
            let join_with_commas = |items: Vec<_>| items.join(", ");
            let mut searched_paths = join_with_commas(paths.iter().map(|path| path.display().to_string()).collect());
            if !extensions.is_empty() {
                searched_paths = format!("{searched_paths} (extensions {})", join_with_commas(extensions.to_vec()));
            }
            return Err(Error::EmptyCorpus { searched_paths, skipped_count: corpus.skipped_files.len() });
        }
        Ok(corpus)
    }

    /// Prints the number of files read and the files skipped.
    pub(crate) fn describe(&self) {
        println!("Read {} file{}.", self.files, if self.files == 1 { "" } else { "s" });
        for path in self.skipped_files.iter().take(MAX_LISTED_FILES) {
            println!("Skipped, not UTF-8 text: {}", path.display());
        }
        if let Some(unlisted_count @ 1..) = self.skipped_files.len().checked_sub(MAX_LISTED_FILES) {
            println!("Skipped {unlisted_count} more files.");
        }
    }

    /// Adds the text files in a directory.
    fn add_directory(&mut self, directory: &Path, extensions: &[String]) -> Result<()> {
        let entries = fs::read_dir(directory).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = entries.map_err(Error::io(directory))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let file_type = entry.file_type().map_err(Error::io(&path))?;
            let has_allowed_extension = || {
                let extension = path.extension().unwrap_or_default();
                extensions.is_empty() || extensions.iter().any(|allowed| extension == allowed.trim_start_matches('.'))
            };
            if name == "target" || name.as_encoded_bytes().starts_with(b".") {
                continue;
            } else if file_type.is_dir() {
                self.add_directory(&path, extensions)?;
            } else if file_type.is_file() && has_allowed_extension() {
                self.add_file(&path)?;
            }
        }
        Ok(())
    }

    /// Adds a file, or lists it as skipped if it is not text.
    fn add_file(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        // A file with NUL characters is not text, even if it is valid UTF-8.
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => {
                self.text += &text;
                self.files += 1;
            }
            _ => self.skipped_files.push(path.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::TempDir;

    #[test]
    fn reads_directories_in_sorted_order() -> Result<()> {
        let dir = TempDir::new("directories");
        for (name, text) in [
            ("b.rs", &b"b"[..]),
            ("a/z.rs", b"z"),
            ("a/y.txt", b"y"),
            ("a.rs", b"a"),
            ("target/t.rs", b"t"),
            (".git/g.rs", b"g"),
            ("latin.rs", b"\xe9"),
            ("nul.rs", b"x\0"),
        ] {
            dir.write(name, text);
        }
        let read = |paths: &[PathBuf], extensions: &[&str]| {
            let extensions: Vec<_> = extensions.iter().map(ToString::to_string).collect();
            Corpus::read(paths, &extensions)
        };
        let root = dir.path("");
        let corpus = read(std::slice::from_ref(&root), &["rs"])?;
        assert_eq!((&*corpus.text, corpus.files), ("zab", 3));
        assert_eq!(corpus.skipped_files, [dir.path("latin.rs"), dir.path("nul.rs")]);
        assert_eq!(read(std::slice::from_ref(&root), &[])?.text, "yzab");
        assert_eq!(read(std::slice::from_ref(&root), &[".txt", "md"])?.text, "y");
        // Files given as arguments are read with any extension, and as often as they are given.
        let b = dir.path("b.rs");
        assert_eq!(read(&[b.clone(), dir.path("a"), b], &["txt"])?.text, "byb");
        Ok(())
    }

    #[test]
    fn errors_name_the_searched_paths() {
        let dir = TempDir::new("nothing");
        dir.write("nul.txt", b"\0");
        let error = |name: &str, extensions: &[String]| {
            Corpus::read(&[dir.path(name)], extensions).expect_err("no corpus").to_string()
        };
        let path = |name: &str| dir.path(name).display().to_string();
        assert!(error("no-such-file", &[]).starts_with(&format!("{}: ", path("no-such-file"))));
        let want = format!("no text in {}; skipped 1 file that is not UTF-8 text", path(""));
        assert_eq!(error("", &[]), want);
        let want = format!("no text in {} (extensions rs, md)", path(""));
        assert_eq!(error("", &["rs".into(), "md".into()]), want);
    }
}
