//! Replays the fuzz corpus of the reader of sequence files.

#[path = "corpus/read_input.rs"]
mod read_input;

use std::{fs, path::Path};

use read_input::read_input;

#[test]
fn replays_input_corpus() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/input");
    let (mut accepted, mut rejected) = (0, 0);
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        match read_input(&fs::read(path).unwrap()) {
            Ok(()) => accepted += 1,
            Err(_) => rejected += 1,
        }
    }
    // A corpus of invalid files alone would not test the reading of elements.
    assert!(accepted > 0 && rejected > 0, "{accepted} accepted, {rejected} rejected");
}
