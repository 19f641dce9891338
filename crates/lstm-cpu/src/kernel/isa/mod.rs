//! Instruction sets, detected at run time. The kernels of an instruction set are reachable only through
//! [`Isa::kernels`], which returns them only if this processor supports it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;

use std::fmt;

use lstm_core::Precision;

use crate::kernel::{quantized::QuantizedKernels, table::Kernels};

/// An instruction set for which kernels exist. Results are bit-identical on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// AVX-512 with F, BW, DQ and VL: 16 lanes. Quantized layers need VNNI too; without it, they use AVX2.
    Avx512,
    /// AVX2 with FMA: 8 lanes.
    Avx2,
    /// NEON, which every 64-bit Arm processor has: 4 lanes.
    Neon,
    /// Plain Rust without vector instructions: one lane. Runs on every processor, slowly.
    Plain,
}

impl Isa {
    /// All instruction sets, fastest first.
    pub const ALL: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Plain];

    /// The instruction sets that this processor supports, fastest first. Never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.kernels().is_some()).collect()
    }

    /// The kernels for this instruction set, or `None` if this processor does not support it.
    pub(crate) fn kernels(self) -> Option<&'static Kernels> {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => (is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
                && is_x86_feature_detected!("fma"))
            .then_some(&avx512::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(&avx2::KERNELS)
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(&neon::KERNELS),
            Isa::Plain => Some(&plain::KERNELS),
            #[allow(unreachable_patterns, reason = "on x86-64 and aarch64 some arms above exist, elsewhere none")]
            _ => None,
        }
    }

    /// The kernels of quantized layers for this instruction set. `None` if this processor does not support it, or if
    /// the precision is f32. Those of AVX-512 need VNNI; without it, a quantized layer uses AVX2.
    pub(crate) fn quantized_kernels(self, precision: Precision) -> Option<&'static QuantizedKernels> {
        self.kernels()?;
        let all = match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if is_x86_feature_detected!("avx512vnni") => &avx512::QUANTIZED,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => &avx2::QUANTIZED,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon if std::arch::is_aarch64_feature_detected!("dotprod") => &neon::with_sdot::QUANTIZED,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::without_sdot::QUANTIZED,
            _ => &plain::QUANTIZED,
        };
        match precision {
            Precision::F32 => None,
            Precision::Int8 => Some(&all[0]),
            Precision::Int12 => Some(&all[1]),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2",
            Isa::Neon => "NEON",
            Isa::Plain => "plain",
        })
    }
}
