//! Instruction sets: which this machine has, and each one's vector type and kernels. A file's kernels can be reached only
//! through [`Isa::kernels`], of a value that [`Isa::available`] gave.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;

use std::fmt;

use crate::kernels::Kernels;

/// An instruction set that kernels exist for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Isa {
    /// 16 lanes: AVX-512 F, BW, DQ, VL.
    Avx512,
    /// 8 lanes: AVX2 and FMA.
    Avx2,
    /// 4 lanes, on every 64-bit Arm.
    Neon,
    /// One lane of plain Rust, on every machine: the slow definition.
    Plain,
}

impl Isa {
    /// All instruction sets, fastest first.
    pub const ALL: [Isa; 4] = [Isa::Avx512, Isa::Avx2, Isa::Neon, Isa::Plain];

    /// Those that this machine has, fastest first; never empty.
    pub fn available() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.kernels().is_some()).collect()
    }

    /// The kernels, where this machine can run them.
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
