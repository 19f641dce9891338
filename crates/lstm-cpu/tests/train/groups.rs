//! Tests of parameter groups in a training run.

use crate::common::{TempDir, bits, device, step, step_bits, trainer};
use lstm_cpu::{
    Cpu, LstmConfig,
    train::{Clip, OptimizerConfig, ParameterGroup, Schedule, Trainer, TrainerConfig},
};

fn case(groups: &[ParameterGroup]) -> (LstmConfig, bool, TrainerConfig) {
    let config = TrainerConfig::new(OptimizerConfig::adamw().weight_decay(0.1), Schedule::constant(0.01));
    (LstmConfig::new(2, 4), true, groups.iter().cloned().fold(config.clip(Clip::Norm(0.1)), TrainerConfig::group))
}

/// The values of all parameters by name.
fn parameters(trainer: &Trainer<Cpu>) -> Vec<(String, Vec<f32>)> {
    let (lstm, head) = (trainer.lstm().weights(), trainer.head().unwrap());
    let of_lstm = lstm.layers().iter().flat_map(|layer| layer.iter());
    let mut parameters: Vec<_> =
        of_lstm.map(|(param, array)| (format!("{param:?}"), array.iter().copied().collect())).collect();
    parameters.push(("head.weight".into(), head.weight().iter().copied().collect()));
    parameters.push(("head.bias".into(), head.bias().unwrap().to_vec()));
    parameters
}

#[test]
fn frozen_parameters_stay_and_do_not_count_in_the_norm() {
    let mut free = trainer(&Cpu::new(), &case(&[]));
    let mut frozen = trainer(&Cpu::new(), &case(&[ParameterGroup::new("lstm.*").frozen()]));
    let before = parameters(&frozen);
    let (of_free, of_frozen) = (step(&mut free).unwrap(), step(&mut frozen).unwrap());
    assert_eq!(of_free.loss, of_frozen.loss);
    assert!(of_frozen.gradient_norm < of_free.gradient_norm);
    for ((name, old), (_, new)) in before.iter().zip(&parameters(&frozen)) {
        assert_eq!(old == new, !name.starts_with("head"), "{name}");
    }
}

#[test]
fn a_group_has_its_own_rate_and_weight_decay() {
    let run = |groups: &[ParameterGroup]| {
        let mut run = trainer(&Cpu::new(), &case(groups));
        step(&mut run).unwrap();
        parameters(&run)
    };
    // A group with the options of the optimizer changes nothing.
    let plain = run(&[]);
    assert_eq!(run(&[ParameterGroup::new("*").rate_factor(1.0).weight_decay(0.1)]), plain);
    let grouped =
        run(&[ParameterGroup::new("head.bias").rate_factor(2.0), ParameterGroup::new("lstm.*").weight_decay(0.0)]);
    for ((name, plain), (_, grouped)) in plain.iter().zip(&grouped) {
        assert_eq!(plain == grouped, name == "head.weight", "{name}");
    }
}

#[test]
fn groups_are_saved_and_checked() {
    let groups = [ParameterGroup::new("lstm.*_hh*").frozen(), ParameterGroup::new("head.*").rate_factor(0.5)];
    let mut whole = trainer(&device(), &case(&groups));
    step(&mut whole).unwrap();
    let dir = TempDir::new();
    whole.save(dir.file("run")).unwrap();
    let (mut resumed, _) = Trainer::resume(&device(), dir.file("run")).unwrap();
    assert_eq!(resumed.config().groups, groups);
    assert_eq!(step_bits(&step(&mut resumed).unwrap()), step_bits(&step(&mut whole).unwrap()));
    assert_eq!(bits(&resumed), bits(&whole));
    // Without the groups, the run goes on with the same optimizer state.
    resumed.set_config(case(&[]).2).unwrap();
    step(&mut resumed).unwrap();
    let before = bits(&whole);
    let error = whole.set_config(case(&[ParameterGroup::new("decoder.*")]).2).unwrap_err().to_string();
    assert!(error.contains("`decoder.*`; the parameters are lstm.weight_ih_l0, "), "{error}");
    assert_eq!(bits(&whole), before);
    let (config, _, settings) = case(&[ParameterGroup::new("*bias"), ParameterGroup::new("head.*")]);
    let lstm = lstm_cpu::Lstm::random(&Cpu::new(), config, 1).unwrap();
    let head = lstm_cpu::Linear::random(&Cpu::new(), 4, 1, 2).unwrap();
    let error = Trainer::new(lstm, Some(head), settings).unwrap_err().to_string();
    assert!(error.contains("got `head.bias` in `*bias` and `head.*`"), "{error}");
}
