//! The forward pass over a sequence: one product computes `bias + W x` of all steps; then a single launch runs all
//! steps, or there is a launch per step.

use lstm_core::{CellKind, Error, LayerOutput, MatrixShape, Result, Sequence, State};

use super::{StepBuffers, Trace, input_term_launch, push_step_launches};
use crate::{
    backend::CudaBackend,
    driver::{Address, Driver, checked_u32},
    kernels::args::{CellOptions, ForwardSequenceArgs},
    launch::{MapFunction, copy, map, offset},
    layer::{DeviceWeights, GraphKey, Pass, Plan, SingleLaunch},
    tensor::Tensor,
};

impl<D: Driver> CudaBackend<D> {
    /// Runs a layer over a sequence. If a trace is given, fills it for the backward pass.
    pub(crate) fn run_layer(
        &self,
        op: &'static str,
        layer: &DeviceWeights<D>,
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
        driver.launch(op, &input_term_launch(driver, op, layer, x, steps * batch, driver.address(&plan.z))?)?;
        match layer.choose_single_launch(Pass::Forward, batch) {
            Some(single_launch) => self.run_in_single_launch(op, layer, plan, sequence, trace, single_launch),
            None => self.run_step_by_step(op, layer, plan, sequence, trace),
        }
    }

    fn run_in_single_launch(
        &self,
        op: &'static str,
        layer: &DeviceWeights<D>,
        plan: &Plan<D>,
        sequence: &Sequence<'_, Tensor<D>>,
        trace: Option<&Trace<D>>,
        single_launch: SingleLaunch,
    ) -> Result<LayerOutput<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state_size) = (sequence.steps, sequence.batch, spec.hidden_size, spec.state_size());
        let [y, h] = [steps * batch, batch].map(|rows| self.allocate_tensor(op, MatrixShape::new(rows, state_size)));
        let (y, state) = (y?, State { h: h?, c: self.allocate_tensor(op, MatrixShape::new(batch, hidden))? });
        let address = |x: &Tensor<D>| driver.address(&x.data);
        let (mut h0, mut c0, mut exchange_buffer) = (address(&sequence.state.h), address(&sequence.state.c), None);
        if matches!(single_launch, SingleLaunch::Persistent(..)) {
            let [h, c] = [&plan.h, &plan.c].map(|memory| driver.address(memory));
            for (src, dst, size) in [(h0, h, state_size), (c0, c, hidden)] {
                driver.launch(op, &copy(op, (src, size), (dst, size), [batch, size], true)?)?;
            }
            (h0, c0) = (h, c);
            // Blocks exchange h through `y`. With dense peepholes they exchange c instead, with a projection its
            // operand in addition.
            let has_dense_peephole = spec.cell == CellKind::PeepholeDense;
            let needs_exchange_buffer = has_dense_peephole || spec.proj_size.is_some();
            exchange_buffer = needs_exchange_buffer
                .then(|| self.allocate_tensor(op, MatrixShape::new(steps * batch, hidden)))
                .transpose()?;
            for buffer in [(!has_dense_peephole).then_some(&y), exchange_buffer.as_ref()].into_iter().flatten() {
                driver.launch(op, &map(op, MapFunction::Sentinel, 0, address(buffer), buffer.shape.len(), 0.0)?)?;
            }
        }
        // A trace has the counts on the device already.
        let uploaded_counts = match (trace, sequence.lengths) {
            (None, Some(_)) => Some(self.upload_active_counts(op, steps, |t| sequence.num_active(t))?),
            _ => None,
        };
        let active_counts = uploaded_counts.as_ref().or(trace.and_then(|trace| trace.active_counts.as_ref()));
        let trace_address =
            |memory: fn(&Trace<D>) -> &D::Memory| trace.map_or(0, |trace| driver.address(memory(trace)));
        let partition = single_launch.partition(op)?;
        let args = ForwardSequenceArgs {
            z: driver.address(&plan.z),
            u: driver.address(&layer.u),
            h0,
            c0,
            peephole: layer.peephole_address(driver),
            w_hr: layer.projection_address(driver),
            y: address(&y),
            exchange_buffer: exchange_buffer.as_ref().map_or(0, address),
            trace_h: trace_address(|trace| &trace.h),
            trace_c: trace_address(|trace| &trace.c),
            trace_gates: trace_address(|trace| &trace.gates),
            h_last: address(&state.h),
            c_last: address(&state.c),
            active_counts: active_counts.map_or(0, |counts| driver.address(counts)),
            steps: checked_u32(op, steps)?,
            batch: checked_u32(op, batch)?,
            hidden: checked_u32(op, hidden)?,
            units_per_block: partition.units_per_block,
            group_rows: partition.group_rows,
            reverse: spec.reverse.into(),
            state_size: checked_u32(op, state_size)?,
            features_per_block: partition.features_per_block,
            tile_rows: partition.tile_rows,
            quads_in_registers: partition.quads_in_registers,
            cell: CellOptions::new(spec),
        };
        driver.launch(op, &single_launch.launch(op, batch, args)?)?;
        Ok(LayerOutput::new(y, state))
    }

    fn run_step_by_step(
        &self,
        op: &'static str,
        layer: &DeviceWeights<D>,
        plan: &mut Plan<D>,
        sequence: &Sequence<'_, Tensor<D>>,
        trace: Option<&Trace<D>>,
    ) -> Result<LayerOutput<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state_size) = (sequence.steps, sequence.batch, spec.hidden_size, spec.state_size());
        let y = self.allocate_tensor(op, MatrixShape::new(steps * batch, state_size))?;
        let final_state = State {
            h: self.allocate_tensor(op, MatrixShape::new(batch, state_size))?,
            c: self.allocate_tensor(op, MatrixShape::new(batch, hidden))?,
        };
        let address = |x: &Tensor<D>| driver.address(&x.data);
        let (h, c) = trace.map_or((&plan.h, &plan.c), |trace| (&trace.h, &trace.c));
        let (h, c) = (driver.address(h), driver.address(c));
        // The index of the state before the nth step that runs. A trace keeps all states in the sequence's order;
        // without a trace there is a double buffer.
        let state_index = |n: usize| match (trace, spec.reverse) {
            (Some(_), true) => steps - n,
            (Some(_), false) => n,
            (None, _) => n % 2,
        };
        let state_address = |base: Address, size: usize, n: usize| offset(base, state_index(n) * batch * size);
        for (src, dst, size) in [
            (&sequence.state.h, state_address(h, state_size, 0), state_size),
            (&sequence.state.c, state_address(c, hidden, 0), hidden),
        ] {
            driver.launch(op, &copy(op, (address(src), size), (dst, size), [batch, size], true)?)?;
        }
        let (z, gates) = (driver.address(&plan.z), trace.map_or(0, |trace| driver.address(&trace.gates)));
        // The launches in a graph write to the same memory each time that the graph is used.
        let plan_y = plan.y.as_ref().filter(|_| trace.is_none());
        let y_address = plan_y.map_or_else(|| address(&y), |memory| driver.address(memory));
        let projection_input = plan.projection_input.as_ref().map_or(0, |memory| driver.address(memory));
        let launches = || {
            let mut launches = Vec::new();
            for n in 0..steps {
                let t = if spec.reverse { steps - 1 - n } else { n };
                let buffers = StepBuffers {
                    z: offset(z, t * batch * 4 * hidden),
                    h: [state_address(h, state_size, n), state_address(h, state_size, n + 1)],
                    c: [state_address(c, hidden, n), state_address(c, hidden, n + 1)],
                    projection_input,
                    y: offset(y_address, t * batch * state_size),
                    gates: if gates == 0 { 0 } else { offset(gates, t * batch * 4 * hidden) },
                };
                push_step_launches(driver, op, layer, batch, sequence.num_active(t), buffers, &mut launches)?;
            }
            Ok::<_, Error>(launches)
        };
        if plan_y.is_none() {
            // Each trace has memory of its own, so that recorded launches could not be used again.
            launches()?.iter().try_for_each(|launch| driver.launch(op, launch))?;
        } else {
            let key = GraphKey {
                steps,
                lengths: sequence.lengths.map(<[_]>::to_vec),
                weights: [driver.address(&layer.u), layer.projection_address(driver), layer.peephole_address(driver)],
            };
            let graph = match plan.graph.take() {
                Some((old, graph)) if old == key => match graph {
                    Some(graph) => Some(graph),
                    None => Some(driver.record_graph(op, launches()?)?),
                },
                _ => None,
            };
            match &graph {
                Some(graph) => driver.launch_graph(op, graph)?,
                None => launches()?.iter().try_for_each(|launch| driver.launch(op, launch))?,
            }
            plan.graph = Some((key, graph));
        }
        if y_address != address(&y) {
            let shape = [steps * batch, state_size];
            driver.launch(op, &copy(op, (y_address, state_size), (address(&y), state_size), shape, false)?)?;
        }
        for (src, dst, size) in [
            (state_address(h, state_size, steps), &final_state.h, state_size),
            (state_address(c, hidden, steps), &final_state.c, hidden),
        ] {
            driver.launch(op, &copy(op, (src, size), (address(dst), size), [batch, size], false)?)?;
        }
        Ok(LayerOutput::new(y, final_state))
    }

    /// Uploads the number of active sequences of each step, as `u32`. A sequence is active in a step if it is long
    /// enough to have the step; `num_active` returns the number for a step.
    pub(crate) fn upload_active_counts(
        &self,
        op: &'static str,
        steps: usize,
        num_active: impl Fn(usize) -> usize,
    ) -> Result<D::Memory> {
        let counts =
            (0..steps).map(|t| checked_u32(op, num_active(t)).map(f32::from_bits)).collect::<Result<Vec<_>>>()?;
        let memory = self.driver.alloc(op, steps)?;
        self.driver.upload(op, &memory, &counts)?;
        Ok(memory)
    }
}
