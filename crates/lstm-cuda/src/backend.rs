//! The CUDA backend: it implements the traits [`Ops`] and [`Backend`] on any [`Driver`], a GPU or a simulated GPU.

use std::{
    fmt,
    future::{Future, ready},
    ops::Range,
    sync::Arc,
};

use lstm_core::{
    Arithmetic, Backend, ConcatAxis, Error, ExecutionPath, LayerGradients, LayerOutput, LayerOutputGradients,
    LayerWeights, LinearWeights, MatrixRef, MatrixShape, MaybeSend, Ops, QuantizedMatrix, Result, Sequence, State,
    quantized::OperandRange,
    shape::{
        check_clip, check_concat, check_download, check_gemm, check_row_broadcast, check_select_between, check_slice,
        check_upload, checked_len,
    },
};

use crate::{
    driver::{Address, Driver, Launch, checked_u32},
    kernels::args::{MulAddArgs, SelectBetweenArgs},
    launch::{MapFunction, Operand, copy, gemm, gemm_quantized, map, offset, quantize_rows},
    layer::{DeviceWeights, Layer, Plan},
    self_test,
    sequence::Trace,
    stream::CudaStream,
    tensor::Tensor,
};

/// The CUDA backend on a device of type `D`. [`Cuda`](crate::Cuda) is this backend on a GPU. Clones share the device.
#[derive(Clone)]
pub struct CudaBackend<D: Driver> {
    pub(crate) driver: D,
    arithmetic: Arithmetic,
}

impl<D: Driver> fmt::Debug for CudaBackend<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.driver.fmt(f)
    }
}

impl<D: Driver> CudaBackend<D> {
    /// Tests the arithmetic of a device and opens the backend on it. Supports only the implementations of [`Driver`] in
    /// this workspace.
    ///
    /// # Errors
    /// [`Error::Device`] if the test can't run, or if products in TF32 have larger errors than rounding their operands
    /// to TF32 can cause.
    #[doc(hidden)]
    pub fn open(driver: D) -> Result<Self> {
        let untested_backend = CudaBackend { driver, arithmetic: Arithmetic::Exact };
        let self_test =
            if untested_backend.driver.allows_tf32() { self_test::test_tf32 } else { self_test::test_exact };
        Ok(CudaBackend { arithmetic: self_test(&untested_backend)?, ..untested_backend })
    }

    /// Allocates a tensor with uninitialized values.
    pub(crate) fn allocate_tensor(&self, op: &'static str, shape: MatrixShape) -> Result<Tensor<D>> {
        let len = checked_len(op, &[shape.rows, shape.cols])?;
        checked_u32(op, shape.rows)?;
        checked_u32(op, shape.cols)?;
        Ok(Tensor { shape, data: Arc::new(self.driver.alloc(op, len)?) })
    }

    /// Allocates memory for one value and uploads it.
    pub(crate) fn upload_scalar(&self, op: &'static str, value: f32) -> Result<D::Memory> {
        let memory = self.driver.alloc(op, 1)?;
        self.driver.upload(op, &memory, &[value])?;
        Ok(memory)
    }

    fn address(&self, x: &Tensor<D>) -> Address {
        self.driver.address(&x.data)
    }

    /// Returns a tensor for the output of an elementwise operation on `x`: `x` itself if its memory is not shared, else
    /// a new tensor of its shape.
    fn reuse_or_allocate(&self, op: &'static str, x: &mut Tensor<D>) -> Result<Tensor<D>> {
        match Arc::get_mut(&mut x.data) {
            Some(_) => Ok(x.clone()),
            None => self.allocate_tensor(op, x.shape),
        }
    }

    fn map(&self, op: &'static str, function: MapFunction, mut x: Tensor<D>, bound: f32) -> Result<Tensor<D>> {
        let out = self.reuse_or_allocate(op, &mut x)?;
        let launch = map(op, function, self.address(&x), self.address(&out), x.shape.len(), bound)?;
        self.driver.launch(op, &launch)?;
        Ok(out)
    }

    fn launch_all(&self, op: &'static str, launches: impl IntoIterator<Item = Result<Launch>>) -> Result<()> {
        launches.into_iter().try_for_each(|launch| self.driver.launch(op, &launch?))
    }
}

impl<D: Driver> Ops for CudaBackend<D> {
    type Tensor = Tensor<D>;

    fn name(&self) -> &str {
        self.driver.name()
    }

    fn arithmetic(&self) -> Arithmetic {
        self.arithmetic.clone()
    }

    fn shape(&self, x: &Tensor<D>) -> MatrixShape {
        x.shape
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor<D>> {
        check_upload(shape, data.len())?;
        let tensor = self.allocate_tensor("upload", shape)?;
        self.driver.upload("upload", &tensor.data, data)?;
        Ok(tensor)
    }

    fn download(&self, x: &Tensor<D>, out: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        let length_check = check_download(x.shape, out.len());
        ready(length_check.and_then(|()| self.driver.download("download", &x.data, 0, out)))
    }

    fn snap(&self, x: Tensor<D>) -> Result<Tensor<D>> {
        self.map("snap", MapFunction::Snap, x, 0.0)
    }

    fn gemm(
        &self,
        a: MatrixRef<'_, Tensor<D>>,
        b: MatrixRef<'_, Tensor<D>>,
        acc: Option<&Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let (left_shape, right_shape) = (a.shape(a.tensor.shape), b.shape(b.tensor.shape));
        let shape = check_gemm(left_shape, right_shape, acc.map(|acc| acc.shape))?;
        let out = self.allocate_tensor("gemm", shape)?;
        let operand = |matrix: MatrixRef<'_, Tensor<D>>, contiguous: bool| {
            let (address, cols) = (self.address(matrix.tensor), matrix.tensor.shape.cols);
            if contiguous { Operand::contiguous_depth(address, cols) } else { Operand::strided_depth(address, cols) }
        };
        let operands = (operand(a, !a.transposed), operand(b, b.transposed));
        let acc = acc.map(|acc| (self.address(acc), if acc.shape.rows == 1 { 0 } else { shape.cols }));
        let product_shape = [shape.rows, shape.cols, left_shape.cols];
        self.driver
            .launch("gemm", &gemm(&self.driver, "gemm", product_shape, 1, operands, acc, self.address(&out))?)?;
        Ok(out)
    }

    fn gemm_quantized(
        &self,
        a: &Tensor<D>,
        w: &QuantizedMatrix<Tensor<D>>,
        range: OperandRange,
        acc: Option<&Tensor<D>>,
    ) -> Result<Tensor<D>> {
        let op = "gemm_quantized";
        let shape = w.check_gemm(a.shape, acc.map(|acc| acc.shape), |t| t.shape)?;
        let (format, MatrixShape { rows, cols: inner }) = (&w.format, a.shape);
        let (q, from_integer) =
            (self.allocate_tensor(op, a.shape)?, self.allocate_tensor(op, MatrixShape::new(1, rows))?);
        let quantized = (self.address(&q), self.address(&from_integer));
        let out = self.allocate_tensor(op, shape)?;
        let weights = (self.address(&w.q), self.address(&w.scale));
        let acc = acc.map(|acc| (self.address(acc), acc.shape.rows == 1));
        let launches = [
            quantize_rows(op, format, range, [rows, inner], self.address(a), quantized),
            gemm_quantized(op, format, [rows, shape.cols, inner], quantized, weights, acc, self.address(&out)),
        ];
        self.launch_all(op, launches)?;
        Ok(out)
    }

    fn mul_add(&self, alpha: f32, a: &Tensor<D>, b: Option<&Tensor<D>>, c: Option<&Tensor<D>>) -> Result<Tensor<D>> {
        let shape = check_row_broadcast("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_row_broadcast("mul_add summand", shape, c.map(|c| c.shape))?;
        let out = self.allocate_tensor("mul_add", shape)?;
        let address = |x: Option<&Tensor<D>>| x.map_or(0, |x| self.address(x));
        let is_single_row = |x: Option<&Tensor<D>>| x.is_some_and(|x| x.shape.rows == 1).into();
        let args = MulAddArgs {
            a: self.address(a),
            b: address(b),
            c: address(c),
            out: self.address(&out),
            len: shape.len() as u64,
            cols: checked_u32("mul_add", shape.cols)?,
            b_is_row: is_single_row(b),
            c_is_row: is_single_row(c),
            alpha,
        };
        self.driver.launch("mul_add", &Launch::elementwise("mul_add", "mul_add", shape.len(), args)?)?;
        Ok(out)
    }

    fn sigmoid(&self, x: Tensor<D>) -> Result<Tensor<D>> {
        self.map("sigmoid", MapFunction::Sigmoid, x, 0.0)
    }

    fn tanh(&self, x: Tensor<D>) -> Result<Tensor<D>> {
        self.map("tanh", MapFunction::Tanh, x, 0.0)
    }

    fn clip(&self, x: Tensor<D>, bound: f32) -> Result<Tensor<D>> {
        check_clip(bound)?;
        self.map("clip", MapFunction::Clip, x, bound)
    }

    fn select_between(
        &self,
        mut x: Tensor<D>,
        selector: &Tensor<D>,
        lower_bound: &Tensor<D>,
        upper_bound: &Tensor<D>,
    ) -> Result<Tensor<D>> {
        check_select_between(x.shape, selector.shape, lower_bound.shape, upper_bound.shape)?;
        let out = self.reuse_or_allocate("select_between", &mut x)?;
        let args = SelectBetweenArgs {
            x: self.address(&x),
            selector: self.address(selector),
            low: self.address(lower_bound),
            high: self.address(upper_bound),
            out: self.address(&out),
            len: x.shape.len() as u64,
            cols: checked_u32("select_between", x.shape.cols)?,
            padding: 0,
        };
        self.driver
            .launch("select_between", &Launch::elementwise("select_between", "select_between", x.shape.len(), args)?)?;
        Ok(out)
    }

    fn slice(&self, x: &Tensor<D>, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor<D>> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let out = self.allocate_tensor("slice", shape)?;
        let src = offset(self.address(x), rows.start * x.shape.cols + cols.start);
        let dst = (self.address(&out), shape.cols);
        self.launch_all("slice", [copy("slice", (src, x.shape.cols), dst, [shape.rows, shape.cols], false)])?;
        Ok(out)
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor<D>]) -> Result<Tensor<D>> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let out = self.allocate_tensor("concat", shape)?;
        let mut dst = self.address(&out);
        let launches = parts.iter().map(|part| {
            let MatrixShape { rows, cols } = part.shape;
            let launch = copy("concat", (self.address(part), cols), (dst, shape.cols), [rows, cols], false);
            dst = offset(dst, if axis == ConcatAxis::Rows { rows * cols } else { cols });
            launch
        });
        self.launch_all("concat", launches)?;
        Ok(out)
    }
}

impl<D: Driver> Backend for CudaBackend<D> {
    type Layer = Layer<D>;
    type Plan = Plan<D>;
    type Trace = Trace<D>;
    type Stream = CudaStream<D>;
    type Linear = LinearWeights<Tensor<D>>;

    fn load(&self, weights: &LayerWeights) -> Result<Layer<D>> {
        weights.spec().check_default_kernels()?;
        Ok(Layer(Arc::new(DeviceWeights::new(&self.driver, weights)?)))
    }

    fn plan(&self, layer: &Layer<D>, batch: usize, steps: usize) -> Result<Plan<D>> {
        Plan::new(&self.driver, &layer.0, batch, steps)
    }

    fn path(&self, layer: &Layer<D>) -> ExecutionPath {
        let [path, _] = layer.paths(1);
        ExecutionPath::Fused(if self.driver.allows_tf32() {
            format!("{path}, products in tf32").into()
        } else {
            path.into()
        })
    }

    fn forward(
        &self,
        Layer(layer): &Layer<D>,
        plan: &mut Plan<D>,
        sequence: Sequence<'_, Tensor<D>>,
    ) -> Result<LayerOutput<Tensor<D>>> {
        sequence.check(&layer.spec, |x| x.shape)?;
        plan.check("forward", &layer.spec, sequence.batch, sequence.steps)?;
        self.run_layer("forward", layer, plan, &sequence, None)
    }

    fn forward_train(
        &self,
        Layer(layer): &Layer<D>,
        plan: &mut Plan<D>,
        sequence: Sequence<'_, Tensor<D>>,
    ) -> Result<(LayerOutput<Tensor<D>>, Trace<D>)> {
        sequence.check(&layer.spec, |x| x.shape)?;
        plan.check("forward_train", &layer.spec, sequence.batch, sequence.steps)?;
        let trace = Trace::new(self, &layer.spec, &sequence)?;
        let output = self.run_layer("forward_train", layer, plan, &sequence, Some(&trace))?;
        Ok((output, trace))
    }

    fn backward(
        &self,
        Layer(layer): &Layer<D>,
        plan: &mut Plan<D>,
        trace: &Trace<D>,
        output_gradients: LayerOutputGradients<'_, Tensor<D>>,
    ) -> Result<LayerGradients<Tensor<D>>> {
        if trace.spec != layer.spec {
            let (want, got) = (format!("one of {:?}", layer.spec), format!("one of {:?}", trace.spec));
            return Err(Error::shape("backward: trace", want, got));
        }
        plan.check("backward", &layer.spec, trace.batch, trace.steps)?;
        output_gradients.check(&layer.spec, trace.steps, trace.batch, |x| x.shape)?;
        self.layer_gradients(layer, trace, output_gradients)
    }

    fn stream(&self, layers: &[Layer<D>], batch: usize) -> Result<CudaStream<D>> {
        CudaStream::new(self, layers, batch)
    }

    fn step(
        &self,
        stream: &mut CudaStream<D>,
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(stream.step(&self.driver, x, y))
    }

    fn step_some(
        &self,
        stream: &mut CudaStream<D>,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(stream.step_some(&self.driver, sequences, x, y))
    }

    fn stream_state(&self, stream: &CudaStream<D>, sequences: Range<usize>) -> Result<Vec<State<Tensor<D>>>> {
        stream.state(self, sequences)
    }

    fn set_stream_state(&self, stream: &mut CudaStream<D>, first: usize, state: &[State<Tensor<D>>]) -> Result<()> {
        stream.set_state(&self.driver, first, state)
    }

    fn load_linear(&self, weights: LinearWeights<Tensor<D>>) -> Result<LinearWeights<Tensor<D>>> {
        weights.check(|x| x.shape)?;
        Ok(weights)
    }
}
