//! Tests of training steps: their parts, decreasing losses, and unchanged state after an error.

use crate::common::{bits, cases, device, step, step_bits, task, trainer};
use lstm_cpu::{
    Backend, Checkpointing, Cpu, Dropout, Error, HostState, Input, Linear, Lstm, LstmConfig, OutputGradients, Result,
    ndarray::{Array2, Array3, ArrayView1, Axis, s},
    train::{
        Clip, IGNORE_INDEX, LossGradient, LossInput, ModelOutputs, Optimizer, OptimizerConfig, Parameter, Schedule,
        Shard, StepReport, Trainer, TrainerConfig, cross_entropy, mean_squared_error,
    },
};

/// A configuration with SGD at a constant learning rate.
fn sgd(rate: f32) -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(rate))
}

/// Trains every case for 60 steps and checks that the loss decreases.
fn check_loss_decreases<B: Backend>(b: &B) {
    for case in cases() {
        let (x, target) = task();
        let mut trainer = trainer(b, &case);
        let loss = |trainer: &Trainer<B>| {
            let (y, _) = trainer.predict(&x).unwrap();
            mean_squared_error(y.view(), target.view()).unwrap().0
        };
        let before = loss(&trainer);
        (0..60).for_each(|_| drop(step(&mut trainer).unwrap()));
        let after = loss(&trainer);
        assert!(after < 0.75 * before, "{trainer:?}: {before} to {after}");
    }
}

#[test]
fn loss_decreases_in_every_configuration() {
    check_loss_decreases(&Cpu::new());
    check_loss_decreases(&device());
}

#[test]
fn cross_entropy_training_ignores_masked_steps() {
    // The class tells whether the first feature is smaller. The first ten time steps are ignored.
    let (x, _) = task();
    let class = |(k, pair): (usize, ArrayView1<'_, f32>)| {
        if k % 40 < 10 { IGNORE_INDEX } else { usize::from(pair[0] < pair[1]) }
    };
    let classes: Vec<_> = x.rows().into_iter().enumerate().map(class).collect();
    let device = device();
    let lstm = Lstm::random(&device, LstmConfig::new(2, 8), 1).unwrap();
    let head = Linear::random(&device, 8, 2, 2).unwrap();
    let settings = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.03)).clip(Clip::Norm(1.0));
    let mut trainer = Trainer::new(lstm, Some(head), settings).unwrap();
    let mut losses = Vec::new();
    for _ in 0..50 {
        losses.push(trainer.step(&x, LossInput::Outputs, |out, _| cross_entropy(out.y()?, &classes)).unwrap().loss);
    }
    assert!(losses[0] > 0.6 && losses[49] < 0.3, "{losses:?}");
}

/// Compares a training step with the same passes and optimizer step, called one by one.
fn check_step_parts<B: Backend>(b: &B) {
    for (config, has_head, settings) in cases() {
        let mut trainer = trainer(b, &(config.clone(), has_head, settings.clone()));
        let (x, target) = task();
        // The first two outputs of SplitMix64.
        let seeds = [1u64, 2].map(|s| {
            let z = settings.seed.wrapping_add(s.wrapping_mul(0x9e37_79b9_7f4a_7c15));
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        });
        let (mut lstm, mut head) = (trainer.lstm().clone(), trainer.head().cloned());
        let mut optimizer = Optimizer::new(settings.optimizer.clone()).unwrap();
        for (k, seed) in seeds.into_iter().enumerate() {
            let rate = settings.schedule.rate_at(k as u64);
            assert_eq!(trainer.learning_rate(), rate);
            let done =
                trainer.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view())).unwrap();

            let pass = lstm
                .forward_train(Input::from(&x).dropout(Dropout::Seed(seed)), Checkpointing::SaveEverything)
                .unwrap();
            let y = head.as_ref().map_or(pass.y.clone(), |head| head.forward(pass.y.view()).unwrap());
            let (loss, dy) = mean_squared_error(y.view(), target.view()).unwrap();
            let by_head = head.as_ref().map(|head| head.backward(pass.y.view(), dy.view()).unwrap());
            let dy = by_head.as_ref().map_or(&dy, |gradients| &gradients.x);
            let mut by_lstm = pass.tape.backward(dy).unwrap().weights;
            let layers = by_lstm.iter_mut();
            let mut gradients: Vec<Vec<f32>> = layers.map(|(_, values)| values.to_vec()).collect();
            if let Some(by_head) = &by_head {
                gradients.push(by_head.weight.iter().copied().collect());
                gradients.push(by_head.bias.as_ref().unwrap().to_vec());
            }
            let norm = match settings.clip {
                Some(clip) => clip.apply(&mut gradients.iter_mut().map(|g| &mut g[..]).collect::<Vec<_>>()).unwrap(),
                None => lstm_cpu::train::gradient_norm(gradients.iter().map(|g| &g[..])),
            };
            let mut weights = lstm.weights().clone();
            let (mut weight, mut bias) =
                head.as_ref().map_or((Array2::zeros((0, 0)), None), |h| (h.weight().clone(), h.bias().cloned()));
            let layers = weights.iter_mut();
            let mut values: Vec<&mut [f32]> = layers.map(|(_, values)| values).collect();
            if head.is_some() {
                values.push(weight.as_slice_mut().unwrap());
                values.extend(bias.as_mut().map(|bias| bias.as_slice_mut().unwrap()));
            }
            let names: Vec<_> = (0..values.len()).map(|k| k.to_string()).collect();
            let parameters = names.iter().zip(values).zip(&gradients);
            let mut parameters: Vec<_> =
                parameters.map(|((name, value), gradient)| Parameter { name, value, gradient }).collect();
            optimizer.step(rate, &mut parameters).unwrap();
            lstm.set_weights(weights).unwrap();
            if let Some(head) = &mut head {
                head.set_weights(weight, bias).unwrap();
            }

            assert_eq!(
                (done.step, done.loss, done.gradient_norm, done.learning_rate),
                (k as u64 + 1, loss, norm, rate)
            );
            assert_eq!(done.state, pass.state);
            assert_eq!(trainer.lstm().weights(), lstm.weights());
            assert_eq!(trainer.head().map(|h| (h.weight(), h.bias())), head.as_ref().map(|h| (h.weight(), h.bias())));
        }
        assert_eq!(trainer.steps(), 2);
    }
}

#[test]
fn step_equals_its_parts_called_separately() {
    check_step_parts(&Cpu::new());
    check_step_parts(&device());
}

#[test]
fn training_is_bit_identical_on_kernels_and_reference_path() {
    for case in cases() {
        let (mut fused, mut reference) = (trainer(&Cpu::new(), &case), trainer(&device(), &case));
        for _ in 0..5 {
            assert_eq!(step_bits(&step(&mut fused).unwrap()), step_bits(&step(&mut reference).unwrap()));
        }
        assert_eq!(bits(&fused), bits(&reference));
    }
}

#[test]
fn dropout_depends_only_on_seed_and_step() {
    let case = cases().swap_remove(0);
    let loss = |trainer: &mut Trainer<_>, input: Input<'_>| {
        let target = task().1;
        trainer.step(input, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view())).unwrap().loss
    };
    let x = task().0;
    let mut first = trainer(&device(), &case);
    let again = first.clone();
    let plain = mean_squared_error(first.predict(&x).unwrap().0.view(), task().1.view()).unwrap().0;
    let want = loss(&mut first, Input::from(&x));
    assert_ne!(want, plain, "dropout changes the loss");
    assert_eq!(
        loss(&mut again.clone(), Input::from(&x).dropout(Dropout::Seed(77))),
        want,
        "the input's seed has no effect"
    );
    let (y, _) = again.predict(Input::from(&x).dropout(Dropout::Seed(77))).unwrap();
    assert_eq!(y, again.predict(&x).unwrap().0);
    let other = (case.0, case.1, case.2.seed(99));
    assert_ne!(loss(&mut trainer(&device(), &other), Input::from(&x)), want);
}

#[test]
fn state_carries_over_between_chunks() {
    let mut trainer = trainer(&device(), &cases()[0]);
    let (x, target) = task();
    let (first, second) = x.view().split_at(Axis(1), 20);
    let step = trainer
        .step(first, LossInput::Outputs, |out, shard| {
            let y = out.y()?;
            assert_eq!((shard.index, shard.rows.clone(), shard.count), (0, 0..8, 8 * 20));
            assert_eq!(y.dim(), (8, 20, 1));
            mean_squared_error(y, target.slice(s![.., ..20, ..]))
        })
        .unwrap();
    let (y, _) = trainer.predict(Input::from(second).state(&step.state)).unwrap();
    assert_ne!(y, trainer.predict(second).unwrap().0);
    trainer
        .step(Input::from(second).state(&step.state), LossInput::Outputs, |out, _| {
            mean_squared_error(out.y()?, target.slice(s![.., 20.., ..]))
        })
        .unwrap();
}

#[test]
fn values_beyond_the_lengths_have_no_effect() {
    check_lengths(&Cpu::new());
    check_lengths(&device());
}

/// Checks that training does not depend on inputs and gradients beyond the lengths.
fn check_lengths<B: Backend>(device: &B) {
    let (x, target) = task();
    let lengths = [40, 3, 0, 17, 40, 1, 25, 39];
    for time_major in [false, true] {
        let run = |padding: f32| {
            let pad = |mut values: Array3<f32>, padding: f32| {
                for (b, &len) in lengths.iter().enumerate() {
                    values.slice_mut(s![b, len.., ..]).fill(padding);
                }
                if time_major { values.permuted_axes([1, 0, 2]) } else { values }
            };
            let (x, target) = (pad(x.clone(), padding), pad(target.clone(), 0.0));
            let input = Input::from(&x).lengths(&lengths);
            let input = if time_major { input.time_major() } else { input };
            let mut trainer = trainer(device, &cases()[0]);
            let beyond = trainer.predict(input).unwrap().0;
            let beyond = if time_major { beyond.permuted_axes([1, 0, 2]) } else { beyond };
            for (b, &len) in lengths.iter().enumerate() {
                assert!(beyond.slice(s![b, len.., ..]).iter().all(|v| v.to_bits() == 0));
            }
            trainer
                .step(input, LossInput::Outputs, |out, shard| {
                    assert_eq!(shard.count, lengths.iter().sum::<usize>());
                    let (loss, mut dy) = mean_squared_error(out.y()?, target.view())?;
                    for (b, &len) in lengths.iter().enumerate() {
                        let mut rest =
                            if time_major { dy.slice_mut(s![len.., b, ..]) } else { dy.slice_mut(s![b, len.., ..]) };
                        rest.fill(padding);
                    }
                    Ok::<_, Error>((loss, dy))
                })
                .unwrap();
            bits(&trainer)
        };
        assert_eq!(run(0.0), run(f32::NAN));
    }
}

#[test]
fn rejects_mismatched_head_and_invalid_config() {
    let device = device();
    let lstm = Lstm::random(&device, LstmConfig::new(2, 6).bidirectional(), 1).unwrap();
    let head = Linear::random(&device, 6, 1, 2).unwrap();
    let error = Trainer::new(lstm.clone(), Some(head), sgd(0.1)).unwrap_err().to_string();
    assert!(error.contains("expected 12, the output size of the LSTM, got 6"), "{error}");
    for (settings, named) in [
        (sgd(f32::NAN), "rate"),
        (sgd(0.1).clip(Clip::Norm(0.0)), "clip"),
        (sgd(0.1).checkpointing(Checkpointing::Segments(33)), "checkpointing"),
        (TrainerConfig::new(OptimizerConfig::momentum(-1.0), Schedule::constant(0.1)), "momentum"),
    ] {
        match Trainer::new(lstm.clone(), None, settings) {
            Err(Error::Config { option, .. }) => assert_eq!(option, named),
            other => panic!("{named}: {other:?}"),
        }
    }
}

/// Trains two steps with tiny gradients, then one step with `loss`, which must fail with a message that contains `part`
/// and leave the trainer unchanged.
#[track_caller]
fn check_failing_step(settings: TrainerConfig, loss: impl Fn(&Array3<f32>) -> Result<(f64, Array3<f32>)>, part: &str) {
    let (x, device) = (task().0, device());
    let tiny_gradient =
        |out: ModelOutputs<'_>, _: &Shard| Ok::<_, Error>((1.0, Array3::from_elem(out.y()?.dim(), 1e-25)));
    let lstm = Lstm::random(&device, LstmConfig::new(2, 6).layers(2).dropout(0.5), 1).unwrap();
    let mut trainer = Trainer::new(lstm, Some(Linear::random(&device, 6, 1, 2).unwrap()), settings).unwrap();
    (0..2).for_each(|_| drop(trainer.step(&x, LossInput::Outputs, tiny_gradient).unwrap()));
    let (before, predicted) = (bits(&trainer), trainer.predict(&x).unwrap());
    let error = trainer.step(&x, LossInput::Outputs, |out, _| loss(&out.y()?.to_owned())).unwrap_err();
    assert!(error.to_string().contains(part), "{error}");
    assert_eq!((bits(&trainer), trainer.predict(&x).unwrap(), trainer.steps()), (before, predicted, 2));
    assert_eq!(trainer.step(&x, LossInput::Outputs, tiny_gradient).unwrap().step, 3);
}

#[test]
fn non_finite_values_are_errors_that_change_nothing() {
    let adam = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)).clip(Clip::Norm(1.0));
    check_failing_step(adam.clone(), |y| Ok((f64::NAN, y.clone())), "training step 3: the loss is NaN");
    check_failing_step(adam.clone(), |y| Ok((f64::NEG_INFINITY, y.clone())), "training step 3: the loss is -inf");
    check_failing_step(
        adam.clone(),
        |y| Ok((1.0, y * f32::NAN)),
        "training step 3: the gradient of `lstm.weight_ih_l0` is NaN",
    );
    check_failing_step(adam, |y| Ok((1.0, Array3::from_elem(y.dim(), 3e38))), "the gradient of `");
    let huge = |y: &Array3<f32>| Ok((1.0, Array3::from_elem(y.dim(), 1e30)));
    check_failing_step(sgd(1e15), huge, "training step 3: the new value of `lstm.weight_ih_l0` is ");
    let adam = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01));
    check_failing_step(adam, huge, "training step 3: the optimizer's `exp_avg_sq.head.");
}

#[test]
fn failed_steps_change_nothing() {
    let settings = || sgd(0.1);
    check_failing_step(settings(), |_| Err(Error::config("mine", "the caller's")), "option mine: the caller's");
    let other = |_: &Array3<f32>| Ok((1.0, Array3::zeros((8, 40, 2))));
    check_failing_step(
        settings(),
        other,
        "gradient of the loss: expected [8, 40, 1], the shape of the outputs, got [8, 40, 2]",
    );
    let mut trainer = trainer(&device(), &cases()[0]);
    let before = bits(&trainer);
    let x = Array3::zeros((8, 40, 3));
    assert!(matches!(
        trainer.step(&x, LossInput::Outputs, |out, _| Ok((0.0, out.y()?.to_owned()))),
        Err(Error::Shape { .. })
    ));
    assert_eq!(bits(&trainer), before);
}

#[test]
fn trainers_and_futures_are_send() {
    fn is_send<T: Send>(_: &T) {}
    let mut trainer = trainer(&device(), &cases()[0]);
    let x = task().0;
    is_send(&trainer);
    is_send(&trainer.predict_async(&x));
    is_send(&trainer.step_async(&x, LossInput::Both, |out, _| {
        Ok::<_, Error>((0.0, (out.y()?.to_owned(), out.last()?.to_owned())))
    }));
}

#[test]
fn rejects_empty_batches() {
    let mut trainer = trainer(&Cpu::new(), &cases()[0]);
    let (x, before) = (task().0, bits(&trainer));
    let inputs = [x.slice(s![..0, .., ..]).into(), x.slice(s![.., ..0, ..]).into(), Input::from(&x).lengths(&[0; 8])];
    for empty in inputs {
        let step = trainer.step(empty, LossInput::Outputs, |out, _| Ok((0.0, out.y()?.to_owned())));
        assert!(matches!(step, Err(Error::Shape { op, .. }) if op == "Trainer::step: x"));
    }
    assert_eq!(bits(&trainer), before);
}

/// Compares a step whose loss reads the last states, and one that reads outputs and last states, with the same passes
/// called one by one.
#[test]
fn losses_read_last_states() {
    let device = device();
    for (config, has_head) in [(LstmConfig::new(2, 6).bidirectional().layers(2), false), (LstmConfig::new(2, 6), true)]
    {
        let lstm = Lstm::random(&device, config.clone(), 1).unwrap();
        let size = config.output_size();
        let head = has_head.then(|| Linear::random(&device, size, 3, 2).unwrap());
        let (x, lengths) = (task().0, [40, 3, 1, 17, 40, 1, 25, 39]);
        let input = Input::from(&x).lengths(&lengths);
        for loss_input in [LossInput::LastState, LossInput::Both] {
            let pass = lstm.forward_train(input, Checkpointing::SaveEverything).unwrap();
            let last = pass.state.last(&config).unwrap();
            let reads_outputs = loss_input == LossInput::Both;
            // The loss is half the sum of squares, so the gradient is the value.
            let (mut y, mut dlast, mut head_weight) = (pass.y.clone(), last.clone(), None);
            if let Some(head) = &head {
                let mut outputs = head.forward(&pass.y).unwrap();
                for (b, &len) in lengths.iter().enumerate() {
                    outputs.slice_mut(s![b, len.., ..]).fill(0.0);
                }
                let by_last = head.backward(&last, &head.forward(&last).unwrap()).unwrap();
                let by_outputs = head.backward(&pass.y, &outputs).unwrap();
                head_weight = Some(if reads_outputs { by_outputs.weight + by_last.weight } else { by_last.weight });
                (y, dlast) = (by_outputs.x, by_last.x);
            }
            let state = HostState::from_last(&config, &dlast).unwrap();
            let gradients = if reads_outputs { OutputGradients::from(&y).state(&state) } else { (&state).into() };
            let by_lstm = pass.tape.backward(gradients).unwrap().weights;

            let mut trainer = Trainer::new(lstm.clone(), head.clone(), sgd(1.0)).unwrap();
            trainer
                .step(input, loss_input, |out, shard| {
                    assert_eq!(shard.count, if reads_outputs { lengths.iter().sum() } else { 8 });
                    let half_square = |v: f64| v * v / 2.0;
                    let last = out.last()?.to_owned();
                    let mut loss: f64 = last.iter().map(|&v| half_square(v.into())).sum();
                    Ok::<_, Error>(match reads_outputs {
                        true => {
                            let y = out.y()?.to_owned();
                            loss += y.iter().map(|&v| half_square(v.into())).sum::<f64>();
                            (loss, LossGradient::from((y, last)))
                        }
                        false => (loss, last.into()),
                    })
                })
                .unwrap();
            let (mut new, mut old, mut by_lstm) = (trainer.lstm().weights().clone(), lstm.weights().clone(), by_lstm);
            for (((_, new), (_, old)), (_, gradient)) in new.iter_mut().zip(old.iter_mut()).zip(by_lstm.iter_mut()) {
                let want = old.iter().zip(gradient.iter()).map(|(w, g)| w - g);
                assert!(new.iter().zip(want).all(|(new, want)| new.to_bits() == want.to_bits()));
            }
            if let (Some(old), Some(new), Some(gradient)) = (&head, trainer.head(), head_weight) {
                assert_eq!(new.weight(), old.weight() - gradient);
            }
        }
    }
}

#[test]
fn losses_that_read_what_was_not_asked_for_are_errors() {
    let mut trainer = trainer(&device(), &cases()[0]);
    let (x, before) = (task().0, bits(&trainer));
    let message = |result: Result<StepReport>| result.unwrap_err().to_string();
    let error = message(trainer.step(&x, LossInput::LastState, |out, _| Ok((0.0, out.y()?.to_owned()))));
    assert!(error.contains("LossInput::Outputs or LossInput::Both"), "{error}");
    let error = message(trainer.step(&x, LossInput::Outputs, |out, _| Ok((0.0, out.last()?.to_owned()))));
    assert!(error.contains("LossInput::LastState or LossInput::Both"), "{error}");
    // Of what was read, each part needs a gradient.
    let error = message(trainer.step(&x, LossInput::Both, |out, _| Ok((0.0, out.last()?.to_owned()))));
    assert!(error.contains("expected [8, 40, 1], the shape of the outputs, got none"), "{error}");
    assert_eq!(bits(&trainer), before);
    // An error of the caller's own type comes back unchanged.
    #[derive(Debug)]
    enum Mine {
        Lstm,
        Stop,
    }
    impl From<Error> for Mine {
        fn from(_: Error) -> Self {
            Mine::Lstm
        }
    }
    let stop = |_: ModelOutputs<'_>, _: &Shard| Err::<(f64, LossGradient), _>(Mine::Stop);
    assert!(matches!(trainer.step(&x, LossInput::Outputs, stop), Err(Mine::Stop)));
    let wrong = Array3::zeros((8, 40, 3));
    assert!(matches!(trainer.step(&wrong, LossInput::Outputs, stop), Err(Mine::Lstm)));
}

#[test]
fn models_with_dropout_must_be_told() {
    let lstm = Lstm::random(&device(), LstmConfig::new(2, 6).layers(2).dropout(0.5), 1).unwrap();
    let x = task().0;
    let error = lstm.forward_train(&x, Checkpointing::SaveEverything).unwrap_err().to_string();
    assert!(error.contains("Input::dropout with Dropout::Seed(..) to apply it, or Dropout::Off"), "{error}");
    let pass = |dropout| lstm.forward_train(Input::from(&x).dropout(dropout), Checkpointing::SaveEverything).unwrap().y;
    assert_eq!(pass(Dropout::Off), lstm.forward(&x).unwrap().0);
    assert_ne!(pass(Dropout::Seed(1)), pass(Dropout::Off));
    assert_eq!(pass(Dropout::Seed(1)), pass(Dropout::Seed(1)));
}
