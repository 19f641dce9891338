//! Keys of the model file's metadata that only the browser package uses. The metadata stay with the file when it is saved or
//! posted to a Worker.

/// The format of the file that `convert` read.
pub(crate) const CONVERTED_FROM_KEY: &str = "lstm.converted_from";
