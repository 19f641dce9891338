//! Tests of gradient accumulation and of learning rates that the caller gives.

use crate::common::{TempDir, bits, cases, device, step, step_bits, task, trainer};
use lstm_cpu::{
    Cpu, Error, LstmConfig, Model, ModelLayer, ModelWeights, Result, Weights,
    ndarray::{Array2, Array3, s},
    train::{
        Clip, LossInput, ModelTrainer, OptimizerConfig, Schedule, TrainerConfig, mean_squared_error, part_of_mean,
    },
};

/// The rows of each part when eight sequences are cut into `parts` parts.
fn parts(parts: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..parts).map(move |k| k * 8 / parts..(k + 1) * 8 / parts)
}

#[test]
fn accumulated_parts_equal_shards() {
    let (x, target) = task();
    for case @ (config, head, settings) in &cases() {
        for number in [1, 2, 3, 5, 6, 7, 8] {
            let case_with_shards = (config.clone(), *head, settings.clone().shards(number));
            let mut with_shards = trainer(&device(), &case_with_shards);
            let mut accumulating = trainer(&Cpu::new(), case);
            for _ in 0..2 {
                let report = with_shards
                    .step(&x, LossInput::Outputs, |out, shard| {
                        let y = out.y()?;
                        let target = target.slice(s![shard.rows.clone(), .., ..]);
                        let mean = mean_squared_error(y, target.broadcast(y.dim()).unwrap())?;
                        Ok::<_, Error>(part_of_mean(mean, shard.own_count, shard.count))
                    })
                    .unwrap();
                let mut losses = Vec::new();
                for rows in parts(number) {
                    let part = x.slice(s![rows.clone(), .., ..]);
                    let (loss, state) = accumulating
                        .accumulate(part, LossInput::Outputs, |out, shard| {
                            assert_eq!((shard.index, shard.shards, shard.rows.clone()), (0, 1, 0..rows.len()));
                            let y = out.y()?;
                            let target = target.slice(s![rows.clone(), .., ..]);
                            let mean = mean_squared_error(y, target.broadcast(y.dim()).unwrap())?;
                            Ok::<_, Error>(part_of_mean(mean, rows.len() * 40, 8 * 40))
                        })
                        .unwrap();
                    assert_eq!(state.h, report.state.h.slice(s![.., rows, ..]));
                    losses.push(loss);
                }
                let applied = accumulating.apply().unwrap();
                assert_eq!(applied.loss, losses.into_iter().reduce(|a, b| a + b).unwrap());
                let of_step = |report: &lstm_cpu::train::StepReport| {
                    let (step, loss, norm, rate, _) = step_bits(report);
                    (step, loss, norm, rate)
                };
                assert_eq!(of_step(&applied), of_step(&report), "{number} parts");
                let last = parts(number).last().unwrap();
                assert_eq!(applied.state.c, report.state.c.slice(s![.., last, ..]));
            }
            // The number of shards is in the checkpoint.
            with_shards.set_config(settings.clone()).unwrap();
            assert_eq!(bits(&with_shards), bits(&accumulating), "{number} parts");
        }
    }
}

#[test]
fn a_model_accumulates_as_well() {
    let (x, target) = task();
    let weights = || {
        let lstm = Weights::init(LstmConfig::new(2, 5), &lstm_cpu::Init::default(), 1).unwrap();
        let layers = vec![
            ModelLayer::Lstm { name: "lstm".into(), weights: lstm.into(), initial_state: None },
            ModelLayer::Linear { name: "head".into(), weight: Array2::from_elem((1, 5), 0.25), bias: None },
        ];
        Model::new(&Cpu::new(), ModelWeights::new(layers).unwrap()).unwrap()
    };
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(0.01)).clip(Clip::Norm(1.0));
    let mut with_shards = ModelTrainer::new(weights(), config.clone().shards(3)).unwrap();
    let mut accumulating = ModelTrainer::new(weights(), config).unwrap();
    for _ in 0..2 {
        let report = with_shards
            .step(&x, |out, shard| {
                let mean = mean_squared_error(out.y()?, target.slice(s![shard.rows.clone(), .., ..]))?;
                Ok::<_, Error>(part_of_mean(mean, shard.own_count, shard.count))
            })
            .unwrap();
        for rows in parts(3) {
            let part = x.slice(s![rows.clone(), .., ..]);
            accumulating
                .accumulate(part, |out, _| {
                    let mean = mean_squared_error(out.y()?, target.slice(s![rows.clone(), .., ..]))?;
                    Ok::<_, Error>(part_of_mean(mean, rows.len(), 8))
                })
                .unwrap();
        }
        let applied = accumulating.apply().unwrap();
        assert_eq!((applied.loss, applied.gradient_norm), (report.loss, report.gradient_norm));
    }
    assert_eq!(accumulating.model().weights(), with_shards.model().weights());
    let error = accumulating.apply().unwrap_err().to_string();
    assert!(error.contains("at least one call of accumulate before apply"), "{error}");
}

/// Everything that would lose accumulated gradients, or mix them with others, is an error.
#[test]
fn accumulated_gradients_are_not_lost() {
    let mut run = trainer(&Cpu::new(), &cases()[3]);
    let (x, target) = task();
    let loss = |y: Array3<f32>| mean_squared_error(y.view(), target.view());
    run.accumulate(&x, LossInput::Outputs, |out, _| loss(out.y()?.to_owned())).unwrap();
    let dir = TempDir::new();
    for error in [
        step(&mut run).map(drop).unwrap_err(),
        run.save(dir.file("run")).unwrap_err(),
        run.set_config(cases()[3].2.clone()).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(error.contains("got those of 1 passes; call apply first, or discard_accumulated"), "{error}");
    }
    assert!(!dir.file("run").exists());
    // A failed pass leaves them as they are.
    let failed: Result<_> = run.accumulate(&x, LossInput::Outputs, |out, _| Ok((f64::NAN, out.y()?.to_owned())));
    assert!(matches!(failed, Err(Error::NotFinite { .. })));
    let mut other = run.clone();
    run.apply().unwrap();
    other.discard_accumulated();
    other.step(&x, LossInput::Outputs, |out, _| loss(out.y()?.to_owned())).unwrap();
    assert_eq!(bits(&run), bits(&other));
    // A gradient that is not finite.
    let before = bits(&run);
    run.accumulate(&x, LossInput::Outputs, |out, _| Ok::<_, Error>((1.0, out.y()?.mapv(|_| f32::INFINITY)))).unwrap();
    assert!(matches!(run.apply(), Err(Error::NotFinite { step: 2, .. })));
    assert_eq!(bits(&run), before);
}

#[test]
fn the_caller_gives_the_rate() {
    let (x, target) = task();
    let run = |rate: Option<f32>, schedule: Schedule| {
        let case = (LstmConfig::new(2, 5), true, TrainerConfig::new(OptimizerConfig::adam(), schedule));
        let mut run = trainer(&Cpu::new(), &case);
        let report = match rate {
            Some(rate) => {
                run.step_at(rate, &x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view()))
            }
            None => run.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, target.view())),
        };
        report.map(|report| (report.learning_rate, run.lstm().weights().clone()))
    };
    let expected = run(None, Schedule::constant(0.25)).unwrap();
    assert_eq!(expected.0, 0.25);
    assert_eq!(run(Some(0.25), Schedule::constant(0.5)).unwrap(), expected);
    for bad in [-1.0, f32::NAN] {
        let error = run(Some(bad), Schedule::constant(0.5)).unwrap_err().to_string();
        assert!(error.contains("rate") && error.contains("at least 0"), "{error}");
    }
}
