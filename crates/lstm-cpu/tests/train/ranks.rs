//! Tests of training on several ranks, which are threads of one process here.

use crate::{
    common::{TempDir, bits, cases, task},
    thread_ranks::{ThreadRank, on_ranks},
};
use lstm_cpu::{
    Backend, Cpu, Error, HostState, Input, Linear, Lstm, LstmConfig, Model, ModelLayer, ModelWeights, Result,
    ndarray::{Array2, Array3, s},
    train::{
        CheckpointExtras, Collective, LossInput, ModelOutputs, ModelTrainer, OptimizerConfig, Schedule, Shard,
        StepReport, Trainer, TrainerConfig, compare_ranks, cross_entropy, gather_state, mean_squared_error,
        part_of_mean,
    },
};

const LENGTHS: [usize; 8] = [40, 3, 17, 40, 2, 1, 25, 39];

/// Case 0 with `shards` shards: dropout, Adam, clipping, a head.
fn trainer(shards: usize) -> Trainer<Cpu> {
    let (config, head, settings) = cases().swap_remove(0);
    crate::common::trainer(&Cpu::new(), &(config, head, settings.shards(shards)))
}

/// The part of the mean squared error of a shard.
fn loss(out: ModelOutputs<'_>, shard: &Shard) -> Result<(f64, Array3<f32>)> {
    let target = task().1;
    let mean = mean_squared_error(out.y()?, target.slice(s![shard.rows.clone(), .., ..]))?;
    Ok(part_of_mean(mean, shard.rows.len(), 8))
}

/// A training step on a rank.
fn step<B: Backend>(trainer: &mut Trainer<B>, rank: &impl Collective, state: Option<&HostState>) -> Result<StepReport> {
    let x = task().0;
    let input = state.iter().fold(Input::from(&x).lengths(&LENGTHS), |input, state| input.state(state));
    trainer.step_on(rank, input, LossInput::Outputs, loss)
}

/// Trains the steps `steps`, saves the run, and returns the bits of the losses and of the file.
fn train(
    rank: &impl Collective,
    trainer: &mut Trainer<Cpu>,
    state: Option<HostState>,
    steps: usize,
) -> (Vec<u64>, Vec<u32>, HostState) {
    let (mut losses, mut state) = (Vec::new(), state);
    for _ in 0..steps {
        let report = step(trainer, rank, state.as_ref()).unwrap();
        losses.push(report.loss.to_bits());
        state = Some(report.state);
    }
    let mut state = state.unwrap();
    gather_state(rank, trainer.config().shards, &mut state).unwrap();
    (losses, bits(trainer), state)
}

#[test]
fn training_does_not_depend_on_the_number_of_ranks() {
    for shards in 1..=8 {
        let x = task().0;
        let (mut single, mut state, mut losses) = (trainer(shards), None::<HostState>, Vec::new());
        for _ in 0..3 {
            let input = state.iter().fold(Input::from(&x).lengths(&LENGTHS), |input, state| input.state(state));
            let report = single.step(input, LossInput::Outputs, loss).unwrap();
            losses.push(report.loss.to_bits());
            state = Some(report.state);
        }
        let want = (losses, bits(&single), state.unwrap());
        for ranks in 1..=shards {
            for got in on_ranks(ranks, |rank| train(rank, &mut trainer(shards), None, 3)) {
                assert!(got == want, "{ranks} ranks, {shards} shards");
            }
        }
    }
}

#[test]
fn a_run_resumes_on_another_number_of_ranks() {
    let want = on_ranks(1, |rank| train(rank, &mut trainer(5), None, 4)).swap_remove(0);
    let dir = TempDir::new();
    on_ranks(4, |rank| {
        let mut trainer = trainer(5);
        let (_, _, state) = train(rank, &mut trainer, None, 2);
        if rank.rank() == 0 {
            trainer.save_with(dir.file("run"), &CheckpointExtras::default().with_state(&state)).unwrap();
        }
    });
    for ranks in [1, 3] {
        let results = on_ranks(ranks, |rank| {
            let (mut trainer, mut extras) = Trainer::resume(&Cpu::new(), dir.file("run")).unwrap();
            train(rank, &mut trainer, extras.take_state().unwrap(), 2)
        });
        for (losses, bits, state) in results {
            assert!((&losses[..], &bits, &state) == (&want.0[2..], &want.1, &want.2), "{ranks} ranks");
        }
    }
}

/// More parameters than are exchanged at a time.
#[test]
fn large_models_are_exchanged_in_parts() {
    let x = Array3::from_shape_fn((3, 1, 1), |(b, _, _)| b as f32 + 0.5);
    let run = |rank: &dyn Fn(&mut Trainer<Cpu>) -> StepReport| {
        let lstm = Lstm::random(&Cpu::new(), LstmConfig::new(1, 1040), 1).unwrap();
        let config = TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(0.1)).shards(3);
        let mut trainer = Trainer::new(lstm, None, config).unwrap();
        let report = rank(&mut trainer);
        let mut weights = trainer.lstm().weights().clone();
        let values: Vec<u32> = weights.iter_mut().flat_map(|(_, values)| values.to_vec()).map(f32::to_bits).collect();
        assert!(values.len() > 1 << 22);
        (report.loss, values)
    };
    let loss = |out: ModelOutputs<'_>, _: &Shard| Ok::<_, Error>((1.0, out.y()?.to_owned()));
    let want = run(&|trainer| trainer.step(&x, LossInput::Outputs, loss).unwrap());
    for got in on_ranks(2, |rank| run(&|trainer| trainer.step_on(rank, &x, LossInput::Outputs, loss).unwrap())) {
        assert!(got == want);
    }
}

/// The loss of a step of a model, and the final states.
type LossAndStates = (f64, Vec<HostState>);

#[test]
fn models_train_on_ranks() {
    let lstm = ModelLayer::Lstm {
        name: "rec".into(),
        weights: std::sync::Arc::new(Lstm::random(&Cpu::new(), LstmConfig::new(4, 6), 1).unwrap().weights().clone()),
        initial_state: None,
    };
    let head = Linear::random(&Cpu::new(), 6, 3, 2).unwrap();
    let embedding = Array2::from_shape_fn((5, 4), |(a, b)| (a * 4 + b) as f32 * 0.05 - 0.4);
    let weights = ModelWeights::new(vec![
        ModelLayer::Embedding { name: "embed".into(), weight: embedding },
        ModelLayer::Dropout(0.25),
        lstm,
        ModelLayer::LastStep,
        ModelLayer::Linear { name: "out".into(), weight: head.weight().clone(), bias: head.bias().cloned() },
    ])
    .unwrap();
    let tokens = Array2::from_shape_fn((7, 9), |(b, t)| ((b * 3 + t * t) % 5) as i64);
    let classes = [0, 1, 2, 0, 1, 2, 0];
    let config = || TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(0.02)).seed(3).shards(5);
    let loss = |out: ModelOutputs<'_>, shard: &Shard| {
        let mean = cross_entropy(out.last()?, &classes[shard.rows.clone()])?;
        Ok::<_, Error>(part_of_mean(mean, shard.own_count, shard.count))
    };
    let run = |step: &dyn Fn(&mut ModelTrainer<Cpu>) -> LossAndStates| {
        let mut trainer = ModelTrainer::new(Model::new(&Cpu::new(), weights.clone()).unwrap(), config()).unwrap();
        let reports: Vec<_> = (0..3).map(|_| step(&mut trainer)).collect();
        (reports, trainer.model().weights().clone())
    };
    let want = run(&|trainer| {
        let report = trainer.step(&tokens, loss).unwrap();
        (report.loss, report.states)
    });
    assert_ne!(want.1, weights);
    for ranks in 1..=5 {
        let results = on_ranks(ranks, |rank| {
            run(&|trainer| {
                let mut report = trainer.step_on(rank, &tokens, loss).unwrap();
                report.states.iter_mut().for_each(|state| gather_state(rank, 5, state).unwrap());
                (report.loss, report.states)
            })
        });
        assert!(results.iter().all(|got| *got == want), "{ranks} ranks");
    }
}

/// Runs a step on three ranks after one that succeeds, and returns the errors. The trainers must be unchanged.
fn errors(failing: impl Fn(&mut Trainer<Cpu>, &ThreadRank) -> Result<StepReport> + Sync) -> Vec<String> {
    on_ranks(3, |rank| {
        let mut trainer = trainer(4);
        step(&mut trainer, rank, None).unwrap();
        let before = bits(&trainer);
        let error = failing(&mut trainer, rank).unwrap_err().to_string();
        assert_eq!(bits(&trainer), before);
        error
    })
}

#[test]
fn an_error_on_one_rank_reaches_all() {
    let x = task().0;
    let fail = |trainer: &mut Trainer<Cpu>, rank: &ThreadRank, loss_of_failing: f64| {
        trainer.step_on(rank, &x, LossInput::Outputs, |out, shard| {
            let (value, gradient) = loss(out, shard)?;
            Ok::<_, Error>((if shard.index == 2 { loss_of_failing } else { value }, gradient))
        })
    };
    // Four shards on three ranks: the last rank has shards 2 and 3.
    let want = "rank 2: training step 2: the loss of shard 2 is NaN";
    assert_eq!(errors(|trainer, rank| fail(trainer, rank, f64::NAN)), [want; 3]);

    // The caller's own error comes back unchanged on its rank.
    let got = errors(|trainer, rank| {
        trainer.step_on(rank, &x, LossInput::Outputs, |out, shard| match shard.index {
            1 => Err(Error::config("mine", "the caller's")),
            _ => loss(out, shard),
        })
    });
    let told = "rank 1: shard 1 (of 4, counted from 0): option mine: the caller's";
    assert_eq!(got, [told, "option mine: the caller's", told]);

    // What fails on every rank alike keeps its error.
    let got = errors(|trainer, rank| {
        trainer.step_on(rank, &x, LossInput::Outputs, |out, _| Ok::<_, Error>((1.0, out.y()?.mapv(|_| 3e38))))
    });
    assert!(
        got.iter().all(|error| *error == got[0] && error.contains("training step 2: the gradient of `")),
        "{got:?}"
    );
}

#[test]
fn settings_parameters_and_batches_are_compared() {
    type Change = fn(&mut Trainer<Cpu>, &mut Array3<f32>);
    let cases: [(Change, &[&str]); 7] = [
        (|t, _| t.set_config(t.config().clone().shards(5)).unwrap(), &["shards: expected 4, as on rank 0, got 5"]),
        (|t, _| t.set_config(t.config().clone().shards(2)).unwrap(), &["shards: expected 4, as on rank 0, got 2"]),
        (|t, _| t.set_config(t.config().clone().seed(1)).unwrap(), &["seed: expected 11, as on rank 0, got 1"]),
        (
            |t, _| {
                t.set_config(TrainerConfig::new(OptimizerConfig::adamw(), Schedule::constant(1.0)).shards(4)).unwrap()
            },
            &["optimizer: expected adam beta1", "got adamw"],
        ),
        (|_, x| x[[7, 39, 1]] += 1.0, &["batch: expected (8, 40, 2)", "digest"]),
        (|_, x| *x = x.slice(s![..7, .., ..]).to_owned(), &["batch: expected (8, 40, 2)", "got (7, 40, 2)"]),
        (
            |t, _| {
                let (mut lstm, head) = t.clone().into_parts();
                let mut weights = lstm.weights().clone();
                weights.iter_mut().for_each(|(_, values)| values[0] += 1.0);
                lstm.set_weights(weights).unwrap();
                *t = Trainer::new(lstm, head, t.config().clone()).unwrap();
            },
            &["digest of parameters and optimizer: expected"],
        ),
    ];
    for (change, parts) in cases {
        let errors = on_ranks(3, |rank| {
            let (mut trainer, mut x) = (trainer(4), task().0);
            if rank.rank() == 1 {
                change(&mut trainer, &mut x);
            }
            let before = bits(&trainer);
            let result = trainer.step_on(rank, &x, LossInput::Outputs, loss);
            assert_eq!(bits(&trainer), before);
            result.unwrap_err().to_string()
        });
        for error in errors {
            assert!(error.starts_with("rank 1: ") && parts.iter().all(|part| error.contains(part)), "{error}");
        }
    }
    // After a good step, which compares everything, some elements of each batch are compared.
    let errors = on_ranks(3, |rank| {
        let (mut trainer, mut x) = (trainer(4), task().0);
        trainer.step_on(rank, &x, LossInput::Outputs, loss).unwrap();
        if rank.rank() == 1 {
            x += 1.0;
        }
        trainer.step_on(rank, &x, LossInput::Outputs, loss).unwrap_err().to_string()
    });
    assert!(errors.iter().all(|error| error.starts_with("rank 1: batch: expected (8, 40, 2)")), "{errors:?}");
    // Fewer shards than ranks, and more than sequences, on all of them.
    for (shards, want) in [
        (2, "rank 0: option shards: expected at least 3, the number of ranks, because each has at least one; got 2"),
        (
            9,
            "rank 0: option shards: expected at most 8, the number of sequences in the batch, because each shard \
             has at least one; got 9, so shard 0 would be empty",
        ),
    ] {
        let errors = on_ranks(3, |rank| step(&mut trainer(shards), rank, None).unwrap_err().to_string());
        assert_eq!(errors, [want; 3]);
    }
}

#[test]
fn a_state_that_differs_is_an_error_on_every_rank() {
    type Change = fn(&mut usize, &mut HostState);
    let cases: [(Change, &str); 3] = [
        (|shards, _| *shards = 9, "rank 1: shards: expected 4, as on rank 0, got 9"),
        (
            |_, state| state.c = Array3::zeros((2, 7, 6)),
            "rank 1: shape of state.c: expected (2, 8, 6), as on rank 0, got (2, 7, 6)",
        ),
        // The same on all ranks.
        (|_, _| {}, "gather_state: shards: expected from 3 ranks to 8 sequences, got 2"),
    ];
    for (change, want) in cases {
        let errors = on_ranks(3, |rank| {
            let mut state = HostState::zeros(&LstmConfig::new(2, 6).layers(2), 8).unwrap();
            let mut shards = if want.starts_with("rank") { 4 } else { 2 };
            if rank.rank() == 1 {
                change(&mut shards, &mut state);
            }
            gather_state(rank, shards, &mut state).unwrap_err().to_string()
        });
        assert_eq!(errors, [want; 3]);
    }
}

#[test]
fn ranks_at_different_calls_are_named() {
    let errors = on_ranks(3, |rank| {
        let mut trainer = trainer(4);
        let report = step(&mut trainer, rank, None).unwrap();
        let mut state = report.state;
        match rank.rank() {
            1 => gather_state(rank, 4, &mut state).unwrap_err().to_string(),
            _ => step(&mut trainer, rank, None).unwrap_err().to_string(),
        }
    });
    assert_eq!(errors, ["rank 1: call: expected training step, as on rank 0, got gather_state"; 3]);
}

#[test]
fn named_values_are_compared() {
    let compare = |values: fn(usize) -> Vec<(&'static str, String)>| {
        on_ranks(3, |rank| compare_ranks(rank, &values(rank.rank())).map_err(|error| error.to_string()))
    };
    assert_eq!(compare(|_| vec![("a", "1".into())]), [const { Ok(()) }; 3]);
    let got = compare(|rank| vec![("a", "1".into()), ("b", (rank / 2).to_string())]);
    assert_eq!(got, vec![Err("rank 2: b: expected 0, as on rank 0, got 1".to_owned()); 3]);
    let got = compare(|rank| vec![("a", "1".into()); 1 + rank]);
    assert_eq!(got, vec![Err("rank 1: expected 1 values, as on rank 0, got 2".to_owned()); 3]);
    let got = compare(|rank| vec![("a".repeat(1 + rank / 2).leak(), "1".into())]);
    assert_eq!(got, vec![Err("rank 2: expected a value of `a`, as on rank 0, got `aa`".to_owned()); 3]);
    // Long values are compared whole, but not sent.
    let got = compare(|rank| vec![("a", format!("{}{rank}", "-".repeat(1 << 14)))]);
    assert_eq!(got, vec![Err("rank 1: its values differ from those of rank 0 after the first 16384 bytes".into()); 3]);
}

#[test]
fn a_rank_that_ends_is_an_error_on_the_others() {
    let results = on_ranks(3, |rank| {
        let mut trainer = trainer(3);
        step(&mut trainer, rank, None).unwrap();
        (rank.rank() != 1).then(|| step(&mut trainer, rank, None).unwrap_err())
    });
    assert!(results.iter().flatten().all(|error| matches!(error, Error::Device { .. })), "{results:?}");
}
