//! Streams: time steps of sequences that arrive over time.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use library::{Device, ModelStream, Result};

use crate::{
    model::{LstmModel, copy_states, to_states},
    pointers::{BadPointer, check_disjoint, free, input, object, object_mut, output, return_object},
    status::{Failure, LstmStatus, call, status_of},
};

/// A stream: `batch` sequences whose time steps arrive over time. It keeps their states between calls, and the model
/// alive. One thread at a time may use it.
pub struct LstmStream {
    stream: ModelStream<Device>,
    /// Number of values of the input and of the output of a step, of all sequences.
    step_sizes: [usize; 2],
    /// The number of tokens that exist; `None` if the model reads features.
    num_tokens: Option<usize>,
    state_size: usize,
    /// Whether a call panicked.
    is_broken: bool,
}

impl LstmStream {
    fn new(model: &LstmModel, batch: usize) -> Result<Self, Failure> {
        let weights = model.weights();
        if let Some(steps) = model.steps {
            return Err(Failure::argument(format_args!(
                "the model is for sequences of {steps} time steps, and starts each from its initial state; use \
                 lstm_model_forward"
            )));
        }
        let stream = model.model.stream(batch)?;
        let x = if weights.reads_tokens() { 1 } else { weights.input_size() };
        // The stream has arrays of at least these sizes, so that the products don't overflow.
        let step_sizes = [x * batch, weights.output_size() * batch];
        let state_size = model.state_size(batch).ok_or_else(|| Failure::argument("the batch is too large"))?;
        Ok(LstmStream { stream, step_sizes, num_tokens: model.num_tokens(), state_size, is_broken: false })
    }

    /// Whether the model reads features.
    fn takes_features(&self, _x: &[f32]) -> bool {
        self.num_tokens.is_none()
    }

    /// Whether the model reads tokens, and has all of these.
    fn takes_tokens(&self, tokens: &[i64]) -> bool {
        let has = |token: &i64| self.num_tokens.is_some_and(|n| usize::try_from(*token).is_ok_and(|token| token < n));
        self.num_tokens.is_some() && tokens.iter().all(has)
    }

    /// Calls `f`, and remembers if it panics.
    fn guarded(&mut self, f: impl FnOnce(&mut ModelStream<Device>) -> Result<(), Failure>) -> Result<(), Failure> {
        let stream = &mut self.usable()?.stream;
        let result = catch_unwind(AssertUnwindSafe(|| f(stream)));
        self.is_broken = result.is_err();
        result.unwrap_or_else(|panic| resume_unwind(panic))
    }

    /// The stream, unless a call panicked.
    fn usable(&mut self) -> Result<&mut Self, Failure> {
        match self.is_broken {
            false => Ok(self),
            true => Err(Failure::internal("an earlier call on this stream ended by an internal error; destroy it")),
        }
    }
}

/// Why a real-time function failed.
enum StepFailure {
    Argument,
    Library(LstmStatus),
    Panic,
}

impl From<BadPointer> for StepFailure {
    fn from(_: BadPointer) -> Self {
        StepFailure::Argument
    }
}

/// Runs time steps. Does not allocate on the CPU, and sets no text.
///
/// # Safety
/// `stream` is NULL or valid and not in use; `x` and `y` are NULL or have `steps` times the values of a step.
unsafe fn run<T>(
    stream: *mut LstmStream,
    x: *const T,
    y: *mut f32,
    steps: usize,
    is_valid: impl Fn(&LstmStream, &[T]) -> bool,
    step: impl Fn(&mut ModelStream<Device>, &[T], &mut [f32]) -> Result<()>,
) -> LstmStatus {
    let run_steps = || -> Result<(), StepFailure> {
        // SAFETY: the caller guarantees the pointer.
        let stream = unsafe { object_mut("stream", stream) }?;
        if stream.is_broken {
            return Err(StepFailure::Panic);
        }
        let [x_size, y_size] = stream.step_sizes;
        let lens = (x_size.checked_mul(steps), y_size.checked_mul(steps));
        let (Some(x_len), Some(y_len)) = lens else { return Err(StepFailure::Argument) };
        check_disjoint((x, x_len), (y, y_len))?;
        // SAFETY: the caller guarantees the arrays, which don't overlap.
        let (x, y) = unsafe { (input("x", x, x_len)?, output("y", y, y_len)?) };
        if !is_valid(stream, x) {
            return Err(StepFailure::Argument);
        }
        let mut run_all = || {
            let mut rows = x.chunks_exact(x_size).zip(y.chunks_exact_mut(y_size));
            rows.try_for_each(|(x, y)| step(&mut stream.stream, x, y))
        };
        match catch_unwind(AssertUnwindSafe(&mut run_all)) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(StepFailure::Library(status_of(&error))),
            Err(_) => {
                stream.is_broken = true;
                Err(StepFailure::Panic)
            }
        }
    };
    match run_steps() {
        Ok(()) => LstmStatus::Ok,
        Err(StepFailure::Argument) => LstmStatus::InvalidArgument,
        Err(StepFailure::Library(status)) => status,
        Err(StepFailure::Panic) => LstmStatus::Internal,
    }
}

/// Creates a stream of `batch` sequences in the model's initial states, which `lstm_stream_destroy` frees. The model may
/// be destroyed before it. A model with a reverse direction can't be streamed.
///
/// # Safety
/// `model` is NULL or valid; `out` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_create(
    model: *const LstmModel,
    batch: usize,
    out: *mut *mut LstmStream,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    call(|| unsafe { Ok(return_object(out, LstmStream::new(object("model", model)?, batch)?)?) })
}

/// Runs one time step: reads `x` of shape `(batch, input size)` and writes `y` of shape `(batch, output size)`, which do
/// not overlap. For real-time threads, if `lstm_model_is_real_time`: a call that succeeds then does not allocate, lock or
/// enter the operating system. Sets no text for `lstm_last_error`.
///
/// After `LSTM_STATUS_INVALID_ARGUMENT` the states are unchanged. After another error they may be lost; then all calls
/// fail until `lstm_stream_reset` or `lstm_stream_set_state`.
///
/// # Safety
/// `stream` is NULL or valid, and no other thread uses it; `x` and `y` are NULL or have the described number of values.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_step(stream: *mut LstmStream, x: *const f32, y: *mut f32) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    unsafe { run(stream, x, y, 1, LstmStream::takes_features, ModelStream::step) }
}

/// Runs `steps` time steps, one after the other: `x` has the shape `(steps, batch, input size)` and `y` the shape
/// `(steps, batch, output size)`. If the device fails, the steps before have been written. Otherwise as
/// `lstm_stream_step`.
///
/// # Safety
/// As for `lstm_stream_step`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_run(
    stream: *mut LstmStream,
    x: *const f32,
    y: *mut f32,
    steps: usize,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    unsafe { run(stream, x, y, steps, LstmStream::takes_features, ModelStream::step) }
}

/// Runs one time step of a model that reads tokens, one for each sequence. Otherwise as `lstm_stream_step`. A token that
/// the model does not have is `LSTM_STATUS_INVALID_ARGUMENT`.
///
/// # Safety
/// As for `lstm_stream_step`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_step_tokens(
    stream: *mut LstmStream,
    tokens: *const i64,
    y: *mut f32,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    unsafe { run(stream, tokens, y, 1, LstmStream::takes_tokens, ModelStream::step_tokens) }
}

/// Runs `steps` time steps of a model that reads tokens: `tokens` has the shape `(steps, batch)`. A token that the model
/// does not have is found before the first step. Otherwise as `lstm_stream_run`.
///
/// # Safety
/// As for `lstm_stream_step`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_run_tokens(
    stream: *mut LstmStream,
    tokens: *const i64,
    y: *mut f32,
    steps: usize,
) -> LstmStatus {
    // SAFETY: the caller guarantees the pointers.
    unsafe { run(stream, tokens, y, steps, LstmStream::takes_tokens, ModelStream::step_tokens) }
}

/// Sets the states of all sequences to the model's initial states.
///
/// # Safety
/// `stream` is NULL or valid, and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_reset(stream: *mut LstmStream) -> LstmStatus {
    // SAFETY: the caller guarantees the pointer.
    call(|| unsafe { object_mut("stream", stream) }?.guarded(|stream| Ok(stream.reset()?)))
}

/// Number of floats of the states of the stream, in the order that `lstm_model_state_size` describes. 0 for NULL.
///
/// # Safety
/// `stream` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_state_size(stream: *const LstmStream) -> usize {
    // SAFETY: the caller guarantees the pointer.
    unsafe { object("stream", stream) }.map_or(0, |stream| stream.state_size)
}

/// Copies the states of all sequences to `state`, an array of `size` floats. `size` is `lstm_stream_state_size`.
///
/// # Safety
/// `stream` is NULL or valid, and no other thread uses it; `state` is NULL or has `size` floats.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_get_state(stream: *mut LstmStream, state: *mut f32, size: usize) -> LstmStatus {
    call(|| {
        // SAFETY: the caller guarantees the pointers.
        let (stream, state) = unsafe { (object_mut("stream", stream)?, output("state", state, size)?) };
        check_state_size(stream, size)?;
        stream.guarded(|stream| {
            copy_states(&stream.states()?, state);
            Ok(())
        })
    })
}

/// Replaces the states of all sequences by those in `state`, an array of `size` floats. `size` is
/// `lstm_stream_state_size`. The states are unchanged after an error.
///
/// # Safety
/// As for `lstm_stream_get_state`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_set_state(stream: *mut LstmStream, state: *const f32, size: usize) -> LstmStatus {
    call(|| {
        // SAFETY: the caller guarantees the pointers.
        let (stream, state) = unsafe { (object_mut("stream", stream)?, input("state", state, size)?) };
        check_state_size(stream, size)?;
        stream.guarded(|stream| {
            let states = to_states(stream.model().weights(), state, stream.batch())?;
            Ok(stream.set_states(&states)?)
        })
    })
}

fn check_state_size(stream: &LstmStream, size: usize) -> Result<(), Failure> {
    let expected = stream.state_size;
    let wrong_size = || Failure::argument(format_args!("size: the states have {expected} floats, got {size}"));
    if size == expected { Ok(()) } else { Err(wrong_size()) }
}

/// Destroys a stream. Does nothing for NULL.
///
/// # Safety
/// `stream` is NULL, or comes from this library and was not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_stream_destroy(stream: *mut LstmStream) {
    call(|| {
        // SAFETY: the caller guarantees the pointer.
        unsafe { free(stream) };
        Ok(())
    });
}
