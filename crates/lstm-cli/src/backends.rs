//! Opens the backend that is chosen on the command line, and loads models onto its device.

use std::sync::Arc;

use lstm::{
    BACKENDS, Backend, BackendInfo, Device, DeviceBuilder, ExecutionPath, HostState, Model, ModelInput, ModelStream,
    ModelWeights, Reference, ndarray::Array3,
};

use crate::{
    error::{Error, Result},
    report::OutputSettings,
};

/// A model loaded onto a device. It runs with the fused kernels of the backend, or by the reference path, which is
/// composed of the backend's primitive operations.
pub(crate) trait RunnableModel {
    /// Returns the execution path of each layer and direction of each LSTM: a fused kernel or the reference path.
    fn paths(&self) -> Vec<ExecutionPath>;
    /// Starts `batch` streams, which are sequences that arrive in chunks of steps. Their initial states are `states`, or
    /// those of the model if it is `None`.
    fn start_streams(&mut self, batch: usize, states: Option<&[HostState]>) -> Result<()>;
    /// Runs the next steps of the started streams and returns their outputs.
    fn run_chunk(&mut self, input: ModelInput<'_>) -> Result<Array3<f32>>;
    /// Returns the states of the started streams after their last chunk, one for each LSTM.
    fn states(&self) -> Result<Vec<HostState>>;
    /// Runs whole sequences in one call and returns their outputs and final states.
    fn run_whole_sequences(&self, input: ModelInput<'_>) -> Result<(Array3<f32>, Vec<HostState>)>;
}

/// Loads a model onto a device. With `use_reference_path`, the model runs by the reference path, which is composed of
/// the backend's primitive operations, instead of the backend's fused kernels.
pub(crate) fn load_model(
    device: &Device,
    weights: &Arc<ModelWeights>,
    use_reference_path: bool,
) -> Result<Box<dyn RunnableModel>> {
    let weights = weights.clone();
    Ok(match use_reference_path {
        false => Box::new(DeviceModel { model: Model::new(device, weights)?, stream: None }),
        true => Box::new(DeviceModel { model: Model::new(&Reference(device.clone()), weights)?, stream: None }),
    })
}

/// A model on backend `B`, and its streams; `stream` is `None` until they are started.
struct DeviceModel<B: Backend> {
    model: Model<B>,
    stream: Option<ModelStream<B>>,
}

impl<B: Backend> RunnableModel for DeviceModel<B> {
    fn paths(&self) -> Vec<ExecutionPath> {
        self.model.paths()
    }
    fn start_streams(&mut self, batch: usize, states: Option<&[HostState]>) -> Result<()> {
        let mut stream = self.model.stream(batch)?;
        if let Some(states) = states {
            stream.set_states(states)?;
        }
        self.stream = Some(stream);
        Ok(())
    }
    fn run_chunk(&mut self, input: ModelInput<'_>) -> Result<Array3<f32>> {
        Ok(self.stream.as_mut().expect("streams were started").chunk(input)?)
    }
    fn states(&self) -> Result<Vec<HostState>> {
        Ok(self.stream.as_ref().expect("streams were started").states()?)
    }
    fn run_whole_sequences(&self, input: ModelInput<'_>) -> Result<(Array3<f32>, Vec<HostState>)> {
        let output = self.model.forward(input)?;
        Ok((output.y, output.states))
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
    pub(crate) fn check_applicable(self, backends: &[&BackendInfo]) -> Result<()> {
        let names: Vec<&str> = backends.iter().map(|info| info.name).collect();
        match self.threads {
            Some(_) if !backends.iter().any(|info| info.has_option("threads")) => {
                Err(Error::option("threads", format!("only the cpu backend has this option, not {}", names.join(", "))))
            }
            _ => Ok(()),
        }
    }

    /// Sets the options on a builder.
    fn apply_to(self, builder: DeviceBuilder) -> DeviceBuilder {
        self.threads.into_iter().fold(builder, |builder, n| builder.threads(n as usize))
    }
}

/// The backend on which a command runs, for commands that use a single one.
#[derive(Clone, Copy, Debug)]
pub(crate) enum BackendChoice {
    /// The backend that the user named.
    Named(&'static BackendInfo),
    /// A GPU if there is one, else the CPU.
    Automatic,
}

impl BackendChoice {
    /// Opens the device. Fails if an option does not apply to the named backend, or with [`Error::Backend`] if no
    /// device is available. After an automatic choice, notes on stderr list the backends of this build that could not
    /// be used.
    pub(crate) fn open(self, options: BackendOptions, output: OutputSettings) -> Result<Device> {
        match self {
            BackendChoice::Named(info) => {
                options.check_applicable(&[info])?;
                open_device(info, options)
            }
            BackendChoice::Automatic => {
                let device = options.apply_to(Device::builder().prefer_gpu()).open();
                let device = device.map_err(|e| Error::Backend { name: AUTOMATIC_NAME.into(), why: e.to_string() })?;
                let is_compiled = |name: &str| BackendInfo::find(name).is_some_and(|info| info.is_compiled);
                for skipped in device.skipped().iter().filter(|skipped| is_compiled(skipped.name)) {
                    // A reason that a program can overrule ends with how. The tool's way is an option.
                    let note = match skipped.to_string().split_once("; to use it, ") {
                        Some((reason, _)) => format!("{reason}; to use it, run with --backend {}", skipped.name),
                        None => skipped.to_string(),
                    };
                    output.note(format!("not used: {note}"));
                }
                Ok(device)
            }
        }
    }
}

/// The name of [`BackendChoice::Automatic`] on the command line.
const AUTOMATIC_NAME: &str = "auto";

/// Opens the device of a backend. Options that the backend does not have are ignored. Fails with [`Error::Backend`] if
/// the backend is not available.
pub(crate) fn open_device(info: &BackendInfo, options: BackendOptions) -> Result<Device> {
    let backend_error = |why: String| Error::Backend { name: info.name.to_owned(), why };
    if !info.is_compiled {
        // The tool has the library's features.
        return Err(backend_error(format!("not in this build; build with `--features {}`", info.feature)));
    }
    let builder = Device::builder().backend(info.name);
    let builder = if info.has_option("threads") { options.apply_to(builder) } else { builder };
    builder.open().map_err(|e| backend_error(e.to_string()))
}

/// Returns the backends in this build that commands use if the user names none.
pub(crate) fn default_backends() -> impl Iterator<Item = &'static BackendInfo> {
    BACKENDS.iter().filter(|info| info.is_compiled && info.is_default)
}

/// Parses a backend's name from the command line.
pub(crate) fn parse_backend(name: &str) -> Result<&'static BackendInfo, String> {
    BackendInfo::find(name).ok_or_else(|| format!("expected one of {}", backend_names().join(", ")))
}

/// Parses a backend's name or `auto` from the command line.
pub(crate) fn parse_backend_choice(name: &str) -> Result<BackendChoice, String> {
    match name {
        AUTOMATIC_NAME => Ok(BackendChoice::Automatic),
        name => parse_backend(name).map(BackendChoice::Named).map_err(|why| format!("{why}, {AUTOMATIC_NAME}")),
    }
}

/// Names of all backends.
fn backend_names() -> Vec<&'static str> {
    BACKENDS.iter().map(|info| info.name).collect()
}

/// Length of the longest backend name, for aligning tables.
pub(crate) fn max_name_len() -> usize {
    backend_names().iter().map(|name| name.len()).max().unwrap_or(0)
}

/// Lists execution paths, separated by commas. Consecutive equal paths are listed once.
pub(crate) fn describe_paths(paths: &[ExecutionPath]) -> String {
    if paths.is_empty() {
        return "no LSTM".into();
    }
    let mut path_names: Vec<String> = paths.iter().map(ToString::to_string).collect();
    path_names.dedup();
    path_names.join(", ")
}
