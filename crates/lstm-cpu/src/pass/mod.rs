//! The computations of the backend: forward and backward passes over whole sequences, and the steps of streams.

pub(crate) mod backward;
pub(crate) mod forward;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
