//! An encoder and a decoder, trained together by one optimizer: the decoder writes what the encoder has read, backwards.
//!
//! `cargo run --release --example encoder_decoder`

use lstm::ndarray::{Array2, Array3, Axis, concatenate, s};
use lstm::train::{Clip, Module, Optimizer, OptimizerConfig, cross_entropy, shuffled_indices};
use lstm::{Checkpointing::SaveEverything, Cpu, Error, Input, Linear, Lstm, LstmConfig};

const SYMBOLS: usize = 6;

/// Each symbol as a row with a single 1.
fn one_hot(symbols: &Array2<usize>) -> Array3<f32> {
    let (count, steps) = symbols.dim();
    Array3::from_shape_fn((count, steps, SYMBOLS), |(b, t, k)| if symbols[[b, t]] == k { 1.0 } else { 0.0 })
}

fn main() -> Result<(), Error> {
    // The sequences of 5 symbols with the given numbers, of 6^5.
    let sequences = |n: &[usize]| Array2::from_shape_fn((n.len(), 5), |(b, t)| n[b] / SYMBOLS.pow(t as u32) % SYMBOLS);
    let cpu = Cpu::new();
    let mut encoder = Lstm::random(&cpu, LstmConfig::new(SYMBOLS, 48), 1)?;
    let mut decoder = Lstm::random(&cpu, LstmConfig::new(SYMBOLS, 48), 2)?;
    let mut head = Linear::random(&cpu, 48, SYMBOLS, 3)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::adam())?;
    let numbers = shuffled_indices(4, 0, SYMBOLS.pow(5))?;
    let (known, new) = numbers.split_at(6400);
    for batch in known.chunks(64).cycle().take(500) {
        let symbols = sequences(batch);
        let target = symbols.slice(s![.., ..;-1]).to_owned();
        // The decoder reads the symbol before the one that it writes, and zeros at first.
        let previous = concatenate![Axis(1), Array3::zeros((64, 1, SYMBOLS)), one_hot(&target).slice(s![.., ..-1, ..])];
        let encoded = encoder.forward_train(&one_hot(&symbols), SaveEverything)?;
        let decoded = decoder.forward_train(Input::from(&previous).state(&encoded.state), SaveEverything)?;
        let (_, dy) = cross_entropy(head.forward(&decoded.y)?.view(), &target.flatten().to_vec())?;
        let of_head = head.backward(&decoded.y, &dy)?;
        let of_decoder = decoded.tape.backward(&of_head.x)?;
        let of_encoder = encoded.tape.backward(&of_decoder.state)?;
        let encoder = Module::new("encoder", &mut encoder, &of_encoder);
        let decoder = Module::new("decoder", &mut decoder, &of_decoder);
        let head = Module::new("head", &mut head, &of_head);
        optimizer.update(0.01, Some(Clip::Norm(1.0)), &mut [encoder, decoder, head])?;
    }

    // Decoding: what the decoder writes is what it reads next.
    let symbols = sequences(new);
    let (mut x, mut right) = (Array3::zeros((new.len(), 1, SYMBOLS)), 0);
    let mut state = encoder.forward(&one_hot(&symbols))?.1;
    for column in symbols.columns().into_iter().rev() {
        let (y, next) = decoder.forward(Input::from(&x).state(&state))?;
        let scores = head.forward(&y)?;
        let best = |b| (0..SYMBOLS).max_by(|&i, &j| scores[[b, 0, i]].total_cmp(&scores[[b, 0, j]]));
        let written = Array2::from_shape_fn((new.len(), 1), |(b, _)| best(b).unwrap_or(0));
        right += written.iter().zip(column).filter(|(written, symbol)| written == symbol).count();
        (x, state) = (one_hot(&written), next);
    }
    println!("{right} of {} symbols of new sequences are right", symbols.len());
    assert!(right as f64 >= 0.95 * symbols.len() as f64);
    Ok(())
}
