//! What a machine without an NVIDIA GPU gives: errors that say what is missing, no panic.

use lstm_cuda::{Cuda, Error};

#[test]
fn opening_says_what_is_missing() {
    // With a device, a number that none has; without a driver that comes first.
    for (name, result) in
        [("cuda", Cuda::new(10_000)), ("cuda-tf32", Cuda::builder().ordinal(10_000).allow_tf32(true).build())]
    {
        let Err(Error::Device { backend, op, reason: why }) = result else { panic!("{result:?}") };
        assert_eq!((backend.as_str(), op), (name, "open"));
        match Cuda::devices() {
            Ok(devices) => assert!(why.contains(&format!("no device 10000; found {}", devices.len())), "{why}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("no NVIDIA driver") || text.contains("cuInit"), "{text}");
            }
        }
    }
}
