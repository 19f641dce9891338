//! The primitive operations of the backend, each of which dispatches a kernel, and the general matrix product that the
//! forward and backward passes use.

use std::{ops::Range, sync::Arc};

use lstm_core::{
    ConcatAxis, MatrixRef, MatrixShape, QuantizedMatrix, Result,
    quantized::{ONE_BITS, OperandRange},
    shape::{check_concat, check_gemm, check_row_broadcast, check_select_between, check_slice},
};

use crate::{
    device::Gpu,
    memory::{DeviceMemory, Tensor},
    shader::{
        CopyParameters, GemmParameters, GemmQuantizedParameters, Kernel, MulAddParameters, OPERAND_ABSENT,
        OPERAND_FULL, OPERAND_ROW, Parameters, QuantizeRowsParameters, SelectBetweenParameters, Unary, UnaryParameters,
    },
};

/// Smallest number of elements of a product for which the tiled or blocked kernel is faster than the direct one.
const MIN_TILED_ELEMENTS: usize = 64 * 64;

/// Layout of an optional operand: absent, a matrix of shape `full_shape`, or a single row.
fn operand_layout(full_shape: MatrixShape, operand: Option<MatrixShape>) -> u32 {
    match operand {
        None => OPERAND_ABSENT,
        Some(shape) if shape == full_shape => OPERAND_FULL,
        Some(_) => OPERAND_ROW,
    }
}

/// Whether a product of this shape is computed in tiles or blocks.
fn is_large(shape: MatrixShape) -> bool {
    shape.len() >= MIN_TILED_ELEMENTS && shape.rows >= 16 && shape.cols >= 16
}

impl Gpu {
    pub(crate) fn apply_unary(&self, op: &'static str, operation: Unary, x: &Tensor, bound: f32) -> Result<Tensor> {
        let y = self.allocate_tensor(op, x.shape)?;
        let len = x.shape.len();
        let parameters = UnaryParameters { len: len as u32, bound };
        self.dispatch_elementwise(op, Kernel::Unary(operation), &[&x.memory, &y.memory], &parameters, len)?;
        Ok(y)
    }

    /// Dispatches a kernel with one invocation for each of `len` elements.
    fn dispatch_elementwise(
        &self,
        op: &'static str,
        kernel: Kernel,
        buffers: &[&Arc<DeviceMemory>],
        parameters: &impl Parameters,
        len: usize,
    ) -> Result<()> {
        self.bind_and_dispatch(op, kernel, buffers, parameters, len.div_ceil(kernel.workgroup_size() as usize))
    }

    pub(crate) fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        let op = "mul_add";
        let shape = check_row_broadcast("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_row_broadcast("mul_add summand", shape, c.map(|c| c.shape))?;
        let y = self.allocate_tensor(op, shape)?;
        let parameters = MulAddParameters {
            len: shape.len() as u32,
            cols: shape.cols as u32,
            b_layout: operand_layout(shape, b.map(|b| b.shape)),
            c_layout: operand_layout(shape, c.map(|c| c.shape)),
            alpha,
        };
        let buffers = [&a.memory, &b.unwrap_or(a).memory, &c.unwrap_or(a).memory, &y.memory];
        self.dispatch_elementwise(op, Kernel::MulAdd, &buffers, &parameters, shape.len())?;
        Ok(y)
    }

    pub(crate) fn select_between(&self, x: &Tensor, key: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        let op = "select_between";
        check_select_between(x.shape, key.shape, low.shape, high.shape)?;
        let y = self.allocate_tensor(op, x.shape)?;
        let len = x.shape.len();
        let parameters = SelectBetweenParameters { len: len as u32, cols: x.shape.cols as u32 };
        let buffers = [&x.memory, &key.memory, &low.memory, &high.memory, &y.memory];
        self.dispatch_elementwise(op, Kernel::SelectBetween, &buffers, &parameters, len)?;
        Ok(y)
    }

    /// Copies a rectangle of `x` to a rectangle of `y`.
    pub(crate) fn copy_rectangle(
        &self,
        op: &'static str,
        x: &Arc<DeviceMemory>,
        y: &Arc<DeviceMemory>,
        parameters: &CopyParameters,
    ) -> Result<()> {
        let len = parameters.rows as usize * parameters.cols as usize;
        self.dispatch_elementwise(op, Kernel::Copy, &[x, y], parameters, len)
    }

    pub(crate) fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let y = self.allocate_tensor("slice", shape)?;
        let parameters = CopyParameters {
            rows: shape.rows as u32,
            cols: shape.cols as u32,
            x_offset: (rows.start * x.shape.cols + cols.start) as u32,
            x_stride: x.shape.cols as u32,
            y_offset: 0,
            y_stride: shape.cols as u32,
            snap_values: 0,
        };
        self.copy_rectangle("slice", &x.memory, &y.memory, &parameters)?;
        Ok(y)
    }

    /// Copies contiguous elements of `x`, starting at `offset`, to a tensor of shape `shape`.
    pub(crate) fn copy_rows(
        &self,
        op: &'static str,
        x: &Arc<DeviceMemory>,
        offset: usize,
        shape: MatrixShape,
    ) -> Result<Tensor> {
        let y = self.allocate_tensor(op, shape)?;
        let (rows, cols) = (shape.rows as u32, shape.cols as u32);
        let x_offset = offset as u32;
        let parameters =
            CopyParameters { rows, cols, x_offset, x_stride: cols, y_offset: 0, y_stride: cols, snap_values: 0 };
        self.copy_rectangle(op, x, &y.memory, &parameters)?;
        Ok(y)
    }

    pub(crate) fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let y = self.allocate_tensor("concat", shape)?;
        let mut y_offset = 0;
        for part in parts {
            let (rows, cols) = (part.shape.rows as u32, part.shape.cols as u32);
            let y_stride = shape.cols as u32;
            let parameters =
                CopyParameters { rows, cols, x_offset: 0, x_stride: cols, y_offset, y_stride, snap_values: 0 };
            self.copy_rectangle("concat", &part.memory, &y.memory, &parameters)?;
            y_offset += match axis {
                ConcatAxis::Rows => rows * y_stride,
                ConcatAxis::Cols => cols,
            };
        }
        Ok(y)
    }

    pub(crate) fn gemm(
        &self,
        a: MatrixRef<'_, Tensor>,
        b: MatrixRef<'_, Tensor>,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        let (a_shape, b_shape) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
        let shape = check_gemm(a_shape, b_shape, acc.map(|acc| acc.shape))?;
        let strides = |matrix: MatrixRef<'_, Tensor>| match (matrix.transposed, matrix.tensor.shape.cols as u32) {
            (false, cols) => (cols, 1),
            (true, cols) => (1, cols),
        };
        let ((a_row_stride, a_k_stride), (b_k_stride, b_col_stride)) = (strides(a), strides(b));
        let k = a_shape.cols as u32;
        let parameters = GemmParameters {
            k,
            segment_length: k,
            segment_count: 1,
            a_row_stride,
            a_k_stride,
            b_k_stride,
            b_col_stride,
            ..GemmParameters::default()
        };
        self.matrix_product("gemm", &a.tensor.memory, &b.tensor.memory, acc, shape, parameters)
    }

    /// General matrix product. Sets `m`, `n` and `acc_layout` of `parameters` from `shape` and `acc`.
    pub(crate) fn matrix_product(
        &self,
        op: &'static str,
        a: &Arc<DeviceMemory>,
        b: &Arc<DeviceMemory>,
        acc: Option<&Tensor>,
        shape: MatrixShape,
        parameters: GemmParameters,
    ) -> Result<Tensor> {
        let y = self.allocate_tensor(op, shape)?;
        let parameters = GemmParameters {
            m: shape.rows as u32,
            n: shape.cols as u32,
            acc_layout: operand_layout(shape, acc.map(|acc| acc.shape)),
            ..parameters
        };
        let (kernel, workgroups) = self.gemm_kernel(shape);
        let buffers = [a, b, acc.map_or(a, |acc| &acc.memory), &y.memory];
        self.bind_and_dispatch(op, kernel, &buffers, &parameters, workgroups)?;
        Ok(y)
    }

    pub(crate) fn gemm_quantized(
        &self,
        a: &Tensor,
        w: &QuantizedMatrix<Tensor>,
        range: OperandRange,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        let op = "gemm_quantized";
        let shape = w.check_gemm(a.shape, acc.map(|acc| acc.shape), |t| t.shape)?;
        let (rows, cols, inner) = (shape.rows as u32, shape.cols as u32, a.shape.cols as u32);
        let integers = self.allocate_tensor(op, a.shape)?;
        let from_integer = self.allocate(op, shape.rows)?;
        let min_magnitude = match range {
            OperandRange::Any => 0,
            OperandRange::Unit => ONE_BITS,
        };
        let parameters = QuantizeRowsParameters { rows, cols: inner, min_magnitude };
        let kernel = Kernel::QuantizeRows { max: w.format.max };
        self.bind_and_dispatch(op, kernel, &[&a.memory, &integers.memory, &from_integer], &parameters, shape.rows)?;

        let y = self.allocate_tensor(op, shape)?;
        let acc_layout = operand_layout(shape, acc.map(|acc| acc.shape));
        let parameters = GemmQuantizedParameters { rows, cols, inner, block: w.format.block as u32, acc_layout };
        let acc = acc.unwrap_or(&integers);
        let buffers = [&integers.memory, &from_integer, &w.q.memory, &w.scale.memory, &acc.memory, &y.memory];
        let (kernel, invocations) = if is_large(shape) {
            (Kernel::GemmQuantizedBlocked, shape.rows.div_ceil(4) * shape.cols.div_ceil(4))
        } else {
            (Kernel::GemmQuantized, shape.len())
        };
        self.dispatch_elementwise(op, kernel, &buffers, &parameters, invocations)?;
        Ok(y)
    }

    /// Kernel for a matrix product with a result of this shape, and its number of workgroups.
    pub(crate) fn gemm_kernel(&self, shape: MatrixShape) -> (Kernel, usize) {
        let kernel_and_workgroups = |kernel: Kernel, n: usize| (kernel, n.div_ceil(kernel.workgroup_size() as usize));
        if !is_large(shape) {
            kernel_and_workgroups(Kernel::GemmDirect, shape.len())
        } else if self.is_cpu {
            // On a CPU, the barriers of the tiled kernel cost more than its tiles save.
            kernel_and_workgroups(Kernel::GemmBlocked, shape.rows.div_ceil(4) * shape.cols.div_ceil(4))
        } else {
            (Kernel::GemmTiled, shape.rows.div_ceil(64) * shape.cols.div_ceil(64))
        }
    }
}
