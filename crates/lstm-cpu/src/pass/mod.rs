//! Passes over whole sequences and streams: what the threads do in a call of `Backend`.

pub(crate) mod backward;
pub(crate) mod forward;
pub(crate) mod stream;
#[cfg(test)]
mod tests;
pub(crate) mod trace;
