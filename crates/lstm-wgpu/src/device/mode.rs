//! How shaders compute on an adapter: with its own `fma` or an emulated one, and whether they forbid contraction of a
//! product and a sum into one `fma`.

use std::fmt;

/// How a shader computes a fused multiply-add.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fma {
    /// The function `fma` of WGSL, as the adapter implements it.
    Native,
    /// An emulation with operations on f64.
    EmulatedInF64,
    /// An emulation with operations on 32-bit integers.
    EmulatedInIntegers,
}

/// How the kernels of an adapter are compiled so that their results are bit-exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mode {
    /// How fused multiply-adds are computed.
    pub fma: Fma,
    /// Whether shaders are passed to the driver as SPIR-V that forbids contraction and reassociation.
    pub no_contraction: bool,
}

/// WGSL without SPIR-V decorations, with `fma` as the adapter implements it.
pub(crate) const PLAIN_MODE: Mode = Mode { fma: Fma::Native, no_contraction: false };

/// Modes that an adapter with these features supports, fastest first.
pub(crate) fn supported_modes(features: wgpu::Features, backend: wgpu::Backend) -> Vec<Mode> {
    let f64_supported = features.contains(wgpu::Features::SHADER_F64 | wgpu::Features::SHADER_INT64);
    let spirv_supported = backend == wgpu::Backend::Vulkan && features.contains(wgpu::Features::PASSTHROUGH_SHADERS);
    let fma_support = [(Fma::Native, true), (Fma::EmulatedInF64, f64_supported), (Fma::EmulatedInIntegers, true)];
    let modes_with_fma = |fma| [Mode { fma, no_contraction: false }, Mode { fma, no_contraction: true }];
    let modes = fma_support.into_iter().filter(|(_, supported)| *supported).flat_map(|(fma, _)| modes_with_fma(fma));
    modes.filter(|mode| spirv_supported || !mode.no_contraction).collect()
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.fma {
            Fma::Native => "native fma",
            Fma::EmulatedInF64 => "fma emulated in f64",
            Fma::EmulatedInIntegers => "fma emulated in integers",
        })?;
        f.write_str(if self.no_contraction { ", NoContraction" } else { "" })
    }
}
