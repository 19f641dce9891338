//! Audio in real time: a guitar amp, block by block, on a thread that must not allocate. The program aborts if it does.
//!
//! `cargo run --release --example realtime_audio`

use std::{path::Path, time::Instant};

use assert_no_alloc::{AllocDisabler, assert_no_alloc};
use lstm::{Cpu, Error, formats, ndarray::Array3};

/// Samples per block, as an audio driver asks for them.
const BLOCK: usize = 64;

const RATE: usize = 48_000;

/// The system's allocator, which aborts the program where `assert_no_alloc` forbids allocation.
#[global_allocator]
static ALLOCATOR: AllocDisabler = AllocDisabler;

fn main() -> Result<(), Error> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/models/nam.nam");
    // One thread: a model of this size is less work than waking another thread.
    let amp = formats::open_model(&Cpu::builder().threads(1).build()?, path)?;
    let mut stream = amp.stream(1)?;

    // A string at 110 Hz that fades.
    let guitar = |t: usize| (t as f32 * 110.0 / RATE as f32).fract() * (-3.0 * t as f32 / RATE as f32).exp() - 0.2;
    let mut samples: Vec<f32> = (0..RATE).map(guitar).collect();
    let input = Array3::from_shape_vec((1, RATE, 1), samples.clone()).expect("one channel");

    let (start, mut worst) = (Instant::now(), 0.0f64);
    for block in samples.chunks_mut(BLOCK) {
        let start = Instant::now();
        // What a plug-in's `process` does.
        assert_no_alloc(|| {
            block.iter_mut().try_for_each(|sample| {
                let x = [*sample];
                stream.step(&x, std::slice::from_mut(sample))
            })
        })?;
        worst = worst.max(start.elapsed().as_secs_f64());
    }
    let (total, deadline) = (start.elapsed().as_secs_f64(), BLOCK as f64 / RATE as f64);
    println!("1 s of audio in {total:.4} s, {:.0} times as fast as real time, without allocation", 1.0 / total);
    println!("slowest block: {:.0} us of {:.0} us", 1e6 * worst, 1e6 * deadline);

    // Block by block is what one call gives, to the bit.
    assert_eq!(amp.forward(&input)?.y.as_slice(), Some(&samples[..]));
    assert!(total < 1.0, "slower than real time");
    Ok(())
}
