//! Fuzzes what is done with a file of weights, on one thread.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lstm_cpu::Cpu;

static CPU: LazyLock<Cpu> = LazyLock::new(|| Cpu::builder().threads(1).build().expect("one thread needs no starting"));

fuzz_target!(|bytes: &[u8]| drop(lstm_tests::malformed::rtneural(&*CPU, bytes)));
