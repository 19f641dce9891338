//! The list of backends, and object-safe traits over their devices and models.

use std::{fmt::Debug, sync::Arc};

use lstm_core::{
    Arithmetic, Backend, ExecutionPath, HostState, Input, Lstm, Reference, Stream, Weights,
    ndarray::{Array3, ArrayView3},
};

use crate::error::{Error, Result};

/// An opened device of any backend.
pub(crate) trait Device {
    /// Name of the backend.
    fn name(&self) -> &str;
    /// Arithmetic of the device: whether its results are bit-exact.
    fn arithmetic(&self) -> Arithmetic;
    /// Human-readable description of the device and its settings.
    fn description(&self) -> String;
    /// Loads a model onto the device. With `use_reference_path`, it runs by the reference path on the backend's
    /// primitives instead of the backend's fused kernels.
    fn load(&self, weights: &Arc<Weights>, use_reference_path: bool) -> Result<Box<dyn Model>>;
}

/// A model loaded onto a device.
pub(crate) trait Model {
    /// Execution path of each layer and direction.
    fn paths(&self) -> Vec<ExecutionPath>;
    /// Starts `batch` streams from `state`, or from zeros if it is `None`.
    fn start_streams(&mut self, batch: usize, state: Option<&HostState>) -> Result<()>;
    /// Runs the next steps `x`, shape `(batch, steps, features)`, of the started streams and returns their outputs.
    fn run_chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>>;
    /// Current state of the streams.
    fn state(&self) -> Result<HostState>;
    /// Runs whole sequences in one call and returns their outputs and final state.
    fn run_whole_sequences(&self, input: Input<'_>) -> Result<(Array3<f32>, HostState)>;
}

impl<B: Backend + Debug + 'static> Device for B {
    fn name(&self) -> &str {
        lstm_core::Ops::name(self)
    }
    fn arithmetic(&self) -> Arithmetic {
        lstm_core::Ops::arithmetic(self)
    }
    fn description(&self) -> String {
        format!("{self:?}")
    }
    fn load(&self, weights: &Arc<Weights>, use_reference_path: bool) -> Result<Box<dyn Model>> {
        Ok(match use_reference_path {
            false => Box::new(DeviceModel { lstm: Lstm::new(self, weights.clone())?, stream: None }),
            true => Box::new(DeviceModel { lstm: Lstm::new(&Reference(self.clone()), weights.clone())?, stream: None }),
        })
    }
}

/// A model on backend `B`, with its streams if they were started.
struct DeviceModel<B: Backend> {
    lstm: Lstm<B>,
    stream: Option<Stream<B>>,
}

impl<B: Backend> Model for DeviceModel<B> {
    fn paths(&self) -> Vec<ExecutionPath> {
        self.lstm.paths()
    }
    fn start_streams(&mut self, batch: usize, state: Option<&HostState>) -> Result<()> {
        let mut stream = self.lstm.stream(batch)?;
        if let Some(state) = state {
            stream.set_state(state)?;
        }
        self.stream = Some(stream);
        Ok(())
    }
    fn run_chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        Ok(self.stream.as_mut().expect("streams were started").chunk(x)?)
    }
    fn state(&self) -> Result<HostState> {
        Ok(self.stream.as_ref().expect("streams were started").state()?)
    }
    fn run_whole_sequences(&self, input: Input<'_>) -> Result<(Array3<f32>, HostState)> {
        Ok(self.lstm.forward(input)?)
    }
}

/// Command-line options for opening a backend.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct BackendOptions {
    /// Number of threads of the cpu backend; results do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

impl BackendOptions {
    /// Fails if an option is set that does not apply to any of `backends`.
    pub(crate) fn check_applicable(self, backends: &[BackendEntry]) -> Result<()> {
        let names: Vec<&str> = backends.iter().map(|entry| entry.name).collect();
        match self.threads {
            Some(_) if !names.contains(&"cpu") => {
                Err(Error::option("threads", format!("only the cpu backend has this option, not {}", names.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

/// An entry of the list of backends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BackendEntry {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// Cargo feature that compiles the backend in.
    feature: &'static str,
    /// Whether this build contains the backend.
    pub(crate) compiled: bool,
}

impl BackendEntry {
    /// Whether the backend runs if the user names no backend. An entry whose name differs from its Cargo feature is an
    /// inexact mode of a backend, which runs only if the user names it.
    fn is_default(self) -> bool {
        self.name == self.feature
    }
}

macro_rules! backends {
    ($($(#[$cfg:meta])? $name:literal of $feature:literal => $open:expr,)*) => {
        /// All backends, including those that are not in this build. The first compiled one is the default.
        pub(crate) const BACKENDS: &[BackendEntry] =
            &[$($(#[$cfg])? BackendEntry { name: $name, feature: $feature, compiled: cfg!(feature = $feature) }),*];

        /// Opens the device of a backend. Fails with [`Error::Backend`] if the backend is not available.
        #[allow(unused_variables, reason = "a build may contain no backend")]
        pub(crate) fn open_device(entry: BackendEntry, options: BackendOptions) -> Result<Box<dyn Device>> {
            let backend_error = |why: String| Error::Backend { name: entry.name.to_owned(), why };
            match entry.name {
                $(#[cfg(feature = $feature)]
                $name => {
                    let open: fn(BackendOptions) -> lstm_core::Result<_> = $open;
                    Ok(Box::new(open(options).map_err(|e| backend_error(e.to_string()))?))
                })*
                _ => Err(backend_error(format!("not in this build; build with `--features {}`", entry.feature))),
            }
        }
    };
}

// Each line: the backend's name, its Cargo feature, and a function that opens its device.
backends! {
    "cpu" of "cpu" => |options| match options.threads {
        Some(n) => lstm_cpu::Cpu::builder().threads(n as usize).build(),
        None => Ok(lstm_cpu::Cpu::new()),
    },
    "wgpu" of "wgpu" => |_| lstm_wgpu::Wgpu::new(),
    "cuda" of "cuda" => |_| lstm_cuda::Cuda::new(0),
    "cuda-tf32" of "cuda" => |_| lstm_cuda::Cuda::builder().allow_tf32(true).build(),
    // Only for tests, so hidden from other builds.
    #[cfg(feature = "cuda-host")]
    "cuda-host" of "cuda-host" => |_| lstm_cuda_sim::Host::builder().build(),
    #[cfg(feature = "cuda-host")]
    "cuda-host-tf32" of "cuda-host" => |_| lstm_cuda_sim::Host::builder().allow_tf32(true).build(),
}

/// The compiled backends that run if the user names no backend.
pub(crate) fn default_backends() -> impl Iterator<Item = BackendEntry> {
    BACKENDS.iter().copied().filter(|entry| entry.compiled && entry.is_default())
}

/// Parses a backend's name from the command line.
pub(crate) fn parse_backend(name: &str) -> Result<BackendEntry, String> {
    let names = || BACKENDS.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
    BACKENDS.iter().copied().find(|entry| entry.name == name).ok_or_else(|| format!("expected one of {}", names()))
}

/// Length of the longest backend name, for aligning tables.
pub(crate) fn max_name_len() -> usize {
    BACKENDS.iter().map(|entry| entry.name.len()).max().unwrap_or(0)
}

/// Describes a device's arithmetic in words.
pub(crate) fn describe_arithmetic(arithmetic: &Arithmetic) -> String {
    arithmetic.to_string()
}

/// Lists execution paths, separated by commas. Consecutive equal paths are listed once.
pub(crate) fn describe_paths(paths: &[ExecutionPath]) -> String {
    let mut path_names: Vec<String> = paths.iter().map(ToString::to_string).collect();
    path_names.dedup();
    path_names.join(", ")
}
