//! Quantized weight matrices on the host.
//!
//! The host keeps the values that the integers and scales stand for, `f32(q) * scale`, in the place of the original
//! weights, and the scales beside them. So everything that reads weights as floats reads what a device computes with.

use crate::{
    config::{Param, Precision},
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    quantized::{Format, MAX_WEIGHT},
};

/// The integers and scales of a quantized matrix: the weight of row `n` and column `k` is `q[n, k] * scale[n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedRows<'a> {
    /// The integers, row-major.
    pub q: Vec<i16>,
    /// One scale per row.
    pub scale: &'a [f32],
    /// The largest integer and the length of a block.
    pub format: Format,
}

/// The scales of the rows of a quantized matrix.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scales {
    pub(crate) precision: Precision,
    pub(crate) values: Vec<f32>,
}

impl Scales {
    /// A copy of the scales.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it does not fit in memory.
    pub(crate) fn try_clone(&self) -> Result<Self> {
        Ok(Scales { precision: self.precision, values: memory::copy("scales", &self.values)? })
    }
}

impl Param {
    /// Whether the parameter is a matrix, which can be quantized.
    pub(crate) fn is_matrix(self) -> bool {
        matches!(self, Param::WeightIh | Param::WeightHh | Param::WeightHr)
    }
}

/// Quantizes a row-major matrix in place and returns its scales. `name` names the matrix in errors.
///
/// # Errors
/// [`Error::Config`] if a value is not finite or larger than [`MAX_WEIGHT`].
pub(crate) fn quantize(name: &str, values: &mut [f32], cols: usize, format: Format) -> Result<Vec<f32>> {
    check_finite(name, values)?;
    let _environment = FloatEnvironment::set_default();
    let mut q = memory::filled("quantize", &[cols], 0)?;
    let quantize_row = |row: &mut [f32]| {
        let scale = format.quantize_weights(row, &mut q);
        row.iter_mut().zip(&q).for_each(|(v, &q)| *v = f32::from(q) * scale);
        scale
    };
    let rows = values.chunks_exact_mut(cols);
    memory::collect("quantize", rows.len(), rows.map(quantize_row))
}

/// Checks that values are finite and at most [`MAX_WEIGHT`] in magnitude.
pub(crate) fn check_finite(name: &str, values: &[f32]) -> Result<()> {
    match values.iter().find(|v| v.is_nan() || v.abs() > MAX_WEIGHT) {
        None => Ok(()),
        Some(v) => {
            let reason =
                format!("{name} has the value {v}; quantized weights must be finite and at most {MAX_WEIGHT:e}");
            Err(Error::config("precision", reason))
        }
    }
}

/// The values that integers and scales stand for.
///
/// # Errors
/// [`Error::Format`] if an integer or a scale is out of its range.
#[cfg(feature = "safetensors")]
pub(crate) fn dequantize(name: &str, q: &[i16], scale: &[f32], format: Format) -> Result<Vec<f32>> {
    let max = format.max as i16;
    if let Some(q) = q.iter().find(|q| !(-max..=max).contains(q)) {
        let reason = format!("{} integers are from -{max} to {max}, got {q}", format.precision);
        return Err(Error::format(format!("tensor `{name}.q`"), reason));
    }
    let is_scale = |scale: f32| scale == 0.0 || (scale >= format.min_scale() && scale <= format.max_scale());
    if let Some(scale) = scale.iter().find(|scale| !is_scale(**scale)) {
        let reason =
            format!("expected 0 or a scale from {:e} to {:e}, got {scale:e}", format.min_scale(), format.max_scale());
        return Err(Error::format(format!("tensor `{name}.scale`"), reason));
    }
    let _environment = FloatEnvironment::set_default();
    let cols = q.len().checked_div(scale.len()).unwrap_or(0).max(1);
    if let Some(row) = q.chunks(cols).zip(scale).position(|(row, scale)| *scale == 0.0 && row.iter().any(|q| *q != 0)) {
        let reason = format!("row {row} has the scale 0, expected only zeros in `{name}.q`");
        return Err(Error::format(format!("tensor `{name}.scale`"), reason));
    }
    let values = q.chunks(cols).zip(scale).flat_map(|(row, &scale)| row.iter().map(move |&q| f32::from(q) * scale));
    memory::collect("dequantize", q.len(), values)
}

/// The integers of a matrix that [`quantize`] or [`dequantize`] made.
///
/// # Errors
/// [`Error::Config`] if a value is not an integer times the scale of its row, because it was changed since.
pub(crate) fn integers<'a>(
    name: &str,
    values: &[f32],
    scale: &'a [f32],
    precision: Precision,
) -> Result<Option<QuantizedRows<'a>>> {
    let _environment = FloatEnvironment::set_default();
    let Some(format) = precision.format() else { return Ok(None) };
    let cols = values.len().checked_div(scale.len()).unwrap_or(0).max(1);
    let mut q = memory::with_capacity("quantized", &[values.len()])?;
    for (row, &scale) in values.chunks(cols).zip(scale) {
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / f64::from(scale) };
        for &v in row {
            let integer = (f64::from(v) * inverse).round_ties_even();
            if integer.abs() > f64::from(format.max) || integer as f32 * scale != v {
                let reason = format!(
                    "{name} has the value {v:e}, which is not one of {precision}: the weights were changed after they were \
                     quantized; convert them to f32, change them, and quantize them again"
                );
                return Err(Error::config("precision", reason));
            }
            q.push(integer as i16);
        }
    }
    Ok(Some(QuantizedRows { q, scale, format }))
}
