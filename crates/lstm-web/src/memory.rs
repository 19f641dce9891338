//! Memory in which JavaScript places the arguments of calls.

use std::{ptr, slice};

use lstm::arithmetic::Digest;

use crate::result::set_result;

/// Allocates `size` bytes, aligned for every type of number. Returns 0 if there is not enough memory.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn allocate(size: usize) -> *mut u64 {
    let mut words: Vec<u64> = Vec::new();
    if let Err(error) = words.try_reserve_exact(words_of(size)) {
        set_result(format!("memory for {size} bytes: {error}"));
        return ptr::null_mut();
    }
    words.resize(words_of(size), 0);
    Box::into_raw(words.into_boxed_slice()).cast()
}

/// Frees the memory of [`allocate`].
///
/// # Safety
/// `p` is from `allocate(size)` and was not freed.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn release(p: *mut u64, size: usize) {
    // SAFETY: the caller guarantees the pointer and its size.
    drop(unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(p, words_of(size))) });
}

/// Number of words for `size` bytes; not zero, so that every address is unique.
fn words_of(size: usize) -> usize {
    size.div_ceil(8).max(1)
}

/// The elements at an address; `None` for address 0.
///
/// # Safety
/// `p` is 0 or has `n` elements, which stay unchanged for as long as the slice is used.
#[cfg(feature = "runtime")]
pub(crate) unsafe fn optional_slice<'a, T>(p: *const T, n: usize) -> Option<&'a [T]> {
    // SAFETY: guaranteed by the caller.
    (!p.is_null()).then(|| unsafe { slice::from_raw_parts(p, n) })
}

/// Leaves the digest of `n` floats in the buffer.
///
/// # Safety
/// `p` has `n` elements.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn digest(p: *const f32, n: usize) {
    // SAFETY: guaranteed by the caller.
    set_result(Digest::of(unsafe { slice::from_raw_parts(p, n) }).to_string());
}
