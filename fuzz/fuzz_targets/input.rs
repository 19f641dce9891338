//! Fuzzes what the tool reads sequences from.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| drop(lstm_cli::hostile::input(bytes)));
