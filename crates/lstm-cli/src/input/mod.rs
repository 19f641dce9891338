//! Reads sequences from files of any length, a chunk of steps at a time.

mod csv;
mod npy;
mod wav;

use std::{
    fs::{self, File, Metadata},
    io::{self, Read, Seek},
    path::{Path, PathBuf},
};

use hound::WavSpec;
use lstm::ndarray::{Array2, Array3, Axis};

use crate::error::{Error, Result};

pub(crate) use npy::encode_header as encode_npy_header;
pub(crate) use wav::full_scale;

/// The extension of a file in lower case, without the dot. Empty if there is none.
pub(crate) fn extension(path: &Path) -> String {
    path.extension().map(|extension| extension.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// File format of sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's .npy format in C order. Features have two or three axes and elements of type f32, f16 or f64; f64 is
    /// rounded to the nearest f32. Tokens have one or two axes and integers of 32 or 64 bits.
    Npy,
    /// Comma-separated numbers, one row per step. Holds one sequence.
    Csv,
    /// Audio. Each channel is a sequence with one feature.
    Wav,
}

impl Format {
    /// Format of a file, by its extension `.npy`, `.csv` or `.wav`, in upper or lower case.
    ///
    /// # Errors
    /// [`Error::File`] for any other extension.
    pub fn of(path: &Path) -> Result<Self> {
        match &*extension(path) {
            "npy" => Ok(Format::Npy),
            "csv" => Ok(Format::Csv),
            "wav" => Ok(Format::Wav),
            _ => Err(Error::file(path, "expected the extension .npy, .csv or .wav")),
        }
    }

    /// Detects the format of the file `path` from the extension, or if it has none, from the first bytes. The read position
    /// of `file` must be at the start, and is there again on return.
    fn of_file(path: &Path, mut file: &File) -> Result<Self> {
        if path.extension().is_some() {
            return Format::of(path);
        }
        let mut start = Vec::new();
        file.take(4).read_to_end(&mut start).and_then(|_| file.rewind()).map_err(Error::io(path))?;
        Ok(match &start[..] {
            [0x93, b'N', ..] => Format::Npy,
            b"RIFF" | b"RF64" | b"BW64" => Format::Wav,
            // Text has no particular beginning.
            _ => Format::Csv,
        })
    }
}

/// Options that say how sequences are laid out in a file, where the file itself does not tell.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Layout {
    /// Arrays with three axes are (steps, batch, features) instead of (batch, steps, features)
    #[arg(long)]
    pub time_major: bool,

    /// The first row of the .csv input is a header and is skipped
    #[arg(long)]
    pub header: bool,

    /// The input is tokens, integers, as a model that begins with an embedding reads them; such a model implies it. An
    /// .npy file has the shape (steps) or (batch, steps), a .csv file one token per row
    #[arg(long)]
    pub tokens: bool,

    /// The rate in Hz to which a .wav file is resampled.
    #[arg(skip)]
    pub sample_rate: Option<u32>,
}

/// Shape of the sequences in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceShape {
    /// Number of sequences.
    pub batch: usize,
    /// Number of steps of each sequence.
    pub steps: usize,
    /// Number of features of a step.
    pub features: usize,
    /// Whether the file has no batch axis; `batch` is then 1.
    pub is_single_sequence: bool,
    /// Whether the time axis comes before the batch axis.
    pub time_major: bool,
}

impl SequenceShape {
    /// Shape of the array that holds these sequences in a file, if each step has the given number of features.
    pub(crate) fn array_shape(&self, features: usize) -> Vec<usize> {
        match (self.is_single_sequence, self.time_major) {
            (true, _) => vec![self.steps, features],
            (false, true) => vec![self.steps, self.batch, features],
            (false, false) => vec![self.batch, self.steps, features],
        }
    }
}

/// Reader of a file of sequences, from the first step to the last.
pub struct Reader<R> {
    path: PathBuf,
    sequence_shape: SequenceShape,
    /// Index of the next step to read.
    next_step: usize,
    format_reader: FormatReader<R>,
}

/// The reader for the format of the file.
enum FormatReader<R> {
    Npy(npy::ElementReader<R>),
    Csv(csv::RowReader<R>),
    Wav(wav::FrameReader<R>, WavSpec),
}

/// Opens a file of sequences and determines its format: by the extension, or without one by the content, as for
/// `/dev/stdin`. A pipe, whose length nobody knows, is first copied to a temporary file, so that it takes space on the
/// disk and not in memory.
pub(crate) fn open_file(path: &Path) -> Result<(File, Format)> {
    let metadata = fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_file() {
        let file = File::open(path).map_err(Error::io(path))?;
        let format = Format::of_file(path, &file)?;
        return Ok((file, format));
    }
    if metadata.is_dir() {
        return Err(Error::file(path, "is a directory"));
    }
    if !is_pipe(&metadata) {
        return Err(Error::file(path, "expected a regular file or a pipe, got a device or a socket"));
    }
    let mut pipe = File::open(path).map_err(Error::io(path))?;
    let folder = std::env::temp_dir();
    let mut copy = tempfile::tempfile_in(&folder).map_err(Error::io(&folder))?;
    io::copy(&mut pipe, &mut copy).map_err(|error| {
        let why = format!("copying it to a file in {}: {error}; TMPDIR chooses another folder", folder.display());
        Error::file(path, why)
    })?;
    copy.rewind().map_err(Error::io(&folder))?;
    let format = Format::of_file(path, &copy)?;
    Ok((copy, format))
}

#[cfg(unix)]
fn is_pipe(metadata: &Metadata) -> bool {
    std::os::unix::fs::FileTypeExt::is_fifo(&metadata.file_type())
}

/// Pipes have no paths on other systems.
#[cfg(not(unix))]
fn is_pipe(_: &Metadata) -> bool {
    false
}

impl<R: Read + Seek> Reader<R> {
    /// Creates a reader of the sequences in `r` and determines their shape. Error messages call the file `path`.
    ///
    /// # Errors
    /// [`Error::File`] if the contents are not of this format, have an unsupported element type or number of axes, are
    /// empty, or are longer or shorter than their header says. [`Error::Option`] for `header` with another format than
    /// CSV.
    pub fn new(path: &Path, r: R, format: Format, layout: Layout) -> Result<Self> {
        if layout.header && format != Format::Csv {
            return Err(Error::option("header", format!("expected a .csv file, got {}", path.display())));
        }
        if layout.tokens && format == Format::Wav {
            return Err(Error::file(path, "expected tokens in an .npy or .csv file"));
        }
        let file_error = |why: String| Error::file(path, why);
        let (format_reader, sequence_shape) = match format {
            Format::Npy => npy::open(r, layout).map(|(data, sequence_shape)| (FormatReader::Npy(data), sequence_shape)),
            Format::Csv => csv::open(r, layout).map(|(rows, sequence_shape)| (FormatReader::Csv(rows), sequence_shape)),
            Format::Wav => wav::open(r, layout.sample_rate)
                .map(|(frames, sequence_shape, spec)| (FormatReader::Wav(frames, spec), sequence_shape)),
        }
        .map_err(file_error)?;
        Ok(Reader { path: path.to_owned(), sequence_shape, next_step: 0, format_reader })
    }

    /// Shape of the sequences.
    pub fn sequence_shape(&self) -> SequenceShape {
        self.sequence_shape
    }

    /// Reads the next steps, at most `max_steps`, as an array of shape `(batch, steps, features)`. Returns `None` at
    /// the end.
    ///
    /// # Errors
    /// [`Error::File`] if the file can't be read or contains a value that is not a number in the range of f32.
    pub fn next_steps(&mut self, max_steps: usize) -> Result<Option<Array3<f32>>> {
        self.next_array(max_steps, |format_reader, sequence_shape, step, n| match format_reader {
            FormatReader::Npy(data) => data.read(sequence_shape, step, n),
            FormatReader::Csv(rows) => rows.read(sequence_shape, n),
            FormatReader::Wav(frames, _) => frames.read(sequence_shape, n),
        })
    }

    /// Reads the next steps of a file of tokens, at most `max_steps`, as an array of shape `(batch, steps)`. Returns
    /// `None` at the end.
    ///
    /// # Errors
    /// [`Error::File`] if the file can't be read or contains a value that is not an integer.
    pub fn next_tokens(&mut self, max_steps: usize) -> Result<Option<Array2<i64>>> {
        let tokens = self.next_array(max_steps, |format_reader, sequence_shape, step, n| match format_reader {
            FormatReader::Npy(data) => data.read(sequence_shape, step, n),
            FormatReader::Csv(rows) => rows.read(sequence_shape, n),
            FormatReader::Wav(..) => Err("expected tokens, got audio".into()),
        })?;
        Ok(tokens.map(|tokens: Array3<i64>| tokens.index_axis_move(Axis(2), 0)))
    }

    fn next_array<T>(
        &mut self,
        max_steps: usize,
        read: impl FnOnce(&mut FormatReader<R>, &SequenceShape, usize, usize) -> Result<Array3<T>, String>,
    ) -> Result<Option<Array3<T>>> {
        let n = max_steps.max(1).min(self.sequence_shape.steps - self.next_step);
        if n == 0 {
            return Ok(None);
        }
        let result = read(&mut self.format_reader, &self.sequence_shape, self.next_step, n);
        self.next_step += n;
        result.map(Some).map_err(|why| Error::file(&self.path, why))
    }

    /// Format of the file.
    pub(crate) fn format(&self) -> Format {
        match &self.format_reader {
            FormatReader::Npy(_) => Format::Npy,
            FormatReader::Csv(_) => Format::Csv,
            FormatReader::Wav(..) => Format::Wav,
        }
    }

    /// The sample format and rate of a .wav file.
    pub(crate) fn wav_spec(&self) -> Option<WavSpec> {
        match &self.format_reader {
            FormatReader::Wav(_, spec) => Some(*spec),
            _ => None,
        }
    }
}

/// A value of a sequence: f32 for features, i64 for tokens.
trait Element: Sized {
    /// What a text field must be, for messages.
    const EXPECTED: &str;
    /// Parses a field of a .csv file.
    fn parse(field: &str) -> Option<Self>;
    /// Decodes little-endian bytes of an .npy file, which are elements of `element_type`, and appends the values to
    /// `out`. The number of the first element is for messages.
    fn decode(
        element_type: npy::ElementType,
        bytes: &[u8],
        first_element: usize,
        out: &mut Vec<Self>,
    ) -> Result<(), String>;
}

/// Creates an array from its elements in C order.
fn array_from_values<T>(shape: (usize, usize, usize), values: Vec<T>) -> Result<Array3<T>, String> {
    Array3::from_shape_vec(shape, values).map_err(|e| e.to_string())
}
