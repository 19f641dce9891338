//! A step of a stream on the CPU allocates nothing, in any thread.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm_cpu::{CellKind, Cpu, Isa, Lstm, LstmConfig, ndarray::Array3};

/// The system's allocator, counting.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::SeqCst);
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
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
    Ok(())
}
