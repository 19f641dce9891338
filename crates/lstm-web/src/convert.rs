//! Conversion of model files to safetensors.

use std::slice;

use lstm::{
    Error, Result,
    formats::{Format, OpenOptions, detect, open_bytes},
};

use crate::result::{checked, set};

/// The safetensors file of a model. Before it are a line with the name of the format, and one with the number of time steps
/// that the model is for, or 0 for any number.
fn convert(bytes: &[u8]) -> Result<Vec<u8>> {
    if detect(bytes) == Some(Format::PyTorch) {
        let reason = "files of torch.save can't be read in a browser; in Python, save the state dict as safetensors: \
                      `safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")`";
        return Err(Error::format("model file", reason));
    }
    let file = open_bytes(bytes, &OpenOptions::default())?;
    file.check_weights_suffice()?;
    let mut out = format!("{}\n{}\n", file.format, file.steps.unwrap_or(0)).into_bytes();
    out.extend(file.weights.to_bytes()?);
    Ok(out)
}

/// Converts a model file of any supported format, and leaves the result in the buffer. Returns whether that succeeded.
///
/// # Safety
/// `bytes` has `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_convert(bytes: *const u8, size: usize) -> bool {
    // SAFETY: guaranteed by the caller.
    checked(convert(unsafe { slice::from_raw_parts(bytes, size) })).map(set).is_some()
}
