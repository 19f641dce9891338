//! A complete backend in plain Rust, shown in `CONTRIBUTING.md`: the primitives, and nothing else.

use std::{
    future::{Future, ready},
    ops::Range,
    sync::Arc,
};

use lstm_core::{
    Arithmetic, ConcatAxis, MatrixRef, MatrixShape, Ops, QuantizedMatrix, ReferencePath, Result,
    arithmetic::{self, MAGNITUDE_BITS},
    quantized::{OperandRange, RowScale, to_int},
    shape::{
        check_clip, check_concat, check_download, check_gemm, check_row_broadcast, check_select_between, check_slice,
        check_upload, zeros,
    },
};

/// The backend. It keeps tensors in host memory and computes on one thread.
#[derive(Clone, Debug, Default)]
pub struct Toy;

/// A row-major matrix; a clone shares its elements.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: MatrixShape,
    data: Arc<Vec<f32>>,
}

impl Tensor {
    /// Computes each element from its row and column. A shape that does not fit in memory is an error.
    fn from_fn(op: &'static str, shape: MatrixShape, element: impl Fn(usize, usize) -> f32) -> Result<Self> {
        let mut data = zeros(op, &[shape.rows, shape.cols])?;
        for (k, value) in data.iter_mut().enumerate() {
            *value = element(k / shape.cols, k % shape.cols);
        }
        Ok(Tensor { shape, data: Arc::new(data) })
    }

    fn at(&self, row: usize, col: usize) -> f32 {
        self.data[row * self.shape.cols + col]
    }

    /// The element at `row` and `col`, where a matrix of one row is broadcast to every row.
    fn broadcast(&self, row: usize, col: usize) -> f32 {
        self.at(if self.shape.rows == 1 { 0 } else { row }, col)
    }

    fn map(&self, op: &'static str, function: impl Fn(f32) -> f32) -> Result<Self> {
        Tensor::from_fn(op, self.shape, |row, col| function(self.at(row, col)))
    }
}

/// Takes the reference path for everything that is not a primitive.
impl ReferencePath for Toy {}

impl Ops for Toy {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        "toy"
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Exact
    }

    fn shape(&self, x: &Tensor) -> MatrixShape {
        x.shape
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor { shape, data: Arc::new(data.to_vec()) })
    }

    fn download(&self, x: &Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> {
        ready(check_download(x.shape, out.len()).map(|()| out.copy_from_slice(&x.data)))
    }

    fn snap(&self, x: Tensor) -> Result<Tensor> {
        x.map("snap", arithmetic::snap)
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        let (a_shape, b_shape) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
        let shape = check_gemm(a_shape, b_shape, acc.map(|acc| acc.shape))?;
        let element = |m: MatrixRef<'_, Tensor>, row: usize, col: usize| match m.transposed {
            true => m.tensor.at(col, row),
            false => m.tensor.at(row, col),
        };
        Tensor::from_fn("gemm", shape, |row, col| {
            let sum = arithmetic::dot(a_shape.cols, |k| element(a, row, k), |k| element(b, k, col));
            acc.map_or(sum, |acc| acc.broadcast(row, col) + sum)
        })
    }

    fn gemm_quantized(
        &self,
        a: &Tensor,
        w: &QuantizedMatrix<Tensor>,
        range: OperandRange,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        let shape = w.check_gemm(a.shape, acc.map(|acc| acc.shape), |t| t.shape)?;
        let inputs = a.shape.cols;
        let magnitudes: Vec<u32> = (0..shape.rows)
            .map(|row| (0..inputs).map(|k| a.at(row, k).to_bits() & MAGNITUDE_BITS).max().unwrap_or(0))
            .collect();
        Tensor::from_fn("gemm_quantized", shape, |row, col| {
            let RowScale { to_integer, from_integer } = w.format.row_scale(magnitudes[row], range);
            let integer = |k| if to_integer == 0.0 { 0 } else { to_int(a.at(row, k), to_integer) };
            let scale = w.scale.at(0, col) * from_integer;
            (0..inputs).step_by(w.format.block).fold(acc.map_or(0.0, |acc| acc.broadcast(row, col)), |z, start| {
                let block = start..inputs.min(start + w.format.block);
                let sum: i64 = block.map(|k| i64::from(integer(k)) * w.q.at(col, k) as i64).sum();
                (sum as f32).mul_add(scale, z)
            })
        })
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        let shape = check_row_broadcast("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_row_broadcast("mul_add summand", shape, c.map(|c| c.shape))?;
        Tensor::from_fn("mul_add", shape, |row, col| {
            let (scaled, b) = (alpha * a.at(row, col), b.map_or(1.0, |b| b.broadcast(row, col)));
            c.map_or(scaled * b, |c| scaled.mul_add(b, c.broadcast(row, col)))
        })
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        x.map("sigmoid", arithmetic::sigmoid)
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        x.map("tanh", arithmetic::tanh)
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        check_clip(bound)?;
        x.map("clip", |v| arithmetic::clip(v, bound))
    }

    fn select_between(&self, x: Tensor, by: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        Tensor::from_fn("select_between", x.shape, |row, col| {
            let by = by.at(row, col);
            let is_outside = by <= low.at(0, col) || by >= high.at(0, col);
            if is_outside { 0.0 } else { x.at(row, col) }
        })
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        Tensor::from_fn("slice", shape, |row, col| x.at(rows.start + row, cols.start + col))
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let mut data = Vec::with_capacity(shape.len());
        match axis {
            ConcatAxis::Rows => parts.iter().for_each(|part| data.extend_from_slice(&part.data)),
            ConcatAxis::Cols => {
                for row in 0..shape.rows {
                    parts.iter().for_each(|part| data.extend((0..part.shape.cols).map(|col| part.at(row, col))));
                }
            }
        }
        Ok(Tensor { shape, data: Arc::new(data) })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn contributing_shows_this_file() {
        let (code, _) = include_str!("toy.rs").split_once("\n#[cfg(test)]").unwrap();
        assert!(include_str!("../../CONTRIBUTING.md").contains(code), "copy tests/src/toy.rs to CONTRIBUTING.md");
    }
}
