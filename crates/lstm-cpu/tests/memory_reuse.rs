//! Tests that the previous contents of reused memory do not affect results.

use lstm_cpu::{Checkpointing, Cpu, Input, Lstm, LstmConfig, MatrixShape, Ops, Result, ndarray::Array3};

#[test]
fn reused_memory_does_not_affect_results() -> Result<()> {
    // The smallest output, a projected one, is just large enough for its memory to be reused.
    let (batch, steps, hidden) = (4, 128, 64);
    let x = Array3::from_shape_fn((steps, batch, hidden), |(t, b, i)| ((b * 31 + t * 17 + i * 7) % 23) as f32 / 23.0);
    let config = LstmConfig::new(hidden, hidden);
    let (bidirectional, projected) = (config.clone().bidirectional(), config.clone().proj_size(hidden / 2));
    for (config, lengths) in [
        (&config, None),
        (&config, Some([64, 3, 17, 1])),
        (&bidirectional, None),
        (&bidirectional, Some([64, 3, 17, 1])),
        (&projected, None),
    ] {
        let cols = config.output_size();
        let results = [false, true].map(|used| -> Result<_> {
            let cpu = Cpu::builder().threads(1).build()?;
            let lstm = Lstm::random(&cpu, config.clone(), 3)?;
            let fill_free_list_with_nan = || -> Result<()> {
                // The sizes of the input, and of the outputs of one direction and of both.
                for cols in if used { vec![hidden, hidden, hidden, cols] } else { Vec::new() } {
                    let rows = steps * batch;
                    let tensors: Vec<_> = (0..3)
                        .map(|_| cpu.upload(MatrixShape::new(rows, cols), &vec![f32::NAN; rows * cols]))
                        .collect();
                    tensors.into_iter().collect::<Result<Vec<_>>>()?;
                }
                Ok(())
            };
            fill_free_list_with_nan()?;
            let input = || match &lengths {
                Some(lengths) => Input::from(&x).time_major().lengths(lengths),
                None => Input::from(&x).time_major(),
            };
            let (y, state) = lstm.forward(input())?;
            fill_free_list_with_nan()?;
            let pass = lstm.forward_train(input(), Checkpointing::SaveEverything)?;
            assert_eq!((&pass.y, &pass.state), (&y, &state));
            fill_free_list_with_nan()?;
            let gradients = pass.tape.backward(&pass.y)?;
            assert!(y.iter().all(|v| v.is_finite()) && y.dim() == (steps, batch, cols));
            let weights: Vec<f32> = gradients.weights.layers()[0].iter().flat_map(|(_, v)| v.iter().copied()).collect();
            Ok((y, state, weights))
        });
        let [fresh, used] = results;
        assert!(fresh? == used?);
    }
    Ok(())
}
