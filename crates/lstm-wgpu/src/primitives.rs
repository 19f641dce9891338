//! The primitives of the trait as dispatches, and the product in the general form that the fused passes use.

use std::{ops::Range, sync::Arc};

use lstm_core::{
    ConcatAxis, MatrixRef, MatrixShape, Result,
    shape::{check_concat, check_gemm, check_rows, check_select_between, check_slice},
};

use crate::{
    gpu::Gpu,
    parameters::{ABSENT, Copy, FULL, Gemm, MulAddParameters, Parameters, ROW, UnaryParameters, WithinParameters},
    shader::{Kernel, Unary},
    tensor::{Memory, Tensor},
};

/// Elements of the result from which tiles pay, where an invocation is not a thread of a CPU.
const TILED: usize = 64 * 64;

fn presence(full: MatrixShape, operand: Option<MatrixShape>) -> u32 {
    match operand {
        None => ABSENT,
        Some(shape) if shape == full => FULL,
        Some(_) => ROW,
    }
}

impl Gpu {
    pub(crate) fn unary(&self, op: &'static str, operation: Unary, x: &Tensor, bound: f32) -> Result<Tensor> {
        let y = self.tensor(op, x.shape)?;
        let len = x.shape.len();
        let parameters = UnaryParameters { len: len as u32, bound };
        self.elementwise(op, Kernel::Unary(operation), &[&x.memory, &y.memory], &parameters, len)?;
        Ok(y)
    }

    fn elementwise(
        &self,
        op: &'static str,
        kernel: Kernel,
        buffers: &[&Arc<Memory>],
        parameters: &impl Parameters,
        len: usize,
    ) -> Result<()> {
        self.run(op, kernel, buffers, parameters, len.div_ceil(kernel.workgroup() as usize))
    }

    pub(crate) fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        let op = "mul_add";
        let shape = check_rows("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_rows("mul_add summand", shape, c.map(|c| c.shape))?;
        let y = self.tensor(op, shape)?;
        let parameters = MulAddParameters {
            len: shape.len() as u32,
            cols: shape.cols as u32,
            b: presence(shape, b.map(|b| b.shape)),
            c: presence(shape, c.map(|c| c.shape)),
            alpha,
        };
        let buffers = [&a.memory, &b.unwrap_or(a).memory, &c.unwrap_or(a).memory, &y.memory];
        self.elementwise(op, Kernel::MulAdd, &buffers, &parameters, shape.len())?;
        Ok(y)
    }

    pub(crate) fn select_between(&self, x: &Tensor, by: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        let y = self.tensor("within", x.shape)?;
        let len = x.shape.len();
        let parameters = WithinParameters { len: len as u32, cols: x.shape.cols as u32 };
        let buffers = [&x.memory, &by.memory, &low.memory, &high.memory, &y.memory];
        self.elementwise("within", Kernel::Within, &buffers, &parameters, len)?;
        Ok(y)
    }

    /// Copies a rectangle.
    pub(crate) fn copy(&self, op: &'static str, x: &Arc<Memory>, y: &Arc<Memory>, parameters: &Copy) -> Result<()> {
        let len = parameters.rows as usize * parameters.cols as usize;
        self.elementwise(op, Kernel::Copy, &[x, y], parameters, len)
    }

    pub(crate) fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let y = self.tensor("slice", shape)?;
        let parameters = Copy {
            rows: shape.rows as u32,
            cols: shape.cols as u32,
            x_start: (rows.start * x.shape.cols + cols.start) as u32,
            x_cols: x.shape.cols as u32,
            y_start: 0,
            y_cols: shape.cols as u32,
            snap: 0,
        };
        self.copy("slice", &x.memory, &y.memory, &parameters)?;
        Ok(y)
    }

    /// Contiguous rows of some memory as a tensor of their own.
    pub(crate) fn rows(&self, op: &'static str, x: &Arc<Memory>, start: usize, shape: MatrixShape) -> Result<Tensor> {
        let y = self.tensor(op, shape)?;
        let (rows, cols) = (shape.rows as u32, shape.cols as u32);
        let parameters = Copy { rows, cols, x_start: start as u32, x_cols: cols, y_start: 0, y_cols: cols, snap: 0 };
        self.copy(op, x, &y.memory, &parameters)?;
        Ok(y)
    }

    pub(crate) fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let y = self.tensor("concat", shape)?;
        let mut start = 0;
        for part in parts {
            let (rows, cols) = (part.shape.rows as u32, part.shape.cols as u32);
            let y_cols = shape.cols as u32;
            let parameters = Copy { rows, cols, x_start: 0, x_cols: cols, y_start: start, y_cols, snap: 0 };
            self.copy("concat", &part.memory, &y.memory, &parameters)?;
            start += match axis {
                ConcatAxis::Rows => rows * y_cols,
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
        let strides = |mat: MatrixRef<'_, Tensor>| match (mat.transposed, mat.tensor.shape.cols as u32) {
            (false, cols) => (cols, 1),
            (true, cols) => (1, cols),
        };
        let ((a_row, a_k), (b_k, b_col)) = (strides(a), strides(b));
        let (k, segments) = (a_shape.cols as u32, 1);
        let parameters = Gemm { k, segment: k, segments, a_row, a_k, b_k, b_col, ..Gemm::default() };
        self.product("gemm", &a.tensor.memory, &b.tensor.memory, acc, shape, parameters)
    }

    /// A product in its general form; sizes and accumulator are filled in here.
    pub(crate) fn product(
        &self,
        op: &'static str,
        a: &Arc<Memory>,
        b: &Arc<Memory>,
        acc: Option<&Tensor>,
        shape: MatrixShape,
        parameters: Gemm,
    ) -> Result<Tensor> {
        let y = self.tensor(op, shape)?;
        let parameters = Gemm {
            m: shape.rows as u32,
            n: shape.cols as u32,
            acc: presence(shape, acc.map(|acc| acc.shape)),
            ..parameters
        };
        let (kernel, groups) = self.gemm_kernel(shape);
        self.run(op, kernel, &[a, b, acc.map_or(a, |acc| &acc.memory), &y.memory], &parameters, groups)?;
        Ok(y)
    }

    /// The kernel for a product of this shape, and how many workgroups it takes.
    pub(crate) fn gemm_kernel(&self, shape: MatrixShape) -> (Kernel, usize) {
        let invocations = |kernel: Kernel, n: usize| (kernel, n.div_ceil(kernel.workgroup() as usize));
        if shape.len() < TILED || shape.rows < 16 || shape.cols < 16 {
            invocations(Kernel::GemmDirect, shape.len())
        } else if self.is_cpu {
            // There a workgroup's barriers cost more than its tiles save.
            invocations(Kernel::GemmBlocked, shape.rows.div_ceil(4) * shape.cols.div_ceil(4))
        } else {
            (Kernel::GemmTiled, shape.rows.div_ceil(64) * shape.cols.div_ceil(64))
        }
    }
}
