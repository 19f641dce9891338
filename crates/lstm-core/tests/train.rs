//! Losses, optimizers, clipping and schedules compared with PyTorch, and saved and restored optimizers.
//!
//! The script `tests/data/train/make.py` wrote the data in its folder with PyTorch 2.15. PyTorch computes optimizers
//! and clipping in f32 and fuses some operations, so results may differ by [`TOLERANCE`] times the largest element of
//! the tensor over all steps. This is a few rounding errors.

use std::{collections::BTreeSet, path::Path};

use lstm_core::{
    Error, StateDict, StateDictWriter,
    arithmetic::Digest,
    ndarray::{ArrayD, ArrayView1},
    train::{
        Clip, IGNORE_INDEX, Optimizer, OptimizerConfig, Parameter, Schedule, binary_cross_entropy_with_logits,
        cross_entropy, gradient_norm, mean_squared_error,
    },
};

/// Largest difference from PyTorch, relative to the largest element of the tensor, or to each rate of a schedule.
const TOLERANCE: f64 = 1e-6;

const NAMES: [&str; 3] = ["weight", "bias", "scale"];

fn golden(file: &str) -> StateDict {
    StateDict::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/train").join(file)).unwrap()
}

/// The part before the colon of the names of a file's tensors.
fn cases(file: &StateDict) -> BTreeSet<String> {
    file.names().filter_map(|name| Some(name.split_once(": ")?.0.to_owned())).collect()
}

#[track_caller]
fn assert_close<T: Copy + Into<f64>>(what: &str, got: impl IntoIterator<Item = T>, want: &ArrayD<f64>) {
    let got: Vec<f64> = got.into_iter().map(Into::into).collect();
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = want.iter().fold(0.0f64, |largest, w| largest.max(w.abs()));
    for (k, (got, want)) in got.iter().zip(want).enumerate() {
        assert!((got - want).abs() <= TOLERANCE * largest, "{what}, element {k}: {got}, PyTorch {want}");
    }
}

/// Parameters, with a gradient and a learning rate for each step.
#[derive(Clone)]
struct Model {
    values: Vec<Vec<f32>>,
    gradients: Vec<ArrayD<f32>>,
    rates: Vec<f32>,
}

impl Model {
    fn take(file: &mut StateDict) -> Self {
        let values = NAMES.iter().map(|n| file.take_any(&format!("start.{n}")).unwrap().into_iter().collect());
        let values = values.collect();
        let gradients = NAMES.iter().map(|n| file.take_any(&format!("gradients.{n}")).unwrap()).collect();
        Model { values, gradients, rates: file.take_any("rates").unwrap().into_iter().collect() }
    }

    fn load() -> Self {
        Self::take(&mut golden("optimizers.safetensors"))
    }

    fn step(&mut self, optimizer: &mut Optimizer, step: usize) {
        let gradients = self.gradients.iter().map(|g| g.outer_iter().nth(step).unwrap().to_slice().unwrap());
        let values = NAMES.iter().zip(&mut self.values);
        let mut parameters: Vec<_> =
            values.zip(gradients).map(|((name, value), gradient)| Parameter { name, value, gradient }).collect();
        optimizer.step(self.rates[step], &mut parameters).unwrap();
    }

    fn bits(&self) -> Vec<u32> {
        self.values.iter().flatten().map(|v| v.to_bits()).collect()
    }
}

fn optimizer_configs() -> Vec<OptimizerConfig> {
    cases(&golden("optimizers.safetensors")).iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn optimizers_match_pytorch() {
    let mut file = golden("optimizers.safetensors");
    let cases = cases(&file);
    assert_eq!(cases.len(), 17);
    let start = Model::take(&mut file);
    for text in cases {
        let mut model = start.clone();
        let mut optimizer = Optimizer::new(text.parse().unwrap()).unwrap();
        let mut values = NAMES.map(|_| Vec::<f32>::new());
        for step in 0..model.rates.len() {
            model.step(&mut optimizer, step);
            values.iter_mut().zip(&model.values).for_each(|(all, now)| all.extend(now));
        }
        for (name, got) in NAMES.iter().zip(values) {
            let name = format!("{text}: values.{name}");
            assert_close(&name, got, &file.take_f64(&name).unwrap());
        }
        assert_eq!(optimizer.steps(), 20);
        for (name, got) in optimizer.state() {
            let name = format!("{text}: {name}");
            assert_close(&name, got.iter().copied(), &file.take_f64(&name).unwrap());
        }
    }
    // The optimizer state has exactly the arrays that PyTorch has.
    file.finish().unwrap();
}

#[test]
fn steps_after_a_restore_are_bit_identical() {
    for config in optimizer_configs() {
        let (mut whole, mut halves) = (Model::load(), Model::load());
        let mut optimizer = Optimizer::new(config.clone()).unwrap();
        (0..20).for_each(|step| whole.step(&mut optimizer, step));

        let mut first = Optimizer::new(config.clone()).unwrap();
        (0..9).for_each(|step| halves.step(&mut first, step));
        let mut writer = StateDictWriter::new()
            .metadata("method", first.config().to_string())
            .metadata("steps", first.steps().to_string());
        for (name, values) in first.state() {
            writer = writer.tensor(name, &ArrayView1::from(values)).unwrap();
        }
        let mut file = StateDict::from_bytes(writer.to_bytes().unwrap()).unwrap();

        let (saved, steps) = (file.metadata()["method"].clone(), file.metadata()["steps"].parse().unwrap());
        let names: Vec<_> = file.names().map(str::to_owned).collect();
        let state = names.into_iter().map(|name| {
            let values = file.take_any(&name).unwrap().into_iter().collect();
            (name, values)
        });
        let mut second = Optimizer::restore(saved.parse().unwrap(), steps, state).unwrap();
        assert_eq!(second, first);
        (9..20).for_each(|step| halves.step(&mut second, step));
        assert_eq!(halves.bits(), whole.bits(), "{config}");
        assert_eq!(second, optimizer, "{config}");
    }
}

/// Results must be bit-identical on all machines, while the comparison with PyTorch has a tolerance.
#[test]
fn results_match_the_recorded_digests() {
    let mut digests = [Digest::default(); 5];
    let [optimizers, schedules, losses, clips, answers] = &mut digests;
    for config in optimizer_configs() {
        let (mut model, mut optimizer) = (Model::load(), Optimizer::new(config).unwrap());
        (0..20).for_each(|step| model.step(&mut optimizer, step));
        let kept = optimizer.state().flat_map(|(_, values)| values);
        model.values.iter().flatten().chain(kept).for_each(|v| optimizers.add(*v));
    }
    for text in golden("schedules.safetensors").names() {
        let schedule: Schedule = text.parse().unwrap();
        (0..100).for_each(|step| schedules.add(schedule.rate_at(step)));
    }
    let x = golden("losses.safetensors").take_any("x").unwrap();
    let (squared, by_x) = mean_squared_error(x.view(), x.mapv(|v| 0.3 * v).view()).unwrap();
    let (entropy, by_logits) =
        cross_entropy(x.view(), &[0, 1, 2, 3, 4, IGNORE_INDEX, 0, 1, 2, 3, 4, IGNORE_INDEX]).unwrap();
    let (binary, by_answers) = binary_cross_entropy_with_logits(x.view(), x.mapv(|v| v.abs().min(1.0)).view()).unwrap();
    let mut gradient: Vec<f32> = by_x.iter().chain(&by_logits).copied().collect();
    gradient.iter().chain(&[squared as f32, entropy as f32]).for_each(|v| losses.add(*v));
    by_answers.iter().chain(&[binary as f32]).for_each(|v| answers.add(*v));
    Clip::Norm(0.1).apply(&mut [&mut gradient]).unwrap();
    gradient.iter().for_each(|v| clips.add(*v));
    assert_eq!(
        digests.map(|d| d.to_string()),
        ["911c182cf6f70976", "7f2946d6a8a490e2", "ffde7818ad61e1e9", "7226bd1b56740671", "f7c056b7d1308e75"]
    );
}

#[test]
fn order_of_parameters_does_not_matter() {
    let step = |names: [&str; 2]| {
        let mut optimizer = Optimizer::new(OptimizerConfig::adam()).unwrap();
        let (mut x, mut y) = ([1.0, 2.0], [3.0]);
        for _ in 0..3 {
            let x = Parameter { name: "x", value: &mut x, gradient: &[0.5, -1.0] };
            let y = Parameter { name: "y", value: &mut y, gradient: &[2.0] };
            optimizer.step(0.1, &mut if names[0] == "x" { [x, y] } else { [y, x] }).unwrap();
        }
        let state: Vec<_> = optimizer.state().map(|(name, values)| (name, values.to_vec())).collect();
        (x, y, state)
    };
    assert_eq!(step(["x", "y"]), step(["y", "x"]));
    let names: Vec<_> = step(["y", "x"]).2.into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["exp_avg.x", "exp_avg_sq.x", "exp_avg.y", "exp_avg_sq.y"]);
}

/// Takes a step with parameters of the given names and lengths, whose gradients have `extra` more elements. Returns the
/// error message and whether the parameters are unchanged.
fn try_step(optimizer: &mut Optimizer, rate: f32, shapes: &[(&str, usize)], extra: usize) -> (String, bool) {
    let mut values: Vec<Vec<f32>> = shapes.iter().map(|(_, len)| vec![1.0; *len]).collect();
    let gradients: Vec<Vec<f32>> = shapes.iter().map(|(_, len)| vec![0.5; len + extra]).collect();
    let parameters = shapes.iter().zip(&mut values).zip(&gradients);
    let mut parameters: Vec<_> =
        parameters.map(|(((name, _), value), gradient)| Parameter { name, value, gradient }).collect();
    let error = optimizer.step(rate, &mut parameters).err().map_or(String::new(), |e| e.to_string());
    (error, values.iter().flatten().all(|v| *v == 1.0))
}

#[test]
fn failed_step_changes_nothing() {
    let valid: &[(&str, usize)] = &[("a", 2), ("b", 3)];
    for config in optimizer_configs() {
        let mut optimizer = Optimizer::new(config.clone()).unwrap();
        let has_state = config != OptimizerConfig::sgd() && config != OptimizerConfig::sgd().weight_decay(0.1);
        for taken in 0..3 {
            let before = optimizer.clone();
            let mut failing = vec![
                (-0.1, valid, 0, "rate"),
                (f32::NAN, valid, 0, "rate"),
                (f32::INFINITY, valid, 0, "rate"),
                (0.1, valid, 1, "parameter `a`: expected a gradient of 2 elements, the length of the value, got 3"),
                (0.1, &[][..], 0, "parameters: expected at least one"),
                (0.1, &[("a", 2), ("b", 3), ("a", 2)], 0, "parameter `a`: expected each name once"),
            ];
            if has_state && taken > 0 {
                failing.extend([
                    (
                        0.1,
                        &[("a", 2)][..],
                        0,
                        "parameter `b`: expected value and gradient, as in the first step, got none",
                    ),
                    (0.1, &[("a", 2), ("b", 3), ("c", 1)], 0, "parameter `c`: expected a name of the first step"),
                    (0.1, &[("a", 2), ("b", 4)], 0, "parameter `b`: expected 3 elements, as in the first step, got 4"),
                ]);
            }
            for (rate, shapes, extra, part) in failing {
                let (error, unchanged) = try_step(&mut optimizer, rate, shapes, extra);
                assert!(error.contains(part) && unchanged, "{config}, {part}: {error}");
                assert_eq!(optimizer, before, "{config}, {part}");
            }
            assert_eq!(try_step(&mut optimizer, 0.1, valid, 0), (String::new(), false));
            assert_eq!(optimizer.steps(), taken + 1);
        }
        assert_eq!(optimizer.state().next().is_some(), has_state);
    }
    assert!(matches!(Optimizer::new(OptimizerConfig::sgd().weight_decay(-1.0)), Err(Error::Config { .. })));
}

#[test]
fn rejects_invalid_optimizer_state() {
    let restore = |config: OptimizerConfig, steps, state: &[(&str, usize)]| {
        let state = state.iter().map(|(name, len)| ((*name).to_owned(), vec![0.0; *len]));
        Optimizer::restore(config, steps, state)
    };
    let pair = &[("exp_avg_sq.l.w", 2), ("exp_avg.l.w", 2)];
    for (config, steps, state, part) in [
        (OptimizerConfig::adam().weight_decay(-1.0), 1, &pair[..], "option weight_decay"),
        (OptimizerConfig::sgd(), 1, &[("momentum.w", 2)], "unused tensors: momentum.w"),
        (
            OptimizerConfig::momentum(0.9),
            1,
            &[("momentum.w", 2), ("exp_avg.w", 2), ("odd", 2)],
            "unused tensors: exp_avg.w, odd",
        ),
        (
            OptimizerConfig::adam(),
            1,
            &[("exp_avg.w", 2), ("exp_avg.w", 2)],
            "tensor `exp_avg.w`: the name occurs twice",
        ),
        (OptimizerConfig::adam(), 1, &[("exp_avg.w", 2)], "tensor `exp_avg_sq.w` is missing; expected [2]"),
        (OptimizerConfig::adamw(), 1, &[("exp_avg_sq.w", 0)], "tensor `exp_avg.w` is missing; expected [0]"),
        (
            OptimizerConfig::adam(),
            1,
            &[("exp_avg.w", 2), ("exp_avg_sq.w", 3)],
            "tensor `exp_avg_sq.w`: expected shape [2], found [3]",
        ),
        (OptimizerConfig::adam(), 0, pair, "option steps: expected at least 1"),
        (OptimizerConfig::momentum(0.9), 0, &[("momentum.w", 2)], "option steps: expected at least 1"),
        (OptimizerConfig::adam(), 3, &[], "option steps: expected 0 without optimizer state, got 3"),
    ] {
        let error = restore(config, steps, state).unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
    assert_eq!(restore(OptimizerConfig::sgd(), 7, &[]).unwrap().steps(), 7);
    assert_eq!(restore(OptimizerConfig::adam(), 0, &[]).unwrap(), Optimizer::new(OptimizerConfig::adam()).unwrap());
    let mut last = restore(OptimizerConfig::adam(), u64::MAX, pair).unwrap();
    assert_eq!(try_step(&mut last, 0.1, &[("l.w", 2)], 0), (String::new(), false));
    assert_eq!(last.steps(), u64::MAX);
}

#[test]
fn schedules_match_pytorch() {
    let mut file = golden("schedules.safetensors");
    let texts: Vec<_> = file.names().map(str::to_owned).collect();
    assert_eq!(texts.len(), 12);
    for text in texts {
        let schedule: Schedule = text.parse().unwrap();
        let want = file.take_f64(&text).unwrap();
        for (step, want) in (0..).zip(&want) {
            let got = f64::from(schedule.rate_at(step));
            // PyTorch's cosine goes from rate to rate, and what is left of 0 at the end is not 0.
            assert!((got - want).abs() <= TOLERANCE * want.abs() + 1e-15, "{text}, step {step}: {got}, PyTorch {want}");
        }
    }
}

#[test]
fn losses_and_gradients_match_pytorch() {
    let mut file = golden("losses.safetensors");
    let [p, t, x, yes] = ["p", "t", "x", "probabilities"].map(|name| file.take_any(name).unwrap());
    let targets = file.take_i64("targets").unwrap();
    let targets: Vec<_> = targets.into_iter().map(|t| usize::try_from(t).unwrap_or(IGNORE_INDEX)).collect();
    assert_eq!(targets.iter().filter(|t| **t == IGNORE_INDEX).count(), 2);
    for (name, (loss, gradient)) in [
        ("mse", mean_squared_error(p.view(), t.view()).unwrap()),
        ("cross_entropy", cross_entropy(x.view(), &targets).unwrap()),
        ("binary_cross_entropy", binary_cross_entropy_with_logits(p.view(), yes.view()).unwrap()),
    ] {
        let [want_loss, want] = ["loss", "gradient"].map(|part| file.take_f64(&format!("{name}.{part}")).unwrap());
        assert_eq!(gradient.shape(), want.shape());
        assert_close(name, [loss], &want_loss);
        assert_close(name, gradient, &want);
    }
    file.finish().unwrap();
}

#[test]
fn clipping_matches_pytorch() {
    let mut file = golden("clips.safetensors");
    let cases = cases(&file);
    assert_eq!(cases.len(), 4);
    let gradients = NAMES.map(|name| file.take_any(&format!("gradient.{name}")).unwrap().into_iter().collect());
    let gradients: [Vec<f32>; 3] = gradients;
    let before = gradient_norm(gradients.iter().map(|g| &g[..]));
    assert_close("norm", [before], &file.take_f64("norm").unwrap());
    for case in cases {
        let (kind, bound) = case.split_once(' ').unwrap();
        let clip = if kind == "norm" { Clip::Norm } else { Clip::Value }(bound.parse().unwrap());
        let mut clipped = gradients.clone();
        assert_eq!(clip.apply(&mut clipped.each_mut().map(|g| &mut g[..])).unwrap(), before);
        assert_eq!(bound == "100.0", clipped == gradients, "{case}");
        for (name, got) in NAMES.iter().zip(clipped) {
            let name = format!("{case}: {name}");
            assert_close(&name, got, &file.take_f64(&name).unwrap());
        }
    }
    file.finish().unwrap();
}
