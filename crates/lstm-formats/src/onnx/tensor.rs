//! A tensor's elements, wherever the file keeps them: typed fields, raw bytes, another file.

use std::{
    borrow::Cow,
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;

use super::proto::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, Tensor, type_name};
use lstm_core::{Error, Result, weights::element};

/// `data_location` of a tensor that is in another file.
const EXTERNAL: i32 = 1;

fn fail(tensor: &Tensor, why: impl ToString) -> Error {
    Error::format(format!("tensor `{}`", tensor.name), why)
}

/// The tensor's sizes.
pub(super) fn shape(tensor: &Tensor) -> Result<Vec<usize>> {
    let sizes = tensor.dims.iter().map(|&n| usize::try_from(n));
    sizes.collect::<Result<_, _>>().map_err(|_| fail(tensor, format!("{:?} is not a shape", tensor.dims)))
}

/// The type of its elements, if it holds floats that are read.
pub(super) fn float_type(tensor: &Tensor) -> Option<Dtype> {
    match tensor.data_type.unwrap_or_default() {
        FLOAT => Some(Dtype::F32),
        FLOAT16 => Some(Dtype::F16),
        BFLOAT16 => Some(Dtype::BF16),
        DOUBLE => Some(Dtype::F64),
        _ => None,
    }
}

/// Whether it holds floats that are read.
pub(super) fn is_float(tensor: &Tensor) -> bool {
    float_type(tensor).is_some()
}

/// Whether it holds integers that are read.
pub(super) fn is_int(tensor: &Tensor) -> bool {
    matches!(tensor.data_type, Some(INT32 | INT64))
}

/// Whether all its elements are in the file and are +0.
pub(super) fn is_zero(tensor: &Tensor) -> bool {
    tensor.data_location != Some(EXTERNAL)
        && tensor.raw_data.iter().flatten().all(|&byte| byte == 0)
        && tensor.float_data.iter().all(|v| v.to_bits() == 0)
        && tensor.double_data.iter().all(|v| v.to_bits() == 0)
        && tensor.int32_data.iter().all(|&v| v == 0)
        && tensor.int64_data.iter().all(|&v| v == 0)
}

/// Whether it is one BOOL in the file, and false.
pub(super) fn is_false(tensor: &Tensor) -> bool {
    let element = tensor.raw_data.as_deref() == Some(&[0]) || tensor.int32_data == [0];
    tensor.data_type == Some(BOOL) && tensor.dims.is_empty() && element && is_zero(tensor)
}

/// Elements as f32, an f64 rounded to the nearest. Files with elements lie in `dir`.
pub(super) fn floats(tensor: &Tensor, dir: Option<&Path>) -> Result<ArrayD<f32>> {
    let dtype = float_type(tensor).ok_or_else(|| {
        let (name, found) = (tensor.name.clone(), type_name(tensor.data_type.unwrap_or_default()));
        Error::TensorType { name, expected: "FLOAT, FLOAT16, BFLOAT16 or DOUBLE", found }
    })?;
    let bytes = bytes(tensor, dtype.bitsize() / 8, dir)?;
    let values = element::to_f32(&tensor.name, dtype, &bytes)?;
    ArrayD::from_shape_vec(IxDyn(&shape(tensor)?), values).map_err(|e| fail(tensor, e))
}

/// Elements of INT32 or INT64.
pub(super) fn ints(tensor: &Tensor, dir: Option<&Path>) -> Result<Vec<i64>> {
    let (dtype, size) = match tensor.data_type.unwrap_or_default() {
        INT32 => (Dtype::I32, 4),
        INT64 => (Dtype::I64, 8),
        other => {
            let (name, found) = (tensor.name.clone(), type_name(other));
            return Err(Error::TensorType { name, expected: "INT32 or INT64", found });
        }
    };
    element::to_i64(&tensor.name, dtype, &bytes(tensor, size, dir)?)
}

/// The elements' bytes, as many as the shape says, little endian.
fn bytes<'a>(tensor: &'a Tensor, size: usize, dir: Option<&Path>) -> Result<Cow<'a, [u8]>> {
    let shape = shape(tensor)?;
    let len = shape.iter().try_fold(size, |len, &n| len.checked_mul(n));
    let len = len.filter(|&len| isize::try_from(len).is_ok());
    let len = len.ok_or(Error::TooLarge { op: "onnx tensor", sizes: shape })?;
    if tensor.segment.is_some() {
        return Err(fail(tensor, "`segment` is set; tensors in segments are not read"));
    }
    if tensor.data_location == Some(EXTERNAL) {
        let dir = dir.ok_or_else(|| fail(tensor, "its elements are in another file; open the model by its path"))?;
        return Ok(external(tensor, len, dir)?.into());
    }
    let typed = [tensor.float_data.len(), tensor.double_data.len(), tensor.int32_data.len(), tensor.int64_data.len()];
    if typed.iter().filter(|&&n| n > 0).count() + usize::from(tensor.raw_data.is_some()) > 1 {
        return Err(fail(tensor, "its elements are there twice, raw and typed"));
    }
    let bytes: Cow<[u8]> = match (&tensor.raw_data, tensor.data_type.unwrap_or_default()) {
        (Some(raw), _) => raw.into(),
        (_, FLOAT) => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, DOUBLE) => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, INT64) => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, INT32) => tensor.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        // 16-bit floats lie one in the low half of each int32.
        (_, _) => {
            let halves = tensor.int32_data.iter().map(|&v| u16::try_from(v)).collect::<Result<Vec<_>, _>>();
            let halves = halves.map_err(|_| fail(tensor, "`int32_data` has elements of more than 16 bits"))?;
            halves.into_iter().flat_map(u16::to_le_bytes).collect()
        }
    };
    if bytes.len() != len {
        let why = format!("shape {:?} takes {len} bytes, found {}", tensor.dims, bytes.len());
        return Err(fail(tensor, why));
    }
    Ok(bytes)
}

/// `len` bytes of the file that the tensor names, which must lie in `dir` or below.
fn external(tensor: &Tensor, len: usize, dir: &Path) -> Result<Vec<u8>> {
    let number = |value: &str| {
        let why = || fail(tensor, format!("external data: expected a number, got `{value}`"));
        value.parse::<u64>().map_err(|_| why())
    };
    let (mut location, mut offset, mut length) = (None, 0, None);
    for (k, entry) in tensor.external_data.iter().enumerate() {
        if tensor.external_data[..k].iter().any(|other| other.key == entry.key) {
            return Err(fail(tensor, format!("external data: key `{}` is there twice", entry.key)));
        }
        match entry.key.as_str() {
            "location" => location = Some(Path::new(&entry.value)),
            "offset" => offset = number(&entry.value)?,
            "length" => length = Some(number(&entry.value)?),
            "checksum" => {}
            other => return Err(fail(tensor, format!("external data: unknown key `{other}`"))),
        }
    }
    let location = location.ok_or_else(|| fail(tensor, "external data: no `location`"))?;
    let path = within(dir, location).ok_or_else(|| {
        let why = "external data: expected a path inside the model's folder, got";
        fail(tensor, format!("{why} `{}`", location.display()))
    })?;
    let io = |source| Error::Io { path: path.clone(), source };
    let mut file = File::open(&path).map_err(io)?;
    let there = file.metadata().map_err(io)?.len();
    let length = length.unwrap_or(there.saturating_sub(offset));
    if length != len as u64 || offset.checked_add(length).is_none_or(|end| end > there) {
        let why = format!(
            "external data: shape {:?} takes {len} bytes, got {length} bytes at {offset} of {}, which has {there}",
            tensor.dims,
            path.display()
        );
        return Err(fail(tensor, why));
    }
    let mut bytes = vec![0; len];
    file.seek(SeekFrom::Start(offset)).and_then(|_| file.read_exact(&mut bytes)).map_err(io)?;
    Ok(bytes)
}

/// `location` below `dir`; `None` where it leads out, be it through a link.
fn within(dir: &Path, location: &Path) -> Option<PathBuf> {
    let plain = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if location.as_os_str().is_empty() || !location.components().all(plain) {
        return None;
    }
    let path = dir.join(location);
    match (path.canonicalize(), dir.canonicalize()) {
        (Ok(whole), Ok(dir)) if !whole.starts_with(&dir) => None,
        // A file that is not there is an error where it is opened.
        _ => Some(path),
    }
}
