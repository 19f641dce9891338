//! Pointers that the threads of a job share.

/// A raw pointer, or a tuple of references and pointers, that the threads of a job share. The unsafe code that writes
/// through it must make sure that no two threads access the same element without a barrier between them.
pub(crate) struct SyncPtr<T>(pub(crate) T);

// SAFETY: the pointers can be dereferenced only in unsafe code, which must rule out data races itself.
unsafe impl<T> Sync for SyncPtr<T> {}

impl<T: Copy> SyncPtr<T> {
    /// Returns the pointer. Closures call this method, because a closure that used the field would capture the field,
    /// which is not `Sync`.
    pub(crate) fn get(&self) -> T {
        self.0
    }
}
