//! What the kernels count on, and whether a device has it.

use crate::gpu::{SLOT, SLOTS};

/// Invocations of a workgroup, and bytes of its memory, that every adapter allows.
pub(crate) const INVOCATIONS: usize = 256;
pub(crate) const WORKGROUP_BYTES: usize = 16_384;

/// What every kernel counts on, which is no more than WebGPU guarantees.
pub(crate) fn check_limits(limits: &wgpu::Limits) -> std::result::Result<(), String> {
    let needed: [(&str, u64, u64); 7] = [
        ("max_storage_buffers_per_shader_stage", limits.max_storage_buffers_per_shader_stage.into(), 8),
        (
            "max_dynamic_uniform_buffers_per_pipeline_layout",
            limits.max_dynamic_uniform_buffers_per_pipeline_layout.into(),
            1,
        ),
        (
            "max_compute_workgroup_storage_size",
            limits.max_compute_workgroup_storage_size.into(),
            WORKGROUP_BYTES as u64,
        ),
        (
            "max_compute_invocations_per_workgroup",
            limits.max_compute_invocations_per_workgroup.into(),
            INVOCATIONS as u64,
        ),
        ("max_compute_workgroup_size_x", limits.max_compute_workgroup_size_x.into(), INVOCATIONS as u64),
        ("max_compute_workgroups_per_dimension", limits.max_compute_workgroups_per_dimension.into(), 1),
        ("max_buffer_size", limits.max_buffer_size, (SLOT * SLOTS) as u64),
    ];
    match needed.into_iter().find(|(_, have, need)| have < need) {
        Some((name, have, need)) => Err(format!("the limit {name} is {have}, and {need} are needed")),
        None => Ok(()),
    }
}
