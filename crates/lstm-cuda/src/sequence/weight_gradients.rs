//! The weights' gradients: one product per weight and chunk of steps, and column sums for biases and peepholes.

use std::ops::Range;

use lstm_core::{Bias, CellKind, MatrixShape, Result, WeightGradients};

use super::{
    backward::{BackwardPass, OP},
    chunks::Chunks,
};
use crate::{
    driver::{Address, Driver, kernel_size},
    kernels::args::ColumnSumArgs,
    launch::{Operand, column_sum_args, column_sums, gemm, launches_segments_separately, offset, signed_stride},
    tensor::Tensor,
};

impl<D: Driver> BackwardPass<'_, D> {
    /// The weights' gradients over some chunks of steps, added to `acc` if there is one.
    pub(super) fn weight_gradients(
        &self,
        chunks: Chunks,
        acc: Option<WeightGradients<Tensor<D>>>,
    ) -> Result<WeightGradients<Tensor<D>>> {
        let (trace, spec) = (self.trace, &self.layer.spec);
        let (batch, hidden, state) = (trace.batch, spec.hidden_size, spec.state_size());
        let (rows, gates) = (chunks.steps * batch, 4 * hidden);
        let acc = acc.as_ref();
        let dz = self.step_address(&self.dz, chunks.start, gates);
        let x = self.step_address(&trace.x.data, chunks.start, spec.input_size);
        // Where the trace has the state before the first step.
        let before = chunks.start + usize::from(spec.reverse);
        let dz_operand = |range: Range<usize>| Operand::interleaved_lines(offset(dz, range.start), gates);

        let w = self.allocate(MatrixShape::new(gates, spec.input_size))?;
        let x = Operand { snap: true, ..Operand::interleaved_lines(x, spec.input_size) };
        let acc_w = acc.map(|acc| (&acc.input, 0));
        self.outer_products((dz_operand(0..gates), gates), (x, spec.input_size), chunks, acc_w, (&w, 0))?;

        let u = self.allocate(MatrixShape::new(gates, state))?;
        let acc_u = |row: usize| acc.map(|acc| (&acc.recurrent, row));
        if spec.cell == CellKind::PeepholeDense {
            let c = Operand::interleaved_lines(self.step_address(&trace.c, before, hidden), hidden);
            // The candidate gate has no recurrent term. Its gradient is computed as that of zeros, so that the result
            // is bit-identical to the reference.
            let zero = self.backend.upload_scalar(OP, 0.0)?;
            let zeros =
                Operand { line_stride: 0, depth_stride: 0, ..Operand::contiguous_lines(self.address(&zero), 0) };
            let parts = [
                (0..2 * hidden, dz_operand(0..0)),
                (2 * hidden..3 * hidden, zeros),
                (3 * hidden..gates, dz_operand(3 * hidden..gates)),
            ];
            for (range, dz) in parts {
                self.outer_products((dz, range.len()), (c, hidden), chunks, acc_u(range.start), (&u, range.start))?;
            }
        } else {
            let h = Operand::interleaved_lines(self.step_address(&trace.h, before, state), state);
            self.outer_products((dz_operand(0..gates), gates), (h, state), chunks, acc_u(0), (&u, 0))?;
        }

        let bias = match spec.bias {
            Bias::None => None,
            _ => Some(self.sum_columns(
                (dz, gates),
                [rows, gates],
                chunks,
                acc.and_then(|acc| acc.bias.as_ref()),
                |args| args,
            )?),
        };
        let projection = match &self.projection {
            Some([dh_projected, operand]) => {
                let out = self.allocate(MatrixShape::new(state, hidden))?;
                let d = Operand::interleaved_lines(self.step_address(dh_projected, chunks.start, state), state);
                let m = Operand::interleaved_lines(self.step_address(operand, chunks.start, hidden), hidden);
                let acc = acc.and_then(|acc| acc.projection.as_ref()).map(|acc| (acc, 0));
                self.outer_products((d, state), (m, hidden), chunks, acc, (&out, 0))?;
                Some(out)
            }
            None => None,
        };
        let peephole = match spec.cell {
            CellKind::PeepholeDiagonal => {
                let after = chunks.start + usize::from(!spec.reverse);
                let vector = |k: usize, gate: usize, c_index: usize| {
                    let factor = self.step_address(&trace.c, c_index, hidden);
                    let active_counts = trace.active_counts.as_ref();
                    let active_counts = active_counts.map_or(0, |counts| offset(self.address(counts), chunks.start));
                    let batch = kernel_size(OP, batch)?;
                    let acc = acc.and_then(|acc| acc.peephole.as_ref()).map(|vectors| &vectors[k]);
                    let d = (offset(dz, gate * hidden), gates);
                    let change = |args| ColumnSumArgs { factor, active_counts, batch, ..args };
                    self.sum_columns(d, [rows, hidden], chunks, acc, change)
                };
                Some([vector(0, 0, before)?, vector(1, 1, before)?, vector(2, 3, after)?])
            }
            _ => None,
        };
        Ok(WeightGradients { input: w, recurrent: u, bias, projection, peephole })
    }

    fn allocate(&self, shape: MatrixShape) -> Result<Tensor<D>> {
        self.backend.tensor(OP, shape)
    }

    /// Computes `acc + d^T x`, summed over the rows of each chunk. `d` and `x` are operands that start at the first
    /// chunk, each with its number of columns. `acc` and `out` are tensors, each with the index of its first row to be
    /// used.
    fn outer_products(
        &self,
        (d, d_cols): (Operand, usize),
        (x, x_cols): (Operand, usize),
        chunks: Chunks,
        acc: Option<(&Tensor<D>, usize)>,
        (out, row): (&Tensor<D>, usize),
    ) -> Result<()> {
        let (driver, batch) = (&self.backend.driver, self.trace.batch);
        let row_address = |tensor: &Tensor<D>, row: usize| offset(self.address(&tensor.data), row * x_cols);
        let (mut acc, out) = (acc.map(|(acc, row)| (row_address(acc, row), x_cols)), row_address(out, row));
        let shape = [d_cols, x_cols, chunks.steps * batch];
        let chunk_stride = |operand: Operand| chunks.stride * (batch * operand.depth_stride) as isize;
        let separate = chunks.count == 1
            || launches_segments_separately(driver, shape)
            || [d, x].into_iter().any(|operand| signed_stride(OP, chunk_stride(operand)).is_err());
        let (launches, segments) = if separate { (chunks.count, 1) } else { (1, chunks.count) };
        for n in 0..launches {
            let chunk = |operand: Operand| Operand {
                address: operand.address.wrapping_add_signed(4 * n as i64 * chunk_stride(operand) as i64),
                segment_stride: if separate { 0 } else { chunk_stride(operand) },
                ..operand
            };
            driver.launch(OP, &gemm(driver, OP, shape, segments, (chunk(d), chunk(x)), acc, out)?)?;
            acc = Some((out, x_cols));
        }
        Ok(())
    }

    /// Sums the columns of a matrix, given by its address and row stride, over the rows of each chunk, and adds them to
    /// `acc`. `change` sets further options of the kernel.
    fn sum_columns(
        &self,
        d: (Address, usize),
        shape: [usize; 2],
        chunks: Chunks,
        acc: Option<&Tensor<D>>,
        change: impl Fn(ColumnSumArgs) -> ColumnSumArgs,
    ) -> Result<Tensor<D>> {
        let out = self.allocate(MatrixShape::new(1, shape[1]))?;
        let acc = acc.map(|acc| self.address(&acc.data));
        let args = column_sum_args(OP, d, shape, acc, self.address(&out.data))?;
        let segment_stride = signed_stride(OP, chunks.stride * self.trace.batch as isize)?;
        let args = ColumnSumArgs { segments: kernel_size(OP, chunks.count)?, segment_stride, ..args };
        self.backend.driver.launch(OP, &column_sums(OP, change(args))?)?;
        Ok(out)
    }
}
