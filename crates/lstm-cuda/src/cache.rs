//! Compiled kernels in files: a line that says what is in it, then the image. A file that is damaged, or of something
//! else, is as good as none.

use std::{
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm_core::{Error, Result};

/// Where compiled kernels are kept: `LSTM_CUDA_CACHE`, or the user's cache directory; `None` if neither is known, or if
/// the variable is set to nothing.
pub(crate) fn dir() -> Option<PathBuf> {
    let var = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(dir) = var("LSTM_CUDA_CACHE") {
        return (!dir.as_os_str().is_empty()).then_some(dir);
    }
    let cache = var("XDG_CACHE_HOME").or_else(|| var("LOCALAPPDATA")).or_else(|| Some(var("HOME")?.join(".cache")));
    cache.filter(|dir| dir.is_absolute()).map(|dir| dir.join("lstm-cuda"))
}

/// FNV-1a, 64 bits.
pub(crate) fn digest(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, &byte| (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

fn header(key: &str, image: &[u8]) -> String {
    format!("lstm-cuda 1; {key}; {} bytes, digest {:016x}\n", image.len(), digest(image))
}

/// Writes an image: all of the file or nothing of it.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn write(path: &Path, key: &str, image: &[u8]) -> Result<()> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let failed = |source| Error::Io { path: path.to_owned(), source };
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(failed)?;
    }
    // Nobody else has a file of this name.
    let temporary = path.with_extension(format!("{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let written = std::fs::write(&temporary, [header(key, image).as_bytes(), image].concat());
    let renamed = written.and_then(|()| std::fs::rename(&temporary, path));
    renamed.map_err(|source| {
        // It may not even be there.
        let _ = std::fs::remove_file(&temporary);
        failed(source)
    })
}

/// The image that was written for `key`, if that is what is there.
pub(crate) fn read(path: &Path, key: &str) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    let end = bytes.iter().position(|&byte| byte == b'\n')? + 1;
    let image = &bytes[end..];
    (bytes[..end] == *header(key, image).as_bytes()).then(|| image.to_vec())
}

/// What `load` gives of the image for `key` from a directory, or else of one from `make`, which is then kept there. One that
/// can't be loaded is as good as none, and is not kept. That one can't be kept is no error: it is made again the next time.
///
/// # Errors
/// Those of `make`, and of `load` for what was made.
pub(crate) fn or_make<T>(
    dir: Option<&Path>,
    key: &str,
    load: impl Fn(&[u8]) -> Result<T>,
    make: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<T> {
    let path = dir.map(|dir| dir.join(format!("{:016x}.cubin", digest(key.as_bytes()))));
    let kept = path.as_ref().and_then(|path| read(path, key));
    if let Some(loaded) = kept.and_then(|image| load(&image).ok()) {
        return Ok(loaded);
    }
    let image = make()?;
    let loaded = load(&image)?;
    if let Some(path) = path {
        let _ = write(&path, key, &image);
    }
    Ok(loaded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_and_other_entries_are_made_again() -> Result<()> {
        let dir = std::env::temp_dir().join(format!("lstm-cuda-cache-{}", process::id()));
        let load = |image: &[u8]| Ok(image.to_vec());
        let get = |key: &str, image: &[u8]| or_make(Some(&dir), key, load, || Ok(image.to_vec()));
        assert_eq!(get("a", b"first\nimage")?, b"first\nimage");
        assert_eq!(get("a", b"not made")?, b"first\nimage");
        assert_eq!(get("b", b"other")?, b"other");

        let path = dir.join(format!("{:016x}.cubin", digest(b"a")));
        let whole = std::fs::read(&path).expect("it was written");
        let mut flipped = whole.clone();
        *flipped.last_mut().expect("it is not empty") ^= 1;
        for damaged in [&whole[..whole.len() - 1], &flipped, b"", b"\n", b"lstm-cuda 1; b; 5 bytes"] {
            std::fs::write(&path, damaged).expect("it can be written");
            assert_eq!(get("a", b"made anew")?, b"made anew");
            assert_eq!(get("a", b"not made")?, b"made anew");
        }
        // What can't be loaded is neither used nor kept.
        let refused = |_: &[u8]| Err::<Vec<u8>, _>(Error::config("load", "refused"));
        assert!(or_make(Some(&dir), "a", refused, || Ok(b"refused".to_vec())).is_err());
        assert_eq!(get("a", b"not made")?, b"made anew");
        let others = |image: &[u8]| if image == b"made anew" { refused(image) } else { load(image) };
        assert_eq!(or_make(Some(&dir), "a", others, || Ok(b"another".to_vec()))?, b"another");
        assert_eq!(get("a", b"not made")?, b"another");
        // No temporary file is left.
        assert_eq!(std::fs::read_dir(&dir).expect("it is there").count(), 2);
        std::fs::remove_dir_all(&dir).expect("it is there");

        // Where nothing can be kept, it is made every time; and a failure to make is told.
        let nowhere = Path::new("/dev/null/cache");
        assert_eq!(or_make(Some(nowhere), "a", load, || Ok(b"made".to_vec()))?, b"made");
        assert!(or_make(None, "a", load, || Err(Error::config("make", "failed"))).is_err());
        Ok(())
    }
}
