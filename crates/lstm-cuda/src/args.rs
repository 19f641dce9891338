//! What each kernel is launched with: `kernels/args.cuh` says what the fields are. Addresses of device memory are numbers,
//! 0 where there is none. No struct has padding, and each is a multiple of eight bytes.

use bytemuck::{Pod, Zeroable};
use lstm_core::{CellKind, LayerSpec, arithmetic};

pub(crate) use crate::driver::Address;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct MapArgs {
    pub(crate) x: Address,
    pub(crate) out: Address,
    pub(crate) len: u64,
    pub(crate) op: u32,
    pub(crate) bound: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct MulAddArgs {
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) c: Address,
    pub(crate) out: Address,
    pub(crate) len: u64,
    pub(crate) cols: u32,
    pub(crate) b_row: u32,
    pub(crate) c_row: u32,
    pub(crate) alpha: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct WithinArgs {
    pub(crate) x: Address,
    pub(crate) by: Address,
    pub(crate) low: Address,
    pub(crate) high: Address,
    pub(crate) out: Address,
    pub(crate) len: u64,
    pub(crate) cols: u32,
    pub(crate) unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct CopyArgs {
    pub(crate) from: Address,
    pub(crate) to: Address,
    pub(crate) rows: u64,
    pub(crate) cols: u32,
    pub(crate) from_stride: u32,
    pub(crate) to_stride: u32,
    pub(crate) snapped: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct GemmArgs {
    pub(crate) a: Address,
    pub(crate) b: Address,
    pub(crate) acc: Address,
    pub(crate) out: Address,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) depth: u32,
    pub(crate) parts: u32,
    pub(crate) a_row: u32,
    pub(crate) a_depth: u32,
    pub(crate) a_part: i32,
    pub(crate) b_col: u32,
    pub(crate) b_depth: u32,
    pub(crate) b_part: i32,
    pub(crate) acc_row: u32,
    pub(crate) snapped: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct SumArgs {
    pub(crate) d: Address,
    pub(crate) by: Address,
    pub(crate) acc: Address,
    pub(crate) out: Address,
    pub(crate) active: Address,
    pub(crate) rows: u32,
    pub(crate) cols: u32,
    pub(crate) d_stride: u32,
    pub(crate) batch: u32,
    pub(crate) parts: u32,
    pub(crate) part: i32,
}

/// Which equations a cell has.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct CellOptions {
    dense: u32,
    coupled: u32,
    clipped: u32,
    clip: f32,
}

impl CellOptions {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        CellOptions {
            dense: (spec.cell == CellKind::PeepholeDense).into(),
            coupled: spec.coupled.into(),
            clipped: spec.clip.is_some().into(),
            clip: spec.clip.unwrap_or(0.0),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct StepArgs {
    pub(crate) z: Address,
    pub(crate) u: Address,
    pub(crate) h_old: Address,
    pub(crate) c_old: Address,
    pub(crate) peephole: Address,
    pub(crate) h_new: Address,
    pub(crate) c_new: Address,
    pub(crate) y: Address,
    pub(crate) gates: Address,
    pub(crate) unprojected: Address,
    pub(crate) batch: u32,
    pub(crate) active: u32,
    pub(crate) hidden: u32,
    pub(crate) state: u32,
    pub(crate) cell: CellOptions,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct ProjectArgs {
    pub(crate) unprojected: Address,
    pub(crate) w: Address,
    pub(crate) h_old: Address,
    pub(crate) h_new: Address,
    pub(crate) y: Address,
    pub(crate) batch: u32,
    pub(crate) active: u32,
    pub(crate) hidden: u32,
    pub(crate) state: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct PersistentArgs {
    pub(crate) z: Address,
    pub(crate) u: Address,
    pub(crate) h0: Address,
    pub(crate) c0: Address,
    pub(crate) peephole: Address,
    pub(crate) w_hr: Address,
    pub(crate) y: Address,
    pub(crate) passed: Address,
    pub(crate) h: Address,
    pub(crate) c: Address,
    pub(crate) gates: Address,
    pub(crate) h_last: Address,
    pub(crate) c_last: Address,
    pub(crate) active: Address,
    pub(crate) steps: u32,
    pub(crate) batch: u32,
    pub(crate) hidden: u32,
    pub(crate) units: u32,
    pub(crate) rows: u32,
    pub(crate) reverse: u32,
    pub(crate) state: u32,
    pub(crate) features: u32,
    pub(crate) part: u32,
    pub(crate) held: u32,
    pub(crate) cell: CellOptions,
}

/// The value of a clipped gate at its bounds.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct GateBounds {
    sigmoid_low: f32,
    sigmoid_high: f32,
    tanh_low: f32,
    tanh_high: f32,
}

impl GateBounds {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        let bound = spec.clip.unwrap_or(0.0);
        GateBounds {
            sigmoid_low: arithmetic::sigmoid(-bound),
            sigmoid_high: arithmetic::sigmoid(bound),
            tanh_low: arithmetic::tanh(-bound),
            tanh_high: arithmetic::tanh(bound),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct BackArgs {
    pub(crate) dz_next: Address,
    pub(crate) gates_next: Address,
    pub(crate) u: Address,
    pub(crate) w_hr: Address,
    pub(crate) dy: Address,
    pub(crate) gates: Address,
    pub(crate) c_old: Address,
    pub(crate) c_new: Address,
    pub(crate) h_new: Address,
    pub(crate) peephole: Address,
    pub(crate) dh: Address,
    pub(crate) dc: Address,
    pub(crate) dz: Address,
    pub(crate) projected: Address,
    pub(crate) unprojected: Address,
    pub(crate) sums: Address,
    pub(crate) batch: u32,
    pub(crate) active: u32,
    pub(crate) active_next: u32,
    pub(crate) hidden: u32,
    pub(crate) state: u32,
    pub(crate) unused: u32,
    pub(crate) cell: CellOptions,
    pub(crate) bounds: GateBounds,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub(crate) struct PersistentBackArgs {
    pub(crate) u: Address,
    pub(crate) dy: Address,
    pub(crate) gates: Address,
    pub(crate) h: Address,
    pub(crate) c: Address,
    pub(crate) peephole: Address,
    pub(crate) w_hr: Address,
    pub(crate) dh: Address,
    pub(crate) dc: Address,
    pub(crate) dz: Address,
    pub(crate) projected: Address,
    pub(crate) unprojected: Address,
    pub(crate) active: Address,
    pub(crate) steps: u32,
    pub(crate) batch: u32,
    pub(crate) hidden: u32,
    pub(crate) units: u32,
    pub(crate) rows: u32,
    pub(crate) reverse: u32,
    pub(crate) state: u32,
    pub(crate) features: u32,
    pub(crate) part: u32,
    pub(crate) held: u32,
    pub(crate) cell: CellOptions,
    pub(crate) bounds: GateBounds,
}
