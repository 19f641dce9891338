//! Configuration of an LSTM: cell kind, sizes, options, and their text form.

mod cell_kind;
pub(crate) mod check;
mod gate_activation;
mod layer_spec;
mod lstm_config;
mod precision;
pub(crate) mod text;

pub use cell_kind::{CellKind, GATES};
pub use gate_activation::{GateActivation, GateActivations};
pub use layer_spec::{LayerSpec, Param};
pub use lstm_config::{Bias, Direction, LstmConfig};
pub use precision::Precision;
