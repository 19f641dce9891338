//! What is done with files of sequences from anywhere, by the fuzz target and the test over what it found.

use std::{io::Cursor, path::Path};

use super::{Format, Layout, Reader};
use crate::error::Result;

/// Reads a file whole and step by step. Its first byte says how: which format, which layout.
///
/// # Errors
/// What is wrong with it.
///
/// # Panics
/// If the two ways give other numbers.
pub fn input(bytes: &[u8]) -> Result<()> {
    let (how, bytes) = bytes.split_first().unwrap_or((&0, &[]));
    let format = if how & 1 == 0 { Format::Npy } else { Format::Csv };
    let layout = Layout { time_major: how & 2 != 0, header: how & 4 != 0 };
    let open = || Reader::new(Path::new("input"), Cursor::new(bytes), format, layout);
    let (mut whole, mut steps) = (open()?, open()?);
    let all = whole.next_steps(usize::MAX)?.expect("an empty file is refused");
    for t in 0..whole.extent().steps {
        let step = steps.next_steps(1)?.expect("as many steps as the file says");
        let same = |(k, v): (usize, &f32)| v.to_bits() == all[[k / step.dim().2, t, k % step.dim().2]].to_bits();
        assert!(step.iter().enumerate().all(same), "step {t}");
    }
    assert!(whole.next_steps(1)?.is_none() && steps.next_steps(1)?.is_none());
    Ok(())
}
