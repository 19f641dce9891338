//! Decodes the elements of a tensor from typed fields, raw bytes or another file.

use std::{
    borrow::Cow,
    io::{Read, Seek, SeekFrom},
    path::{Component, Path, PathBuf},
};

use ndarray::{ArrayD, IxDyn};
use safetensors::Dtype;

use super::proto::{BFLOAT16, BOOL, DOUBLE, FLOAT, FLOAT16, INT32, INT64, Tensor, type_name};
use lstm_core::{
    Error, Result,
    weights::{element, file::open_regular},
};

/// The value of the field `data_location` in tensors whose elements are in another file.
const EXTERNAL_DATA_LOCATION: i32 = 1;

/// Returns an error whose message names this tensor.
fn error(tensor: &Tensor, why: impl ToString) -> Error {
    Error::format(format!("tensor `{}`", tensor.name), why)
}

/// Returns the size of each axis of the tensor.
pub(crate) fn shape(tensor: &Tensor) -> Result<Vec<usize>> {
    let sizes = tensor.dims.iter().map(|&n| usize::try_from(n));
    sizes.collect::<Result<_, _>>().map_err(|_| error(tensor, format!("invalid shape {:?}", tensor.dims)))
}

/// The element type, if it is a supported float type.
pub(crate) fn float_type(tensor: &Tensor) -> Option<Dtype> {
    match tensor.data_type.unwrap_or_default() {
        FLOAT => Some(Dtype::F32),
        FLOAT16 => Some(Dtype::F16),
        BFLOAT16 => Some(Dtype::BF16),
        DOUBLE => Some(Dtype::F64),
        _ => None,
    }
}

/// Returns the elements, rounded to the nearest f32. `dir` is the folder of the files that hold external tensor data.
pub(crate) fn floats(tensor: &Tensor, dir: Option<&Path>) -> Result<ArrayD<f32>> {
    let dtype = float_type(tensor).ok_or_else(|| {
        let (name, found) = (tensor.name.clone(), type_name(tensor.data_type.unwrap_or_default()));
        Error::TensorType { name, expected: "FLOAT, FLOAT16, BFLOAT16 or DOUBLE", found }
    })?;
    let bytes = element_bytes(tensor, dtype.bitsize() / 8, dir)?;
    let values = element::to_f32(&tensor.name, dtype, &bytes)?;
    ArrayD::from_shape_vec(IxDyn(&shape(tensor)?), values).map_err(|e| error(tensor, e))
}

/// Returns the elements of an INT32, INT64 or BOOL tensor, with 0 and 1 for booleans. `dir` is the folder of the files
/// that hold external tensor data.
pub(crate) fn ints(tensor: &Tensor, dir: Option<&Path>) -> Result<Vec<i64>> {
    let (dtype, size) = match tensor.data_type.unwrap_or_default() {
        INT32 => (Dtype::I32, 4),
        INT64 => (Dtype::I64, 8),
        BOOL => return Ok(element_bytes(tensor, 1, dir)?.iter().map(|&byte| i64::from(byte != 0)).collect()),
        other => {
            let (name, found) = (tensor.name.clone(), type_name(other));
            return Err(Error::TensorType { name, expected: "INT32, INT64 or BOOL", found });
        }
    };
    element::to_i64(&tensor.name, dtype, &element_bytes(tensor, size, dir)?)
}

/// Returns the elements as little-endian bytes, after checking that there are as many as the shape says.
fn element_bytes<'a>(tensor: &'a Tensor, element_size: usize, dir: Option<&Path>) -> Result<Cow<'a, [u8]>> {
    let shape = shape(tensor)?;
    let len = shape.iter().try_fold(element_size, |len, &n| len.checked_mul(n));
    let len = len.filter(|&len| isize::try_from(len).is_ok());
    let len = len.ok_or(Error::TooLarge { op: "onnx tensor", sizes: shape })?;
    if tensor.segment.is_some() {
        return Err(error(tensor, "`segment` is set, but segmented tensors are not supported"));
    }
    if tensor.data_location == Some(EXTERNAL_DATA_LOCATION) {
        let dir = dir.ok_or_else(|| error(tensor, "the elements are in another file; open the model from its path"))?;
        return Ok(read_external_data(tensor, len, dir)?.into());
    }
    let typed_data_lens =
        [tensor.float_data.len(), tensor.double_data.len(), tensor.int32_data.len(), tensor.int64_data.len()];
    if typed_data_lens.iter().filter(|&&n| n > 0).count() + usize::from(tensor.raw_data.is_some()) > 1 {
        return Err(error(tensor, "the elements are stored in more than one field"));
    }
    let bytes: Cow<[u8]> = match (&tensor.raw_data, tensor.data_type.unwrap_or_default()) {
        (Some(raw), _) => raw.into(),
        (_, FLOAT) => tensor.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, DOUBLE) => tensor.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, INT64) => tensor.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, INT32) => tensor.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        (_, BOOL) => tensor.int32_data.iter().map(|&v| u8::from(v != 0)).collect(),
        // Each int32 holds one 16-bit float in its low half.
        (_, _) => {
            let half_bits = tensor.int32_data.iter().map(|&v| u16::try_from(v)).collect::<Result<Vec<_>, _>>();
            let half_bits = half_bits.map_err(|_| error(tensor, "`int32_data` has an element of more than 16 bits"))?;
            half_bits.into_iter().flat_map(u16::to_le_bytes).collect()
        }
    };
    if bytes.len() != len {
        let why = format!("shape {:?} needs {len} bytes, found {}", tensor.dims, bytes.len());
        return Err(error(tensor, why));
    }
    Ok(bytes)
}

/// Reads `len` bytes from the external file of a tensor, which must be inside `dir`.
fn read_external_data(tensor: &Tensor, len: usize, dir: &Path) -> Result<Vec<u8>> {
    let parse_number = |value: &str| {
        value.parse::<u64>().map_err(|_| error(tensor, format!("external data: expected a number, got `{value}`")))
    };
    let (mut location, mut offset, mut length) = (None, 0, None);
    for (k, entry) in tensor.external_data.iter().enumerate() {
        if tensor.external_data[..k].iter().any(|other| other.key == entry.key) {
            return Err(error(tensor, format!("external data: key `{}` is repeated", entry.key)));
        }
        match entry.key.as_str() {
            "location" => location = Some(Path::new(&entry.value)),
            "offset" => offset = parse_number(&entry.value)?,
            "length" => length = Some(parse_number(&entry.value)?),
            "checksum" => {}
            other => return Err(error(tensor, format!("external data: unknown key `{other}`"))),
        }
    }
    let location = location.ok_or_else(|| error(tensor, "external data: key `location` is missing"))?;
    let path = path_inside(dir, location).ok_or_else(|| {
        let why = "external data: expected a path inside the folder of the model, got";
        error(tensor, format!("{why} `{}`", location.display()))
    })?;
    let io_error = |source| Error::Io { path: path.clone(), source };
    let mut file = open_regular(&path)?;
    let file_len = file.metadata().map_err(io_error)?.len();
    let length = length.unwrap_or(file_len.saturating_sub(offset));
    if length != len as u64 || offset.checked_add(length).is_none_or(|end| end > file_len) {
        let (path, shape) = (path.display(), &tensor.dims);
        let got = format!("{length} bytes at offset {offset} of {path}, which has {file_len} bytes");
        let why = format!("external data: shape {shape:?} needs {len} bytes, got {got}");
        return Err(error(tensor, why));
    }
    // A file with holes can be larger than memory.
    let mut bytes = Vec::new();
    let sizes = shape(tensor)?;
    bytes.try_reserve_exact(len).map_err(|_| Error::TooLarge { op: "onnx tensor", sizes })?;
    file.seek(SeekFrom::Start(offset)).map_err(io_error)?;
    file.take(length).read_to_end(&mut bytes).map_err(io_error)?;
    match bytes.len() == len {
        true => Ok(bytes),
        false => Err(error(tensor, format!("external data: {} was truncated while it was read", path.display()))),
    }
}

/// The path of `location` inside `dir`; `None` if it leads outside, directly or through a symbolic link.
fn path_inside(dir: &Path, location: &Path) -> Option<PathBuf> {
    let is_plain_component = |part| matches!(part, Component::Normal(_) | Component::CurDir);
    if location.as_os_str().is_empty() || !location.components().all(is_plain_component) {
        return None;
    }
    let path = dir.join(location);
    match (path.canonicalize(), dir.canonicalize()) {
        (Ok(target), Ok(dir)) if !target.starts_with(&dir) => None,
        (Ok(target), Ok(_)) => Some(target),
        // Opening a missing file reports the error.
        _ => Some(path),
    }
}
