//! The wgpu backend.

use std::{future::Future, ops::Range, sync::Arc};

use lstm_core::{
    Arithmetic, Backend, ConcatAxis, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LayerWeights,
    LinearWeights, MatrixRef, MatrixShape, MaybeSend, Ops, QuantizedMatrix, Result, Sequence, State,
    quantized::OperandRange,
    shape::{check_clip, check_download, check_upload},
};

use crate::{
    device::{BACKEND_NAME, Fma, Gpu, Probe, WgpuBuilder},
    memory::Tensor,
    pass::{self, Layer, Trace, WgpuStream},
    shader::Unary,
};

/// The wgpu backend: an open GPU adapter. Clones share it.
///
/// Operations only record work. The work is submitted to the device by a download, after a few thousand dispatches,
/// or by [`submit`](Self::submit). Up to 256 MiB of unused device memory is kept for reuse until the last clone is
/// dropped.
///
/// [`new`](Self::new) and [`WgpuBuilder::build`] block the calling thread. Browsers need their `_async` variants.
#[derive(Clone)]
pub struct Wgpu {
    gpu: Arc<Gpu>,
    probe: Arc<Probe>,
}

impl std::fmt::Debug for Wgpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let info = &self.gpu.info;
        write!(f, "Wgpu({}, {}, {})", info.name, info.backend, self.gpu.mode)
    }
}

impl Wgpu {
    /// Opens the platform's fastest adapter, and tests in which mode its results are bit-exact. Blocks until the
    /// adapter is open. In a browser, use [`new_async`](Self::new_async).
    ///
    /// # Errors
    /// See [`new_async`](Self::new_async).
    #[cfg(not(target_arch = "wasm32"))]
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Opens the platform's fastest adapter, and tests in which mode its results are bit-exact.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if there is no adapter, if it cannot be opened, or if its
    /// arithmetic is not bit-exact.
    pub async fn new_async() -> Result<Self> {
        Self::builder().build_async().await
    }

    /// Returns a builder that selects an adapter by name, power preference or graphics API, and how to compute on it.
    ///
    /// ```no_run
    /// use lstm_wgpu::{Wgpu, wgpu};
    /// let integrated = Wgpu::builder().power_preference(wgpu::PowerPreference::LowPower).build()?;
    /// println!("{}: {}", integrated.adapter().name, integrated.probe());
    /// # Ok::<(), lstm_wgpu::Error>(())
    /// ```
    pub fn builder() -> WgpuBuilder {
        WgpuBuilder::default()
    }

    /// Uses a device that the caller opened, and tests in which mode its results are bit-exact; see
    /// [`WgpuBuilder::from_device`].
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if the device's arithmetic is not bit-exact.
    pub async fn from_device(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::builder().from_device(adapter, device, queue).await
    }

    pub(crate) fn from_parts(gpu: Arc<Gpu>, probe: Probe) -> Self {
        Wgpu { gpu, probe: Arc::new(probe) }
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Name, type and driver of the adapter.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.gpu.info
    }

    /// Results of the arithmetic tests that ran when the adapter was opened.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The wgpu device, for programs that also use it directly.
    pub fn device(&self) -> &wgpu::Device {
        &self.gpu.device
    }

    /// The queue of the wgpu device.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.gpu.queue
    }

    /// Submits all recorded work to the device, without waiting for it.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if the device rejects the work.
    pub fn submit(&self) -> Result<()> {
        self.gpu.submit("submit")?;
        // An empty submission flushes uploads that no recorded work uses yet.
        self.gpu.queue.submit([]);
        Ok(())
    }

    /// Checks the guard words of all tensors that were dropped since the last check, including internal ones. Returns
    /// the number of tensors checked.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if a kernel wrote outside of a tensor, or if this adapter was opened
    /// without [`guards`](WgpuBuilder::guards).
    pub async fn check_guards(&self) -> Result<usize> {
        self.gpu.check_guards().await
    }
}

impl Ops for Wgpu {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        BACKEND_NAME
    }

    fn arithmetic(&self) -> Arithmetic {
        let name = &self.gpu.info.name;
        match self.probe.attempts.last() {
            Some((mode, None)) if mode.fma == Fma::Native => Arithmetic::Exact,
            Some((mode, None)) => Arithmetic::Emulated(format!("native fma on {name} is not bit-exact; using {mode}")),
            _ => Arithmetic::Inexact(format!("{name}: {}", self.probe)),
        }
    }

    fn shape(&self, x: &Tensor) -> MatrixShape {
        x.shape
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor { shape, memory: self.gpu.upload("upload", bytemuck::cast_slice(data))? })
    }

    async fn download(&self, x: &Tensor, out: &mut [f32]) -> Result<()> {
        check_download(x.shape, out.len())?;
        self.gpu.download("download", &x.memory, 0, bytemuck::cast_slice_mut(out)).await
    }

    fn snap(&self, x: Tensor) -> Result<Tensor> {
        self.gpu.apply_unary("snap", Unary::Snap, &x, 0.0)
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        self.gpu.gemm(a, b, acc)
    }

    fn gemm_quantized(
        &self,
        a: &Tensor,
        w: &QuantizedMatrix<Tensor>,
        range: OperandRange,
        acc: Option<&Tensor>,
    ) -> Result<Tensor> {
        self.gpu.gemm_quantized(a, w, range, acc)
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        self.gpu.mul_add(alpha, a, b, c)
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        self.gpu.apply_unary("sigmoid", Unary::Sigmoid, &x, 0.0)
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        self.gpu.apply_unary("tanh", Unary::Tanh, &x, 0.0)
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        check_clip(bound)?;
        self.gpu.apply_unary("clip", Unary::Clip, &x, bound)
    }

    fn select_between(&self, x: Tensor, by: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        self.gpu.select_between(&x, by, low, high)
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        self.gpu.slice(x, rows, cols)
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        self.gpu.concat(axis, parts)
    }
}

impl Backend for Wgpu {
    type Layer = Layer;
    type Plan = ();
    type Trace = Trace;
    type Stream = WgpuStream;
    type Linear = LinearWeights<Tensor>;

    fn load(&self, weights: &LayerWeights) -> Result<Layer> {
        weights.spec().check_default_kernels()?;
        Layer::new(&self.gpu, weights)
    }

    fn plan(&self, _: &Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn path(&self, layer: &Layer) -> ExecutionPath {
        ExecutionPath::Fused(layer.path(&self.gpu).into())
    }

    fn forward(&self, layer: &Layer, _: &mut (), sequence: Sequence<'_, Tensor>) -> Result<LayerOutput<Tensor>> {
        pass::forward(&self.gpu, layer, sequence)
    }

    fn forward_train(
        &self,
        layer: &Layer,
        _: &mut (),
        sequence: Sequence<'_, Tensor>,
    ) -> Result<(LayerOutput<Tensor>, Trace)> {
        pass::forward_train(&self.gpu, layer, sequence)
    }

    fn backward(
        &self,
        layer: &Layer,
        _: &mut (),
        trace: &Trace,
        output_gradients: LayerOutputGradients<'_, Tensor>,
    ) -> Result<LayerGradients<Tensor>> {
        pass::backward(&self.gpu, layer, trace, output_gradients)
    }

    fn stream(&self, layers: &[Layer], batch: usize) -> Result<WgpuStream> {
        WgpuStream::new(&self.gpu, layers, batch)
    }

    fn step(&self, stream: &mut WgpuStream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        stream.step(&self.gpu, x, y)
    }

    fn step_some(
        &self,
        stream: &mut WgpuStream,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        stream.step_some(&self.gpu, sequences, x, y)
    }

    fn stream_state(&self, stream: &WgpuStream, sequences: Range<usize>) -> Result<Vec<State<Tensor>>> {
        stream.state(&self.gpu, sequences)
    }

    fn set_stream_state(&self, stream: &mut WgpuStream, first_sequence: usize, state: &[State<Tensor>]) -> Result<()> {
        stream.set_state(&self.gpu, first_sequence, state)
    }

    fn load_linear(&self, weights: LinearWeights<Tensor>) -> Result<LinearWeights<Tensor>> {
        weights.check(|x| x.shape)?;
        Ok(weights)
    }
}
