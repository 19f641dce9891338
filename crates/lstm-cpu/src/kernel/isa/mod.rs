//! Instruction sets, detected at run time. The kernels of an instruction set are reachable only through
//! [`Isa::kernels`], which returns them only if this processor supports it.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod wasm;

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
    /// WebAssembly's relaxed-simd: 4 lanes. For builds with the target features `simd128` and `relaxed-simd`, in an engine
    /// that fuses the multiply-add, which is tested. Other engines use `Plain`, and should be given a build without
    /// `relaxed-simd`.
    RelaxedSimd,
    /// WebAssembly's simd128, with the multiply-add in f64: 4 lanes. For builds with the target feature `simd128` and
    /// without `relaxed-simd`, so that a module, which every visitor of a page downloads, has one set of vector kernels.
    Simd128,
    /// Plain Rust without vector instructions: one lane. Runs on every processor, slowly.
    Plain,
}

impl Isa {
    /// All instruction sets, fastest first.
    pub const ALL: [Isa; 6] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::RelaxedSimd, Isa::Simd128, Isa::Plain];

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
            #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
            Isa::RelaxedSimd => wasm::fuses().then_some(&wasm::relaxed::KERNELS),
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128", not(target_feature = "relaxed-simd")))]
            Isa::Simd128 => Some(&wasm::exact::KERNELS),
            Isa::Plain => Some(&plain::KERNELS),
            #[allow(unreachable_patterns, reason = "which arms above exist depends on the target")]
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
            #[cfg(all(target_arch = "wasm32", target_feature = "relaxed-simd"))]
            Isa::RelaxedSimd => &wasm::relaxed::QUANTIZED,
            #[cfg(all(target_arch = "wasm32", target_feature = "simd128", not(target_feature = "relaxed-simd")))]
            Isa::Simd128 => &wasm::exact::QUANTIZED,
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
            Isa::RelaxedSimd => "relaxed-simd",
            Isa::Simd128 => "simd128",
            Isa::Plain => "plain",
        })
    }
}
