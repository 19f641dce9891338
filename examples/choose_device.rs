//! Chooses the device when the program runs: a GPU if there is one, else the CPU, or the one that the user names.
//!
//! `cargo run --release --example choose_device --features wgpu -- [auto|cpu|wgpu|cuda]`

use lstm::{Arithmetic, BACKENDS, Device, Error, Lstm, LstmConfig, Ops, arithmetic::Digest, ndarray::Array3};

fn main() -> Result<(), Error> {
    for backend in BACKENDS {
        let build = if backend.is_compiled { "in this build" } else { "not in this build" };
        println!("{:<10} {build}, feature `{}`", backend.name, backend.feature);
    }
    let name = std::env::args().nth(1).unwrap_or_else(|| "auto".into());
    let device = Device::open(&name)?; // an error says why this device cannot be used, and what would help
    for skipped in device.skipped() {
        println!("not used: {skipped}");
    }
    println!("runs on {}: {:?}", device.name(), device.arithmetic());

    // From here on, nothing depends on the device.
    let lstm = Lstm::random(&device, LstmConfig::new(3, 32).layers(2), 42)?;
    let x = Array3::from_shape_fn((4, 20, 3), |(b, t, k)| ((31 * b + 7 * t + 3 * k) % 17) as f32 / 17.0 - 0.5);
    let digest = Digest::of(&lstm.forward(&x)?.0).to_string();
    println!("digest of the outputs: {digest}");
    if !matches!(device.arithmetic(), Arithmetic::Inexact { .. }) {
        assert_eq!(digest, "2fccbc2ad2d5f8dd", "the same bits on every device");
    }
    Ok(())
}
