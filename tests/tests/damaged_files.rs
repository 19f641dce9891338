//! Damaged files: whatever happens to a file that this library wrote, reading it is an error or gives what was written.

use std::{collections::BTreeMap, fs, path::Path, sync::LazyLock};

use lstm_core::{
    Error, Init, LstmConfig, Model, ModelLayer, ModelWeights, Precision, Result, StateDict, StateDictWriter,
    TensorNames, Weights,
    ndarray::Array2,
    train::{LossInput, ModelTrainer, OptimizerConfig, Schedule, Trainer, TrainerConfig, mean_squared_error},
};
use lstm_cpu::Cpu;
use lstm_tests::malformed::{Folder, without_checksum};

static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::new);

/// A kind of file that this library writes: its name, its bytes, and how it is read.
struct Kind {
    name: &'static str,
    bytes: Vec<u8>,
    read: fn(&Path) -> Result<()>,
}

fn weights(config: LstmConfig) -> Result<Weights> {
    Weights::init(config, &Init::default(), 3)
}

fn model() -> Result<ModelWeights> {
    let lstm = weights(LstmConfig::new(1, 2).clip(2.0))?.into();
    let metadata = BTreeMap::from([("author".to_owned(), "\"a\", lstm.checksum: none".to_owned())]);
    let layers = vec![
        ModelLayer::Lstm { name: "rec".into(), weights: lstm, initial_state: None },
        ModelLayer::Linear { name: "lin".into(), weight: Array2::from_elem((1, 2), 0.75), bias: None },
    ];
    Ok(ModelWeights::new(layers)?.with_metadata(metadata))
}

fn trainer_config() -> TrainerConfig {
    TrainerConfig::new(OptimizerConfig::momentum(0.9), Schedule::constant(0.001))
}

/// Writes a file in the place of another, which goes away first: some file systems write new content of an old file to
/// the disk at once, which takes a millisecond.
fn write_new(path: &Path, bytes: &[u8]) {
    let _ = fs::remove_file(path);
    fs::write(path, bytes).unwrap();
}

/// All kinds, after a training step where there is one.
fn kinds(folder: &Path) -> Result<Vec<Kind>> {
    let path = folder.join("written");
    let plain = weights(LstmConfig::new(1, 2).coupled())?;
    let plain = StateDictWriter::new().lstm("a.", &plain, TensorNames::PyTorch)?.to_bytes()?;
    let lstm = lstm_core::Lstm::new(&*CPU, weights(LstmConfig::new(1, 1))?)?;
    let mut trainer = Trainer::new(lstm, None, trainer_config())?;
    let x = lstm_core::ndarray::Array3::from_elem((1, 3, 1), 0.5f32);
    trainer.step(&x, LossInput::Outputs, |out, _| mean_squared_error(out.y()?, x.view()))?;
    trainer.save(&path)?;
    let checkpoint = fs::read(&path).unwrap();
    let mut trainer = ModelTrainer::new(Model::new(&*CPU, model()?)?, trainer_config())?;
    trainer.step(&x, |out, _| mean_squared_error(out.y()?, x.view()))?;
    trainer.save(&path)?;
    let model_checkpoint = fs::read(&path).unwrap();
    Ok(vec![
        Kind { name: "weights", bytes: plain, read: |path| StateDict::open(path)?.take_lstm("a.").map(drop) },
        Kind { name: "model", bytes: model()?.to_bytes()?, read: |path| ModelWeights::open(path).map(drop) },
        Kind {
            name: "quantized model",
            bytes: model()?.quantize(Precision::Int8)?.to_bytes()?,
            read: |path| lstm_formats::open(path, &Default::default()).map(drop),
        },
        Kind { name: "checkpoint", bytes: checkpoint, read: |path| Trainer::resume(&*CPU, path).map(drop) },
        Kind {
            name: "checkpoint of a model",
            bytes: model_checkpoint,
            read: |path| ModelTrainer::resume(&*CPU, path).map(drop),
        },
    ])
}

#[test]
fn every_flip_and_cut_is_an_error() {
    let folder = Folder::new("damaged");
    let path = folder.0.join("damaged");
    for Kind { name, bytes, read } in kinds(&folder.0).unwrap() {
        let result = |bytes: &[u8]| {
            write_new(&path, bytes);
            read(&path)
        };
        result(&bytes).unwrap();
        for at in 0..bytes.len() {
            // All readers parse a file with `from_bytes`. So a part of the damage goes through a file, which takes longer.
            let through_file = at < 16 || at % 8 == 0;
            let is_error = |bytes: &[u8]| match through_file {
                true => result(bytes).is_err(),
                false => StateDict::from_bytes(bytes.to_vec()).is_err(),
            };
            assert!(is_error(&bytes[..at]), "{name}: cut to {at} bytes");
            let byte = bytes[at];
            for value in [byte ^ 1, byte ^ 0x20, byte ^ 0x80, !byte, b'"', b'0'] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let is_ok = value == byte || is_error(&changed);
                assert!(is_ok, "{name}: {value:#x} instead of {byte:#x} at {at} was accepted");
            }
            // A sector that was never written.
            let mut changed = bytes.clone();
            changed[at..bytes.len().min(at + 64)].fill(0);
            assert!(changed == bytes || is_error(&changed), "{name}: zeros at {at} were accepted");
        }
        assert!(result(&[&bytes[..], &[0]].concat()).is_err(), "{name}: a byte more");
    }
}

#[test]
fn the_error_says_what_to_do() {
    let folder = Folder::new("messages");
    let path = folder.0.join("damaged");
    for Kind { name, mut bytes, read } in kinds(&folder.0).unwrap() {
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, bytes).unwrap();
        let error = read(&path).unwrap_err();
        assert!(matches!(error, Error::Format { .. }), "{name}: {error:?}");
        let error = error.to_string();
        let start = format!("{}: the file is damaged: expected content with the checksum `", path.display());
        assert!(error.starts_with(&start) && error.contains("copy the file again"), "{name}: {error}");
    }
}

/// Files of PyTorch and of old versions have none; checkpoints without one have another version.
#[test]
fn only_checkpoints_need_a_checksum() {
    let folder = Folder::new("without");
    let path = folder.0.join("file");
    for Kind { name, bytes, read } in kinds(&folder.0).unwrap() {
        let bytes = without_checksum(&bytes);
        fs::write(&path, &bytes).unwrap();
        let result = read(&path);
        if !name.starts_with("checkpoint") {
            result.unwrap();
            continue;
        }
        let error = result.unwrap_err().to_string();
        assert!(error.contains("damaged") && error.contains("`lstm.checksum`"), "{name}: {error}");
        let version = b"\"trainer.format\":\"2\"";
        let at = bytes.windows(version.len()).position(|part| part == version).unwrap() + version.len() - 2;
        fs::write(&path, [&bytes[..at], b"1", &bytes[at + 1..]].concat()).unwrap();
        read(&path).unwrap();
    }
}

/// Without the checksum, damage reaches the readers, which must not panic.
#[test]
fn damage_without_a_checksum_does_not_panic() {
    let folder = Folder::new("panic");
    let path = folder.0.join("file");
    for Kind { name: _, bytes, read } in kinds(&folder.0).unwrap() {
        let bytes = without_checksum(&bytes);
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for at in 0..header {
            for bit in [0, 2, 4] {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                write_new(&path, &bytes);
                let _ = read(&path);
            }
        }
    }
}

#[test]
fn the_checksum_is_not_the_callers() {
    let x = lstm_core::ndarray::array![1.0f32];
    for (key, value) in [("lstm.checksum", "x"), ("other", "lstm-crc32:00000000")] {
        let writer = StateDictWriter::new().metadata(key, value).tensor("x", &x).unwrap();
        let error = writer.to_bytes().unwrap_err().to_string();
        assert!(error.contains(key) && error.contains("checksum"), "{error}");
    }
    let bytes = StateDictWriter::new().tensor("x", &x).unwrap().to_bytes().unwrap();
    assert!(StateDict::from_bytes(bytes).unwrap().metadata().is_empty(), "metadata that are copied have none");
}
