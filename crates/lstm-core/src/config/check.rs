//! Checks of sizes. They fail with [`Error::Config`], which names the option.

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
