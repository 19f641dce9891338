//! The one list of backends, and what a command needs of each, whatever its types.

use std::{fmt::Debug, sync::Arc};

use lstm_core::{
    Arithmetic, Backend, ExecutionPath, HostState, Input, Lstm, Reference, Stream, Weights,
    ndarray::{Array3, ArrayView3},
};

use crate::error::{Error, Result};

/// A device that is open.
pub(crate) trait Device {
    /// The backend's name.
    fn name(&self) -> &str;
    /// What it promises about its bits.
    fn arithmetic(&self) -> Arithmetic;
    /// Which device it is, and how it is used.
    fn about(&self) -> String;
    /// Brings a model to it, to be run by the backend's own kernels or by the reference path on its primitives.
    fn load(&self, weights: &Arc<Weights>, reference: bool) -> Result<Box<dyn Model>>;
}

/// A model on a device.
pub(crate) trait Model {
    /// Which code runs each layer-direction.
    fn paths(&self) -> Vec<ExecutionPath>;
    /// Starts `batch` streams from a state, or from zeros.
    fn start(&mut self, batch: usize, state: Option<&HostState>) -> Result<()>;
    /// The next steps of the streams.
    fn chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>>;
    /// The streams' state.
    fn state(&self) -> Result<HostState>;
    /// Whole sequences at once.
    fn whole(&self, input: Input<'_>) -> Result<(Array3<f32>, HostState)>;
}

impl<B: Backend + Debug + 'static> Device for B {
    fn name(&self) -> &str {
        lstm_core::Ops::name(self)
    }
    fn arithmetic(&self) -> Arithmetic {
        lstm_core::Ops::arithmetic(self)
    }
    fn about(&self) -> String {
        format!("{self:?}")
    }
    fn load(&self, weights: &Arc<Weights>, reference: bool) -> Result<Box<dyn Model>> {
        Ok(match reference {
            false => Box::new(Loaded { lstm: Lstm::new(self, weights.clone())?, stream: None }),
            true => Box::new(Loaded { lstm: Lstm::new(&Reference(self.clone()), weights.clone())?, stream: None }),
        })
    }
}

struct Loaded<B: Backend> {
    lstm: Lstm<B>,
    stream: Option<Stream<B>>,
}

impl<B: Backend> Model for Loaded<B> {
    fn paths(&self) -> Vec<ExecutionPath> {
        self.lstm.paths()
    }
    fn start(&mut self, batch: usize, state: Option<&HostState>) -> Result<()> {
        let mut stream = self.lstm.stream(batch)?;
        if let Some(state) = state {
            stream.set_state(state)?;
        }
        self.stream = Some(stream);
        Ok(())
    }
    fn chunk(&mut self, x: ArrayView3<'_, f32>) -> Result<Array3<f32>> {
        Ok(self.stream.as_mut().expect("started first").chunk(x)?)
    }
    fn state(&self) -> Result<HostState> {
        Ok(self.stream.as_ref().expect("started first").state()?)
    }
    fn whole(&self, input: Input<'_>) -> Result<(Array3<f32>, HostState)> {
        Ok(self.lstm.forward(input)?)
    }
}

/// How a backend is opened.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct Options {
    /// Threads of the cpu backend; the bits do not depend on it [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

impl Options {
    /// That no option is given which none of these backends has.
    pub(crate) fn check(self, backends: &[Known]) -> Result<()> {
        let names: Vec<&str> = backends.iter().map(|known| known.name).collect();
        match self.threads {
            Some(_) if !names.contains(&"cpu") => {
                Err(Error::option("threads", format!("is of the cpu backend, not of {}", names.join(", "))))
            }
            _ => Ok(()),
        }
    }
}

/// A backend of the list.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Known {
    pub(crate) name: &'static str,
    /// The feature that a build needs for it.
    feature: &'static str,
    /// Whether this build holds it.
    pub(crate) compiled: bool,
}

impl Known {
    /// Whether it is taken where no backend is named. A feature's other modes give other bits: they must be asked for.
    fn usual(self) -> bool {
        self.name == self.feature
    }
}

macro_rules! backends {
    ($($(#[$there:meta])? $name:literal of $feature:literal => $open:expr,)*) => {
        /// All backends there are, the one to be used by default first.
        pub(crate) const KNOWN: &[Known] =
            &[$($(#[$there])? Known { name: $name, feature: $feature, compiled: cfg!(feature = $feature) }),*];

        /// Opens a backend, or says why it can't run.
        #[allow(unused_variables, reason = "a build may hold no backend at all")]
        pub(crate) fn open(known: Known, options: Options) -> Result<Box<dyn Device>> {
            let fail = |why: String| Error::Backend { name: known.name.to_owned(), why };
            match known.name {
                $(#[cfg(feature = $feature)]
                $name => {
                    let open: fn(Options) -> lstm_core::Result<_> = $open;
                    Ok(Box::new(open(options).map_err(|e| fail(e.to_string()))?))
                })*
                _ => Err(fail(format!("not in this build; build with `--features {}`", known.feature))),
            }
        }
    };
}

// A backend, its feature, and a function that opens it or says why it can't run here. What it is is told by its `Debug`.
backends! {
    "cpu" of "cpu" => |options| match options.threads {
        Some(n) => lstm_cpu::Cpu::builder().threads(n as usize).build(),
        None => Ok(lstm_cpu::Cpu::new()),
    },
    "wgpu" of "wgpu" => |_| lstm_wgpu::Wgpu::blocking(),
    "cuda" of "cuda" => |_| lstm_cuda::Cuda::new(0),
    "cuda-tf32" of "cuda" => |_| lstm_cuda::Cuda::fast(0),
    // For tests: who uses the tool need not hear of them.
    #[cfg(feature = "cuda-host")]
    "cuda-host" of "cuda-host" => |_| lstm_cuda::CudaHost::new(),
    #[cfg(feature = "cuda-host")]
    "cuda-host-tf32" of "cuda-host" => |_| lstm_cuda::CudaHost::fast(0, 8, 0),
}

/// Those that are taken where none is named.
pub(crate) fn usual() -> impl Iterator<Item = Known> {
    KNOWN.iter().copied().filter(|known| known.compiled && known.usual())
}

/// The one of this name, of an option's value.
pub(crate) fn named(name: &str) -> Result<Known, String> {
    let names = || KNOWN.iter().map(|known| known.name).collect::<Vec<_>>().join(", ");
    KNOWN.iter().copied().find(|known| known.name == name).ok_or_else(|| format!("expected one of {}", names()))
}

/// The longest name's length, for tables.
pub(crate) fn width() -> usize {
    KNOWN.iter().map(|known| known.name.len()).max().unwrap_or(0)
}

/// The arithmetic, in a word or with what differs.
pub(crate) fn describe(arithmetic: &Arithmetic) -> String {
    match arithmetic {
        Arithmetic::Exact => "exact".into(),
        Arithmetic::Emulated(why) => format!("exact, emulated: {why}"),
        Arithmetic::Inexact(what) => format!("inexact, not the bits of other devices: {what}"),
    }
}

/// Paths, each told once.
pub(crate) fn describe_paths(paths: &[ExecutionPath]) -> String {
    let mut all: Vec<String> = paths.iter().map(ToString::to_string).collect();
    all.dedup();
    all.join(", ")
}
