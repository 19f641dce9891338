//! The weights' gradients: one product per weight and chunk of steps, and column sums for biases and peepholes.

use std::ops::Range;

use lstm_core::{Bias, CellKind, MatrixShape, Result, WeightGradients};

use super::{
    backward::{BackwardPass, OP},
    chunks::Chunks,
};
use crate::{
    driver::{Address, Driver, checked_u32},
    kernels::args::ColumnSumArgs,
    launch::{Operand, checked_i32, column_sum_args, column_sums, gemm, launches_segments_separately, offset},
    tensor::Tensor,
};

impl<D: Driver> BackwardPass<'_, D> {
    /// Returns the weights' gradients over some chunks of steps, added to `acc` if it is given.
    pub(super) fn weight_gradients(
        &self,
        chunks: Chunks,
        acc: Option<WeightGradients<Tensor<D>>>,
    ) -> Result<WeightGradients<Tensor<D>>> {
        let (trace, spec) = (self.trace, &self.layer.spec);
        let (batch, hidden, state_size) = (trace.batch, spec.hidden_size, spec.state_size());
        let (rows, gate_cols) = (chunks.steps * batch, 4 * hidden);
        let acc = acc.as_ref();
        let dz = self.step_address(&self.dz, chunks.first_step, gate_cols);
        let x = self.step_address(&trace.x.data, chunks.first_step, spec.input_size);
        // Where the trace has the state before the first step.
        let state_index_before = chunks.first_step + usize::from(spec.reverse);
        let dz_operand = |range: Range<usize>| Operand::strided_depth(offset(dz, range.start), gate_cols);

        let w = self.allocate_tensor(MatrixShape::new(gate_cols, spec.input_size))?;
        let x = Operand { snap: true, ..Operand::strided_depth(x, spec.input_size) };
        let acc_w = acc.map(|acc| (&acc.input, 0));
        self.outer_products((dz_operand(0..gate_cols), gate_cols), (x, spec.input_size), chunks, acc_w, (&w, 0))?;

        let u = self.allocate_tensor(MatrixShape::new(gate_cols, state_size))?;
        let acc_u = |row: usize| acc.map(|acc| (&acc.recurrent, row));
        if spec.cell == CellKind::PeepholeDense {
            let c = Operand::strided_depth(self.step_address(&trace.c, state_index_before, hidden), hidden);
            // The candidate gate has no recurrent term. Its gradient is computed as that of zeros, so that the result
            // is bit-identical to the reference.
            let zero_memory = self.backend.upload_scalar(OP, 0.0)?;
            let zero_operand =
                Operand { line_stride: 0, depth_stride: 0, ..Operand::contiguous_depth(self.address(&zero_memory), 0) };
            let gate_ranges = [
                (0..2 * hidden, dz_operand(0..0)),
                (2 * hidden..3 * hidden, zero_operand),
                (3 * hidden..gate_cols, dz_operand(3 * hidden..gate_cols)),
            ];
            for (range, dz) in gate_ranges {
                self.outer_products((dz, range.len()), (c, hidden), chunks, acc_u(range.start), (&u, range.start))?;
            }
        } else {
            let h = Operand::strided_depth(self.step_address(&trace.h, state_index_before, state_size), state_size);
            self.outer_products((dz_operand(0..gate_cols), gate_cols), (h, state_size), chunks, acc_u(0), (&u, 0))?;
        }

        let bias = match spec.bias {
            Bias::None => None,
            _ => Some(self.sum_columns(
                (dz, gate_cols),
                [rows, gate_cols],
                chunks,
                acc.and_then(|acc| acc.bias.as_ref()),
                |args| args,
            )?),
        };
        let projection = match &self.projection_buffers {
            Some([dh_projected, projection_inputs]) => {
                let out = self.allocate_tensor(MatrixShape::new(state_size, hidden))?;
                let grad =
                    Operand::strided_depth(self.step_address(dh_projected, chunks.first_step, state_size), state_size);
                let projection_input =
                    Operand::strided_depth(self.step_address(projection_inputs, chunks.first_step, hidden), hidden);
                let acc = acc.and_then(|acc| acc.projection.as_ref()).map(|acc| (acc, 0));
                self.outer_products((grad, state_size), (projection_input, hidden), chunks, acc, (&out, 0))?;
                Some(out)
            }
            None => None,
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => {
                let state_index_after = chunks.first_step + usize::from(!spec.reverse);
                let peephole_gradient = |k: usize, gate: usize, c_index: usize| {
                    let factor = self.step_address(&trace.c, c_index, hidden);
                    let active_counts = trace.active_counts.as_ref();
                    let active_counts =
                        active_counts.map_or(0, |counts| offset(self.address(counts), chunks.first_step));
                    let batch = checked_u32(OP, batch)?;
                    let acc = acc.and_then(|acc| acc.peephole.as_ref()).map(|vectors| &vectors[k]);
                    let grad = (offset(dz, gate * hidden), gate_cols);
                    let adjust_args = |args| ColumnSumArgs { factor, active_counts, batch, ..args };
                    self.sum_columns(grad, [rows, hidden], chunks, acc, adjust_args)
                };
                Some([
                    peephole_gradient(0, 0, state_index_before)?,
                    peephole_gradient(1, 1, state_index_before)?,
                    peephole_gradient(2, 3, state_index_after)?,
                ])
            }
            _ => None,
        };
        Ok(WeightGradients { input: w, recurrent: u, bias, projection, peephole })
    }

    fn allocate_tensor(&self, shape: MatrixShape) -> Result<Tensor<D>> {
        self.backend.allocate_tensor(OP, shape)
    }

    /// Computes `out = acc + grad^T x`, where the product is the sum of one product per chunk of steps. `grad` and `x`
    /// start at the rows of the first chunk, and each is paired with its number of columns. `acc` and `out` are each
    /// paired with the index of the first row that is read or written.
    fn outer_products(
        &self,
        (grad, grad_cols): (Operand, usize),
        (x, x_cols): (Operand, usize),
        chunks: Chunks,
        acc: Option<(&Tensor<D>, usize)>,
        (out, out_row): (&Tensor<D>, usize),
    ) -> Result<()> {
        let (driver, batch) = (&self.backend.driver, self.trace.batch);
        let row_address = |tensor: &Tensor<D>, row: usize| offset(self.address(&tensor.data), row * x_cols);
        let (mut acc, out) = (acc.map(|(acc, row)| (row_address(acc, row), x_cols)), row_address(out, out_row));
        let shape = [grad_cols, x_cols, chunks.steps * batch];
        let chunk_stride = |operand: Operand| chunks.stride * (batch * operand.depth_stride) as isize;
        let separate_launches = chunks.count == 1
            || launches_segments_separately(driver, shape)
            || [grad, x].into_iter().any(|operand| checked_i32(OP, chunk_stride(operand)).is_err());
        let (launches, segments) = if separate_launches { (chunks.count, 1) } else { (1, chunks.count) };
        for n in 0..launches {
            let nth_chunk = |operand: Operand| Operand {
                address: operand.address.wrapping_add_signed(4 * n as i64 * chunk_stride(operand) as i64),
                segment_stride: if separate_launches { 0 } else { chunk_stride(operand) },
                ..operand
            };
            driver.launch(OP, &gemm(driver, OP, shape, segments, (nth_chunk(grad), nth_chunk(x)), acc, out)?)?;
            acc = Some((out, x_cols));
        }
        Ok(())
    }

    /// Sums the columns of a matrix, given by its address and row stride, over the rows of each chunk, and adds them to
    /// `acc`. `adjust_args` may change other arguments of the kernel.
    fn sum_columns(
        &self,
        grad: (Address, usize),
        shape: [usize; 2],
        chunks: Chunks,
        acc: Option<&Tensor<D>>,
        adjust_args: impl Fn(ColumnSumArgs) -> ColumnSumArgs,
    ) -> Result<Tensor<D>> {
        let out = self.allocate_tensor(MatrixShape::new(1, shape[1]))?;
        let acc = acc.map(|acc| self.address(&acc.data));
        let args = column_sum_args(OP, grad, shape, acc, self.address(&out.data))?;
        let segment_stride = checked_i32(OP, chunks.stride * self.trace.batch as isize)?;
        let args = ColumnSumArgs { segments: checked_u32(OP, chunks.count)?, segment_stride, ..args };
        self.backend.driver.launch(OP, &column_sums(OP, adjust_args(args))?)?;
        Ok(out)
    }
}
