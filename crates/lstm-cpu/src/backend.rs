//! The CPU as a backend.

use std::{
    fmt,
    future::{Future, ready},
    ops::Range,
    ptr::null,
    sync::Arc,
};

use lstm_core::{
    Arithmetic, Backend, Bias, BidirectionalOutput, CellKind, ConcatAxis, Error, ExecutionPath, LayerGradients,
    LayerOutput, LayerOutputGradients, LayerSpec, LayerWeights, MatrixRef, MatrixShape, Ops, Result, Sequence, State,
    WeightGradients,
    shape::{
        check_clip, check_concat, check_download, check_rows, check_select_between, check_slice, check_upload, zeros,
    },
};

use crate::{
    backward::{self, Outputs},
    builder::CpuBuilder,
    gemm,
    isa::Isa,
    kernels::Kernels,
    layer::{Layer, Packed, Plan},
    pool::Pool,
    sequence::{self, Walk},
    stream::CpuStream,
    tensor::{Room, Tensor},
    trace::Trace,
};

/// The CPU: an instruction set and some threads. Cloning shares the threads.
///
/// Memory of passes, tensors and models that are gone, up to 256 MiB of it, is kept for the next ones. It goes, and the
/// threads with it, when the last clone is gone and all that was made by one.
#[derive(Clone)]
pub struct Cpu {
    pub(crate) isa: Isa,
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: Arc<Pool>,
}

impl fmt::Debug for Cpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.isa, self.threads())
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Cpu::new()
    }
}

impl Cpu {
    /// The fastest instruction set and all cores that the process may use; one thread where more can't be started.
    pub fn new() -> Self {
        Cpu::builder().build().or_else(|_| Cpu::builder().threads(1).build()).expect("one thread needs no starting")
    }

    /// Chooses threads and instruction set.
    ///
    /// ```
    /// use lstm_cpu::{Cpu, Isa};
    /// let cpu = Cpu::builder().threads(1).isa(Isa::Plain).build()?;
    /// assert_eq!(cpu.isa(), Isa::Plain);
    /// # Ok::<(), lstm_cpu::Error>(())
    /// ```
    pub fn builder() -> CpuBuilder {
        CpuBuilder::default()
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads at most, the calling one included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Checks a sequence and the plan for it.
    fn check(&self, op: &str, layer: &Packed, plan: &Plan, sequence: &Sequence<'_, Tensor>) -> Result<()> {
        sequence.check(&layer.spec, |x| x.shape)?;
        if plan.batch != sequence.batch || !plan.fits(layer) {
            let want = format!("one for {:?} and batch {}", layer.spec, sequence.batch);
            return Err(Error::shape(format!("{op}: plan"), want, format!("{plan:?}")));
        }
        Ok(())
    }

    /// Checks these, and returns the snapped input.
    fn prepare(&self, op: &str, layer: &Packed, plan: &Plan, sequence: &Sequence<'_, Tensor>) -> Result<Tensor> {
        self.check(op, layer, plan, sequence)?;
        let x = sequence.x.clone();
        if x.is_snapped() { Ok(x) } else { self.snap(x) }
    }

    fn output(
        &self,
        y: Vec<f32>,
        state: State<Vec<f32>>,
        batch: usize,
        [steps, cols]: [usize; 2],
    ) -> LayerOutput<Tensor> {
        let shape = MatrixShape::new(steps * batch, cols);
        LayerOutput::new(Tensor::lent(shape, y, &self.pool).known(true), on_device(state, batch))
    }

    /// Applies a kernel to every element, in place where nobody shares the tensor.
    fn map(&self, mut x: Tensor, kernel: impl Fn(*mut f32, usize)) -> Tensor {
        let data = x.as_mut_slice();
        kernel(data.as_mut_ptr(), data.len());
        x
    }
}

impl Ops for Cpu {
    type Tensor = Tensor;

    fn name(&self) -> &str {
        "cpu"
    }

    fn arithmetic(&self) -> Arithmetic {
        Arithmetic::Exact
    }

    fn shape(&self, x: &Tensor) -> MatrixShape {
        x.shape
    }

    fn upload(&self, shape: MatrixShape, data: &[f32]) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Tensor::copy("upload", &self.pool, shape, data)
    }

    fn download(&self, x: &Tensor, out: &mut [f32]) -> impl Future<Output = Result<()>> {
        ready(check_download(x.shape, out.len()).map(|()| out.copy_from_slice(x.as_slice())))
    }

    fn upload_vec(&self, shape: MatrixShape, data: Vec<f32>) -> Result<Tensor> {
        check_upload(shape, data.len())?;
        Ok(Tensor::new(shape, data))
    }

    fn download_vec(&self, x: Tensor) -> impl Future<Output = Result<Vec<f32>>> {
        ready(Ok(x.into_vec()))
    }

    fn snap(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: the kernels are of an available instruction set; pointer and length are a slice's.
        Ok(self.map(x, |p, n| unsafe { (self.kernels.snap)(p, n) }).known(true))
    }

    fn gemm(&self, a: MatrixRef<'_, Tensor>, b: MatrixRef<'_, Tensor>, acc: Option<&Tensor>) -> Result<Tensor> {
        gemm::gemm(self.kernels, &self.pool, a, b, acc)
    }

    fn mul_add(&self, alpha: f32, a: &Tensor, b: Option<&Tensor>, c: Option<&Tensor>) -> Result<Tensor> {
        let shape = check_rows("mul_add factor", a.shape, b.map(|b| b.shape))?;
        check_rows("mul_add summand", shape, c.map(|c| c.shape))?;
        let mut data = zeros("mul_add", &[shape.rows, shape.cols])?;
        let row = |x: Option<&Tensor>, row: usize| match x {
            Some(x) if x.shape.rows == 1 => x.rows(0..1).as_ptr(),
            Some(x) => x.rows(row..row + 1).as_ptr(),
            None => null(),
        };
        for (k, out) in data.chunks_exact_mut(shape.cols).enumerate() {
            let (a, b, c) = (row(Some(a), k), row(b, k), row(c, k));
            // SAFETY: as for snap; the shapes were checked: all rows have the output's columns.
            unsafe { (self.kernels.mul_add)(alpha, a, b, c, out.as_mut_ptr(), out.len()) };
        }
        Ok(Tensor::new(shape, data))
    }

    fn sigmoid(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: as for snap.
        Ok(self.map(x, |p, n| unsafe { (self.kernels.sigmoid)(p, n) }))
    }

    fn tanh(&self, x: Tensor) -> Result<Tensor> {
        // SAFETY: as for snap.
        Ok(self.map(x, |p, n| unsafe { (self.kernels.tanh)(p, n) }))
    }

    fn clip(&self, x: Tensor, bound: f32) -> Result<Tensor> {
        check_clip(bound)?;
        // SAFETY: as for snap.
        Ok(self.map(x, |p, n| unsafe { (self.kernels.clip)(p, n, bound) }))
    }

    fn select_between(&self, mut x: Tensor, by: &Tensor, low: &Tensor, high: &Tensor) -> Result<Tensor> {
        check_select_between(x.shape, by.shape, low.shape, high.shape)?;
        let bounds = || low.as_slice().iter().zip(high.as_slice()).cycle();
        for ((x, by), (low, high)) in x.as_mut_slice().iter_mut().zip(by.as_slice()).zip(bounds()) {
            if by <= low || by >= high {
                *x = 0.0;
            }
        }
        Ok(x)
    }

    fn slice(&self, x: &Tensor, rows: Range<usize>, cols: Range<usize>) -> Result<Tensor> {
        let shape = check_slice(x.shape, &rows, &cols)?;
        let mut data = Vec::with_capacity(shape.len());
        for row in x.rows(rows).chunks_exact(x.shape.cols) {
            data.extend_from_slice(&row[cols.clone()]);
        }
        Ok(Tensor::new(shape, data))
    }

    fn concat(&self, axis: ConcatAxis, parts: &[Tensor]) -> Result<Tensor> {
        let shape = check_concat(axis, parts.iter().map(|part| part.shape))?;
        let mut data = Vec::with_capacity(shape.len());
        match axis {
            ConcatAxis::Rows => parts.iter().for_each(|part| data.extend_from_slice(part.as_slice())),
            ConcatAxis::Cols => (0..shape.rows)
                .for_each(|row| parts.iter().for_each(|part| data.extend_from_slice(part.rows(row..row + 1)))),
        }
        Ok(Tensor::new(shape, data))
    }
}

impl Backend for Cpu {
    type Layer = Layer;
    type Plan = Plan;
    type Trace = Trace;
    type Stream = CpuStream;

    fn load(&self, weights: &LayerWeights) -> Result<Layer> {
        Ok(Layer(Arc::new(Packed::new(self.kernels, &self.pool, weights)?)))
    }

    fn plan(&self, layer: &Layer, batch: usize, steps: usize) -> Result<Plan> {
        Plan::new(&layer.0, batch, steps, self.threads())
    }

    fn path(&self, _: &Layer) -> ExecutionPath {
        ExecutionPath::Fused(self.isa.to_string().into())
    }

    fn forward(
        &self,
        Layer(layer): &Layer,
        plan: &mut Plan,
        sequence: Sequence<'_, Tensor>,
    ) -> Result<LayerOutput<Tensor>> {
        let x = self.prepare("forward", layer, plan, &sequence)?;
        let Sequence { steps, batch, lengths, state, .. } = sequence;
        let mut y = Room::new("forward", &self.pool, &[steps, batch, layer.spec.state_size()], lengths.is_some())?;
        plan.set_state(layer, state.h.as_slice(), state.c.as_slice());
        let walk = Walk { steps, lengths, x: x.as_slice() };
        // SAFETY: there is room for every step's rows; all of them are written, or with lengths blank.
        let y = unsafe {
            sequence::run(&self.pool, layer, plan, walk, y.as_mut_ptr(), None);
            y.filled()
        };
        Ok(self.output(y, plan.last_state(layer, steps, lengths), batch, [steps, layer.spec.state_size()]))
    }

    fn forward_bidirectional(
        &self,
        [Layer(layer), Layer(other)]: [&Layer; 2],
        [plan, other_plan]: [&mut Plan; 2],
        sequence: Sequence<'_, Tensor>,
        second: &State<Tensor>,
    ) -> Result<BidirectionalOutput<Tensor>> {
        let x = self.prepare("forward", layer, plan, &sequence)?;
        let Sequence { x: raw, steps, batch, lengths, state } = sequence;
        self.check("forward", other, other_plan, &Sequence { x: raw, steps, batch, lengths, state: second })?;
        let cols = [layer, other].iter().map(|layer| layer.spec.state_size()).sum();
        let mut y = Room::new("forward", &self.pool, &[steps, batch, cols], lengths.is_some())?;
        plan.set_state(layer, state.h.as_slice(), state.c.as_slice());
        other_plan.set_state(other, second.h.as_slice(), second.c.as_slice());
        let walk = Walk { steps, lengths, x: x.as_slice() };
        // SAFETY: as for `forward`.
        let y = unsafe {
            let plans = [&mut *plan, &mut *other_plan];
            sequence::run_both(&self.pool, [layer, other], plans, walk, y.as_mut_ptr());
            y.filled()
        };
        let [a, b] = [(plan, layer), (other_plan, other)].map(|(plan, layer)| plan.last_state(layer, steps, lengths));
        let states = [a, b].map(|state| on_device(state, batch));
        Ok(LayerOutput::new(Tensor::lent(MatrixShape::new(steps * batch, cols), y, &self.pool).known(true), states))
    }

    fn forward_train(
        &self,
        Layer(layer): &Layer,
        plan: &mut Plan,
        sequence: Sequence<'_, Tensor>,
    ) -> Result<(LayerOutput<Tensor>, Trace)> {
        let x = self.prepare("forward_train", layer, plan, &sequence)?;
        let Sequence { steps, batch, lengths, state, .. } = sequence;
        let sizes = [steps, batch, layer.spec.state_size()];
        let mut y = Room::new("forward_train", &self.pool, &sizes, lengths.is_some())?;
        let mut trace = Trace::new(
            &self.pool,
            layer,
            x.clone(),
            (steps, batch),
            lengths,
            (state.h.as_slice(), state.c.as_slice()),
        )?;
        let walk = Walk { steps, lengths, x: x.as_slice() };
        // SAFETY: as for `forward`.
        let y = unsafe {
            sequence::run(&self.pool, layer, plan, walk, y.as_mut_ptr(), Some(&mut trace));
            y.filled()
        };
        Ok((self.output(y, trace.last_state(layer), batch, [steps, layer.spec.state_size()]), trace))
    }

    fn backward(
        &self,
        Layer(layer): &Layer,
        plan: &mut Plan,
        trace: &Trace,
        upstream: LayerOutputGradients<'_, Tensor>,
    ) -> Result<LayerGradients<Tensor>> {
        let (spec, steps, batch) = (&layer.spec, trace.steps, trace.batch);
        if !trace.fits(layer) || plan.batch != batch || !plan.fits(layer) {
            let want = format!("trace and plan of {spec:?}, batch {batch}");
            return Err(Error::shape("backward", want, format!("{trace:?}, {plan:?}")));
        }
        upstream.check(spec, steps, batch, |x| x.shape)?;
        let onto = upstream.accumulate.is_some();
        let mut weights = match upstream.accumulate {
            Some(onto) => onto,
            None => blank_gradients(spec)?,
        };
        let mut x = match upstream.need_x {
            true => Some(zeros("backward", &[steps, batch, spec.input_size])?),
            false => None,
        };
        let [mut h, mut c] =
            [zeros("backward", &[batch, spec.state_size()])?, zeros("backward", &[batch, spec.hidden_size])?];
        let out = Outputs {
            x: x.as_deref_mut(),
            w: weights.input.as_mut_slice(),
            u: weights.recurrent.as_mut_slice(),
            bias: weights.bias.as_mut().map(Tensor::as_mut_slice),
            projection: weights.projection.as_mut().map(Tensor::as_mut_slice),
            peephole: weights.peephole.as_mut().map(|p| p.each_mut().map(Tensor::as_mut_slice)),
            onto,
            h: &mut h,
            c: &mut c,
        };
        let state = (upstream.state.h.as_slice(), upstream.state.c.as_slice());
        backward::run(&self.pool, layer, plan, trace, upstream.y.as_slice(), state, out)?;
        Ok(LayerGradients { x: x.map(|x| rows(x, steps * batch)), state: on_device(State { h, c }, batch), weights })
    }

    fn stream(&self, layers: &[Layer], batch: usize) -> Result<CpuStream> {
        CpuStream::new(layers, batch, self.threads())
    }

    fn step(&self, stream: &mut CpuStream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> {
        ready(stream.step(&self.pool, x, y))
    }

    fn stream_state(&self, stream: &CpuStream) -> Result<Vec<State<Tensor>>> {
        Ok(stream.state())
    }

    fn set_stream_state(&self, stream: &mut CpuStream, state: &[State<Tensor>]) -> Result<()> {
        stream.set_state(state)
    }
}

fn on_device(state: State<Vec<f32>>, batch: usize) -> State<Tensor> {
    State { h: rows(state.h, batch), c: rows(state.c, batch) }
}

/// A matrix of so many rows.
fn rows(data: Vec<f32>, rows: usize) -> Tensor {
    Tensor::new(MatrixShape::new(rows, data.len() / rows), data)
}

/// Zeros in the shapes of a layer's weights.
fn blank_gradients(spec: &LayerSpec) -> Result<WeightGradients<Tensor>> {
    let (hidden, gates) = (spec.hidden_size, 4 * spec.hidden_size);
    let blank = |rows, cols| Ok(Tensor::new(MatrixShape::new(rows, cols), zeros("backward", &[rows, cols])?));
    Ok(WeightGradients {
        input: blank(gates, spec.input_size)?,
        recurrent: blank(gates, spec.state_size())?,
        bias: if spec.bias == Bias::None { None } else { Some(blank(1, gates)?) },
        projection: spec.proj_size.map(|size| blank(size, hidden)).transpose()?,
        peephole: match spec.cell {
            CellKind::PeepholeDiagonal => Some([blank(1, hidden)?, blank(1, hidden)?, blank(1, hidden)?]),
            _ => None,
        },
    })
}
