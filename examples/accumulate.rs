//! Accumulates gradients: a batch that does not fit in memory is trained in four parts, with one update.
//!
//! `cargo run --release --example accumulate`

use lstm::{
    Checkpointing::SaveEverything,
    Cpu, Error, Gradients, Linear, LinearGradients, Lstm, LstmConfig,
    ndarray::{Array3, ArrayView3, Axis, Ix3, s},
    train::{Clip, Module, Optimizer, OptimizerConfig, mean_squared_error, part_of_mean},
};

/// What a part of the batch adds to the mean loss of the batch, and the gradients of that.
fn gradients(
    (lstm, head): (&Lstm<Cpu>, &Linear<Cpu>),
    wave: ArrayView3<'_, f32>,
    batch: usize,
) -> Result<(f64, Gradients, LinearGradients<Ix3>), Error> {
    let pass = lstm.forward_train(wave.slice(s![.., ..-1, ..]), SaveEverything)?;
    let mean = mean_squared_error(head.forward(&pass.y)?.view(), wave.slice(s![.., 1.., ..]))?;
    let (loss, dy) = part_of_mean(mean, wave.len_of(Axis(0)), batch);
    let of_head = head.backward(&pass.y, &dy)?;
    Ok((loss, pass.tape.backward(&of_head.x)?, of_head))
}

/// Trains with the batch in as many parts of equal size. Returns the loss of each step.
fn train(parts: usize) -> Result<Vec<f64>, Error> {
    let cpu = Cpu::new();
    let (mut lstm, mut head) = (Lstm::random(&cpu, LstmConfig::new(1, 16), 1)?, Linear::random(&cpu, 16, 1, 2)?);
    let mut optimizer = Optimizer::new(OptimizerConfig::adamw())?;
    let batch = Array3::from_shape_fn((32, 41, 1), |(b, t, _)| ((b + t) as f32 * 0.4).sin());

    let mut losses = Vec::new();
    for _ in 0..100 {
        let (mut loss, mut sums) = (0.0, None::<(Gradients, LinearGradients<Ix3>)>);
        for part in batch.axis_chunks_iter(Axis(0), 32 / parts) {
            let (part_loss, of_lstm, of_head) = gradients((&lstm, &head), part, 32)?;
            loss += part_loss;
            if let Some((lstm_sum, head_sum)) = &mut sums {
                lstm_sum.add_scaled(1.0, &of_lstm)?;
                head_sum.add_scaled(1.0, &of_head)?;
            } else {
                sums = Some((of_lstm, of_head));
            }
        }
        let (of_lstm, of_head) = sums.expect("at least one part");
        let modules = &mut [Module::new("lstm", &mut lstm, &of_lstm), Module::new("head", &mut head, &of_head)];
        optimizer.update(0.01, Some(Clip::Norm(1.0)), modules)?;
        losses.push(loss);
    }
    Ok(losses)
}

fn main() -> Result<(), Error> {
    let (whole, parts) = (train(1)?, train(4)?);
    println!("loss of the first and the last step: {:.5} and {:.5} in 4 parts", parts[0], parts[99]);
    println!("the same with the batch as a whole:  {:.5} and {:.5}", whole[0], whole[99]);
    assert!(whole.iter().zip(&parts).all(|(a, b)| (a - b).abs() < 1e-4 * a), "they differ by more than rounding");
    assert!(parts[99] < 0.2 * parts[0]);
    Ok(())
}
