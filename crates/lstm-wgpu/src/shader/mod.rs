//! The kernels: their WGSL sources, parameters, SPIR-V and pipelines.

mod kernel;
mod parameters;
mod pipeline;
mod source;
#[cfg(not(target_arch = "wasm32"))]
mod spirv;
#[cfg(test)]
mod tests;

pub(crate) use kernel::{Kernel, KernelOptions, StepTiling, Unary};
pub(crate) use parameters::{
    BackwardParameters, CopyParameters, ForwardParameters, GemmParameters, GemmQuantizedParameters, MulAddParameters,
    OPERAND_ABSENT, OPERAND_FULL, OPERAND_ROW, Parameters, ProbeParameters, ProjectParameters, QuantizeRowsParameters,
    SelectBetweenParameters, UnaryParameters,
};
pub(crate) use pipeline::{BoundKernel, Pipeline, layout_entry};
