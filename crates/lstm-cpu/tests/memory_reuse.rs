//! Memory that was used before: what it held is in no result.

use lstm_cpu::{Checkpointing, Cpu, Input, Lstm, LstmConfig, MatrixShape, Ops, Result, ndarray::Array3};

#[test]
fn what_memory_held_is_in_no_result() -> Result<()> {
    // Of the smallest output, a projected one, memory is just large enough to be kept.
    let (batch, steps, hidden) = (4, 128, 64);
    let x = Array3::from_shape_fn((steps, batch, hidden), |(t, b, i)| ((b * 31 + t * 17 + i * 7) % 23) as f32 / 23.0);
    let config = LstmConfig::new(hidden, hidden);
    let (both, projected) = (config.clone().bidirectional(), config.clone().proj_size(hidden / 2));
    for (config, lengths) in [
        (&config, None),
        (&config, Some([64, 3, 17, 1])),
        (&both, None),
        (&both, Some([64, 3, 17, 1])),
        (&projected, None),
    ] {
        let cols = config.output_size();
        let results = [false, true].map(|used| -> Result<_> {
            let cpu = Cpu::builder().threads(1).build()?;
            let lstm = Lstm::random(&cpu, config.clone(), 3)?;
            let taint = || -> Result<()> {
                // Of the sizes of input, outputs of one direction, and of both.
                for cols in if used { vec![hidden, hidden, hidden, cols] } else { Vec::new() } {
                    let rows = steps * batch;
                    let kept: Vec<_> = (0..3)
                        .map(|_| cpu.upload(MatrixShape::new(rows, cols), &vec![f32::NAN; rows * cols]))
                        .collect();
                    kept.into_iter().collect::<Result<Vec<_>>>()?;
                }
                Ok(())
            };
            taint()?;
            let input = || match &lengths {
                Some(lengths) => Input::from(&x).time_major().lengths(lengths),
                None => Input::from(&x).time_major(),
            };
            let (y, state) = lstm.forward(input())?;
            taint()?;
            let pass = lstm.forward_train(input(), Checkpointing::Everything)?;
            assert_eq!((&pass.y, &pass.state), (&y, &state));
            taint()?;
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
