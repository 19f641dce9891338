//! A backend that computes in f64, for checks of the backward pass by finite differences. It implements the primitives
//! only, so that its passes are those of the reference path in `lstm-core`.

use std::{
    future::{Future, ready},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard},
};

use lstm_core::{
    Arithmetic, ConcatAxis, Error, MatrixRef, MatrixShape, MaybeSend, Ops, QuantizedMatrix, ReferencePath, Result,
    arithmetic::{Digest, GradientScale},
    quantized::OperandRange,
    shape::{
        check_clip, check_concat, check_download, check_gemm, check_row_broadcast, check_select_between, check_slice,
        check_upload,
    },
};

/// A fault in one call of a primitive, for mutation tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OpFault {
    /// The result is multiplied by 1.01.
    Scaled,
    /// The second factor of `mul_add` is treated as 1, or `select_between` selects every element.
    IgnoredFactor,
    /// The addend of `mul_add` or `gemm` is treated as 0.
    IgnoredAddend,
}

impl OpFault {
    /// All kinds of fault.
    pub const ALL: [OpFault; 3] = [OpFault::Scaled, OpFault::IgnoredFactor, OpFault::IgnoredAddend];
}

/// A row-major matrix of `f64`.
#[derive(Clone, Debug)]
pub struct Matrix {
    shape: MatrixShape,
    data: Arc<[f64]>,
}

impl Matrix {
    /// Element `k` in row-major order. A matrix of one row is broadcast to every row.
    fn at(&self, k: usize) -> f64 {
        self.data[k % self.data.len()]
    }
}

/// A backend whose primitives compute in `f64`; everything else is the reference path.
///
/// `snap` is the identity and the activations are those of the standard library, because finite differences need smooth
/// functions.
///
/// Downloads return `f32`, which would lose precision. A download therefore stores the `f64` values in a list and returns
/// their indices in the list as handles; [`read`](Self::read) returns the value of a handle. A fault can be
/// [injected](Self::inject_fault) to test that a check detects it.
#[derive(Clone, Debug, Default)]
pub struct F64Backend(Arc<Mutex<SharedState>>);

/// State that the clones of a backend share.
#[derive(Debug, Default)]
struct SharedState {
    /// All downloaded values. The handles that downloads return are indices into this list.
    downloads: Vec<f64>,
    /// Digest of which elements each call of `clip` changed, and whether it raised or lowered them, and of which elements
    /// each call of `select_between` set to zero.
    kink_pattern: Digest,
    /// Number of calls of primitives that compute values, since the last call of `inject_fault`.
    call_count: usize,
    /// The injected fault and the index of the call that contains it.
    fault: Option<(usize, OpFault)>,
    /// Name of the primitive whose result the fault changed.
    changed_primitive: Option<&'static str>,
}

impl F64Backend {
    fn shared(&self) -> MutexGuard<'_, SharedState> {
        self.0.lock().expect("no thread panicked while it held the lock")
    }

    /// Returns the value of a handle that a download returned. `scale` is the scale of the gradients in the pass that returned
    /// the handle.
    pub fn read(&self, handle: f32, scale: GradientScale) -> f64 {
        self.shared().downloads[scale.scale_value(handle) as usize] * f64::from(scale.unscale_value(1.0))
    }

    /// Clears the downloaded values and the pattern of kinks. Handles that were returned before become invalid.
    pub fn clear(&self) {
        let mut shared = self.shared();
        shared.downloads.clear();
        shared.kink_pattern = Digest::default();
    }

    /// Digest of which elements were clipped or set to zero since [`clear`](Self::clear), and at which bound. If two passes
    /// have equal digests, the loss is smooth between their inputs.
    pub fn kink_pattern(&self) -> Digest {
        self.shared().kink_pattern
    }

    /// Injects a fault into one of the next calls of primitives that compute values. The number is the index of the
    /// call, counted from 0. `None` removes the fault.
    pub fn inject_fault(&self, fault: Option<(usize, OpFault)>) {
        let mut shared = self.shared();
        (shared.call_count, shared.changed_primitive, shared.fault) = (0, None, fault);
    }

    /// Number of calls of primitives that compute values, since the last call of [`inject_fault`](Self::inject_fault).
    pub fn call_count(&self) -> usize {
        self.shared().call_count
    }

    /// Name of the primitive whose result the injected fault changed. `None` if no result changed, for example because the
    /// call has no such operand or the operand is zero.
    pub fn changed_primitive(&self) -> Option<&'static str> {
        self.shared().changed_primitive
    }

    /// Computes a matrix element by element and counts the call. `value` gets the fault to apply, if any, and the index
    /// of the element.
    fn compute(
        &self,
        primitive: &'static str,
        shape: MatrixShape,
        value: impl Fn(Option<OpFault>, usize) -> f64,
    ) -> Matrix {
        let correct_data: Arc<[f64]> = (0..shape.len()).map(|k| value(None, k)).collect();
        let mut shared = self.shared();
        let call_index = shared.call_count;
        shared.call_count += 1;
        let data = match shared.fault {
            Some((faulty_call, fault)) if faulty_call == call_index => {
                let factor = if fault == OpFault::Scaled { 1.01 } else { 1.0 };
                let faulty_data: Arc<[f64]> = (0..shape.len()).map(|k| factor * value(Some(fault), k)).collect();
                shared.changed_primitive = (faulty_data != correct_data).then_some(primitive);
                faulty_data
            }
            _ => correct_data,
        };
        Matrix { shape, data }
    }

    fn map(&self, primitive: &'static str, x: &Matrix, f: impl Fn(f64) -> f64) -> Matrix {
        self.compute(primitive, x.shape, |_, k| f(x.data[k]))
    }
}

impl Ops for F64Backend {
    type Tensor = Matrix;

    fn name(&self) -> &str {
        "f64"
    }
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Inexact("computes in f64 and does not snap".into())
    }
    fn shape(&self, x: &Matrix) -> MatrixShape {
        x.shape
    }
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Matrix> {
        check_upload(shape, data.len())?;
        Ok(Matrix { shape, data: data.iter().map(|&v| v.into()).collect() })
    }
    fn download(&self, x: &Matrix, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        let size_check = check_download(x.shape, out.len());
        if size_check.is_ok() {
            let downloads = &mut self.shared().downloads;
            assert!(downloads.len() + out.len() < 1 << f32::MANTISSA_DIGITS, "f32 can't represent the handle");
            out.iter_mut().enumerate().for_each(|(k, v)| *v = (downloads.len() + k) as f32);
            downloads.extend_from_slice(&x.data);
        }
        ready(size_check)
    }
    fn snap(&self, x: Matrix) -> Result<Matrix> {
        Ok(x)
    }
    fn gemm(&self, a: MatrixRef<'_, Matrix>, b: MatrixRef<'_, Matrix>, acc: Option<&Matrix>) -> Result<Matrix> {
        let (shape_a, shape_b) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
        let shape = check_gemm(shape_a, shape_b, acc.map(|acc| acc.shape))?;
        // The row stride and the column stride.
        let strides =
            |m: MatrixRef<'_, Matrix>| if m.transposed { (1, m.tensor.shape.cols) } else { (m.tensor.shape.cols, 1) };
        let ((a_row_stride, a_col_stride), (b_row_stride, b_col_stride)) = (strides(a), strides(b));
        Ok(self.compute("gemm", shape, |fault, k| {
            let (i, j) = (k / shape.cols, k % shape.cols);
            let term = |p| {
                a.tensor.data[i * a_row_stride + p * a_col_stride] * b.tensor.data[p * b_row_stride + j * b_col_stride]
            };
            let acc = acc.filter(|_| fault != Some(OpFault::IgnoredAddend)).map_or(0.0, |acc| acc.at(k));
            acc + (0..shape_a.cols).map(term).sum::<f64>()
        }))
    }
    fn gemm_quantized(
        &self,
        _: &Matrix,
        _: &QuantizedMatrix<Matrix>,
        _: OperandRange,
        _: Option<&Matrix>,
    ) -> Result<Matrix> {
        Err(Error::config("precision", "this backend computes gradients in f64, which quantized weights do not have"))
    }
    fn mul_add(&self, alpha: f32, a: &Matrix, b: Option<&Matrix>, c: Option<&Matrix>) -> Result<Matrix> {
        for operand in [b, c] {
            check_row_broadcast("mul_add", a.shape, operand.map(|x| x.shape))?;
        }
        Ok(self.compute("mul_add", a.shape, |fault, k| {
            let b = b.filter(|_| fault != Some(OpFault::IgnoredFactor)).map_or(1.0, |b| b.at(k));
            let c = c.filter(|_| fault != Some(OpFault::IgnoredAddend)).map_or(0.0, |c| c.at(k));
            f64::from(alpha) * a.data[k] * b + c
        }))
    }
    fn sigmoid(&self, x: Matrix) -> Result<Matrix> {
        Ok(self.map("sigmoid", &x, |v| 1.0 / (1.0 + (-v).exp())))
    }
    fn tanh(&self, x: Matrix) -> Result<Matrix> {
        Ok(self.map("tanh", &x, f64::tanh))
    }
    fn clip(&self, x: Matrix, bound: f32) -> Result<Matrix> {
        check_clip(bound)?;
        let bound = f64::from(bound);
        let mut pattern = self.shared().kink_pattern;
        x.data.iter().for_each(|&v| pattern.add(if v.abs() > bound { v.signum() as f32 } else { 0.0 }));
        self.shared().kink_pattern = pattern;
        Ok(self.map("clip", &x, |v| v.clamp(-bound, bound)))
    }
    fn select_between(&self, x: Matrix, by: &Matrix, low: &Matrix, high: &Matrix) -> Result<Matrix> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        let is_outside = |k| by.data[k] <= low.at(k) || by.data[k] >= high.at(k);
        let mut pattern = self.shared().kink_pattern;
        (0..x.shape.len()).for_each(|k| pattern.add(if is_outside(k) { 1.0 } else { 0.0 }));
        self.shared().kink_pattern = pattern;
        Ok(self.compute("select_between", x.shape, |fault, k| {
            if is_outside(k) && fault != Some(OpFault::IgnoredFactor) { 0.0 } else { x.data[k] }
        }))
    }
    fn slice(&self, x: &Matrix, rows: Range<usize>, cols: Range<usize>) -> Result<Matrix> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let source_index = |k| (rows.start + k / shape.cols) * x.shape.cols + cols.start + k % shape.cols;
        Ok(Matrix { shape, data: (0..shape.len()).map(|k| x.data[source_index(k)]).collect() })
    }
    fn concat(&self, axis: ConcatAxis, parts: &[Matrix]) -> Result<Matrix> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let row = |part: &Matrix, r| part.data[r * part.shape.cols..(r + 1) * part.shape.cols].to_vec();
        let data = match axis {
            ConcatAxis::Rows => parts.iter().flat_map(|part| part.data.to_vec()).collect(),
            ConcatAxis::Cols => (0..shape.rows).flat_map(|r| parts.iter().flat_map(move |part| row(part, r))).collect(),
        };
        Ok(Matrix { shape, data })
    }
}

impl ReferencePath for F64Backend {}

#[cfg(test)]
mod tests {
    use super::*;

    fn upload_row(b: &F64Backend, values: &[f32]) -> Matrix {
        b.upload(MatrixShape::new(1, values.len()), values).unwrap()
    }

    #[test]
    fn primitives_match_hand_computed_values() {
        let b = F64Backend::default();
        let a = b.upload(MatrixShape::new(2, 3), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let (ones, acc) = (upload_row(&b, &[1.0; 3]), upload_row(&b, &[0.5, 0.25]));
        let row_sums = b.gemm((&ones).into(), MatrixRef::from(&a).t(), Some(&acc)).unwrap();
        assert_eq!((row_sums.shape, &*row_sums.data), (MatrixShape::new(1, 2), &[6.5, 15.25][..]));
        let outer_product = b.gemm(MatrixRef::from(&acc).t(), (&ones).into(), None).unwrap();
        assert_eq!(*outer_product.data, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]);
        let scaled_matrix = b.mul_add(-2.0, &a, Some(&upload_row(&b, &[1.0, 0.0, 3.0])), Some(&ones)).unwrap();
        assert_eq!(*scaled_matrix.data, [-1.0, 1.0, -17.0, -7.0, 1.0, -35.0]);
        let rotated_matrix =
            b.concat(ConcatAxis::Cols, &[b.slice(&a, 0..2, 2..3).unwrap(), b.slice(&a, 0..2, 0..2).unwrap()]);
        assert_eq!(*rotated_matrix.unwrap().data, [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
        assert!(b.gemm((&a).into(), (&a).into(), None).is_err() && b.mul_add(1.0, &ones, Some(&a), None).is_err());
    }

    #[test]
    fn select_between_excludes_the_bounds_and_includes_nan() {
        let b = F64Backend::default();
        let (low, high) = (upload_row(&b, &[-1.0, -1.0, -1.0, -1.0, f32::NAN]), upload_row(&b, &[2.0; 5]));
        let by = upload_row(&b, &[-1.0, 2.0, 1.5, f32::NAN, 1.0]);
        let selected = b.select_between(upload_row(&b, &[7.0, 7.0, 7.0, 7.0, 7.0]), &by, &low, &high).unwrap();
        assert_eq!(*selected.data, [0.0, 0.0, 7.0, 7.0, 7.0]);
        assert!(b.select_between(low.clone(), &by, &low, &upload_row(&b, &[1.0])).is_err());
    }

    #[test]
    fn kink_pattern_depends_on_clipped_elements_and_their_signs() {
        let clip = |values: &[f32]| {
            let b = F64Backend::default();
            let clipped = b.clip(upload_row(&b, values), 0.5).unwrap();
            (clipped.data.to_vec(), b.kink_pattern())
        };
        let (values, pattern) = clip(&[1.0, -1.0, 0.25]);
        assert_eq!(values, [0.5, -0.5, 0.25]);
        assert_eq!(pattern, clip(&[0.75, -2.0, -0.25]).1);
        assert_ne!(pattern, clip(&[1.0, 1.0, 0.25]).1);
        assert_ne!(pattern, clip(&[1.0, -0.5, 0.25]).1);
    }

    #[test]
    fn handles_give_values_in_f64_precision() {
        let b = F64Backend::default();
        let tanh = b.tanh(upload_row(&b, &[0.5, -3.0])).unwrap();
        let mut handles = [[0.0; 2]; 2];
        handles.iter_mut().for_each(|out| pollster::block_on(b.download(&tanh, out)).unwrap());
        let scale = GradientScale::of(&[8.0]);
        assert_eq!(b.read(handles[1][1], GradientScale::of(&[1.0])), (-3f64).tanh());
        assert_eq!(b.read(scale.unscale_value(handles[1][0]), scale), 0.5f64.tanh() * 8.0);
    }

    #[test]
    fn fault_changes_one_call() {
        let b = F64Backend::default();
        let (matrix_of_two, matrix_of_five) = (upload_row(&b, &[2.0]), upload_row(&b, &[5.0]));
        for (fault, faulty) in
            [(OpFault::Scaled, 12.0 * 1.01), (OpFault::IgnoredFactor, 4.0), (OpFault::IgnoredAddend, 10.0)]
        {
            b.inject_fault(Some((1, fault)));
            let results = [0; 3]
                .map(|_| b.mul_add(1.0, &matrix_of_two, Some(&matrix_of_five), Some(&matrix_of_two)).unwrap().data[0]);
            assert_eq!((results, b.call_count(), b.changed_primitive()), ([12.0, faulty, 12.0], 3, Some("mul_add")));
        }
        b.inject_fault(Some((0, OpFault::IgnoredAddend)));
        b.mul_add(1.0, &matrix_of_two, None, None).unwrap();
        assert_eq!((b.call_count(), b.changed_primitive()), (1, None));
    }
}
