//! Kernels, compiled once, and bound to what they work on.

use std::sync::Arc;

use lstm_core::Result;

use crate::{errors::device_error, gpu::Gpu, parameters::Definition, pool::lock, shader::Kernel, tensor::Memory};

/// A kernel, compiled.
pub(crate) struct Pipeline {
    pub(crate) pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
    pub(crate) parameters: Definition,
}

/// A kernel with the buffers that it works on, which stay out of the pool for as long.
pub(crate) struct Bound {
    pub(crate) pipeline: Arc<Pipeline>,
    pub(crate) group: wgpu::BindGroup,
    _memory: Vec<Arc<Memory>>,
}

impl Gpu {
    /// The pipeline of a kernel, made at its first use.
    fn pipeline(&self, kernel: Kernel) -> Result<Arc<Pipeline>> {
        if let Some(pipeline) = lock(&self.pipelines).get(&kernel) {
            return Ok(pipeline.clone());
        }
        let op = "compile";
        let source = kernel.source(self.mode.fma);
        let pipeline = match self.mode.no_contraction {
            false => self.scoped(op, || {
                let module = self.device.create_shader_module(wgpu::ShaderModuleDescriptor {
                    label: Some("lstm"),
                    source: wgpu::ShaderSource::Wgsl(source.into()),
                });
                self.build(kernel, &module)
            })?,
            #[cfg(not(target_arch = "wasm32"))]
            true => {
                let words = crate::spirv::without_contraction(&source, self.has_guards())
                    .map_err(|why| device_error(op, why))?;
                self.scoped(op, || {
                    let entry = wgpu::PassthroughShaderEntryPoint {
                        name: "main".into(),
                        workgroup_size: (kernel.workgroup(), 1, 1),
                    };
                    let descriptor = wgpu::ShaderModuleDescriptorPassthrough {
                        label: Some("lstm"),
                        entry_points: vec![entry].into(),
                        spirv: Some(words.into()),
                        ..Default::default()
                    };
                    // SAFETY: the words are naga's, from a shader of this crate that it validated, with decorations added
                    // that allow a driver less. Their indices stay within the buffers: each `main` leaves, or reads nothing,
                    // beyond the sizes in its parameters, which are those of the tensors that are bound. The conformance
                    // suite looks at that with guards around them.
                    let module = unsafe { self.device.create_shader_module_passthrough(descriptor) };
                    self.build(kernel, &module)
                })?
            }
            #[cfg(target_arch = "wasm32")]
            true => return Err(device_error(op, "SPIR-V can't be handed over in a browser")),
        };
        let pipeline = Arc::new(pipeline);
        lock(&self.pipelines).insert(kernel, pipeline.clone());
        Ok(pipeline)
    }

    fn build(&self, kernel: Kernel, module: &wgpu::ShaderModule) -> Pipeline {
        let storage = |write: &bool| wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !write },
            has_dynamic_offset: false,
            min_binding_size: None,
        };
        let entries: Vec<_> =
            kernel.access().iter().enumerate().map(|(k, write)| entry(k as u32, storage(write))).collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some("lstm"), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some("lstm"),
            bind_group_layouts: &[Some(&layout), Some(&self.parameters_layout)],
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

    fn group<'a>(&self, pipeline: &Pipeline, buffers: &[&'a Arc<Memory>]) -> wgpu::BindGroup {
        let binding = |memory: &'a Arc<Memory>| wgpu::BufferBinding {
            buffer: &memory.buffer,
            offset: 0,
            size: std::num::NonZeroU64::new(memory.visible()),
        };
        let resources = buffers.iter().map(|&memory| wgpu::BindingResource::Buffer(binding(memory)));
        let entries = resources.enumerate().map(|(k, resource)| wgpu::BindGroupEntry { binding: k as u32, resource });
        let entries: Vec<_> = entries.collect();
        self.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: Some("lstm"),
            layout: &pipeline.layout,
            entries: &entries,
        })
    }

    /// A kernel on buffers, in the order of its bindings.
    pub(crate) fn bind(&self, op: &'static str, kernel: Kernel, buffers: &[&Arc<Memory>]) -> Result<Bound> {
        debug_assert_eq!(buffers.len(), kernel.access().len());
        buffers.iter().try_for_each(|memory| self.check_own(op, memory))?;
        let pipeline = self.pipeline(kernel)?;
        let binding = (kernel, buffers.iter().map(|memory| (memory.buffer.clone(), memory.visible())).collect());
        let group = match self.pool.group(&binding) {
            Some(group) => group,
            None => {
                let group = self.scoped(op, || self.group(&pipeline, buffers))?;
                self.pool.keep(binding, &group);
                group
            }
        };
        Ok(Bound { pipeline, group, _memory: buffers.iter().map(|&memory| memory.clone()).collect() })
    }
}

/// What a kernel sees at a place.
pub(crate) fn entry(binding: u32, ty: wgpu::BindingType) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry { binding, visibility: wgpu::ShaderStages::COMPUTE, ty, count: None }
}
