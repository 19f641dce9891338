//! Tests of training checkpoints: a resumed run is bit-identical to an uninterrupted one, and invalid files are
//! rejected.

use std::{collections::BTreeMap, fs, path::Path};

use crate::common::{Device, TempDir, bits, cases, device, step, step_bits, trainer};
use lstm_cpu::{
    Backend, Bias, CellKind, Cpu, Error, GateActivation, GateActivations, HostState, Linear, Lstm, LstmConfig,
    StateDict, StateDictWriter,
    ndarray::{ArrayD, IxDyn},
    train::{CheckpointExtras, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

/// What a program might save with a checkpoint after `k` steps.
fn extras(config: &LstmConfig, k: usize) -> CheckpointExtras {
    let mut state = HostState::zeros(config, 2).unwrap();
    state.c.fill(k as f32);
    let text = BTreeMap::from([("at".into(), k.to_string())]);
    CheckpointExtras::default().with_text(text).with_state(&state)
}

fn check_resumed_runs<B: Backend>(b: &B) {
    for (n, case) in cases().iter().enumerate() {
        let dir = TempDir::new();
        let mut whole = trainer(b, case);
        let mut steps = Vec::new();
        for k in 0..7 {
            let name = format!("after-{k}");
            whole.save_with(dir.file(&name), &extras(whole.lstm().config(), k)).unwrap();
            steps.push(step_bits(&step(&mut whole).unwrap()));
        }
        for stopped in [0, 1, 3, 6] {
            let (mut run, mut loaded) = Trainer::resume(b, dir.file(&format!("after-{stopped}"))).unwrap();
            let want = extras(run.lstm().config(), stopped);
            assert_eq!(loaded, want);
            assert_eq!(loaded.take_state().unwrap(), want.clone().take_state().unwrap());
            assert!(loaded.tensors.is_empty() && loaded.take_state().unwrap().is_none());
            assert_eq!((run.steps(), run.config()), (stopped as u64, &case.2));
            assert_eq!(run.lstm().config(), &case.0);
            for want in &steps[stopped..] {
                assert_eq!(step_bits(&step(&mut run).unwrap()), *want, "case {n}, stopped after {stopped}");
            }
            assert_eq!(bits(&run), bits(&whole), "case {n}, stopped after {stopped}");
        }
    }
}

#[test]
fn resumed_run_is_bit_identical_to_uninterrupted_run() {
    check_resumed_runs(&Cpu::new());
    check_resumed_runs(&device());
}

/// The metadata key of the model's options that do not follow from its tensors, such as dropout.
const CONFIG: &str = "lstm.lstm.config";

/// Trains the first case for two steps and saves a checkpoint as `run`.
fn save_run(dir: &TempDir) -> Trainer<Device> {
    let mut trainer = trainer(&device(), &cases()[0]);
    (0..2).for_each(|_| drop(step(&mut trainer).unwrap()));
    trainer.save(dir.file("run")).unwrap();
    trainer
}

/// Loads a checkpoint and drops the run.
fn resume(path: &Path) -> Result<(), Error> {
    Trainer::resume(&device(), path).map(drop)
}

/// Changes tensors and metadata of the checkpoint `run`, and returns the result of resuming from the changed file.
fn resume_changed(
    dir: &TempDir,
    change: impl FnOnce(&mut BTreeMap<String, ArrayD<f32>>, &mut BTreeMap<String, String>),
) -> Result<(), Error> {
    let mut dict = StateDict::open(dir.file("run")).unwrap();
    let names: Vec<_> = dict.names().map(str::to_owned).collect();
    let mut metadata = dict.metadata().clone();
    let mut tensors = names.into_iter().map(|n| (n.clone(), dict.take_any(&n).unwrap())).collect();
    change(&mut tensors, &mut metadata);
    let writer = metadata.into_iter().fold(StateDictWriter::new(), |writer, (key, value)| writer.metadata(key, value));
    let writer = tensors.into_iter().fold(writer, |writer, (name, value)| writer.tensor(name, &value).unwrap());
    writer.save(dir.file("changed")).unwrap();
    resume(&dir.file("changed"))
}

/// Checks that the error message contains all `parts`.
#[track_caller]
fn expect_error(result: Result<(), Error>, parts: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
}

#[test]
fn mismatched_tensors_are_named() {
    let dir = TempDir::new();
    save_run(&dir);
    resume_changed(&dir, |_, _| ()).unwrap();
    for name in ["lstm.weight_hh_l1", "lstm.bias_ih_l0", "head.weight", "head.bias", "optimizer.exp_avg_sq.head.bias"] {
        let removed = resume_changed(&dir, |tensors, _| drop(tensors.remove(name).unwrap()));
        expect_error(removed, &["missing", name]);
        let resized = resume_changed(&dir, |tensors, _| {
            let mut shape = tensors[name].shape().to_vec();
            shape[0] += 1;
            tensors.insert(name.into(), ArrayD::zeros(IxDyn(&shape)));
        });
        expect_error(resized, &[name, "expected shape", "found ["]);
    }
    for (name, message) in [
        ("lstm.weight_ih_l2", "unused tensors: lstm.weight_ih_l2"),
        ("lstm.weight_hr_l0", "unused tensors: lstm.weight_hr_l0"),
        ("optimizer.momentum.head.bias", "has no state `optimizer.momentum.head.bias`"),
        ("mine", "unused tensors: mine"),
    ] {
        let added = resume_changed(&dir, |tensors, _| drop(tensors.insert(name.into(), ArrayD::zeros(IxDyn(&[1])))));
        expect_error(added, &[message]);
    }
    let none = resume_changed(&dir, |tensors, _| tensors.clear());
    expect_error(none, &["missing", "lstm.weight_ih_l1", "4 tensors for 2 layers"]);
}

#[test]
fn invalid_metadata_is_named() {
    let dir = TempDir::new();
    save_run(&dir);
    for (key, value, parts) in [
        ("format", "3", &["version 1 or 2", "got `3`"][..]),
        ("format", "", &["version 1 or 2", "got ``"]),
        ("model", "NaN", &["expected lstm, got `NaN`"]),
        ("model", "lstm input_size=2 hidden_size=NaN", &["option hidden_size: expected a whole number, got `NaN`"]),
        ("model", "lstm input_size=2 hidden_size=6 num_layers=2 dropout=NaN", &["dropout", "got NaN"]),
        ("model", "lstm input_size=2 hidden_size=6 num_layers=2 clip=NaN", &["clip", "got NaN"]),
        ("model", "lstm input_size=2 hidden_size=6 num_layers=9999999", &["missing", "tensors for 9999999 layers"]),
        ("model", "lstm input_size=2 hidden_size=6", &["unused tensors", "lstm.weight_ih_l1"]),
        ("model", "lstm input_size=3 hidden_size=6 num_layers=2", &["lstm.weight_ih_l0", "[24, 3]", "[24, 2]"]),
        ("head", "none", &["unused tensors", "head.bias"]),
        ("head", "linear outputs=2 bias=true", &["head.weight", "[2, 6]", "[1, 6]"]),
        ("head", "linear outputs=1 bias=false", &["unused tensors", "head.bias"]),
        ("head", "linear outputs=NaN bias=true", &["option outputs: expected a whole number, got `NaN`"]),
        ("head", "conv outputs=1", &["expected linear, got `conv`"]),
        ("method", "adam eps=NaN", &["eps", "got NaN"]),
        ("method", "sgd", &["not trained with", "trainer.method", "optimizer.exp_avg.head.bias"]),
        ("method", "sgd momentum=0.9", &["missing", "optimizer.momentum.lstm.weight_ih_l0"]),
        ("schedule", "constant rate=NaN", &["rate", "got NaN"]),
        ("clip", "norm bound=NaN", &["clip", "got NaN"]),
        ("keep", "segments steps=31", &["checkpointing", "got 31"]),
        ("seed", "-1", &["trainer.seed", "`-1`", "invalid digit"]),
        ("steps", "NaN", &["trainer.steps", "`NaN`", "invalid digit"]),
        ("steps", "0", &["unused tensors", "optimizer.exp_avg.head.bias"]),
        ("colour", "blue", &["unknown metadata key `trainer.colour`"]),
    ] {
        let key = format!("trainer.{key}");
        let result = resume_changed(&dir, |_, metadata| {
            metadata.remove(CONFIG);
            metadata.insert(key.clone(), value.into());
        });
        expect_error(result, parts);
    }
    for (value, parts) in [
        ("lstm input_size=2 hidden_size=6 num_layers=2", ["`trainer.model`", "dropout=0.25", CONFIG, "dropout=0.0"]),
        ("lstm input_size=2", ["metadata", CONFIG, "hidden_size", ""]),
    ] {
        expect_error(resume_changed(&dir, |_, metadata| drop(metadata.insert(CONFIG.into(), value.into()))), &parts);
    }
    let keys: Vec<_> = StateDict::open(dir.file("run")).unwrap().metadata().keys().cloned().collect();
    assert_eq!(keys.len(), 10);
    for key in keys.into_iter().filter(|key| key != CONFIG) {
        expect_error(resume_changed(&dir, |_, metadata| drop(metadata.remove(&key))), &["changed", &key]);
    }
}

#[test]
fn rejects_files_that_are_not_checkpoints() {
    let dir = TempDir::new();
    let trainer = save_run(&dir);
    let bytes = fs::read(dir.file("run")).unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(dir.file("cut"), &bytes[..len]).unwrap();
        let error = resume(&dir.file("cut")).unwrap_err();
        assert!(matches!(&error, Error::Format { input, .. } if input.ends_with("cut")), "{len}: {error}");
    }
    fs::write(dir.file("text"), "no model at all").unwrap();
    assert!(matches!(resume(&dir.file("text")), Err(Error::Format { .. })));
    assert!(matches!(resume(&dir.file("nothing")), Err(Error::Io { path, .. }) if path.ends_with("nothing")));
    assert!(matches!(resume(dir.path()), Err(Error::Io { .. })));
    trainer.save_model(dir.file("model"), &BTreeMap::new()).unwrap();
    expect_error(resume(&dir.file("model")), &["model", "not a checkpoint", "trainer.format"]);
}

#[test]
fn resuming_with_another_model_names_the_different_option() {
    let dir = TempDir::new();
    save_run(&dir);
    let config = cases()[0].0.clone();
    let resume_as = |config: &LstmConfig, outputs| Trainer::resume_as(&device(), dir.file("run"), config, outputs);
    assert!(resume_as(&config, Some(1)).is_ok());
    let relu = GateActivations { candidate: GateActivation::Relu, ..GateActivations::default() };
    for (config, outputs, expected_option, want, got) in [
        (LstmConfig::new(3, 6).layers(2).dropout(0.25), Some(1), "input_size", "3", "2"),
        (LstmConfig::new(2, 7).layers(2).dropout(0.25), Some(1), "hidden_size", "7", "6"),
        (LstmConfig::new(2, 6).layers(3).dropout(0.25), Some(1), "num_layers", "3", "2"),
        (config.clone().bidirectional(), Some(1), "direction", "bidirectional", "forward"),
        (config.clone().cell(CellKind::Unfused), Some(1), "cell", "unfused", "fused"),
        (config.clone().bias(Bias::One), Some(1), "bias", "one", "two"),
        (config.clone().proj_size(3), Some(1), "proj_size", "3", "none"),
        (config.clone().coupled(), Some(1), "coupled", "true", "false"),
        (config.clone().clip(1.0), Some(1), "clip", "1.0", "none"),
        (config.clone().dropout(0.5), Some(1), "dropout", "0.5", "0.25"),
        (config.clone().activations(relu), Some(1), "activations", "sigmoid/relu/tanh", "sigmoid/tanh/tanh"),
        (config.clone(), Some(2), "head", "one with 2 outputs", "one with 1 outputs"),
        (config, None, "head", "none", "one with 1 outputs"),
    ] {
        match resume_as(&config, outputs) {
            Err(Error::Config { option, reason }) => {
                assert_eq!(option, expected_option);
                let start = format!("expected {want}, got {got} in the checkpoint ");
                assert!(reason.starts_with(&start) && reason.ends_with("run"), "{reason}");
            }
            other => panic!("{expected_option}: {other:?}"),
        }
    }
}

#[test]
fn failed_save_leaves_files_unchanged() {
    let dir = TempDir::new();
    let trainer = save_run(&dir);
    let file_count = || fs::read_dir(dir.path()).unwrap().count();
    let unwritable_path = dir.file("no-such-folder").join("run");
    for result in [trainer.save(&unwritable_path), trainer.save_model(&unwritable_path, &BTreeMap::new())] {
        assert!(matches!(result, Err(Error::Io { path, .. }) if path == unwritable_path));
    }
    assert!(trainer.save(dir.path()).is_err(), "a directory is not a file");
    assert!(trainer.save("").is_err());
    assert_eq!((file_count(), unwritable_path.exists()), (1, false));

    let before = fs::read(dir.file("run")).unwrap();
    let reserved = BTreeMap::from([("trainer.steps".to_string(), "9".to_string())]);
    let extras = CheckpointExtras::default().with_text(reserved.clone());
    for result in [trainer.save_with(dir.file("run"), &extras), trainer.save_model(dir.file("run"), &reserved)] {
        expect_error(result, &["metadata", "`trainer.`", "`trainer.steps`"]);
    }
    assert_eq!((fs::read(dir.file("run")).unwrap(), file_count()), (before, 1));
}

#[test]
fn saved_model_uses_pytorch_names_and_loads_on_another_backend() {
    let dir = TempDir::new();
    let trainer = save_run(&dir);
    let metadata = BTreeMap::from([("data".to_string(), "waves, \"all\" of them".to_string())]);
    trainer.save_model(dir.file("model"), &metadata).unwrap();
    let mut dict = StateDict::open(dir.file("model")).unwrap();
    let config = (CONFIG.to_owned(), trainer.lstm().config().to_string());
    assert_eq!(dict.metadata(), &metadata.into_iter().chain([config]).collect());
    let names: Vec<_> = dict.names().map(str::to_owned).collect();
    let layer = |k| ["bias_hh", "bias_ih", "weight_hh", "weight_ih"].map(|stem| (stem, k));
    let mut want: Vec<_> = [layer(0), layer(1)].concat().iter().map(|(stem, k)| format!("lstm.{stem}_l{k}")).collect();
    want.extend(["head.bias".into(), "head.weight".into()]);
    want.sort();
    assert_eq!(names, want);
    let weights = dict.take_lstm("lstm.").unwrap();
    let head = Linear::take(&Cpu::new(), &mut dict, "head.").unwrap();
    dict.finish().unwrap();
    assert_eq!(&weights, trainer.lstm().weights());
    assert_eq!(Some(head.weight()), trainer.head().map(Linear::weight));
}

#[test]
fn large_claimed_layer_count_is_rejected() {
    let dir = TempDir::new();
    save_run(&dir);
    let result = resume_changed(&dir, |tensors, metadata| {
        let model = metadata.get_mut("trainer.model").unwrap();
        *model = model.replace("num_layers=2", "num_layers=16777216");
        assert!(model.contains("16777216"));
        metadata.remove(CONFIG);
        tensors.insert("lstm.weight_ih_l16777215".into(), ArrayD::zeros(IxDyn(&[4, 1])));
    });
    expect_error(result, &["missing", "lstm.weight_ih_l16777215", "16777216 layers"]);
}

#[test]
fn incomplete_state_is_an_error() {
    let config = LstmConfig::new(2, 3);
    let mut incomplete = extras(&config, 1);
    incomplete.tensors.remove("state.h");
    assert!(matches!(incomplete.take_state(), Err(Error::MissingTensor { name, .. }) if name == "state.h"));
    incomplete.tensors.insert("state.h".into(), ArrayD::zeros(IxDyn(&[3])));
    expect_error(incomplete.take_state().map(drop), &["take_state", "[3]"]);
    assert_eq!(incomplete.tensors.len(), 2);
}

#[test]
fn config_can_be_changed_during_a_run() {
    let dir = TempDir::new();
    let mut trainer = save_run(&dir);
    let kept = trainer.lstm().weights().clone();
    let other = |method: OptimizerConfig| TrainerConfig::new(method, Schedule::constant(0.5));
    trainer.set_config(other(trainer.config().optimizer.clone())).unwrap();
    assert!(*trainer.lstm().weights() == kept && (trainer.learning_rate(), trainer.steps()) == (0.5, 2));
    step(&mut trainer).unwrap();
    let (lstm, head) = trainer.into_parts();
    assert_eq!(head.unwrap().input_size(), lstm.config().output_size());
}

/// A trainer with this optimizer, after some steps.
fn trained_with(optimizer: OptimizerConfig, steps: usize) -> Trainer<Device> {
    let (config, head, _) = cases()[0].clone();
    let mut trainer = trainer(&device(), &(config, head, TrainerConfig::new(optimizer, Schedule::constant(0.01))));
    (0..steps).for_each(|_| drop(step(&mut trainer).unwrap()));
    trainer
}

#[test]
fn another_optimizer_needs_the_same_state_or_a_new_run() {
    let with = |optimizer| TrainerConfig::new(optimizer, Schedule::constant(0.01));
    for (first, same_state, other, parts) in [
        (
            OptimizerConfig::adam(),
            OptimizerConfig::adamw(),
            OptimizerConfig::sgd(),
            [
                "trained with `adam beta1=0.9",
                "exp_avg and exp_avg_sq, got `sgd momentum=0.0",
                "has no state",
                "adam or adamw",
            ],
        ),
        (
            OptimizerConfig::momentum(0.5),
            OptimizerConfig::nesterov(0.9),
            OptimizerConfig::adam(),
            ["trained with `sgd momentum=0.5", "the state momentum, got `adam beta1", "exp_avg", "sgd with momentum"],
        ),
        (
            OptimizerConfig::sgd(),
            OptimizerConfig::sgd().weight_decay(0.1),
            OptimizerConfig::momentum(0.5),
            ["trained with `sgd momentum=0.0", "no state, got `sgd momentum=0.5", "momentum", "sgd without momentum"],
        ),
    ] {
        let mut trainer = trained_with(first.clone(), 2);
        let before = bits(&trainer);
        expect_error(trainer.set_config(with(other.clone())), &parts);
        expect_error(trainer.set_config(with(other.clone())), &["Trainer::into_parts", "Trainer::new"]);
        assert_eq!((bits(&trainer), &trainer.config().optimizer), (before, &first));

        // What the error suggests.
        trainer.set_config(with(same_state)).unwrap();
        assert_eq!(step(&mut trainer).unwrap().step, 3);
        let (lstm, head) = trainer.into_parts();
        let mut trainer = Trainer::new(lstm, head, with(other.clone())).unwrap();
        assert_eq!(step(&mut trainer).unwrap().step, 1);

        // Before the first step there is no state.
        let mut trainer = trained_with(first, 0);
        trainer.set_config(with(other)).unwrap();
        assert_eq!(step(&mut trainer).unwrap().step, 1);
    }
}

#[test]
fn a_checkpoint_of_another_optimizer_is_named() {
    let dir = TempDir::new();
    let trainer = trained_with(OptimizerConfig::adam(), 2);
    trainer.save(dir.file("run")).unwrap();
    let resume_as = |optimizer: OptimizerConfig| {
        resume_changed(&dir, |_, metadata| drop(metadata.insert("trainer.method".into(), optimizer.to_string())))
    };
    let parts = ["trainer.method", "`sgd momentum=0.0", "not trained with", "`optimizer.exp_avg.head.bias`"];
    expect_error(resume_as(OptimizerConfig::sgd()), &parts);
    resume_as(OptimizerConfig::adam()).unwrap();
}

#[test]
fn a_checkpoint_read_as_a_model_says_so() {
    let dir = TempDir::new();
    let trainer = save_run(&dir);
    let open = || StateDict::open(dir.file("run")).unwrap();
    assert_eq!(open().lstm_prefixes(), ["lstm."]);
    for prefix in ["", "model.", "lstm"] {
        let parts =
            ["an LSTM with the prefix `lstm.`", "training checkpoint", "Trainer::resume", "with the prefix `lstm.`"];
        expect_error(open().take_lstm(prefix).map(drop), &parts);
    }
    let mut dict = open();
    assert_eq!(&dict.take_lstm("lstm.").unwrap(), trainer.lstm().weights());
    let head = Linear::take(&device(), &mut dict, "head.").unwrap();
    assert_eq!(head.weight(), trainer.head().unwrap().weight());
    let parts = ["unused tensors: optimizer.exp_avg.head.bias, ", "training checkpoint", "Trainer::resume"];
    expect_error(dict.finish(), &parts);
    resume(&dir.file("run")).unwrap();
}

#[test]
fn a_model_without_a_run_says_how_to_read_it() {
    let dir = TempDir::new();
    let trainer = save_run(&dir);
    trainer.save_model(dir.file("model"), &BTreeMap::new()).unwrap();
    expect_error(
        resume(&dir.file("model")),
        &["not a checkpoint", "StateDict::take_lstm", "Linear::take", "Trainer::new"],
    );
    let mut dict = StateDict::open(dir.file("model")).unwrap();
    let weights = dict.take_lstm("lstm.").unwrap();
    let head = Linear::take(&device(), &mut dict, "head.").unwrap();
    dict.finish().unwrap();
    let lstm = Lstm::new(&device(), weights).unwrap();
    let mut trainer = Trainer::new(lstm, Some(head), trainer.config().clone()).unwrap();
    assert_eq!(step(&mut trainer).unwrap().step, 1);
}
