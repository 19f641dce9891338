//! A stack of layers, one step at a time, on memory and bind groups that are made once.

use std::sync::Arc;

use lstm_core::{
    Result, State,
    reference::{check_stack, check_state, check_step},
    shape::checked_len,
};

use crate::{
    forward::{self, Buffers, Walk, get_state, input_product, set_state},
    gpu::Gpu,
    layer::Layer,
    parameters::{Gemm, Steps},
    pipeline::Bound,
    tensor::{Memory, Tensor},
};

/// States are kept twice: a step reads one place and writes the other, so that a step which fails has changed nothing.
const RING: usize = 2;

/// Layers, their running state and the values between them.
pub struct WgpuStream {
    stages: Vec<Stage>,
    /// The first layer's input.
    x: Arc<Memory>,
    batch: usize,
    /// The place of the state.
    current: usize,
}

/// A layer with its memory, bound to the kernels.
struct Stage {
    layer: Layer,
    product: (Bound, Gemm, usize),
    walk: Walk,
    states: Arc<Memory>,
    /// `[2, batch, state]`, of both places.
    y: Arc<Memory>,
}

impl std::fmt::Debug for WgpuStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "WgpuStream({} layers, batch {})", self.stages.len(), self.batch)
    }
}

impl WgpuStream {
    pub(crate) fn new(gpu: &Gpu, layers: &[Layer], batch: usize) -> Result<Self> {
        let op = "stream";
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        let memory = |cols: usize| gpu.allocate(op, checked_len(op, &[RING, batch, cols])?);
        let x = memory(layers[0].0.spec.input_size)?;
        let mut stages: Vec<Stage> = Vec::new();
        for layer in layers {
            let packed = &layer.0;
            let (hidden, state) = (packed.spec.hidden_size, packed.spec.state_size());
            let (gates, y, states) = (memory(4 * hidden)?, memory(state)?, memory(state + hidden)?);
            let projected = packed.projection.as_ref().map(|_| memory(hidden)).transpose()?;
            let zeros = |cols: usize| {
                let zeros = lstm_core::shape::zeros(op, &[batch, cols])?;
                let shape = lstm_core::MatrixShape::new(batch, cols);
                Ok(Tensor { shape, memory: gpu.upload(op, bytemuck::cast_slice(&zeros))? })
            };
            let zero = State { h: zeros(state)?, c: zeros(hidden)? };
            set_state(gpu, op, &packed.spec, &states, (RING, batch, 0), &zero)?;
            let input = stages.last().map_or(&x, |stage| &stage.y);
            let product = {
                let (shape, parameters) = input_product(packed, batch, 0);
                let (kernel, groups) = gpu.gemm_kernel(shape);
                let acc = packed.bias.as_ref().map_or(&packed.w, |bias| &bias.memory);
                let bound = gpu.bind(op, kernel, &[input, &packed.w, acc, &gates])?;
                let acc = u32::from(packed.bias.is_some());
                (bound, Gemm { m: shape.rows as u32, n: shape.cols as u32, acc, ..parameters }, groups)
            };
            let buffers =
                Buffers { gates: &gates, states: &states, y: &y, projected: projected.as_ref(), lengths: None };
            let walk = Walk::new(gpu, packed, batch, false, &buffers)?;
            stages.push(Stage { layer: layer.clone(), product, walk, states, y });
        }
        Ok(WgpuStream { stages, x, batch, current: 0 })
    }

    pub(crate) async fn step(&mut self, gpu: &Gpu, x: &[f32], y: &mut [f32]) -> Result<()> {
        let op = "step";
        // `check_stack` saw to it that there is a layer.
        let (first, last) = (&self.stages[0], &self.stages[self.stages.len() - 1]);
        check_step(self.batch, &first.layer.0.spec, &last.layer.0.spec, x, y)?;
        gpu.submit(op)?;
        gpu.write(op, &self.x, bytemuck::cast_slice(x))?;
        let t = self.current as u32;
        let mut start = 0;
        for Stage { layer, product: (bound, product, groups), walk, .. } in &self.stages {
            let spec = &layer.0.spec;
            gpu.dispatch(op, bound, &Gemm { a_start: start, ..*product }, *groups)?;
            let batch = self.batch as u32;
            // The step's number is the place that it reads; it writes the other.
            let steps = Steps {
                batch,
                steps: RING as u32,
                hidden: spec.hidden_size as u32,
                state: spec.state_size() as u32,
                first: t,
                last: t + 1,
                gates_row: t * batch,
                ring: RING as u32,
                clip: spec.clip.unwrap_or_default(),
                ..Steps::default()
            };
            walk.run(gpu, steps)?;
            start = t * batch * spec.state_size() as u32;
        }
        gpu.download(op, &last.y, start as usize, bytemuck::cast_slice_mut(y)).await?;
        self.current = 1 - self.current;
        Ok(())
    }

    pub(crate) fn state(&self, gpu: &Gpu) -> Result<Vec<State<Tensor>>> {
        let place = (RING, self.batch, self.current);
        let state = |stage: &Stage| get_state(gpu, "stream_state", &stage.layer.0.spec, &stage.states, place);
        self.stages.iter().map(state).collect()
    }

    pub(crate) fn set_state(&mut self, gpu: &Gpu, state: &[State<Tensor>]) -> Result<()> {
        let specs: Vec<_> = self.stages.iter().map(|stage| stage.layer.0.spec).collect();
        check_state(&specs, self.batch, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        // Into the other place: if a layer's can't be set, all keep theirs.
        let other = 1 - self.current;
        self.stages.iter().zip(state).try_for_each(|(stage, state)| {
            let place = (RING, self.batch, other);
            forward::set_state(gpu, "set_stream_state", &stage.layer.0.spec, &stage.states, place, state)
        })?;
        self.current = other;
        Ok(())
    }
}
