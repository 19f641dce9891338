//! The kernels' arguments. Each struct is defined once, here, and exists in both languages: the macro declares the Rust
//! struct and writes the CUDA C++ definition that `kernels/args.cuh` contains.
//!
//! No struct has padding, and the size of each is a multiple of eight bytes. Addresses come first for this reason.

use bytemuck::{Pod, Zeroable};
use lstm_core::{CellKind, LayerSpec, arithmetic};

use crate::driver::Address;

/// Address of values that a kernel reads; 0 if there are none.
pub(crate) type Input = Address;
/// Address of values that a kernel writes, and may read; 0 if there are none.
pub(crate) type Output = Address;
/// Address of one `u32` per step: the number of sequences that have the step. 0 if all sequences have all steps.
pub(crate) type Counts = Address;

/// The CUDA C++ type of a field, up to its name.
#[cfg(test)]
macro_rules! cuda_type {
    (Input) => {
        "const float *"
    };
    (Output) => {
        "float *"
    };
    (Counts) => {
        "const u32 *"
    };
    (u64) => {
        "u64 "
    };
    (u32) => {
        "u32 "
    };
    (i32) => {
        "int "
    };
    (f32) => {
        "float "
    };
    (CellOptions) => {
        "CellOptions "
    };
    (GateBounds) => {
        "GateBounds "
    };
}

/// Declares argument structs in Rust, and `CUDA_STRUCTS`, their definitions in CUDA C++ with the same comments.
macro_rules! kernel_args {
    ($($(#[doc = $doc:literal])* struct $name:ident {
        $($(#[doc = $field_doc:literal])* $field:ident: $type:ident,)*
    })*) => {
        $(
            $(#[doc = $doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Pod, Zeroable)]
            pub(crate) struct $name {
                $($(#[doc = $field_doc])* pub(crate) $field: $type,)*
            }
        )*

        /// The definitions in CUDA C++.
        #[cfg(test)]
        pub(crate) const CUDA_STRUCTS: &str = concat!($(
            "\n", $("//", $doc, "\n",)*
            "struct ", stringify!($name), " {\n",
            $($("    //", $field_doc, "\n",)* "    ", cuda_type!($type), stringify!($field), ";\n",)*
            "};\n",
        )*);
    };
}

kernel_args! {
    /// Arguments of `map`, which applies one function to each element.
    struct MapArgs {
        /// The operand, `[len]`.
        x: Input,
        /// The result, `[len]`; may be `x`.
        out: Output,
        len: u64,
        /// The function: 0 snap, 1 sigmoid, 2 tanh, 3 clip to `[-bound, bound]`, 4 the sentinel, whatever `x` is.
        op: u32,
        bound: f32,
    }

    /// Arguments of `mul_add`: `out = alpha * a * b + c`, elementwise.
    struct MulAddArgs {
        a: Input,
        /// The factor, as large as `a` or one row; null for 1.
        b: Input,
        /// The summand, as large as `a` or one row; null for 0.
        c: Input,
        out: Output,
        /// Number of elements of `a` and `out`.
        len: u64,
        cols: u32,
        /// Whether `b` is one row, used for all rows.
        b_is_row: u32,
        /// Whether `c` is one row, used for all rows.
        c_is_row: u32,
        alpha: f32,
    }

    /// Arguments of `select_between`: `out` is `x` where `low < by < high`, else +0.
    struct SelectBetweenArgs {
        x: Input,
        by: Input,
        /// The lower bounds, one row, `[cols]`.
        low: Input,
        /// The upper bounds, one row, `[cols]`.
        high: Input,
        out: Output,
        /// Number of elements of `x`, `by` and `out`.
        len: u64,
        cols: u32,
        padding: u32,
    }

    /// Arguments of `copy`, which copies a matrix between two row strides.
    struct CopyArgs {
        from: Input,
        to: Output,
        rows: u64,
        cols: u32,
        /// Elements from one row of `from` to the next.
        from_stride: u32,
        /// Elements from one row of `to` to the next.
        to_stride: u32,
        /// Whether values are snapped while they are copied.
        snap: u32,
    }

    /// Arguments of the matrix products: `out = (acc + a_0 b_0) + a_1 b_1 + ...`, with as many terms as there are
    /// segments. `gemm_large` computes one segment only.
    struct GemmArgs {
        /// The first segment of the left operand, `[rows, depth]`.
        a: Input,
        /// The first segment of the right operand, `[depth, cols]`.
        b: Input,
        /// What the products are added to, `[rows, cols]`; null for 0.
        acc: Input,
        /// The result, `[rows, cols]`, row-major; may be `acc`.
        out: Output,
        rows: u32,
        cols: u32,
        /// The inner dimension of each product.
        depth: u32,
        segments: u32,
        /// Elements from one row of `a` to the next.
        a_row_stride: u32,
        /// Elements of `a` from one index of the inner dimension to the next.
        a_depth_stride: u32,
        /// Elements from one segment of `a` to the next.
        a_segment_stride: i32,
        /// Elements from one column of `b` to the next.
        b_col_stride: u32,
        /// Elements of `b` from one index of the inner dimension to the next.
        b_depth_stride: u32,
        /// Elements from one segment of `b` to the next.
        b_segment_stride: i32,
        /// Elements from one row of `acc` to the next; 0 if `acc` is one row, used for all rows.
        acc_row_stride: u32,
        /// Which operands are snapped as they are read: bit 0 for `a`, bit 1 for `b`.
        snap: u32,
    }

    /// Arguments of `column_sums`, which sums the rows of a matrix in the order of a product with a row of ones.
    struct ColumnSumArgs {
        /// The first segment, `[rows, cols]`.
        x: Input,
        /// Factors of the elements, `[rows, cols]`; null for 1.
        factor: Input,
        /// What the sums are added to, `[cols]`; null for 0.
        acc: Input,
        /// The sums, `[cols]`.
        out: Output,
        /// Number of sequences that have each step, from the first segment's first step on. Rows of other sequences are
        /// left out. Null if all sequences have all steps.
        active_counts: Counts,
        rows: u32,
        cols: u32,
        /// Elements from one row of `x` to the next.
        x_stride: u32,
        /// Number of rows per step: the batch size.
        batch: u32,
        /// Number of segments. Their sums are added one after another.
        segments: u32,
        /// Rows from one segment to the next.
        segment_stride: i32,
    }

    /// Options of a cell, which select its equations. All but `clip` are 0 or 1.
    struct CellOptions {
        /// Whether the recurrent weights multiply the cell state (dense peepholes).
        dense_peephole: u32,
        /// Whether the forget gate is one minus the input gate.
        coupled_gates: u32,
        /// Whether the gates' sums are clipped to `[-clip, clip]`.
        clips: u32,
        clip: f32,
    }

    /// Arguments of the forward kernels for one step. Without a projection they compute the whole step; with a
    /// projection they compute its operand.
    struct ForwardStepArgs {
        /// `bias + W x`, `[batch, 4 * hidden]`.
        z: Input,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: Input,
        /// h before the step, `[batch, state_size]`.
        h_old: Input,
        /// c before the step, `[batch, hidden]`.
        c_old: Input,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: Input,
        /// h after the step, `[batch, state_size]`; null with a projection.
        h_new: Output,
        /// c after the step, `[batch, hidden]`.
        c_new: Output,
        /// The step's output, `[batch, state_size]`; null with a projection, or if it is not needed.
        y: Output,
        /// The gates' activations, `[batch, 4 * hidden]`; null in inference.
        gates: Output,
        /// The projection's operand, `[batch, hidden]`; null without a projection.
        unprojected: Output,
        batch: u32,
        /// Number of sequences that have this step. They are the first rows; the other rows keep their state.
        active: u32,
        hidden: u32,
        /// Size of h: the projection's size, or `hidden`.
        state_size: u32,
        cell: CellOptions,
    }

    /// Arguments of the kernels that compute the projection of one step.
    struct ProjectionArgs {
        /// The projection's operand, `[batch, hidden]`.
        unprojected: Input,
        /// The projection's weights, `[state_size, hidden]`.
        w_hr: Input,
        /// h before the step, `[batch, state_size]`.
        h_old: Input,
        /// h after the step, `[batch, state_size]`.
        h_new: Output,
        /// The step's output, `[batch, state_size]`; null if it is not needed.
        y: Output,
        batch: u32,
        /// Number of sequences that have this step. They are the first rows; the other rows keep their state.
        active: u32,
        hidden: u32,
        /// Size of h.
        state_size: u32,
    }

    /// Arguments of the kernels that run the forward pass of all steps in one launch. The `persistent` kernels run all
    /// sequences on blocks that are resident at the same time. In the `cluster` kernel each cluster runs some of the
    /// sequences, and snaps their initial state itself.
    struct ForwardSequenceArgs {
        /// `bias + W x`, `[steps * batch, 4 * hidden]`.
        z: Input,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: Input,
        /// The initial h, `[batch, state_size]`.
        h0: Input,
        /// The initial c, `[batch, hidden]`.
        c0: Input,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: Input,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: Input,
        /// The outputs, `[steps * batch, state_size]`. `persistent` kernels exchange h through them, for which they
        /// start as sentinels; with dense peepholes they exchange c instead.
        y: Output,
        /// `[steps * batch, hidden]`, sentinels at first: a second buffer through which `persistent` kernels exchange
        /// the dense peephole's c or the projection's operand. Null otherwise.
        exchange: Output,
        /// h before and after each step, `[steps + 1, batch, state_size]`, for the backward pass; null in inference.
        trace_h: Output,
        /// c before and after each step, `[steps + 1, batch, hidden]`, for the backward pass; null in inference.
        trace_c: Output,
        /// The gates' activations, `[steps * batch, 4 * hidden]`, for the backward pass; null in inference.
        trace_gates: Output,
        /// The final h, `[batch, state_size]`.
        h_last: Output,
        /// The final c, `[batch, hidden]`.
        c_last: Output,
        /// Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
        active_counts: Counts,
        steps: u32,
        batch: u32,
        hidden: u32,
        /// Number of units per block.
        units: u32,
        /// Number of sequences that a block, or a cluster, processes together: a row group.
        group_rows: u32,
        /// Whether steps run from the last to the first.
        reverse: u32,
        /// Size of h.
        state_size: u32,
        /// Number of elements of h per block.
        features: u32,
        /// Number of rows of a row group whose sums are computed at a time.
        tile_rows: u32,
        /// For clusters, how many of a block's groups of four sums have their weights in registers; the others have
        /// them in shared memory.
        register_quads: u32,
        cell: CellOptions,
    }

    /// Values of the activations at the bounds of clipped gates. Where a gate has such a value, its gradient is 0.
    struct GateBounds {
        sigmoid_low: f32,
        sigmoid_high: f32,
        tanh_low: f32,
        tanh_high: f32,
    }

    /// Arguments of the backward kernels for one step. They multiply the gates' gradients of the step visited before
    /// by U, which gives the gradient of h after this step, and then compute this step's gates' gradients. After the
    /// last step they run once more, without a step of their own, for the gradient of the initial state.
    struct BackwardStepArgs {
        /// Gates' gradients of the step visited before, `[batch, 4 * hidden]`.
        dz_next: Input,
        /// Gates' activations of the step visited before, `[batch, 4 * hidden]`.
        gates_next: Input,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: Input,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: Input,
        /// Gradient of this step's output, `[batch, state_size]`.
        dy: Input,
        /// This step's gates' activations, `[batch, 4 * hidden]`.
        gates: Input,
        /// c before this step, `[batch, hidden]`.
        c_old: Input,
        /// c after this step, `[batch, hidden]`.
        c_new: Input,
        /// h after this step, `[batch, state_size]`.
        h_new: Input,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: Input,
        /// Running gradient of h, `[batch, state_size]`.
        dh: Output,
        /// Running gradient of c, `[batch, hidden]`.
        dc: Output,
        /// This step's gates' gradients, `[batch, 4 * hidden]`; null after the last step.
        dz: Output,
        /// With a projection, the gradient of the projected h, `[batch, state_size]`; null otherwise.
        dh_projected: Output,
        /// With a projection, its operand, `[batch, hidden]`; null otherwise.
        unprojected: Output,
        /// The recurrent product of each gate, `[4, batch, state_size]`, if a separate kernel computes it.
        gate_products: Output,
        batch: u32,
        /// Number of sequences that have this step.
        active: u32,
        /// Number of sequences that have the step visited before.
        active_next: u32,
        hidden: u32,
        /// Size of h.
        state_size: u32,
        padding: u32,
        cell: CellOptions,
        bounds: GateBounds,
    }

    /// Arguments of the kernels that run the backward pass of all steps in one launch, as `ForwardSequenceArgs` does
    /// for the forward pass.
    struct BackwardSequenceArgs {
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: Input,
        /// Gradients of the outputs, `[steps * batch, state_size]`.
        dy: Input,
        /// The gates' activations, `[steps * batch, 4 * hidden]`.
        gates: Input,
        /// h before and after each step, `[steps + 1, batch, state_size]`.
        h: Input,
        /// c before and after each step, `[steps + 1, batch, hidden]`.
        c: Input,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: Input,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: Input,
        /// Gradient of the final h, snapped, then of the initial h, `[batch, state_size]`.
        dh: Output,
        /// Gradient of the final c, snapped, then of the initial c, `[batch, hidden]`.
        dc: Output,
        /// The gates' gradients, `[steps * batch, 4 * hidden]`. `persistent` kernels exchange them here; for these they
        /// start as sentinels.
        dz: Output,
        /// With a projection, the gradients of the projected h, `[steps * batch, state_size]`, sentinels at first; null
        /// otherwise.
        dh_projected: Output,
        /// With a projection, its operand, `[steps * batch, hidden]`; null otherwise.
        unprojected: Output,
        /// Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
        active_counts: Counts,
        steps: u32,
        batch: u32,
        hidden: u32,
        /// Number of units per block.
        units: u32,
        /// Number of sequences that a block, or a cluster, processes together: a row group.
        group_rows: u32,
        /// Whether the forward pass ran from the last step to the first.
        reverse: u32,
        /// Size of h.
        state_size: u32,
        /// Number of elements of h per block.
        features: u32,
        /// Number of rows of a row group whose sums are computed at a time.
        tile_rows: u32,
        /// For clusters, how many of a block's groups of four sums have their weights in registers; the others have
        /// them in shared memory.
        register_quads: u32,
        cell: CellOptions,
        bounds: GateBounds,
    }
}

impl CellOptions {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        CellOptions {
            dense_peephole: (spec.cell == CellKind::PeepholeDense).into(),
            coupled_gates: spec.coupled.into(),
            clips: spec.clip.is_some().into(),
            clip: spec.clip.unwrap_or(0.0),
        }
    }
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
