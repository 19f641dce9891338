//! Results do not depend on the floating-point settings of the calling thread, such as those of an audio host.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

use std::arch::asm;

use lstm::{
    Activation, Cpu, Init, LstmConfig, Model, ModelLayer, ModelWeights, Precision, Result, Weights,
    ndarray::{Array1, Array2, Array3},
};

/// Calls `f` while subnormal numbers are flushed to zero, and results are rounded down.
fn with_other_settings<T>(f: impl FnOnce() -> T) -> T {
    /// Sets the register and returns its former value.
    fn exchange(new: u64) -> u64 {
        #[cfg(target_arch = "x86_64")]
        {
            let (mut old, new) = (0u32, new as u32);
            // SAFETY: the values are valid for the register: a control word, or what it was.
            unsafe { asm!("stmxcsr [{}]", "ldmxcsr [{}]", in(reg) &raw mut old, in(reg) &raw const new) };
            u64::from(old)
        }
        #[cfg(target_arch = "aarch64")]
        {
            let old: u64;
            // SAFETY: as above.
            unsafe { asm!("mrs {}, fpcr", "msr fpcr, {}", out(reg) old, in(reg) new) };
            old
        }
    }
    let settings = if cfg!(target_arch = "x86_64") { 0xbfc0 } else { 1 << 24 | 0b10 << 22 };
    let old = exchange(settings);
    let result = f();
    exchange(old);
    result
}

/// A model some of whose outputs are subnormal: the softmax function of logits that differ by about 95.
fn weights(hidden_size: usize) -> Result<ModelWeights> {
    let lstm = Weights::init(LstmConfig::new(3, hidden_size), &Init::default(), 7)?;
    let lstm = ModelLayer::Lstm { name: "rec".into(), weights: lstm.into(), initial_state: None };
    let weight = Array2::from_shape_fn((2, hidden_size), |(n, k)| (n * 5 + k) as f32 * 0.01 - 0.1);
    let linear = ModelLayer::Linear { name: "out".into(), weight, bias: Some(Array1::from_vec(vec![95.0, 0.0])) };
    ModelWeights::new(vec![lstm, linear, ModelLayer::Activation(Activation::Softmax)])
}

/// The bits of a forward pass and of a stream, on a device that is opened here.
fn results(weights: &ModelWeights, x: &Array3<f32>, threads: usize, precision: Precision) -> Result<Vec<u32>> {
    let cpu = Cpu::builder().threads(threads).build()?;
    let model = Model::new(&cpu, weights.quantize(precision)?)?;
    let mut values = model.forward(x)?.y.into_iter().collect::<Vec<_>>();
    let (mut stream, mut y) = (model.stream(2)?, [0.0; 4]);
    for x in x.as_slice().unwrap_or_default().chunks_exact(6) {
        stream.step(x, &mut y)?;
        values.extend(y);
    }
    Ok(values.into_iter().map(f32::to_bits).collect())
}

#[test]
fn results_are_those_of_the_default_settings() -> Result<()> {
    let x = Array3::from_shape_fn((2, 5, 3), |(b, t, k)| (b * 15 + t * 3 + k) as f32 * 0.07 - 1.0);
    for (hidden_size, threads) in [(8, 1), (256, 2)] {
        let weights = weights(hidden_size)?;
        for precision in Precision::ALL {
            let expected = results(&weights, &x, threads, precision)?;
            let got = with_other_settings(|| results(&weights, &x, threads, precision))?;
            assert!(expected.iter().any(|&bits| f32::from_bits(bits).is_subnormal()));
            assert_eq!(got, expected, "hidden size {hidden_size}, {precision}");
        }
    }
    Ok(())
}

#[test]
fn the_other_settings_change_results_where_nothing_resets_them() {
    let half = || std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
    assert_eq!((half().to_bits(), with_other_settings(half)), (0x0040_0000, 0.0));
}
