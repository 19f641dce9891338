//! Checks of the pointers that a caller passes.

use std::{
    ffi::{CStr, c_char},
    fmt, slice,
};

use crate::status::Failure;

/// What is wrong with a pointer. It holds no text of its own, so that real-time functions can make one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BadPointer {
    name: &'static str,
    problem: &'static str,
}

impl fmt::Display for BadPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "argument {}: {}", self.name, self.problem)
    }
}

impl From<BadPointer> for Failure {
    fn from(bad: BadPointer) -> Self {
        Failure::argument(bad)
    }
}

/// Checks a pointer to `len` elements.
pub(crate) fn check<T>(name: &'static str, pointer: *const T, len: usize) -> Result<(), BadPointer> {
    let bad = |problem| Err(BadPointer { name, problem });
    if pointer.is_null() {
        return bad("expected a pointer, got NULL");
    }
    if !pointer.is_aligned() {
        return bad("the pointer is not aligned for its type");
    }
    if len.checked_mul(size_of::<T>()).is_none_or(|bytes| bytes > isize::MAX as usize) {
        return bad("the array is larger than memory can be");
    }
    Ok(())
}

/// An array that the function reads. May be NULL if it is empty.
///
/// # Safety
/// If `pointer` is not null, `len` elements can be read there while the result is in use, and nothing writes to them.
pub(crate) unsafe fn input<'a, T>(name: &'static str, pointer: *const T, len: usize) -> Result<&'a [T], BadPointer> {
    if len == 0 {
        return Ok(&[]);
    }
    check(name, pointer, len)?;
    // SAFETY: the pointer is not null, aligned, and the size is checked; the caller guarantees the rest.
    Ok(unsafe { slice::from_raw_parts(pointer, len) })
}

/// An array that the function writes. May be NULL if it is empty.
///
/// # Safety
/// If `pointer` is not null, `len` elements can be written there while the result is in use, and nothing else accesses
/// them. They need not be initialized, because the library only writes them.
pub(crate) unsafe fn output<'a, T>(name: &'static str, pointer: *mut T, len: usize) -> Result<&'a mut [T], BadPointer> {
    if len == 0 {
        return Ok(&mut []);
    }
    check(name, pointer, len)?;
    // SAFETY: as in `input`.
    Ok(unsafe { slice::from_raw_parts_mut(pointer, len) })
}

/// Checks that the array that a function writes does not overlap one that it reads.
pub(crate) fn check_disjoint<A, B>(x: (*const A, usize), y: (*mut B, usize)) -> Result<(), BadPointer> {
    let range = |start: usize, len: usize, size: usize| start..start.saturating_add(len.saturating_mul(size));
    let (x, y) = (range(x.0.addr(), x.1, size_of::<A>()), range(y.0.addr(), y.1, size_of::<B>()));
    let is_disjoint = x.is_empty() || y.is_empty() || x.end <= y.start || y.end <= x.start;
    if is_disjoint { Ok(()) } else { Err(BadPointer { name: "y", problem: "the array overlaps one that is read" }) }
}

/// The object behind a handle.
///
/// # Safety
/// If `handle` is not null, a function of this library returned it, it was not destroyed, and nothing changes it while
/// the result is in use.
pub(crate) unsafe fn object<'a, T>(name: &'static str, handle: *const T) -> Result<&'a T, BadPointer> {
    check(name, handle, 1)?;
    // SAFETY: the pointer is not null and aligned; the caller guarantees the rest.
    Ok(unsafe { &*handle })
}

/// The object behind a handle, to change it.
///
/// # Safety
/// As for [`object`], and nothing else uses the object while the result is in use.
pub(crate) unsafe fn object_mut<'a, T>(name: &'static str, handle: *mut T) -> Result<&'a mut T, BadPointer> {
    check(name, handle.cast_const(), 1)?;
    // SAFETY: as in `object`.
    Ok(unsafe { &mut *handle })
}

/// A text that ends with a zero.
///
/// # Safety
/// If `pointer` is not null, it points to a text that ends with a zero and does not change while the result is in use.
pub(crate) unsafe fn text<'a>(name: &'static str, pointer: *const c_char) -> Result<&'a str, BadPointer> {
    check(name, pointer, 1)?;
    // SAFETY: the pointer is not null; the caller guarantees the rest.
    let text = unsafe { CStr::from_ptr(pointer) };
    text.to_str().map_err(|_| BadPointer { name, problem: "expected UTF-8" })
}

/// Moves an object to the heap and writes its handle to `out`.
///
/// # Safety
/// If `out` is not null, a pointer can be written there.
pub(crate) unsafe fn return_object<T>(out: *mut *mut T, object: T) -> Result<(), BadPointer> {
    check("out", out.cast_const(), 1)?;
    // SAFETY: the pointer is not null and aligned; the caller guarantees the rest.
    unsafe { out.write(Box::into_raw(Box::new(object))) };
    Ok(())
}

/// Frees an object that [`return_object`] moved to the heap. Does nothing for NULL.
///
/// # Safety
/// `handle` is null, or comes from [`return_object`] and was not freed before.
pub(crate) unsafe fn free<T>(handle: *mut T) {
    if !handle.is_null() {
        // SAFETY: the caller guarantees where the handle comes from.
        drop(unsafe { Box::from_raw(handle) });
    }
}
