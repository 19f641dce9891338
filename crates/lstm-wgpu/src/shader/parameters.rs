//! Parameters of the kernels. One definition of each generates both the Rust struct and the WGSL struct.

use bytemuck::{Pod, Zeroable};

/// Parameters of a dispatch, which a kernel reads as the uniform `p`.
pub(crate) trait Parameters: Pod {
    const DEFINITION: ParameterDefinition;
}

/// Definition of a kernel's parameters in WGSL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ParameterDefinition {
    /// WGSL source of the struct `Params` and of the uniform `p`.
    pub(super) wgsl: &'static str,
    /// Size in bytes of the Rust struct.
    #[cfg(test)]
    pub(super) size: usize,
    /// Names and byte offsets of the members of the Rust struct.
    #[cfg(test)]
    pub(super) members: &'static [(&'static str, usize)],
}

/// Defines parameter structs. Members must be `u32`, `i32` or `f32`, whose names and layouts agree in Rust and WGSL.
macro_rules! parameters {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$member_doc:meta])* $member:ident: $type:ident,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub(crate) struct $name { $($(#[$member_doc])* pub(crate) $member: $type,)* }

        impl Parameters for $name {
            const DEFINITION: ParameterDefinition = ParameterDefinition {
                wgsl: concat!(
                    "struct Params { ",
                    $(stringify!($member), ": ", stringify!($type), ", ",)*
                    "}\n@group(1) @binding(0) var<uniform> p: Params;\n",
                ),
                #[cfg(test)]
                size: size_of::<$name>(),
                #[cfg(test)]
                members: &[$((stringify!($member), std::mem::offset_of!($name, $member))),*],
            };
        }
    )*};
}

parameters! {
    /// Parameters of the kernels that test the adapter's arithmetic.
    struct ProbeParameters {
        /// Number of results.
        len: u32,
    }

    /// Parameters of `unary.wgsl`.
    struct UnaryParameters {
        /// Number of elements.
        len: u32,
        /// Bound of the operation `Clip`.
        bound: f32,
    }

    /// Parameters of `mul_add.wgsl`.
    struct MulAddParameters {
        /// Number of elements.
        len: u32,
        cols: u32,
        /// Layout of the operand b: [`OPERAND_ABSENT`], [`OPERAND_ROW`] or [`OPERAND_FULL`].
        b_layout: u32,
        /// Layout of the operand c: [`OPERAND_ABSENT`], [`OPERAND_ROW`] or [`OPERAND_FULL`].
        c_layout: u32,
        alpha: f32,
    }

    /// Parameters of `select_between.wgsl`.
    struct SelectBetweenParameters {
        /// Number of elements.
        len: u32,
        cols: u32,
    }

    /// Parameters of `copy.wgsl`: a rectangle, and its offsets and row strides in both matrices, in elements.
    struct CopyParameters {
        rows: u32,
        cols: u32,
        x_offset: u32,
        x_stride: u32,
        y_offset: u32,
        y_stride: u32,
        /// 1 if values of magnitude below 2^-40 are replaced by +0 (`snap`), else 0.
        snap_values: u32,
    }

    /// Parameters of the matrix product, whose inner dimension k is divided into segments; see `gemm_common.wgsl`.
    /// Strides and offsets are in elements.
    struct GemmParameters {
        /// Number of rows of the result.
        m: u32,
        /// Number of columns of the result.
        n: u32,
        /// Inner dimension of the product, which is the total length of all segments.
        k: u32,
        /// Length of each segment of the inner dimension. The last segment may be shorter.
        segment_length: u32,
        segment_count: u32,
        /// 1 if the sums of the segments are added from the last segment to the first, else 0.
        descending_segments: u32,
        /// Layout of the accumulator: [`OPERAND_ABSENT`], [`OPERAND_ROW`] or [`OPERAND_FULL`].
        acc_layout: u32,
        /// 1 if elements of a are snapped when they are read, else 0.
        snap_a: u32,
        a_row_stride: u32,
        a_k_stride: u32,
        /// Number of elements in `a` from the start of one segment of the inner dimension k to the start of the next.
        a_segment_stride: u32,
        a_offset: u32,
        b_k_stride: u32,
        b_col_stride: u32,
        /// Number of elements in `b` from the start of one segment of the inner dimension k to the start of the next.
        b_segment_stride: u32,
        b_offset: u32,
    }

    /// Parameters of `quantize_rows.wgsl`.
    struct QuantizeRowsParameters {
        rows: u32,
        cols: u32,
        /// Bits that the largest magnitude of each row is taken to have at least.
        min_magnitude: u32,
    }

    /// Parameters of `gemm_quantized.wgsl`.
    struct GemmQuantizedParameters {
        /// Number of rows of the result.
        rows: u32,
        /// Number of columns of the result.
        cols: u32,
        /// Inner dimension of the product.
        inner: u32,
        /// Number of products in a block.
        block: u32,
        /// Layout of the accumulator: [`OPERAND_ABSENT`], [`OPERAND_ROW`] or [`OPERAND_FULL`].
        acc_layout: u32,
    }

    /// Parameters of `forward.wgsl`.
    struct ForwardParameters {
        batch: u32,
        steps: u32,
        hidden_size: u32,
        state_size: u32,
        /// First iteration to run. Iteration i processes step i, or step `steps - 1 - i` in a reverse layer.
        first_iteration: u32,
        /// One more than the last iteration to run.
        end_iteration: u32,
        /// 1 in a reverse layer, else 0.
        reverse: u32,
        /// 1 if each sequence has its own length, 0 if all have the same length.
        has_lengths: u32,
        /// Index of the row of the input that corresponds to row 0 of `gates`, which may hold only a chunk of the
        /// steps.
        gates_first_row: u32,
        /// Number of states in the ring buffer.
        state_slots: u32,
        /// Clip bound of the gates' pre-activations; ignored without clipping.
        clip: f32,
    }

    /// Parameters of `project.wgsl`. Offsets are in elements.
    struct ProjectParameters {
        batch: u32,
        hidden_size: u32,
        state_size: u32,
        /// First row of `y` that the step writes.
        y_first_row: u32,
        /// First row of the projection's input that the step reads.
        input_first_row: u32,
        step: u32,
        /// Offset in `states` of h before the step.
        h_old_offset: u32,
        /// Offset in `states` of h after the step.
        h_new_offset: u32,
        /// 1 if each sequence has its own length, 0 if all have the same length.
        has_lengths: u32,
    }

    /// Parameters of `backward.wgsl` and `state_gradient.wgsl`.
    struct BackwardParameters {
        batch: u32,
        steps: u32,
        hidden_size: u32,
        state_size: u32,
        /// First iteration to run. Iteration i processes step `steps - 1 - i`, or step i in a reverse layer. Iteration
        /// `steps` computes the gradients of the initial state.
        first_iteration: u32,
        /// One more than the last iteration to run.
        end_iteration: u32,
        /// 1 in a reverse layer, else 0.
        reverse: u32,
        /// 1 if each sequence has its own length, 0 if all have the same length.
        has_lengths: u32,
        /// Value of sigmoid at the lower clip bound, `sigmoid(-clip)`.
        sigmoid_low: f32,
        /// Value of sigmoid at the upper clip bound, `sigmoid(clip)`.
        sigmoid_high: f32,
        /// Value of tanh at the lower clip bound, `tanh(-clip)`.
        tanh_low: f32,
        /// Value of tanh at the upper clip bound, `tanh(clip)`.
        tanh_high: f32,
    }
}

/// Layout of an optional operand that is absent.
pub(crate) const OPERAND_ABSENT: u32 = 0;
/// Layout of an operand that is a single row, which applies to all rows.
pub(crate) const OPERAND_ROW: u32 = 1;
/// Layout of an operand that has the shape of the result.
pub(crate) const OPERAND_FULL: u32 = 2;
