//! What can go wrong in the program.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    report::{SHARE, TOLERANCE},
    train::MAX_LOSS,
};

/// Everything that can go wrong, with the place where it did.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },

    #[error("{}:{line}: {why}", path.display())]
    Line { path: PathBuf, line: usize, why: String },

    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },

    #[error(transparent)]
    Lstm(#[from] lstm_core::Error),

    #[error("{}: the saved model's forecast has not the bits of the trained one's", path.display())]
    Reloaded { path: PathBuf },

    #[error(
        "{month}: the forecast {got} differs from the expected {want} by {difference:.1e}, more than {TOLERANCE:e}"
    )]
    Check { month: String, got: f64, want: f64, difference: f64 },

    #[error(
        "the forecast is {error:.2} % off, more than {:.0} % of the {error_repeated:.2} % of repeating the last year",
        SHARE * 100.0
    )]
    Unskilled { error: f64, error_repeated: f64 },

    #[error(
        "the loss ended at {loss:.4}, more than {MAX_LOSS}: the model has learnt little; try other --steps or --rate"
    )]
    Untrained { loss: f64 },
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Error::Io { path: path.into(), source }
    }

    pub(crate) fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.into(), why: why.to_string() }
    }
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Makes the folder of a file that is to be written.
pub(crate) fn make_folder(path: &Path) -> Result<()> {
    path.parent().map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(Error::io(folder)))
}
