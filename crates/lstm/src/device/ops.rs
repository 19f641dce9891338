//! The primitives: each runs on the backend inside.

use std::ops::Range;

use lstm_core::{Arithmetic, ConcatAxis, MatrixRef, MatrixShape, Ops, Result};

use super::{
    Device,
    call::Call,
    on_backend,
    values::{DeviceTensor, Value},
};

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
        on_backend!(self, backend => backend.upload(shape, data).map(DeviceTensor::wrap))
    }

    async fn download(&self, x: &DeviceTensor, out: &mut [f32]) -> Result<()> {
        on_backend!(self, backend => backend.download(Call::new(backend, "download").get(x)?, out).await)
    }

    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<DeviceTensor> {
        on_backend!(self, backend => backend.upload_vec(shape, data).map(DeviceTensor::wrap))
    }

    async fn download_vec(&self, x: DeviceTensor) -> Result<Vec<f32>> {
        on_backend!(self, backend => backend.download_vec(Call::new(backend, "download").take(x)?).await)
    }

    fn snap(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, backend => backend.snap(Call::new(backend, "snap").take(x)?).map(DeviceTensor::wrap))
    }

    fn gemm(
        &self,
        a: MatrixRef<'_, DeviceTensor>,
        b: MatrixRef<'_, DeviceTensor>,
        acc: Option<&DeviceTensor>,
    ) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            let call = Call::new(backend, "gemm");
            backend.gemm(call.matrix(a)?, call.matrix(b)?, call.option(acc)?).map(DeviceTensor::wrap)
        })
    }

    fn mul_add(
        &self,
        alpha: f32,
        a: &DeviceTensor,
        b: Option<&DeviceTensor>,
        c: Option<&DeviceTensor>,
    ) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            let call = Call::new(backend, "mul_add");
            backend.mul_add(alpha, call.get(a)?, call.option(b)?, call.option(c)?).map(DeviceTensor::wrap)
        })
    }

    fn sigmoid(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            backend.sigmoid(Call::new(backend, "sigmoid").take(x)?).map(DeviceTensor::wrap)
        })
    }

    fn tanh(&self, x: DeviceTensor) -> Result<DeviceTensor> {
        on_backend!(self, backend => backend.tanh(Call::new(backend, "tanh").take(x)?).map(DeviceTensor::wrap))
    }

    fn clip(&self, x: DeviceTensor, bound: f32) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            backend.clip(Call::new(backend, "clip").take(x)?, bound).map(DeviceTensor::wrap)
        })
    }

    fn select_between(
        &self,
        x: DeviceTensor,
        by: &DeviceTensor,
        low: &DeviceTensor,
        high: &DeviceTensor,
    ) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            let call = Call::new(backend, "select_between");
            let (by, low, high) = (call.get(by)?, call.get(low)?, call.get(high)?);
            backend.select_between(call.take(x)?, by, low, high).map(DeviceTensor::wrap)
        })
    }

    fn slice(&self, x: &DeviceTensor, rows: Range<usize>, cols: Range<usize>) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            backend.slice(Call::new(backend, "slice").get(x)?, rows, cols).map(DeviceTensor::wrap)
        })
    }

    fn concat(&self, axis: ConcatAxis, parts: &[DeviceTensor]) -> Result<DeviceTensor> {
        on_backend!(self, backend => {
            backend.concat(axis, &Call::new(backend, "concat").clones(parts)?).map(DeviceTensor::wrap)
        })
    }
}
