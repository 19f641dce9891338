//! Writes output files in chunks of steps. Files are written to temporary files and renamed on success.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use hound::{SampleFormat, WavSpec, WavWriter};
use lstm::{
    ndarray::{ArrayView3, Axis, s},
    weights::file::AtomicFile,
};

use crate::{
    error::{Error, Result},
    input::{Format, SequenceShape, encode_npy_header, extension, full_scale},
};

/// Checks that the path given for `option` has one of these extensions.
pub(crate) fn check_extension(option: &'static str, path: Option<&Path>, extensions: &[&str]) -> Result<()> {
    match path {
        Some(path) if !extensions.contains(&&*extension(path)) => {
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

/// An error about an output file.
fn file_error(error: lstm::Error) -> Error {
    match error {
        lstm::Error::Io { path, source } => Error::file(&path, source),
        other => other.into(),
    }
}

/// A temporary file that [`commit_files`] renames to its final path.
pub(crate) struct PendingFile {
    path: PathBuf,
    file: BufWriter<AtomicFile>,
}

impl PendingFile {
    /// Creates the temporary file. Fails if `path` is not a regular file or a new one.
    pub(crate) fn create(path: &Path) -> Result<Self> {
        Ok(PendingFile { path: path.to_owned(), file: BufWriter::new(AtomicFile::create(path).map_err(file_error)?) })
    }

    /// Appends bytes to the temporary file.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))
    }
}

/// Flushes all files to disk, and then renames each to its final path. An error names the files that are in place.
pub(crate) fn commit_files(files: impl IntoIterator<Item = PendingFile>) -> Result<()> {
    let mut written_files = Vec::new();
    for PendingFile { path, file } in files {
        let file = file.into_inner().map_err(|e| Error::file(&path, e.error()))?;
        file.sync().map_err(file_error)?;
        written_files.push((path, file));
    }
    let mut in_place = Vec::new();
    for (path, file) in written_files {
        file.commit().map_err(|error| file_error(error).with_files_in_place(&in_place))?;
        in_place.push(path);
    }
    Ok(())
}

/// The name that stands for stdout instead of a file.
pub(crate) const STDOUT: &str = "-";

/// Where sequences are written.
enum Target {
    File(PendingFile),
    Stdout(BufWriter<io::Stdout>),
}

impl Target {
    fn path(&self) -> &Path {
        match self {
            Target::File(file) => &file.path,
            Target::Stdout(_) => "stdout".as_ref(),
        }
    }

    fn writer(&mut self) -> &mut dyn Write {
        match self {
            Target::File(file) => &mut file.file,
            Target::Stdout(stdout) => stdout,
        }
    }
}

/// Writer of output sequences, in chunks of steps.
pub(crate) struct SequenceWriter {
    target: Target,
    encoding: Encoding,
    sequence_shape: SequenceShape,
    features: usize,
    /// Index of the next step to write.
    next_step: usize,
    /// Number of samples that a .wav file of integers could not hold.
    clipped: u64,
}

/// How values are written.
enum Encoding {
    /// With the offset of the first element, in bytes.
    Npy(u64),
    Csv,
    /// The writer has a handle of its own to the temporary file.
    Wav(WavWriter<BufWriter<File>>),
}

impl SequenceWriter {
    /// Creates a file of the format `format` for sequences with the layout, batch and steps of `sequence_shape` and the
    /// given number of features. `wav_spec` is the sample format and rate of a .wav file; `None` if there is none. The
    /// path [`STDOUT`] stands for stdout, to which sequences are written in order, in chunks of `chunk` steps.
    pub(crate) fn create(
        path: &Path,
        format: Format,
        sequence_shape: SequenceShape,
        features: usize,
        wav_spec: Option<WavSpec>,
        chunk: usize,
    ) -> Result<Self> {
        let to_stdout = path.as_os_str() == STDOUT;
        let path = if to_stdout { "stdout".as_ref() } else { path };
        if format == Format::Csv && sequence_shape.batch > 1 {
            let why =
                format!("a .csv file holds one sequence, got {}; write an .npy file instead", sequence_shape.batch);
            return Err(Error::file(path, why));
        }
        if format == Format::Wav && features != 1 {
            let why =
                format!("a .wav file holds one output per channel, but the model has {features}; write an .npy file");
            return Err(Error::file(path, why));
        }
        let SequenceShape { batch, steps, time_major, .. } = sequence_shape;
        if to_stdout && format == Format::Wav {
            // Its header is written at the end.
            return Err(Error::file(path, "a .wav file is not written to stdout; write it to a file"));
        }
        if to_stdout && batch > 1 && !time_major && steps > chunk {
            let why = format!(
                "expected at most {chunk} steps (the chunk) of {batch} sequences, because stdout is written in order, got \
                 {steps}; write to a file, or set --chunk {steps}"
            );
            return Err(Error::file(path, why));
        }
        let mut target = match to_stdout {
            true => Target::Stdout(BufWriter::new(io::stdout())),
            false => Target::File(PendingFile::create(path)?),
        };
        let encoding = match (format, wav_spec) {
            (Format::Csv, _) => Encoding::Csv,
            (Format::Npy, _) => {
                let header = encode_npy_header(&sequence_shape.array_shape(features));
                target.writer().write_all(&header).map_err(Error::io(path))?;
                Encoding::Npy(header.len() as u64)
            }
            (Format::Wav, Some(spec)) => {
                // The header has 32 bits for the number of bytes, of itself too.
                let sample_bytes = usize::from(spec.bits_per_sample.div_ceil(8));
                let bytes = [sequence_shape.batch, sequence_shape.steps, sample_bytes].map(|n| n as u128);
                if bytes.iter().product::<u128>() > u128::from(u32::MAX - 1024) {
                    return Err(Error::file(path, "a .wav file holds at most 4 GiB; write an .npy file"));
                }
                let Target::File(file) = &target else { unreachable!("checked above") };
                let handle = file.file.get_ref().try_clone_handle().map_err(file_error)?;
                Encoding::Wav(WavWriter::new(BufWriter::new(handle), spec).map_err(|e| Error::file(path, e))?)
            }
            (Format::Wav, None) => return Err(Error::file(path, "a .wav file needs a .wav input; write an .npy file")),
        };
        Ok(SequenceWriter { target, encoding, sequence_shape, features, next_step: 0, clipped: 0 })
    }

    /// Writes the next steps `y`, shape `(batch, steps, features)`.
    pub(crate) fn write(&mut self, y: ArrayView3<'_, f32>) -> Result<()> {
        let first_step = self.next_step;
        self.next_step += y.len_of(Axis(1));
        let by_step = y.view().permuted_axes([1, 0, 2]);
        let result = match &mut self.encoding {
            Encoding::Csv => self.write_rows(y),
            Encoding::Npy(_) if self.sequence_shape.time_major || self.sequence_shape.batch == 1 => {
                self.write_elements(by_step)
            }
            &mut Encoding::Npy(data_offset) => (0..self.sequence_shape.batch).try_for_each(|b| {
                let offset = ((b * self.sequence_shape.steps + first_step) * self.features * size_of::<f32>()) as u64;
                if let Target::File(file) = &mut self.target {
                    file.file.seek(SeekFrom::Start(data_offset + offset))?;
                }
                self.write_elements(y.slice(s![b..=b, .., ..]))
            }),
            Encoding::Wav(wav) => {
                for &sample in by_step {
                    self.clipped +=
                        u64::from(!write_sample(wav, sample).map_err(|e| Error::file(self.target.path(), e))?);
                }
                Ok(())
            }
        };
        result.map_err(Error::io(self.target.path()))
    }

    fn write_elements(&mut self, y: ArrayView3<'_, f32>) -> io::Result<()> {
        let writer = self.target.writer();
        y.iter().try_for_each(|v| writer.write_all(&v.to_le_bytes()))
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
            writeln!(self.target.writer(), "{line}")?;
        }
        Ok(())
    }

    /// Returns the file, to which all steps must have been written, and the number of samples beyond full scale. There
    /// is no file if the target is stdout.
    pub(crate) fn finish(mut self) -> Result<(Option<PendingFile>, u64)> {
        if let Encoding::Wav(wav) = self.encoding {
            wav.finalize().map_err(|e| Error::file(self.target.path(), e))?;
        }
        if let Target::Stdout(stdout) = &mut self.target {
            stdout.flush().map_err(Error::io("stdout".as_ref()))?;
        }
        let file = match self.target {
            Target::File(file) => Some(file),
            Target::Stdout(_) => None,
        };
        Ok((file, self.clipped))
    }
}

/// Writes one sample, where 1.0 is full scale. A value that integers can't hold becomes the nearest one, and NaN becomes
/// silence: then the result is false.
fn write_sample(wav: &mut WavWriter<BufWriter<File>>, sample: f32) -> Result<bool, hound::Error> {
    let spec = wav.spec();
    if spec.sample_format == SampleFormat::Float {
        return wav.write_sample(sample).map(|()| true);
    }
    let full_scale = full_scale(spec.bits_per_sample);
    let scaled = (f64::from(sample) * full_scale).round_ties_even();
    let held = scaled.clamp(-full_scale, full_scale - 1.0);
    wav.write_sample(held as i32).map(|()| held == scaled)
}
