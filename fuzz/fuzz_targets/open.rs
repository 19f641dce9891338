//! Fuzzes opening and running model files of every format, PyTorch's above all. The backend uses one thread.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use lstm_cpu::Cpu;

/// Backend that runs the models.
static CPU: LazyLock<Cpu> =
    LazyLock::new(|| Cpu::builder().threads(1).build().expect("a single thread can always be used"));

fuzz_target!(|bytes: &[u8]| drop(lstm_tests::malformed::check_model_file(&*CPU, bytes)));
