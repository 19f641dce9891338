//! wgpu as a backend.

use std::{future::Future, ops::Range, sync::Arc};

use lstm_core::{
    Arithmetic, Backend, ConcatAxis, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients, LayerWeights,
    MatrixRef, MatrixShape, Ops, Result, Sequence, State,
    shape::{check_clip, check_download, check_upload},
};

use crate::{
    builder::WgpuBuilder,
    errors::NAME,
    gpu::Gpu,
    layer::Layer,
    probe::Probe,
    shader::{Fma, Unary},
    stream::WgpuStream,
    tensor::Tensor,
    trace::Trace,
};

/// An adapter opened through wgpu. Cloning shares it.
///
/// Operations only record work; it is handed over when something is downloaded, when a few thousand dispatches have
/// gathered, or by [`submit`](Self::submit). Memory that is no longer used, up to 256 MiB of it, is kept for what comes
/// next until the last clone is gone.
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
    /// The platform's fastest adapter, opened and probed.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device): there is no adapter, it can't be opened, or its arithmetic is not the
    /// specified one.
    pub async fn new() -> Result<Self> {
        Self::builder().build().await
    }

    /// [`new`](Self::new), waiting.
    ///
    /// # Errors
    /// As `new`.
    #[cfg(not(target_arch = "wasm32"))]
    pub fn blocking() -> Result<Self> {
        Self::builder().blocking()
    }

    /// Chooses an adapter by name, power or interface, and how strict to be.
    ///
    /// ```no_run
    /// use lstm_wgpu::{Wgpu, wgpu};
    /// let integrated = Wgpu::builder().power(wgpu::PowerPreference::LowPower).blocking()?;
    /// println!("{}: {}", integrated.adapter().name, integrated.probe());
    /// # Ok::<(), lstm_wgpu::Error>(())
    /// ```
    pub fn builder() -> WgpuBuilder {
        WgpuBuilder::default()
    }

    /// A device that the program has already; see [`WgpuBuilder::from_device`].
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device) if its arithmetic is not the specified one.
    pub async fn from_device(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Self::builder().from_device(adapter, device, queue).await
    }

    pub(crate) fn from_parts(gpu: Arc<Gpu>, probe: Probe) -> Self {
        Wgpu { gpu, probe: Arc::new(probe) }
    }

    pub(crate) fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// The adapter.
    pub fn adapter(&self) -> &wgpu::AdapterInfo {
        &self.gpu.info
    }

    /// What the probe found.
    pub fn probe(&self) -> &Probe {
        &self.probe
    }

    /// The device, for programs that share it.
    pub fn device(&self) -> &wgpu::Device {
        &self.gpu.device
    }

    /// The device's queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.gpu.queue
    }

    /// Hands over what was recorded, without waiting.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device): what the device refuses.
    pub fn submit(&self) -> Result<()> {
        self.gpu.submit("submit")?;
        // Also uploads of which no work knows yet.
        self.gpu.queue.submit([]);
        Ok(())
    }

    /// Looks at the guards of all tensors that were dropped since the last time, if this was opened with
    /// [`guards`](WgpuBuilder::guards); how many of them there were, in a model and in passes as well.
    ///
    /// # Errors
    /// [`Error::Device`](lstm_core::Error::Device): a kernel wrote outside of a tensor, or there are no guards.
    pub async fn check_guards(&self) -> Result<usize> {
        self.gpu.check_guards().await
    }
}

impl Ops for Wgpu {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        NAME
    }

    fn arithmetic(&self) -> Arithmetic {
        let name = &self.gpu.info.name;
        match self.probe.tried.last() {
            Some((mode, None)) if mode.fma == Fma::Native => Arithmetic::Exact,
            Some((mode, None)) => Arithmetic::Emulated(format!("fma on {name} is not fused: {mode}")),
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
        self.gpu.unary("snap", Unary::Snap, &x, 0.0)
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        self.gpu.gemm(a, b, acc)
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        self.gpu.mul_add(alpha, a, b, c)
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        self.gpu.unary("sigmoid", Unary::Sigmoid, &x, 0.0)
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        self.gpu.unary("tanh", Unary::Tanh, &x, 0.0)
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        check_clip(bound)?;
        self.gpu.unary("clip", Unary::Clip, &x, bound)
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

    fn load(&self, weights: &LayerWeights) -> Result<Layer> {
        Layer::new(&self.gpu, weights)
    }

    fn plan(&self, _: &Layer, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn path(&self, layer: &Layer) -> ExecutionPath {
        ExecutionPath::Fused(layer.path(&self.gpu).into())
    }

    fn forward(&self, layer: &Layer, _: &mut (), sequence: Sequence<'_, Tensor>) -> Result<LayerOutput<Tensor>> {
        crate::forward::forward(&self.gpu, layer, sequence)
    }

    fn forward_train(
        &self,
        layer: &Layer,
        _: &mut (),
        sequence: Sequence<'_, Tensor>,
    ) -> Result<(LayerOutput<Tensor>, Trace)> {
        crate::forward::forward_train(&self.gpu, layer, sequence)
    }

    fn backward(
        &self,
        layer: &Layer,
        _: &mut (),
        trace: &Trace,
        upstream: LayerOutputGradients<'_, Tensor>,
    ) -> Result<LayerGradients<Tensor>> {
        crate::backward::backward(&self.gpu, layer, trace, upstream)
    }

    fn stream(&self, layers: &[Layer], batch: usize) -> Result<WgpuStream> {
        WgpuStream::new(&self.gpu, layers, batch)
    }

    fn step(&self, stream: &mut WgpuStream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> {
        stream.step(&self.gpu, x, y)
    }

    fn stream_state(&self, stream: &WgpuStream) -> Result<Vec<State<Tensor>>> {
        stream.state(&self.gpu)
    }

    fn set_stream_state(&self, stream: &mut WgpuStream, state: &[State<Tensor>]) -> Result<()> {
        stream.set_state(&self.gpu, state)
    }
}
