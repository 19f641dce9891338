//! A fully connected layer, packed for steps without allocation.

use std::{fmt, sync::Arc};

use lstm_core::{
    DeviceMatrix, LinearWeights, MatrixShape, QuantizedMatrix, Result, arithmetic::DOT_BLOCK, arithmetic::snap,
    quantized::OperandRange,
};

use crate::{
    kernel::{
        strided::StridedMatrix,
        table::{Kernels, MAX_PANEL_WIDTH},
        tile::TileArgs,
    },
    memory::{buffer::Buffer, tensor::Tensor},
    ops::integers,
};

/// The weights of a fully connected layer, snapped and packed into panels. A clone shares them.
#[derive(Clone)]
pub struct CpuLinear(Arc<PackedLinear>);

struct PackedLinear {
    weights: LinearWeights<Tensor>,
    /// The integers of a quantized layer, `[out, in]`; empty for f32.
    integers: Vec<i16>,
    /// The kernels for which the weights are packed.
    kernels: &'static Kernels,
    /// The weights, `[panels][in][panel]`. Outputs beyond the last are zero. Empty for a layer with few outputs, which
    /// does not use panels.
    panels: Buffer,
}

impl fmt::Debug for CpuLinear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let MatrixShape { rows, cols } = self.0.weights.weight.shape(|w| w.shape);
        write!(f, "CpuLinear({cols} to {rows})")
    }
}

impl AsRef<LinearWeights<Tensor>> for CpuLinear {
    fn as_ref(&self) -> &LinearWeights<Tensor> {
        &self.0.weights
    }
}

/// Maximum number of outputs for which one dot product per output is faster than the product with a panel, which would
/// be mostly padding.
const MAX_DOT_OUTPUTS: usize = 2;
/// Number of rows of inputs that are multiplied by a panel at once.
const ROWS_AT_ONCE: usize = 4;
/// Number of inputs per row that are multiplied at once. It is a multiple of `DOT_BLOCK`, so that the order of each sum
/// stays the same.
const INPUTS_AT_ONCE: usize = 4 * DOT_BLOCK;

/// An array of floats, aligned to 64 bytes for vector loads.
#[repr(align(64))]
struct AlignedArray<const N: usize>([f32; N]);

impl CpuLinear {
    pub(crate) fn new(kernels: &'static Kernels, weights: LinearWeights<Tensor>) -> Result<Self> {
        let (MatrixShape { rows: output_size, cols: input_size }, width) =
            (weights.weight.shape(|w| w.shape), kernels.panel_width());
        weights.check(|x| x.shape)?;
        let (integers, weight) = match &weights.weight {
            DeviceMatrix::F32(weight) => (Vec::new(), Some(weight)),
            DeviceMatrix::Quantized(weight) => (integers("load_linear", &weight.q)?, None),
        };
        let Some(weight) = weight.filter(|_| output_size > MAX_DOT_OUTPUTS) else {
            return Ok(CpuLinear(Arc::new(PackedLinear { weights, integers, kernels, panels: Buffer::default() })));
        };
        let mut panels = Buffer::zeros("load_linear", &[output_size.div_ceil(width), input_size, width])?;
        for (k, panel) in panels.as_mut_slice().chunks_exact_mut(input_size * width).enumerate() {
            let rows = weight.rows(k * width..output_size.min((k + 1) * width));
            for (output, row) in rows.chunks_exact(input_size).enumerate() {
                row.iter().enumerate().for_each(|(input, &w)| panel[input * width + output] = w);
            }
        }
        Ok(CpuLinear(Arc::new(PackedLinear { weights, integers, kernels, panels })))
    }

    /// Computes rows of outputs on the calling thread; see `Backend::linear_step`.
    pub(crate) fn step(&self, x: &[f32], y: &mut [f32]) -> Result<()> {
        let PackedLinear { weights: LinearWeights { weight, bias }, integers, kernels, panels } = &*self.0;
        let shape = weight.shape(|w| w.shape);
        let (MatrixShape { rows: output_size, cols: input_size }, width) = (shape, kernels.panel_width());
        LinearWeights::<Tensor>::check_step(shape, x, y)?;
        let weight = match weight {
            DeviceMatrix::F32(weight) => weight,
            DeviceMatrix::Quantized(QuantizedMatrix { scale, format, .. }) => {
                let bias = bias.as_ref().map(|bias| bias.as_slice());
                for (x, y) in x.chunks_exact(input_size).zip(y.chunks_exact_mut(output_size)) {
                    y.iter_mut().enumerate().for_each(|(k, y)| *y = bias.map_or(0.0, |bias| bias[k]));
                    format.multiply_row(x, OperandRange::Any, integers, scale.as_slice(), y);
                }
                return Ok(());
            }
        };
        if output_size <= MAX_DOT_OUTPUTS {
            for (x, y) in x.chunks_exact(input_size).zip(y.chunks_exact_mut(output_size)) {
                for (output, (y, w)) in y.iter_mut().zip(weight.as_slice().chunks_exact(input_size)).enumerate() {
                    // SAFETY: the processor supports the kernels; both slices have `input_size` values.
                    let sum = unsafe { (kernels.dot_snapped)(x.as_ptr(), w.as_ptr(), input_size) };
                    *y = bias.as_ref().map_or(sum, |bias| bias.as_slice()[output] + sum);
                }
            }
            return Ok(());
        }
        let mut inputs = AlignedArray([0.0; ROWS_AT_ONCE * INPUTS_AT_ONCE]);
        let mut sums = AlignedArray([0.0; ROWS_AT_ONCE * MAX_PANEL_WIDTH]);
        for (x, y) in x.chunks(ROWS_AT_ONCE * input_size).zip(y.chunks_mut(ROWS_AT_ONCE * output_size)) {
            for (p, panel) in panels.as_slice().chunks_exact(input_size * width).enumerate() {
                for start in (0..input_size).step_by(INPUTS_AT_ONCE) {
                    let input_count = INPUTS_AT_ONCE.min(input_size - start);
                    for (to, row) in inputs.0.chunks_exact_mut(INPUTS_AT_ONCE).zip(x.chunks_exact(input_size)) {
                        to.iter_mut().zip(&row[start..start + input_count]).for_each(|(to, &v)| *to = snap(v));
                    }
                    let a = StridedMatrix::row_major(inputs.0.as_ptr(), INPUTS_AT_ONCE);
                    let panel = panel[start * width..].as_ptr();
                    let args = TileArgs::new(input_count, a, panel, sums.0.as_mut_ptr(), width);
                    // SAFETY: the processor supports the kernels. There are at most `ROWS_AT_ONCE` rows of `inputs` and
                    // of `sums`, whose panel rows are at most `MAX_PANEL_WIDTH` wide. There are `input_count` panel
                    // rows from `start` on.
                    unsafe { kernels.multiply_panel(x.len() / input_size, TileArgs { accumulate: start > 0, ..args }) };
                }
                let columns = p * width..output_size.min((p + 1) * width);
                for (y, sums) in y.chunks_exact_mut(output_size).zip(sums.0.chunks_exact(width)) {
                    let y = &mut y[columns.clone()];
                    match bias {
                        Some(bias) => {
                            let bias = &bias.as_slice()[columns.clone()];
                            y.iter_mut().zip(sums).zip(bias).for_each(|((y, sum), bias)| *y = bias + sum);
                        }
                        None => y.copy_from_slice(&sums[..y.len()]),
                    }
                }
            }
        }
        Ok(())
    }
}
