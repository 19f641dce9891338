//! Device limits that the kernels require.

use super::queue::{MAX_PENDING_DISPATCHES, PARAMETERS_STRIDE};

/// Largest number of invocations in a workgroup. Every WebGPU adapter allows it.
pub(crate) const MAX_INVOCATIONS: usize = 256;
/// Largest number of bytes of workgroup memory. Every WebGPU adapter allows it.
pub(crate) const MAX_WORKGROUP_BYTES: usize = 16_384;

/// Checks the limits that every kernel requires. They are at most what WebGPU guarantees.
///
/// # Errors
/// The first limit that is too low, with its value and the required value.
pub(crate) fn check_limits(limits: &wgpu::Limits) -> std::result::Result<(), String> {
    let required_limits: [(&str, u64, u64); 7] = [
        ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into(), 8),
        (
            "max_dynamic_uniform_buffers_per_pipeline_layout",
            limits.max_dynamic_uniform_buffers_per_pipeline_layout.into(),
            1,
        ),
        (
            "max_compute_workgroup_storage_size",
            limits.max_compute_workgroup_storage_size.into(),
            MAX_WORKGROUP_BYTES as u64,
        ),
        (
            "max_compute_invocations_per_workgroup",
            limits.max_compute_invocations_per_workgroup.into(),
            MAX_INVOCATIONS as u64,
        ),
        ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x.into(), MAX_INVOCATIONS as u64),
        ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into(), 1),
        ("max_buffer_size", limits.max_buffer_size, (PARAMETERS_STRIDE * MAX_PENDING_DISPATCHES) as u64),
    ];
    match required_limits.into_iter().find(|(_, actual, minimum)| actual < minimum) {
        Some((name, actual, minimum)) => Err(format!("limit {name} is {actual}, but at least {minimum} is required")),
        None => Ok(()),
    }
}
