//! Files of compiled kernels. A file consists of a header line, which identifies the content and has its digest, and
//! the compiled image. Damaged files and files with another header are ignored.

use std::{
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm_core::{Error, Result};

/// The directory in which compiled kernels are cached: the value of `LSTM_CUDA_CACHE`, or `lstm-cuda` in the user's
/// cache directory. `None` if the variable is empty, or if it is not set and the user has no cache directory.
pub(crate) fn dir() -> Option<PathBuf> {
    let env_path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(dir) = env_path("LSTM_CUDA_CACHE") {
        return (!dir.as_os_str().is_empty()).then_some(dir);
    }
    let cache_home = env_path("XDG_CACHE_HOME")
        .or_else(|| env_path("LOCALAPPDATA"))
        .or_else(|| Some(env_path("HOME")?.join(".cache")));
    cache_home.filter(|dir| dir.is_absolute()).map(|dir| dir.join("lstm-cuda"))
}

/// Returns the 64-bit FNV-1a hash of `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

/// Returns the header line of the file for a compiled image, with the key and the image's size and digest.
fn header(key: &str, image: &[u8]) -> String {
    format!("lstm-cuda 1; {key}; {} bytes, digest {:016x}\n", image.len(), digest(image))
}

/// Writes an image with its header to a temporary file, which is renamed to `path` on success.
///
/// # Errors
/// [`Error::Io`] if the directory or the file can't be written.
pub(crate) fn write(path: &Path, key: &str, image: &[u8]) -> Result<()> {
    static WRITE_COUNT: AtomicUsize = AtomicUsize::new(0);
    let io_error = |source| Error::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(io_error)?;
    }
    // The name is unique, so that concurrent writers do not share a temporary file.
    let temporary_path =
        path.with_extension(format!("{}-{}", process::id(), WRITE_COUNT.fetch_add(1, Ordering::Relaxed)));
    let write_result = std::fs::write(&temporary_path, [header(key, image).as_bytes(), image].concat());
    let rename_result = write_result.and_then(|()| std::fs::rename(&temporary_path, path));
    rename_result.map_err(|source| {
        // The file may not exist; either way the first error is the one to report.
        let _ = std::fs::remove_file(&temporary_path);
        io_error(source)
    })
}

/// Reads the image that was written for `key`; `None` if the file is missing, damaged or for another key.
pub(crate) fn read(path: &Path, key: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let header_end = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let image = &bytes[header_end..];
    (bytes[..header_end] == *header(key, image).as_bytes()).then(|| image.to_vec())
}

/// Loads the image for `key` from the cache directory. If it is not there, or `load` fails on it, compiles the image,
/// loads it and caches it. An image that can't be loaded is not cached. A failure to write the cache is ignored, since
/// the image is then compiled again the next time.
///
/// # Errors
/// The errors of `compile`, and of `load` for the compiled image.
pub(crate) fn load_or_compile<T>(
    dir: Option<&Path>,
    key: &str,
    load: impl Fn(&[u8]) -> Result<T>,
    compile: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<T> {
    let path = dir.map(|dir| dir.join(format!("{:016x}.cubin", digest(key.as_bytes()))));
    let cached_image = path.as_ref().and_then(|path| read(path, key));
    if let Some(loaded_image) = cached_image.and_then(|image| load(&image).ok()) {
        return Ok(loaded_image);
    }
    let image = compile()?;
    let loaded_image = load(&image)?;
    if let Some(path) = path {
        let _ = write(&path, key, &image);
    }
    Ok(loaded_image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_and_mismatched_entries_are_recompiled() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("lstm-cuda-cache-{}", process::id()));
        let load = |image: &[u8]| Ok(image.to_vec());
        let load_entry = |key: &str, image: &[u8]| load_or_compile(Some(&dir), key, load, || Ok(image.to_vec()));
        assert_eq!(load_entry("a", b"first\nimage")?, b"first\nimage");
        assert_eq!(load_entry("a", b"not compiled")?, b"first\nimage");
        assert_eq!(load_entry("b", b"other")?, b"other");

        let path = dir.join(format!("{:016x}.cubin", digest(b"a")));
        let file_bytes = std::fs::read(&path).expect("the file was written");
        let mut flipped_bytes = file_bytes.clone();
        *flipped_bytes.last_mut().expect("the file is not empty") ^= 1;
        for damaged in [&file_bytes[..file_bytes.len() - 1], &flipped_bytes, b"", b"\n", b"lstm-cuda 1; b; 5 bytes"] {
            std::fs::write(&path, damaged).expect("the file can be written");
            assert_eq!(load_entry("a", b"recompiled")?, b"recompiled");
            assert_eq!(load_entry("a", b"not compiled")?, b"recompiled");
        }
        // An image that can't be loaded is neither used nor cached.
        let reject = |_: &[u8]| Err::<Vec<u8>, _>(Error::config("load", "rejected"));
        assert!(load_or_compile(Some(&dir), "a", reject, || Ok(b"rejected".to_vec())).is_err());
        assert_eq!(load_entry("a", b"not compiled")?, b"recompiled");
        let load_unless_recompiled = |image: &[u8]| if image == b"recompiled" { reject(image) } else { load(image) };
        assert_eq!(load_or_compile(Some(&dir), "a", load_unless_recompiled, || Ok(b"another".to_vec()))?, b"another");
        assert_eq!(load_entry("a", b"not compiled")?, b"another");
        // No temporary file is left.
        assert_eq!(std::fs::read_dir(&dir).expect("the directory exists").count(), 2);
        std::fs::remove_dir_all(&dir).expect("the directory exists");

        // Without a usable directory the image is compiled every time, and errors of the compiler are returned.
        let unusable_dir = Path::new("/dev/null/cache");
        assert_eq!(load_or_compile(Some(unusable_dir), "a", load, || Ok(b"compiled".to_vec()))?, b"compiled");
        assert!(load_or_compile(None, "a", load, || Err(Error::config("compile", "failed"))).is_err());
        Ok(())
    }
}
