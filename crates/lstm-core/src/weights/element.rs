//! Elements of a file to floats and back: nearest where it must round, never a finite value to an infinite one.
//!
//! NaNs are moved by their bits, because conversion instructions set the quiet bit and so change a payload.

use half::{bf16, f16};
use safetensors::Dtype;

use crate::error::{Error, Result};

const FLOATS: &str = "F32, F16, BF16 or F64";

/// Elements as f32; an f64 is rounded to the nearest.
pub fn to_f32(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    match dtype {
        Dtype::F32 => Ok(each(bytes, f32::from_le_bytes).collect()),
        Dtype::F16 => Ok(each(bytes, u16::from_le_bytes).map(widen_f16).collect()),
        Dtype::BF16 => Ok(each(bytes, u16::from_le_bytes).map(|b| f32::from_bits(u32::from(b) << 16)).collect()),
        Dtype::F64 => each(bytes, f64::from_le_bytes)
            .map(|v| {
                let narrow = if v.is_nan() { narrow_nan(v) } else { v as f32 };
                if narrow.is_infinite() && v.is_finite() { Err(too_large(name, v, "f32")) } else { Ok(narrow) }
            })
            .collect(),
        other => Err(Error::TensorType { name: name.into(), expected: FLOATS, found: other.to_string() }),
    }
}

/// Elements as f64, all exact.
pub fn to_f64(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f64>> {
    match dtype {
        Dtype::F64 => Ok(each(bytes, f64::from_le_bytes).collect()),
        _ => Ok(to_f32(name, dtype, bytes)?.into_iter().map(widen).collect()),
    }
}

/// Elements as i64, all exact.
pub fn to_i64(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<i64>> {
    match dtype {
        Dtype::I64 => Ok(each(bytes, i64::from_le_bytes).collect()),
        Dtype::I32 => Ok(each(bytes, i32::from_le_bytes).map(i64::from).collect()),
        other => Err(Error::TensorType { name: name.into(), expected: "I64 or I32", found: other.to_string() }),
    }
}

/// Appends `values` as elements of `dtype`.
pub fn write(name: &str, dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<()> {
    for &v in values {
        match dtype {
            Dtype::F32 => out.extend(v.to_le_bytes()),
            Dtype::F64 => out.extend(widen(v).to_le_bytes()),
            Dtype::F16 => out.extend(narrow_f16(name, v)?.to_le_bytes()),
            Dtype::BF16 => out.extend(narrow_bf16(name, v)?.to_le_bytes()),
            other => return Err(Error::config("dtype", format!("expected {FLOATS}, got {other}"))),
        }
    }
    Ok(())
}

fn each<const N: usize, T>(bytes: &[u8], read: fn([u8; N]) -> T) -> impl Iterator<Item = T> {
    bytes.as_chunks().0.iter().map(move |b| read(*b))
}

fn too_large(name: &str, value: impl std::fmt::LowerExp, dtype: &str) -> Error {
    Error::format(format!("tensor `{name}`"), format!("{value:e} is too large for {dtype}"))
}

fn widen_f16(bits: u16) -> f32 {
    let value = f16::from_bits(bits);
    if value.is_nan() {
        let sign = u32::from(bits & 0x8000) << 16;
        return f32::from_bits(sign | 0x7f80_0000 | u32::from(bits & 0x03ff) << 13);
    }
    value.to_f32()
}

fn widen(v: f32) -> f64 {
    if v.is_nan() {
        let (sign, payload) = (u64::from(v.to_bits() >> 31) << 63, u64::from(v.to_bits() & 0x007f_ffff) << 29);
        return f64::from_bits(sign | 0x7ff0_0000_0000_0000 | payload);
    }
    f64::from(v)
}

/// Keeps the leading bits of the payload; where none of these is set, the quiet bit, for else it were an infinity.
fn narrow_nan(v: f64) -> f32 {
    let (sign, payload) = ((v.to_bits() >> 63 << 31) as u32, (v.to_bits() >> 29) as u32 & 0x007f_ffff);
    f32::from_bits(sign | 0x7f80_0000 | if payload == 0 { 0x0040_0000 } else { payload })
}

fn narrow_f16(name: &str, v: f32) -> Result<u16> {
    let sign = (v.to_bits() >> 16) as u16 & 0x8000;
    let payload = (v.to_bits() >> 13) as u16 & 0x03ff;
    let value = f16::from_f32(v);
    match v.is_nan() {
        true => Ok(sign | 0x7c00 | if payload == 0 { 0x0200 } else { payload }),
        false if value.is_infinite() && v.is_finite() => Err(too_large(name, v, "F16")),
        false => Ok(value.to_bits()),
    }
}

fn narrow_bf16(name: &str, v: f32) -> Result<u16> {
    let high = (v.to_bits() >> 16) as u16;
    let value = bf16::from_f32(v);
    match v.is_nan() {
        true => Ok(if high & 0x007f == 0 { high | 0x0040 } else { high }),
        false if value.is_infinite() && v.is_finite() => Err(too_large(name, v, "BF16")),
        false => Ok(value.to_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(dtype: Dtype, bytes: &[u8]) {
        let mut out = Vec::new();
        write("w", dtype, &to_f32("w", dtype, bytes).unwrap(), &mut out).unwrap();
        assert!(out == bytes, "{dtype}");
    }

    #[test]
    fn all_16_bit_floats_keep_their_bits() {
        let all: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        there_and_back(Dtype::F16, &all);
        there_and_back(Dtype::BF16, &all);
    }

    #[test]
    fn odd_32_bit_floats_keep_their_bits() {
        let odd = [0u32, 1 << 31, 1, 0x7f80_0000, 0xff80_0000, 0x7f80_0001, 0xffc1_2345, 0x7fff_ffff, 0x7f7f_ffff];
        let bytes: Vec<u8> = odd.iter().flat_map(|b| b.to_le_bytes()).collect();
        there_and_back(Dtype::F32, &bytes);
        let values = to_f32("w", Dtype::F32, &bytes).unwrap();
        let mut wide = Vec::new();
        write("w", Dtype::F64, &values, &mut wide).unwrap();
        there_and_back(Dtype::F64, &wide);
        let back = to_f32("w", Dtype::F64, &wide).unwrap();
        assert_eq!(back.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), odd);
        let mut f64s = Vec::new();
        to_f64("w", Dtype::F64, &wide).unwrap().iter().for_each(|v| f64s.extend(v.to_le_bytes()));
        assert_eq!(f64s, wide);
    }

    #[test]
    fn rounds_to_nearest_and_refuses_to_overflow() {
        let read = |v: f64| to_f32("w", Dtype::F64, &v.to_le_bytes());
        assert_eq!(read(0.1).unwrap(), [0.1f32]);
        assert_eq!(read(-1e-60).unwrap()[0].to_bits(), 1 << 31);
        assert_eq!(read(f64::INFINITY).unwrap(), [f32::INFINITY]);
        assert!(read(f64::from_bits(0x7ff0_0000_0000_0001)).unwrap()[0].is_nan());
        assert_eq!(read(-1e39).unwrap_err().to_string(), "tensor `w`: -1e39 is too large for f32");
        let save = |dtype, v: f32| write("w", dtype, &[v], &mut Vec::new());
        assert!(save(Dtype::F16, 65519.0).is_ok() && save(Dtype::F16, f32::INFINITY).is_ok());
        assert_eq!(save(Dtype::F16, 65520.0).unwrap_err().to_string(), "tensor `w`: 6.552e4 is too large for F16");
        assert!(save(Dtype::BF16, f32::MAX).is_err() && save(Dtype::BF16, 3.38e38).is_ok());
        for nan in [0x7f80_0001u32, 0xff80_0001, 0x7fff_ffff].map(f32::from_bits) {
            for dtype in [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64] {
                let mut out = Vec::new();
                write("w", dtype, &[nan], &mut out).unwrap();
                let back = to_f32("w", dtype, &out).unwrap()[0];
                assert!(back.is_nan() && back.is_sign_negative() == nan.is_sign_negative(), "{dtype}");
            }
        }
        assert!(matches!(save(Dtype::I64, 1.0), Err(Error::Config { option: "dtype", .. })));
    }
}
