//! The parameters of kernels: one definition of each, from which both the struct here and the shader's come.

use bytemuck::{Pod, Zeroable};

/// What a dispatch hands to its kernel besides buffers.
pub(crate) trait Parameters: Pod {
    const DEFINITION: Definition;
}

/// How a shader sees parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Definition {
    /// `Params`, and the variable `p` that holds them.
    pub(crate) wgsl: &'static str,
    /// Bytes of the Rust struct, and where its members start.
    #[cfg(test)]
    pub(crate) size: usize,
    #[cfg(test)]
    pub(crate) members: &'static [(&'static str, usize)],
}

/// Members are `u32`, `i32` or `f32`, which both languages call the same and lay out the same.
macro_rules! parameters {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$of:meta])* $member:ident: $type:ident,)* })*) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
        pub(crate) struct $name { $($(#[$of])* pub(crate) $member: $type,)* }

        impl Parameters for $name {
            const DEFINITION: Definition = Definition {
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
    /// Of the probe's kernels.
    struct Length {
        len: u32,
    }

    /// See `unary.wgsl`.
    struct UnaryParameters {
        len: u32,
        bound: f32,
    }

    /// See `mul_add.wgsl`. `b` and `c`: how these operands are there, see [`ABSENT`].
    struct MulAddParameters {
        len: u32,
        cols: u32,
        b: u32,
        c: u32,
        alpha: f32,
    }

    /// See `within.wgsl`.
    struct WithinParameters {
        len: u32,
        cols: u32,
    }

    /// A rectangle and where it lies in both matrices, in elements; see `copy.wgsl`.
    struct Copy {
        rows: u32,
        cols: u32,
        x_start: u32,
        x_cols: u32,
        y_start: u32,
        y_cols: u32,
        snap: u32,
    }

    /// A product over segments; see `gemm_interface.wgsl`.
    struct Gemm {
        m: u32,
        n: u32,
        /// Over all segments, and of each but the last in memory, which may be shorter.
        k: u32,
        segment: u32,
        segments: u32,
        /// Whether the segments are visited from the last to the first.
        descending: u32,
        /// How the accumulator is there, see [`ABSENT`].
        acc: u32,
        /// [`SNAP_A`]: a is snapped as it is read.
        snap: u32,
        /// Where element (row, k, segment) of a, and (k, column, segment) of b, is.
        a_row: u32,
        a_k: u32,
        a_segment: u32,
        a_start: u32,
        b_k: u32,
        b_col: u32,
        b_segment: u32,
        b_start: u32,
    }

    /// See `forward.wgsl`.
    struct Steps {
        batch: u32,
        steps: u32,
        hidden: u32,
        state: u32,
        /// The visits to make: visit v is step v, or steps - 1 - v in reverse.
        first: u32,
        last: u32,
        reverse: u32,
        has_lengths: u32,
        /// The row of the whole sequence at which `gates` starts.
        gates_row: u32,
        /// States are kept in a ring of so many places.
        ring: u32,
        clip: f32,
    }

    /// See `project.wgsl`.
    struct Project {
        batch: u32,
        hidden: u32,
        state: u32,
        /// Rows of the sequence before this step, and of m before its rows.
        row: u32,
        m_row: u32,
        step: u32,
        /// Where h is before and after the step.
        h_before: u32,
        h_after: u32,
        has_lengths: u32,
    }

    /// See `backward.wgsl` and `state_gradient.wgsl`.
    struct BackwardSteps {
        batch: u32,
        steps: u32,
        hidden: u32,
        state: u32,
        /// The visits to make: visit v is step steps - 1 - v, or v for a reverse layer. After the last step, visit `steps`
        /// gives the gradients of the initial state.
        first: u32,
        last: u32,
        reverse: u32,
        has_lengths: u32,
        /// The values of sigmoid and of tanh at the clip's bounds.
        sigmoid_low: f32,
        sigmoid_high: f32,
        tanh_low: f32,
        tanh_high: f32,
    }
}

/// How an operand is there.
pub(crate) const ABSENT: u32 = 0;
/// One row for all.
pub(crate) const ROW: u32 = 1;
/// As large as the result.
pub(crate) const FULL: u32 = 2;

/// In [`Gemm::snap`].
pub(crate) const SNAP_A: u32 = 1;

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::*;
    use crate::shader::Kernel;

    #[test]
    fn those_of_another_kernel_are_refused() {
        let Some(wgpu) = crate::guards::tests::open(false) else { return };
        let memory = wgpu.gpu().allocate("test", 1).unwrap();
        let other = wgpu.gpu().allocate("test", 1).unwrap();
        let run = wgpu.gpu().run("test", Kernel::Copy, &[&memory, &other], &Length { len: 1 }, 1);
        assert!(run.unwrap_err().to_string().contains("parameters of another kernel"));
    }
}
