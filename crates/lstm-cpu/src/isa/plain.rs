//! One lane: plain Rust.

crate::kernels::kernels!(f32; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1; solo: 1, 2, 3, 4);
