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
//!
//! A cell can also be run by hand, one step at a time, on matrices of the device:
//!
//! ```
//! use lstm_cpu::{CellKind, Cpu, Init, LstmConfig, MatrixShape, Ops, State, Weights, cell::Cell};
//! let cpu = Cpu::new();
//! let weights = Weights::init(LstmConfig::new(3, 5).cell(CellKind::PeepholeDense), &Init::default(), 42)?;
//! let cell = Cell::load(&cpu, &weights.layers()[0])?;
//! let x = cpu.upload(MatrixShape::new(2, 3), &[0.5; 6])?; // two sequences
//! let zeros = cpu.upload(MatrixShape::new(2, 5), &[0.0; 10])?;
//! let input = cell.input_term(&cpu, &x)?; // bias + W x
//! let state = cell.step(&cpu, input, &State { h: zeros.clone(), c: zeros })?;
//! assert_eq!(state.h.as_slice().len(), 10);
//! # Ok::<(), lstm_cpu::Error>(())
//! ```

mod activation;
mod backend;
mod backward;
mod buffer;
mod builder;
mod elementwise;
mod gemm;
mod isa;
#[cfg(all(test, target_arch = "x86_64"))]
mod kernel_speed;
#[cfg(test)]
mod kernel_tests;
mod kernels;
mod layer;
mod pool;
mod product;
mod reversed;
mod sequence;
#[cfg(test)]
mod sequence_tests;
mod simd;
mod step;
mod step_backward;
mod stream;
mod tensor;
mod trace;

/// The examples of the README and the documents, compiled as tests, and run where they need no files.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
#[doc = include_str!("../../../docs/history.md")]
struct Documents;

pub use backend::Cpu;
pub use builder::CpuBuilder;
pub use isa::Isa;
pub use layer::{Layer, Plan};
pub use lstm_core::*;
#[cfg(feature = "formats")]
pub use lstm_formats::{self as formats, OnnxInputs, OnnxLstm, OnnxModel, OnnxWriter, RtNeural};
pub use stream::CpuStream;
pub use tensor::Tensor;
pub use trace::Trace;
