//! Tests of training steps over several shards: the order of the sums, their independence of threads, errors.

use std::path::Path;

use crate::common::{TempDir, bits, cases, device, step_bits, task, trainer};
use lstm_cpu::{
    Backend, Checkpointing, Cpu, Dropout, Error, HostState, Input, Linear, Lstm, LstmConfig, Result, StateDict,
    ndarray::{Array3, Axis, Ix3, s},
    train::{
        CheckpointExtras, LossInput, ModelOutputs, OptimizerConfig, Schedule, Shard, StepReport, Trainer,
        TrainerConfig, masked_mean_squared_error, mean_squared_error, part_of_mean,
    },
};

/// Lengths of the sequences of the task, of which the fifth shard of eight has no time step.
const LENGTHS: [usize; 8] = [40, 3, 17, 40, 0, 1, 25, 39];

/// The bits of a report.
type ReportBits = (u64, u64, u64, u32, Vec<u32>);

/// A loss of the outputs, with its gradient.
type Loss = fn(&Array3<f32>) -> Result<(f64, Array3<f32>)>;

/// A training step on the task, with masked mean squared error.
fn step<B: Backend>(trainer: &mut Trainer<B>, state: Option<&HostState>) -> Result<StepReport> {
    let (x, target) = task();
    let input = state.iter().fold(Input::from(&x).lengths(&LENGTHS), |input, state| input.state(state));
    trainer.step(input, LossInput::Outputs, |out, shard| masked_loss(out.y()?.to_owned(), &target, shard))
}

/// The shard's part of the masked mean squared error.
fn masked_loss(y: Array3<f32>, target: &Array3<f32>, shard: &Shard) -> Result<(f64, Array3<f32>)> {
    let target = target.slice(s![shard.rows.clone(), .., ..]);
    if shard.own_count == 0 {
        return Ok((0.0, Array3::zeros(y.dim())));
    }
    // Models without a head have as many outputs as units.
    let target = target.broadcast(y.dim()).unwrap();
    let mean = masked_mean_squared_error(y.view(), target, &LENGTHS[shard.rows.clone()])?;
    Ok(part_of_mean(mean, shard.own_count, shard.count))
}

fn sgd(shards: usize) -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::sgd(), Schedule::constant(1.0)).shards(shards).seed(5)
}

/// The definition of the tree: for n > 1, split at the largest power of two below n.
fn tree_sum(gradients: &[Vec<f32>]) -> Vec<f32> {
    let n = gradients.len();
    if n == 1 {
        return gradients[0].clone();
    }
    let mut middle = 1;
    while 2 * middle < n {
        middle *= 2;
    }
    let (left, right) = (tree_sum(&gradients[..middle]), tree_sum(&gradients[middle..]));
    left.iter().zip(right).map(|(a, b)| a + b).collect()
}

/// Output number `n` of SplitMix64, started with `seed`.
fn split_mix(seed: u64, n: u64) -> u64 {
    let z = seed.wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Compares a step with the passes over each shard, called one by one, and the sum as the specification defines it.
#[test]
fn gradients_are_those_of_the_shards_summed_in_the_tree() {
    let device = Cpu::new();
    let config = LstmConfig::new(2, 6).layers(2).dropout(0.25);
    let (x, target) = task();
    for shards in [1, 2, 3, 5, 7, 8] {
        let lstm = Lstm::random(&device, config.clone(), 1).unwrap();
        let (mut losses, mut gradients, mut states) = (Vec::new(), Vec::new(), Vec::new());
        for k in 0..shards {
            let rows = k * 8 / shards..(k + 1) * 8 / shards;
            let seed = match k {
                0 => split_mix(5, 1),
                k => split_mix(split_mix(5, 1), k as u64),
            };
            let own = x.slice(s![rows.clone(), .., ..]);
            let input = Input::from(own).lengths(&LENGTHS[rows.clone()]).dropout(Dropout::Seed(seed));
            let pass = lstm.forward_train(input, Checkpointing::SaveEverything).unwrap();
            let count = |rows: std::ops::Range<usize>| LENGTHS[rows].iter().sum();
            let (count, own_count) = (count(0..8), count(rows.clone()));
            let own_target = target.slice(s![rows.clone(), .., ..]);
            let own_target = own_target.broadcast(pass.y.dim()).unwrap();
            let (loss, dy) = match own_count {
                0 => (0.0, Array3::zeros(pass.y.dim())),
                _ => {
                    let mean = masked_mean_squared_error(pass.y.view(), own_target, &LENGTHS[rows]).unwrap();
                    part_of_mean(mean, own_count, count)
                }
            };
            let mut weights = pass.tape.backward(&dy).unwrap().weights;
            let flat: Vec<f32> = weights.iter_mut().flat_map(|(_, values)| values.to_vec()).collect();
            losses.push(loss);
            gradients.push(flat);
            states.push(pass.state);
        }
        let want = tree_sum(&gradients);

        let mut trainer = Trainer::new(lstm.clone(), None, sgd(shards)).unwrap();
        let report = step(&mut trainer, None).unwrap();
        assert_eq!(report.loss, losses.iter().copied().reduce(|a, b| a + b).unwrap());
        let join = |array: fn(&HostState) -> &Array3<f32>| {
            let parts: Vec<_> = states.iter().map(|state| array(state).view()).collect();
            lstm_cpu::ndarray::concatenate(Axis(1), &parts).unwrap()
        };
        assert_eq!((report.state.h, report.state.c), (join(|state| &state.h), join(|state| &state.c)));
        let (mut old, mut new) = (lstm.weights().clone(), trainer.lstm().weights().clone());
        let old = old.iter_mut().flat_map(|(_, values)| values.to_vec());
        let new = new.iter_mut().flat_map(|(_, values)| values.to_vec());
        let mut count = 0;
        for ((old, new), gradient) in old.zip(new).zip(&want) {
            assert_eq!(new.to_bits(), (old - gradient).to_bits(), "{shards} shards");
            count += 1;
        }
        assert_eq!(count, want.len());
    }
}

#[test]
fn training_depends_on_shards_and_not_on_threads_or_path() {
    fn run<B: Backend>(b: &B, case: &(LstmConfig, bool, TrainerConfig)) -> (Vec<ReportBits>, Vec<u32>) {
        let (mut trainer, mut state, mut reports) = (trainer(b, case), None, Vec::new());
        for _ in 0..4 {
            let report = step(&mut trainer, state.as_ref()).unwrap();
            reports.push(step_bits(&report));
            state = Some(report.state);
        }
        (reports, bits(&trainer))
    }
    for (config, head, settings) in cases() {
        let mut results = Vec::new();
        for shards in [1, 3, 4] {
            let case = (config.clone(), head, settings.clone().shards(shards));
            let want = run(&device(), &case);
            for threads in [1, 2, 4] {
                let cpu = Cpu::builder().threads(threads).build().unwrap();
                assert_eq!(run(&cpu, &case), want, "{shards} shards, {threads} threads");
            }
            results.push(want.1);
        }
        assert!(results[0] != results[1] && results[1] != results[2], "the number of shards has no effect");
    }
}

/// Without dropout, any number of shards gives the gradient of the mean over the whole batch, up to rounding.
#[test]
fn uneven_shards_give_the_mean_over_the_batch() {
    let (x, target) = task();
    let weights = |shards: usize, time_major: bool| {
        let lstm = Lstm::random(&device(), LstmConfig::new(2, 6).bidirectional(), 1).unwrap();
        let head = Linear::random(&device(), 12, 1, 2).unwrap();
        let mut trainer = Trainer::new(lstm, Some(head), sgd(shards)).unwrap();
        let report = if time_major {
            let x = x.view().permuted_axes([1, 0, 2]);
            let loss = |out: ModelOutputs<'_>, shard: &Shard| {
                let y = out.y()?.permuted_axes([1, 0, 2]).to_owned();
                let (loss, dy) = masked_loss(y, &target, shard)?;
                Ok::<_, Error>((loss, dy.permuted_axes([1, 0, 2])))
            };
            trainer.step(Input::from(x).time_major().lengths(&LENGTHS), LossInput::Outputs, loss).unwrap()
        } else {
            step(&mut trainer, None).unwrap()
        };
        let mut weights = trainer.lstm().weights().clone();
        let mut values: Vec<f32> = weights.iter_mut().flat_map(|(_, values)| values.to_vec()).collect();
        values.extend(trainer.head().unwrap().weight());
        (report.loss, values)
    };
    let (loss, want) = weights(1, false);
    for shards in 2..=8 {
        for time_major in [false, true] {
            let (got_loss, got) = weights(shards, time_major);
            assert!((got_loss - loss).abs() < 1e-14, "{shards} shards: {got_loss} {loss}");
            let difference = got.iter().zip(&want).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()));
            assert!(difference < 1e-6, "{shards} shards: {difference}");
        }
    }
}

/// Loss and gradients that PyTorch computed in float64, without shards.
#[test]
fn uneven_shards_give_pytorchs_mean() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/train/shards.safetensors");
    let mut file = StateDict::open(path).unwrap();
    let [x, target] = ["x", "t"].map(|name| file.take_any(name).unwrap().into_dimensionality::<Ix3>().unwrap());
    let lengths: Vec<_> = file.take_i64("lengths").unwrap().into_iter().map(|len| len as usize).collect();
    let lstm = Lstm::new(&device(), file.take_lstm("lstm.").unwrap()).unwrap();
    let weight = file.take("head.weight", &[2, 3]).unwrap().into_dimensionality().unwrap();
    let bias = file.take("head.bias", &[2]).unwrap().into_dimensionality().unwrap();
    let head = Linear::new(&device(), weight, Some(bias)).unwrap();
    let want_loss = file.take_f64("loss").unwrap()[[0]];
    let names =
        ["lstm.weight_ih_l0", "lstm.weight_hh_l0", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "head.weight", "head.bias"];
    let want: Vec<f64> =
        names.into_iter().flat_map(|name| file.take_f64(&format!("gradient.{name}")).unwrap()).collect();
    file.finish().unwrap();
    assert!(want.iter().any(|v| v.abs() > 0.1));

    let parameters = |trainer: &Trainer<_>| {
        let mut weights = trainer.lstm().weights().clone();
        let mut values: Vec<f32> = weights.iter_mut().flat_map(|(_, values)| values.to_vec()).collect();
        let head = trainer.head().unwrap();
        values.extend(head.weight().iter().chain(head.bias().unwrap()));
        values
    };
    for shards in 1..=7 {
        let mut trainer = Trainer::new(lstm.clone(), Some(head.clone()), sgd(shards)).unwrap();
        let before = parameters(&trainer);
        let step = trainer.step(Input::from(&x).lengths(&lengths), LossInput::Outputs, |out, shard| {
            let target = target.slice(s![shard.rows.clone(), .., ..]);
            if shard.own_count == 0 {
                return Ok::<_, Error>((0.0, Array3::zeros(target.dim())));
            }
            let mean = masked_mean_squared_error(out.y()?, target, &lengths[shard.rows.clone()])?;
            Ok(part_of_mean(mean, shard.own_count, shard.count))
        });
        let loss = step.unwrap().loss;
        assert!((loss - want_loss).abs() < 1e-6 * want_loss, "{shards} shards: {loss}, PyTorch {want_loss}");
        let after = parameters(&trainer);
        assert_eq!(after.len(), want.len());
        for (k, ((before, after), want)) in before.iter().zip(&after).zip(&want).enumerate() {
            // The learning rate is 1, and the parameters are rounded.
            let got = f64::from(*before) - f64::from(*after);
            assert!((got - want).abs() < 1e-6, "{shards} shards, {k}: {got}, PyTorch {want}");
        }
    }
}

#[test]
fn resumed_runs_keep_their_shards() {
    let (config, head, settings) = cases().swap_remove(0);
    for shards in [1, 3] {
        let case = (config.clone(), head, settings.clone().shards(shards));
        let mut whole = trainer(&device(), &case);
        let first = step(&mut whole, None).unwrap();
        let dir = TempDir::new();
        let extras = CheckpointExtras::default().with_state(&first.state);
        whole.save_with(dir.file("run"), &extras).unwrap();
        let (mut resumed, mut extras) = Trainer::resume(&Cpu::new(), dir.file("run")).unwrap();
        assert_eq!(resumed.config().shards, shards);
        let state = extras.take_state().unwrap();
        let want = step_bits(&step(&mut whole, Some(&first.state)).unwrap());
        assert_eq!(step_bits(&step(&mut resumed, state.as_ref()).unwrap()), want);
        assert_eq!(bits(&resumed), bits(&whole));
    }
}

#[test]
fn errors_name_the_shard_and_change_nothing() {
    let (x, target) = task();
    let mut trainer = trainer(&device(), &cases()[0]);
    trainer.set_config(trainer.config().clone().shards(3)).unwrap();
    step(&mut trainer, None).unwrap();
    let before = bits(&trainer);
    let fail_in = |trainer: &mut Trainer<_>, failing: usize, loss: Loss| {
        let step = trainer.step(&x, LossInput::Outputs, |out, shard| {
            assert!(shard.index <= failing);
            if shard.index == failing {
                return loss(&out.y()?.to_owned());
            }
            mean_squared_error(out.y()?, target.slice(s![shard.rows.clone(), .., ..]))
        });
        step.unwrap_err()
    };
    let error = fail_in(&mut trainer, 2, |y| Ok((f64::NAN, y.clone())));
    assert!(matches!(error, Error::NotFinite { step: 2, .. }));
    assert_eq!(error.to_string(), "training step 2: the loss of shard 2 is NaN");
    let error = fail_in(&mut trainer, 1, |_| Ok((0.0, Array3::zeros((3, 40, 2)))));
    assert!(matches!(error, Error::Shard { index: 1, shards: 3, .. }));
    let want = "shard 1 (of 3, counted from 0): Trainer::step: gradient of the loss: expected [3, 40, 1]";
    assert!(error.to_string().starts_with(want), "{error}");
    // Each loss is finite, but not their sum.
    let error = trainer
        .step(&x, LossInput::Outputs, |out, _| Ok::<_, Error>((f64::MAX, Array3::zeros(out.y()?.dim()))))
        .unwrap_err();
    assert_eq!(error.to_string(), "training step 2: the loss is inf");
    // The caller's own errors come back unchanged.
    let error = fail_in(&mut trainer, 1, |_| Err(Error::config("mine", "the caller's")));
    assert_eq!(error.to_string(), "option mine: the caller's");

    let error = trainer.set_config(trainer.config().clone().shards(0)).unwrap_err().to_string();
    assert!(error.contains("shards: expected at least 1, got 0"), "{error}");
    trainer.set_config(trainer.config().clone().shards(9)).unwrap();
    let error = step(&mut trainer, None).unwrap_err().to_string();
    assert!(error.contains("shards: expected at most 8, the number of sequences in the batch"), "{error}");
    assert!(error.contains("got 9, so shard 0 would be empty"), "{error}");
    trainer.set_config(trainer.config().clone().shards(3)).unwrap();
    // States and lengths of another batch are errors before they are cut into shards.
    let state = HostState::zeros(trainer.lstm().config(), 7).unwrap();
    for input in [Input::from(&x).state(&state), Input::from(&x).lengths(&LENGTHS[..7])] {
        let result = trainer.step(input, LossInput::Outputs, |out, _| Ok::<_, Error>((0.0, out.y()?.to_owned())));
        assert!(matches!(result, Err(Error::Shape { .. })));
    }
    assert_eq!(bits(&trainer), before);
}
