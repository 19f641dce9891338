//! Text form of [`Checkpointing`].

use std::{fmt, str::FromStr};

use crate::{
    config::text::{OptionValue, ParsedOptions, write_options},
    error::{Error, Result},
    model::Checkpointing,
};

/// Writes `everything`, `segments steps=64` or `square-root`. Parsing the text gives an equal value.
impl fmt::Display for Checkpointing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Checkpointing::SaveEverything => write_options(f, "everything", &[]),
            Checkpointing::Segments(steps) => write_options(f, "segments", &[("steps", steps.to_text())]),
            Checkpointing::SquareRootSegments => write_options(f, "square-root", &[]),
        }
    }
}

/// Parses the text that [`Display`](fmt::Display) writes. Fails with [`Error::Format`] for any other text and with
/// [`Error::Config`] for a segment length that is not a positive multiple of 32.
impl FromStr for Checkpointing {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut options = ParsedOptions::new("checkpointing", text)?;
        let checkpointing = match options.kind() {
            "everything" => Checkpointing::SaveEverything,
            "segments" => Checkpointing::Segments(options.read_required("steps")?),
            "square-root" => Checkpointing::SquareRootSegments,
            _ => return Err(options.unexpected_kind("everything, segments or square-root")),
        };
        options.finish()?;
        checkpointing.segment_len(1)?;
        Ok(checkpointing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trip_is_exact() {
        for checkpointing in
            [Checkpointing::SaveEverything, Checkpointing::Segments(64), Checkpointing::SquareRootSegments]
        {
            assert_eq!(checkpointing.to_string().parse::<Checkpointing>().unwrap(), checkpointing);
        }
        assert_eq!(Checkpointing::Segments(64).to_string(), "segments steps=64");
    }

    #[test]
    fn rejects_other_text() {
        for (text, part) in [
            ("segments steps=33", "multiple of 32 steps, got 33"),
            ("segments", "`segments` requires the option steps"),
            ("nothing", "got `nothing`"),
            ("everything steps=32", "no option `steps`"),
        ] {
            let error = text.parse::<Checkpointing>().unwrap_err().to_string();
            assert!(error.contains(part), "{error}: {part}");
        }
    }
}
