//! Implements [`Ops`] for [`Device`]: each operation runs on the backend inside.

use std::ops::Range;

use lstm_core::{
    Arithmetic, ConcatAxis, MatrixRef, MatrixShape, Ops, QuantizedMatrix, Result, quantized::OperandRange,
};

use super::{Device, on_backend, values::DeviceTensor};

impl Ops for Device {
    type Tensor = DeviceTensor;

    fn name(&self) -> &str {
        on_backend!(self, backend => backend.name())
    }

    fn arithmetic(&self) -> Arithmetic {
        on_backend!(self, backend => backend.arithmetic())
    }

    fn shape(&self, x: &DeviceTensor) -> MatrixShape {
        x.shape()
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<DeviceTensor> {
        on_backend!(self, "upload", call => call.wrap(call.backend.upload(shape, data)))
    }

    async fn download(&self, x: &DeviceTensor, out: &mut [f32]) -> Result<()> {
        on_backend!(self, "download", call => call.backend.download(call.get(x)?, out).await)
    }

    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<DeviceTensor> {
        on_backend!(self, "upload", call => call.wrap(call.backend.upload_vec(shape, data)))
    }

    async fn download_vec(&self, x: DeviceTensor) -> Result<Vec<f32>> {
        on_backend!(self, "download", call => call.backend.download_vec(call.take(x)?).await)
    }

    fn snap(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, "snap", call => call.wrap(call.backend.snap(call.take(x)?)))
    }

    fn gemm(
        &self,
        a: MatrixRef<'_, DeviceTensor>,
        b: MatrixRef<'_, DeviceTensor>,
        acc: Option<&DeviceTensor>,
    ) -> Result<DeviceTensor> {
        on_backend!(self, "gemm", call => {
            call.wrap(call.backend.gemm(call.matrix(a)?, call.matrix(b)?, call.option(acc)?))
        })
    }

    fn gemm_quantized(
        &self,
        a: &DeviceTensor,
        w: &QuantizedMatrix<DeviceTensor>,
        range: OperandRange,
        acc: Option<&DeviceTensor>,
    ) -> Result<DeviceTensor> {
        on_backend!(self, "gemm_quantized", call => {
            let w = w.map(|w| call.get(w).cloned())?;
            call.wrap(call.backend.gemm_quantized(call.get(a)?, &w, range, call.option(acc)?))
        })
    }

    fn mul_add(
        &self,
        alpha: f32,
        a: &DeviceTensor,
        b: Option<&DeviceTensor>,
        c: Option<&DeviceTensor>,
    ) -> Result<DeviceTensor> {
        on_backend!(self, "mul_add", call => {
            call.wrap(call.backend.mul_add(alpha, call.get(a)?, call.option(b)?, call.option(c)?))
        })
    }

    fn sigmoid(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, "sigmoid", call => call.wrap(call.backend.sigmoid(call.take(x)?)))
    }

    fn tanh(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, "tanh", call => call.wrap(call.backend.tanh(call.take(x)?)))
    }

    fn clip(&self, x: DeviceTensor, bound: f32) -> Result<DeviceTensor> {
        on_backend!(self, "clip", call => call.wrap(call.backend.clip(call.take(x)?, bound)))
    }

    fn select_between(
        &self,
        x: DeviceTensor,
        selector: &DeviceTensor,
        lower_bound: &DeviceTensor,
        upper_bound: &DeviceTensor,
    ) -> Result<DeviceTensor> {
        on_backend!(self, "select_between", call => {
            call.wrap(call.backend.select_between(
                call.take(x)?,
                call.get(selector)?,
                call.get(lower_bound)?,
                call.get(upper_bound)?,
            ))
        })
    }

    fn slice(&self, x: &DeviceTensor, rows: Range<usize>, cols: Range<usize>) -> Result<DeviceTensor> {
        on_backend!(self, "slice", call => call.wrap(call.backend.slice(call.get(x)?, rows, cols)))
    }

    fn concat(&self, axis: ConcatAxis, parts: &[DeviceTensor]) -> Result<DeviceTensor> {
        on_backend!(self, "concat", call => call.wrap(call.backend.concat(axis, &call.clones(parts)?)))
    }
}
