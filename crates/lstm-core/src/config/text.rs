//! Text form of options: one line, `kind name=value name=value ...`. Model configurations, optimizers, schedules and
//! other settings share this parser and printer. Files and checkpoints store this text.

use std::fmt;

use super::{Bias, CellKind, Direction, Precision};
use crate::error::{Error, Result};

/// A value of an option in the text form.
pub(crate) trait OptionValue: Sized {
    /// Describes for error messages which texts are valid, for example as `a number`.
    fn describe_valid_text() -> String;

    /// The text of the value. [`from_text`](Self::from_text) parses it to an equal value.
    fn to_text(&self) -> String;

    /// Parses the text of a value; `None` if it is invalid.
    fn from_text(text: &str) -> Option<Self>;
}

/// Implements [`OptionValue`] with `Debug` as the printer and `FromStr` as the parser. `Debug` writes an f32 as the
/// shortest decimal that parses to the same value.
macro_rules! impl_option_value_by_debug {
    ($($type:ty: $expected:literal),*) => {$(
        impl OptionValue for $type {
            fn describe_valid_text() -> String {
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

impl_option_value_by_debug!(f32: "a number", u64: "a whole number", usize: "a whole number", bool: "true or false");

/// A text without whitespace.
impl OptionValue for String {
    fn describe_valid_text() -> String {
        "a text".into()
    }

    fn to_text(&self) -> String {
        self.clone()
    }

    fn from_text(text: &str) -> Option<Self> {
        Some(text.into())
    }
}

/// Implements [`OptionValue`] for enums that have `ALL`, an array of all variants, and `name`, the text of a variant.
macro_rules! impl_option_value_by_name {
    ($($type:ty),*) => {$(
        impl OptionValue for $type {
            fn describe_valid_text() -> String {
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

impl_option_value_by_name!(Bias, CellKind, Direction, Precision);

/// The text form of an optional value: `none` for `None`, otherwise the text of the value.
impl<T: OptionValue> OptionValue for Option<T> {
    fn describe_valid_text() -> String {
        format!("none or {}", T::describe_valid_text())
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

/// A parsed line of options. Reading an option removes it from the line; [`finish`](Self::finish) fails if an option is
/// left.
#[derive(Debug)]
pub(crate) struct ParsedOptions<'a> {
    setting_name: &'static str,
    text: &'a str,
    kind: &'a str,
    unread_options: Vec<(&'a str, &'a str)>,
}

impl<'a> ParsedOptions<'a> {
    /// Splits a line `kind name=value ...` into its kind and its options. `setting_name` names the described object in
    /// error messages, for example `model`.
    pub(crate) fn new(setting_name: &'static str, text: &'a str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut options = ParsedOptions { setting_name, text, kind, unread_options: Vec::new() };
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                return Err(options.error(format!("expected name=value, got `{word}`")));
            };
            if options.unread_options.iter().any(|(earlier, _)| *earlier == name) {
                return Err(options.error(format!("expected each option once, got `{name}` twice")));
            }
            options.unread_options.push((name, value));
        }
        Ok(options)
    }

    /// The kind: the first word of the line.
    pub(crate) fn kind(&self) -> &'a str {
        self.kind
    }

    /// Creates an [`Error::Format`] about this line.
    fn error(&self, reason: String) -> Error {
        Error::format(format!("{} `{}`", self.setting_name, self.text), reason)
    }

    /// The error for a line whose kind is not one of those in `expected`, such as `norm or value`.
    pub(crate) fn unexpected_kind(&self, expected: &str) -> Error {
        self.error(format!("expected {expected}, got `{}`", self.kind))
    }

    /// Reads an option; `None` if the line does not have it.
    fn read_option<T: OptionValue>(&mut self, name: &str) -> Result<Option<T>> {
        let Some(index) = self.unread_options.iter().position(|(option_name, _)| *option_name == name) else {
            return Ok(None);
        };
        let (_, text) = self.unread_options.remove(index);
        let invalid_option_error =
            || self.error(format!("option {name}: expected {}, got `{text}`", T::describe_valid_text()));
        T::from_text(text).ok_or_else(invalid_option_error).map(Some)
    }

    /// Reads an option into `value`, which is unchanged if the line does not have the option.
    pub(crate) fn read_into<T: OptionValue>(&mut self, name: &str, value: &mut T) -> Result<()> {
        if let Some(parsed) = self.read_option(name)? {
            *value = parsed;
        }
        Ok(())
    }

    /// Reads an option that the line must have.
    pub(crate) fn read_required<T: OptionValue>(&mut self, name: &str) -> Result<T> {
        self.read_option(name)?.ok_or_else(|| self.error(format!("`{}` requires the option {name}", self.kind)))
    }

    /// Fails if the line has an option that was not read.
    pub(crate) fn finish(self) -> Result<()> {
        match self.unread_options.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.error(format!("`{}` has no option `{name}`", self.kind))),
        }
    }
}
