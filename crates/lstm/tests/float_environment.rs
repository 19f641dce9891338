//! Results do not depend on the floating-point settings of the calling thread, such as those of an audio host.

#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]

use std::arch::asm;

use lstm::{
    Activation, Cpu, Init, LstmConfig, Model, ModelLayer, ModelWeights, Precision, Result, StateDict, Weights,
    ndarray::{Array1, Array2, Array3},
    train::{
        Clip, Optimizer, OptimizerConfig, Parameter, Schedule, binary_cross_entropy_with_logits, cross_entropy,
        gradient_norm, masked_mean_squared_error, mean_squared_error,
    },
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

/// A safetensors file of one tensor `x` of type F64.
fn f64_file(values: &[f64]) -> Vec<u8> {
    let (len, bytes) = (values.len(), values.len() * 8);
    let header = format!(r#"{{"x":{{"dtype":"F64","shape":[{len}],"data_offsets":[0,{bytes}]}}}}"#);
    let data = values.iter().flat_map(|v| v.to_le_bytes());
    (header.len() as u64).to_le_bytes().into_iter().chain(header.into_bytes()).chain(data).collect()
}

#[test]
fn a_file_of_doubles_is_rounded_to_nearest() -> Result<()> {
    // The last two are subnormal as f32, and the first is above the nearest f32 below.
    let values = [0.1, -1.0 / 3.0, 1e-40, -3e-42];
    let mut dict = StateDict::from_bytes(f64_file(&values))?;
    let array = with_other_settings(|| dict.take("x", &[values.len()]))?;
    let expected = [0.1f32, -1.0 / 3.0, 1e-40, -3e-42];
    assert_eq!(array.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
    Ok(())
}

/// A function with its name, which returns the bits of its results.
type Function<'a> = (&'a str, Box<dyn Fn() -> Result<Vec<u64>> + 'a>);

#[test]
fn training_functions_give_the_same_bits() -> Result<()> {
    let array = |scale: f32| Array3::from_shape_fn((2, 3, 5), |(b, t, k)| (b * 15 + t * 5 + k) as f32 * scale + 0.01);
    let (y, target) = (array(0.07), array(0.013));
    let gradients: Vec<f32> = y.iter().map(|v| v * 0.3).collect();
    let bits = |(loss, gradient): (f64, Array3<f32>)| {
        gradient.iter().map(|v| u64::from(v.to_bits())).chain([loss.to_bits()]).collect()
    };
    let functions: [Function<'_>; 8] = [
        ("mean_squared_error", Box::new(|| mean_squared_error(y.view(), target.view()).map(bits))),
        ("masked", Box::new(|| masked_mean_squared_error(y.view(), target.view(), &[3, 2]).map(bits))),
        ("binary", Box::new(|| binary_cross_entropy_with_logits(y.view(), target.view()).map(bits))),
        ("cross_entropy", Box::new(|| cross_entropy(y.view(), &[0, 1, 2, 3, 4, 0]).map(bits))),
        ("gradient_norm", Box::new(|| Ok(vec![gradient_norm([&gradients[..]]).to_bits()]))),
        (
            "schedule",
            Box::new(|| {
                let schedule = Schedule::cosine(0.1, 10, 0.0).warmup(3);
                Ok((0..8).map(|step| u64::from(schedule.rate_at(step).to_bits())).collect())
            }),
        ),
        (
            "clip",
            Box::new(|| {
                let mut clipped = gradients.clone();
                let norm = Clip::Norm(0.7).apply(&mut [&mut clipped])?;
                Ok(clipped.iter().map(|v| u64::from(v.to_bits())).chain([norm.to_bits()]).collect())
            }),
        ),
        (
            "optimizer",
            Box::new(|| {
                let mut value: Vec<f32> = target.iter().copied().collect();
                let mut optimizer = Optimizer::new(OptimizerConfig::adam())?;
                for _ in 0..3 {
                    optimizer.step(0.01, &mut [Parameter { name: "w", value: &mut value, gradient: &gradients }])?;
                }
                Ok(value.iter().map(|v| u64::from(v.to_bits())).collect())
            }),
        ),
    ];
    for (name, function) in &functions {
        assert_eq!(with_other_settings(function)?, function()?, "{name}");
    }
    Ok(())
}

#[test]
fn the_other_settings_change_results_where_nothing_resets_them() {
    let half = || std::hint::black_box(f32::MIN_POSITIVE) * std::hint::black_box(0.5);
    assert_eq!((half().to_bits(), with_other_settings(half)), (0x0040_0000, 0.0));
}
