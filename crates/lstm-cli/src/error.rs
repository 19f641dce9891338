//! The error type of the tool, with its exit codes.

use std::{
    io,
    path::{Path, PathBuf},
};

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error that ends a command.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the library, such as an invalid model or a failure of a device.
    #[error(transparent)]
    Model(#[from] lstm::Error),

    /// An error of the library that concerns a file.
    #[error("{}: {source}", path.display())]
    ModelFile {
        /// Path of the file.
        path: PathBuf,
        /// The library's error.
        source: lstm::Error,
    },

    /// A file that can't be read or written, or is invalid.
    #[error("{}: {why}", path.display())]
    File {
        /// Path of the file.
        path: PathBuf,
        /// What was expected and what was found.
        why: String,
    },

    /// An invalid value of a command-line option, or options that can't be combined.
    #[error("{}{option}: {why}", option_prefix(option))]
    Option {
        /// Name of the option without dashes, or name of a positional argument in capitals.
        option: &'static str,
        /// What was expected and what was given.
        why: String,
    },

    /// A requested backend that is not available.
    #[error("backend {name}: {why}")]
    Backend {
        /// Name of the backend.
        name: String,
        /// Why it is not available.
        why: String,
    },

    /// The user interrupted the command.
    #[error("interrupted")]
    Interrupted,
}

/// The dashes before an option's name; positional arguments, in capitals, have none.
fn option_prefix(option: &str) -> &'static str {
    if option.starts_with(char::is_uppercase) { "" } else { "--" }
}

impl Error {
    /// Creates an [`Error::File`].
    pub(crate) fn file(path: &Path, why: impl ToString) -> Self {
        Error::File { path: path.to_owned(), why: why.to_string() }
    }

    /// Creates an [`Error::Option`].
    pub(crate) fn option(option: &'static str, why: impl ToString) -> Self {
        Error::Option { option, why: why.to_string() }
    }

    /// Adds the path of a file to an error of the library, unless its message starts with that path already.
    pub(crate) fn with_path(self, path: &Path) -> Self {
        match self {
            Error::Model(source) if !source.to_string().starts_with(&*path.to_string_lossy()) => {
                Error::ModelFile { path: path.to_owned(), source }
            }
            other => other,
        }
    }

    /// Adds the files that are in place in spite of the error.
    pub(crate) fn with_files_in_place(self, files: &[PathBuf]) -> Self {
        if files.is_empty() {
            return self;
        }
        let files: Vec<_> = files.iter().map(|path| path.display().to_string()).collect();
        let in_place = format!("in place all the same: {}", files.join(", "));
        match self {
            Error::File { path, why } => Error::File { path, why: format!("{why}; {in_place}") },
            other => other,
        }
    }

    /// Returns a function for `map_err` that converts an I/O error to an error that names the file `path`.
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Error::file(path, error)
    }

    /// Kind of the error, as reported in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Error::Model(_) | Error::ModelFile { .. } => "model",
            Error::File { .. } => "file",
            Error::Option { .. } => "option",
            Error::Backend { .. } => "backend",
            Error::Interrupted => "interrupted",
        }
    }

    /// Exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Model(_) | Error::ModelFile { .. } | Error::File { .. } => 1,
            Error::Option { .. } => 2,
            Error::Backend { .. } => 4,
            Error::Interrupted => 130,
        }
    }
}
