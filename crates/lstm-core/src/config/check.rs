//! Checks of option values. Each fails with [`Error::Config`], which names the option.

use std::ops::RangeBounds;

use crate::error::{Error, Result};

/// Largest value of a size, such as `hidden_size` or `num_layers`.
const MAX_SIZE: usize = 1 << 24;

/// Largest number of scalar parameters of a model: 2^34 (64 GiB of f32), or less where `usize` has fewer bits.
pub(crate) const MAX_PARAMS: usize = if usize::BITS > 34 { 1 << 34 } else { usize::MAX >> 3 };

/// Checks that a size is from 1 to 2^24.
pub(crate) fn check_size(option: &'static str, size: usize) -> Result<()> {
    if (1..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    Err(Error::config(option, format!("expected 1 to {MAX_SIZE}, got {size}")))
}

/// Checks that a number is finite and in `range`. `expected` describes the range in the error message.
pub(crate) fn check_range(
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
pub(crate) fn check_not_negative(option: &'static str, value: f32) -> Result<()> {
    check_range(option, value, 0.0.., "a finite number of at least 0")
}

/// Checks that a count is not 0.
pub(crate) fn check_at_least_one(option: &'static str, count: u64) -> Result<()> {
    if count == 0 { Err(Error::config(option, "expected at least 1, got 0")) } else { Ok(()) }
}
