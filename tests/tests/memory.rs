//! What the CPU allocates: in a step of a stream nothing, in any thread; in training with checkpoints little more than a
//! segment's states and gates.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm_cpu::{CellKind, Checkpointing, Cpu, Isa, Lstm, LstmConfig, ndarray::Array3};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Bytes in use, and the most there were.
static BYTES: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        let bytes = BYTES.fetch_add(layout.size(), Ordering::SeqCst) + layout.size();
        PEAK.fetch_max(bytes, Ordering::SeqCst);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        BYTES.fetch_sub(layout.size(), Ordering::SeqCst);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(at, layout) }
    }

    // `realloc` and `alloc_zeroed` go through `alloc` by default, so they are counted too.
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations in a thousand steps after the first.
fn allocations(cpu: &Cpu, config: LstmConfig, batch: usize) -> lstm_cpu::Result<usize> {
    let model = Lstm::random(cpu, config, 1)?;
    let x = vec![0.5; batch * model.config().input_size];
    let mut y = vec![0.0; batch * model.config().output_size()];
    let mut stream = model.stream(batch)?;
    stream.step(&x, &mut y)?;
    let before = ALLOCATIONS.load(Ordering::SeqCst);
    for _ in 0..1000 {
        stream.step(&x, &mut y)?;
    }
    Ok(ALLOCATIONS.load(Ordering::SeqCst) - before)
}

/// Bytes that a training step of a long sequence takes at its peak.
fn peak(keep: Checkpointing, steps: usize) -> lstm_cpu::Result<usize> {
    // A device of its own, with no memory left over from others.
    let cpu = Cpu::builder().threads(1).build()?;
    let model = Lstm::random(&cpu, LstmConfig::new(2, 32).layers(2), 1)?;
    let x = Array3::ones((1, steps, 2));
    let before = BYTES.load(Ordering::SeqCst);
    PEAK.store(before, Ordering::SeqCst);
    let pass = model.forward_train(&x, keep)?;
    let gradients = pass.tape.backward(&pass.y)?;
    let peak = PEAK.load(Ordering::SeqCst) - before;
    drop((pass, gradients));
    Ok(peak)
}

/// What grows with the steps is then outputs and their gradients, a few rows of the hidden size, instead of all states
/// and gates of two layers.
fn checkpoints_save_memory() -> lstm_cpu::Result<()> {
    let grows = |keep| Ok::<_, lstm_cpu::Error>((peak(keep, 8192)? - peak(keep, 4096)?) / 4096);
    let (everything, segments, root) =
        (grows(Checkpointing::Everything)?, grows(Checkpointing::Segments(64))?, grows(Checkpointing::SquareRoot)?);
    println!(
        "bytes a step: {everything} whole, {segments} in segments of 64, {root} in about as many as they are long"
    );
    assert!(2 * segments < everything && 2 * root < everything);
    Ok(())
}

/// Without libtest: its threads allocate whenever they like.
fn main() -> lstm_cpu::Result<()> {
    // Otherwise a count of 0 would say nothing.
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
        // Enough work for several threads.
        ("large", LstmConfig::new(64, 512)),
    ];
    let mut failed = 0;
    for isa in Isa::available() {
        for threads in [1, 2] {
            let cpu = Cpu::builder().threads(threads).isa(isa).build()?;
            // A thread's start allocates: wait for it with a product that all threads share.
            Lstm::random(&cpu, LstmConfig::new(256, 256), 1)?.forward(&Array3::zeros((32, 4, 256)))?;
            for (name, config) in &configs {
                // Plain code takes seconds for the large one, and shares all but the kernels.
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
    checkpoints_save_memory()
}
