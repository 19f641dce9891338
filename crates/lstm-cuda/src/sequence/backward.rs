//! The backward pass over a sequence: the steps, in a single launch or with a few launches each; then the weights'
//! gradients, for each chunk of steps; then the input's gradient.

use lstm_core::{Error, LayerGradients, LayerOutputGradients, MatrixShape, Result, State, shape::checked_len};

use super::{Trace, chunks::Chunks};
use crate::{
    backend::CudaBackend,
    driver::{Address, Driver, checked_u32},
    kernels::args::{BackwardSequenceArgs, BackwardStepArgs, CellOptions, GateBounds},
    launch::{MapFunction, Operand, backward_tiles, gemm, map, offset, step_tile},
    layer::{DeviceWeights, Pass, SingleLaunch},
    tensor::Tensor,
};

pub(super) const OP: &str = "backward";

/// The inputs and the buffers of one backward pass over a sequence.
pub(super) struct BackwardPass<'a, D: Driver> {
    pub(super) backend: &'a CudaBackend<D>,
    pub(super) layer: &'a DeviceWeights<D>,
    pub(super) trace: &'a Trace<D>,
    /// The gates' gradients, `[steps * batch, 4 * hidden]`.
    pub(super) dz: D::Memory,
    /// For layers with a projection: the gradient of the projected h, `[steps * batch, state]`, and the input of the
    /// projection, `[steps * batch, hidden]`.
    pub(super) projection_buffers: Option<[D::Memory; 2]>,
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
        let (steps, batch, hidden, state_size) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let alloc = |sizes: &[usize]| driver.alloc(OP, checked_len(OP, sizes)?);
        let rows = steps * batch;
        let projection_buffers =
            spec.proj_size.map(|_| Ok::<_, Error>([alloc(&[rows, state_size])?, alloc(&[rows, hidden])?]));
        let dz = alloc(&[rows, 4, hidden])?;
        let pass =
            BackwardPass { backend: self, layer, trace, dz, projection_buffers: projection_buffers.transpose()? };
        let state_gradients = State {
            h: self.allocate_tensor(OP, MatrixShape::new(batch, state_size))?,
            c: self.allocate_tensor(OP, MatrixShape::new(batch, hidden))?,
        };
        for (src, dst) in
            [(&output_gradients.state.h, &state_gradients.h), (&output_gradients.state.c, &state_gradients.c)]
        {
            let len = dst.shape.len();
            let (src, dst) = (driver.address(&src.data), driver.address(&dst.data));
            driver.launch(OP, &map(OP, MapFunction::Snap, src, dst, len, 0.0)?)?;
        }
        match layer.choose_single_launch(Pass::Backward, batch) {
            Some(single_launch) => pass.run_in_single_launch(output_gradients.y, &state_gradients, single_launch)?,
            None => pass.run_step_by_step(output_gradients.y, &state_gradients)?,
        }
        let mut weights = output_gradients.accumulate;
        for chunks in Chunks::of(steps, spec.reverse) {
            weights = Some(pass.weight_gradients(chunks, weights)?);
        }
        let weights = weights.ok_or_else(|| Error::shape("backward: steps", "at least 1", 0))?;
        let x = if output_gradients.needs_input_gradient { Some(pass.input_gradient()?) } else { None };
        Ok(LayerGradients { x, state: state_gradients, weights })
    }
}

impl<D: Driver> BackwardPass<'_, D> {
    pub(super) fn address(&self, memory: &D::Memory) -> Address {
        self.backend.driver.address(memory)
    }

    /// Returns the address of the rows of step `t` in memory of shape `[steps * batch, cols]`.
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
        let (steps, batch, hidden, state_size) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let dz = self.address(&self.dz);
        let [dh_projected, projection_input] = self
            .projection_buffers
            .as_ref()
            .map_or([0; 2], |memories| memories.each_ref().map(|memory| self.address(memory)));
        // The memory through which blocks exchange results, with the number of columns.
        let exchange_buffers = match single_launch {
            SingleLaunch::Clusters(..) => [(0, 0); 2],
            SingleLaunch::Persistent(..) => [(dz, 4 * hidden), (dh_projected, state_size)],
        };
        for (address, cols) in exchange_buffers.into_iter().filter(|(address, _)| *address != 0) {
            let len = checked_len(OP, &[steps, batch, cols])?;
            driver.launch(OP, &map(OP, MapFunction::Sentinel, 0, address, len, 0.0)?)?;
        }
        let partition = single_launch.partition(OP)?;
        let args = BackwardSequenceArgs {
            u: self.address(&self.layer.u),
            dy: self.address(&dy.data),
            gates: self.address(&trace.gates),
            h: self.address(&trace.h),
            c: self.address(&trace.c),
            peephole: self.layer.peephole_address(driver),
            w_hr: self.layer.projection_address(driver),
            dh: self.address(&state_gradients.h.data),
            dc: self.address(&state_gradients.c.data),
            dz,
            dh_projected,
            projection_input,
            active_counts: trace.active_counts.as_ref().map_or(0, |counts| self.address(counts)),
            steps: checked_u32(OP, steps)?,
            batch: checked_u32(OP, batch)?,
            hidden: checked_u32(OP, hidden)?,
            units_per_block: partition.units_per_block,
            group_rows: partition.group_rows,
            reverse: spec.reverse.into(),
            state_size: checked_u32(OP, state_size)?,
            features_per_block: partition.features_per_block,
            tile_rows: partition.tile_rows,
            quads_in_registers: partition.quads_in_registers,
            cell: CellOptions::new(spec),
            bounds: GateBounds::new(spec),
        };
        driver.launch(OP, &single_launch.launch(OP, batch, args)?)
    }

    fn run_step_by_step(&self, dy: &Tensor<D>, state_gradients: &State<Tensor<D>>) -> Result<()> {
        let (driver, trace, spec) = (&self.backend.driver, self.trace, &self.layer.spec);
        let (steps, batch, hidden, state_size) = (trace.steps, trace.batch, spec.hidden_size, spec.state_size());
        let (gate_product_tile, recurrent_tile) = backward_tiles(driver, [batch, state_size, hidden]);
        let gate_products =
            gate_product_tile.map(|_| driver.alloc(OP, checked_len(OP, &[4, batch, state_size])?)).transpose()?;
        // One iteration more than there are steps: the last has no step of its own and computes the initial state's
        // gradient.
        for n in 0..=steps {
            let nth_visited_step = |n: usize| if spec.reverse { n } else { steps - 1 - n };
            let step = (n < steps).then(|| nth_visited_step(n));
            let previous_step = (n > 0).then(|| nth_visited_step(n - 1));
            let (old_state_index, new_state_index) =
                step.map_or((0, 0), |t| if spec.reverse { (t + 1, t) } else { (t, t + 1) });
            let address_in_step =
                |memory: &D::Memory, cols: usize| step.map_or(0, |t| self.step_address(memory, t, cols));
            let address_in_previous_step =
                |memory: &D::Memory, cols: usize| previous_step.map_or(0, |t| self.step_address(memory, t, cols));
            let args = BackwardStepArgs {
                dz_next: address_in_previous_step(&self.dz, 4 * hidden),
                gates_next: address_in_previous_step(&trace.gates, 4 * hidden),
                u: self.address(&self.layer.u),
                w_hr: self.layer.projection_address(driver),
                dy: address_in_step(&dy.data, state_size),
                gates: address_in_step(&trace.gates, 4 * hidden),
                c_old: self.step_address(&trace.c, old_state_index, hidden),
                c_new: self.step_address(&trace.c, new_state_index, hidden),
                h_new: self.step_address(&trace.h, new_state_index, state_size),
                peephole: self.layer.peephole_address(driver),
                dh: self.address(&state_gradients.h.data),
                dc: self.address(&state_gradients.c.data),
                dz: address_in_step(&self.dz, 4 * hidden),
                dh_projected: self
                    .projection_buffers
                    .as_ref()
                    .map_or(0, |[gradient, _]| address_in_step(gradient, state_size)),
                projection_input: self
                    .projection_buffers
                    .as_ref()
                    .map_or(0, |[_, operand]| address_in_step(operand, hidden)),
                gate_products: gate_products.as_ref().map_or(0, |products| self.address(products)),
                batch: checked_u32(OP, batch)?,
                active_rows: checked_u32(OP, step.map_or(0, |t| trace.num_active(t)))?,
                active_rows_next: checked_u32(OP, previous_step.map_or(0, |t| trace.num_active(t)))?,
                hidden: checked_u32(OP, hidden)?,
                state_size: checked_u32(OP, state_size)?,
                padding: 0,
                cell: CellOptions::new(spec),
                bounds: GateBounds::new(spec),
            };
            if let Some(tile) = gate_product_tile.filter(|_| previous_step.is_some()) {
                driver.launch(OP, &tile.launch_per_gate(OP, "backward_gate_products", [batch, state_size], args)?)?;
            }
            if spec.proj_size.is_none() {
                let kernels =
                    ["backward_step_small", "backward_step_medium", "tf32_backward_step", "backward_step_combine"];
                driver.launch(OP, &recurrent_tile.launch(OP, &kernels, [batch, hidden], args)?)?;
                continue;
            }
            let kernels =
                ["backward_state_small", "backward_state_medium", "tf32_backward_state", "backward_state_combine"];
            driver.launch(OP, &recurrent_tile.launch(OP, &kernels, [batch, state_size], args)?)?;
            if step.is_some() {
                let kernels = ["backward_units_small", "backward_units_medium", "tf32_backward_units"];
                let tile = step_tile(driver, [batch, hidden, state_size]);
                driver.launch(OP, &tile.launch(OP, &kernels, [batch, hidden], args)?)?;
            }
        }
        Ok(())
    }

    /// Returns the gradient of the layer's input for all steps, `((dz_i W_i + dz_f W_f) + dz_g W_g) + dz_o W_o`,
    /// `[steps * batch, input]`.
    fn input_gradient(&self) -> Result<Tensor<D>> {
        let (driver, trace, spec) = (&self.backend.driver, self.trace, &self.layer.spec);
        let (rows, hidden, input_size) = (trace.steps * trace.batch, spec.hidden_size, spec.input_size);
        let out = self.backend.allocate_tensor(OP, MatrixShape::new(rows, input_size))?;
        let dz = Operand::contiguous_depth(self.address(&self.dz), 4 * hidden);
        let dz = Operand { segment_stride: hidden as isize, ..dz };
        let w = Operand::strided_depth(self.address(&self.layer.w), input_size);
        let w = Operand { segment_stride: (hidden * input_size) as isize, ..w };
        let shape = [rows, input_size, hidden];
        driver.launch(OP, &gemm(driver, OP, shape, 4, (dz, w), None, self.address(&out.data))?)?;
        Ok(out)
    }
}
