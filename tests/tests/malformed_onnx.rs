//! Hostile ONNX files: whatever the bytes, an error or a model, quickly, never a panic.

use std::sync::LazyLock;

use lstm_core::{CellKind, Init, LstmConfig, Result, Weights};
use lstm_cpu::Cpu;
use lstm_formats::OnnxWriter;
use lstm_tests::malformed;
use proptest::prelude::*;

static CPU: LazyLock<Cpu> = LazyLock::new(Cpu::new);

/// A small file with all that is written: layers, states, lengths, peepholes, dropout.
static SMALL: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let config = LstmConfig::new(1, 1).layers(2).dropout(0.5).cell(CellKind::PeepholeDiagonal).clip(2.0).coupled();
    let weights = Weights::init(config, &Init::default(), 11).unwrap();
    OnnxWriter::new(&weights).initial_state().lengths().to_bytes().unwrap()
});

/// A file of PyTorch's exporter, with the nodes that ours does not write.
const EXPORTED: &[u8] = include_bytes!("../data/onnx/pytorch-dynamo-dynamic-batch-first.onnx");

fn devour(bytes: &[u8]) -> Result<()> {
    malformed::onnx(&*CPU, bytes)
}

#[test]
fn truncated_files_are_refused() {
    for whole in [&SMALL[..], EXPORTED] {
        devour(whole).unwrap();
        // Fields may come in any order, so a file that ends between two of them is only incomplete.
        let last = whole.len() - 1;
        for len in 0..last {
            assert!(devour(&whole[..len]).is_err(), "cut to {len} of {}", whole.len());
        }
        assert!(devour(&[whole, &[0]].concat()).is_err(), "one byte more");
    }
    assert!(devour(&[]).is_err());
}

/// Messages within messages, deeper than any stack.
#[test]
fn nesting_is_bounded() {
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
    assert!(devour(&bytes).is_err());
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
        let _ = devour(&bytes);
    }

    #[test]
    fn parts_that_are_moved_never_panic(
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
        let _ = devour(&bytes);
    }
}
