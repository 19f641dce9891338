//! The list of backends.

/// A description of a backend, which [`Device::open`](crate::Device::open) opens by its name. [`BACKENDS`] has the
/// descriptions of all backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackendInfo {
    /// The backend's name, which [`Device::open`](crate::Device::open) takes and [`Ops::name`](crate::Ops::name)
    /// returns.
    pub name: &'static str,
    /// The feature of this crate that compiles the backend in.
    pub feature: &'static str,
    /// Whether this build contains the backend.
    pub is_compiled: bool,
    /// Whether a program that tries several backends on its own should include this one. It is false for a backend that
    /// is not bit-exact, which runs only if the user names it.
    pub is_default: bool,
    /// The options that the backend has, by the names of the [`DeviceBuilder`](crate::DeviceBuilder) methods that set
    /// them, such as `threads`.
    pub options: &'static [&'static str],
}

/// All backends, including those that are not in this build.
pub const BACKENDS: &[BackendInfo] = &[
    BackendInfo {
        name: "cpu",
        feature: "cpu",
        is_compiled: cfg!(feature = "cpu"),
        is_default: true,
        options: &["threads"],
    },
    BackendInfo {
        name: "wgpu",
        feature: "wgpu",
        is_compiled: cfg!(feature = "wgpu"),
        is_default: true,
        options: &["adapter_name", "allow_software"],
    },
    BackendInfo {
        name: "cuda",
        feature: "cuda",
        is_compiled: cfg!(feature = "cuda"),
        is_default: true,
        options: &["ordinal", "allow_tf32"],
    },
    BackendInfo {
        name: "cuda-tf32",
        feature: "cuda",
        is_compiled: cfg!(feature = "cuda"),
        is_default: false,
        options: &["ordinal", "allow_tf32"],
    },
];

impl BackendInfo {
    /// Returns the description of the backend of this name; `None` if there is none.
    pub fn find(name: &str) -> Option<&'static BackendInfo> {
        BACKENDS.iter().find(|info| info.name == name)
    }

    /// Whether the backend has an option, such as `threads`.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.contains(&option)
    }
}
