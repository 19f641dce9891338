//! Compiling kernels and binding them to buffers.

use std::sync::Arc;

use lstm_core::Result;

#[cfg(not(target_arch = "wasm32"))]
use super::spirv::compile_without_contraction;
use super::{Kernel, parameters::ParameterDefinition};
use crate::{
    device::{Gpu, device_error},
    memory::{DeviceMemory, lock},
};

/// A compiled kernel.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    /// Layout of the bind group of the storage buffers.
    layout: wgpu::BindGroupLayout,
    pub(crate) parameters: ParameterDefinition,
}

/// A compiled kernel bound to its buffers. While it exists, its buffers do not return to the pool.
pub(crate) struct BoundKernel {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) bind_group: wgpu::BindGroup,
    _memory: Vec<Arc<DeviceMemory>>,
}

impl Gpu {
    /// Returns the pipeline of a kernel. Compiles it at its first use.
    fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(&kernel) {
            return Ok(pipeline.clone());
        }
        let op = "compile";
        let source = kernel.wgsl_source(self.mode.fma);
        let pipeline = match self.mode.no_contraction {
            false => self.with_error_scopes(op, || {
                let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some("lstm"),
                    source: wgpu::ShaderSource::Wgsl(source.into()),
                });
                self.create_pipeline(kernel, &module)
            })?,
            #[cfg(not(target_arch = "wasm32"))]
            true => {
                let words = compile_without_contraction(&source, self.has_guards())
                    .map_err(|reason| device_error(op, reason))?;
                self.with_error_scopes(op, || {
                    let entry_point = wgpu::PassthroughShaderEntryPoint {
                        name: "main".into(),
                        workgroup_size: (kernel.workgroup_size(), 1, 1),
                    };
                    let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                        label: Some("lstm"),
                        entry_points: vec![entry_point].into(),
                        spirv: Some(words.into()),
                        ..Default::default()
                    };
                    // SAFETY: naga generated the words from a shader of this crate that it validated. The decorations
                    // added to them only restrict what a driver may do. Indices stay within the buffers: each `main`
                    // returns early, or reads nothing, beyond the sizes in its parameters, which are the sizes of the
                    // bound tensors. The conformance suite checks that with guard words after the tensors.
                    let module = unsafe { self.device.create_shader_module_passthrough(descriptor) };
                    self.create_pipeline(kernel, &module)
                })?
            }
            #[cfg(target_arch = "wasm32")]
            true => return Err(device_error(op, "SPIR-V shaders are not supported in a browser")),
        };
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    fn create_pipeline(&self, kernel: Kernel, module: &wgpu::ShaderModule) -> Pipeline {
        let storage_binding = |write: &bool| wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !write },
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let entries: Vec<_> = kernel
            .buffer_writes()
            .iter()
            .enumerate()
            .map(|(k, write)| layout_entry(k as u32, storage_binding(write)))
            .collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("lstm"), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("lstm"),
            bind_group_layouts: &[Some(&layout), Some(self.parameters_layout())],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some("lstm"),
            layout: Some(&pipeline_layout),
            module,
            entry_point: Some("main"),
            compilation_options: Default::default(),
            cache: None,
        });
        Pipeline { pipeline, layout, parameters: kernel.parameters() }
    }

    fn create_bind_group<'a>(&self, pipeline: &Pipeline, buffers: &[&'a Arc<DeviceMemory>]) -> wgpu::BindGroup {
        let buffer_binding = |memory: &'a Arc<DeviceMemory>| wgpu::BufferBinding {
            buffer: &memory.buffer,
            offset: 0,
            size: std::num::NonZeroU64::new(memory.accessible_bytes()),
        };
        let resources = buffers.iter().map(|&memory| wgpu::BindingResource::Buffer(buffer_binding(memory)));
        let entries = resources.enumerate().map(|(k, resource)| wgpu::BindGroupEntry { binding: k as u32, resource });
        let entries: Vec<_> = entries.collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("lstm"),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// Binds a kernel to buffers. The buffers are in the order of the bindings in the kernel's source.
    pub(crate) fn bind(&self, op: &'static str, kernel: Kernel, buffers: &[&Arc<DeviceMemory>]) -> Result<BoundKernel> {
        debug_assert_eq!(buffers.len(), kernel.buffer_writes().len());
        buffers.iter().try_for_each(|memory| self.check_owner(op, memory))?;
        let pipeline = self.pipeline(kernel)?;
        let key = (kernel, buffers.iter().map(|memory| (memory.buffer.clone(), memory.accessible_bytes())).collect());
        let bind_group = match self.pool.cached_bind_group(&key) {
            Some(bind_group) => bind_group,
            None => {
                let bind_group = self.with_error_scopes(op, || self.create_bind_group(&pipeline, buffers))?;
                self.pool.cache_bind_group(key, &bind_group);
                bind_group
            }
        };
        Ok(BoundKernel { pipeline, bind_group, _memory: buffers.iter().map(|&memory| memory.clone()).collect() })
    }
}

/// Layout entry of a binding that compute shaders can access.
pub(crate) fn layout_entry(binding: u32, ty: wgpu::BindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}
