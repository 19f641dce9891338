//! Compiles the CUDA kernels for the host CPU, as a static library. If that is not possible, the build still succeeds,
//! and opening the simulated device returns the reason as an error.

use std::env;

/// Sources of the static library besides the kernels.
const SOURCES: [&str; 3] = ["cpp/executor/executor.cpp", "cpp/executor/fibers.h", "cpp/executor/cuda.h"];

fn main() {
    println!("cargo:rustc-check-cfg=cfg(kernels_compiled)");
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=../lstm-cuda/kernels");
    for path in SOURCES {
        println!("cargo:rerun-if-changed={path}");
    }
    match compile() {
        Ok(()) => {
            println!("cargo:rustc-cfg=kernels_compiled");
            // The test `driver` links this library into the simulated driver.
            println!("cargo:rustc-env=LSTM_CUDA_SIM_LIBRARY_DIR={}", env::var("OUT_DIR").unwrap_or_default());
        }
        Err(reason) => println!("cargo:rustc-env=LSTM_CUDA_SIM_UNAVAILABLE={reason}"),
    }
}

/// Compiles the kernels, or returns why this target or machine can't.
fn compile() -> Result<(), &'static str> {
    let target = |part: &str| env::var(format!("CARGO_CFG_TARGET_{part}")).unwrap_or_default();
    if (target("ARCH").as_str(), target("OS").as_str()) != ("x86_64", "linux") {
        return Err("the kernels run on the CPU on x86-64 Linux only");
    }
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(3).warnings(true).flag("-Wno-unknown-pragmas").flag("-fno-exceptions");
    build.flags(["-mavx2", "-mfma", "-ffp-contract=off", "-fno-math-errno"]).file(SOURCES[0]);
    if !build.try_get_compiler().is_ok_and(|compiler| compiler.to_command().arg("--version").output().is_ok()) {
        return Err("no C++ compiler was found when lstm-cuda-sim was built");
    }
    build.compile("lstm_cuda_sim");
    Ok(())
}
