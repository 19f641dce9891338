//! A device computes what its backend computes, bit for bit, and rejects values of other backends.

use lstm::{
    Backend, CellKind, Checkpointing, Cpu, Device, Direction, Input, Linear, Lstm, LstmConfig, Ops, Reference, Result,
    ndarray::Array3,
    train::{Clip, LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

/// Configurations that together use every method of a backend.
fn configs() -> Vec<LstmConfig> {
    let config = LstmConfig::new(3, 5);
    vec![
        config.clone().layers(2).direction(Direction::Bidirectional),
        config.clone().layers(2).proj_size(4),
        config.clone().cell(CellKind::Unfused).coupled(),
        config.clone().cell(CellKind::PeepholeDense),
        config.cell(CellKind::PeepholeDiagonal).layers(2).clip(1.5),
    ]
}

/// Number of time steps: two segments of checkpointing.
const STEPS: usize = 40;

/// Input of 2 sequences.
fn input() -> Array3<f32> {
    Array3::from_shape_fn((2, STEPS, 3), |(b, t, f)| ((b * 31 + t * 7 + f * 3) % 17) as f32 * 0.25 - 2.0)
}

/// The bits of all results of a model: whole sequences, streams, a linear layer, and a training run.
fn results<B: Backend>(backend: &B, config: &LstmConfig) -> Result<Vec<u32>> {
    let (x, mut values) = (input(), Vec::<f32>::new());
    let lstm = Lstm::random(backend, config.clone(), 1)?;
    let head = Linear::random(backend, config.output_size(), 2, 2)?;
    let (y, state) = lstm.forward(Input::from(&x).lengths(&[STEPS, 17]))?;
    let (next, _) = lstm.forward(Input::from(&x).state(&state))?;
    values.extend(y.iter().chain(&state.h).chain(&state.c).chain(&next).chain(&head.forward(&y)?));

    let pass = lstm.forward_train(&x, Checkpointing::Segments(32))?;
    let gradients = pass.tape.backward(&pass.y)?;
    for (param, _) in lstm.config().layer_specs()[0].params() {
        values.extend(gradients.weights.layers()[0].get(param).into_iter().flatten());
    }

    if config.direction == Direction::Forward {
        let size = config.output_size();
        let mut stream = lstm.stream(2)?;
        let (mut y, mut logits) = (vec![0.0; 2 * size], vec![0.0; 4]);
        for t in 0..7 {
            stream.step(&[0.25 * t as f32; 6], &mut y)?;
            head.step(&y, &mut logits)?;
            values.extend(y.iter().chain(&logits));
        }
        stream.step_some(&[1], &[0.5; 3], &mut y[size..])?;
        let state = stream.take_state(1)?;
        stream.put_state(0, &state)?;
        values.extend(stream.chunk(x.view())?);
        let state = stream.state()?;
        values.extend(y.iter().chain(&state.h).chain(&state.c));
    }

    let schedule = Schedule::constant(1e-2);
    let trainer_config = TrainerConfig::new(OptimizerConfig::adamw(), schedule).clip(Clip::Norm(1.0));
    let mut trainer = Trainer::new(lstm, Some(head), trainer_config.checkpointing(Checkpointing::Segments(32)))?;
    let target = Array3::zeros((2, STEPS, 2));
    for _ in 0..3 {
        let report = trainer.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))?;
        values.push(report.loss as f32);
    }
    values.extend(trainer.predict(&x)?.0);
    Ok(values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn a_device_is_bit_identical_to_its_backend() -> Result<()> {
    let cpu = Cpu::builder().threads(2).build()?;
    let device = Device::from(cpu.clone());
    for config in configs() {
        let want = results(&cpu, &config)?;
        assert!(results(&device, &config)? == want, "{config}");
        // The primitives of a device, too.
        assert!(results(&Reference(device.clone()), &config)? == want, "{config}: the reference path");
        let paths = Lstm::random(&device, config.clone(), 1)?.paths();
        assert_eq!(paths, Lstm::random(&cpu, config, 1)?.paths());
    }
    assert_eq!((device.name(), device.arithmetic()), (cpu.name(), cpu.arithmetic()));
    Ok(())
}

#[cfg(feature = "wgpu")]
mod other_backends {
    use lstm::{
        ConcatAxis, DeviceMatrix, Error, ExecutionPath, LayerOutputGradients, LinearWeights, MatrixRef, MatrixShape,
        QuantizedMatrix, Sequence, State, Weights,
        quantized::{INT8, OperandRange},
    };

    use super::*;

    /// The other backend; `None` if it does not open here.
    fn open_wgpu() -> Option<Device> {
        match Device::open("wgpu") {
            Ok(device) => Some(device),
            Err(error) => {
                println!("not run: {error}");
                assert!(std::env::var_os("LSTM_REQUIRE").is_none());
                None
            }
        }
    }

    /// Asserts that a result is the error about a value of the backend `other`.
    fn assert_rejected<T>(result: Result<T>, backend: &str, other: &str) {
        match result {
            Err(Error::Device { backend: got, reason, .. }) => {
                assert!(got == backend && reason.contains(&format!("got one of {other};")), "{got}: {reason}");
            }
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("a value of {other} was accepted by {backend}"),
        }
    }

    #[test]
    fn wgpu_is_bit_identical() -> Result<()> {
        let Some(wgpu) = open_wgpu() else { return Ok(()) };
        for config in &configs()[..2] {
            assert!(results(&wgpu, config)? == results(&Device::open("cpu")?, config)?, "{config}");
        }
        Ok(())
    }

    #[test]
    fn values_of_another_backend_are_errors() -> Result<()> {
        let Some(wgpu) = open_wgpu() else { return Ok(()) };
        let cpu = Device::open("cpu")?;
        for (a, b) in [(&cpu, &wgpu), (&wgpu, &cpu)] {
            let rejected = |result: Result<()>| assert_rejected(result, a.name(), b.name());
            let shape = MatrixShape::new(2, 2);
            let (mine, other) = (a.upload(shape, &[1.0; 4])?, b.upload(shape, &[1.0; 4])?);
            assert_eq!(a.shape(&other), shape);
            rejected(pollster::block_on(a.download(&other, &mut [0.0; 4])));
            rejected(pollster::block_on(a.download_vec(other.clone())).map(drop));
            rejected(a.snap(other.clone()).map(drop));
            rejected(a.gemm((&mine).into(), MatrixRef::from(&other), None).map(drop));
            rejected(a.gemm((&mine).into(), (&mine).into(), Some(&other)).map(drop));
            let other_matrix = QuantizedMatrix { q: mine.clone(), scale: other.clone(), format: INT8 };
            rejected(a.gemm_quantized(&mine, &other_matrix, OperandRange::Any, None).map(drop));
            rejected(a.mul_add(1.0, &mine, Some(&other), None).map(drop));
            rejected(a.sigmoid(other.clone()).map(drop));
            rejected(a.tanh(other.clone()).map(drop));
            rejected(a.clip(other.clone(), 1.0).map(drop));
            rejected(a.select_between(mine.clone(), &mine, &mine, &other).map(drop));
            rejected(a.slice(&other, 0..1, 0..1).map(drop));
            rejected(a.concat(ConcatAxis::Rows, &[mine.clone(), other.clone()]).map(drop));

            let weights = Weights::init(LstmConfig::new(2, 2), &lstm::Init::default(), 1)?;
            let (layer, mut other_layer) = (a.load(&weights.layers()[0])?, b.load(&weights.layers()[0])?);
            let (mut plan, mut other_plan) = (a.plan(&layer, 2, 1)?, b.plan(&other_layer, 2, 1)?);
            rejected(a.reload(&mut other_layer, &weights.layers()[0]));
            rejected(a.plan(&other_layer, 2, 1).map(drop));
            let ExecutionPath::Fused(path) = a.path(&other_layer) else { panic!("the reference path") };
            assert!(path.starts_with("none: ") && path.contains(b.name()), "{path}");
            let state = State { h: mine.clone(), c: mine.clone() };
            let other_state = State { h: mine.clone(), c: other.clone() };
            let sequence = Sequence { x: &mine, state: &state, steps: 1, batch: 2, lengths: None };
            let again = || Sequence { ..sequence };
            rejected(a.forward(&other_layer, &mut plan, again()).map(drop));
            rejected(a.forward(&layer, &mut other_plan, again()).map(drop));
            rejected(a.forward(&layer, &mut plan, Sequence { x: &other, ..again() }).map(drop));
            rejected(a.forward(&layer, &mut plan, Sequence { state: &other_state, ..again() }).map(drop));
            let mut plans = [a.plan(&layer, 2, 1)?, a.plan(&layer, 2, 1)?];
            let [first, second] = plans.each_mut();
            rejected(a.forward_bidirectional([&layer; 2], [first, second], again(), &other_state).map(drop));
            rejected(a.forward_train(&other_layer, &mut plan, again()).map(drop));

            let (_, trace) = a.forward_train(&layer, &mut plan, again())?;
            let their_state = State { h: other.clone(), c: other.clone() };
            let theirs = Sequence { x: &other, state: &their_state, steps: 1, batch: 2, lengths: None };
            let (_, other_trace) = b.forward_train(&other_layer, &mut other_plan, theirs)?;
            let upstream = |y, state| LayerOutputGradients { y, state, accumulate: None, needs_input_gradient: true };
            rejected(a.backward(&layer, &mut plan, &other_trace, upstream(&mine, &state)).map(drop));
            rejected(a.backward(&layer, &mut plan, &trace, upstream(&other, &state)).map(drop));
            rejected(a.backward(&layer, &mut plan, &trace, upstream(&mine, &other_state)).map(drop));

            let mut stream = a.stream(std::slice::from_ref(&layer), 2)?;
            let mut other_stream = b.stream(std::slice::from_ref(&other_layer), 2)?;
            rejected(a.stream(&[other_layer], 2).map(drop));
            let y = &mut [0.0; 4];
            rejected(pollster::block_on(a.step(&mut other_stream, &[0.0; 4], y)));
            rejected(pollster::block_on(a.step_some(&mut other_stream, &[0], &[0.0; 2], &mut y[..2])));
            rejected(a.stream_state(&other_stream, 0..2).map(drop));
            rejected(a.set_stream_state(&mut other_stream, 0, &[state]));
            rejected(a.set_stream_state(&mut stream, 0, &[other_state]));

            let other_weight = || DeviceMatrix::F32(other.clone());
            let other_linear = b.load_linear(LinearWeights { weight: other_weight(), bias: None })?;
            rejected(a.load_linear(LinearWeights { weight: other_weight(), bias: None }).map(drop));
            rejected(pollster::block_on(a.linear_step(&other_linear, &[0.0; 4], y)));

            // The way out that the error names.
            let mut values = [0.0; 4];
            pollster::block_on(b.download(&other, &mut values))?;
            a.snap(a.upload(shape, &values)?)?;
        }
        Ok(())
    }
}
