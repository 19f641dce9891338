//! Atomic replacement of files.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::error::{Error, Result};

/// Writes `bytes` to a temporary file in the folder of `path` and renames it to `path`. An existing file is replaced
/// atomically; it is unchanged after an error.
///
/// # Errors
/// [`Error::Io`] if the temporary file cannot be created, written or renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_and_rename(path, bytes).map_err(|source| Error::Io { path: path.into(), source })
}

/// Like [`write_atomic`], with errors that do not name the file.
fn write_and_rename(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (temporary_path, mut file) = create_temporary(path)?;
    let write_result = file.write_all(bytes).and_then(|()| file.sync_all());
    drop(file);
    write_result.and_then(|()| fs::rename(&temporary_path, path)).inspect_err(|_| {
        // The first error is returned, so an error of the removal is ignored.
        let _ = fs::remove_file(&temporary_path);
    })
}

/// Creates a new file with a unique name in the folder of `path`.
fn create_temporary(path: &Path) -> io::Result<(PathBuf, File)> {
    static FILE_COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path does not end in a file name"))?;
    loop {
        let mut unique_name = std::ffi::OsString::from(".");
        unique_name.push(name);
        unique_name.push(format!(".{}.{}", process::id(), FILE_COUNTER.fetch_add(1, Ordering::Relaxed)));
        let temporary_path = path.with_file_name(unique_name);
        match OpenOptions::new().write(true).create_new(true).open(&temporary_path) {
            Ok(file) => return Ok((temporary_path, file)),
            // A killed process with the same id left a file of this name.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
}
