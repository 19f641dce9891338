//! With the feature `host`, builds the kernels for the CPU. Where that can't be done `CudaHost::new` says why.

fn main() {
    println!("cargo:rustc-check-cfg=cfg(host_kernels)");
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "host")]
    host();
}

#[cfg(feature = "host")]
fn host() {
    for path in ["kernels", "host/run.cpp", "host/fibers.h", "host/shim.h"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(true).flag("-Wno-unknown-pragmas").flag("-fno-exceptions");
    build.flags(["-mavx2", "-mfma", "-ffp-contract=off", "-fno-math-errno"]).file("host/run.cpp");
    let why = if (target("ARCH"), target("OS")) != ("x86_64".to_owned(), "linux".to_owned()) {
        "kernels run on the host of x86-64 Linux only"
    } else if build.try_get_compiler().is_ok_and(|compiler| compiler.to_command().arg("--version").output().is_ok()) {
        build.compile("lstm_cuda_host");
        println!("cargo:rustc-cfg=host_kernels");
        // A test links them to its stand-in for the driver.
        println!("cargo:rustc-env=LSTM_CUDA_HOST_ARCHIVE={}", std::env::var("OUT_DIR").unwrap_or_default());
        return;
    } else {
        "no C++ compiler was found when this was built"
    };
    println!("cargo:rustc-env=LSTM_CUDA_NO_HOST={why}");
}
