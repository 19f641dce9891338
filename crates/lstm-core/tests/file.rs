//! Saving replaces regular files only, keeps what belongs to them, and leaves no temporary files.
#![cfg(unix)]

use std::{
    fs,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use lstm_core::weights::file::{AtomicFile, write_atomic};

/// A folder that is removed at the end of the test.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("lstm-core-file-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        Folder(folder)
    }

    /// The names of all files, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

/// Saves to a path that must be rejected, and returns the message.
fn rejection(path: &Path) -> String {
    let message = write_atomic(path, b"new").unwrap_err().to_string();
    assert!(message.starts_with(&path.display().to_string()), "{message}");
    message
}

#[test]
fn only_regular_files_are_replaced() {
    let folder = Folder::new("kinds");
    let fifo = folder.0.join("fifo");
    assert!(Command::new("mknod").arg(&fifo).arg("p").status().unwrap().success());
    assert!(rejection(&fifo).contains("pipe"));
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    // As root only.
    let device = folder.0.join("device");
    if Command::new("mknod").arg(&device).args(["c", "1", "3"]).output().unwrap().status.success() {
        assert!(rejection(&device).contains("device"));
        assert!(fs::symlink_metadata(&device).unwrap().file_type().is_char_device());
        fs::remove_file(&device).unwrap();
    }
    assert!(rejection(&folder.0).contains("folder"));
    assert!(rejection(&folder.0.join("new/")).contains("file name"));
    assert!(rejection(&folder.0.join("missing/new")).contains("No such file"));
    let circle = folder.0.join("circle");
    symlink("circle", &circle).unwrap();
    assert!(rejection(&circle).contains("symbolic link"));
    assert_eq!(folder.names(), ["circle", "fifo"]);
}

#[test]
fn symbolic_links_are_followed() {
    let folder = Folder::new("links");
    fs::create_dir(folder.0.join("inner")).unwrap();
    symlink("inner/target", folder.0.join("link")).unwrap();
    symlink("link", folder.0.join("second")).unwrap();
    // The target does not exist, and then it does.
    for text in ["first", "second"] {
        write_atomic(&folder.0.join("second"), text.as_bytes()).unwrap();
        assert_eq!(fs::read_to_string(folder.0.join("inner/target")).unwrap(), text);
        assert!(fs::symlink_metadata(folder.0.join("link")).unwrap().is_symlink());
    }
    assert_eq!(folder.names(), ["inner", "link", "second"]);
}

#[test]
fn permissions_and_owner_are_kept() {
    let folder = Folder::new("permissions");
    let path = folder.0.join("model");
    write_atomic(&path, b"old").unwrap();
    let default_mode = fs::metadata(&path).unwrap().mode();
    assert_eq!(default_mode & 0o600, 0o600);
    for mode in [0o600, 0o640, 0o444] {
        fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        // As root only.
        let _ = std::os::unix::fs::chown(&path, Some(12_345), Some(23_456));
        let old = fs::metadata(&path).unwrap();
        write_atomic(&path, b"new").unwrap();
        let new = fs::metadata(&path).unwrap();
        assert_eq!((new.mode() & 0o7777, new.uid(), new.gid()), (mode, old.uid(), old.gid()));
        assert_ne!(new.ino(), old.ino());
    }
}

#[test]
fn the_temporary_name_fits_wherever_the_name_does() {
    let folder = Folder::new("names");
    for len in [1, 240, 251, 255] {
        let path = folder.0.join("x".repeat(len));
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
    assert_eq!(folder.names().len(), 4);
}

#[test]
fn temporary_files_go_away() {
    let folder = Folder::new("temporary");
    let path = folder.0.join("model");
    fs::write(&path, "old").unwrap();
    let mut dropped = AtomicFile::create(&path).unwrap();
    dropped.write_all(b"new").unwrap();
    assert_eq!((folder.names().len(), fs::read_to_string(&path).unwrap()), (2, "old".into()));
    // What a killed process left goes; what this process is writing stays.
    fs::write(folder.0.join(".lstm-1-0.tmp"), "stale").unwrap();
    fs::write(folder.0.join(".lstm-other"), "not a temporary file").unwrap();
    write_atomic(&path, b"other").unwrap();
    assert_eq!(folder.names().len(), 3);
    drop(dropped);
    assert_eq!(
        (folder.names(), fs::read_to_string(&path).unwrap()),
        (vec![".lstm-other".into(), "model".into()], "other".into())
    );
}

#[test]
fn many_threads_save_to_one_folder() {
    let folder = Folder::new("threads");
    std::thread::scope(|scope| {
        for k in 0..8 {
            let path = folder.0.join(format!("model-{}", k % 3));
            scope.spawn(move || (0..50).for_each(|_| write_atomic(&path, &[k; 1000]).unwrap()));
        }
    });
    assert_eq!(folder.names(), ["model-0", "model-1", "model-2"]);
    for name in folder.names() {
        let bytes = fs::read(folder.0.join(name)).unwrap();
        assert_eq!(bytes, [bytes[0]; 1000]);
    }
}
