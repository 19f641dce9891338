//! Command-line options.

use std::path::PathBuf;

use clap::{
    Parser,
    builder::{PossibleValuesParser, TypedValueParser},
};
use lstm::CellKind;

use crate::backend;

/// Train a character-level language model on text, and generate text with it
///
/// Ctrl-C stops training after the current step. The same command resumes it, and the results are bit-identical to those of an
/// uninterrupted run.
#[derive(Clone, Debug, Parser)]
#[command(args_override_self = true)]
pub(crate) struct Options {
    /// Text files, or directories with text files [default: this repository]
    #[arg(value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,

    /// Extensions of the files to read in directories, such as `rs,md` [default: all text files; rs in this repository]
    #[arg(long, value_name = "LIST", value_delimiter = ',', help_heading = "Text")]
    pub(crate) extensions: Option<Vec<String>>,

    /// Characters that occur less often than this share one symbol for unknown characters
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Text")]
    pub(crate) min_count: usize,

    /// Number of stacked LSTM layers
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Model")]
    pub(crate) layers: usize,

    /// Hidden size of each layer
    #[arg(long, value_name = "N", default_value_t = 128, help_heading = "Model")]
    pub(crate) hidden: usize,

    /// Dropout probability between layers [default: 0.1, or 0 with one layer]
    #[arg(long, value_name = "P", help_heading = "Model")]
    pub(crate) dropout: Option<f32>,

    /// Cell kind. `fused` and `unfused` are the standard cell with one product for all gates, or one per gate. With peephole
    /// cells, the gates also depend on the cell state, through a full matrix (`peephole-dense`) or a vector per gate
    /// (`peephole-diagonal`)
    #[arg(long, value_name = "NAME", value_parser = cell_parser(), default_value = CellKind::Fused.name(), help_heading = "Model")]
    pub(crate) cell: CellKind,

    /// Total number of training steps
    #[arg(long, value_name = "N", default_value_t = 1500, help_heading = "Training")]
    pub(crate) train_steps: u64,

    /// Batch size: number of streams into which the text is split
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_positive, help_heading = "Training")]
    pub(crate) batch: usize,

    /// Characters of each stream per training step, the length of truncated backpropagation through time
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = parse_positive, help_heading = "Training")]
    pub(crate) steps: usize,

    /// Peak learning rate of AdamW, reached after the warm-up
    #[arg(long, value_name = "RATE", default_value_t = 0.01, help_heading = "Training")]
    pub(crate) rate: f32,

    /// Final learning rate, at the end of the cosine decay
    #[arg(long, value_name = "RATE", default_value_t = 1e-4, help_heading = "Training")]
    pub(crate) min_rate: f32,

    /// Number of training steps in which the learning rate rises linearly
    #[arg(long, value_name = "N", default_value_t = 50, help_heading = "Training")]
    pub(crate) warmup: u64,

    /// Weight decay of AdamW
    #[arg(long, value_name = "X", default_value_t = 0.01, help_heading = "Training")]
    pub(crate) weight_decay: f32,

    /// Gradient clipping: largest norm of all gradients together
    #[arg(long, value_name = "NORM", default_value_t = 1.0, help_heading = "Training")]
    pub(crate) clip: f32,

    /// Training steps between validations; 0 validates only at the end
    #[arg(long, value_name = "N", default_value_t = 500, help_heading = "Training")]
    pub(crate) validate_every: u64,

    /// File for a chart of the losses of training and validation, SVG
    #[arg(long, value_name = "FILE", conflicts_with = "sample_only", help_heading = "Training")]
    pub(crate) curve: Option<PathBuf>,

    /// Number of characters to generate
    #[arg(long, value_name = "N", default_value_t = 600, help_heading = "Sampling")]
    pub(crate) sample_chars: usize,

    /// Text to continue from [default: a newline]
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true, help_heading = "Sampling")]
    pub(crate) prompt: String,

    /// Sampling temperature: lower values favor likely characters; 0 always takes the likeliest
    #[arg(long, value_name = "X", default_value_t = 0.7, value_parser = parse_temperature, help_heading = "Sampling")]
    pub(crate) temperature: f32,

    /// Do not train; only generate text with the model in the checkpoint
    #[arg(long, conflicts_with_all = ["paths", "fresh"], help_heading = "Sampling")]
    pub(crate) sample_only: bool,

    /// Checkpoint file to save to and to resume from [default: target/char_lm.safetensors in the workspace]
    #[arg(long, value_name = "FILE", help_heading = "Checkpoint")]
    pub(crate) checkpoint: Option<PathBuf>,

    /// Training steps between checkpoints; 0 saves only at the end and on Ctrl-C
    #[arg(long, value_name = "N", default_value_t = 100, help_heading = "Checkpoint")]
    pub(crate) save_every: u64,

    /// Start a new run and overwrite the checkpoint
    #[arg(long, help_heading = "Checkpoint")]
    pub(crate) fresh: bool,

    /// Random seed for initial weights, dropout and sampling
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,

    /// Backend to run on; auto takes a GPU if there is one
    #[arg(long, value_name = "NAME", value_parser = backend::name_parser(), default_value = "cpu")]
    pub(crate) backend: String,
}

impl Options {
    /// Dropout probability between layers: the value of the option, or its default.
    pub(crate) fn dropout(&self) -> f32 {
        self.dropout.unwrap_or(if self.layers > 1 { 0.1 } else { 0.0 })
    }
}

/// Parser of cell names. It lists the names in the help text and in errors.
fn cell_parser() -> impl TypedValueParser<Value = CellKind> {
    PossibleValuesParser::new(CellKind::ALL.map(CellKind::name)).try_map(|name| name.parse::<CellKind>())
}

/// Parses a positive integer.
fn parse_positive(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected an integer of at least 1".into())
}

/// Parses a temperature.
fn parse_temperature(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|&t| t == 0.0 || (0.01..=100.0).contains(&t));
    value.ok_or_else(|| "expected 0, or a number from 0.01 to 100".into())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    #[test]
    fn options_are_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn rejects_invalid_options() {
        for (arguments, want) in [
            (&["--batch", "0"][..], ErrorKind::ValueValidation),
            (&["--steps", "-1"], ErrorKind::UnknownArgument),
            (&["--temperature", "0.001"], ErrorKind::ValueValidation),
            (&["--temperature", "NaN"], ErrorKind::ValueValidation),
            (&["--cell", "gru"], ErrorKind::InvalidValue),
            (&["--sample-only", "--fresh"], ErrorKind::ArgumentConflict),
            (&["--sample-only", "text"], ErrorKind::ArgumentConflict),
        ] {
            let error = Options::try_parse_from([&["char_lm"], arguments].concat()).expect_err("invalid options");
            assert_eq!(error.kind(), want, "{arguments:?}: {error}");
        }
    }
}
