//! A whole sequence: the input's product for all steps at once, then the steps, by one kernel whose blocks keep their
//! weights (all blocks together, or clusters of them), or by a kernel a step.

use lstm_core::{CellKind, Error, LayerOutput, LayerSpec, MatrixShape, Result, Sequence, State};

use crate::{
    args::{Address, CellOptions, PersistentArgs, ProjectArgs, StepArgs},
    backend::CudaBackend,
    driver::{Driver, Launch, size},
    launches::{Map, Operand, at, copy, gemm, map, step_tile},
    layer::{InOne, Key, Loaded, Plan},
    persistent::Way,
    tensor::Tensor,
    trace::Trace,
};

/// `bias + W x` of some rows; `x` is snapped on its way.
pub(crate) fn input<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &Loaded<D>,
    x: Address,
    rows: usize,
    z: Address,
) -> Result<Launch> {
    let LayerSpec { input_size, hidden_size, .. } = layer.spec;
    let x = Operand { snapped: true, ..Operand::lines(x, input_size) };
    let w = Operand::lines(driver.address(&layer.w), input_size);
    let bias = layer.bias.as_ref().map(|bias| (driver.address(bias), 0));
    gemm(driver, op, [rows, 4 * hidden_size, input_size], 1, (x, w), bias, z)
}

/// Where a step reads and writes.
#[derive(Clone, Copy)]
pub(crate) struct StepPlaces {
    pub(crate) z: Address,
    pub(crate) h: [Address; 2],
    pub(crate) c: [Address; 2],
    pub(crate) unprojected: Address,
    /// 0: nowhere.
    pub(crate) y: Address,
    /// 0: nowhere.
    pub(crate) gates: Address,
}

/// One step of the first `active` of `batch` rows; the others keep their state.
pub(crate) fn step<D: Driver>(
    driver: &D,
    op: &'static str,
    layer: &Loaded<D>,
    batch: usize,
    active: usize,
    places: StepPlaces,
    launches: &mut Vec<Launch>,
) -> Result<()> {
    let spec = &layer.spec;
    let (projection, own) = (layer.projection(driver), |address| if spec.proj_size.is_some() { 0 } else { address });
    let [batch_size, active, hidden, state] =
        [size(op, batch)?, size(op, active)?, size(op, spec.hidden_size)?, size(op, spec.state_size())?];
    let args = StepArgs {
        z: places.z,
        u: driver.address(&layer.u),
        h_old: places.h[0],
        c_old: places.c[0],
        peephole: layer.peephole(driver),
        h_new: own(places.h[1]),
        c_new: places.c[1],
        y: own(places.y),
        gates: places.gates,
        unprojected: places.unprojected,
        batch: batch_size,
        active,
        hidden,
        state,
        cell: CellOptions::new(spec),
    };
    let shape = [batch, 4 * spec.hidden_size];
    let tile = step_tile(driver, [shape[0], shape[1], spec.state_size()]);
    launches.push(tile.launch(op, &["step_small", "step_medium", "fast_step"], shape, args)?);
    if spec.proj_size.is_some() {
        let [h_old, h_new] = places.h;
        let StepPlaces { unprojected, y, .. } = places;
        let args =
            ProjectArgs { unprojected, w: projection, h_old, h_new, y, batch: batch_size, active, hidden, state };
        let shape = [batch, spec.state_size()];
        let tile = step_tile(driver, [shape[0], shape[1], spec.hidden_size]);
        launches.push(tile.launch(op, &["project_small", "project_medium", "fast_project"], shape, args)?);
    }
    Ok(())
}

impl<D: Driver> CudaBackend<D> {
    /// Both kinds of forward pass, with a trace if there is one to fill.
    pub(crate) fn run(
        &self,
        op: &'static str,
        layer: &Loaded<D>,
        plan: &mut Plan<D>,
        sequence: &Sequence<'_, Tensor<D>>,
        trace: Option<&Trace<D>>,
    ) -> Result<LayerOutput<Tensor<D>>> {
        let driver = &self.driver;
        let Sequence { steps, batch, .. } = *sequence;
        if steps == 0 || batch == 0 {
            return Err(Error::shape(op, "at least one step and one sequence", format!("{steps} and {batch}")));
        }
        let x = driver.address(&sequence.x.data);
        driver.launch(op, &input(driver, op, layer, x, steps * batch, driver.address(&plan.z))?)?;
        match layer.in_one(Way::Forward, batch) {
            Some(in_one) => self.run_in_one(op, layer, plan, sequence, trace, in_one),
            None => self.run_steps(op, layer, plan, sequence, trace),
        }
    }

    fn run_in_one(
        &self,
        op: &'static str,
        layer: &Loaded<D>,
        plan: &Plan<D>,
        sequence: &Sequence<'_, Tensor<D>>,
        trace: Option<&Trace<D>>,
        in_one: InOne,
    ) -> Result<LayerOutput<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state_size) = (sequence.steps, sequence.batch, spec.hidden_size, spec.state_size());
        let [y, h] = [steps * batch, batch].map(|rows| self.tensor(op, MatrixShape::new(rows, state_size)));
        let (y, state) = (y?, State { h: h?, c: self.tensor(op, MatrixShape::new(batch, hidden))? });
        let address = |x: &Tensor<D>| driver.address(&x.data);
        let (mut h0, mut c0, mut passed) = (address(&sequence.state.h), address(&sequence.state.c), None);
        if matches!(in_one, InOne::Persistent(..)) {
            let [h, c] = [&plan.h, &plan.c].map(|memory| driver.address(memory));
            for (from, to, size) in [(h0, h, state_size), (c0, c, hidden)] {
                driver.launch(op, &copy(op, (from, size), (to, size), [batch, size], true)?)?;
            }
            (h0, c0) = (h, c);
            // What blocks pass on: with the dense peephole c in place of `y`, with a projection its operand besides.
            let dense = spec.cell == CellKind::PeepholeDense;
            let passes_more = dense || spec.proj_size.is_some();
            passed = passes_more.then(|| self.tensor(op, MatrixShape::new(steps * batch, hidden))).transpose()?;
            for words in [(!dense).then_some(&y), passed.as_ref()].into_iter().flatten() {
                driver.launch(op, &map(op, Map::Sentinel, 0, address(words), words.shape.len(), 0.0)?)?;
            }
        }
        // A trace has them already.
        let own = match (trace, sequence.lengths) {
            (None, Some(_)) => Some(self.active(op, steps, |t| sequence.active(t))?),
            _ => None,
        };
        let active = own.as_ref().or(trace.and_then(|trace| trace.active.as_ref()));
        let kept = |memory: fn(&Trace<D>) -> &D::Memory| trace.map_or(0, |trace| driver.address(memory(trace)));
        let shares = in_one.shares(op)?;
        let args = PersistentArgs {
            z: driver.address(&plan.z),
            u: driver.address(&layer.u),
            h0,
            c0,
            peephole: layer.peephole(driver),
            w_hr: layer.projection(driver),
            y: address(&y),
            passed: passed.as_ref().map_or(0, address),
            h: kept(|trace| &trace.h),
            c: kept(|trace| &trace.c),
            gates: kept(|trace| &trace.gates),
            h_last: address(&state.h),
            c_last: address(&state.c),
            active: active.map_or(0, |active| driver.address(active)),
            steps: size(op, steps)?,
            batch: size(op, batch)?,
            hidden: size(op, hidden)?,
            units: shares.units,
            rows: shares.rows,
            reverse: spec.reverse.into(),
            state: size(op, state_size)?,
            features: shares.features,
            part: shares.part,
            held: shares.held,
            cell: CellOptions::new(spec),
        };
        driver.launch(op, &in_one.launch(op, batch, args)?)?;
        Ok(LayerOutput::new(y, state))
    }

    fn run_steps(
        &self,
        op: &'static str,
        layer: &Loaded<D>,
        plan: &mut Plan<D>,
        sequence: &Sequence<'_, Tensor<D>>,
        trace: Option<&Trace<D>>,
    ) -> Result<LayerOutput<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state) = (sequence.steps, sequence.batch, spec.hidden_size, spec.state_size());
        let y = self.tensor(op, MatrixShape::new(steps * batch, state))?;
        let last = State {
            h: self.tensor(op, MatrixShape::new(batch, state))?,
            c: self.tensor(op, MatrixShape::new(batch, hidden))?,
        };
        let address = |x: &Tensor<D>| driver.address(&x.data);
        let (h, c) = trace.map_or((&plan.h, &plan.c), |trace| (&trace.h, &trace.c));
        let (h, c) = (driver.address(h), driver.address(c));
        // Where the state before the nth step that is walked lies. A trace keeps all in the sequence's order; without one
        // there are two places.
        let place = |n: usize| match (trace, spec.reverse) {
            (Some(_), true) => steps - n,
            (Some(_), false) => n,
            (None, _) => n % 2,
        };
        let places_of = |base: Address, size: usize, n: usize| at(base, place(n) * batch * size);
        for (from, to, size) in
            [(&sequence.state.h, places_of(h, state, 0), state), (&sequence.state.c, places_of(c, hidden, 0), hidden)]
        {
            driver.launch(op, &copy(op, (address(from), size), (to, size), [batch, size], true)?)?;
        }
        let (z, gates) = (driver.address(&plan.z), trace.map_or(0, |trace| driver.address(&trace.gates)));
        // Prepared launches write to the same place every time.
        let kept_y = plan.y.as_ref().filter(|_| trace.is_none());
        let steps_y = kept_y.map_or_else(|| address(&y), |memory| driver.address(memory));
        let unprojected = plan.unprojected.as_ref().map_or(0, |memory| driver.address(memory));
        let launches = || {
            let mut launches = Vec::new();
            for n in 0..steps {
                let t = if spec.reverse { steps - 1 - n } else { n };
                let places = StepPlaces {
                    z: at(z, t * batch * 4 * hidden),
                    h: [places_of(h, state, n), places_of(h, state, n + 1)],
                    c: [places_of(c, hidden, n), places_of(c, hidden, n + 1)],
                    unprojected,
                    y: at(steps_y, t * batch * state),
                    gates: if gates == 0 { 0 } else { at(gates, t * batch * 4 * hidden) },
                };
                step(driver, op, layer, batch, sequence.active(t), places, &mut launches)?;
            }
            Ok::<_, Error>(launches)
        };
        if kept_y.is_none() {
            // Every trace has memory of its own: there is nothing to prepare once and use again.
            launches()?.iter().try_for_each(|launch| driver.launch(op, launch))?;
        } else {
            let key = Key {
                steps,
                lengths: sequence.lengths.map(<[_]>::to_vec),
                weights: [driver.address(&layer.u), layer.projection(driver), layer.peephole(driver)],
            };
            let graph = match plan.graph.take() {
                Some((old, graph)) if old == key => match graph {
                    Some(graph) => Some(graph),
                    None => Some(driver.graph(op, launches()?)?),
                },
                _ => None,
            };
            match &graph {
                Some(graph) => driver.replay(op, graph)?,
                None => launches()?.iter().try_for_each(|launch| driver.launch(op, launch))?,
            }
            plan.graph = Some((key, graph));
        }
        if steps_y != address(&y) {
            let shape = [steps * batch, state];
            driver.launch(op, &copy(op, (steps_y, state), (address(&y), state), shape, false)?)?;
        }
        for (from, to, size) in
            [(places_of(h, state, steps), &last.h, state), (places_of(c, hidden, steps), &last.c, hidden)]
        {
            driver.launch(op, &copy(op, (from, size), (address(to), size), [batch, size], false)?)?;
        }
        Ok(LayerOutput::new(y, last))
    }

    /// How many sequences have each step, on the device.
    pub(crate) fn active(&self, op: &'static str, steps: usize, active: impl Fn(usize) -> usize) -> Result<D::Memory> {
        let counts = (0..steps).map(|t| size(op, active(t)).map(f32::from_bits)).collect::<Result<Vec<_>>>()?;
        let memory = self.driver.alloc(op, steps)?;
        self.driver.upload(op, &memory, &counts)?;
        Ok(memory)
    }
}
