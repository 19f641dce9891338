//! Runs in files: one that was killed goes on with the same bits, and what is not such a file is refused by name.

#[allow(dead_code, reason = "each test uses a part")]
mod common;

use std::{collections::BTreeMap, fs, path::Path};

use common::{Device, Files, bits, cases, device, step, step_bits, trainer};
use lstm_cpu::{
    Backend, Bias, CellKind, Cpu, Error, HostState, LstmConfig, StateDict, StateDictWriter,
    ndarray::{ArrayD, IxDyn},
    train::{CheckpointExtras, Linear, OptimizerConfig, Schedule, Trainer, TrainerConfig},
};

/// What a program might keep beside a run after `k` steps.
fn extras(config: &LstmConfig, k: usize) -> CheckpointExtras {
    let mut state = HostState::zeros(config, 2).unwrap();
    state.c.fill(k as f32);
    let text = BTreeMap::from([("at".into(), k.to_string())]);
    CheckpointExtras { text, ..CheckpointExtras::default() }.with_state(&state)
}

fn resumed_runs_have_the_same_bits<B: Backend>(b: &B) {
    for (n, case) in cases().iter().enumerate() {
        let files = Files::new();
        let mut whole = trainer(b, case);
        let mut steps = Vec::new();
        for k in 0..7 {
            let name = format!("after-{k}");
            whole.save_with(files.at(&name), &extras(whole.lstm().config(), k)).unwrap();
            steps.push(step_bits(&step(&mut whole).unwrap()));
        }
        for killed in [0, 1, 3, 6] {
            let (mut run, mut added) = Trainer::resume(b, files.at(&format!("after-{killed}"))).unwrap();
            let want = extras(run.lstm().config(), killed);
            assert_eq!(added, want);
            assert_eq!(added.take_state().unwrap(), want.clone().take_state().unwrap());
            assert!(added.tensors.is_empty() && added.take_state().unwrap().is_none());
            assert_eq!((run.steps(), run.config()), (killed as u64, &case.2));
            assert_eq!(run.lstm().config(), &case.0);
            for want in &steps[killed..] {
                assert_eq!(step_bits(&step(&mut run).unwrap()), *want, "case {n}, killed after {killed}");
            }
            assert_eq!(bits(&run), bits(&whole), "case {n}, killed after {killed}");
        }
    }
}

#[test]
fn a_run_that_was_killed_ends_with_the_same_bits() {
    resumed_runs_have_the_same_bits(&Cpu::new());
    resumed_runs_have_the_same_bits(&device());
}

/// The first case's run after two steps, in a file.
/// What a file's metadata call the options that tensors don't tell, here dropout.
const CONFIG: &str = "lstm.lstm.config";

fn saved(files: &Files) -> Trainer<Device> {
    let mut trainer = trainer(&device(), &cases()[0]);
    (0..2).for_each(|_| drop(step(&mut trainer).unwrap()));
    trainer.save(files.at("run")).unwrap();
    trainer
}

fn resume(path: &Path) -> Result<(), Error> {
    Trainer::resume(&device(), path).map(drop)
}

/// Changes tensors and metadata of a file and says what `resume` makes of it.
fn changed(
    files: &Files,
    change: impl FnOnce(&mut BTreeMap<String, ArrayD<f32>>, &mut BTreeMap<String, String>),
) -> Result<(), Error> {
    let mut dict = StateDict::open(files.at("run")).unwrap();
    let names: Vec<_> = dict.names().map(str::to_owned).collect();
    let mut metadata = dict.metadata().clone();
    let mut tensors = names.into_iter().map(|n| (n.clone(), dict.take_any(&n).unwrap())).collect();
    change(&mut tensors, &mut metadata);
    let writer = metadata.into_iter().fold(StateDictWriter::new(), |writer, (key, value)| writer.metadata(key, value));
    let writer = tensors.into_iter().fold(writer, |writer, (name, value)| writer.tensor(name, &value).unwrap());
    writer.save(files.at("changed")).unwrap();
    resume(&files.at("changed"))
}

#[track_caller]
fn names(result: Result<(), Error>, parts: &[&str]) {
    let error = result.unwrap_err().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}: {parts:?}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let files = Files::new();
    saved(&files);
    changed(&files, |_, _| ()).unwrap();
    for name in ["lstm.weight_hh_l1", "lstm.bias_ih_l0", "head.weight", "head.bias", "optimizer.exp_avg_sq.head.bias"] {
        let gone = changed(&files, |tensors, _| drop(tensors.remove(name).unwrap()));
        names(gone, &["missing", name]);
        let grown = changed(&files, |tensors, _| {
            let mut shape = tensors[name].shape().to_vec();
            shape[0] += 1;
            tensors.insert(name.into(), ArrayD::zeros(IxDyn(&shape)));
        });
        names(grown, &[name, "expected shape", "found ["]);
    }
    for name in ["lstm.weight_ih_l2", "lstm.weight_hr_l0", "optimizer.momentum.head.bias", "mine"] {
        let more = changed(&files, |tensors, _| drop(tensors.insert(name.into(), ArrayD::zeros(IxDyn(&[1])))));
        names(more, &["unused tensors", name]);
    }
    let none = changed(&files, |tensors, _| tensors.clear());
    names(none, &["missing", "lstm.weight_ih_l1", "4 tensors for 2 layers"]);
}

#[test]
fn text_that_does_not_fit_is_named() {
    let files = Files::new();
    saved(&files);
    for (key, value, parts) in [
        ("format", "2", &["version 1", "got `2`"][..]),
        ("format", "", &["version 1", "got ``"]),
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
        ("method", "sgd", &["unused tensors", "optimizer.exp_avg.head.bias"]),
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
        let result = changed(&files, |_, metadata| {
            metadata.remove(CONFIG);
            metadata.insert(key.clone(), value.into());
        });
        names(result, parts);
    }
    for (value, parts) in [
        ("lstm input_size=2 hidden_size=6 num_layers=2", ["`trainer.model`", "dropout=0.25", CONFIG, "dropout=0.0"]),
        ("lstm input_size=2", ["metadata", CONFIG, "hidden_size", ""]),
    ] {
        names(changed(&files, |_, metadata| drop(metadata.insert(CONFIG.into(), value.into()))), &parts);
    }
    let keys: Vec<_> = StateDict::open(files.at("run")).unwrap().metadata().keys().cloned().collect();
    assert_eq!(keys.len(), 10);
    for key in keys.into_iter().filter(|key| key != CONFIG) {
        names(changed(&files, |_, metadata| drop(metadata.remove(&key))), &["changed", &key]);
    }
}

#[test]
fn files_that_are_no_checkpoints_are_refused() {
    let files = Files::new();
    let trainer = saved(&files);
    let bytes = fs::read(files.at("run")).unwrap();
    for len in [0, 7, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(files.at("cut"), &bytes[..len]).unwrap();
        let error = resume(&files.at("cut")).unwrap_err();
        assert!(matches!(&error, Error::Format { what, .. } if what.ends_with("cut")), "{len}: {error}");
    }
    fs::write(files.at("text"), "no model at all").unwrap();
    assert!(matches!(resume(&files.at("text")), Err(Error::Format { .. })));
    assert!(matches!(resume(&files.at("nothing")), Err(Error::Io { path, .. }) if path.ends_with("nothing")));
    assert!(matches!(resume(files.path()), Err(Error::Io { .. })));
    trainer.save_model(files.at("model"), &BTreeMap::new()).unwrap();
    names(resume(&files.at("model")), &["model", "not a checkpoint", "trainer.format"]);
}

#[test]
fn another_model_is_refused_by_the_option_that_differs() {
    let files = Files::new();
    saved(&files);
    let config = cases()[0].0.clone();
    let as_other = |config: &LstmConfig, outputs| Trainer::resume_as(&device(), files.at("run"), config, outputs);
    assert!(as_other(&config, Some(1)).is_ok());
    for (config, outputs, named, want, got) in [
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
        (config.clone(), Some(2), "head", "one with 2 outputs", "one with 1 outputs"),
        (config, None, "head", "none", "one with 1 outputs"),
    ] {
        match as_other(&config, outputs) {
            Err(Error::Config { option, reason }) => {
                assert_eq!(option, named);
                let start = format!("expected {want}, got {got} in the checkpoint ");
                assert!(reason.starts_with(&start) && reason.ends_with("run"), "{reason}");
            }
            other => panic!("{named}: {other:?}"),
        }
    }
}

#[test]
fn files_are_replaced_whole_or_not_at_all() {
    let files = Files::new();
    let trainer = saved(&files);
    let listed = || fs::read_dir(files.path()).unwrap().count();
    let away = files.at("no-such-folder").join("run");
    for result in [trainer.save(&away), trainer.save_model(&away, &BTreeMap::new())] {
        assert!(matches!(result, Err(Error::Io { path, .. }) if path == away));
    }
    assert!(trainer.save(files.path()).is_err(), "a folder is no file");
    assert!(trainer.save("").is_err());
    assert_eq!((listed(), away.exists()), (1, false));

    let before = fs::read(files.at("run")).unwrap();
    let taken = BTreeMap::from([("trainer.steps".to_string(), "9".to_string())]);
    let extras = CheckpointExtras { text: taken.clone(), ..CheckpointExtras::default() };
    for result in [trainer.save_with(files.at("run"), &extras), trainer.save_model(files.at("run"), &taken)] {
        names(result, &["metadata", "`trainer.`", "`trainer.steps`"]);
    }
    assert_eq!((fs::read(files.at("run")).unwrap(), listed()), (before, 1));
}

#[test]
fn a_model_s_file_holds_pytorch_s_names_and_any_backend_reads_it() {
    let files = Files::new();
    let trainer = saved(&files);
    let mine = BTreeMap::from([("data".to_string(), "waves, \"all\" of them".to_string())]);
    trainer.save_model(files.at("model"), &mine).unwrap();
    let mut dict = StateDict::open(files.at("model")).unwrap();
    let config = (CONFIG.to_owned(), trainer.lstm().config().to_string());
    assert_eq!(dict.metadata(), &mine.into_iter().chain([config]).collect());
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
fn layers_that_a_file_only_claims_are_not_listed() {
    let files = Files::new();
    saved(&files);
    let claimed = changed(&files, |tensors, metadata| {
        let model = metadata.get_mut("trainer.model").unwrap();
        *model = model.replace("num_layers=2", "num_layers=16777216");
        assert!(model.contains("16777216"));
        metadata.remove(CONFIG);
        tensors.insert("lstm.weight_ih_l16777215".into(), ArrayD::zeros(IxDyn(&[4, 1])));
    });
    names(claimed, &["missing", "lstm.weight_ih_l16777215", "16777216 layers"]);
}

#[test]
fn half_a_state_is_an_error() {
    let config = LstmConfig::new(2, 3);
    let mut half = extras(&config, 1);
    half.tensors.remove("state.h");
    assert!(matches!(half.take_state(), Err(Error::MissingTensor { name, .. }) if name == "state.h"));
    half.tensors.insert("state.h".into(), ArrayD::zeros(IxDyn(&[3])));
    names(half.take_state().map(drop), &["take_state", "[3]"]);
    assert_eq!(half.tensors.len(), 2);
}

#[test]
fn a_run_may_go_on_with_other_settings() {
    let files = Files::new();
    let mut trainer = saved(&files);
    let kept = trainer.lstm().weights().clone();
    let other = |method: OptimizerConfig| TrainerConfig::new(method, Schedule::constant(0.5));
    trainer.set_config(other(trainer.config().optimizer.clone())).unwrap();
    assert!(*trainer.lstm().weights() == kept && (trainer.learning_rate(), trainer.steps()) == (0.5, 2));
    let odd = if trainer.config().optimizer == OptimizerConfig::sgd() {
        OptimizerConfig::adam()
    } else {
        OptimizerConfig::sgd()
    };
    names(trainer.set_config(other(odd)), &["optimizer", "state arrays"]);
    step(&mut trainer).unwrap();
    let (lstm, head) = trainer.into_parts();
    assert_eq!(head.unwrap().input_size(), lstm.config().output_size());
}
