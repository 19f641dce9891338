//! A step on the CPU through a device allocates nothing.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

use lstm::{Cpu, Device, Linear, Lstm, LstmConfig, Result};

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
    println!("no allocation in any step: ok");
    Ok(())
}
