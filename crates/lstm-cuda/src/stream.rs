//! A stack of layers, one step at a time: launches that are prepared once, for each of the two places of the state.

use std::fmt;

use lstm_core::{
    Error, LayerSpec, MatrixShape, Result, State,
    reference::{check_stack, check_state, check_step},
    shape::{checked_len, zeros},
};

use crate::{
    args::Address,
    backend::CudaBackend,
    driver::{Driver, Launch, size},
    forward::{StepPlaces, input, step},
    launches::{at, copy},
    layer::Layer,
    tensor::Tensor,
};

/// Layers, their running state and the values between them.
pub struct CudaStream<D: Driver> {
    layers: Vec<Layer<D>>,
    batch: usize,
    /// The step's input, as given.
    x: D::Memory,
    stages: Vec<Stage<D>>,
    /// One for each place.
    graphs: [D::Graph; 2],
    /// Which of the two holds the state.
    place: usize,
}

/// A layer's memory.
struct Stage<D: Driver> {
    /// `[batch, 4 * hidden]`
    z: D::Memory,
    /// Two places `[batch, state]`.
    h: D::Memory,
    /// Two places `[batch, hidden]`.
    c: D::Memory,
    /// With a projection, `[batch, hidden]`.
    unprojected: Option<D::Memory>,
}

impl<D: Driver> fmt::Debug for CudaStream<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CudaStream({:?}, batch {})", self.layers, self.batch)
    }
}

/// The address of one of two places.
fn place<D: Driver>(driver: &D, memory: &D::Memory, [batch, size]: [usize; 2], place: usize) -> Address {
    at(driver.address(memory), place * batch * size)
}

impl<D: Driver> CudaStream<D> {
    pub(crate) fn new(b: &CudaBackend<D>, layers: &[Layer<D>], batch: usize) -> Result<Self> {
        let (op, driver) = ("stream", &b.driver);
        check_stack(layers.iter().map(|layer| &layer.0.spec))?;
        if batch == 0 {
            return Err(Error::shape("stream: batch", "at least 1", batch));
        }
        size(op, batch)?;
        let alloc = |sizes: &[usize]| driver.alloc(op, checked_len(op, sizes)?);
        let blank = |cols: usize| {
            let memory = alloc(&[2, batch, cols])?;
            driver.upload(op, &memory, &zeros(op, &[2, batch, cols])?)?;
            Ok::<_, Error>(memory)
        };
        let stage = |layer: &Layer<D>| {
            let LayerSpec { hidden_size, proj_size, .. } = layer.0.spec;
            Ok(Stage {
                z: alloc(&[batch, 4, hidden_size])?,
                h: blank(layer.0.spec.state_size())?,
                c: blank(hidden_size)?,
                unprojected: proj_size.map(|_| alloc(&[batch, hidden_size])).transpose()?,
            })
        };
        let stages = layers.iter().map(stage).collect::<Result<Vec<_>>>()?;
        let x = alloc(&[batch, layers[0].0.spec.input_size])?;
        let graph = |from| driver.graph(op, launches(driver, layers, batch, &x, &stages, from)?);
        let graphs = [graph(0)?, graph(1)?];
        Ok(CudaStream { layers: layers.to_vec(), batch, x, stages, graphs, place: 0 })
    }

    pub(crate) fn step(&mut self, driver: &D, x: &[f32], y: &mut [f32]) -> Result<()> {
        // `check_stack` saw to it that there is a layer.
        let (first, last) = (&self.layers[0].0.spec, &self.layers[self.layers.len() - 1].0.spec);
        check_step(self.batch, first, last, x, y)?;
        driver.upload("step", &self.x, x)?;
        driver.replay("step", &self.graphs[self.place])?;
        let next = 1 - self.place;
        let h = &self.stages[self.stages.len() - 1].h;
        driver.download("step", h, next * self.batch * last.state_size(), y)?;
        self.place = next;
        Ok(())
    }

    pub(crate) fn state(&self, b: &CudaBackend<D>) -> Result<Vec<State<Tensor<D>>>> {
        let state = self.layers.iter().zip(&self.stages).map(|(layer, stage)| {
            let rows = |memory: &D::Memory, cols: usize| {
                let out = b.tensor("stream_state", MatrixShape::new(self.batch, cols))?;
                let from = place(&b.driver, memory, [self.batch, cols], self.place);
                let to = b.driver.address(&out.data);
                let launch = copy("stream_state", (from, cols), (to, cols), [self.batch, cols], false)?;
                b.driver.launch("stream_state", &launch)?;
                Ok::<_, Error>(out)
            };
            Ok(State { h: rows(&stage.h, layer.0.spec.state_size())?, c: rows(&stage.c, layer.0.spec.hidden_size)? })
        });
        state.collect()
    }

    pub(crate) fn set_state(&mut self, driver: &D, state: &[State<Tensor<D>>]) -> Result<()> {
        let op = "set_stream_state";
        let specs: Vec<_> = self.layers.iter().map(|layer| layer.0.spec).collect();
        check_state(&specs, self.batch, state.iter().map(|s| State { h: s.h.shape, c: s.c.shape }))?;
        // Into the place that is not in use, so that nothing has changed if this fails.
        let next = 1 - self.place;
        for ((spec, stage), state) in specs.iter().zip(&self.stages).zip(state) {
            for (from, memory, cols) in
                [(&state.h, &stage.h, spec.state_size()), (&state.c, &stage.c, spec.hidden_size)]
            {
                let to = place(driver, memory, [self.batch, cols], next);
                let from = driver.address(&from.data);
                driver.launch(op, &copy(op, (from, cols), (to, cols), [self.batch, cols], true)?)?;
            }
        }
        self.place = next;
        Ok(())
    }
}

/// A step of all layers, from the state in place `from` to the other.
fn launches<D: Driver>(
    driver: &D,
    layers: &[Layer<D>],
    batch: usize,
    x: &D::Memory,
    stages: &[Stage<D>],
    from: usize,
) -> Result<Vec<Launch>> {
    let mut launches = Vec::new();
    let mut x = driver.address(x);
    for (Layer(layer), stage) in layers.iter().zip(stages) {
        let z = driver.address(&stage.z);
        launches.push(input(driver, "stream", layer, x, batch, z)?);
        let places = |memory: &D::Memory, cols| [from, 1 - from].map(|n| place(driver, memory, [batch, cols], n));
        let h = places(&stage.h, layer.spec.state_size());
        let c = places(&stage.c, layer.spec.hidden_size);
        let unprojected = stage.unprojected.as_ref().map_or(0, |memory| driver.address(memory));
        step(
            driver,
            "stream",
            layer,
            batch,
            batch,
            StepPlaces { z, h, c, unprojected, y: 0, gates: 0 },
            &mut launches,
        )?;
        x = h[1];
    }
    Ok(launches)
}
