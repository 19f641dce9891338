//! Memory: aligned buffers, tensors, and free lists from which both are reused.

pub(crate) mod buffer;
pub(crate) mod free_list;
pub(crate) mod tensor;
pub(crate) mod uninit;
