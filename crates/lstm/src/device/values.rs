//! The types of a device's tensors, layers and other values. Each value wraps the value of one of the backends.

use lstm_core::{Backend, LinearWeights, MatrixShape, Ops};
#[cfg(feature = "cpu")]
use lstm_cpu::Cpu;
#[cfg(feature = "cuda")]
use lstm_cuda::Cuda;
#[cfg(feature = "wgpu")]
use lstm_wgpu::Wgpu;

/// Conversion between a device's type of values, such as tensors, and the corresponding type of backend `B`. It fails
/// for a value that belongs to another backend.
pub(super) trait Value<B>: Sized {
    /// The corresponding type of backend `B`.
    type Inner;

    /// Wraps a value of `B`.
    fn wrap(inner: Self::Inner) -> Self;
    /// Returns the value of `B` inside, or as the error the name of the other backend to which the value belongs.
    fn get(&self) -> Result<&Self::Inner, &'static str>;
    /// Like [`get`](Self::get), but returns the value as mutable.
    fn get_mut(&mut self) -> Result<&mut Self::Inner, &'static str>;
    /// Like [`get`](Self::get), but consumes the device's value.
    fn into_inner(self) -> Result<Self::Inner, &'static str>;
}

/// Implements [`Value`] of one backend for an enum of values: the variant of this backend has the backend's value.
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

/// Defines enums of values with one variant per backend. The variant holds a value of the backend's own type, which is
/// an associated type of the trait.
macro_rules! values {
    ($($(#[$attribute:meta])* $visibility:vis $Value:ident is $Trait:ident::$Associated:ident;)*) => {$(
        $(#[$attribute])*
        #[derive(Debug)]
        #[allow(clippy::large_enum_variant, reason = "there are few values, and they are seldom moved")]
        #[non_exhaustive]
        $visibility enum $Value {
            /// A value of the CPU backend.
            #[cfg(feature = "cpu")]
            Cpu(<Cpu as $Trait>::$Associated),
            /// A value of the wgpu backend.
            #[cfg(feature = "wgpu")]
            Wgpu(<Wgpu as $Trait>::$Associated),
            /// A value of the CUDA backend.
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
    /// [`Ops::Tensor`] of a [`Device`](crate::Device): a matrix in the memory of one backend. A clone shares the
    /// memory.
    #[derive(Clone)]
    pub DeviceTensor is Ops::Tensor;
    /// [`Backend::Layer`] of a [`Device`](crate::Device): the weights of one layer in one direction. A clone shares the
    /// memory.
    #[derive(Clone)]
    pub DeviceLayer is Backend::Layer;
    /// [`Backend::Plan`] of a [`Device`](crate::Device): scratch memory for running a layer.
    pub DevicePlan is Backend::Plan;
    /// [`Backend::Trace`] of a [`Device`](crate::Device): the values of a forward pass that the backward pass needs.
    pub DeviceTrace is Backend::Trace;
    /// [`Backend::Stream`] of a [`Device`](crate::Device): a stack of layers for streaming, with its current state.
    pub DeviceStream is Backend::Stream;
    /// [`Backend::Linear`] of the backend inside: the part of a [`DeviceLinear`] that the backend has made.
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

/// [`Backend::Linear`] of a [`Device`](crate::Device): a fully connected layer. A clone shares the weights.
#[derive(Clone, Debug)]
pub struct DeviceLinear {
    weights: LinearWeights<DeviceTensor>,
    pub(super) linear: BackendLinear,
}

impl DeviceLinear {
    /// Returns a fully connected layer with these weights; `linear` is what the backend has made of them.
    pub(super) fn new(weights: LinearWeights<DeviceTensor>, linear: BackendLinear) -> Self {
        DeviceLinear { weights, linear }
    }
}

impl AsRef<LinearWeights<DeviceTensor>> for DeviceLinear {
    fn as_ref(&self) -> &LinearWeights<DeviceTensor> {
        &self.weights
    }
}
