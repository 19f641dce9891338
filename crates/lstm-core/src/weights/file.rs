//! Atomic replacement of files, and reading of regular files only.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::error::{Error, Result};

/// Start and end of the names of temporary files.
const TEMPORARY_PREFIX: &str = ".lstm-";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// Maximum number of symbolic links that are followed, as in Linux.
const MAX_LINKS: usize = 40;

/// Writes `bytes` to the file `path`, as an [`AtomicFile`] does.
///
/// # Errors
/// Those of [`AtomicFile::create`] and [`AtomicFile::commit`], and [`Error::Io`] if writing fails.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes).map_err(|source| Error::Io { path: path.into(), source })?;
    file.commit()
}

/// Opens a regular file for reading. A device could be endless, and opening a pipe could wait for ever.
///
/// # Errors
/// [`Error::Io`] if the file can't be opened, or is a folder, a device, a pipe or a socket.
pub fn open_regular(path: impl AsRef<Path>) -> Result<File> {
    let path = path.as_ref();
    let open = || {
        check_regular(&fs::metadata(path)?)?;
        let file = File::open(path)?;
        // The name may have got another file meanwhile.
        check_regular(&file.metadata()?)?;
        Ok(file)
    };
    open().map_err(|source| Error::Io { path: path.into(), source })
}

/// Reads a regular file, as [`open_regular`] opens it.
///
/// # Errors
/// Those of [`open_regular`]; [`Error::Io`] if reading fails or the file does not fit in memory.
pub fn read_regular(path: impl AsRef<Path>) -> Result<Vec<u8>> {
    let path = path.as_ref();
    let mut bytes = Vec::new();
    // This reserves the memory for the whole file first, and returns an error if it can't.
    open_regular(path)?.read_to_end(&mut bytes).map_err(|source| Error::Io { path: path.into(), source })?;
    Ok(bytes)
}

/// Checks that a file to read is a regular one.
fn check_regular(metadata: &Metadata) -> io::Result<()> {
    if metadata.is_file() {
        return Ok(());
    }
    Err(invalid(match metadata.is_dir() {
        true => "expected a file, got a folder",
        false => "expected a regular file, got a pipe or a device; save its content to a file first",
    }))
}

/// A file that appears under its name, or replaces the file of that name, only when [`commit`](Self::commit) is called.
/// Until then its content is in a temporary file in the same folder, which is removed if this value is dropped. After a
/// crash the old file is whole; the next `AtomicFile` in the folder removes the temporary file that a killed process
/// left.
///
/// A symbolic link is followed: the file to which it points is replaced. On Unix, a file that is replaced keeps its
/// permissions, and its owner and group as far as the process may set them. Access control lists and extended attributes
/// are not kept.
#[derive(Debug)]
pub struct AtomicFile {
    /// The path that the caller gave, for error messages.
    path: PathBuf,
    /// The file to create or replace.
    target: PathBuf,
    temporary: PathBuf,
    /// The temporary file, which this process has locked, so that no other process takes it for a file of a killed one.
    file: File,
    is_committed: bool,
}

impl AtomicFile {
    /// Creates the temporary file.
    ///
    /// # Errors
    /// [`Error::Io`] if `path` exists and is not a regular file, such as a folder, a device or a pipe; if it does not
    /// end in a file name; or if the temporary file can't be created.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let create = || {
            let target = follow_links(path)?;
            let replaced = check_target(&target)?;
            remove_stale_files(parent(&target));
            let (temporary, file) = create_temporary(&target, replaced.as_ref())?;
            let file = AtomicFile { path: path.into(), target, temporary, file, is_committed: false };
            if let Some(replaced) = &replaced {
                copy_owner_and_permissions(replaced, &file.file)?;
            }
            Ok(file)
        };
        create().map_err(|source| Error::Io { path: path.into(), source })
    }

    /// Writes everything to the disk, so that [`commit`](Self::commit) has little left that can fail. A program that
    /// replaces several files calls this for all of them first.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk fails.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Another handle to the temporary file, with the same position, for a writer that must own it.
    ///
    /// # Errors
    /// [`Error::Io`] if the process has too many open files.
    pub fn try_clone_handle(&self) -> Result<File> {
        self.file.try_clone().map_err(|source| Error::Io { path: self.path.clone(), source })
    }

    /// Writes everything to the disk and gives the file its name.
    ///
    /// # Errors
    /// [`Error::Io`] if the disk or the renaming fails; the old file is then unchanged. Also if the folder can't be
    /// written to the disk; the new file then is in place, but might be lost if the machine crashes.
    pub fn commit(mut self) -> Result<()> {
        let mut commit = || {
            self.file.sync_all()?;
            fs::rename(&self.temporary, &self.target)?;
            self.is_committed = true;
            sync_folder(parent(&self.target))
        };
        let result = commit();
        result.map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Seek for AtomicFile {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.file.seek(position)
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if !self.is_committed {
            // There is nobody to report an error to. The next `AtomicFile` in this folder tries again.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The folder of a file.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// An error about an argument.
fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, reason)
}

/// Follows symbolic links, also to a file that does not exist.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => path = parent(&path).join(fs::read_link(&path)?),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => return Ok(path),
        }
    }
    Err(invalid("expected a file, got a symbolic link that leads to itself"))
}

/// Checks that the target is a regular file or does not exist. Returns the metadata of an existing file.
fn check_target(target: &Path) -> io::Result<Option<Metadata>> {
    let ends_with_separator =
        target.as_os_str().as_encoded_bytes().last().is_some_and(|&c| std::path::is_separator(c.into()));
    match fs::metadata(target) {
        Ok(metadata) if metadata.is_dir() => Err(invalid("expected the path of a file, got a folder")),
        Ok(metadata) if !metadata.is_file() => {
            Err(invalid("expected a regular file or a new one, got a device, pipe or socket, which can't be replaced"))
        }
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Err(_) if ends_with_separator || target.file_name().is_none() => {
            Err(invalid("expected the path of a file, got one that does not end in a file name"))
        }
        Err(_) => Ok(None),
    }
}

/// Creates and locks a new file with a unique name in the folder of `target`. If it will replace a file, nobody else may
/// read it until it has that file's permissions.
fn create_temporary(target: &Path, replaced: Option<&Metadata>) -> io::Result<(PathBuf, File)> {
    static FILE_COUNTER: AtomicU64 = AtomicU64::new(0);
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    if replaced.is_some() {
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    }
    #[cfg(not(unix))]
    let _ = replaced;
    loop {
        let number = FILE_COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{TEMPORARY_PREFIX}{}-{number}{TEMPORARY_SUFFIX}", process::id());
        let temporary = parent(target).join(name);
        match options.open(&temporary) {
            Ok(file) => {
                // File systems without locks leave stale files in place.
                let _ = file.lock();
                // Another process may have taken the file for a stale one before it was locked.
                if temporary.exists() {
                    return Ok((temporary, file));
                }
            }
            // A killed process with the same id left a file of this name.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Removes temporary files of killed processes: those that nobody has locked. Errors are ignored, because saving does
/// not depend on it.
fn remove_stale_files(folder: &Path) {
    let is_temporary = |name: &str| name.starts_with(TEMPORARY_PREFIX) && name.ends_with(TEMPORARY_SUFFIX);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|file_type| file_type.is_file());
        if is_file && entry.file_name().to_str().is_some_and(is_temporary) {
            // Removed while it is locked, so that a process that has just created it waits, and then sees that it is gone.
            if let Ok(file) = OpenOptions::new().write(true).open(entry.path())
                && file.try_lock().is_ok()
            {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

/// Gives `file` the owner, group and permissions of the file that it will replace. Only a privileged process may give a
/// file to another owner, so a failure of that is not an error.
#[cfg(unix)]
fn copy_owner_and_permissions(replaced: &Metadata, file: &File) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt, fchown};
    let new = file.metadata()?;
    if (new.uid(), new.gid()) != (replaced.uid(), replaced.gid()) {
        let _ = fchown(file, Some(replaced.uid()), Some(replaced.gid()))
            .or_else(|_| fchown(file, None, Some(replaced.gid())));
    }
    file.set_permissions(replaced.permissions())
}

/// A new file has the default permissions.
#[cfg(not(unix))]
fn copy_owner_and_permissions(_: &Metadata, _: &File) -> io::Result<()> {
    Ok(())
}

/// Writes the entries of a folder to the disk, so that a renamed file keeps its name after a crash.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        // Some file systems can't do this, and a folder may be writable but not readable.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::PermissionDenied) => Ok(()),
        result => result,
    }
}

/// Folders can't be opened on other systems.
#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
