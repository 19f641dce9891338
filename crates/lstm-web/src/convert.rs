//! Conversion of model files to safetensors.

use std::slice;

use lstm::{
    Error, Result,
    formats::{Format, OpenOptions, detect, open_bytes},
};

use crate::{
    metadata::CONVERTED_FROM_KEY,
    result::{ok_or_set_message, set_result},
};

/// The safetensors file of a model. Its metadata have the name of the format, and the number of time steps if the model
/// fixes it.
fn convert(bytes: &[u8]) -> Result<Vec<u8>> {
    if detect(bytes) == Some(Format::PyTorch) {
        let reason = "files of torch.save can't be read in a browser; in Python, save the state dict as safetensors: \
                      `safetensors.torch.save_file(model.state_dict(), \"model.safetensors\")`";
        return Err(Error::format("model file", reason));
    }
    let file = open_bytes(bytes, &OpenOptions::default())?;
    file.check_weights_suffice()?;
    let mut metadata = file.weights.metadata().clone();
    metadata.insert(CONVERTED_FROM_KEY.into(), file.format.to_string());
    file.weights.with_metadata(metadata).to_bytes()
}

/// Converts a model file of any supported format, and leaves the result in the buffer. Returns whether that succeeded.
///
/// # Safety
/// `bytes` has `size` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn model_convert(bytes: *const u8, size: usize) -> bool {
    // SAFETY: guaranteed by the caller.
    ok_or_set_message(convert(unsafe { slice::from_raw_parts(bytes, size) })).map(set_result).is_some()
}
