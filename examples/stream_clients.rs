//! Streams 100 clients through one model: each sends a sample when it has one, and all that have are served in one step.
//!
//! `cargo run --release --example stream_clients`

use std::time::Instant;

use lstm::{Cpu, Error, Lstm, LstmConfig, ndarray::Array3};

const CLIENTS: usize = 100;
const FEATURES: usize = 8;
const HIDDEN: usize = 64;

/// What a client sends as its sample of number `t`.
fn sample(client: usize, t: usize) -> impl Iterator<Item = f32> {
    (0..FEATURES).map(move |k| (0.1 * t as f32 + client as f32 + k as f32).sin())
}

fn main() -> Result<(), Error> {
    let lstm = Lstm::random(&Cpu::builder().threads(1).build()?, LstmConfig::new(FEATURES, HIDDEN).layers(2), 1)?;
    let mut stream = lstm.stream(CLIENTS)?;

    let mut outputs = vec![Vec::new(); CLIENTS];
    let mut seconds = 0.0;
    for tick in 0..60 {
        // Some clients send at every tick, some at every second or third one.
        let ready: Vec<usize> = (0..CLIENTS).filter(|client| tick % (1 + client % 3) == 0).collect();
        let sent = |client: usize| outputs[client].len() / HIDDEN;
        let x: Vec<f32> = ready.iter().flat_map(|&client| sample(client, sent(client))).collect();
        let mut y = vec![0.0; ready.len() * HIDDEN];
        let start = Instant::now();
        stream.step_some(&ready, &x, &mut y)?;
        seconds += start.elapsed().as_secs_f64();
        for (&client, y) in ready.iter().zip(y.chunks(HIDDEN)) {
            outputs[client].extend_from_slice(y);
        }
    }
    let samples: usize = outputs.iter().map(|y| y.len() / HIDDEN).sum();
    println!("{samples} samples of {CLIENTS} clients, {:.2} us per sample", 1e6 * seconds / samples as f64);

    // Each client got what it would have got alone, to the bit.
    for (client, y) in outputs.iter().enumerate() {
        let steps = y.len() / HIDDEN;
        let x: Vec<f32> = (0..steps).flat_map(|t| sample(client, t)).collect();
        let x = Array3::from_shape_vec((1, steps, FEATURES), x).expect("as many values as the shape has");
        assert_eq!(lstm.forward(&x)?.0.as_slice(), Some(&y[..]), "client {client}");
    }

    // Client 7 pauses and returns in the place of client 8, which has left.
    let paused = stream.take_state(7)?;
    stream.put_state(8, &paused)?;
    let (x, mut y) = (sample(7, 60).collect::<Vec<_>>(), [0.0; 2 * HIDDEN]);
    stream.step_some(&[8, 7], &[&x[..], &x[..]].concat(), &mut y)?;
    assert_ne!(y[..HIDDEN], y[HIDDEN..], "place 7 starts from zero, place 8 does not");
    Ok(())
}
