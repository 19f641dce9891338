//! The text to learn from: files and folders, read in an order that is always the same.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::{Error, Result};

/// How many skipped files are named.
const SHOWN: usize = 5;

/// Characters from one or more files.
#[derive(Debug, Default)]
pub(crate) struct Corpus {
    /// The files' contents one after another.
    pub(crate) text: String,
    /// How many files that is.
    pub(crate) files: usize,
    /// Files that are not text.
    pub(crate) skipped: Vec<PathBuf>,
}

impl Corpus {
    /// Reads files and, below folders in sorted order, all text files with one of the extensions (with any if there are
    /// none). What a build or version control keeps for itself (`target`, names that start with a dot) and links are left
    /// out.
    pub(crate) fn read(paths: &[PathBuf], extensions: &[String]) -> Result<Self> {
        let mut corpus = Corpus::default();
        for path in paths {
            if path.is_dir() { corpus.walk(path, extensions)? } else { corpus.add(path)? }
        }
        if corpus.text.is_empty() {
            let list = |items: Vec<_>| items.join(", ");
            let mut places = list(paths.iter().map(|path| path.display().to_string()).collect());
            if !extensions.is_empty() {
                places = format!("{places} (extensions {})", list(extensions.to_vec()));
            }
            return Err(Error::EmptyCorpus { places, skipped: corpus.skipped.len() });
        }
        Ok(corpus)
    }

    /// Says what was read and what was not.
    pub(crate) fn describe(&self) {
        println!("Read {} file{}.", self.files, if self.files == 1 { "" } else { "s" });
        for path in self.skipped.iter().take(SHOWN) {
            println!("Skipped, as it is not UTF-8 text: {}", path.display());
        }
        if let Some(more @ 1..) = self.skipped.len().checked_sub(SHOWN) {
            println!("Skipped, too: {more} more.");
        }
    }

    fn walk(&mut self, folder: &Path, extensions: &[String]) -> Result<()> {
        let entries = fs::read_dir(folder).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        let mut entries = entries.map_err(Error::io(folder))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name());
            let kind = entry.file_type().map_err(Error::io(&path))?;
            let wanted = || {
                let extension = path.extension().unwrap_or_default();
                extensions.is_empty() || extensions.iter().any(|wanted| extension == wanted.trim_start_matches('.'))
            };
            if name == "target" || name.as_encoded_bytes().starts_with(b".") {
                continue;
            } else if kind.is_dir() {
                self.walk(&path, extensions)?;
            } else if kind.is_file() && wanted() {
                self.add(&path)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        // Text has no NUL, whatever its bytes mean.
        match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => {
                self.text += &text;
                self.files += 1;
            }
            _ => self.skipped.push(path.into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::Folder;

    #[test]
    fn folders_are_walked_in_order() -> Result<()> {
        let folder = Folder::new("walk");
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
            folder.write(name, text);
        }
        let read = |paths: &[PathBuf], extensions: &[&str]| {
            let extensions: Vec<_> = extensions.iter().map(ToString::to_string).collect();
            Corpus::read(paths, &extensions)
        };
        let root = folder.path("");
        let corpus = read(std::slice::from_ref(&root), &["rs"])?;
        assert_eq!((&*corpus.text, corpus.files), ("zab", 3));
        assert_eq!(corpus.skipped, [folder.path("latin.rs"), folder.path("nul.rs")]);
        assert_eq!(read(std::slice::from_ref(&root), &[])?.text, "yzab");
        assert_eq!(read(std::slice::from_ref(&root), &[".txt", "md"])?.text, "y");
        // A file that is named is read whatever it is called, and as often as it is named.
        let b = folder.path("b.rs");
        assert_eq!(read(&[b.clone(), folder.path("a"), b], &["txt"])?.text, "byb");
        Ok(())
    }

    #[test]
    fn errors_say_where_they_looked() {
        let folder = Folder::new("nothing");
        folder.write("nul.txt", b"\0");
        let error = |name: &str, extensions: &[String]| {
            Corpus::read(&[folder.path(name)], extensions).expect_err("no corpus").to_string()
        };
        let path = |name: &str| folder.path(name).display().to_string();
        assert!(error("no-such-file", &[]).starts_with(&format!("{}: ", path("no-such-file"))));
        let want = format!("there is no text in {}; 1 file skipped as not being UTF-8 text", path(""));
        assert_eq!(error("", &[]), want);
        let want = format!("there is no text in {} (extensions rs, md)", path(""));
        assert_eq!(error("", &["rs".into(), "md".into()]), want);
    }
}
