//! What a backend reports about itself: its arithmetic, and the code that runs a layer.

use std::{borrow::Cow, fmt};

/// Whether a backend's results are bit-exact.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Arithmetic {
    /// Bit-exact: every result equals the result of [`arithmetic`](crate::arithmetic). It is computed with the fused
    /// multiply-add operation that the device provides.
    Exact,
    /// Bit-exact, but slower: fused multiply-add is emulated. The text gives the reason.
    Emulated(String),
    /// Not bit-exact. The text says what differs.
    Inexact(String),
}

impl Arithmetic {
    /// Whether results are bit-identical to those of every other exact backend.
    pub fn is_exact(&self) -> bool {
        !matches!(self, Arithmetic::Inexact(_))
    }
}

/// Writes the value in words, such as `exact` or `exact, emulated: fma rounds twice`.
impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arithmetic::Exact => f.write_str("exact"),
            Arithmetic::Emulated(reason) => write!(f, "exact, emulated: {reason}"),
            Arithmetic::Inexact(what) => write!(f, "inexact, not bit-identical to other devices: {what}"),
        }
    }
}

/// Which code of a backend runs a layer: the reference path or a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ExecutionPath {
    /// The reference path: the functions of [`reference`](crate::reference), which call the primitive operations of
    /// [`Ops`](crate::Ops).
    Reference,
    /// A kernel of the backend that runs whole sequences. The text is the kernel's name.
    Fused(Cow<'static, str>),
}

impl fmt::Display for ExecutionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ExecutionPath::Reference => f.write_str("reference"),
            ExecutionPath::Fused(kernel) => write!(f, "fused: {kernel}"),
        }
    }
}
