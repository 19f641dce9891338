//! Sets the name under which programs find the shared library: its version changes when the interface does.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let is_elf = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "linux" || os == "freebsd");
    if is_elf {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,liblstm.so.0");
    }
}
