//! Text form of options: one line, `kind name=value name=value ...`. Model configurations, optimizers, schedules and
//! other settings share this parser and printer. Files and checkpoints store this text.

use std::fmt;

use super::{Bias, CellKind, Direction};
use crate::error::{Error, Result};

/// A value of an option in the text form.
pub(crate) trait OptionValue: Sized {
    /// Describes the valid texts, for error messages: `a number`.
    fn expected() -> String;

    /// The text of the value. [`from_text`](Self::from_text) gives back an equal value.
    fn to_text(&self) -> String;

    /// Parses the text of a value; `None` if it is invalid.
    fn from_text(text: &str) -> Option<Self>;
}

/// Implements [`OptionValue`] for types whose `Debug` output `FromStr` parses. For an f32 that output is the shortest
/// decimal that parses to the same value.
macro_rules! option_value_by_debug {
    ($($type:ty: $expected:literal),*) => {$(
        impl OptionValue for $type {
            fn expected() -> String {
                $expected.into()
            }

            fn to_text(&self) -> String {
                format!("{self:?}")
            }

            fn from_text(text: &str) -> Option<Self> {
                text.parse().ok()
            }
        }
    )*};
}

option_value_by_debug!(f32: "a number", u64: "a whole number", usize: "a whole number", bool: "true or false");

/// Implements [`OptionValue`] for enums with the associated items `ALL` and `name`.
macro_rules! option_value_by_name {
    ($($type:ty),*) => {$(
        impl OptionValue for $type {
            fn expected() -> String {
                format!("one of {}", <$type>::ALL.map(<$type>::name).join(", "))
            }

            fn to_text(&self) -> String {
                self.name().into()
            }

            fn from_text(text: &str) -> Option<Self> {
                <$type>::ALL.into_iter().find(|value| value.name() == text)
            }
        }
    )*};
}

option_value_by_name!(Bias, CellKind, Direction);

/// The text of `None` is `none`.
impl<T: OptionValue> OptionValue for Option<T> {
    fn expected() -> String {
        format!("none or {}", T::expected())
    }

    fn to_text(&self) -> String {
        self.as_ref().map_or("none".into(), T::to_text)
    }

    fn from_text(text: &str) -> Option<Self> {
        if text == "none" { Some(None) } else { T::from_text(text).map(Some) }
    }
}

/// Writes `kind` followed by ` name=value` for each option.
pub(crate) fn write_options(f: &mut fmt::Formatter<'_>, kind: &str, options: &[(&str, String)]) -> fmt::Result {
    f.write_str(kind)?;
    options.iter().try_for_each(|(name, value)| write!(f, " {name}={value}"))
}

/// A parsed line of options. Options are removed when they are read; [`finish`](Self::finish) fails if any is left.
#[derive(Debug)]
pub(crate) struct ParsedOptions<'a> {
    subject: &'static str,
    text: &'a str,
    kind: &'a str,
    unread: Vec<(&'a str, &'a str)>,
}

impl<'a> ParsedOptions<'a> {
    /// Splits a line into its kind and its options. `subject` says what the line describes, for error messages.
    pub(crate) fn new(subject: &'static str, text: &'a str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut options = ParsedOptions { subject, text, kind, unread: Vec::new() };
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                return Err(options.error(format!("expected name=value, got `{word}`")));
            };
            if options.unread.iter().any(|(earlier, _)| *earlier == name) {
                return Err(options.error(format!("expected each option once, got `{name}` twice")));
            }
            options.unread.push((name, value));
        }
        Ok(options)
    }

    /// The first word of the line.
    pub(crate) fn kind(&self) -> &'a str {
        self.kind
    }

    /// An [`Error::Format`] about this line.
    fn error(&self, reason: String) -> Error {
        Error::format(format!("{} `{}`", self.subject, self.text), reason)
    }

    /// The error for a line whose kind is not one of those in `expected`, such as `norm or value`.
    pub(crate) fn unexpected_kind(&self, expected: &str) -> Error {
        self.error(format!("expected {expected}, got `{}`", self.kind))
    }

    /// Reads an option; `None` if the line does not have it.
    fn read<T: OptionValue>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(index) = self.unread.iter().position(|(unread, _)| *unread == name) else { return Ok(None) };
        let (_, text) = self.unread.remove(index);
        let invalid = || self.error(format!("option {name}: expected {}, got `{text}`", T::expected()));
        T::from_text(text).ok_or_else(invalid).map(Some)
    }

    /// Reads an option into `value`, which is unchanged if the line does not have the option.
    pub(crate) fn set<T: OptionValue>(&mut self, name: &str, value: &mut T) -> Result<()> {
        if let Some(read) = self.read(name)? {
            *value = read;
        }
        Ok(())
    }

    /// Reads an option that the line must have.
    pub(crate) fn required<T: OptionValue>(&mut self, name: &str) -> Result<T> {
        self.read(name)?.ok_or_else(|| self.error(format!("`{}` requires the option {name}", self.kind)))
    }

    /// Fails if the line has an option that was not read.
    pub(crate) fn finish(self) -> Result<()> {
        match self.unread.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.error(format!("`{}` has no option `{name}`", self.kind))),
        }
    }
}
