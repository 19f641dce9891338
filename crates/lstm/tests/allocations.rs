//! A step on the CPU through a device allocates nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm::{
    Activation, Cpu, Device, HostState, Init, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelWeights, Result,
    Weights,
    ndarray::{Array1, Array2},
};

/// The system allocator with a counter.
struct CountingAllocator;

/// Number of allocations since the start.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.dealloc(at, layout) }
    }

    // `realloc` and `alloc_zeroed` go through `alloc` by default, so they are counted too.
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Number of allocations in 100 calls of `step` after the first one.
fn count(mut step: impl FnMut() -> Result<()>) -> Result<usize> {
    step()?;
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..100 {
        step()?;
    }
    Ok(ALLOCATIONS.load(Ordering::SeqCst) - before)
}

/// A small model with a skip connection, gains, an initial state and every activation but those at the end. `first` are
/// its first layers, which return 3 features, and `last` is the activation at the end.
fn model(first: Vec<ModelLayer>, last: Activation) -> Result<ModelWeights> {
    let linear = |name: &str, output, input| ModelLayer::Linear {
        name: name.into(),
        weight: Array2::from_elem((output, input), 0.25),
        bias: Some(Array1::from_elem(output, -0.125)),
    };
    let lstm = |name: &str, config: LstmConfig| {
        let initial_state = Some(HostState::zeros(&config, 1)?);
        let weights = Weights::init(config, &Init::default(), 3)?.into();
        Ok(ModelLayer::Lstm { name: name.into(), weights, initial_state })
    };
    let layers = [
        linear("a", 6, 3),
        ModelLayer::Activation(Activation::Relu),
        lstm("b", LstmConfig::new(6, 8))?,
        ModelLayer::Dropout(0.5),
        linear("c", 5, 8),
        ModelLayer::Activation(Activation::HardSigmoid { alpha: 0.2, beta: 0.5 }),
        lstm("d", LstmConfig::new(5, 4).layers(2))?,
        ModelLayer::LastStep,
        ModelLayer::Activation(Activation::Sigmoid),
        linear("e", 2, 4),
        ModelLayer::Activation(last),
    ];
    ModelWeights::new(first.into_iter().chain(layers).collect())
}

/// The test does not use libtest, because the threads of libtest allocate memory at any time.
fn main() -> Result<()> {
    // Check that allocations are counted at all.
    let allocate = || {
        drop(std::hint::black_box(vec![1u8; 100]));
        Ok(())
    };
    assert!(count(allocate)? >= 100, "allocations are not counted");

    let device = Device::from(Cpu::builder().threads(1).build()?);
    let lstm = Lstm::random(&device, LstmConfig::new(3, 24).layers(2), 1)?;
    let head = Linear::random(&device, 24, 2, 2)?;
    let mut stream = lstm.stream(2)?;
    let (x, mut h, mut y) = ([0.5; 6], [0.0; 48], [0.0; 4]);
    assert_eq!(count(|| stream.step(&x, &mut h))?, 0, "step");
    assert_eq!(count(|| stream.step_some(&[1], &x[..3], &mut h[..24]))?, 0, "step_some");
    assert_eq!(count(|| head.step(&h, &mut y))?, 0, "linear_step");

    // A skip connection needs the outputs of all steps.
    let layers = model(Vec::new(), Activation::Tanh)?.layers().to_vec();
    let layers = layers.into_iter().filter(|layer| *layer != ModelLayer::LastStep).collect();
    let weights = ModelWeights::new(layers)?.with_skip()?.with_gains(0.5, 2.0)?;
    let (mut stream, mut y) = (Model::new(&device, weights)?.stream(1)?, [0.0; 2]);
    let mut samples = 0;
    let mut run = || {
        (0..10_000).try_for_each(|k| {
            samples += 1;
            stream.step(&[k as f32 * 1e-4, 0.5, -0.5], &mut y)
        })
    };
    assert_eq!(count(&mut run)?, 0, "ModelStream::step");
    assert!(samples >= 1_000_000 && y.iter().all(|v| v.is_finite()), "{samples} samples, {y:?}");
    assert_eq!(count(|| stream.step_some(&[0], &[0.5; 3], &mut y))?, 0, "ModelStream::step_some");
    let embedding = ModelLayer::Embedding { name: "emb".into(), weight: Array2::from_elem((10, 3), 0.5) };
    let weights = model(vec![embedding], Activation::LogSoftmax)?;
    let (mut stream, mut y) = (Model::new(&device, weights)?.stream(2)?, [0.0; 4]);
    assert_eq!(count(|| stream.step_tokens(&[3, 9], &mut y))?, 0, "ModelStream::step_tokens");
    println!("no allocation in any step: ok");
    Ok(())
}
