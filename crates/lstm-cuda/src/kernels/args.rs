//! The kernels' arguments. Each struct is defined once, here, and exists in both languages: the macro declares the Rust
//! struct and writes the CUDA C++ definition that `kernels/args.cuh` contains.
//!
//! No struct has implicit padding, and the size of each is a multiple of eight bytes. For this reason addresses come
//! first.

use bytemuck::{Pod, Zeroable};
use lstm_core::{CellKind, LayerSpec, arithmetic};

use crate::driver::Address;

/// Address of values that a kernel reads; 0 if there are none.
pub(crate) type InputAddress = Address;
/// Address of values that a kernel writes, and may read; 0 if there are none.
pub(crate) type OutputAddress = Address;
/// Address of one `u32` per step: the number of sequences of the batch that are long enough to have this step. 0 if all
/// sequences have all steps.
pub(crate) type CountsAddress = Address;
/// Address of an array of `u32` row indices; 0 if there is no such array.
pub(crate) type RowNumbersAddress = Address;

/// Expands to the CUDA C++ type of an argument struct's field, with the separator before the field's name.
#[cfg(test)]
macro_rules! cuda_type {
    (InputAddress) => {
        "const float *"
    };
    (OutputAddress) => {
        "float *"
    };
    (CountsAddress) => {
        "const u32 *"
    };
    (RowNumbersAddress) => {
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
    (EighthFactors) => {
        "EighthFactors "
    };
}

/// Declares the argument structs in Rust, and the constant `CUDA_STRUCTS`, which has their definitions in CUDA C++ with
/// the same comments.
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

        /// The definitions of all argument structs in CUDA C++.
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
        x: InputAddress,
        /// The result, `[len]`; may be `x`.
        out: OutputAddress,
        len: u64,
        /// Which function is applied: 0 snap (magnitudes below 2^-40 become +0), 1 sigmoid, 2 tanh, 3 clip to
        /// `[-bound, bound]`, 4 the constant sentinel (a word with all bits set).
        op: u32,
        bound: f32,
    }

    /// Arguments of `mul_add`: `out = alpha * a * b + c`, elementwise.
    struct MulAddArgs {
        a: InputAddress,
        /// The factor, as large as `a` or one row; null for 1.
        b: InputAddress,
        /// The summand, as large as `a` or one row; null for 0.
        c: InputAddress,
        out: OutputAddress,
        /// Number of elements of `a` and `out`.
        len: u64,
        cols: u32,
        /// Whether `b` is one row, used for all rows.
        b_is_row: u32,
        /// Whether `c` is one row, used for all rows.
        c_is_row: u32,
        alpha: f32,
    }

    /// Arguments of `select_between`: `out` is `x` where `low < selector < high`, else +0.
    struct SelectBetweenArgs {
        x: InputAddress,
        selector: InputAddress,
        /// The lower bounds, one row, `[cols]`.
        low: InputAddress,
        /// The upper bounds, one row, `[cols]`.
        high: InputAddress,
        out: OutputAddress,
        /// Number of elements of `x`, `selector` and `out`.
        len: u64,
        cols: u32,
        padding: u32,
    }

    /// Arguments of `copy`, which copies rows of a matrix to memory that may have another row stride.
    struct CopyArgs {
        src: InputAddress,
        dst: OutputAddress,
        /// The numbers of the rows that are copied, `[rows]`. A row has the same number in `src` and `dst`. Null to copy
        /// the first `rows` rows.
        row_numbers: RowNumbersAddress,
        /// Number of rows that are copied.
        rows: u64,
        cols: u32,
        /// Number of elements from one row of `src` to the next.
        src_stride: u32,
        /// Number of elements from one row of `dst` to the next.
        dst_stride: u32,
        /// Whether values are snapped while they are copied.
        snap: u32,
    }

    /// Arguments of the matrix products: `out = (acc + a_0 b_0) + a_1 b_1 + ...`, with as many terms as there are
    /// segments. `gemm_large` computes one segment only.
    struct GemmArgs {
        /// The first segment of the left operand, `[rows, depth]`.
        a: InputAddress,
        /// The first segment of the right operand, `[depth, cols]`.
        b: InputAddress,
        /// What the products are added to, `[rows, cols]`; null for 0.
        acc: InputAddress,
        /// The result, `[rows, cols]`, row-major; may be `acc`.
        out: OutputAddress,
        rows: u32,
        cols: u32,
        /// The inner dimension of each product.
        depth: u32,
        segments: u32,
        /// Number of elements from one row of `a` to the next.
        a_row_stride: u32,
        /// Number of elements of `a` from one index of the inner dimension to the next.
        a_depth_stride: u32,
        /// Number of elements from `a_0` to `a_1`, and from each further operand to the next.
        a_segment_stride: i32,
        /// Number of elements from one column of `b` to the next.
        b_col_stride: u32,
        /// Number of elements of `b` from one index of the inner dimension to the next.
        b_depth_stride: u32,
        /// Number of elements from `b_0` to `b_1`, and from each further operand to the next.
        b_segment_stride: i32,
        /// Number of elements from one row of `acc` to the next; 0 if `acc` is one row, used for all rows.
        acc_row_stride: u32,
        /// Which operands are snapped as they are read: bit 0 for `a`, bit 1 for `b`.
        snap: u32,
    }

    /// Factors of a quantized format, for largest magnitudes of 8/8, 9/8, ..., 15/8.
    struct EighthFactors {
        f0: f32,
        f1: f32,
        f2: f32,
        f3: f32,
        f4: f32,
        f5: f32,
        f6: f32,
        f7: f32,
    }

    /// Arguments of `quantize_rows`, which quantizes each row of a matrix.
    struct QuantizeRowsArgs {
        /// The matrix, `[rows, cols]`. Each block of the grid quantizes a row.
        x: InputAddress,
        /// The integers, as floats, `[rows, cols]`.
        q: OutputAddress,
        /// The factor from an integer to a value, `[rows]`; NaN for a row with a value that is not finite.
        from_integer: OutputAddress,
        cols: u32,
        /// Bits that the largest magnitude of each row is taken to have at least.
        min_magnitude: u32,
        to_integer_factors: EighthFactors,
        from_integer_factors: EighthFactors,
    }

    /// Arguments of `gemm_quantized`, which computes `acc + a W^T` of integers and their factors.
    struct GemmQuantizedArgs {
        /// The integers of `a`, as floats, `[rows, inner]`.
        a: InputAddress,
        /// The factor of each row of `a`, `[rows]`.
        from_integer: InputAddress,
        /// The integers of W, as floats, `[cols, inner]`.
        w: InputAddress,
        /// The factor of each row of W, `[cols]`.
        scale: InputAddress,
        /// What the product is added to, `[rows, cols]` or one row; null for 0.
        acc: InputAddress,
        /// The result, `[rows, cols]`.
        out: OutputAddress,
        /// Number of elements of `out`.
        len: u64,
        cols: u32,
        inner: u32,
        /// Number of products in a block.
        block: u32,
        /// Whether `acc` is one row, used for all rows.
        acc_is_row: u32,
    }

    /// Arguments of `column_sums`, which sums each column of a matrix, in the order of summation of the product of a
    /// row of ones with the matrix.
    struct ColumnSumArgs {
        /// The first segment of the matrix, `[rows, cols]`.
        x: InputAddress,
        /// Factors by which the elements are multiplied before they are summed, `[rows, cols]`; null for 1.
        factor: InputAddress,
        /// What the sums are added to, `[cols]`; null for 0.
        acc: InputAddress,
        /// The sums, `[cols]`.
        out: OutputAddress,
        /// Number of sequences that have each step, from the first segment's first step on. Rows of shorter sequences
        /// are left out. Null if all sequences have all steps.
        active_counts: CountsAddress,
        rows: u32,
        cols: u32,
        /// Number of elements from one row of `x` to the next.
        x_stride: u32,
        /// Number of rows per step: the batch size.
        batch: u32,
        /// Number of segments. Their sums are added one after another.
        segments: u32,
        /// Number of rows from one segment to the next.
        segment_stride: i32,
    }

    /// Options of a cell, which select its equations. All but `clip` are 0 or 1.
    struct CellOptions {
        /// Whether the recurrent weights multiply the cell state (dense peepholes).
        dense_peephole: u32,
        /// Whether the forget gate is one minus the input gate.
        coupled_gates: u32,
        /// Whether the gates' pre-activations are clipped to `[-clip, clip]`.
        has_clip: u32,
        clip: f32,
    }

    /// Arguments of the forward kernels for one step. Without a projection they compute the whole step; with a
    /// projection they compute only the projection's input.
    struct ForwardStepArgs {
        /// `bias + W x`, `[batch, 4 * hidden]`.
        z: InputAddress,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: InputAddress,
        /// h before the step, `[batch, state_size]`.
        h_old: InputAddress,
        /// c before the step, `[batch, hidden]`.
        c_old: InputAddress,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: InputAddress,
        /// h after the step, `[batch, state_size]`; null with a projection.
        h_new: OutputAddress,
        /// c after the step, `[batch, hidden]`.
        c_new: OutputAddress,
        /// The step's output, `[batch, state_size]`; null with a projection, or if it is not needed.
        y: OutputAddress,
        /// The gates' activations, `[batch, 4 * hidden]`; null in inference.
        gates: OutputAddress,
        /// The projection's input, `[batch, hidden]`; null without a projection.
        projection_input: OutputAddress,
        batch: u32,
        /// Number of sequences that are long enough to have this step. They are the first rows of the batch; the other
        /// rows keep their state.
        active_rows: u32,
        hidden: u32,
        /// Number of elements of h: the projection's size, or `hidden`.
        state_size: u32,
        cell: CellOptions,
    }

    /// Arguments of the kernels that compute the projection of one step.
    struct ProjectionArgs {
        /// The projection's input, `[batch, hidden]`.
        projection_input: InputAddress,
        /// The projection's weights, `[state_size, hidden]`.
        w_hr: InputAddress,
        /// h before the step, `[batch, state_size]`.
        h_old: InputAddress,
        /// h after the step, `[batch, state_size]`.
        h_new: OutputAddress,
        /// The step's output, `[batch, state_size]`; null if it is not needed.
        y: OutputAddress,
        batch: u32,
        /// Number of sequences that are long enough to have this step. They are the first rows of the batch; the other
        /// rows keep their state.
        active_rows: u32,
        hidden: u32,
        /// Number of elements of h.
        state_size: u32,
    }

    /// Arguments of the kernels that run the forward pass of all steps in one launch. The `persistent` kernels run all
    /// sequences on blocks that are resident at the same time. In the `cluster` kernel each cluster runs some of the
    /// sequences, and snaps their initial state itself.
    struct ForwardSequenceArgs {
        /// `bias + W x`, `[steps * batch, 4 * hidden]`.
        z: InputAddress,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: InputAddress,
        /// The initial h, `[batch, state_size]`.
        h0: InputAddress,
        /// The initial c, `[batch, hidden]`.
        c0: InputAddress,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: InputAddress,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: InputAddress,
        /// The outputs, `[steps * batch, state_size]`. Unless there are dense peepholes, the blocks of `persistent`
        /// kernels exchange h through this buffer, which must then be filled with sentinels before the launch.
        y: OutputAddress,
        /// A second buffer, `[steps * batch, hidden]`, filled with sentinels before the launch, through which the
        /// blocks of `persistent` kernels exchange c (with dense peepholes) or the projection's input. Null otherwise.
        exchange_buffer: OutputAddress,
        /// h before and after each step, `[steps + 1, batch, state_size]`, for the backward pass; null in inference.
        trace_h: OutputAddress,
        /// c before and after each step, `[steps + 1, batch, hidden]`, for the backward pass; null in inference.
        trace_c: OutputAddress,
        /// The gates' activations, `[steps * batch, 4 * hidden]`, for the backward pass; null in inference.
        trace_gates: OutputAddress,
        /// The final h, `[batch, state_size]`.
        h_last: OutputAddress,
        /// The final c, `[batch, hidden]`.
        c_last: OutputAddress,
        /// Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
        active_counts: CountsAddress,
        steps: u32,
        batch: u32,
        hidden: u32,
        /// Number of units that each block computes.
        units_per_block: u32,
        /// Number of sequences in a row group, the sequences that a block or a cluster processes together.
        group_rows: u32,
        /// Whether steps run from the last to the first.
        reverse: u32,
        /// Number of elements of h.
        state_size: u32,
        /// Number of elements of h that each block computes.
        features_per_block: u32,
        /// Number of rows of a row group whose sums are computed at a time.
        tile_rows: u32,
        /// For clusters, how many of a block's groups of four sums have their weights in registers; the others have
        /// them in shared memory.
        quads_in_registers: u32,
        cell: CellOptions,
    }

    /// Values of the activation functions at the bounds to which pre-activations are clipped. Where a gate's activation
    /// has such a value, the gate's gradient is 0.
    struct GateBounds {
        sigmoid_min: f32,
        sigmoid_max: f32,
        tanh_min: f32,
        tanh_max: f32,
    }

    /// Arguments of the backward kernels for one step. The backward pass visits the steps one after another. For each
    /// step the kernels multiply the gates' gradients of the previously visited step by U, which gives the gradient of
    /// h after this step, and then compute this step's gates' gradients. After the last step they run once more, only
    /// to compute the gradient of the initial state.
    struct BackwardStepArgs {
        /// Gates' gradients of the previously visited step, `[batch, 4 * hidden]`.
        dz_next: InputAddress,
        /// Gates' activations of the previously visited step, `[batch, 4 * hidden]`.
        gates_next: InputAddress,
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: InputAddress,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: InputAddress,
        /// Gradient of this step's output, `[batch, state_size]`.
        dy: InputAddress,
        /// This step's gates' activations, `[batch, 4 * hidden]`.
        gates: InputAddress,
        /// c before this step, `[batch, hidden]`.
        c_old: InputAddress,
        /// c after this step, `[batch, hidden]`.
        c_new: InputAddress,
        /// h after this step, `[batch, state_size]`.
        h_new: InputAddress,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: InputAddress,
        /// Gradient of h, `[batch, state_size]`, which each launch updates.
        dh: OutputAddress,
        /// Gradient of c, `[batch, hidden]`, which each launch updates.
        dc: OutputAddress,
        /// This step's gates' gradients, `[batch, 4 * hidden]`; null in the extra launch after the last step.
        dz: OutputAddress,
        /// With a projection, the gradient of the projected h, `[batch, state_size]`; null otherwise.
        dh_projected: OutputAddress,
        /// With a projection, the input of the projection, `[batch, hidden]`; null otherwise.
        projection_input: OutputAddress,
        /// The recurrent product of each gate, `[4, batch, state_size]`, if a separate kernel computes it.
        gate_products: OutputAddress,
        batch: u32,
        /// Number of sequences that are long enough to have this step.
        active_rows: u32,
        /// Number of sequences that are long enough to have the previously visited step.
        active_rows_next: u32,
        hidden: u32,
        /// Number of elements of h.
        state_size: u32,
        padding: u32,
        cell: CellOptions,
        bounds: GateBounds,
    }

    /// Arguments of the kernels that run the backward pass of all steps in one launch. They are the counterpart of
    /// `ForwardSequenceArgs`.
    struct BackwardSequenceArgs {
        /// The recurrent weights, `[4 * hidden, state_size]`.
        u: InputAddress,
        /// Gradients of the outputs, `[steps * batch, state_size]`.
        dy: InputAddress,
        /// The gates' activations, `[steps * batch, 4 * hidden]`.
        gates: InputAddress,
        /// h before and after each step, `[steps + 1, batch, state_size]`.
        h: InputAddress,
        /// c before and after each step, `[steps + 1, batch, hidden]`.
        c: InputAddress,
        /// The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
        peephole: InputAddress,
        /// The projection's weights, `[state_size, hidden]`; null if there is none.
        w_hr: InputAddress,
        /// Gradient of h, `[batch, state_size]`: of the final h (snapped) before the launch, and of the initial h after
        /// it.
        dh: OutputAddress,
        /// Gradient of c, `[batch, hidden]`: of the final c (snapped) before the launch, and of the initial c after it.
        dc: OutputAddress,
        /// The gates' gradients, `[steps * batch, 4 * hidden]`. The blocks of `persistent` kernels exchange them
        /// through this buffer, which must then be filled with sentinels before the launch.
        dz: OutputAddress,
        /// With a projection, the gradients of the projected h, `[steps * batch, state_size]`, filled with sentinels
        /// before the launch; null otherwise.
        dh_projected: OutputAddress,
        /// With a projection, the input of the projection, `[steps * batch, hidden]`; null otherwise.
        projection_input: OutputAddress,
        /// Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
        active_counts: CountsAddress,
        steps: u32,
        batch: u32,
        hidden: u32,
        /// Number of units that each block computes.
        units_per_block: u32,
        /// Number of sequences in a row group, the sequences that a block or a cluster processes together.
        group_rows: u32,
        /// Whether the forward pass ran from the last step to the first.
        reverse: u32,
        /// Number of elements of h.
        state_size: u32,
        /// Number of elements of h that each block computes.
        features_per_block: u32,
        /// Number of rows of a row group whose sums are computed at a time.
        tile_rows: u32,
        /// For clusters, how many of a block's groups of four sums have their weights in registers; the others have
        /// them in shared memory.
        quads_in_registers: u32,
        cell: CellOptions,
        bounds: GateBounds,
    }
}

impl CellOptions {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        CellOptions {
            dense_peephole: (spec.cell == CellKind::PeepholeDense).into(),
            coupled_gates: spec.coupled.into(),
            has_clip: spec.clip.is_some().into(),
            clip: spec.clip.unwrap_or(0.0),
        }
    }
}

impl EighthFactors {
    pub(crate) fn new([f0, f1, f2, f3, f4, f5, f6, f7]: [f32; 8]) -> Self {
        EighthFactors { f0, f1, f2, f3, f4, f5, f6, f7 }
    }
}

impl GateBounds {
    pub(crate) fn new(spec: &LayerSpec) -> Self {
        let bound = spec.clip.unwrap_or(0.0);
        GateBounds {
            sigmoid_min: arithmetic::sigmoid(-bound),
            sigmoid_max: arithmetic::sigmoid(bound),
            tanh_min: arithmetic::tanh(-bound),
            tanh_max: arithmetic::tanh(bound),
        }
    }
}
