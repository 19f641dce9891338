//! Memory use of the CPU backend: a step of a stream or a head allocates nothing in any thread, and checkpointing and shards
//! reduce the memory of a training step.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm_cpu::{
    CellKind, Checkpointing, Cpu, Isa, Linear, Lstm, LstmConfig,
    ndarray::Array3,
    train::{LossInput, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

/// The system allocator with counters.
struct CountingAllocator;

/// Number of allocations since the start.
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Number of bytes in use.
static BYTES: AtomicUsize = AtomicUsize::new(0);

/// Largest number of bytes in use.
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        let bytes = BYTES.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(bytes, Ordering::SeqCst);
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the requirements on the caller are the same.
        unsafe { System.dealloc(at, layout) }
    }

    // `realloc` and `alloc_zeroed` go through `alloc` by default, so they are counted too.
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

/// Number of allocations in 1000 steps of a stream and its head. A third of the steps is of some sequences only.
fn allocations(cpu: &Cpu, config: LstmConfig, batch: usize) -> lstm_cpu::Result<usize> {
    let model = Lstm::random(cpu, config, 1)?;
    let (input_size, output_size) = (model.config().input_size, model.config().output_size());
    let head = Linear::random(cpu, output_size, 3, 2)?;
    // The first value snaps to zero.
    let x: Vec<f32> = (0..batch * input_size).map(|k| if k == 0 { 1e-20 } else { 0.5 }).collect();
    let (mut y, mut out) = (vec![0.0; batch * output_size], vec![0.0; batch * 3]);
    let mut stream = model.stream(batch)?;
    let some: Vec<usize> = (0..batch).rev().step_by(2).collect();
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for k in 0..1000 {
        match k % 3 {
            0 => stream.step_some(&some, &x[..some.len() * input_size], &mut y[..some.len() * output_size])?,
            _ => stream.step(&x, &mut y)?,
        }
        head.step(&y, &mut out)?;
    }
    Ok(ALLOCATIONS.load(Ordering::SeqCst) - before)
}

/// Peak memory in bytes of the forward and backward pass of a sequence.
fn peak(checkpointing: Checkpointing, steps: usize) -> lstm_cpu::Result<usize> {
    // A new backend, whose memory pool is empty.
    let cpu = Cpu::builder().threads(1).build()?;
    let model = Lstm::random(&cpu, LstmConfig::new(2, 32).layers(2), 1)?;
    let x = Array3::ones((1, steps, 2));
    let before = BYTES.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let pass = model.forward_train(&x, checkpointing)?;
    let gradients = pass.tape.backward(&pass.y)?;
    let peak = PEAK.load(Ordering::SeqCst) - before;
    drop((pass, gradients));
    Ok(peak)
}

/// Checks that checkpointing at least halves the memory for each time step. With checkpointing, only outputs and their
/// gradients grow with the number of steps; without, all states and gates of two layers do.
fn checkpointing_saves_memory() -> lstm_cpu::Result<()> {
    let bytes_per_step = |mode| Ok::<_, lstm_cpu::Error>((peak(mode, 8192)? - peak(mode, 4096)?) / 4096);
    let (everything, segments, root) = (
        bytes_per_step(Checkpointing::SaveEverything)?,
        bytes_per_step(Checkpointing::Segments(64))?,
        bytes_per_step(Checkpointing::SquareRootSegments)?,
    );
    println!(
        "bytes per step: {everything} without checkpointing, {segments} in segments of 64, {root} with square-root segments"
    );
    assert!(2 * segments < everything && 2 * root < everything);
    Ok(())
}

/// Peak memory in bytes of a training step on 16 sequences.
fn peak_of_shards(shards: usize) -> lstm_cpu::Result<usize> {
    let cpu = Cpu::builder().threads(1).build()?;
    let model = Lstm::random(&cpu, LstmConfig::new(2, 32).layers(2), 1)?;
    let config = TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(0.01)).shards(shards);
    let (mut trainer, x) = (Trainer::new(model, None, config)?, Array3::ones((16, 512, 2)));
    let before = BYTES.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    trainer.step(&x, LossInput::Outputs, |out, _| Ok::<_, lstm_cpu::Error>((0.0, out.y()?.to_owned())))?;
    Ok(PEAK.load(Ordering::SeqCst) - before)
}

/// Checks that the activations of one shard are in memory, not those of the batch. What is left are gradients.
fn shards_save_memory() -> lstm_cpu::Result<()> {
    let (one, four, sixteen) = (peak_of_shards(1)?, peak_of_shards(4)?, peak_of_shards(16)?);
    println!("bytes of a training step: {one} with 1 shard, {four} with 4, {sixteen} with 16");
    assert!(3 * four < one && 2 * sixteen < four);
    Ok(())
}

/// The test does not use libtest, because the threads of libtest allocate memory at any time.
fn main() -> lstm_cpu::Result<()> {
    // Check that allocations are counted at all.
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    drop(std::hint::black_box(vec![1u8; 100]));
    assert!(ALLOCATIONS.load(Ordering::SeqCst) > before, "allocations are not counted");

    let config = LstmConfig::new(5, 24);
    let configs = [
        ("fused", config.clone()),
        ("unfused", config.clone().cell(CellKind::Unfused)),
        ("dense", config.clone().cell(CellKind::PeepholeDense)),
        ("diagonal", config.clone().cell(CellKind::PeepholeDiagonal)),
        ("projection", config.clone().proj_size(7)),
        ("two layers", config.clone().layers(2)),
        ("coupled, clip", config.coupled().clip(1.0)),
        // Large enough to be split among several threads.
        ("large", LstmConfig::new(64, 512)),
    ];
    let mut failed = 0;
    for isa in Isa::available() {
        for threads in [1, 2] {
            let cpu = Cpu::builder().threads(threads).always_all_threads().isa(isa).build()?;
            // Starting a thread allocates memory, so run a product that uses all threads first.
            Lstm::random(&cpu, LstmConfig::new(256, 256), 1)?.forward(&Array3::zeros((32, 4, 256)))?;
            for (name, config) in &configs {
                // Plain code would take seconds for the large model and differs in the kernels only.
                if *name == "large" && isa == Isa::Plain {
                    continue;
                }
                for batch in [1, 3] {
                    let count = allocations(&cpu, config.clone(), batch)?;
                    if count > 0 {
                        println!("{name}, {isa}, {threads} threads, batch {batch}: {count} allocations in 1000 steps");
                        failed += 1;
                    }
                }
            }
        }
    }
    assert_eq!(failed, 0, "steps allocate");
    println!("no allocation in any step: ok");
    shards_save_memory()?;
    checkpointing_saves_memory()
}
