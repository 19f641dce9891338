//! Options as a line of text, `kind name=value ...`, and the checks that their values share.

use std::{ops::RangeBounds, str::FromStr};

use crate::error::{Error, Result};

/// Checks that a number is finite and in `range`, which `expected` puts in words.
pub(super) fn check(option: &'static str, value: f32, range: impl RangeBounds<f32>, expected: &str) -> Result<()> {
    if value.is_finite() && range.contains(&value) {
        return Ok(());
    }
    Err(Error::config(option, format!("expected {expected}, got {value:?}")))
}

/// Checks that a number is finite and not negative.
pub(super) fn check_not_negative(option: &'static str, value: f32) -> Result<()> {
    check(option, value, 0.0.., "a finite number of at least 0")
}

/// The options of a line that nobody has asked for yet.
#[derive(Debug)]
pub(super) struct Options<'a> {
    what: &'static str,
    text: &'a str,
    kind: &'a str,
    left: Vec<(&'a str, &'a str)>,
}

impl<'a> Options<'a> {
    /// Splits a line; `what` it describes is for errors.
    pub(super) fn new(what: &'static str, text: &'a str) -> Result<Self> {
        let mut words = text.split_whitespace();
        let kind = words.next().unwrap_or_default();
        let mut options = Options { what, text, kind, left: Vec::new() };
        for word in words {
            let Some((name, value)) = word.split_once('=') else {
                return Err(options.error(format!("expected name=value, got `{word}`")));
            };
            if options.left.iter().any(|(earlier, _)| *earlier == name) {
                return Err(options.error(format!("expected each option once, got `{name}` twice")));
            }
            options.left.push((name, value));
        }
        Ok(options)
    }

    /// The first word.
    pub(super) fn kind(&self) -> &'a str {
        self.kind
    }

    /// An error about this line.
    pub(super) fn error(&self, why: String) -> Error {
        Error::format(format!("{} `{}`", self.what, self.text), why)
    }

    /// Puts an option's value in `place`, if the line has it.
    pub(super) fn set<T: FromStr>(&mut self, name: &str, place: &mut T) -> Result<()> {
        if let Some(at) = self.left.iter().position(|(left, _)| *left == name) {
            let (_, value) = self.left.remove(at);
            let wrong = |_| self.error(format!("`{value}` is not a value of {name}"));
            *place = value.parse().map_err(wrong)?;
        }
        Ok(())
    }

    /// The value of an option that the line must have.
    pub(super) fn need<T: FromStr + Default>(&mut self, name: &str) -> Result<T> {
        if !self.left.iter().any(|(left, _)| *left == name) {
            return Err(self.error(format!("`{}` needs {name}=...", self.kind)));
        }
        let mut value = T::default();
        self.set(name, &mut value)?;
        Ok(value)
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => Err(self.error(format!("`{}` has no option `{name}`", self.kind))),
        }
    }
}
