//! Recording dispatches and submitting them together.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker},
};

use lstm_core::Result;

use super::{device_error, errors::error_text, gpu::Gpu};
use crate::{
    memory::{DeviceMemory, lock},
    shader::{BoundKernel, Kernel, Parameters, layout_entry},
};

/// Distance in bytes between the parameters of two dispatches: the offset alignment that WebGPU guarantees.
pub(super) const PARAMETERS_STRIDE: usize = 256;
/// Largest number of dispatches in a submission.
pub(super) const MAX_PENDING_DISPATCHES: usize = 4096;

/// Work that is recorded but not submitted.
#[derive(Default)]
pub(super) struct PendingWork {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    /// Parameters of the recorded dispatches, at multiples of [`PARAMETERS_STRIDE`].
    parameters: Vec<u8>,
}

/// Uniform buffer for the parameters of all dispatches of a submission.
pub(super) struct ParametersBuffer {
    buffer: wgpu::Buffer,
    pub(super) layout: wgpu::BindGroupLayout,
    bind_group: wgpu::BindGroup,
}

impl ParametersBuffer {
    pub(super) fn new(device: &wgpu::Device) -> Self {
        let buffer = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lstm parameters"),
            size: (PARAMETERS_STRIDE * MAX_PENDING_DISPATCHES) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("lstm parameters"),
            entries: &[layout_entry(
                0,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
            )],
        });
        let bind_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("lstm parameters"),
            layout: &layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &buffer,
                    offset: 0,
                    size: std::num::NonZeroU64::new(PARAMETERS_STRIDE as u64),
                }),
            }],
        });
        ParametersBuffer { buffer, layout, bind_group }
    }
}

impl Gpu {
    /// Records a dispatch of `workgroups` workgroups.
    pub(crate) fn dispatch<P: Parameters>(
        &self,
        op: &'static str,
        kernel: &BoundKernel,
        parameters: &P,
        workgroups: usize,
    ) -> Result<()> {
        if kernel.pipeline.parameters != P::DEFINITION {
            return Err(device_error(op, "the parameters belong to another kernel"));
        }
        let max_per_dimension = self.max_workgroups_per_dimension;
        let (x, y) = workgroup_grid(workgroups, max_per_dimension).ok_or_else(|| {
            device_error(
                op,
                format!("a dispatch of {workgroups} workgroups exceeds the limit of {max_per_dimension} squared"),
            )
        })?;
        let mut pending = lock(&self.pending);
        if pending.parameters.len() == PARAMETERS_STRIDE * MAX_PENDING_DISPATCHES {
            self.submit_pending(op, &mut pending)?;
        }
        let offset = pending.parameters.len();
        pending.parameters.extend_from_slice(bytemuck::bytes_of(parameters));
        pending.parameters.resize(offset + PARAMETERS_STRIDE, 0);
        self.ensure_encoder(op, &mut pending)?;
        let PendingWork { encoder: Some(encoder), pass, .. } = &mut *pending else {
            return Err(device_error(op, "found no command encoder"));
        };
        let pass = pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&kernel.pipeline.pipeline);
        pass.set_bind_group(0, &kernel.bind_group, &[]);
        pass.set_bind_group(1, &self.parameters.bind_group, &[offset as u32]);
        pass.dispatch_workgroups(x, y, 1);
        Ok(())
    }

    /// Returns the command encoder, and creates it if there is none.
    fn ensure_encoder<'a>(
        &self,
        op: &'static str,
        pending: &'a mut PendingWork,
    ) -> Result<&'a mut wgpu::CommandEncoder> {
        let encoder = match pending.encoder.take() {
            Some(encoder) => encoder,
            None => self.with_error_scopes(op, || self.device.create_command_encoder(&Default::default()))?,
        };
        Ok(pending.encoder.insert(encoder))
    }

    /// Binds a kernel to buffers and records its dispatch.
    pub(crate) fn bind_and_dispatch(
        &self,
        op: &'static str,
        kernel: Kernel,
        buffers: &[&Arc<DeviceMemory>],
        parameters: &impl Parameters,
        workgroups: usize,
    ) -> Result<()> {
        self.dispatch(op, &self.bind(op, kernel, buffers)?, parameters, workgroups)
    }

    /// Submits all recorded work.
    pub(crate) fn submit(&self, op: &'static str) -> Result<()> {
        self.submit_pending(op, &mut lock(&self.pending))
    }

    /// Records a copy from `source`, starting at `offset` bytes, to `staging`. Then submits all recorded work.
    pub(crate) fn submit_copy(
        &self,
        op: &'static str,
        source: &wgpu::Buffer,
        offset: u64,
        staging: &wgpu::Buffer,
        bytes: u64,
    ) -> Result<()> {
        let mut pending = lock(&self.pending);
        pending.pass = None;
        let encoder = self.ensure_encoder(op, &mut pending)?;
        encoder.copy_buffer_to_buffer(source, offset, staging, 0, bytes);
        self.submit_pending(op, &mut pending)
    }

    fn submit_pending(&self, op: &'static str, pending: &mut PendingWork) -> Result<()> {
        let PendingWork { encoder, pass, parameters } = std::mem::take(pending);
        let submit_result = self.with_error_scopes(op, || {
            drop(pass);
            if let Some(encoder) = encoder {
                self.queue.write_buffer(&self.parameters.buffer, 0, &parameters);
                self.queue.submit([encoder.finish()]);
            }
        });
        // The submission also contains work of other calls, which is lost now.
        submit_result.map_err(|error| self.poison(error))?;
        self.pool.note_submission();
        let mut deferred_errors = lock(&self.deferred_errors);
        let mut first_error = None;
        deferred_errors.retain_mut(|(op, error)| match error.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => true,
            Poll::Ready(error) => {
                first_error = first_error.take().or_else(|| error.map(|error| device_error(op, error_text(&error))));
                false
            }
        });
        first_error.map_or(Ok(()), |error| Err(self.poison(error)))
    }

    /// Waits for the deferred errors and returns the first.
    pub(crate) async fn check_deferred_errors(&self) -> Result<()> {
        let deferred_errors = std::mem::take(&mut *lock(&self.deferred_errors));
        for (op, error) in deferred_errors {
            if let Some(error) = error.await {
                return Err(self.poison(device_error(op, error_text(&error))));
            }
        }
        Ok(())
    }
}

/// Arranges at least `workgroups` workgroups in a grid of at most `max_per_dimension` by `max_per_dimension`. `None` if
/// they do not fit.
fn workgroup_grid(workgroups: usize, max_per_dimension: u32) -> Option<(u32, u32)> {
    let x = workgroups.clamp(1, max_per_dimension as usize);
    let y = workgroups.div_ceil(x);
    (y <= max_per_dimension as usize).then_some((x as u32, y.max(1) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroup_grid_covers_all_workgroups_within_the_limit() {
        for (workgroups, max_per_dimension, expected) in [
            (0, 8, Some((1, 1))),
            (8, 8, Some((8, 1))),
            (9, 8, Some((8, 2))),
            (64, 8, Some((8, 8))),
            (65, 8, None),
            (1 << 20, 65_535, Some((65_535, 17))),
        ] {
            assert_eq!(
                workgroup_grid(workgroups, max_per_dimension),
                expected,
                "{workgroups} workgroups, limit {max_per_dimension}"
            );
        }
    }
}
