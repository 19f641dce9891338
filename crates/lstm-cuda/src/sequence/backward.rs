//! The backward pass over a sequence: the steps, in a single launch or with a few launches each; then the weights'
//! gradients, for each chunk of steps; then the input's gradient.

use lstm_core::{Error, LayerGradients, LayerOutputGradients, MatrixShape, Result, State, shape::checked_len};

use super::{Trace, chunks::Chunks};
use crate::{
    backend::CudaBackend,
    driver::{Address, Driver, kernel_size},
    kernels::args::{BackwardSequenceArgs, BackwardStepArgs, CellOptions, GateBounds},
    launch::{Map, Operand, backward_tiles, gemm, map, offset, step_tile},
    layer::{DeviceWeights, Pass, SingleLaunch},
    tensor::Tensor,
};

pub(super) const OP: &str = "backward";

/// The data of one backward pass while it runs.
pub(super) struct BackwardPass<'a, D: Driver> {
    pub(super) backend: &'a CudaBackend<D>,
    pub(super) layer: &'a DeviceWeights<D>,
    pub(super) trace: &'a Trace<D>,
    /// The gates' gradients, `[steps * batch, 4 * hidden]`.
    pub(super) dz: D::Memory,
    /// For layers with a projection: the gradient of the projected h, `[steps * batch, state]`, and the operand of the
    /// projection, `[steps * batch, hidden]`.
    pub(super) projection: Option<[D::Memory; 2]>,
}

impl<D: Driver> CudaBackend<D> {
    /// Computes a layer's gradients. The shapes of `output_gradients` must have been checked.
    pub(crate) fn layer_gradients(
        &self,
        layer: &DeviceWeights<D>,
        trace: &Trace<D>,
        output_gradients: LayerOutputGradients<'_, Tensor<D>>,
    ) -> Result<LayerGradients<Tensor<D>>> {
        let (driver, spec) = (&self.driver, &layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let alloc = |sizes: &[usize]| driver.alloc(OP, checked_len(OP, sizes)?);
        let rows = steps * batch;
        let projection = spec.proj_size.map(|_| Ok::<_, Error>([alloc(&[rows, state])?, alloc(&[rows, hidden])?]));
        let dz = alloc(&[rows, 4, hidden])?;
        let pass = BackwardPass { backend: self, layer, trace, dz, projection: projection.transpose()? };
        let state_gradients = State {
            h: self.tensor(OP, MatrixShape::new(batch, state))?,
            c: self.tensor(OP, MatrixShape::new(batch, hidden))?,
        };
        for (from, to) in
            [(&output_gradients.state.h, &state_gradients.h), (&output_gradients.state.c, &state_gradients.c)]
        {
            let len = to.shape.len();
            let (from, to) = (driver.address(&from.data), driver.address(&to.data));
            driver.launch(OP, &map(OP, Map::Snap, from, to, len, 0.0)?)?;
        }
        match layer.single_launch(Pass::Backward, batch) {
            Some(single_launch) => pass.run_in_single_launch(output_gradients.y, &state_gradients, single_launch)?,
            None => pass.run_step_by_step(output_gradients.y, &state_gradients)?,
        }
        let mut weights = output_gradients.accumulate;
        for chunks in Chunks::of(steps, spec.reverse) {
            weights = Some(pass.weight_gradients(chunks, weights)?);
        }
        let weights = weights.ok_or_else(|| Error::shape("backward: steps", "at least 1", 0))?;
        let x = if output_gradients.need_x { Some(pass.input_gradient()?) } else { None };
        Ok(LayerGradients { x, state: state_gradients, weights })
    }
}

impl<D: Driver> BackwardPass<'_, D> {
    pub(super) fn address(&self, memory: &D::Memory) -> Address {
        self.backend.driver.address(memory)
    }

    /// The address of step `t` in memory of shape `[steps * batch, cols]`.
    pub(super) fn step_address(&self, memory: &D::Memory, t: usize, cols: usize) -> Address {
        offset(self.address(memory), t * self.trace.batch * cols)
    }

    fn run_in_single_launch(
        &self,
        dy: &Tensor<D>,
        state_gradients: &State<Tensor<D>>,
        single_launch: SingleLaunch,
    ) -> Result<()> {
        let (driver, trace, spec) = (&self.backend.driver, self.trace, &self.layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let dz = self.address(&self.dz);
        let [dh_projected, unprojected] =
            self.projection.as_ref().map_or([0; 2], |both| both.each_ref().map(|memory| self.address(memory)));
        // The memory through which blocks exchange results, with the number of columns.
        let exchanged = match single_launch {
            SingleLaunch::Clusters(..) => [(0, 0); 2],
            SingleLaunch::Persistent(..) => [(dz, 4 * hidden), (dh_projected, state)],
        };
        for (address, cols) in exchanged.into_iter().filter(|(address, _)| *address != 0) {
            let len = checked_len(OP, &[steps, batch, cols])?;
            driver.launch(OP, &map(OP, Map::Sentinel, 0, address, len, 0.0)?)?;
        }
        let partition = single_launch.partition(OP)?;
        let args = BackwardSequenceArgs {
            u: self.address(&self.layer.u),
            dy: self.address(&dy.data),
            gates: self.address(&trace.gates),
            h: self.address(&trace.h),
            c: self.address(&trace.c),
            peephole: self.layer.peephole(driver),
            w_hr: self.layer.projection(driver),
            dh: self.address(&state_gradients.h.data),
            dc: self.address(&state_gradients.c.data),
            dz,
            dh_projected,
            unprojected,
            active_counts: trace.active_counts.as_ref().map_or(0, |counts| self.address(counts)),
            steps: kernel_size(OP, steps)?,
            batch: kernel_size(OP, batch)?,
            hidden: kernel_size(OP, hidden)?,
            units: partition.units,
            group_rows: partition.group_rows,
            reverse: spec.reverse.into(),
            state_size: kernel_size(OP, state)?,
            features: partition.features,
            tile_rows: partition.tile_rows,
            register_quads: partition.register_quads,
            cell: CellOptions::new(spec),
            bounds: GateBounds::new(spec),
        };
        driver.launch(OP, &single_launch.launch(OP, batch, args)?)
    }

    fn run_step_by_step(&self, dy: &Tensor<D>, state_gradients: &State<Tensor<D>>) -> Result<()> {
        let (driver, trace, spec) = (&self.backend.driver, self.trace, &self.layer.spec);
        let (steps, batch, hidden, state) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let (per_gate, recurrent) = backward_tiles(driver, [batch, state, hidden]);
        let gate_products = per_gate.map(|_| driver.alloc(OP, checked_len(OP, &[4, batch, state])?)).transpose()?;
        // One iteration more than there are steps: the last has no step of its own and computes the initial state's
        // gradient.
        for n in 0..=steps {
            let nth_step = |n: usize| if spec.reverse { n } else { steps - 1 - n };
            let step = (n < steps).then(|| nth_step(n));
            let previous = (n > 0).then(|| nth_step(n - 1));
            let (old, new) = step.map_or((0, 0), |t| if spec.reverse { (t + 1, t) } else { (t, t + 1) });
            let of_step = |memory: &D::Memory, cols: usize| step.map_or(0, |t| self.step_address(memory, t, cols));
            let of_previous =
                |memory: &D::Memory, cols: usize| previous.map_or(0, |t| self.step_address(memory, t, cols));
            let args = BackwardStepArgs {
                dz_next: of_previous(&self.dz, 4 * hidden),
                gates_next: of_previous(&trace.gates, 4 * hidden),
                u: self.address(&self.layer.u),
                w_hr: self.layer.projection(driver),
                dy: of_step(&dy.data, state),
                gates: of_step(&trace.gates, 4 * hidden),
                c_old: self.step_address(&trace.c, old, hidden),
                c_new: self.step_address(&trace.c, new, hidden),
                h_new: self.step_address(&trace.h, new, state),
                peephole: self.layer.peephole(driver),
                dh: self.address(&state_gradients.h.data),
                dc: self.address(&state_gradients.c.data),
                dz: of_step(&self.dz, 4 * hidden),
                dh_projected: self.projection.as_ref().map_or(0, |[gradient, _]| of_step(gradient, state)),
                unprojected: self.projection.as_ref().map_or(0, |[_, operand]| of_step(operand, hidden)),
                gate_products: gate_products.as_ref().map_or(0, |products| self.address(products)),
                batch: kernel_size(OP, batch)?,
                active: kernel_size(OP, step.map_or(0, |t| trace.active(t)))?,
                active_next: kernel_size(OP, previous.map_or(0, |t| trace.active(t)))?,
                hidden: kernel_size(OP, hidden)?,
                state_size: kernel_size(OP, state)?,
                padding: 0,
                cell: CellOptions::new(spec),
                bounds: GateBounds::new(spec),
            };
            if let Some(tile) = per_gate.filter(|_| previous.is_some()) {
                driver.launch(OP, &tile.launch_per_gate(OP, "backward_gate_products", [batch, state], args)?)?;
            }
            if spec.proj_size.is_none() {
                let kernels =
                    ["backward_step_small", "backward_step_medium", "tf32_backward_step", "backward_step_combine"];
                driver.launch(OP, &recurrent.launch(OP, &kernels, [batch, hidden], args)?)?;
                continue;
            }
            let kernels =
                ["backward_state_small", "backward_state_medium", "tf32_backward_state", "backward_state_combine"];
            driver.launch(OP, &recurrent.launch(OP, &kernels, [batch, state], args)?)?;
            if step.is_some() {
                let kernels = ["backward_units_small", "backward_units_medium", "tf32_backward_units"];
                let tile = step_tile(driver, [batch, hidden, state]);
                driver.launch(OP, &tile.launch(OP, &kernels, [batch, hidden], args)?)?;
            }
        }
        Ok(())
    }

    /// The input's gradient of all steps, `((dz_i W_i + dz_f W_f) + dz_g W_g) + dz_o W_o`, `[steps * batch, input]`.
    fn input_gradient(&self) -> Result<Tensor<D>> {
        let (driver, trace, spec) = (&self.backend.driver, self.trace, &self.layer.spec);
        let (rows, hidden, input) = (trace.steps * trace.batch, spec.hidden_size, spec.input_size);
        let out = self.backend.tensor(OP, MatrixShape::new(rows, input))?;
        let dz = Operand::contiguous_lines(self.address(&self.dz), 4 * hidden);
        let dz = Operand { segment_stride: hidden as isize, ..dz };
        let w = Operand::interleaved_lines(self.address(&self.layer.w), input);
        let w = Operand { segment_stride: (hidden * input) as isize, ..w };
        let shape = [rows, input, hidden];
        driver.launch(OP, &gemm(driver, OP, shape, 4, (dz, w), None, self.address(&out.data))?)?;
        Ok(out)
    }
}
