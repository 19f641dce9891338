//! Helpers for unit tests.

use crate::Wgpu;

/// Opens the default adapter. Without one, reports that the test is skipped; with `LSTM_REQUIRE` set, panics.
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
