//! Kernels without vector instructions: one lane.

crate::kernel::table::define_kernels!(f32; tiles: 1 x 4, 2 x 2, 3 x 1, 4 x 1; single_row: 1, 2, 3, 4);
