//! The values that a device makes: each is that of one of the backends.

use lstm_core::{Backend, LinearWeights, MatrixShape, Ops};
#[cfg(feature = "cpu")]
use lstm_cpu::Cpu;
#[cfg(feature = "cuda")]
use lstm_cuda::Cuda;
#[cfg(feature = "wgpu")]
use lstm_wgpu::Wgpu;

/// A value of some backend, seen from backend `B`.
pub(super) trait Value<B>: Sized {
    /// The value of `B` itself.
    type Inner;

    fn wrap(inner: Self::Inner) -> Self;
    /// The value of `B`, or the name of the backend that made this one.
    fn get(&self) -> Result<&Self::Inner, &'static str>;
    /// As [`get`](Self::get).
    fn get_mut(&mut self) -> Result<&mut Self::Inner, &'static str>;
    /// As [`get`](Self::get).
    fn into_inner(self) -> Result<Self::Inner, &'static str>;
}

/// Implements [`Value`] for one variant of an enum.
macro_rules! value_of {
    ($Value:ident, $Backend:ident, $Inner:ty) => {
        #[allow(unreachable_patterns, reason = "a build may contain one backend only")]
        impl Value<$Backend> for $Value {
            type Inner = $Inner;

            fn wrap(inner: $Inner) -> Self {
                $Value::$Backend(inner)
            }
            fn get(&self) -> Result<&$Inner, &'static str> {
                match self {
                    $Value::$Backend(inner) => Ok(inner),
                    other => Err(other.backend()),
                }
            }
            fn get_mut(&mut self) -> Result<&mut $Inner, &'static str> {
                match self {
                    $Value::$Backend(inner) => Ok(inner),
                    other => Err(other.backend()),
                }
            }
            fn into_inner(self) -> Result<$Inner, &'static str> {
                match self {
                    $Value::$Backend(inner) => Ok(inner),
                    other => Err(other.backend()),
                }
            }
        }
    };
}

/// Defines enums with the values of all backends: each is an associated type of a trait.
macro_rules! values {
    ($($(#[$attribute:meta])* $visibility:vis $Value:ident is $Trait:ident::$Associated:ident;)*) => {$(
        $(#[$attribute])*
        #[derive(Debug)]
        #[allow(clippy::large_enum_variant, reason = "there are few values, and they are seldom moved")]
        #[non_exhaustive]
        $visibility enum $Value {
            /// The CPU backend's.
            #[cfg(feature = "cpu")]
            Cpu(<Cpu as $Trait>::$Associated),
            /// The wgpu backend's.
            #[cfg(feature = "wgpu")]
            Wgpu(<Wgpu as $Trait>::$Associated),
            /// The CUDA backend's.
            #[cfg(feature = "cuda")]
            Cuda(<Cuda as $Trait>::$Associated),
        }

        impl $Value {
            /// Name of the backend that made this value.
            fn backend(&self) -> &'static str {
                match *self {
                    #[cfg(feature = "cpu")]
                    $Value::Cpu(_) => "cpu",
                    #[cfg(feature = "wgpu")]
                    $Value::Wgpu(_) => "wgpu",
                    #[cfg(feature = "cuda")]
                    $Value::Cuda(_) => "cuda",
                }
            }
        }

        #[cfg(feature = "cpu")]
        value_of!($Value, Cpu, <Cpu as $Trait>::$Associated);
        #[cfg(feature = "wgpu")]
        value_of!($Value, Wgpu, <Wgpu as $Trait>::$Associated);
        #[cfg(feature = "cuda")]
        value_of!($Value, Cuda, <Cuda as $Trait>::$Associated);
    )*};
}

values! {
    /// [`Ops::Tensor`] of a [`Device`](crate::Device): a matrix in the memory of one backend. A clone shares the memory.
    #[derive(Clone)]
    pub DeviceTensor is Ops::Tensor;
    /// [`Backend::Layer`] of a [`Device`](crate::Device). A clone shares the memory.
    #[derive(Clone)]
    pub DeviceLayer is Backend::Layer;
    /// [`Backend::Plan`] of a [`Device`](crate::Device).
    pub DevicePlan is Backend::Plan;
    /// [`Backend::Trace`] of a [`Device`](crate::Device).
    pub DeviceTrace is Backend::Trace;
    /// [`Backend::Stream`] of a [`Device`](crate::Device).
    pub DeviceStream is Backend::Stream;
    /// [`Backend::Linear`] of the backend in a [`DeviceLinear`].
    #[derive(Clone)]
    pub(super) BackendLinear is Backend::Linear;
}

impl DeviceTensor {
    /// Shape of the matrix.
    pub fn shape(&self) -> MatrixShape {
        match *self {
            #[cfg(feature = "cpu")]
            DeviceTensor::Cpu(ref tensor) => tensor.shape(),
            #[cfg(feature = "wgpu")]
            DeviceTensor::Wgpu(ref tensor) => tensor.shape(),
            #[cfg(feature = "cuda")]
            DeviceTensor::Cuda(ref tensor) => tensor.shape(),
        }
    }
}

/// [`Backend::Linear`] of a [`Device`](crate::Device). A clone shares the weights.
#[derive(Clone, Debug)]
pub struct DeviceLinear {
    weights: LinearWeights<DeviceTensor>,
    pub(super) linear: BackendLinear,
}

impl DeviceLinear {
    /// `linear` is what the backend made of `weights`.
    pub(super) fn new(weights: LinearWeights<DeviceTensor>, linear: BackendLinear) -> Self {
        DeviceLinear { weights, linear }
    }
}

impl AsRef<LinearWeights<DeviceTensor>> for DeviceLinear {
    fn as_ref(&self) -> &LinearWeights<DeviceTensor> {
        &self.weights
    }
}
