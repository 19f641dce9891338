//! Reads the files of `torch.save`: `.pt`, `.pth`, `.ckpt`, `.bin`. The crate `pytorch-reader` reads the containers (zip,
//! the stream of pickles before PyTorch 1.6, and the tar archive before 0.1.10) and interprets the pickle; no code of the
//! file is run. The tensors become a state dict, whose names are the paths through nested dictionaries.

use std::{
    collections::{BTreeSet, HashMap},
    io::Write,
};

use lstm_core::{Error, Result, StateDict, weights::state_dict::Dtype};
use pytorch_reader::{DType, PickleError, PickleValue, PytorchError, PytorchReader, Tensor};

use crate::{
    detect::{is_data_pickle, zip_entries},
    file::{Format, ModelFile, OpenOptions, catch_panic},
    state_dict,
};

/// What to write in Python to get a file that can be read.
const ADVICE: &str = "save the state dict: `torch.save(model.state_dict(), \"model.pt\")`";

/// Bytes up to which a compressed pickle is read even if it is larger than its file. A larger one could be a bomb: a
/// small file that asks for much memory.
const MAX_COMPRESSED_PICKLE: u64 = 1 << 20;

/// How many times the size of its file the tensors may have together. Tensors can share the elements in the file.
const MAX_SHARING: usize = 16;

/// Reads a file. `source` is its name for error messages. The crate reads files only, not memory, so that the content goes
/// through a temporary file.
///
/// # Errors
/// [`Error::Io`] if the temporary file cannot be written; [`Error::Format`] for a TorchScript archive, a pickle with objects that are not supported, a damaged file, tensors
/// that are larger than the file, and as for every state dict.
pub(crate) fn read(bytes: &[u8], source: &str, options: &OpenOptions) -> Result<ModelFile> {
    let error = |reason: String| Error::format(source, reason);
    let entries = zip_entries(bytes);
    if entries.iter().any(|entry| entry.name.ends_with("constants.pkl"))
        && entries.iter().any(|entry| entry.name.contains("/code/"))
    {
        return Err(error(
            "a TorchScript archive (torch.jit.save), which contains code that is not run; save its weights: \
             `torch.save(torch.jit.load(\"model.pt\").state_dict(), \"weights.pt\")`"
                .into(),
        ));
    }
    let file_len = bytes.len();
    let is_bomb = |size: u64| size > (file_len as u64).max(MAX_COMPRESSED_PICKLE);
    if let Some(entry) = entries.iter().find(|entry| is_data_pickle(&entry.name) && is_bomb(entry.size)) {
        return Err(error(format!("`{}` claims {} bytes, more than the whole file has", entry.name, entry.size)));
    }
    let temporary = |source| Error::Io { path: std::env::temp_dir(), source };
    let mut file = tempfile::NamedTempFile::new().map_err(temporary)?;
    for part in without_zip64(bytes) {
        file.write_all(part).map_err(temporary)?;
    }
    let dict = catch_panic(source, || {
        let failed = |e: PytorchError| error(describe_error(&e));
        let reader = PytorchReader::new(file.path()).map_err(failed)?;
        let root = PytorchReader::read_pickle_data(file.path(), None).map_err(failed)?;
        check_objects(&root, options).map_err(error)?;
        to_state_dict(reader, &nested_state_dicts(root), file_len).map_err(error)
    })?;
    state_dict::read(dict, Format::PyTorch, source, options)
}

/// The file without the 64-bit end records of a zip archive, which PyTorch always writes, if the 32-bit record says the
/// same. The crate `zip` takes the end of some files, whose names in the archive have a certain length, for a record of the
/// directory.
fn without_zip64(bytes: &[u8]) -> [&[u8]; 2] {
    const LEN: usize = 56 + 20;
    let unchanged = [bytes, &[]];
    let Some(end) = bytes.len().checked_sub(22) else { return unchanged };
    let u32_at = |at: usize| bytes[at..].first_chunk().map(|bytes| u32::from_le_bytes(*bytes) as usize);
    let starts = |at: usize, magic: &[u8]| bytes[at..].starts_with(magic);
    match end.checked_sub(LEN) {
        Some(start)
            if starts(end, b"PK\x05\x06")
                && starts(start, b"PK\x06\x06")
                && starts(end - 20, b"PK\x06\x07")
                && u32_at(end + 12).zip(u32_at(end + 16)).and_then(|(len, at)| len.checked_add(at)) == Some(start) =>
        {
            [&bytes[..start], &bytes[end..]]
        }
        _ => unchanged,
    }
}

/// Whether a value is a tensor.
fn is_tensor(value: &PickleValue) -> bool {
    matches!(value, PickleValue::Unsupported(name) if name == "torch.Tensor")
}

/// Rejects what would be lost in a state dict: parameters that are not tensors, and the modules without parameters, such
/// as activations, of a module that was pickled as a whole, unless the user states the layers.
fn check_objects(root: &PickleValue, options: &OpenOptions) -> Result<(), String> {
    check_parameters(root)?;
    let PickleValue::Dict(entries) = root else { return Ok(()) };
    let is_state_dict = |entries: &HashMap<String, PickleValue>| {
        entries.iter().any(|(name, value)| name.contains('.') && is_tensor(value))
    };
    let is_nested = |value: &PickleValue| matches!(value, PickleValue::Dict(entries) if is_state_dict(entries));
    if is_state_dict(entries)
        || entries.values().any(is_nested)
        || options.layers.is_some()
        || !options.names.is_empty()
    {
        return Ok(());
    }
    // Without names of tensors with dots, dictionaries are modules, and empty ones have no parameters.
    let is_empty = |value: &PickleValue| matches!(value, PickleValue::Dict(entries) if entries.is_empty());
    let mut empty: Vec<&str> =
        entries.iter().filter(|(_, value)| is_empty(value)).map(|(name, _)| name.as_str()).collect();
    empty.sort_unstable();
    match empty[..] {
        [] => Ok(()),
        _ => Err(format!(
            "a module that was pickled as a whole, in which the layers without parameters, `{}`, are not read; state the \
             layers with --layers, such as --layers \"rec, last, lin:relu\", or {ADVICE}",
            empty.join("`, `")
        )),
    }
}

/// Rejects dictionaries of tensors in which a parameter is something else, such as a NumPy array.
fn check_parameters(value: &PickleValue) -> Result<(), String> {
    let PickleValue::Dict(entries) = value else { return Ok(()) };
    if entries.values().any(is_tensor) {
        let is_parameter =
            |name: &str| name.ends_with(".weight") || name.ends_with(".bias") || name.contains(".weight_");
        let others = entries.iter().filter(|(name, value)| is_parameter(name) && !is_tensor(value));
        if let Some(name) = others.map(|(name, _)| name).min() {
            return Err(format!("`{name}` is not a tensor, though other parameters are; convert it with torch.tensor"));
        }
    }
    entries.values().try_for_each(check_parameters)
}

/// The keys of the root under which state dicts are: dictionaries of tensors whose names have dots, as the names of a
/// module's parameters have. A module that was pickled as a whole has no such dictionary.
fn nested_state_dicts(root: PickleValue) -> BTreeSet<String> {
    let is_state_dict = |value: &PickleValue| match value {
        PickleValue::Dict(entries) => entries.iter().any(|(name, value)| name.contains('.') && is_tensor(value)),
        _ => false,
    };
    match root {
        PickleValue::Dict(entries) => {
            entries.into_iter().filter(|(_, value)| is_state_dict(value)).map(|(key, _)| key).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// Reads the tensors, except those that training programs save beside the state dicts in a checkpoint: the state of an
/// optimizer, and single numbers, such as the loss. `file_len` is the length of the file in bytes.
fn to_state_dict(reader: PytorchReader, nested: &BTreeSet<String>, file_len: usize) -> Result<StateDict, String> {
    let mut tensors: Vec<(String, Tensor)> = reader.into_tensors().into_iter().collect();
    let is_inside = |name: &str| nested.iter().any(|key| name.strip_prefix(&**key).is_some_and(|n| n.starts_with('.')));
    tensors.retain(|(name, tensor)| {
        let is_number = tensor.num_elements() == 1 && !nested.is_empty() && !is_inside(name);
        !is_number && !state_dict::is_optimizer_tensor(name)
    });
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    if tensors.is_empty() {
        return Err(format!("the file has no tensors; {ADVICE}"));
    }
    let mut total = 0usize;
    let mut dict = StateDict::default();
    for (name, tensor) in tensors {
        total = total.saturating_add(tensor.byte_len());
        // A tensor whose stride is 0 can have any size. It does not occur in models.
        if tensor.byte_len() > file_len || total > file_len.saturating_mul(MAX_SHARING) {
            let shape = tensor.shape();
            return Err(format!("tensor `{name}` of shape {shape:?} has more elements than the file holds; {ADVICE}"));
        }
        let bytes = tensor.read().map_err(|e| format!("the file is damaged: {e}"))?;
        dict.insert(name, dtype(tensor.dtype()), tensor.shape(), &bytes).map_err(|e| e.to_string())?;
    }
    Ok(dict)
}

/// The element type in a state dict.
fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F64 => Dtype::F64,
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I64 => Dtype::I64,
        DType::I32 => Dtype::I32,
        DType::I16 => Dtype::I16,
        DType::I8 => Dtype::I8,
        DType::U64 => Dtype::U64,
        DType::U32 => Dtype::U32,
        DType::U16 => Dtype::U16,
        DType::U8 => Dtype::U8,
        DType::Bool => Dtype::BOOL,
    }
}

/// An error of the crate `pytorch-reader`, with what the user can do.
fn describe_error(error: &PytorchError) -> String {
    let is_element_type = |name: &str| {
        let types =
            ["torch.float8", "torch.float4", "torch.complex", "torch.q", "torch.bits", "torch.uint", "torch.int"];
        name.ends_with("Storage") || types.iter().any(|start| name.starts_with(start))
    };
    match error {
        PytorchError::Pickle(PickleError::UnsupportedType(name)) if is_element_type(name) => format!(
            "the file has tensors of an element type that can't be read, `{name}`; convert them before torch.save, with \
             `.float()`, or `.dequantize()` if they are quantized"
        ),
        PytorchError::Pickle(PickleError::UnsupportedType(name)) => {
            format!("the file contains a Python object `{name}` with tensors, which can't be read; {ADVICE}")
        }
        PytorchError::InvalidFormat(reason) if reason.starts_with("Expected a dictionary") => {
            let found = reason.rsplit_once("found ").map_or("something else", |(_, found)| found);
            format!("expected a state dict, found `{found}`; {ADVICE}")
        }
        PytorchError::InvalidFormat(reason) => reason.clone(),
        PytorchError::Pickle(PickleError::UnexpectedOpCode(_)) => {
            format!("the file contains Python objects that can't be read, or is damaged; {ADVICE}")
        }
        error if error.to_string().contains("persistent id") => {
            format!("a module that was pickled as a whole by an old PyTorch, or a damaged file; {ADVICE}")
        }
        PytorchError::Pickle(_) | PytorchError::Zip(_) | PytorchError::Tar(_) | PytorchError::Io(_) => {
            format!("not a readable file of torch.save, it may be damaged or truncated: {error}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The state dict is already saved: what is wrong are the elements.
    #[test]
    fn element_types_get_advice_of_their_own() {
        let describe = |name: &str| describe_error(&PytorchError::Pickle(PickleError::UnsupportedType(name.into())));
        for name in ["torch.QInt8Storage", "torch.ComplexFloatStorage", "torch.float8_e4m3fn", "torch.complex64"] {
            let error = describe(name);
            assert!(error.contains("`.float()`") && error.contains(name) && !error.contains("state_dict"), "{error}");
        }
        assert!(describe("my.Net").contains("model.state_dict()"));
    }
}
