//! Tests of the segments and the picture. `tests/tests/silero_vad.rs` compares the probabilities with ONNX Runtime.

use clap::CommandFactory;

use super::*;

/// Number of chunks in this many seconds.
fn chunks(seconds: f32) -> usize {
    (seconds * SAMPLE_RATE as f32 / CHUNK as f32).round() as usize
}

/// Probabilities that hold each value for some seconds.
fn probabilities(parts: &[(f32, f32)]) -> Vec<f32> {
    parts.iter().flat_map(|&(value, seconds)| vec![value; chunks(seconds)]).collect()
}

#[test]
fn segments_end_with_silence_and_are_padded() {
    let find = |parts: &[(f32, f32)]| {
        let probabilities = probabilities(parts);
        let segments = find_segments(&probabilities, probabilities.len() * CHUNK);
        segments.iter().map(|s| (s.start / CHUNK, s.end.div_ceil(CHUNK))).collect::<Vec<_>>()
    };
    let a = chunks(1.0);
    let (b, c) = (2 * a, 3 * a);
    assert_eq!(find(&[(0.1, 1.0)]), []);
    assert_eq!(find(&[(0.1, 1.0), (0.9, 1.0), (0.1, 1.0)]), [(a - 1, b + 1)]);
    // Too short; a pause that is too short; between the thresholds.
    assert_eq!(find(&[(0.1, 1.0), (0.9, 0.2), (0.1, 1.0)]), []);
    assert_eq!(find(&[(0.9, 1.0), (0.1, 0.06), (0.9, 0.5), (0.1, 1.0)]).len(), 1);
    assert_eq!(find(&[(0.9, 1.0), (0.4, 1.0), (0.9, 1.0), (0.1, 1.0)]), [(0, c + 1)]);
    assert_eq!(find(&[(0.9, 1.0), (0.1, 1.0), (0.9, 1.0)]), [(0, a + 1), (b - 1, b + a)]);
}

#[test]
fn draws_any_audio() -> Result<()> {
    for len in [0, 1, 100_000] {
        let samples = vec![0.0; len];
        let segment = 0..len;
        let picture = chart::draw(&samples, &vec![0.5; len.div_ceil(CHUNK)], std::slice::from_ref(&segment))?;
        assert!(picture.starts_with("<svg") && !picture.contains("NaN"), "{len}");
    }
    Ok(())
}

#[test]
fn convolutions_have_the_shape_of_the_model() -> Result<()> {
    let device = Device::open("cpu")?;
    let new = |kernel| {
        let weight = lstm::ndarray::ArrayD::zeros(vec![2, 3, kernel]);
        model::Convolution::new(&device, weight, [2, 3, 3], None, 1, 1)
    };
    assert!(new(3).is_ok());
    for kernel in [0, 1, 8] {
        let error = new(kernel).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(&format!("got [2, 3, {kernel}]")), "{error}");
    }
    Ok(())
}

#[test]
fn options_are_consistent() {
    Options::command().debug_assert();
}
