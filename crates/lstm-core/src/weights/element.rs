//! Conversion between the elements of a safetensors file and floats. Values are rounded to nearest. A finite value that
//! would become infinite is an error.
//!
//! NaNs are converted by integer operations on their bits, because conversion instructions set the quiet bit.

use half::{bf16, f16};
use safetensors::Dtype;

use crate::{
    error::{Error, Result},
    float_environment::FloatEnvironment,
    memory,
    quantized::Format,
};

/// The supported element types, for error messages.
const FLOAT_TYPES: &str = "F32, F16, BF16 or F64";

/// Converts the elements of a tensor to f32. F32, F16 and BF16 are converted exactly; F64 is rounded to nearest.
///
/// # Errors
/// [`Error::TensorType`] for any other type; [`Error::Format`] if a finite F64 is too large for f32.
pub fn to_f32(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    let _environment = FloatEnvironment::set_default();
    match dtype {
        Dtype::F32 => collect(elements(bytes, f32::from_le_bytes)),
        Dtype::F16 => collect(elements(bytes, u16::from_le_bytes).map(f16_to_f32)),
        Dtype::BF16 => collect(elements(bytes, u16::from_le_bytes).map(|b| f32::from_bits(u32::from(b) << 16))),
        Dtype::F64 => {
            let values = elements(bytes, f64::from_le_bytes).map(|v| {
                let converted = if v.is_nan() { f64_nan_to_f32(v) } else { v as f32 };
                if converted.is_infinite() && v.is_finite() {
                    Err(too_large_error(name, v, "f32"))
                } else {
                    Ok(converted)
                }
            });
            memory::try_collect("tensor", values.len(), values)
        }
        other => Err(Error::TensorType { name: name.into(), expected: FLOAT_TYPES, found: other.to_string() }),
    }
}

/// Converts the elements of a tensor to f64, exactly.
///
/// # Errors
/// [`Error::TensorType`] if the type is not F32, F16, BF16 or F64.
pub fn to_f64(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>> {
    match dtype {
        Dtype::F64 => collect(elements(bytes, f64::from_le_bytes)),
        _ => collect(to_f32(name, dtype, bytes)?.into_iter().map(f32_to_f64)),
    }
}

/// Converts the elements of an I64 or I32 tensor to i64, exactly.
///
/// # Errors
/// [`Error::TensorType`] for any other type.
pub fn to_i64(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<i64>> {
    match dtype {
        Dtype::I64 => collect(elements(bytes, i64::from_le_bytes)),
        Dtype::I32 => collect(elements(bytes, i32::from_le_bytes).map(i64::from)),
        other => Err(Error::TensorType { name: name.into(), expected: "I64 or I32", found: other.to_string() }),
    }
}

/// Appends `values` to `out` as little-endian elements of type `dtype`, rounded to nearest. `name` is the tensor's
/// name, for error messages.
///
/// # Errors
/// [`Error::Config`] if the type is not F32, F16, BF16 or F64; [`Error::Format`] if a finite value is too large for it;
/// [`Error::TooLarge`] if the elements do not fit in memory.
pub fn append(name: &str, dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    let _environment = FloatEnvironment::set_default();
    reserve(dtype, values.len(), out)?;
    for &v in values {
        match dtype {
            Dtype::F32 => out.extend(v.to_le_bytes()),
            Dtype::F64 => out.extend(f32_to_f64(v).to_le_bytes()),
            Dtype::F16 => out.extend(f32_to_f16(name, v)?.to_le_bytes()),
            Dtype::BF16 => out.extend(f32_to_bf16(name, v)?.to_le_bytes()),
            other => return Err(Error::config("dtype", format!("expected {FLOAT_TYPES}, got {other}"))),
        }
    }
    Ok(())
}

/// Converts the elements of an I8 or I16 tensor to i16, exactly.
///
/// # Errors
/// [`Error::TensorType`] for any other type.
pub fn to_i16(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<i16>> {
    match dtype {
        Dtype::I8 => collect(elements(bytes, i8::from_le_bytes).map(i16::from)),
        Dtype::I16 => collect(elements(bytes, i16::from_le_bytes)),
        other => Err(Error::TensorType { name: name.into(), expected: "I8 or I16", found: other.to_string() }),
    }
}

/// Appends integers to `out` as little-endian elements of type I8, or I16 for any other type. They fit the type.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
pub fn append_integers(dtype: Dtype, values: &[i16], out: &mut Vec<u8>) -> Result<()> {
    reserve(dtype, values.len(), out)?;
    for &v in values {
        match dtype {
            Dtype::I8 => out.extend((v as i8).to_le_bytes()),
            _ => out.extend(v.to_le_bytes()),
        }
    }
    Ok(())
}

/// Reserves memory for `len` more elements.
fn reserve(dtype: Dtype, len: usize, out: &mut Vec<u8>) -> Result<()> {
    let bytes = len.saturating_mul(dtype.bitsize().div_ceil(8));
    out.try_reserve(bytes).map_err(|_| Error::TooLarge { op: "tensor", sizes: vec![len] })
}

/// The element type of the integers of a quantized precision.
pub fn integer_dtype(format: Format) -> Dtype {
    if format.max <= i32::from(i8::MAX) { Dtype::I8 } else { Dtype::I16 }
}

/// A vector of the elements of a tensor.
///
/// # Errors
/// [`Error::TooLarge`] if they do not fit in memory.
fn collect<T>(values: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    memory::collect("tensor", values.len(), values)
}

/// Iterates over little-endian elements of `N` bytes each.
fn elements<const N: usize, T>(bytes: &[u8], from_le_bytes: fn([u8; N]) -> T) -> impl ExactSizeIterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |b| from_le_bytes(*b))
}

/// The error for a finite value of tensor `name` that is infinite when converted to `dtype`.
fn too_large_error(name: &str, value: impl std::fmt::LowerExp, dtype: &str) -> Error {
    Error::format(format!("tensor `{name}`"), format!("{value:e} is too large for {dtype}"))
}

/// Converts an f16, given by its bits, exactly. A NaN keeps its payload.
fn f16_to_f32(bits: u16) -> f32 {
    let value = f16::from_bits(bits);
    if value.is_nan() {
        let sign = u32::from(bits & 0x8000) << 16;
        return f32::from_bits(sign | 0x7f80_0000 | u32::from(bits & 0x03ff) << 13);
    }
    value.to_f32()
}

/// Converts an f32 to f64 exactly. A NaN keeps its payload.
fn f32_to_f64(v: f32) -> f64 {
    if v.is_nan() {
        let (sign, payload) = (u64::from(v.to_bits() >> 31) << 63, u64::from(v.to_bits() & 0x007f_ffff) << 29);
        return f64::from_bits(sign | 0x7ff0_0000_0000_0000 | payload);
    }
    f64::from(v)
}

/// Converts a NaN to f32 and keeps the leading bits of its payload. If these bits are all 0, the quiet bit is set;
/// otherwise the result would be infinite.
fn f64_nan_to_f32(v: f64) -> f32 {
    let (sign, payload) = ((v.to_bits() >> 63 << 31) as u32, (v.to_bits() >> 29) as u32 & 0x007f_ffff);
    f32::from_bits(sign | 0x7f80_0000 | if payload == 0 { 0x0040_0000 } else { payload })
}

/// Rounds a value to f16 and returns its bits. A NaN keeps the leading bits of its payload.
fn f32_to_f16(name: &str, v: f32) -> Result<u16> {
    let sign = (v.to_bits() >> 16) as u16 & 0x8000;
    let payload = (v.to_bits() >> 13) as u16 & 0x03ff;
    let value = f16::from_f32(v);
    match v.is_nan() {
        true => Ok(sign | 0x7c00 | if payload == 0 { 0x0200 } else { payload }),
        false if value.is_infinite() && v.is_finite() => Err(too_large_error(name, v, "F16")),
        false => Ok(value.to_bits()),
    }
}

/// Rounds a value to bf16 and returns its bits. A NaN keeps the leading bits of its payload.
fn f32_to_bf16(name: &str, v: f32) -> Result<u16> {
    let high_bits = (v.to_bits() >> 16) as u16;
    let value = bf16::from_f32(v);
    match v.is_nan() {
        true => Ok(if high_bits & 0x007f == 0 { high_bits | 0x0040 } else { high_bits }),
        false if value.is_infinite() && v.is_finite() => Err(too_large_error(name, v, "BF16")),
        false => Ok(value.to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_round_trip(dtype: Dtype, bytes: &[u8]) {
        let mut out = Vec::new();
        append("w", dtype, &to_f32("w", dtype, bytes).unwrap(), &mut out).unwrap();
        assert!(out == bytes, "{dtype}");
    }

    #[test]
    fn all_16_bit_floats_round_trip() {
        let all_values: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        assert_round_trip(Dtype::F16, &all_values);
        assert_round_trip(Dtype::BF16, &all_values);
    }

    #[test]
    fn special_32_bit_floats_round_trip() {
        let special_bits =
            [0u32, 1 << 31, 1, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffc1_2345, 0x7fff_ffff, 0x7f7f_ffff];
        let bytes: Vec<u8> = special_bits.iter().flat_map(|b| b.to_le_bytes()).collect();
        assert_round_trip(Dtype::F32, &bytes);
        let values = to_f32("w", Dtype::F32, &bytes).unwrap();
        let mut f64_bytes = Vec::new();
        append("w", Dtype::F64, &values, &mut f64_bytes).unwrap();
        assert_round_trip(Dtype::F64, &f64_bytes);
        let converted_back = to_f32("w", Dtype::F64, &f64_bytes).unwrap();
        assert_eq!(converted_back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), special_bits);
        let mut round_trip_bytes = Vec::new();
        to_f64("w", Dtype::F64, &f64_bytes).unwrap().iter().for_each(|v| round_trip_bytes.extend(v.to_le_bytes()));
        assert_eq!(round_trip_bytes, f64_bytes);
    }

    #[test]
    fn rounds_to_nearest_and_rejects_overflow() {
        let read_f64 = |v: f64| to_f32("w", Dtype::F64, &v.to_le_bytes());
        assert_eq!(read_f64(0.1).unwrap(), [0.1f32]);
        assert_eq!(read_f64(-1e-60).unwrap()[0].to_bits(), 1 << 31);
        assert_eq!(read_f64(f64::INFINITY).unwrap(), [f32::INFINITY]);
        assert!(read_f64(f64::from_bits(0x7ff0_0000_0000_0001)).unwrap()[0].is_nan());
        assert_eq!(read_f64(-1e39).unwrap_err().to_string(), "tensor `w`: -1e39 is too large for f32");
        let append_value = |dtype, v: f32| append("w", dtype, &[v], &mut Vec::new());
        assert!(append_value(Dtype::F16, 65519.0).is_ok() && append_value(Dtype::F16, f32::INFINITY).is_ok());
        assert_eq!(
            append_value(Dtype::F16, 65520.0).unwrap_err().to_string(),
            "tensor `w`: 6.552e4 is too large for F16"
        );
        assert!(append_value(Dtype::BF16, f32::MAX).is_err() && append_value(Dtype::BF16, 3.38e38).is_ok());
        for nan in [0x7f80_0001u32, 0xff80_0001, 0x7fff_ffff].map(f32::from_bits) {
            for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
                let mut out = Vec::new();
                append("w", dtype, &[nan], &mut out).unwrap();
                let converted_back = to_f32("w", dtype, &out).unwrap()[0];
                assert!(
                    converted_back.is_nan() && converted_back.is_sign_negative() == nan.is_sign_negative(),
                    "{dtype}"
                );
            }
        }
        assert!(matches!(append_value(Dtype::I64, 1.0), Err(Error::Config { option: "dtype", .. })));
    }
}
