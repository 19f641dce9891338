//! A backend in f64 that has only primitives, so that finite differences can check the one definition of the passes.

use std::{
    cell::{Cell, RefCell},
    future::{Future, ready},
    ops::Range,
    rc::Rc,
};

use lstm_core::{
    Arithmetic, ConcatAxis, MatrixRef, MatrixShape, Ops, ReferencePath, Result,
    arithmetic::{Digest, GradientScale},
    shape::{
        check_clip, check_concat, check_download, check_gemm, check_rows, check_select_between, check_slice,
        check_upload,
    },
};

/// An error in one call of a primitive that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slip {
    /// The result is 1.01 times what it should be.
    Off,
    /// The second factor is taken for 1: that of `mul_add`, or the zeros and ones that `within` stands for.
    LostFactor,
    /// What `mul_add` or `gemm` should add is forgotten.
    LostTerm,
}

impl Slip {
    /// All of them.
    pub const ALL: [Slip; 3] = [Slip::Off, Slip::LostFactor, Slip::LostTerm];
}

/// A row-major matrix of f64.
#[derive(Clone, Debug)]
pub struct Matrix {
    shape: MatrixShape,
    data: Rc<[f64]>,
}

impl Matrix {
    /// Element `k`, where one row may stand for every row.
    fn at(&self, k: usize) -> f64 {
        self.data[k % self.data.len()]
    }
}

/// The primitives in f64, everything else from [`mod@reference`]. `snap` is the identity and the activations are those of
/// the standard library: finite differences want smooth functions.
///
/// The host has only f32, so a download gives it receipts, the places of the values in a log, which it hands around as
/// it does values: [`read`](Self::read) takes one back. A planted [`Slip`] lets a test see that a check can fail.
#[derive(Clone, Debug, Default)]
pub struct Double(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// All that was downloaded.
    log: RefCell<Vec<f64>>,
    /// Which elements were bounded, in all calls of `clip`.
    clipped: Cell<Digest>,
    calls: Cell<usize>,
    slip: Cell<Option<(usize, Slip)>>,
    slipped: Cell<Option<&'static str>>,
}

impl Double {
    /// The value behind a receipt that came back from a pass with this scale.
    pub fn read(&self, receipt: f32, scale: GradientScale) -> f64 {
        self.0.log.borrow()[scale.apply(receipt) as usize] * f64::from(scale.undo(1.0))
    }

    /// Starts again: all receipts are void.
    pub fn clear(&self) {
        self.0.log.borrow_mut().clear();
        self.0.clipped.set(Digest::default());
    }

    /// Tells passes apart that clip other elements: between two with the same digest the loss has no kink.
    pub fn clipped(&self) -> Digest {
        self.0.clipped.get()
    }

    /// Plants an error in one of the computing calls from now on, counted from 0, or none.
    pub fn plant(&self, slip: Option<(usize, Slip)>) {
        self.0.calls.set(0);
        self.0.slipped.set(None);
        self.0.slip.set(slip);
    }

    /// How many calls computed since [`plant`](Self::plant).
    pub fn calls(&self) -> usize {
        self.0.calls.get()
    }

    /// The primitive whose result the planted error changed, if it did: it can't where there is no such operand, or zero.
    pub fn slipped(&self) -> Option<&'static str> {
        self.0.slipped.get()
    }

    /// Element by element `value`, which knows what to leave out.
    fn compute(
        &self,
        primitive: &'static str,
        shape: MatrixShape,
        value: impl Fn(Option<Slip>, usize) -> f64,
    ) -> Matrix {
        let shared = &self.0;
        let right: Rc<[f64]> = (0..shape.len()).map(|k| value(None, k)).collect();
        let call = shared.calls.replace(shared.calls.get() + 1);
        let data = match shared.slip.get() {
            Some((at, slip)) if at == call => {
                let off = if slip == Slip::Off { 1.01 } else { 1.0 };
                let wrong: Rc<[f64]> = (0..shape.len()).map(|k| off * value(Some(slip), k)).collect();
                shared.slipped.set((wrong != right).then_some(primitive));
                wrong
            }
            _ => right,
        };
        Matrix { shape, data }
    }

    fn map(&self, primitive: &'static str, x: &Matrix, f: impl Fn(f64) -> f64) -> Matrix {
        self.compute(primitive, x.shape, |_, k| f(x.data[k]))
    }
}

impl Ops for Double {
    type Tensor = Matrix;

    fn name(&self) -> &str {
        "double"
    }
    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Inexact("f64, and snap is the identity".into())
    }
    fn shape(&self, x: &Matrix) -> MatrixShape {
        x.shape
    }
    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Matrix> {
        check_upload(shape, data.len())?;
        Ok(Matrix { shape, data: data.iter().map(|&v| v.into()).collect() })
    }
    fn download(&self, x: &Matrix, out: &mut [f32]) -> impl Future<Output = Result<()>> {
        let checked = check_download(x.shape, out.len());
        if checked.is_ok() {
            let mut log = self.0.log.borrow_mut();
            assert!(log.len() + out.len() < 1 << f32::MANTISSA_DIGITS, "a receipt that f32 does not hold");
            out.iter_mut().enumerate().for_each(|(k, v)| *v = (log.len() + k) as f32);
            log.extend_from_slice(&x.data);
        }
        ready(checked)
    }
    fn snap(&self, x: Matrix) -> Result<Matrix> {
        Ok(x)
    }
    fn gemm(&self, a: MatrixRef<'_, Matrix>, b: MatrixRef<'_, Matrix>, acc: Option<&Matrix>) -> Result<Matrix> {
        let (view_a, view_b) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
        let shape = check_gemm(view_a, view_b, acc.map(|acc| acc.shape))?;
        // Steps from one row and from one column to the next.
        let strides =
            |m: MatrixRef<'_, Matrix>| if m.transposed { (1, m.tensor.shape.cols) } else { (m.tensor.shape.cols, 1) };
        let ((a_row, a_col), (b_row, b_col)) = (strides(a), strides(b));
        Ok(self.compute("gemm", shape, |slip, k| {
            let (i, j) = (k / shape.cols, k % shape.cols);
            let term = |p| a.tensor.data[i * a_row + p * a_col] * b.tensor.data[p * b_row + j * b_col];
            let acc = acc.filter(|_| slip != Some(Slip::LostTerm)).map_or(0.0, |acc| acc.at(k));
            acc + (0..view_a.cols).map(term).sum::<f64>()
        }))
    }
    fn mul_add(&self, alpha: f32, a: &Matrix, b: Option<&Matrix>, c: Option<&Matrix>) -> Result<Matrix> {
        for operand in [b, c] {
            check_rows("mul_add", a.shape, operand.map(|x| x.shape))?;
        }
        Ok(self.compute("mul_add", a.shape, |slip, k| {
            let b = b.filter(|_| slip != Some(Slip::LostFactor)).map_or(1.0, |b| b.at(k));
            let c = c.filter(|_| slip != Some(Slip::LostTerm)).map_or(0.0, |c| c.at(k));
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
        let mut clipped = self.0.clipped.get();
        x.data.iter().for_each(|&v| clipped.add(if v.abs() > bound { v.signum() as f32 } else { 0.0 }));
        self.0.clipped.set(clipped);
        Ok(self.map("clip", &x, |v| v.clamp(-bound, bound)))
    }
    fn select_between(&self, x: Matrix, by: &Matrix, low: &Matrix, high: &Matrix) -> Result<Matrix> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        let outside = |k| by.data[k] <= low.at(k) || by.data[k] >= high.at(k);
        Ok(self.compute(
            "within",
            x.shape,
            |slip, k| {
                if outside(k) && slip != Some(Slip::LostFactor) { 0.0 } else { x.data[k] }
            },
        ))
    }
    fn slice(&self, x: &Matrix, rows: Range<usize>, cols: Range<usize>) -> Result<Matrix> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let from = |k| (rows.start + k / shape.cols) * x.shape.cols + cols.start + k % shape.cols;
        Ok(Matrix { shape, data: (0..shape.len()).map(|k| x.data[from(k)]).collect() })
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

impl ReferencePath for Double {}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(b: &Double, values: &[f32]) -> Matrix {
        b.upload(MatrixShape::new(1, values.len()), values).unwrap()
    }

    #[test]
    fn products_and_sums_by_hand() {
        let b = Double::default();
        let a = b.upload(MatrixShape::new(2, 3), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
        let (ones, acc) = (row(&b, &[1.0; 3]), row(&b, &[0.5, 0.25]));
        let sums = b.gemm((&ones).into(), MatrixRef::from(&a).t(), Some(&acc)).unwrap();
        assert_eq!((sums.shape, &*sums.data), (MatrixShape::new(1, 2), &[6.5, 15.25][..]));
        let outer = b.gemm(MatrixRef::from(&acc).t(), (&ones).into(), None).unwrap();
        assert_eq!(*outer.data, [0.5, 0.5, 0.5, 0.25, 0.25, 0.25]);
        let scaled = b.mul_add(-2.0, &a, Some(&row(&b, &[1.0, 0.0, 3.0])), Some(&ones)).unwrap();
        assert_eq!(*scaled.data, [-1.0, 1.0, -17.0, -7.0, 1.0, -35.0]);
        let turned = b.concat(ConcatAxis::Cols, &[b.slice(&a, 0..2, 2..3).unwrap(), b.slice(&a, 0..2, 0..2).unwrap()]);
        assert_eq!(*turned.unwrap().data, [3.0, 1.0, 2.0, 6.0, 4.0, 5.0]);
        assert!(b.gemm((&a).into(), (&a).into(), None).is_err() && b.mul_add(1.0, &ones, Some(&a), None).is_err());
    }

    #[test]
    fn within_is_open_and_lets_nan_through() {
        let b = Double::default();
        let (low, high) = (row(&b, &[-1.0, -1.0, -1.0, -1.0, f32::NAN]), row(&b, &[2.0; 5]));
        let by = row(&b, &[-1.0, 2.0, 1.5, f32::NAN, 1.0]);
        let within = b.select_between(row(&b, &[7.0, 7.0, 7.0, 7.0, 7.0]), &by, &low, &high).unwrap();
        assert_eq!(*within.data, [0.0, 0.0, 7.0, 7.0, 7.0]);
        assert!(b.select_between(low.clone(), &by, &low, &row(&b, &[1.0])).is_err());
    }

    #[test]
    fn clip_remembers_where() {
        let digest = |values: &[f32]| {
            let b = Double::default();
            let clipped = b.clip(row(&b, values), 0.5).unwrap();
            (clipped.data.to_vec(), b.clipped())
        };
        let (values, at) = digest(&[1.0, -1.0, 0.25]);
        assert_eq!(values, [0.5, -0.5, 0.25]);
        assert_eq!(at, digest(&[0.75, -2.0, -0.25]).1);
        assert_ne!(at, digest(&[1.0, 1.0, 0.25]).1);
        assert_ne!(at, digest(&[1.0, -0.5, 0.25]).1);
    }

    #[test]
    fn receipts_bring_back_more_than_f32_holds() {
        let b = Double::default();
        let tanh = b.tanh(row(&b, &[0.5, -3.0])).unwrap();
        let mut receipts = [[0.0; 2]; 2];
        receipts.iter_mut().for_each(|out| pollster::block_on(b.download(&tanh, out)).unwrap());
        let scale = GradientScale::of(&[8.0]);
        assert_eq!(b.read(receipts[1][1], GradientScale::of(&[1.0])), (-3f64).tanh());
        assert_eq!(b.read(scale.undo(receipts[1][0]), scale), 0.5f64.tanh() * 8.0);
    }

    #[test]
    fn one_call_slips() {
        let b = Double::default();
        let (two, five) = (row(&b, &[2.0]), row(&b, &[5.0]));
        for (slip, wrong) in [(Slip::Off, 12.0 * 1.01), (Slip::LostFactor, 4.0), (Slip::LostTerm, 10.0)] {
            b.plant(Some((1, slip)));
            let sums = [0; 3].map(|_| b.mul_add(1.0, &two, Some(&five), Some(&two)).unwrap().data[0]);
            assert_eq!((sums, b.calls(), b.slipped()), ([12.0, wrong, 12.0], 3, Some("mul_add")));
        }
        b.plant(Some((0, Slip::LostTerm)));
        b.mul_add(1.0, &two, None, None).unwrap();
        assert_eq!((b.calls(), b.slipped()), (1, None));
    }
}
