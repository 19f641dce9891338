//! Options for opening a model.

use std::ffi::c_char;

use library::{Device, DeviceBuilder, Error, formats::OpenOptions};

use crate::{
    pointers::{free, object_mut, return_object, text},
    status::{Failure, LstmStatus, call},
};

/// Options for opening a model: the device, the precision, and what the file does not say. One thread at a time may use
/// an object.
pub struct LstmOptions {
    pub(crate) open: OpenOptions,
    device: String,
    threads: Option<usize>,
    adapter_name: Option<String>,
    ordinal: Option<usize>,
}

impl Default for LstmOptions {
    fn default() -> Self {
        let (open, device) = (OpenOptions::default(), "cpu".into());
        LstmOptions { open, device, threads: None, adapter_name: None, ordinal: None }
    }
}

/// The names of all options.
const NAMES: &str = "device, threads, adapter_name, ordinal, precision, name, layers, set, cell, clip, coupled";

impl LstmOptions {
    fn set(&mut self, name: &str, value: &str) -> Result<(), Failure> {
        let expected = |what: &str| Failure::argument(format_args!("option {name}: expected {what}, got `{value}`"));
        let count = |minimum: usize, what| value.parse().ok().filter(|n| *n >= minimum).ok_or_else(|| expected(what));
        match name {
            "device" => self.device = value.into(),
            "threads" => self.threads = Some(count(1, "a number of at least 1")?),
            "adapter_name" => self.adapter_name = Some(value.into()),
            "ordinal" => self.ordinal = Some(count(0, "a number")?),
            "precision" => self.open.precision = Some(value.parse()?),
            "name" => self.open.names.push(value.into()),
            "layers" => self.open.layers = Some(value.into()),
            "set" => {
                let parsed = value.split_once('=').and_then(|(name, value)| Some((name, value.trim().parse().ok()?)));
                let (input, value) = parsed.ok_or_else(|| expected("a name and a number, such as sr=16000"))?;
                if self.open.set.contains_key(input.trim()) {
                    return Err(Failure::argument(format_args!("option set: `{input}` is set twice")));
                }
                self.open.set.insert(input.trim().into(), value);
            }
            "cell" => self.open.cell = Some(value.parse()?),
            "clip" => {
                let bound = value.parse().ok().filter(|bound: &f32| bound.is_finite() && *bound > 0.0);
                self.open.clip = Some(bound.ok_or_else(|| expected("a positive finite number"))?);
            }
            "coupled" => self.open.coupled = value.parse().map_err(|_| expected("true or false"))?,
            _ => return Err(Failure::argument(format_args!("unknown option `{name}`; expected one of {NAMES}"))),
        }
        Ok(())
    }

    /// The maximum number of threads; `None` for the device's own choice.
    pub(crate) fn threads(&self) -> Option<usize> {
        // A host has threads of its own, and a step of a small model is less work than waking another thread.
        self.threads.or((self.device == "cpu").then_some(1))
    }

    /// Opens the device.
    pub(crate) fn open_device(&self) -> Result<Device, Error> {
        let mut builder: DeviceBuilder = Device::builder().backend(&self.device);
        if let Some(threads) = self.threads() {
            builder = builder.threads(threads);
        }
        if let Some(name) = &self.adapter_name {
            builder = builder.adapter_name(name);
        }
        if let Some(ordinal) = self.ordinal {
            builder = builder.ordinal(ordinal);
        }
        builder.open()
    }
}

/// Creates options with their default values.
///
/// # Safety
/// `out` is NULL or can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_options_create(out: *mut *mut LstmOptions) -> LstmStatus {
    // SAFETY: the caller guarantees `out`.
    call(|| Ok(unsafe { return_object(out, LstmOptions::default()) }?))
}

/// Sets an option by its name. Both texts are UTF-8 and end with a zero.
///
/// - `device`: `cpu` (default), `wgpu`, `cuda`, `cuda-tf32`, which is not bit-exact, or `auto`
/// - `threads`: maximum number of threads of the CPU; default 1
/// - `adapter_name`: a part of the name of wgpu's adapter; `ordinal`: the number of the CUDA device
/// - `precision`: `f32`, `int8` or `int12`; default: that of the file
/// - `name`: opens one LSTM of the file alone; may be set several times, for the nodes of an ONNX file
/// - `layers`: the layers of a file that has tensors but no graph, such as `embedding, rec, last, lin:relu, out`
/// - `set`: the value of a scalar input of an ONNX graph, such as `sr=16000`; may be set several times
/// - `cell`, `clip`, `coupled`: options of the LSTM that a file of tensors does not say
///
/// # Safety
/// `options` is NULL or comes from `lstm_options_create` and is not in use; the texts are NULL or end with a zero.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_options_set(
    options: *mut LstmOptions,
    name: *const c_char,
    value: *const c_char,
) -> LstmStatus {
    call(|| {
        // SAFETY: the caller guarantees the pointers.
        let (options, name, value) =
            unsafe { (object_mut("options", options)?, text("name", name)?, text("value", value)?) };
        options.set(name, value)
    })
}

/// Destroys options. Does nothing for NULL.
///
/// # Safety
/// `options` is NULL, or comes from `lstm_options_create` and was not destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lstm_options_destroy(options: *mut LstmOptions) {
    call(|| {
        // SAFETY: the caller guarantees the pointer.
        unsafe { free(options) };
        Ok(())
    });
}
