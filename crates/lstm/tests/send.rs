//! Devices, models, and the futures of generic programs can move to other threads.

use std::{
    future::Future,
    thread::{self, JoinHandle},
};

use lstm::{
    Activation, Backend, Cpu, Device, HostState, Init, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelOutput,
    ModelStream, ModelTape, ModelWeights, Result, Stream, Tape, Weights,
    ndarray::{Array2, Array3},
    train::{LossInput, ModelTrainer, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};

#[test]
fn values_are_send() {
    fn assert_send<T: Send>() {}
    fn assert_sync<T: Sync>() {}
    assert_send::<Device>();
    assert_sync::<Device>();
    assert_send::<Lstm<Device>>();
    assert_sync::<Lstm<Device>>();
    assert_send::<Stream<Device>>();
    assert_send::<Linear<Device>>();
    assert_send::<Tape<Device>>();
    assert_send::<Trainer<Device>>();
    assert_send::<Model<Device>>();
    assert_sync::<Model<Device>>();
    assert_send::<ModelStream<Device>>();
    assert_send::<ModelTape<Device>>();
    assert_send::<ModelTrainer<Device>>();
}

/// Runs a future on a thread, with the bounds of `tokio::spawn`.
fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    thread::spawn(|| pollster::block_on(future))
}

/// What a program computes in tasks, on any backend.
fn run_in_tasks<B: Backend + 'static>(backend: &B) -> Result<(Array3<f32>, HostState, Vec<f32>, f64)> {
    let lstm = Lstm::random(backend, LstmConfig::new(3, 5).layers(2), 1)?;
    let head = Linear::random(backend, 5, 2, 2)?;
    let x = Array3::from_shape_fn((2, 4, 3), |(b, t, f)| (b + t * f) as f32 * 0.25 - 0.5);

    let (model, input) = (lstm.clone(), x.clone());
    let forward = spawn(async move { model.forward_async(&input).await });

    let (mut stream, layer) = (lstm.stream(2)?, head.clone());
    let step = spawn(async move {
        let (mut h, mut y) = (vec![0.0; 10], vec![0.0; 4]);
        stream.step_async(&[0.5; 6], &mut h).await?;
        stream.step_some_async(&[1], &[0.25; 3], &mut h[5..]).await?;
        stream.reset_sequences_async(&[0]).await?;
        layer.step_async(&h, &mut y).await?;
        Ok::<_, lstm::Error>(y)
    });

    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-2));
    let mut trainer = Trainer::new(lstm, Some(head), config)?;
    let train = spawn(async move {
        let target = Array3::zeros((2, 4, 2));
        let report =
            trainer.step_async(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view())).await?;
        Ok::<_, lstm::Error>(report.loss)
    });

    let (y, state) = forward.join().unwrap()?;
    Ok((y, state, step.join().unwrap()?, train.join().unwrap()?))
}

/// What a program computes with a whole model in tasks, on any backend.
fn run_model_in_tasks<B: Backend + 'static>(backend: &B) -> Result<(ModelOutput, Vec<f32>, f64)> {
    let lstm = Weights::init(LstmConfig::new(3, 5), &Init::default(), 1)?.into();
    let weights = ModelWeights::new(vec![
        ModelLayer::Lstm { name: "rec".into(), weights: lstm, initial_state: None },
        ModelLayer::Linear { name: "lin".into(), weight: Array2::from_elem((2, 5), 0.5), bias: None },
        ModelLayer::Activation(Activation::Relu),
    ])?;
    let model = Model::new(backend, weights)?;
    let x = Array3::from_shape_fn((2, 4, 3), |(b, t, f)| (b + t * f) as f32 * 0.25 - 0.5);
    let (copy, input) = (model.clone(), x.clone());
    let forward = spawn(async move { copy.forward_async(&input).await });

    let mut stream = model.stream(2)?;
    let step = spawn(async move {
        let mut y = vec![0.0; 4];
        stream.step_async(&[0.5; 6], &mut y).await?;
        stream.step_some_async(&[1], &[0.25; 3], &mut y[2..]).await?;
        stream.chunk_async(&Array3::zeros((2, 2, 3))).await?;
        Ok::<_, lstm::Error>(y)
    });

    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(1e-2));
    let mut trainer = ModelTrainer::new(model, config)?;
    let train = spawn(async move {
        let target = Array3::zeros((2, 4, 2));
        let report = trainer.step_async(&x, |out, _| mean_squared_error(out.y()?, target.view())).await?;
        Ok::<_, lstm::Error>(report.loss)
    });
    Ok((forward.join().unwrap()?, step.join().unwrap()?, train.join().unwrap()?))
}

#[test]
fn futures_run_on_other_threads() -> Result<()> {
    let cpu = Cpu::builder().threads(1).build()?;
    assert_eq!(run_in_tasks(&Device::from(cpu.clone()))?, run_in_tasks(&cpu)?);
    assert_eq!(run_model_in_tasks(&Device::from(cpu.clone()))?, run_model_in_tasks(&cpu)?);
    // Opening a device, too.
    let device = spawn(Device::builder().backend("cpu").open_async()).join().unwrap()?;
    assert_eq!(run_in_tasks(&device)?, run_in_tasks(&cpu)?);
    Ok(())
}
