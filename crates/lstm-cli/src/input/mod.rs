//! Sequences from a file of any length, some steps at a time.

mod csv;
pub mod hostile;
mod npy;

use std::{
    fs::File,
    io::{Read, Seek},
    path::{Path, PathBuf},
};

use lstm_core::ndarray::Array3;

use crate::error::{Error, Result};

pub(crate) use npy::header as npy_header;

/// What a file of sequences is, by its extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// NumPy's, of f32, f64 (rounded to the nearest f32) or f16, in C order: (steps, features) or three axes.
    Npy,
    /// Numbers separated by commas, a row per step: one sequence.
    Csv,
}

impl Format {
    /// That of a path.
    ///
    /// # Errors
    /// [`Error::File`] for another extension.
    pub fn of(path: &Path) -> Result<Self> {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("npy") => Ok(Format::Npy),
            Some("csv") => Ok(Format::Csv),
            _ => Err(Error::file(path, "expected the extension .npy or .csv")),
        }
    }
}

/// How sequences lie in a file: what cannot be told from its shape.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct Layout {
    /// Files of three axes are (steps, batch, features) instead of (batch, steps, features)
    #[arg(long)]
    pub time_major: bool,

    /// The first row of the .csv input is a heading
    #[arg(long)]
    pub header: bool,
}

/// The extent of a file's sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Sequences.
    pub batch: usize,
    /// Steps of each.
    pub steps: usize,
    /// Features of a step.
    pub features: usize,
    /// Whether the file has no axis for the batch, which is then 1.
    pub single: bool,
    /// Whether the steps' axis comes first.
    pub time_major: bool,
}

impl Extent {
    /// A file's shape, for this many features.
    pub(crate) fn shape(&self, features: usize) -> Vec<usize> {
        match (self.single, self.time_major) {
            (true, _) => vec![self.steps, features],
            (false, true) => vec![self.steps, self.batch, features],
            (false, false) => vec![self.batch, self.steps, features],
        }
    }
}

/// A file of sequences that is read from its first step to its last.
pub struct Reader<R> {
    path: PathBuf,
    extent: Extent,
    /// The next step.
    at: usize,
    inner: Inner<R>,
}

enum Inner<R> {
    Npy(npy::Data<R>),
    Csv(csv::Rows<R>),
}

impl Reader<File> {
    /// Opens a file and looks at its extent; of a .csv file, this reads it once.
    ///
    /// # Errors
    /// As for [`new`](Self::new), and for what the operating system refuses.
    pub fn open(path: &Path, layout: Layout) -> Result<Self> {
        let format = Format::of(path)?;
        let file = File::open(path).map_err(Error::io(path))?;
        if file.metadata().map_err(Error::io(path))?.is_dir() {
            return Err(Error::file(path, "is a directory"));
        }
        Reader::new(path, file, format, layout)
    }
}

impl<R: Read + Seek> Reader<R> {
    /// Looks at the extent of what `r` holds; errors call it `path`.
    ///
    /// # Errors
    /// [`Error::File`] if it is no such file, of other element types or axes, empty, or longer or shorter than it says.
    pub fn new(path: &Path, r: R, format: Format, layout: Layout) -> Result<Self> {
        if layout.header && format != Format::Csv {
            return Err(Error::option("header", format!("{} is no .csv file", path.display())));
        }
        let fail = |why: String| Error::file(path, why);
        let (inner, extent) = match format {
            Format::Npy => npy::open(r, layout.time_major).map(|(data, extent)| (Inner::Npy(data), extent)),
            Format::Csv => csv::open(r, layout.header).map(|(rows, extent)| (Inner::Csv(rows), extent)),
        }
        .map_err(fail)?;
        Ok(Reader { path: path.to_owned(), extent, at: 0, inner })
    }

    /// What it holds.
    pub fn extent(&self) -> Extent {
        self.extent
    }

    /// The next steps, `max` at most, as (batch, steps, features); `None` after the last.
    ///
    /// # Errors
    /// [`Error::File`] for what can't be read, or is no number that f32 holds.
    pub fn next_steps(&mut self, max: usize) -> Result<Option<Array3<f32>>> {
        let n = max.max(1).min(self.extent.steps - self.at);
        if n == 0 {
            return Ok(None);
        }
        let read = match &mut self.inner {
            Inner::Npy(data) => data.read(&self.extent, self.at, n),
            Inner::Csv(rows) => rows.read(&self.extent, n),
        };
        self.at += n;
        read.map(Some).map_err(|why| Error::file(&self.path, why))
    }
}

/// An array of elements that were read, as many as the shape says.
fn array(shape: (usize, usize, usize), values: Vec<f32>) -> Result<Array3<f32>, String> {
    Array3::from_shape_vec(shape, values).map_err(|e| e.to_string())
}
