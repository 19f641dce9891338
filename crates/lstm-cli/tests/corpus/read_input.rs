//! Reads untrusted bytes as a file of sequences. Shared by the fuzz target `input` and the test that replays its
//! corpus.

use std::{io::Cursor, path::Path};

use lstm_cli::{Format, Layout, Reader, Result};

/// Reads a file of sequences both whole and step by step. The first byte selects the format and layout.
///
/// # Errors
/// The reader's error, if the file is invalid.
///
/// # Panics
/// If the values read whole and step by step differ.
pub(crate) fn read_input(bytes: &[u8]) -> Result<()> {
    let (flags, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let format = match (flags & 8 != 0, flags & 1 != 0) {
        (true, _) => Format::Wav,
        (false, true) => Format::Csv,
        (false, false) => Format::Npy,
    };
    let layout =
        Layout { time_major: flags & 2 != 0, header: flags & 4 != 0, tokens: flags & 16 != 0, ..Layout::default() };
    let open = || Reader::new(Path::new("input"), Cursor::new(bytes), format, layout);
    let (mut whole, mut by_step) = (open()?, open()?);
    if layout.tokens {
        let all = whole.next_tokens(usize::MAX)?.expect("a valid file has at least one step");
        for t in 0..whole.sequence_shape().steps {
            let step = by_step.next_tokens(1)?.expect("the file has as many steps as its extent says");
            assert_eq!(step.column(0), all.column(t), "step {t}");
        }
        return Ok(());
    }
    let all = whole.next_steps(usize::MAX)?.expect("a valid file has at least one step");
    for t in 0..whole.sequence_shape().steps {
        let step = by_step.next_steps(1)?.expect("the file has as many steps as its extent says");
        let is_equal = |(k, v): (usize, &f32)| v.to_bits() == all[[k / step.dim().2, t, k % step.dim().2]].to_bits();
        assert!(step.iter().enumerate().all(is_equal), "step {t}");
    }
    assert!(whole.next_steps(1)?.is_none() && by_step.next_steps(1)?.is_none());
    Ok(())
}
