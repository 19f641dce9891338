//! The kernels' sources and names, and their compilation by NVRTC.

pub(crate) mod args;
pub(crate) mod cache;
#[cfg(test)]
mod headers;
mod nvrtc;

pub use nvrtc::{CompiledKernels, ResourceUsage, compile, nvrtc_capabilities, prebuild};
pub(crate) use nvrtc::{image_key, prebuilt_path};

/// The source files, in the order in which they are concatenated for NVRTC. The build of the kernels for a CPU includes
/// them in the same order.
const SOURCE_FILES: [(&str, &str); 14] = [
    ("device.cuh", include_str!("../../kernels/device.cuh")),
    ("constants.cuh", include_str!("../../kernels/constants.cuh")),
    ("args.cuh", include_str!("../../kernels/args.cuh")),
    ("arithmetic.cuh", include_str!("../../kernels/arithmetic.cuh")),
    ("tile.cuh", include_str!("../../kernels/tile.cuh")),
    ("primitives.cu", include_str!("../../kernels/primitives.cu")),
    ("forward_step.cu", include_str!("../../kernels/forward_step.cu")),
    ("backward_step.cu", include_str!("../../kernels/backward_step.cu")),
    ("tf32.cu", include_str!("../../kernels/tf32.cu")),
    ("sequence.cuh", include_str!("../../kernels/sequence.cuh")),
    ("persistent_forward.cu", include_str!("../../kernels/persistent_forward.cu")),
    ("persistent_backward.cu", include_str!("../../kernels/persistent_backward.cu")),
    ("persistent_projected.cu", include_str!("../../kernels/persistent_projected.cu")),
    ("cluster.cu", include_str!("../../kernels/cluster.cu")),
];

/// The names of all kernels, in no particular order.
pub(crate) const KERNEL_NAMES: [&str; 36] = [
    "map",
    "mul_add",
    "select_between",
    "copy",
    "gemm_small",
    "gemm_medium",
    "gemm_large",
    "quantize_rows",
    "gemm_quantized",
    "column_sums",
    "forward_step_small",
    "forward_step_medium",
    "forward_projection_small",
    "forward_projection_medium",
    "backward_gate_products",
    "backward_step_combine",
    "backward_step_small",
    "backward_step_medium",
    "backward_state_combine",
    "backward_state_small",
    "backward_state_medium",
    "backward_units_small",
    "backward_units_medium",
    "tf32_gemm_narrow",
    "tf32_gemm_wide",
    "tf32_forward_step",
    "tf32_forward_projection",
    "tf32_backward_step",
    "tf32_backward_state",
    "tf32_backward_units",
    "persistent_forward",
    "persistent_backward",
    "persistent_projected_forward",
    "persistent_projected_backward",
    "cluster_forward",
    "cluster_backward",
];

/// The oldest architecture for which the kernels on tensor cores are compiled.
pub(crate) const OLDEST_TF32_ARCHITECTURE: u32 = 80;

/// Whether a kernel uses thread block clusters. Such kernels are compiled for sm_90 and later only.
pub(crate) fn uses_clusters(kernel: &str) -> bool {
    kernel.starts_with("cluster_")
}

/// Whether a kernel runs all steps in one cooperative launch.
pub(crate) fn is_persistent(kernel: &str) -> bool {
    kernel.starts_with("persistent_")
}

/// Whether a compiled image may lack a kernel, because it is compiled for newer architectures only.
pub(crate) fn is_optional(kernel: &str) -> bool {
    uses_clusters(kernel) || kernel.starts_with("tf32_")
}

/// Returns all source files, concatenated.
pub(crate) fn source() -> String {
    SOURCE_FILES.iter().map(|(name, text)| format!("#line 1 \"{name}\"\n{text}\n")).collect()
}

#[test]
fn names_lists_every_kernel_of_the_sources() {
    let source = source();
    let defined_names = source.match_indices("\nKERNEL(").map(|(at, found)| {
        let after_kernel_macro = &source[at + found.len()..];
        after_kernel_macro[..after_kernel_macro.find(',').expect("a kernel has arguments")].to_owned()
    });
    let mut defined_names: Vec<_> = defined_names.collect();
    let mut listed_names = KERNEL_NAMES.map(str::to_owned).to_vec();
    defined_names.sort();
    listed_names.sort();
    assert_eq!(defined_names, listed_names);
}
