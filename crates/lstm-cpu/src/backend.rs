//! The CPU as a [`Backend`]: checks arguments, allocates outputs and starts the passes.

use std::{
    future::{Future, ready},
    ops::Range,
    sync::Arc,
};

use lstm_core::{
    Backend, Bias, BidirectionalOutput, CellKind, Error, ExecutionPath, LayerGradients, LayerOutput,
    LayerOutputGradients, LayerSpec, LayerWeights, LinearWeights, MatrixShape, MaybeSend, Ops, Precision, Result,
    Sequence, State, WeightGradients, shape::zeros,
};

use crate::{
    Cpu, CpuLinear, CpuStream, Layer, Plan, Tensor, Trace,
    layer::PackedLayer,
    memory::uninit::UninitBuffer,
    pass::{
        backward::{self, GradientBuffers},
        forward::{self, SequenceInput},
    },
};

impl Cpu {
    /// Returns an error if the sequence does not fit the layer, or if `plan` was made for another layer or batch size.
    fn check_arguments(
        &self,
        op: &str,
        layer: &PackedLayer,
        plan: &Plan,
        sequence: &Sequence<'_, Tensor>,
    ) -> Result<()> {
        sequence.check(&layer.spec, |x| x.shape)?;
        if plan.batch != sequence.batch || !plan.matches(layer) {
            let expected = format!("a plan for {:?} and batch {}", layer.spec, sequence.batch);
            return Err(Error::shape(format!("{op}: plan"), expected, format!("{plan:?}")));
        }
        Ok(())
    }

    /// Checks the arguments of a pass, as [`check_arguments`](Self::check_arguments) does, and returns the snapped
    /// input.
    fn check_and_snap_input(
        &self,
        op: &str,
        layer: &PackedLayer,
        plan: &Plan,
        sequence: &Sequence<'_, Tensor>,
    ) -> Result<Tensor> {
        self.check_arguments(op, layer, plan, sequence)?;
        let x = sequence.x.clone();
        if x.is_snapped() { Ok(x) } else { self.snap(x) }
    }

    /// Returns the output of a pass as tensors. `y` is marked as snapped ([`snap`](lstm_core::arithmetic::snap): tiny values
    /// are 0), because the kernels snap every hidden state.
    fn layer_output(
        &self,
        y: Vec<f32>,
        state: State<Vec<f32>>,
        batch: usize,
        [steps, cols]: [usize; 2],
    ) -> LayerOutput<Tensor> {
        let shape = MatrixShape::new(steps * batch, cols);
        LayerOutput::new(Tensor::from_pool(shape, y, &self.pool).assume_snapped(true), state_tensors(state, batch))
    }
}

impl Backend for Cpu {
    type Layer = Layer;
    type Plan = Plan;
    type Trace = Trace;
    type Stream = CpuStream;
    type Linear = CpuLinear;

    fn load(&self, weights: &LayerWeights) -> Result<Layer> {
        // The kernels compute every precision, but only the default activation functions.
        let mut spec = *weights.spec();
        spec.precision = Precision::F32;
        spec.check_default_kernels()?;
        Ok(Layer(Arc::new(PackedLayer::new(self.isa, &self.pool, weights)?)))
    }

    fn has_kernels(&self, spec: &LayerSpec) -> bool {
        spec.activations.is_default()
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
        let x = self.check_and_snap_input("forward", layer, plan, &sequence)?;
        let Sequence { steps, batch, lengths, state, .. } = sequence;
        let sizes = [steps, batch, layer.spec.state_size()];
        let mut y = UninitBuffer::new("forward", &self.pool, &sizes, lengths.is_some())?;
        plan.set_state(layer, state.h.as_slice(), state.c.as_slice());
        let input = SequenceInput { steps, lengths, x: x.as_slice() };
        // SAFETY: `y` has a row for every time step and sequence. The pass writes all of them, or with lengths they
        // were zeroed.
        let y = unsafe {
            forward::run(&self.pool, layer, plan, input, y.as_mut_ptr(), None);
            y.assume_init()
        };
        Ok(self.layer_output(y, plan.last_state(layer, steps, lengths)?, batch, [steps, layer.spec.state_size()]))
    }

    fn forward_bidirectional(
        &self,
        [Layer(layer), Layer(reverse_layer)]: [&Layer; 2],
        [plan, reverse_plan]: [&mut Plan; 2],
        sequence: Sequence<'_, Tensor>,
        reverse_state: &State<Tensor>,
    ) -> Result<BidirectionalOutput<Tensor>> {
        let x = self.check_and_snap_input("forward", layer, plan, &sequence)?;
        let Sequence { x: unsnapped_x, steps, batch, lengths, state } = sequence;
        let reverse_sequence = Sequence { x: unsnapped_x, steps, batch, lengths, state: reverse_state };
        self.check_arguments("forward", reverse_layer, reverse_plan, &reverse_sequence)?;
        let layers = [&**layer, &**reverse_layer];
        let cols = layers.iter().map(|layer| layer.spec.state_size()).sum();
        let mut y = UninitBuffer::new("forward", &self.pool, &[steps, batch, cols], lengths.is_some())?;
        plan.set_state(layer, state.h.as_slice(), state.c.as_slice());
        reverse_plan.set_state(reverse_layer, reverse_state.h.as_slice(), reverse_state.c.as_slice());
        let input = SequenceInput { steps, lengths, x: x.as_slice() };
        // SAFETY: as in `forward`.
        let y = unsafe {
            let plans = [&mut *plan, &mut *reverse_plan];
            forward::run_bidirectional(&self.pool, layers, plans, input, y.as_mut_ptr());
            y.assume_init()
        };
        let last_state =
            |plan: &Plan, layer| Ok::<_, Error>(state_tensors(plan.last_state(layer, steps, lengths)?, batch));
        let states = [last_state(plan, layer)?, last_state(reverse_plan, reverse_layer)?];
        let shape = MatrixShape::new(steps * batch, cols);
        Ok(LayerOutput::new(Tensor::from_pool(shape, y, &self.pool).assume_snapped(true), states))
    }

    fn forward_train(
        &self,
        Layer(layer): &Layer,
        plan: &mut Plan,
        sequence: Sequence<'_, Tensor>,
    ) -> Result<(LayerOutput<Tensor>, Trace)> {
        layer.spec.check_trainable()?;
        let x = self.check_and_snap_input("forward_train", layer, plan, &sequence)?;
        let Sequence { steps, batch, lengths, state, .. } = sequence;
        let sizes = [steps, batch, layer.spec.state_size()];
        let mut y = UninitBuffer::new("forward_train", &self.pool, &sizes, lengths.is_some())?;
        let mut trace = Trace::new(
            &self.pool,
            layer,
            x.clone(),
            (steps, batch),
            lengths,
            (state.h.as_slice(), state.c.as_slice()),
        )?;
        let input = SequenceInput { steps, lengths, x: x.as_slice() };
        // SAFETY: as in `forward`.
        let y = unsafe {
            forward::run(&self.pool, layer, plan, input, y.as_mut_ptr(), Some(&mut trace));
            y.assume_init()
        };
        Ok((self.layer_output(y, trace.last_state(layer)?, batch, [steps, layer.spec.state_size()]), trace))
    }

    fn backward(
        &self,
        Layer(layer): &Layer,
        plan: &mut Plan,
        trace: &Trace,
        output_gradients: LayerOutputGradients<'_, Tensor>,
    ) -> Result<LayerGradients<Tensor>> {
        let (spec, steps, batch) = (&layer.spec, trace.steps, trace.batch);
        if !trace.matches(layer) || plan.batch != batch || !plan.matches(layer) {
            let expected = format!("a trace and a plan for {spec:?} and batch {batch}");
            return Err(Error::shape("backward", expected, format!("{trace:?} and {plan:?}")));
        }
        output_gradients.check(spec, steps, batch, |x| x.shape)?;
        let accumulate = output_gradients.accumulate.is_some();
        let mut weights = match output_gradients.accumulate {
            Some(weights) => weights,
            None => zero_gradients(spec)?,
        };
        let mut x = match output_gradients.needs_input_gradient {
            true => Some(zeros("backward", &[steps, batch, spec.input_size])?),
            false => None,
        };
        let mut h = zeros("backward", &[batch, spec.state_size()])?;
        let mut c = zeros("backward", &[batch, spec.hidden_size])?;
        let out = GradientBuffers {
            x: x.as_deref_mut(),
            w: weights.input.as_mut_slice("backward")?,
            u: weights.recurrent.as_mut_slice("backward")?,
            bias: weights.bias.as_mut().map(as_mut_slice).transpose()?,
            projection: weights.projection.as_mut().map(as_mut_slice).transpose()?,
            peephole: match &mut weights.peephole {
                Some([i, f, o]) => Some([as_mut_slice(i)?, as_mut_slice(f)?, as_mut_slice(o)?]),
                None => None,
            },
            accumulate,
            h: &mut h,
            c: &mut c,
        };
        let state = (output_gradients.state.h.as_slice(), output_gradients.state.c.as_slice());
        backward::run(&self.pool, layer, plan, trace, output_gradients.y.as_slice(), state, out)?;
        let x = x.map(|x| tensor_with_rows(x, steps * batch));
        Ok(LayerGradients { x, state: state_tensors(State { h, c }, batch), weights })
    }

    fn stream(&self, layers: &[Layer], batch: usize) -> Result<CpuStream> {
        CpuStream::new(layers, batch, self.threads())
    }

    fn step(&self, stream: &mut CpuStream, x: &[f32], y: &mut [f32]) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(stream.step(&self.pool, x, y))
    }

    fn step_some(
        &self,
        stream: &mut CpuStream,
        sequences: &[usize],
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(stream.step_some(&self.pool, sequences, x, y))
    }

    fn stream_state(&self, stream: &CpuStream, sequences: Range<usize>) -> Result<Vec<State<Tensor>>> {
        stream.state(sequences)
    }

    fn set_stream_state(&self, stream: &mut CpuStream, first_sequence: usize, state: &[State<Tensor>]) -> Result<()> {
        stream.set_state(first_sequence, state)
    }

    fn load_linear(&self, weights: LinearWeights<Tensor>) -> Result<CpuLinear> {
        CpuLinear::new(self.kernels, weights)
    }

    fn linear_step(
        &self,
        linear: &CpuLinear,
        x: &[f32],
        y: &mut [f32],
    ) -> impl Future<Output = Result<()>> + MaybeSend {
        ready(linear.step(x, y))
    }
}

/// The elements of a gradient, to be changed in place.
fn as_mut_slice(x: &mut Tensor) -> Result<&mut [f32]> {
    x.as_mut_slice("backward")
}

/// The state of `batch` sequences as tensors.
fn state_tensors(state: State<Vec<f32>>, batch: usize) -> State<Tensor> {
    State { h: tensor_with_rows(state.h, batch), c: tensor_with_rows(state.c, batch) }
}

/// A tensor with `rows` rows and the elements `data`.
fn tensor_with_rows(data: Vec<f32>, rows: usize) -> Tensor {
    Tensor::new(MatrixShape::new(rows, data.len() / rows), data)
}

/// Gradients of a layer's weights, all zero.
fn zero_gradients(spec: &LayerSpec) -> Result<WeightGradients<Tensor>> {
    let (hidden, gates) = (spec.hidden_size, 4 * spec.hidden_size);
    let zero_matrix = |rows, cols| Ok(Tensor::new(MatrixShape::new(rows, cols), zeros("backward", &[rows, cols])?));
    Ok(WeightGradients {
        input: zero_matrix(gates, spec.input_size)?,
        recurrent: zero_matrix(gates, spec.state_size())?,
        bias: if spec.bias == Bias::None { None } else { Some(zero_matrix(1, gates)?) },
        projection: spec.proj_size.map(|size| zero_matrix(size, hidden)).transpose()?,
        peephole: match spec.cell {
            CellKind::PeepholeDiagonal => {
                Some([zero_matrix(1, hidden)?, zero_matrix(1, hidden)?, zero_matrix(1, hidden)?])
            }
            _ => None,
        },
    })
}
