//! Checks of option values, which fail with [`Error::Config`] and name the option, and of results.

use std::ops::RangeBounds;

use crate::error::{Error, Result};

/// Checks that a number is finite and in `range`. `expected` describes the range in the error message.
pub(super) fn check_range(
    option: &'static str,
    value: f32,
    range: impl RangeBounds<f32>,
    expected: &str,
) -> Result<()> {
    if value.is_finite() && range.contains(&value) {
        return Ok(());
    }
    Err(Error::config(option, format!("expected {expected}, got {value:?}")))
}

/// Checks that a number is finite and not negative.
pub(super) fn check_not_negative(option: &'static str, value: f32) -> Result<()> {
    check_range(option, value, 0.0.., "a finite number of at least 0")
}

/// Checks that a number is positive and finite.
pub(super) fn check_positive(option: &'static str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::config(option, format!("expected a positive finite number, got {value:?}")))
}

/// Checks that a count is not 0.
pub(super) fn check_at_least_one(option: &'static str, count: u64) -> Result<()> {
    if count == 0 { Err(Error::config(option, "expected at least 1, got 0")) } else { Ok(()) }
}

/// Fails with [`Error::NotFinite`] if an element is infinite or NaN. `describe_values` returns the description of the
/// values in the error message.
pub(super) fn check_finite(step: u64, describe_values: impl Fn() -> String, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| !v.is_finite()) {
        Some(&value) => Err(Error::NotFinite { step, quantity: describe_values(), value: value.into() }),
        None => Ok(()),
    }
}
