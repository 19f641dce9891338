//! Several heads on one LSTM: one wide head, whose rows are those of all heads, has the gradients of separate ones.

use lstm_cpu::{
    Checkpointing::SaveEverything,
    Cpu, Linear, Lstm, LstmConfig, Result,
    ndarray::{Array1, Array2, Array3, Axis, concatenate, s},
    train::{LossInput, Module, Optimizer, OptimizerConfig, Schedule, Trainer, TrainerConfig, gaussian_nll_loss},
};

use crate::common::task;

const HIDDEN: usize = 6;

/// Features of the target.
const FEATURES: usize = 2;

/// An LSTM, a head for the means, and one for the logarithms of the variances.
fn modules() -> Result<(Lstm<Cpu>, [Linear<Cpu>; 2])> {
    let cpu = Cpu::new();
    let heads = [Linear::random(&cpu, HIDDEN, FEATURES, 2)?, Linear::random(&cpu, HIDDEN, FEATURES, 3)?];
    Ok((Lstm::random(&cpu, LstmConfig::new(2, HIDDEN), 1)?, heads))
}

/// The wide head, as `docs/from-pytorch.md` makes it.
fn stacked([a, b]: &[Linear<Cpu>; 2]) -> Result<Linear<Cpu>> {
    let weight = concatenate![Axis(0), *a.weight(), *b.weight()];
    let bias = a.bias().zip(b.bias()).map(|(a, b)| concatenate![Axis(0), *a, *b]);
    Linear::new(a.backend(), weight, bias)
}

fn target() -> Array3<f32> {
    let (_, target) = task();
    concatenate![Axis(2), target, target.mapv(|v| v * v)]
}

/// The mean negative log-likelihood for outputs `y` of the LSTM, in f64. A head is a weight and a bias.
fn loss(y: &Array2<f64>, target: &Array2<f64>, heads: &[(Array2<f64>, Array1<f64>); 2]) -> f64 {
    let [mean, log_variance] = heads.each_ref().map(|(weight, bias)| y.dot(&weight.t()) + bias);
    let parts = mean.iter().zip(&log_variance).zip(target).map(|((m, s), t)| s + (t - m).powi(2) * (-s).exp());
    parts.sum::<f64>() / (2 * target.len()) as f64
}

/// Checks gradients against central differences. `loss_with` returns the loss after a number is added to one element.
#[track_caller]
fn check_differences<'a>(
    got: impl IntoIterator<Item = &'a f32>,
    mut loss_with: impl FnMut(usize, f64) -> f64,
    what: &str,
) {
    const STEP: f64 = 1e-5;
    let mut largest = 0.0f64;
    for (k, &got) in got.into_iter().enumerate() {
        let want = (loss_with(k, STEP) - loss_with(k, -STEP)) / (2.0 * STEP);
        assert!((f64::from(got) - want).abs() < 1e-6, "{what} {k}: {got}, expected {want}");
        largest = largest.max(want.abs());
    }
    assert!(largest > 1e-4, "{what}: the gradients are too small to be compared");
}

#[test]
fn a_wide_head_has_the_gradients_of_two_heads() -> Result<()> {
    let (x, target) = (task().0, target());
    let (lstm, heads) = modules()?;
    let wide = stacked(&heads)?;
    let y = lstm.forward(&x)?.0;
    let (got_loss, dy) = gaussian_nll_loss(wide.forward(&y)?.view(), target.view())?;
    let got = wide.backward(&y, &dy)?;

    // Finite differences in f64 of two separate heads.
    let rows = |array: &Array3<f32>| {
        let (batch, steps, features) = array.dim();
        Array2::from_shape_vec((batch * steps, features), array.iter().copied().map(f64::from).collect()).unwrap()
    };
    let (y64, target64) = (rows(&y), rows(&target));
    let heads64 = heads.each_ref().map(|head| (head.weight().mapv(f64::from), head.bias().unwrap().mapv(f64::from)));
    assert!((got_loss - loss(&y64, &target64, &heads64)).abs() < 1e-6);
    for (k, name) in ["mean", "log variance"].into_iter().enumerate() {
        let own = k * FEATURES..(k + 1) * FEATURES;
        check_differences(
            got.weight.slice(s![own.clone(), ..]),
            |element, step| {
                let mut heads = heads64.clone();
                heads[k].0[[element / HIDDEN, element % HIDDEN]] += step;
                loss(&y64, &target64, &heads)
            },
            &format!("weight of the {name}"),
        );
        check_differences(
            got.bias.as_ref().unwrap().slice(s![own.clone()]),
            |element, step| {
                let mut heads = heads64.clone();
                heads[k].1[element] += step;
                loss(&y64, &target64, &heads)
            },
            &format!("bias of the {name}"),
        );
        // The same bits as of a head of its own.
        let alone = heads[k].backward(&y, dy.slice(s![.., .., own.clone()]))?;
        assert_eq!(alone.weight, got.weight.slice(s![own.clone(), ..]));
        assert_eq!(alone.bias.unwrap(), got.bias.as_ref().unwrap().slice(s![own]));
    }
    check_differences(
        &got.x,
        |element, step| {
            let mut y = y64.clone();
            y[[element / HIDDEN, element % HIDDEN]] += step;
            loss(&y, &target64, &heads64)
        },
        "output of the LSTM",
    );
    Ok(())
}

#[test]
fn a_wide_head_trains_as_two_heads() -> Result<()> {
    const RATE: f32 = 0.1;
    let (x, target) = (task().0, target());
    let (mut lstm, mut heads) = modules()?;
    let config = TrainerConfig::new(OptimizerConfig::adam(), Schedule::constant(RATE));
    let mut trainer = Trainer::new(lstm.clone(), Some(stacked(&heads)?), config)?;
    let mut optimizer = Optimizer::new(OptimizerConfig::adam())?;
    let mut losses = Vec::new();
    for _ in 0..5 {
        let report = trainer.step(&x, LossInput::Outputs, |out, _| gaussian_nll_loss(out.y()?, target.view()))?;

        let pass = lstm.forward_train(&x, SaveEverything)?;
        let outputs = concatenate![Axis(2), heads[0].forward(&pass.y)?, heads[1].forward(&pass.y)?];
        let (loss, dy) = gaussian_nll_loss(outputs.view(), target.view())?;
        let of_mean = heads[0].backward(&pass.y, dy.slice(s![.., .., ..FEATURES]))?;
        let of_log_variance = heads[1].backward(&pass.y, dy.slice(s![.., .., FEATURES..]))?;
        let of_lstm = pass.tape.backward(&(&of_mean.x + &of_log_variance.x))?;
        let [mean, log_variance] = &mut heads;
        let modules = &mut [
            Module::new("lstm", &mut lstm, &of_lstm),
            Module::new("mean", mean, &of_mean),
            Module::new("log_variance", log_variance, &of_log_variance),
        ];
        optimizer.update(RATE, None, modules)?;
        assert!((loss - report.loss).abs() < 1e-5, "{loss} {}", report.loss);
        losses.push(loss);
    }
    assert!(losses[4] < losses[0] - 0.1, "{losses:?}");
    let (wide, want) = (trainer.head().unwrap(), stacked(&heads)?);
    let difference = (wide.weight() - want.weight()).iter().fold(0.0f32, |most, v| most.max(v.abs()));
    assert!(difference < 1e-4, "{difference}");
    Ok(())
}
