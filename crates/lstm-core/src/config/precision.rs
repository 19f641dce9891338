//! The precision in which a device keeps and multiplies weights.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The precision of the weight matrices of a model. Biases, peephole vectors, states and outputs are f32 in any case.
///
/// With [`Int8`](Precision::Int8) and [`Int12`](Precision::Int12) the weights and the operands of each matrix product
/// are integers, and their sums are exact; see [`quantized`](crate::quantized). The results differ from those of
/// [`F32`](Precision::F32), but are as bit-identical on every device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// 32-bit floats, [arithmetic](crate::arithmetic) version 1.
    #[default]
    F32,
    /// Integers of magnitude up to 127, in 8 bits: files of a quarter of the size of f32, and the fastest on the CPU.
    Int8,
    /// Integers of magnitude up to 2047, in 16 bits: files of half the size of f32, and an error 5 to 22 times smaller than
    /// that of [`Int8`](Precision::Int8).
    Int12,
}

impl Precision {
    /// All precisions.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Int8, Precision::Int12];

    /// The name in text, files and command lines; [`FromStr`] parses it.
    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Int8 => "int8",
            Precision::Int12 => "int12",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parses a [name](Precision::name). Any other text is an [`Error::Config`].
impl FromStr for Precision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Precision::ALL.into_iter().find(|precision| precision.name() == text).ok_or_else(|| {
            let names = Precision::ALL.map(Precision::name).join(", ");
            Error::config("precision", format!("expected one of {names}, got `{text}`"))
        })
    }
}
