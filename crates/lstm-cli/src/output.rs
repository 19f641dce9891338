//! Writes output files in chunks of steps. Files are written to temporary files and renamed on success.

use std::{
    fmt::Write as _,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use lstm::ndarray::{ArrayView3, Axis, s};
use tempfile::NamedTempFile;

use crate::{
    error::{Error, Result},
    input::{Format, SequenceShape, encode_npy_header},
};

/// Checks that the path given for `option` has one of these extensions.
pub(crate) fn check_extension(option: &'static str, path: Option<&Path>, extensions: &[&str]) -> Result<()> {
    let extension = |path: &Path| path.extension().and_then(|extension| extension.to_str()).map(str::to_owned);
    match path {
        Some(path) if !extension(path).is_some_and(|extension| extensions.contains(&&*extension)) => {
            let allowed_extensions: Vec<_> = extensions.iter().map(|extension| format!(".{extension}")).collect();
            let why = format!("expected the extension {}, got {}", allowed_extensions.join(" or "), path.display());
            Err(Error::option(option, why))
        }
        _ => Ok(()),
    }
}

/// Checks that writing the file `path`, given by the option `option`, does not overwrite one of `other_files`. Each of
/// these has the name of the option or argument that gives its path.
pub(crate) fn check_distinct_paths(
    option: &'static str,
    path: Option<&Path>,
    other_files: &[(&str, Option<&Path>)],
) -> Result<()> {
    let is_same_file = |other: &Path| path.is_some_and(|path| canonical_path(path) == canonical_path(other));
    match other_files
        .iter()
        .find_map(|(name, other)| other.filter(|other| is_same_file(other)).map(|other| (name, other)))
    {
        Some((name, other)) => {
            let why = format!("expected another file than {name}, {}, which it would overwrite", other.display());
            Err(Error::option(option, why))
        }
        None => Ok(()),
    }
}

/// Canonical path of a file. If the file does not exist yet, the canonical path of its directory, followed by the
/// file's name.
fn canonical_path(path: &Path) -> PathBuf {
    let new = || Some(parent_directory(path).canonicalize().ok()?.join(path.file_name()?));
    path.canonicalize().ok().or_else(new).unwrap_or_else(|| path.to_owned())
}

/// Directory that contains a file.
fn parent_directory(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A temporary file that [`commit_files`] renames to its final path.
pub(crate) struct PendingFile {
    path: PathBuf,
    file: BufWriter<NamedTempFile>,
}

impl PendingFile {
    /// Creates a temporary file in the directory of `path`. Fails if `path` is a directory.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let ends_with_separator =
            path.as_os_str().as_encoded_bytes().last().is_some_and(|&c| std::path::is_separator(c.into()));
        let existing_metadata = match path.metadata() {
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            metadata => Some(metadata.map_err(Error::io(path))?),
        };
        if ends_with_separator || existing_metadata.is_some_and(|metadata| metadata.is_dir()) {
            return Err(Error::file(path, "expected a file name, got a directory"));
        }
        let file = temporary_file_builder().tempfile_in(parent_directory(path)).map_err(Error::io(path))?;
        Ok(PendingFile { path: path.to_owned(), file: BufWriter::new(file) })
    }

    /// Appends bytes to the temporary file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }
}

/// Flushes all files to disk, and then renames each to its final path.
pub(crate) fn commit_files(files: impl IntoIterator<Item = PendingFile>) -> Result<()> {
    let mut written_files = Vec::new();
    for PendingFile { path, file } in files {
        let file = file.into_inner().map_err(|e| Error::file(&path, e.error()))?;
        file.as_file().sync_all().map_err(Error::io(&path))?;
        written_files.push((path, file));
    }
    written_files
        .into_iter()
        .try_for_each(|(path, file)| file.persist(&path).map(drop).map_err(|e| Error::file(&path, e.error)))
}

/// Writer of output sequences, in chunks of steps.
pub(crate) struct SequenceWriter {
    file: PendingFile,
    format: Format,
    sequence_shape: SequenceShape,
    features: usize,
    /// Offset of the first element of an .npy file, in bytes.
    data_offset: u64,
    /// Index of the next step to write.
    next_step: usize,
}

impl SequenceWriter {
    /// Creates a file for sequences with the layout, batch and steps of `sequence_shape` and the given number of
    /// features.
    pub(crate) fn create(path: &Path, sequence_shape: SequenceShape, features: usize) -> Result<Self> {
        let format = Format::of(path)?;
        if format == Format::Csv && sequence_shape.batch > 1 {
            let why =
                format!("a .csv file holds one sequence, got {}; write an .npy file instead", sequence_shape.batch);
            return Err(Error::file(path, why));
        }
        let mut file = PendingFile::create(path)?;
        let header =
            if format == Format::Npy { encode_npy_header(&sequence_shape.array_shape(features)) } else { Vec::new() };
        file.write(&header)?;
        Ok(SequenceWriter { file, format, sequence_shape, features, data_offset: header.len() as u64, next_step: 0 })
    }

    /// Writes the next steps `y`, shape `(batch, steps, features)`.
    pub(crate) fn write(&mut self, y: ArrayView3<'_, f32>) -> Result<()> {
        let first_step = self.next_step;
        self.next_step += y.len_of(Axis(1));
        let result = match self.format {
            Format::Csv => self.write_rows(y),
            Format::Npy if self.sequence_shape.time_major || self.sequence_shape.batch == 1 => {
                self.write_elements(y.permuted_axes([1, 0, 2]))
            }
            Format::Npy => (0..self.sequence_shape.batch).try_for_each(|b| {
                let offset = ((b * self.sequence_shape.steps + first_step) * self.features * size_of::<f32>()) as u64;
                self.file.file.seek(SeekFrom::Start(self.data_offset + offset))?;
                self.write_elements(y.slice(s![b..=b, .., ..]))
            }),
        };
        result.map_err(Error::io(&self.file.path))
    }

    fn write_elements(&mut self, y: ArrayView3<'_, f32>) -> io::Result<()> {
        y.iter().try_for_each(|v| self.file.file.write_all(&v.to_le_bytes()))
    }

    fn write_rows(&mut self, y: ArrayView3<'_, f32>) -> io::Result<()> {
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

    /// Returns the file, to which all steps must have been written.
    pub(crate) fn into_file(self) -> PendingFile {
        self.file
    }
}

/// Returns a builder of temporary files that have the default permissions of new files.
fn temporary_file_builder() -> tempfile::Builder<'static, 'static> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".lstm-");
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    builder
}
