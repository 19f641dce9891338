//! Fuzzes the command-line tool's reader of sequence files.
#![no_main]

#[path = "../../crates/lstm-cli/tests/corpus/read_input.rs"]
mod read_input;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drop(read_input::read_input(bytes)));
