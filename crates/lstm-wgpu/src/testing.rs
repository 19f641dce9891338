//! Helpers for unit tests.

use crate::Wgpu;

/// Opens the default adapter. If that fails, prints that the test is skipped and returns `None`, or panics if the
/// environment variable `LSTM_REQUIRE` is set.
pub(crate) fn open_adapter(guards: bool) -> Option<Wgpu> {
    match Wgpu::builder().guards(guards).build() {
        Ok(wgpu) => Some(wgpu),
        Err(error) => {
            eprintln!("{:?}: skipped: {error}", std::thread::current().name());
            assert!(std::env::var_os("LSTM_REQUIRE").is_none(), "{error}");
            None
        }
    }
}
