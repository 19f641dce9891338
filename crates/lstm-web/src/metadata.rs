//! What a model file carries in its metadata for the browser, so that it survives saving and posting to a Worker.

/// The format of the file that `convert` read.
pub(crate) const CONVERTED_FROM_KEY: &str = "lstm.converted_from";
