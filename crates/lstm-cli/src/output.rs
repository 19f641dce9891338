//! Outputs to a file, some steps at a time; the file takes its name when all of it is there.

use std::{
    fmt::Write as _,
    io::{BufWriter, Seek, SeekFrom, Write},
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

/// A file that is being written beside the one it becomes.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
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
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let file = builder().tempfile_in(dir).map_err(Error::io(path))?;
        let mut file = BufWriter::new(file);
        let head = if format == Format::Npy { npy_header(&extent.shape(features)) } else { Vec::new() };
        file.write_all(&head).map_err(Error::io(path))?;
        Ok(Writer { path: path.to_owned(), file, format, extent, features, start: head.len() as u64, at: 0 })
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
                self.file.seek(SeekFrom::Start(self.start + from))?;
                self.elements(y.slice(s![b..=b, .., ..]))
            }),
        };
        written.map_err(Error::io(&self.path))
    }

    fn elements(&mut self, y: ArrayView3<'_, f32>) -> std::io::Result<()> {
        y.iter().try_for_each(|v| self.file.write_all(&v.to_le_bytes()))
    }

    fn rows(&mut self, y: ArrayView3<'_, f32>) -> std::io::Result<()> {
        let mut line = String::new();
        for row in y.rows() {
            line.clear();
            // The shortest decimal that reads back as the same f32. Writing to a string can't fail.
            for v in row {
                let _ = write!(line, "{v},");
            }
            line.pop();
            writeln!(self.file, "{line}")?;
        }
        Ok(())
    }

    /// Gives the file its name.
    pub(crate) fn finish(self) -> Result<()> {
        let file = self.file.into_inner().map_err(|e| Error::file(&self.path, e.error()))?;
        file.as_file().sync_all().map_err(Error::io(&self.path))?;
        file.persist(&self.path).map(drop).map_err(|e| Error::file(&self.path, e.error))
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
