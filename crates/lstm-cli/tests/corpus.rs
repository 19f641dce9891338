//! The files of sequences that fuzzing found, once more.

use std::{fs, path::Path};

#[test]
fn input() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/input");
    let (mut read, mut refused) = (0, 0);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        match lstm_cli::hostile::input(&fs::read(path).unwrap()) {
            Ok(()) => read += 1,
            Err(_) => refused += 1,
        }
    }
    // A corpus in which all is refused reaches nothing.
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
}
