//! Streams. JavaScript has views of the input and the output, so that a step copies nothing between the two.

use std::ptr::null_mut;

use lstm::{Cpu, Error, ModelStream, Result};

use crate::{model::WebModel, result::ok_or_set_message};

/// A stream with space for a block of time steps.
pub(crate) struct WebStream {
    stream: ModelStream<Cpu>,
    /// The input: `(block, batch, input size)`. For a model that reads tokens, the floats have the bits of i32.
    x: Vec<f32>,
    /// The output: `(block, batch, output size)`.
    y: Vec<f32>,
    /// The tokens of one time step; empty for a model that reads features.
    tokens: Vec<i64>,
    /// Number of inputs of a time step.
    inputs: usize,
    /// Number of outputs of a time step.
    outputs: usize,
}

impl WebStream {
    fn new(model: &WebModel, batch: usize, block: usize) -> Result<Self> {
        model.check_any_length()?;
        let (stream, weights) = (model.model.stream(batch)?, model.weights());
        let reads_tokens = weights.reads_tokens();
        let too_large = || Error::shape("stream: block", "a block that fits in memory", block);
        let values_of_step = |size: usize| batch.checked_mul(size).ok_or_else(too_large);
        let inputs = values_of_step(if reads_tokens { 1 } else { weights.input_size() })?;
        let outputs = values_of_step(weights.output_size())?;
        let zeros = |per_step: usize| {
            let len = per_step.checked_mul(block).ok_or_else(too_large)?;
            let mut values = Vec::new();
            values.try_reserve_exact(len).map_err(|_| too_large())?;
            values.resize(len, 0.0f32);
            Ok::<_, Error>(values)
        };
        let (x, y) = (zeros(inputs)?, zeros(outputs)?);
        Ok(WebStream { stream, x, y, tokens: vec![0; if reads_tokens { batch } else { 0 }], inputs, outputs })
    }

    fn run(&mut self, steps: usize) -> Result<()> {
        let block = self.y.len() / self.outputs;
        if steps > block {
            return Err(Error::shape("stream: steps", format!("at most {block}, the block of the stream"), steps));
        }
        let rows = self.x.chunks_exact(self.inputs).zip(self.y.chunks_exact_mut(self.outputs));
        for (x, y) in rows.take(steps) {
            if self.tokens.is_empty() {
                self.stream.step(x, y)?;
            } else {
                self.tokens.iter_mut().zip(x).for_each(|(token, x)| *token = i64::from(x.to_bits() as i32));
                self.stream.step_tokens(&self.tokens, y)?;
            }
        }
        Ok(())
    }
}

/// Starts `batch` sequences, with space for `block` time steps. Returns 0 after an error.
///
/// # Safety
/// `model` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_new(model: *const WebModel, batch: usize, block: usize) -> *mut WebStream {
    // SAFETY: guaranteed by the caller.
    let stream = ok_or_set_message(WebStream::new(unsafe { &*model }, batch, block));
    stream.map_or(null_mut(), |stream| Box::into_raw(Box::new(stream)))
}

/// Frees a stream.
///
/// # Safety
/// `stream` was returned by this module and not freed.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_free(stream: *mut WebStream) {
    // SAFETY: guaranteed by the caller.
    drop(unsafe { Box::from_raw(stream) });
}

/// Address of the input, `(block, batch, input size)`; i32 if the model reads tokens.
///
/// # Safety
/// `stream` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_input(stream: *mut WebStream) -> *mut f32 {
    // SAFETY: guaranteed by the caller.
    unsafe { &mut *stream }.x.as_mut_ptr()
}

/// Address of the output, `(block, batch, output size)`.
///
/// # Safety
/// `stream` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_output(stream: *const WebStream) -> *const f32 {
    // SAFETY: guaranteed by the caller.
    unsafe { &*stream }.y.as_ptr()
}

/// Runs the first `steps` time steps of the block. Returns whether that succeeded.
///
/// # Safety
/// `stream` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_run(stream: *mut WebStream, steps: usize) -> bool {
    // SAFETY: guaranteed by the caller.
    ok_or_set_message(unsafe { &mut *stream }.run(steps)).is_some()
}

/// Resets every sequence to its initial state. Returns whether that succeeded.
///
/// # Safety
/// `stream` is valid.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn stream_reset(stream: *mut WebStream) -> bool {
    // SAFETY: guaranteed by the caller.
    ok_or_set_message(unsafe { &mut *stream }.stream.reset()).is_some()
}
