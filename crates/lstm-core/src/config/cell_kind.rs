//! The kinds of LSTM cell and their names.

use std::{fmt, str::FromStr};

use crate::error::{Error, Result};

/// The four gates in the order in which weights and biases stack them: input, forget, candidate, output.
/// This is PyTorch's order.
pub const GATES: [char; 4] = ['i', 'f', 'g', 'o'];

/// The equations that a layer computes. `docs/specification.md` defines each operation and its rounding.
///
/// The enum is exhaustive: when a cell is added, a backend that matches on the enum does not compile until it handles
/// the new cell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum CellKind {
    /// The standard cell, as in `torch.nn.LSTM`. One matrix product computes all four gates:
    /// `i, f, o = sigmoid(W x + U h + b)`, `g = tanh(W_g x + U_g h + b_g)`, `c' = f c + i g`, `h' = o tanh(c')`.
    #[default]
    Fused,
    /// The standard cell with a separate matrix product for each gate. Results are bit-identical to
    /// [`Fused`](CellKind::Fused).
    Unfused,
    /// A cell whose gates depend on the cell state through a full matrix instead of on `h`:
    /// `i, f, o = sigmoid(W x + U c + b)`, `c' = f c + i sigmoid(W_g x + b_g)`, `h' = tanh(o c')`.
    PeepholeDense,
    /// The standard cell with one peephole vector per gate (Gers & Schmidhuber 2000; ONNX's input `P`):
    /// `p_i * c` is added to the input gate, `p_f * c` to the forget gate and `p_o * c'` to the output gate, each
    /// before its sigmoid.
    PeepholeDiagonal,
}

impl CellKind {
    /// All cell kinds.
    pub const ALL: [CellKind; 4] =
        [CellKind::Fused, CellKind::Unfused, CellKind::PeepholeDense, CellKind::PeepholeDiagonal];

    /// The name of the cell kind in text, files and command lines; [`FromStr`] parses it.
    ///
    /// ```
    /// use lstm_core::CellKind;
    /// assert_eq!(CellKind::PeepholeDense.name(), "peephole-dense");
    /// assert_eq!("peephole-dense".parse::<CellKind>()?, CellKind::PeepholeDense);
    /// # Ok::<(), lstm_core::Error>(())
    /// ```
    pub const fn name(self) -> &'static str {
        match self {
            CellKind::Fused => "fused",
            CellKind::Unfused => "unfused",
            CellKind::PeepholeDense => "peephole-dense",
            CellKind::PeepholeDiagonal => "peephole-diagonal",
        }
    }

    /// Whether both cell kinds give bit-identical results from the same parameters.
    pub(crate) fn is_equivalent_to(self, other: Self) -> bool {
        let is_standard = |cell| matches!(cell, CellKind::Fused | CellKind::Unfused);
        self == other || is_standard(self) && is_standard(other)
    }
}

/// Writes the name of the cell kind, as [`CellKind::name`] returns it.
impl fmt::Display for CellKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Parses the name of a cell kind, as [`CellKind::name`] returns it. Fails with [`Error::Config`] for any other text.
impl FromStr for CellKind {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        CellKind::ALL.into_iter().find(|cell| cell.name() == text).ok_or_else(|| {
            let names = CellKind::ALL.map(CellKind::name).join(", ");
            Error::config("cell", format!("expected one of {names}, got `{text}`"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cell_names_round_trip() {
        for cell in CellKind::ALL {
            assert_eq!(cell.to_string().parse::<CellKind>().unwrap(), cell);
        }
        for text in ["", "Fused", " fused", "gru"] {
            assert!(matches!(text.parse::<CellKind>(), Err(Error::Config { option: "cell", .. })), "{text}");
        }
    }
}
