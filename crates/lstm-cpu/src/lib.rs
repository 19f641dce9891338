//! LSTMs on the CPU: AVX-512, AVX2, NEON or plain Rust, chosen at run time, on any number of threads; always the same
//! bits. Everything of `lstm-core` is re-exported: depend on this crate alone.
//!
//! ```
//! use lstm_cpu::{Cpu, Lstm, LstmConfig, ndarray::Array3};
//! let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(3, 5), 42)?;
//! let x = Array3::<f32>::ones((2, 7, 3)); // batch, steps, features
//! let (y, state) = lstm.forward(&x)?;
//! assert_eq!((y.dim(), state.c.dim()), ((2, 7, 5), (1, 2, 5)));
//! # Ok::<(), lstm_cpu::Error>(())
//! ```

mod activation;
mod backend;
mod buffer;
mod elementwise;
mod gemm;
mod isa;
#[cfg(test)]
mod kernel_tests;
mod kernels;
mod layer;
mod pool;
mod sequence;
#[cfg(test)]
mod sequence_tests;
mod simd;
mod stream;
mod tensor;

/// The examples of the README, compiled and run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

pub use backend::{Cpu, CpuBuilder};
pub use isa::Isa;
pub use layer::{Layer, Plan};
pub use lstm_core::*;
pub use stream::CpuStream;
pub use tensor::Tensor;
