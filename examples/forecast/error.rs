//! The error type of the program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    report::{MAX_ERROR_RATIO, MAX_RELATIVE_DIFFERENCE},
    train::MAX_LOSS,
};

/// An error of the program.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{}:{line}: {why}", path.display())]
    InvalidLine { path: PathBuf, line: usize, why: String },

    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },

    #[error(transparent)]
    Lstm(#[from] lstm::Error),

    #[error("{}: the forecasts of the saved model and of the trained model are not bit-identical", path.display())]
    ReloadMismatch { path: PathBuf },

    #[error(
        "{month}: expected the forecast {want}, got {got}; the relative difference {difference:.1e} is more than {MAX_RELATIVE_DIFFERENCE:e}"
    )]
    ForecastMismatch { month: String, got: f64, want: f64, difference: f64 },

    #[error(
        "the error of the forecast is {error:.2} %, more than {:.0} % of the error of repeating the last year, \
         {repeated_year_error:.2} %",
        MAX_ERROR_RATIO * 100.0
    )]
    InaccurateForecast { error: f64, repeated_year_error: f64 },

    #[error("the final loss is {loss:.4}, more than {MAX_LOSS}; try other --steps or --rate")]
    HighLoss { loss: f64 },
}

impl Error {
    /// Returns a function for `map_err` that converts an I/O error of the file or directory `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { path: path.into(), source }
    }

    /// Creates an [`Error::File`].
    pub(crate) fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.into(), why: why.to_string() }
    }
}

/// `Result` with this program's [`Error`].
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Creates the directory that contains the file `path`, unless the directory exists.
pub(crate) fn create_parent_dir(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |dir| fs::create_dir_all(dir).map_err(Error::io(dir)))
}
