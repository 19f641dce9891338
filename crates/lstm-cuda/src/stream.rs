//! Streaming: a stack of layers runs one step at a time. The state is in a double buffer. The launches of a step are
//! recorded as two CUDA graphs, one for each half of the buffer that can hold the state before the step.

use std::{fmt, ops::Range};

use lstm_core::{
    Error, LayerSpec, MatrixShape, Result, State,
    reference::{check_sequences, check_stack, check_state, check_step, check_step_some},
    shape::{checked_len, zeros},
};

use crate::{
    backend::CudaBackend,
    driver::{Address, Driver, Launch, checked_u32},
    launch::{copy, copy_rows, offset},
    layer::Layer,
    sequence::{StepBuffers, input_term_launch, push_step_launches},
    tensor::Tensor,
};

/// A stack of layers for streaming, with the current state of each sequence of the batch.
pub struct CudaStream<D: Driver> {
    layers: Vec<Layer<D>>,
    batch: usize,
    /// The step's input, `[batch, input]`.
    x: D::Memory,
    /// The numbers of the sequences that do not take part in a step, as `u32`, `[batch]`.
    absent_sequences: D::Memory,
    buffers: Vec<LayerBuffers<D>>,
    /// The launches of one step, as two CUDA graphs. Graph `k` reads the state from half `k` of the double buffers and
    /// writes the new state to the other half.
    graphs: [D::Graph; 2],
    /// The half of the double buffers, 0 or 1, that holds the current state.
    current_half: usize,
}

/// The memory of one layer of a stream.
struct LayerBuffers<D: Driver> {
    /// `bias + W x`, `[batch, 4 * hidden]`.
    z: D::Memory,
    /// A double buffer for h, `[2, batch, state]`.
    h: D::Memory,
    /// A double buffer for c, `[2, batch, hidden]`.
    c: D::Memory,
    /// The projection's input, `[batch, hidden]`; `None` without a projection.
    projection_input: Option<D::Memory>,
}

impl<D: Driver> fmt::Debug for CudaStream<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaStream({:?}, batch {})", self.layers, self.batch)
    }
}

/// Returns the address of one half (0 or 1) of a double buffer of shape `[2, batch, cols]`.
fn half_address<D: Driver>(driver: &D, memory: &D::Memory, [batch, cols]: [usize; 2], half: usize) -> Address {
    offset(driver.address(memory), half * batch * cols)
}

impl<D: Driver> CudaStream<D> {
    pub(crate) fn new(b: &CudaBackend<D>, layers: &[Layer<D>], batch: usize) -> Result<Self> {
        let (op, driver) = ("stream", &b.driver);
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        if batch == 0 {
            return Err(Error::shape("stream: batch", "at least 1", batch));
        }
        checked_u32(op, batch)?;
        let alloc = |sizes: &[usize]| driver.alloc(op, checked_len(op, sizes)?);
        let alloc_zeroed = |cols: usize| {
            let memory = alloc(&[2, batch, cols])?;
            driver.upload(op, &memory, &zeros(op, &[2, batch, cols])?)?;
            Ok::<_, Error>(memory)
        };
        let layer_buffers = |layer: &Layer<D>| {
            let LayerSpec { hidden_size, proj_size, .. } = layer.0.spec;
            Ok(LayerBuffers {
                z: alloc(&[batch, 4, hidden_size])?,
                h: alloc_zeroed(layer.0.spec.state_size())?,
                c: alloc_zeroed(hidden_size)?,
                projection_input: proj_size.map(|_| alloc(&[batch, hidden_size])).transpose()?,
            })
        };
        let buffers = layers.iter().map(layer_buffers).collect::<Result<Vec<_>>>()?;
        let (x, absent_sequences) = (alloc(&[batch, layers[0].0.spec.input_size])?, alloc(&[batch])?);
        let record_step =
            |from_half| driver.record_graph(op, step_launches(driver, layers, batch, &x, &buffers, from_half)?);
        let graphs = [record_step(0)?, record_step(1)?];
        Ok(CudaStream { layers: layers.to_vec(), batch, x, absent_sequences, buffers, graphs, current_half: 0 })
    }

    pub(crate) fn step(&mut self, driver: &D, x: &[f32], y: &mut [f32]) -> Result<()> {
        // There is at least one layer: `new` has checked it.
        let (first_spec, last_spec) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step(self.batch, first_spec, last_spec, x, y)?;
        driver.upload("step", &self.x, x)?;
        driver.launch_graph("step", &self.graphs[self.current_half])?;
        let next_half = 1 - self.current_half;
        let h = &self.buffers[self.buffers.len() - 1].h;
        driver.download("step", h, next_half * self.batch * last_spec.state_size(), y)?;
        self.current_half = next_half;
        Ok(())
    }

    pub(crate) fn step_some(&mut self, driver: &D, sequences: &[usize], x: &[f32], y: &mut [f32]) -> Result<()> {
        let op = "step_some";
        let (first_spec, last_spec) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step_some(self.batch, sequences, first_spec, last_spec, x, y)?;
        if sequences.is_empty() {
            return Ok(());
        }
        let (input_size, state_size) = (first_spec.input_size, last_spec.state_size());
        // The whole batch runs, because its graph is recorded. Absent sequences get zeros as input, and their new state
        // is replaced by the old one.
        let mut batch_x = zeros(op, &[self.batch, input_size])?;
        let mut is_absent = vec![true; self.batch];
        for (&sequence, row) in sequences.iter().zip(x.chunks_exact(input_size)) {
            batch_x[sequence * input_size..][..input_size].copy_from_slice(row);
            is_absent[sequence] = false;
        }
        // `new` checked that the batch size fits in 32 bits.
        let absent_sequences: Vec<f32> =
            (0..self.batch as u32).filter(|&k| is_absent[k as usize]).map(f32::from_bits).collect();
        driver.upload(op, &self.x, &batch_x)?;
        driver.launch_graph(op, &self.graphs[self.current_half])?;
        if !absent_sequences.is_empty() {
            driver.upload(op, &self.absent_sequences, &absent_sequences)?;
            let row_numbers = driver.address(&self.absent_sequences);
            for (memory, cols) in self.state_buffers() {
                let [old, new] = self.old_and_new_state(driver, memory, cols);
                driver.launch(op, &copy_rows(op, old, new, row_numbers, [absent_sequences.len(), cols])?)?;
            }
        }
        let next_half = 1 - self.current_half;
        let mut batch_y = zeros(op, &[self.batch, state_size])?;
        let h = &self.buffers[self.buffers.len() - 1].h;
        driver.download(op, h, next_half * self.batch * state_size, &mut batch_y)?;
        for (&sequence, row) in sequences.iter().zip(y.chunks_exact_mut(state_size)) {
            row.copy_from_slice(&batch_y[sequence * state_size..][..state_size]);
        }
        self.current_half = next_half;
        Ok(())
    }

    /// The double buffers of h and c of each layer, with their numbers of columns.
    fn state_buffers(&self) -> impl Iterator<Item = (&D::Memory, usize)> {
        self.layers.iter().zip(&self.buffers).flat_map(|(Layer(layer), buffers)| {
            [(&buffers.h, layer.spec.state_size()), (&buffers.c, layer.spec.hidden_size)]
        })
    }

    /// The addresses of the half of a double buffer that holds the current state, and of the other half.
    fn old_and_new_state(&self, driver: &D, memory: &D::Memory, cols: usize) -> [Address; 2] {
        [self.current_half, 1 - self.current_half].map(|half| half_address(driver, memory, [self.batch, cols], half))
    }

    pub(crate) fn state(&self, b: &CudaBackend<D>, sequences: Range<usize>) -> Result<Vec<State<Tensor<D>>>> {
        let op = "stream_state";
        check_sequences(self.batch, &sequences)?;
        let copy_rows = |(memory, cols): (&D::Memory, usize)| {
            let out = b.allocate_tensor(op, MatrixShape::new(sequences.len(), cols))?;
            let [state, _] = self.old_and_new_state(&b.driver, memory, cols);
            let (src, dst) = (offset(state, sequences.start * cols), b.driver.address(&out.data));
            b.driver.launch(op, &copy(op, (src, cols), (dst, cols), [sequences.len(), cols], false)?)?;
            Ok(out)
        };
        let tensors = self.state_buffers().map(copy_rows).collect::<Result<Vec<_>>>()?;
        Ok(tensors.chunks_exact(2).map(|pair| State { h: pair[0].clone(), c: pair[1].clone() }).collect())
    }

    pub(crate) fn set_state(&mut self, driver: &D, first_sequence: usize, state: &[State<Tensor<D>>]) -> Result<()> {
        let op = "set_stream_state";
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.0.spec).collect();
        let shapes = state.iter().map(|s| State { h: s.h.shape, c: s.c.shape });
        let sequences = check_state(&specs, self.batch, first_sequence, shapes)?;
        // Write to the other half, so that the state is unchanged if this fails.
        let tensors = state.iter().flat_map(|state| [&state.h, &state.c]);
        for ((memory, cols), tensor) in self.state_buffers().zip(tensors) {
            let [old, new] = self.old_and_new_state(driver, memory, cols);
            if sequences.len() < self.batch {
                driver.launch(op, &copy(op, (old, cols), (new, cols), [self.batch, cols], false)?)?;
            }
            let (src, dst) = (driver.address(&tensor.data), offset(new, sequences.start * cols));
            driver.launch(op, &copy(op, (src, cols), (dst, cols), [sequences.len(), cols], true)?)?;
        }
        self.current_half = 1 - self.current_half;
        Ok(())
    }
}

/// Returns the launches of one step of all layers. They read the state from half `from_half` of the double buffers and
/// write the new state to the other half.
fn step_launches<D: Driver>(
    driver: &D,
    layers: &[Layer<D>],
    batch: usize,
    x: &D::Memory,
    buffers: &[LayerBuffers<D>],
    from_half: usize,
) -> Result<Vec<Launch>> {
    let mut launches = Vec::new();
    let mut x = driver.address(x);
    for (Layer(layer), buffers) in layers.iter().zip(buffers) {
        let z = driver.address(&buffers.z);
        launches.push(input_term_launch(driver, "stream", layer, x, batch, z)?);
        let half_addresses = |memory: &D::Memory, cols| {
            [from_half, 1 - from_half].map(|half| half_address(driver, memory, [batch, cols], half))
        };
        let h = half_addresses(&buffers.h, layer.spec.state_size());
        let c = half_addresses(&buffers.c, layer.spec.hidden_size);
        let projection_input = buffers.projection_input.as_ref().map_or(0, |memory| driver.address(memory));
        let step_buffers = StepBuffers { z, h, c, projection_input, y: 0, gates: 0 };
        push_step_launches(driver, "stream", layer, batch, batch, step_buffers, &mut launches)?;
        x = h[1];
    }
    Ok(launches)
}
