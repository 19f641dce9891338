//! Choosing and opening a device: names, options, the automatic choice. What an error advises is tried.

use lstm::{BACKENDS, BackendInfo, Device, DeviceBuilder, Error, Ops};

/// The name of the option and the reason of an [`Error::Config`].
fn config_error(builder: DeviceBuilder) -> (&'static str, String) {
    match builder.open() {
        Err(Error::Config { option, reason }) => (option, reason),
        other => panic!("expected an error of an option, got {other:?}"),
    }
}

/// Opens a device, or returns why there is none; an error of an option is not accepted.
fn open(builder: DeviceBuilder) -> Result<Device, String> {
    builder.open().map_err(|error| match error {
        Error::Device { reason, .. } => reason,
        other => panic!("expected a device, or that there is none, got {other}"),
    })
}

/// The last word of a text.
fn last_word(text: &str) -> &str {
    text.rsplit(' ').next().unwrap()
}

#[test]
fn opens_by_name_or_says_why_not() {
    for info in BACKENDS {
        match Device::open(info.name) {
            Ok(device) => {
                assert!(info.is_compiled);
                assert_eq!(device.name(), info.name);
                assert_eq!(device.arithmetic().is_exact(), info.is_default);
                assert!(device.skipped().is_empty());
            }
            Err(Error::Device { backend, op, reason }) => {
                assert_eq!((&*backend, op), (info.name, "open"), "{reason}");
                let not_compiled =
                    format!("not in this build; build with the feature `{}` of the crate `lstm`", info.feature);
                assert_eq!(reason == not_compiled, !info.is_compiled, "{reason}");
            }
            Err(error) => panic!("{}: {error}", info.name),
        }
    }
    #[cfg(feature = "cpu")]
    assert_eq!(Device::open("cpu").unwrap().name(), "cpu");
}

#[test]
fn errors_name_features_that_exist() {
    let features = include_str!("../Cargo.toml");
    for info in BACKENDS {
        assert!(features.contains(&format!("\n{} = [", info.feature)), "{info:?}");
    }
}

#[test]
fn unknown_name_lists_the_names() {
    for name in ["abacus", "", "CPU", "cpu "] {
        let (option, reason) = config_error(Device::builder().backend(name));
        assert_eq!(option, "backend");
        let list = reason.strip_prefix("expected one of ").and_then(|rest| rest.split_once(", got "));
        let (names, got) = list.unwrap_or_else(|| panic!("{reason}"));
        assert_eq!(got, format!("`{name}`"));
        assert_eq!(names.split(", ").count(), BACKENDS.len() + 1);
        for name in names.split(", ") {
            let _ = open(Device::builder().backend(name));
        }
    }
}

/// Sets an option.
type SetOption = fn(DeviceBuilder) -> DeviceBuilder;

#[test]
fn options_apply_to_the_backends_that_have_them() {
    let options: [(&str, SetOption); 5] = [
        ("threads", |b| b.threads(1)),
        ("adapter_name", |b| b.adapter_name("a")),
        ("allow_software", |b| b.allow_software(true)),
        ("ordinal", |b| b.ordinal(0)),
        ("allow_tf32", |b| b.allow_tf32(true)),
    ];
    for (name, set) in options {
        let with_option: Vec<_> = BACKENDS.iter().filter(|info| info.has_option(name)).collect();
        assert!(!with_option.is_empty(), "{name}");
        for info in BACKENDS {
            let builder = set(Device::builder().backend(info.name));
            if info.has_option(name) {
                let _ = open(builder);
                continue;
            }
            let (option, reason) = config_error(builder);
            assert_eq!(option, name);
            let names = reason.strip_prefix("only ").and_then(|rest| rest.split_once(" has this option, not "));
            let (names, got) = names.unwrap_or_else(|| panic!("{reason}"));
            assert_eq!(got, info.name);
            // The backends that the error names have the option.
            assert_eq!(
                names.split(" and ").collect::<Vec<_>>(),
                with_option.iter().map(|i| i.name).collect::<Vec<_>>()
            );
            for name in names.split(" and ") {
                let _ = open(set(Device::builder().backend(name)));
            }
        }
        // An automatic choice takes every option of an exact device.
        if name != "allow_tf32" {
            let _ = open(set(Device::builder()));
        }
    }
}

#[test]
fn contradicting_options_are_errors() {
    let (option, reason) = config_error(Device::builder().backend("cpu").prefer_gpu());
    assert_eq!(option, "prefer_gpu");
    assert!(reason.ends_with("name `auto` or none"), "{reason}");
    let _ = (open(Device::builder().backend("auto").prefer_gpu()), open(Device::builder().prefer_gpu()));

    for builder in [Device::builder(), Device::builder().prefer_gpu(), Device::builder().backend("auto")] {
        let (option, reason) = config_error(builder.allow_tf32(true));
        assert_eq!((option, last_word(&reason)), ("allow_tf32", "cuda-tf32"), "{reason}");
        let _ = open(Device::builder().backend(last_word(&reason)).allow_tf32(true));
    }
    let (option, reason) = config_error(Device::builder().backend("cuda-tf32").allow_tf32(false));
    assert_eq!((option, last_word(&reason)), ("allow_tf32", "cuda"), "{reason}");
    let _ = open(Device::builder().backend(last_word(&reason)).allow_tf32(false));
}

#[test]
fn the_list_of_backends_is_consistent() {
    for info in BACKENDS {
        assert_eq!(BackendInfo::find(info.name), Some(info));
        // A mode that is not exact has the feature of its backend.
        assert_eq!(info.is_default, info.name == info.feature);
    }
    assert_eq!(BackendInfo::find("auto"), None);
    let compiled: Vec<_> = BACKENDS.iter().filter(|info| info.is_compiled).map(|info| info.name).collect();
    for (name, is_compiled) in
        [("cpu", cfg!(feature = "cpu")), ("wgpu", cfg!(feature = "wgpu")), ("cuda-tf32", cfg!(feature = "cuda"))]
    {
        assert_eq!(compiled.contains(&name), is_compiled, "{name}");
    }
}

#[cfg(feature = "cpu")]
#[test]
fn automatic_choice_prefers_what_it_was_told() {
    // The CPU always opens, and is the first choice by default.
    let device = Device::builder().threads(1).open().unwrap();
    assert!(device.name() == "cpu" && device.skipped().is_empty());
    let Device::Cpu(cpu) = device else { panic!("a variant of another backend") };
    assert_eq!((cpu.threads(), cpu.into_backend().threads()), (1, 1));
    assert_eq!(format!("{:?}", Device::from(lstm::Cpu::new())), format!("{:?}", lstm::Cpu::new()));

    let device = Device::open("auto").unwrap();
    let names: Vec<_> = device.skipped().iter().map(|skipped| skipped.name).collect();
    match device.name() {
        "cpu" => assert_eq!(names, ["cuda", "wgpu"]),
        "wgpu" => assert_eq!(names, ["cuda"]),
        "cuda" => assert!(names.is_empty()),
        other => panic!("{other}"),
    }
    for skipped in device.skipped() {
        assert!(skipped.to_string().starts_with(&format!("{}: ", skipped.name)) && !skipped.reason.is_empty());
        // The name of the backend does not come twice.
        assert!(!skipped.reason.starts_with(skipped.name), "{skipped}");
        let info = BackendInfo::find(skipped.name).unwrap();
        assert_eq!(skipped.reason.contains("not in this build"), !info.is_compiled, "{skipped}");
    }
    // An invalid value is an error, not a reason to take another device.
    let (option, reason) = config_error(Device::builder().prefer_gpu().threads(0));
    assert_eq!((option, &*reason), ("threads", "expected 1 to 1024, got 0"));
    // An option that names a device of one backend leaves no other.
    let reason = open(Device::builder().ordinal(1000)).unwrap_err();
    assert!(reason.starts_with("no device is available: cuda: "), "{reason}");
    assert!(["wgpu: ", "cpu: "].iter().all(|other| !reason.contains(other)), "{reason}");
    let reason = open(Device::builder().prefer_gpu().adapter_name("abacus")).unwrap_err();
    assert!(reason.starts_with("no device is available: wgpu: "), "{reason}");
    assert_eq!(config_error(Device::builder().adapter_name("abacus").ordinal(0)).0, "ordinal");
}

#[cfg(not(feature = "cpu"))]
#[test]
fn without_a_device_the_error_lists_the_backends() {
    for builder in [Device::builder(), Device::builder().prefer_gpu()] {
        match open(builder) {
            Ok(device) => assert_ne!(device.name(), "cpu"),
            Err(reason) => {
                let list = reason.strip_prefix("no device is available: ").unwrap_or_else(|| panic!("{reason}"));
                for name in ["cpu", "cuda", "wgpu"] {
                    assert!(list.split("; ").any(|entry| entry.starts_with(&format!("{name}: "))), "{reason}");
                }
                assert!(list.contains("cpu: not in this build; build with the feature `cpu` "), "{reason}");
            }
        }
    }
}

#[cfg(feature = "wgpu")]
mod software {
    //! Adapters that compute on the CPU.

    use lstm::{is_software, wgpu};

    use super::*;

    /// The name of the software adapter of this machine, if it has no other adapter.
    fn only_software() -> Option<String> {
        let adapters = pollster::block_on(lstm::adapters(wgpu::Backends::PRIMARY));
        let software = adapters.first().filter(|_| adapters.iter().all(is_software)).map(|info| info.name.clone());
        if software.is_none() {
            println!("not run: this machine does not have software adapters only: {adapters:?}");
            assert!(std::env::var_os("LSTM_REQUIRE").is_none());
        }
        software
    }

    #[test]
    fn automatic_choice_takes_no_software() {
        let device = open(Device::builder().prefer_gpu());
        if let Ok(Device::Wgpu(wgpu)) = &device {
            assert!(!is_software(wgpu.adapter()));
        }
        let Some(adapter) = only_software() else { return };
        let reason = match device {
            Ok(device) => {
                assert_ne!(device.name(), "wgpu");
                match device.skipped().iter().find(|skipped| skipped.name == "wgpu") {
                    Some(skipped) => skipped.reason.clone(),
                    // A CUDA device comes first.
                    None => return assert_eq!(device.name(), "cuda"),
                }
            }
            Err(reason) => reason,
        };
        let want = format!("{adapter} computes on the CPU, not on a GPU; to use it, set `allow_software(true)`");
        assert!(reason.contains(&want), "{reason}");
        // The way out.
        let device = Device::builder().prefer_gpu().allow_software(true).open().unwrap();
        if device.name() != "cuda" {
            assert_eq!(device.name(), "wgpu", "{:?}", device.skipped());
            assert_eq!(device.skipped().iter().map(|skipped| skipped.name).collect::<Vec<_>>(), ["cuda"]);
        }
    }

    #[test]
    fn named_backend_takes_software_unless_told_otherwise() {
        if only_software().is_none() {
            return;
        }
        assert_eq!(Device::open("wgpu").unwrap().name(), "wgpu");
        let reason = open(Device::builder().backend("wgpu").allow_software(false)).unwrap_err();
        assert!(reason.ends_with("set `allow_software(true)`"), "{reason}");
    }

    #[test]
    fn adapter_names_that_do_not_exist_are_errors() {
        let reason = open(Device::builder().backend("wgpu").adapter_name("abacus")).unwrap_err();
        assert!(
            reason.contains("no adapter name contains `abacus`") || reason.contains("found no adapter"),
            "{reason}"
        );
        // The way out: a name of the list.
        if let Some((_, names)) = reason.split_once("available adapters: ") {
            let name = names.split(", ").next().unwrap();
            let _ = open(Device::builder().backend("wgpu").adapter_name(name));
        }
    }
}
