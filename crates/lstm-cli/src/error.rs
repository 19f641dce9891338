//! What can go wrong, and the exit code that says which.

use std::{
    io,
    path::{Path, PathBuf},
};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What ends a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A model that can't be read, or what the library or a device refuses.
    #[error(transparent)]
    Model(#[from] lstm_core::Error),

    /// The same, of a file.
    #[error("{}: {source}", path.display())]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, or with how it fits.
        source: lstm_core::Error,
    },

    /// A file that is not what it should be.
    #[error("{}: {why}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was expected and what came.
        why: String,
    },

    /// A value that an option can't have, or options that don't go together.
    #[error("{}{option}: {why}", dashes(option))]
    Option {
        /// Its name; of a value without one, what the help calls it, in capitals.
        option: &'static str,
        /// What was given and what would be accepted.
        why: String,
    },

    /// A backend that can't run here.
    #[error("backend {name}: {why}")]
    Backend {
        /// Its name.
        name: String,
        /// Why.
        why: String,
    },

    /// Stopped by the user.
    #[error("interrupted")]
    Interrupted,
}

fn dashes(option: &str) -> &'static str {
    if option.starts_with(char::is_uppercase) { "" } else { "--" }
}

impl Error {
    /// About a file.
    pub(crate) fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.to_owned(), why: why.to_string() }
    }

    /// About an option.
    pub(crate) fn option(option: &'static str, why: impl ToString) -> Self {
        Error::Option { option, why: why.to_string() }
    }

    /// Names the file that an error of the library is about, unless it does so itself.
    pub(crate) fn of(self, path: &Path) -> Self {
        match self {
            Error::Model(source) if !source.to_string().starts_with(&*path.to_string_lossy()) => {
                Error::ModelFile { path: path.to_owned(), source }
            }
            other => other,
        }
    }

    /// What an operation on a file failed with.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Error::file(path, error)
    }

    /// One word that says what kind it is.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Model(_) | Error::ModelFile { .. } => "model",
            Error::File { .. } => "file",
            Error::Option { .. } => "option",
            Error::Backend { .. } => "backend",
            Error::Interrupted => "interrupted",
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Error::Model(_) | Error::ModelFile { .. } | Error::File { .. } => 1,
            Error::Option { .. } => 2,
            Error::Backend { .. } => 4,
            Error::Interrupted => 130,
        }
    }
}
