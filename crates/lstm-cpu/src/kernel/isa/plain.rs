//! Kernels without vector instructions: one lane.

#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
mod kernels {
    crate::kernel::table::define_kernels!(f32; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1; single_row: 1, 2, 3, 4);
    crate::kernel::quantized::define_quantized_kernels!(i32; tiles: 1 x 1, 2 x 1, 3 x 1, 4 x 1; single_row: 1 x 1, 2 x 1, 3 x 1, 4 x 1);
}

/// WebAssembly modules with vector instructions rarely run these, and every visitor of a page downloads them.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
mod kernels {
    crate::kernel::table::define_kernels!(f32; tiles: 1 x 1; single_row: 1);
    crate::kernel::quantized::define_quantized_kernels!(i32; tiles: 1 x 1; single_row: 1 x 1);
}

pub(super) use kernels::{KERNELS, QUANTIZED};
