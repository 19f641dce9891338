//! The command line.

use std::{fmt, path::PathBuf};

use clap::{Parser, ValueEnum};
use lstm_core::CellKind;

use crate::backend::BackendName;

/// Trains a character-level language model on any text and lets it write.
///
/// Ctrl-C stops it after the step at hand; the same command goes on from there, and then ends with the same bits as if
/// it had never stopped.
#[derive(Clone, Debug, Parser)]
#[command(args_override_self = true)]
pub(crate) struct Options {
    /// Text files, and folders to be searched for them [default: this repository]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,

    /// Which files of a folder to read, as in `rs,md` [default: all that are text; of this repository, rs]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Text")]
    pub(crate) extensions: Option<Vec<String>>,

    /// How often a character must occur to be told apart from other rare ones
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Text")]
    pub(crate) min_count: usize,

    /// LSTM layers, one upon the other
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Model")]
    pub(crate) layers: usize,

    /// Features of each layer
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Model")]
    pub(crate) hidden: usize,

    /// Probability with which an output between two layers is dropped [default: 0.1; 0 if there is one layer]
    #[arg(long, value_name = "P", help_heading = "Model")]
    pub(crate) dropout: Option<f32>,

    /// The layers' equations
    #[arg(long, value_name = "NAME", value_enum, default_value = "fused", help_heading = "Model")]
    pub(crate) cell: Cell,

    /// Training steps in all
    #[arg(long, value_name = "N", default_value_t = 1500, help_heading = "Training")]
    pub(crate) train_steps: u64,

    /// Streams of the text that are read side by side
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive, help_heading = "Training")]
    pub(crate) batch: usize,

    /// Characters of each stream in a training step, and so how far back a gradient reaches
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = positive, help_heading = "Training")]
    pub(crate) steps: usize,

    /// The learning rate (AdamW's) at its highest, after the warm-up
    #[arg(long, value_name = "RATE", default_value_t = 0.01, help_heading = "Training")]
    pub(crate) rate: f32,

    /// The learning rate at the end, to which it falls along a cosine
    #[arg(long, value_name = "RATE", default_value_t = 1e-4, help_heading = "Training")]
    pub(crate) min_rate: f32,

    /// Training steps over which the learning rate rises
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Training")]
    pub(crate) warmup: u64,

    /// How strongly weights are drawn to zero
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = "Training")]
    pub(crate) weight_decay: f32,

    /// The norm of the gradients above which they are made smaller
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Training")]
    pub(crate) clip: f32,

    /// Training steps between two looks at the part of the text that is not learned from; 0: only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = "Training")]
    pub(crate) validate_every: u64,

    /// How many characters to write
    #[arg(long, value_name = "N", default_value_t = 600, help_heading = "Writing")]
    pub(crate) sample_chars: usize,

    /// What the written text goes on from [default: a new line]
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true, help_heading = "Writing")]
    pub(crate) prompt: String,

    /// Below 1 the likely characters come more often than the model foretells, above 1 less often; 0: only the likeliest
    #[arg(long, value_name = "X", default_value_t = 0.7, value_parser = temperature, help_heading = "Writing")]
    pub(crate) temperature: f32,

    /// Write with the model of the checkpoint and do nothing else
    #[arg(long, conflicts_with_all = ["paths", "fresh"], help_heading = "Writing")]
    pub(crate) sample_only: bool,

    /// Where the run is saved, and from where it goes on [default: target/char_lm.safetensors in the workspace]
    #[arg(long, value_name = "FILE", help_heading = "Checkpoint")]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Training steps between two savings; 0: only at the end and at Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Checkpoint")]
    pub(crate) save_every: u64,

    /// Start over, whatever was saved
    #[arg(long, help_heading = "Checkpoint")]
    pub(crate) fresh: bool,

    /// What all that is random follows from: the first weights, dropout, the written text
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// What to compute on
    #[arg(long, value_name = "NAME", value_enum, default_value = "cpu")]
    pub(crate) backend: BackendName,
}

impl Options {
    /// The dropout between layers.
    pub(crate) fn dropout(&self) -> f32 {
        self.dropout.unwrap_or(if self.layers > 1 { 0.1 } else { 0.0 })
    }
}

/// A [`CellKind`] by its name.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Cell {
    /// The standard cell, with one product for all gates
    Fused,
    /// The same, with a product for each gate
    Unfused,
    /// Gates that see the cell state through a matrix
    PeepholeDense,
    /// Gates that see the cell state through a vector
    PeepholeDiagonal,
}

impl From<Cell> for CellKind {
    fn from(cell: Cell) -> Self {
        match cell {
            Cell::Fused => CellKind::Fused,
            Cell::Unfused => CellKind::Unfused,
            Cell::PeepholeDense => CellKind::PeepholeDense,
            Cell::PeepholeDiagonal => CellKind::PeepholeDiagonal,
        }
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_possible_value().map_or(Ok(()), |value| f.write_str(value.get_name()))
    }
}

fn positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number from 1".into())
}

fn temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|&t| t == 0.0 || (0.01..=100.0).contains(&t));
    value.ok_or_else(|| "expected 0, or a number from 0.01 to 100".into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for (arguments, want) in [
            (&["--batch", "0"][..], ErrorKind::ValueValidation),
            (&["--steps", "-1"], ErrorKind::UnknownArgument),
            (&["--temperature", "0.001"], ErrorKind::ValueValidation),
            (&["--temperature", "NaN"], ErrorKind::ValueValidation),
            (&["--cell", "gru"], ErrorKind::InvalidValue),
            (&["--sample-only", "--fresh"], ErrorKind::ArgumentConflict),
            (&["--sample-only", "text"], ErrorKind::ArgumentConflict),
        ] {
            let error = Options::try_parse_from([&["char_lm"], arguments].concat()).expect_err("refused");
            assert_eq!(error.kind(), want, "{arguments:?}: {error}");
        }
    }
}
