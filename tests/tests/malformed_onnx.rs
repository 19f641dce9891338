//! Malformed ONNX files: reading returns an error or a model in a short time, and never panics.

use std::sync::LazyLock;

use lstm_core::{CellKind, Init, LstmConfig, Result, Weights};
use lstm_cpu::Cpu;
use lstm_formats::OnnxWriter;
use lstm_tests::malformed;
use proptest::prelude::*;

static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::new);

/// A small file with everything that the writer supports: layers, states, lengths, peepholes and dropout.
static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let config = LstmConfig::new(1, 1).layers(2).dropout(0.5).cell(CellKind::PeepholeDiagonal).clip(2.0).coupled();
    let weights = Weights::init(config, &Init::default(), 11).unwrap();
    OnnxWriter::new(&weights).initial_state().lengths().to_bytes().unwrap()
});

/// A file from PyTorch's exporter with nodes that the writer does not use.
const EXPORTED: &[u8] = include_bytes!("../data/onnx/pytorch-dynamo-dynamic-batch-first.onnx");

/// Reads a file and runs its model.
fn read(bytes: &[u8]) -> Result<()> {
    malformed::check_onnx(&*CPU, bytes)
}

#[test]
fn rejects_truncated_files() {
    for whole in [&SMALL[..], EXPORTED] {
        read(whole).unwrap();
        // A file that ends between two fields is valid protobuf, but the model is incomplete.
        let last = whole.len() - 1;
        for len in 0..last {
            assert!(read(&whole[..len]).is_err(), "cut to {len} of {}", whole.len());
        }
        assert!(read(&[whole, &[0]].concat()).is_err(), "with an additional byte");
    }
    assert!(read(&[]).is_err());
}

/// Messages that are nested more deeply than the stack allows.
#[test]
fn rejects_deep_nesting() {
    let mut bytes = Vec::new();
    for _ in 0..5_000 {
        let mut outer = vec![0x0a];
        let mut len = bytes.len();
        while len >= 128 {
            outer.push(len as u8 | 128);
            len >>= 7;
        }
        outer.push(len as u8);
        outer.append(&mut bytes);
        bytes = outer;
    }
    assert!(read(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn flipped_bytes_never_panic(
        exported in any::<bool>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = if exported { EXPORTED.to_vec() } else { SMALL.clone() };
        for (at, value) in flips {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        let _ = read(&bytes);
    }

    #[test]
    fn moved_bytes_never_panic(
        exported in any::<bool>(),
        from in any::<prop::sample::Index>(),
        to in any::<prop::sample::Index>(),
        len in 1..200usize,
    ) {
        let mut bytes = if exported { EXPORTED.to_vec() } else { SMALL.clone() };
        let from = from.index(bytes.len());
        let part: Vec<u8> = bytes.drain(from..bytes.len().min(from + len)).collect();
        let to = to.index(bytes.len() + 1);
        bytes.splice(to..to, part);
        let _ = read(&bytes);
    }
}
