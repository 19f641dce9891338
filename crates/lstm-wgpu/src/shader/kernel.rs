//! The kernels, and the constants that they are compiled for.

use lstm_core::{CellKind, LayerSpec};

use super::parameters::{self, ParameterDefinition, Parameters};

/// An operation on each element of a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Unary {
    Snap,
    Sigmoid,
    Tanh,
    Clip,
}

/// How the matrix product of a step is divided among workgroups and invocations; see `step_product.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct StepTiling {
    /// Number of hidden units per workgroup.
    pub(crate) units: u32,
    /// Number of invocations that compute a hidden unit together.
    pub(crate) lanes: u32,
    /// Number of sequences per workgroup.
    pub(crate) rows: u32,
}

/// Options of a layer that are compiled into its kernels as constants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct KernelOptions {
    /// Value of `CELL` in the shaders: 0 without peepholes, 1 with dense ones, 2 with diagonal ones.
    pub(super) cell_code: u32,
    pub(super) coupled: bool,
    pub(super) has_clip: bool,
    pub(super) has_projection: bool,
}

impl KernelOptions {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        KernelOptions {
            cell_code: match spec.cell {
                CellKind::Fused | CellKind::Unfused => 0,
                CellKind::PeepholeDense => 1,
                CellKind::PeepholeDiagonal => 2,
            },
            coupled: spec.coupled,
            has_clip: spec.clip.is_some(),
            has_projection: spec.proj_size.is_some(),
        }
    }
}

/// A kernel with its constants. Each distinct value is compiled to a separate pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kernel {
    FloatBehavior,
    FmaSamples,
    Unary(Unary),
    MulAdd,
    SelectBetween,
    Copy,
    GemmDirect,
    GemmBlocked,
    GemmTiled,
    /// Quantizes rows to integers of at most this magnitude.
    QuantizeRows {
        max: i32,
    },
    GemmQuantized,
    GemmQuantizedBlocked,
    Forward {
        options: KernelOptions,
        train: bool,
        tiling: StepTiling,
    },
    Project,
    Backward {
        options: KernelOptions,
        tiling: StepTiling,
    },
    StateGradient(StepTiling),
}

/// For each storage buffer of a kernel, whether the kernel writes it.
type BufferWrites = &'static [bool];

impl Kernel {
    /// Source files of the kernel, without those of the arithmetic, and a flag for each storage buffer that it writes.
    fn files_and_buffer_writes(self) -> (&'static [&'static str], BufferWrites) {
        match self {
            Kernel::FloatBehavior => (&[include_str!("../../shaders/float_behavior.wgsl")], &[false, true]),
            Kernel::FmaSamples => (&[include_str!("../../shaders/fma_samples.wgsl")], &[false, true]),
            Kernel::Unary(_) => (&[include_str!("../../shaders/unary.wgsl")], &[false, true]),
            Kernel::MulAdd => (&[include_str!("../../shaders/mul_add.wgsl")], &[false, false, false, true]),
            Kernel::SelectBetween => {
                (&[include_str!("../../shaders/select_between.wgsl")], &[false, false, false, false, true])
            }
            Kernel::Copy => (&[include_str!("../../shaders/copy.wgsl")], &[false, true]),
            Kernel::GemmDirect => (
                &[include_str!("../../shaders/gemm_common.wgsl"), include_str!("../../shaders/gemm_direct.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::GemmBlocked => (
                &[include_str!("../../shaders/gemm_common.wgsl"), include_str!("../../shaders/gemm_blocked.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::GemmTiled => (
                &[include_str!("../../shaders/gemm_common.wgsl"), include_str!("../../shaders/gemm_tiled.wgsl")],
                &[false, false, false, true],
            ),
            Kernel::QuantizeRows { .. } => (&[include_str!("../../shaders/quantize_rows.wgsl")], &[false, true, true]),
            Kernel::GemmQuantized => {
                (&[include_str!("../../shaders/gemm_quantized.wgsl")], &[false, false, false, false, false, true])
            }
            Kernel::GemmQuantizedBlocked => (
                &[include_str!("../../shaders/gemm_quantized_blocked.wgsl")],
                &[false, false, false, false, false, true],
            ),
            Kernel::Forward { .. } => (
                &[include_str!("../../shaders/step_product.wgsl"), include_str!("../../shaders/forward.wgsl")],
                &[true, false, true, true, false, false],
            ),
            Kernel::Project => (&[include_str!("../../shaders/project.wgsl")], &[false, false, true, true, false]),
            Kernel::Backward { .. } => (
                &[
                    include_str!("../../shaders/step_product.wgsl"),
                    include_str!("../../shaders/backward_common.wgsl"),
                    include_str!("../../shaders/backward.wgsl"),
                ],
                &[false, false, false, false, true, true, false, false],
            ),
            Kernel::StateGradient(_) => (
                &[
                    include_str!("../../shaders/step_product.wgsl"),
                    include_str!("../../shaders/backward_common.wgsl"),
                    include_str!("../../shaders/state_gradient.wgsl"),
                ],
                &[false, false, false, true, true, false],
            ),
        }
    }

    /// Source files of the kernel. They are appended to those of the arithmetic and the parameters.
    pub(super) fn source_files(self) -> &'static [&'static str] {
        self.files_and_buffer_writes().0
    }

    /// For each storage buffer, in the order of the bindings, whether the kernel writes it.
    pub(super) fn buffer_writes(self) -> BufferWrites {
        self.files_and_buffer_writes().1
    }

    /// Definition of the kernel's parameters.
    pub(super) fn parameters(self) -> ParameterDefinition {
        match self {
            Kernel::FloatBehavior | Kernel::FmaSamples => parameters::ProbeParameters::DEFINITION,
            Kernel::Unary(_) => parameters::UnaryParameters::DEFINITION,
            Kernel::MulAdd => parameters::MulAddParameters::DEFINITION,
            Kernel::SelectBetween => parameters::SelectBetweenParameters::DEFINITION,
            Kernel::Copy => parameters::CopyParameters::DEFINITION,
            Kernel::GemmDirect | Kernel::GemmBlocked | Kernel::GemmTiled => parameters::GemmParameters::DEFINITION,
            Kernel::QuantizeRows { .. } => parameters::QuantizeRowsParameters::DEFINITION,
            Kernel::GemmQuantized | Kernel::GemmQuantizedBlocked => parameters::GemmQuantizedParameters::DEFINITION,
            Kernel::Forward { .. } => parameters::ForwardParameters::DEFINITION,
            Kernel::Project => parameters::ProjectParameters::DEFINITION,
            Kernel::Backward { .. } | Kernel::StateGradient(_) => parameters::BackwardParameters::DEFINITION,
        }
    }

    /// Number of invocations in a workgroup.
    pub(crate) fn workgroup_size(self) -> u32 {
        match self {
            Kernel::FloatBehavior => 1,
            Kernel::GemmDirect
            | Kernel::GemmBlocked
            | Kernel::QuantizeRows { .. }
            | Kernel::GemmQuantized
            | Kernel::GemmQuantizedBlocked
            | Kernel::Project
            | Kernel::FmaSamples => 64,
            Kernel::Forward { tiling, .. } | Kernel::Backward { tiling, .. } | Kernel::StateGradient(tiling) => {
                tiling.units * tiling.lanes
            }
            _ => 256,
        }
    }
}
