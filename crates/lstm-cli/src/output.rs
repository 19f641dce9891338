//! Files that are written, outputs some steps at a time; they take their names when all of them are there.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use lstm_core::ndarray::{ArrayView3, Axis, s};
use tempfile::NamedTempFile;

use crate::{
    error::{Error, Result},
    input::{Extent, Format, npy_header},
};

/// That the name of a file to be written says which of these it is.
pub(crate) fn check_extension(option: &'static str, path: Option<&Path>, known: &[&str]) -> Result<()> {
    let extension = |path: &Path| path.extension().and_then(|extension| extension.to_str()).map(str::to_owned);
    match path {
        Some(path) if !extension(path).is_some_and(|extension| known.contains(&&*extension)) => {
            let known: Vec<_> = known.iter().map(|extension| format!(".{extension}")).collect();
            let why = format!("expected the extension {}, got {}", known.join(" or "), path.display());
            Err(Error::option(option, why))
        }
        _ => Ok(()),
    }
}

/// That a file to be written is none of these, whose place it would take.
pub(crate) fn check_apart(option: &'static str, path: Option<&Path>, others: &[(&str, Option<&Path>)]) -> Result<()> {
    let same = |other: &Path| path.is_some_and(|path| place(path) == place(other));
    match others.iter().find_map(|(name, other)| other.filter(|other| same(other)).map(|other| (name, other))) {
        Some((name, other)) => {
            let why = format!("expected another file than {name}, {}, which it would replace", other.display());
            Err(Error::option(option, why))
        }
        None => Ok(()),
    }
}

/// Where a path leads, by way of its folder if it is not there yet.
fn place(path: &Path) -> PathBuf {
    let new = || Some(folder(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(new).unwrap_or_else(|| path.to_owned())
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is being written beside the one it becomes.
pub(crate) struct Pending {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl Pending {
    /// Begins a file, if there can be one of this name.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let slash = path.as_os_str().as_encoded_bytes().last().is_some_and(|&c| std::path::is_separator(c.into()));
        let there = match path.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            there => Some(there.map_err(Error::io(path))?),
        };
        if slash || there.is_some_and(|there| there.is_dir()) {
            return Err(Error::file(path, "expected a file's name, got a directory's"));
        }
        let file = builder().tempfile_in(folder(path)).map_err(Error::io(path))?;
        Ok(Pending { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// What comes next.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }
}

/// Gives files their names, none before all of them are whole.
pub(crate) fn keep(files: impl IntoIterator<Item = Pending>) -> Result<()> {
    let mut whole = Vec::new();
    for Pending { path, file } in files {
        let file = file.into_inner().map_err(|e| Error::file(&path, e.error()))?;
        file.as_file().sync_all().map_err(Error::io(&path))?;
        whole.push((path, file));
    }
    whole
        .into_iter()
        .try_for_each(|(path, file)| file.persist(&path).map(drop).map_err(|e| Error::file(&path, e.error)))
}

/// Outputs on their way to a file.
pub(crate) struct Writer {
    file: Pending,
    format: Format,
    extent: Extent,
    features: usize,
    /// Where the elements begin.
    start: u64,
    /// The next step.
    at: usize,
}

impl Writer {
    /// Begins a file whose sequences lie as `extent` says.
    pub(crate) fn create(path: &Path, extent: Extent, features: usize) -> Result<Self> {
        let format = Format::of(path)?;
        if format == Format::Csv && extent.batch > 1 {
            let why = format!("a .csv file holds one sequence, not {}: write an .npy file", extent.batch);
            return Err(Error::file(path, why));
        }
        let mut file = Pending::create(path)?;
        let head = if format == Format::Npy { npy_header(&extent.shape(features)) } else { Vec::new() };
        file.write(&head)?;
        Ok(Writer { file, format, extent, features, start: head.len() as u64, at: 0 })
    }

    /// The next steps, (batch, steps, features).
    pub(crate) fn write(&mut self, y: ArrayView3<'_, f32>) -> Result<()> {
        let at = self.at;
        self.at += y.len_of(Axis(1));
        let written = match self.format {
            Format::Csv => self.rows(y),
            Format::Npy if self.extent.time_major || self.extent.batch == 1 => {
                self.elements(y.permuted_axes([1, 0, 2]))
            }
            Format::Npy => (0..self.extent.batch).try_for_each(|b| {
                let from = ((b * self.extent.steps + at) * self.features * size_of::<f32>()) as u64;
                self.file.file.seek(SeekFrom::Start(self.start + from))?;
                self.elements(y.slice(s![b..=b, .., ..]))
            }),
        };
        written.map_err(Error::io(&self.file.path))
    }

    fn elements(&mut self, y: ArrayView3<'_, f32>) -> io::Result<()> {
        y.iter().try_for_each(|v| self.file.file.write_all(&v.to_le_bytes()))
    }

    fn rows(&mut self, y: ArrayView3<'_, f32>) -> io::Result<()> {
        let mut line = String::new();
        for row in y.rows() {
            line.clear();
            // The shortest decimal that reads back as the same f32. Writing to a string can't fail.
            for v in row {
                let _ = write!(line, "{v},");
            }
            line.pop();
            writeln!(self.file.file, "{line}")?;
        }
        Ok(())
    }

    /// The file, when all of it is written.
    pub(crate) fn into_file(self) -> Pending {
        self.file
    }
}

/// Temporary files have the permissions of any other that is made.
fn builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lstm-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}
