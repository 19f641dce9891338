//! Opening a device that does not exist is an error that says what is missing, and never a panic.

use lstm_cuda::{Cuda, Error};

#[test]
fn opening_says_what_is_missing() {
    // No machine has a device with this number. Without a driver, the error is about the driver.
    for (name, result) in [
        ("cuda", Cuda::builder().ordinal(10_000).build()),
        ("cuda-tf32", Cuda::builder().ordinal(10_000).allow_tf32(true).build()),
    ] {
        let Err(Error::Device { backend, op, reason }) = result else { panic!("{result:?}") };
        assert_eq!((backend.as_str(), op), (name, "open"));
        match Cuda::devices() {
            Ok(devices) => assert!(reason.contains(&format!("no device 10000; found {}", devices.len())), "{reason}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("no NVIDIA driver") || text.contains("cuInit"), "{text}");
            }
        }
    }
}
