//! The device as the backend sees it: memory, kernels, and work that is recorded and submitted together.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
};

use lstm_core::{Error, MatrixShape, Result};

use crate::{
    errors::{Late, Scopes, describe, device_error, signal},
    limits::check_limits,
    parameters::Parameters,
    pipeline::{Bound, Pipeline, entry},
    pool::{Pool, lock},
    shader::{Kernel, Mode},
    tensor::{Memory, Tensor},
};

/// Usage of all tensors' buffers.
pub(crate) const USAGE: wgpu::BufferUsages =
    wgpu::BufferUsages::STORAGE.union(wgpu::BufferUsages::COPY_SRC).union(wgpu::BufferUsages::COPY_DST);

/// Bytes from one dispatch's parameters to the next: the alignment that WebGPU guarantees.
pub(crate) const SLOT: usize = 256;
/// Dispatches of a submission at most.
pub(crate) const SLOTS: usize = 4096;

/// Work that was recorded and not submitted.
#[derive(Default)]
struct Pending {
    encoder: Option<wgpu::CommandEncoder>,
    pass: Option<wgpu::ComputePass<'static>>,
    parameters: Vec<u8>,
}

/// A device and what is kept on it.
pub(crate) struct Gpu {
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    pub(crate) info: wgpu::AdapterInfo,
    /// Whether to use the kernels for adapters that are a CPU.
    pub(crate) is_cpu: bool,
    pub(crate) mode: Mode,
    /// Bytes of the largest buffer that a kernel can see.
    max_bytes: u64,
    max_groups: u32,
    pub(crate) pipelines: Mutex<HashMap<Kernel, Arc<Pipeline>>>,
    pending: Mutex<Pending>,
    pub(crate) pool: Arc<Pool>,
    parameters: wgpu::Buffer,
    pub(crate) parameters_layout: wgpu::BindGroupLayout,
    parameters_group: wgpu::BindGroup,
    /// Why the device is gone, if it is.
    lost: Arc<Mutex<Option<String>>>,
    /// Why recorded work was lost, if it was. Tensors that it should have written hold anything: nothing is to be read.
    spoiled: Mutex<Option<String>>,
    /// Errors that the platform reports later than the call that caused them, as browsers do.
    late: Mutex<Vec<Late>>,
}

impl Gpu {
    pub(crate) fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        info: wgpu::AdapterInfo,
        is_cpu: bool,
        lost: Arc<Mutex<Option<String>>>,
        guards: bool,
        mode: Mode,
    ) -> Result<Self> {
        let limits = device.limits();
        check_limits(&limits).map_err(|why| device_error("open", format!("{}: {why}", info.name)))?;
        let scopes = Scopes::open(&device);
        let parameters = device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lstm parameters"),
            size: (SLOT * SLOTS) as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        });
        let parameters_layout = device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
            label: Some("lstm parameters"),
            entries: &[entry(
                0,
                wgpu::BindingType::Buffer {
                    ty: wgpu::BufferBindingType::Uniform,
                    has_dynamic_offset: true,
                    min_binding_size: None,
                },
            )],
        });
        let parameters_group = device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("lstm parameters"),
            layout: &parameters_layout,
            entries: &[wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &parameters,
                    offset: 0,
                    size: std::num::NonZeroU64::new(SLOT as u64),
                }),
            }],
        });
        let late = scopes.close("open")?;
        Ok(Gpu {
            // Kernels count elements in 32 bits.
            max_bytes: limits.max_storage_buffer_binding_size.min(limits.max_buffer_size).min(1 << 32),
            max_groups: limits.max_compute_workgroups_per_dimension,
            device,
            queue,
            info,
            is_cpu,
            mode,
            pipelines: Mutex::default(),
            pending: Mutex::default(),
            pool: Arc::new(Pool::new(guards)),
            parameters,
            parameters_layout,
            parameters_group,
            lost,
            spoiled: Mutex::default(),
            late: Mutex::new(late),
        })
    }

    /// Bytes of the largest buffer that a kernel can see.
    pub(crate) fn max_bytes(&self) -> u64 {
        self.max_bytes
    }

    /// Runs `work` so that errors which it raises on the device come back from here.
    pub(crate) fn scoped<T>(&self, op: &'static str, work: impl FnOnce() -> T) -> Result<T> {
        self.check_lost(op)?;
        let scopes = Scopes::open(&self.device);
        let value = work();
        lock(&self.late).extend(scopes.close(op)?);
        self.check_lost(op).map(|()| value)
    }

    fn check_lost(&self, op: &'static str) -> Result<()> {
        if let Some(why) = &*lock(&self.lost) {
            return Err(device_error(op, format!("the device is lost: {why}")));
        }
        match &*lock(&self.spoiled) {
            Some(why) => Err(device_error(op, format!("earlier work was lost, open the device again: {why}"))),
            None => Ok(()),
        }
    }

    /// From now on, everything is an error.
    fn spoil(&self, error: Error) -> Error {
        lock(&self.spoiled).get_or_insert_with(|| error.to_string());
        error
    }

    /// Bytes of `len` floats, if a kernel can see so many.
    pub(crate) fn checked_bytes(&self, op: &'static str, len: usize) -> Result<u64> {
        match (len as u64).checked_mul(4).filter(|&bytes| bytes <= self.max_bytes) {
            Some(bytes) => Ok(bytes),
            None => Err(device_error(
                op,
                format!(
                    "{len} elements do not fit in memory: the largest buffer on {} holds {} bytes",
                    self.info.name, self.max_bytes
                ),
            )),
        }
    }

    /// A buffer of another device would spoil all work that is recorded with it.
    pub(crate) fn check_own(&self, op: &'static str, memory: &Memory) -> Result<()> {
        match Arc::ptr_eq(&memory.pool, &self.pool) {
            true => Ok(()),
            false => {
                Err(device_error(op, "a tensor or layer of another `Wgpu`; it can be used with the one that made it"))
            }
        }
    }

    /// The size of a buffer for so many bytes, which it may hold.
    fn size_class(&self, bytes: u64) -> u64 {
        Pool::size_class(bytes).min(self.max_bytes & !3)
    }

    /// A buffer with anything in it.
    pub(crate) fn allocate(&self, op: &'static str, len: usize) -> Result<Arc<Memory>> {
        if self.has_guards() {
            return self.guarded(op, len, &[]);
        }
        let bytes = self.checked_bytes(op, len)?;
        let size = self.size_class(bytes);
        let buffer = match self.pool.take(size, USAGE, false) {
            Some(buffer) => buffer,
            None => self.scoped(op, || self.create(size, USAGE))?,
        };
        Ok(Arc::new(Memory { buffer, bytes, op, pool: self.pool.clone() }))
    }

    pub(crate) fn create(&self, size: u64, usage: wgpu::BufferUsages) -> wgpu::Buffer {
        self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("lstm"),
            size,
            usage,
            mapped_at_creation: false,
        })
    }

    /// A tensor with anything in it.
    pub(crate) fn tensor(&self, op: &'static str, shape: MatrixShape) -> Result<Tensor> {
        Ok(Tensor { shape, memory: self.allocate(op, shape.len())? })
    }

    /// Copies words to the device.
    pub(crate) fn upload(&self, op: &'static str, data: &[u8]) -> Result<Arc<Memory>> {
        if self.has_guards() {
            return self.guarded(op, data.len() / 4, data);
        }
        let bytes = self.checked_bytes(op, data.len() / 4)?;
        let size = self.size_class(bytes);
        // A write overtakes recorded work: only a buffer that none of it uses will do.
        let buffer = self.pool.take(size, USAGE, true);
        self.scoped(op, || {
            let buffer = buffer.unwrap_or_else(|| self.create(size, USAGE));
            self.queue.write_buffer(&buffer, 0, data);
            Arc::new(Memory { buffer, bytes, op, pool: self.pool.clone() })
        })
    }

    /// Writes words to memory that no unsubmitted work uses.
    pub(crate) fn write(&self, op: &'static str, to: &Memory, data: &[u8]) -> Result<()> {
        self.check_own(op, to)?;
        self.scoped(op, || self.queue.write_buffer(&to.buffer, 0, data))
    }

    /// Records `groups` workgroups of a kernel.
    pub(crate) fn dispatch<P: Parameters>(
        &self,
        op: &'static str,
        bound: &Bound,
        parameters: &P,
        groups: usize,
    ) -> Result<()> {
        if bound.pipeline.parameters != P::DEFINITION {
            return Err(device_error(op, "parameters of another kernel"));
        }
        let (x, y) = grid(groups, self.max_groups).ok_or_else(|| {
            device_error(op, format!("{groups} workgroups are more than {} squared", self.max_groups))
        })?;
        let mut pending = lock(&self.pending);
        if pending.parameters.len() == SLOT * SLOTS {
            self.submit_pending(op, &mut pending)?;
        }
        let offset = pending.parameters.len();
        pending.parameters.extend_from_slice(bytemuck::bytes_of(parameters));
        pending.parameters.resize(offset + SLOT, 0);
        self.encoder(op, &mut pending)?;
        let Pending { encoder: Some(encoder), pass, .. } = &mut *pending else {
            return Err(device_error(op, "no command encoder"));
        };
        let pass = pass.get_or_insert_with(|| encoder.begin_compute_pass(&Default::default()).forget_lifetime());
        pass.set_pipeline(&bound.pipeline.pipeline);
        pass.set_bind_group(0, &bound.group, &[]);
        pass.set_bind_group(1, &self.parameters_group, &[offset as u32]);
        pass.dispatch_workgroups(x, y, 1);
        Ok(())
    }

    /// Sees to it that there is one.
    fn encoder<'a>(&self, op: &'static str, pending: &'a mut Pending) -> Result<&'a mut wgpu::CommandEncoder> {
        let encoder = match pending.encoder.take() {
            Some(encoder) => encoder,
            None => self.scoped(op, || self.device.create_command_encoder(&Default::default()))?,
        };
        Ok(pending.encoder.insert(encoder))
    }

    /// Binds and records in one.
    pub(crate) fn run(
        &self,
        op: &'static str,
        kernel: Kernel,
        buffers: &[&Arc<Memory>],
        parameters: &impl Parameters,
        groups: usize,
    ) -> Result<()> {
        self.dispatch(op, &self.bind(op, kernel, buffers)?, parameters, groups)
    }

    /// Hands recorded work over.
    pub(crate) fn submit(&self, op: &'static str) -> Result<()> {
        self.submit_pending(op, &mut lock(&self.pending))
    }

    fn submit_pending(&self, op: &'static str, pending: &mut Pending) -> Result<()> {
        let Pending { encoder, pass, parameters } = std::mem::take(pending);
        let submitted = self.scoped(op, || {
            drop(pass);
            if let Some(encoder) = encoder {
                self.queue.write_buffer(&self.parameters, 0, &parameters);
                self.queue.submit([encoder.finish()]);
            }
        });
        // Other calls' work went with it.
        submitted.map_err(|error| self.spoil(error))?;
        self.pool.submitted();
        let mut late = lock(&self.late);
        let mut failed = None;
        late.retain_mut(|(op, error)| match error.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Pending => true,
            Poll::Ready(error) => {
                failed = failed.take().or_else(|| error.map(|error| device_error(op, describe(&error))));
                false
            }
        });
        failed.map_or(Ok(()), |error| Err(self.spoil(error)))
    }

    /// Waits for `memory` and copies it to `out`, from an element on.
    pub(crate) async fn download(&self, op: &'static str, memory: &Memory, start: usize, out: &mut [u8]) -> Result<()> {
        self.check_own(op, memory)?;
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let bytes = out.len() as u64;
        let size = self.size_class(bytes);
        let staging = match self.pool.take(size, usage, false) {
            Some(buffer) => buffer,
            None => self.scoped(op, || self.create(size, usage))?,
        };
        {
            let mut pending = lock(&self.pending);
            pending.pass = None;
            let encoder = self.encoder(op, &mut pending)?;
            encoder.copy_buffer_to_buffer(&memory.buffer, 4 * start as u64, &staging, 0, bytes);
            self.submit_pending(op, &mut pending)?;
        }
        let (mapped, signal) = signal();
        self.scoped(op, || staging.slice(..bytes).map_async(wgpu::MapMode::Read, signal))?;
        // In a browser this does nothing, and the event loop completes the mapping.
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        self.check_lost(op)?;
        polled.map_err(|e| self.spoil(device_error(op, e)))?;
        mapped.await.map_err(|e| self.spoil(device_error(op, e)))?;
        let view = staging.slice(..bytes).get_mapped_range().map_err(|e| device_error(op, e))?;
        out.copy_from_slice(&view);
        drop(view);
        staging.unmap();
        self.pool.give(staging);
        self.late_errors().await
    }

    /// Errors that came after their calls.
    async fn late_errors(&self) -> Result<()> {
        let late = std::mem::take(&mut *lock(&self.late));
        for (op, error) in late {
            if let Some(error) = error.await {
                return Err(self.spoil(device_error(op, describe(&error))));
            }
        }
        Ok(())
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Gpu({}, {:?})", self.info.name, self.mode)
    }
}

/// Workgroups in two dimensions, at least as many as asked for.
fn grid(groups: usize, max: u32) -> Option<(u32, u32)> {
    let x = groups.clamp(1, max as usize);
    let y = groups.div_ceil(x);
    (y <= max as usize).then_some((x as u32, y.max(1) as u32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_hold_every_workgroup_within_the_limit() {
        for (groups, max, want) in [
            (0, 8, Some((1, 1))),
            (8, 8, Some((8, 1))),
            (9, 8, Some((8, 2))),
            (64, 8, Some((8, 8))),
            (65, 8, None),
            (1 << 20, 65_535, Some((65_535, 17))),
        ] {
            assert_eq!(grid(groups, max), want, "{groups} of at most {max}");
        }
    }
}
