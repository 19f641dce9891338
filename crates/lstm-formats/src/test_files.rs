//! Compares models that were read from files with the outputs of the programs that wrote them.

use std::path::{Path, PathBuf};

use lstm_core::{
    StateDict,
    ndarray::{Array2, Axis, Ix2, Ix3, s},
};

use crate::{
    Format, ModelFile, OpenOptions,
    evaluate::{Sequence, evaluate},
    open, open_bytes,
};

/// A file of the folder `tests/data` of the repository.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data").join(name)
}

/// Opens a file and compares the model's output with that in `expected`: `y`, or `last` for a model that returns one
/// step, for the input `x` or `tokens`.
pub(crate) fn check(path: &Path, expected: &Path, format: Format) -> ModelFile {
    let file = open(path, &OpenOptions::default()).unwrap();
    assert_eq!(file.format, format);
    let mut expected = StateDict::open(expected).unwrap();
    let has_steps = expected.names().any(|name| name == "y");
    let want = match has_steps {
        true => expected.take_f64("y").unwrap().into_dimensionality::<Ix3>().unwrap(),
        false => expected.take_f64("last").unwrap().into_dimensionality::<Ix2>().unwrap().insert_axis(Axis(1)),
    };
    let shape = expected.shape("tokens").map(<[usize]>::to_vec);
    let outputs: Vec<Array2<f64>> = match shape {
        Some(shape) => {
            let tokens = expected.take_i64("tokens").unwrap();
            tokens.chunks(shape[1]).map(|tokens| evaluate(&file.weights, Sequence::Tokens(tokens)).unwrap()).collect()
        }
        None => {
            let x = expected.take_f64("x").unwrap().into_dimensionality::<Ix3>().unwrap();
            let output = |x: Array2<f64>| evaluate(&file.weights, Sequence::Features(x)).unwrap();
            x.outer_iter().map(|x| output(x.to_owned())).collect()
        }
    };
    assert_eq!(outputs.len(), want.len_of(Axis(0)));
    for (b, y) in outputs.iter().enumerate() {
        let want = want.slice(s![b, .., ..]);
        assert_eq!(y.dim(), want.dim(), "{}", path.display());
        for (y, want) in y.iter().zip(want) {
            assert!((y - want).abs() <= 1e-5 + 1e-5 * want.abs(), "{}: {y} instead of {want}", path.display());
        }
    }
    file
}

/// Opens damaged variants of a file: truncated ones, and ones with a flipped byte. None may panic, and all that are
/// truncated by more than `optional_end` bytes are errors.
pub(crate) fn check_damaged(bytes: &[u8], step: usize, optional_end: usize) {
    for end in (0..bytes.len() - optional_end).step_by(step) {
        assert!(open_bytes(&bytes[..end], &OpenOptions::default()).is_err(), "{end} bytes of {}", bytes.len());
    }
    let mut damaged = bytes.to_vec();
    for at in (0..bytes.len()).step_by(step) {
        for bits in [0x01, 0x80, 0xff] {
            damaged[at] ^= bits;
            let _ = open_bytes(&damaged, &OpenOptions::default());
            damaged[at] ^= bits;
        }
    }
}
