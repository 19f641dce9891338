// Arguments of the kernels. Generated from `src/kernels/args.rs`; do not edit.

// Arguments of `map`, which applies one function to each element.
struct MapArgs {
    // The operand, `[len]`.
    const float *x;
    // The result, `[len]`; may be `x`.
    float *out;
    u64 len;
    // The function: 0 snap, 1 sigmoid, 2 tanh, 3 clip to `[-bound, bound]`, 4 the sentinel, whatever `x` is.
    u32 op;
    float bound;
};

// Arguments of `mul_add`: `out = alpha * a * b + c`, elementwise.
struct MulAddArgs {
    const float *a;
    // The factor, as large as `a` or one row; null for 1.
    const float *b;
    // The summand, as large as `a` or one row; null for 0.
    const float *c;
    float *out;
    // Number of elements of `a` and `out`.
    u64 len;
    u32 cols;
    // Whether `b` is one row, used for all rows.
    u32 b_is_row;
    // Whether `c` is one row, used for all rows.
    u32 c_is_row;
    float alpha;
};

// Arguments of `select_between`: `out` is `x` where `low < by < high`, else +0.
struct SelectBetweenArgs {
    const float *x;
    const float *by;
    // The lower bounds, one row, `[cols]`.
    const float *low;
    // The upper bounds, one row, `[cols]`.
    const float *high;
    float *out;
    // Number of elements of `x`, `by` and `out`.
    u64 len;
    u32 cols;
    u32 padding;
};

// Arguments of `copy`, which copies a matrix between two row strides.
struct CopyArgs {
    const float *from;
    float *to;
    u64 rows;
    u32 cols;
    // Elements from one row of `from` to the next.
    u32 from_stride;
    // Elements from one row of `to` to the next.
    u32 to_stride;
    // Whether values are snapped while they are copied.
    u32 snap;
};

// Arguments of the matrix products: `out = (acc + a_0 b_0) + a_1 b_1 + ...`, with as many terms as there are
// segments. `gemm_large` computes one segment only.
struct GemmArgs {
    // The first segment of the left operand, `[rows, depth]`.
    const float *a;
    // The first segment of the right operand, `[depth, cols]`.
    const float *b;
    // What the products are added to, `[rows, cols]`; null for 0.
    const float *acc;
    // The result, `[rows, cols]`, row-major; may be `acc`.
    float *out;
    u32 rows;
    u32 cols;
    // The inner dimension of each product.
    u32 depth;
    u32 segments;
    // Elements from one row of `a` to the next.
    u32 a_row_stride;
    // Elements of `a` from one index of the inner dimension to the next.
    u32 a_depth_stride;
    // Elements from one segment of `a` to the next.
    int a_segment_stride;
    // Elements from one column of `b` to the next.
    u32 b_col_stride;
    // Elements of `b` from one index of the inner dimension to the next.
    u32 b_depth_stride;
    // Elements from one segment of `b` to the next.
    int b_segment_stride;
    // Elements from one row of `acc` to the next; 0 if `acc` is one row, used for all rows.
    u32 acc_row_stride;
    // Which operands are snapped as they are read: bit 0 for `a`, bit 1 for `b`.
    u32 snap;
};

// Arguments of `column_sums`, which sums the rows of a matrix in the order of a product with a row of ones.
struct ColumnSumArgs {
    // The first segment, `[rows, cols]`.
    const float *x;
    // Factors of the elements, `[rows, cols]`; null for 1.
    const float *factor;
    // What the sums are added to, `[cols]`; null for 0.
    const float *acc;
    // The sums, `[cols]`.
    float *out;
    // Number of sequences that have each step, from the first segment's first step on. Rows of other sequences are
    // left out. Null if all sequences have all steps.
    const u32 *active_counts;
    u32 rows;
    u32 cols;
    // Elements from one row of `x` to the next.
    u32 x_stride;
    // Number of rows per step: the batch size.
    u32 batch;
    // Number of segments. Their sums are added one after another.
    u32 segments;
    // Rows from one segment to the next.
    int segment_stride;
};

// Options of a cell, which select its equations. All but `clip` are 0 or 1.
struct CellOptions {
    // Whether the recurrent weights multiply the cell state (dense peepholes).
    u32 dense_peephole;
    // Whether the forget gate is one minus the input gate.
    u32 coupled_gates;
    // Whether the gates' sums are clipped to `[-clip, clip]`.
    u32 clips;
    float clip;
};

// Arguments of the forward kernels for one step. Without a projection they compute the whole step; with a
// projection they compute its operand.
struct ForwardStepArgs {
    // `bias + W x`, `[batch, 4 * hidden]`.
    const float *z;
    // The recurrent weights, `[4 * hidden, state_size]`.
    const float *u;
    // h before the step, `[batch, state_size]`.
    const float *h_old;
    // c before the step, `[batch, hidden]`.
    const float *c_old;
    // The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
    const float *peephole;
    // h after the step, `[batch, state_size]`; null with a projection.
    float *h_new;
    // c after the step, `[batch, hidden]`.
    float *c_new;
    // The step's output, `[batch, state_size]`; null with a projection, or if it is not needed.
    float *y;
    // The gates' activations, `[batch, 4 * hidden]`; null in inference.
    float *gates;
    // The projection's operand, `[batch, hidden]`; null without a projection.
    float *unprojected;
    u32 batch;
    // Number of sequences that have this step. They are the first rows; the other rows keep their state.
    u32 active;
    u32 hidden;
    // Size of h: the projection's size, or `hidden`.
    u32 state_size;
    CellOptions cell;
};

// Arguments of the kernels that compute the projection of one step.
struct ProjectionArgs {
    // The projection's operand, `[batch, hidden]`.
    const float *unprojected;
    // The projection's weights, `[state_size, hidden]`.
    const float *w_hr;
    // h before the step, `[batch, state_size]`.
    const float *h_old;
    // h after the step, `[batch, state_size]`.
    float *h_new;
    // The step's output, `[batch, state_size]`; null if it is not needed.
    float *y;
    u32 batch;
    // Number of sequences that have this step. They are the first rows; the other rows keep their state.
    u32 active;
    u32 hidden;
    // Size of h.
    u32 state_size;
};

// Arguments of the kernels that run the forward pass of all steps in one launch. The `persistent` kernels run all
// sequences on blocks that are resident at the same time. In the `cluster` kernel each cluster runs some of the
// sequences, and snaps their initial state itself.
struct ForwardSequenceArgs {
    // `bias + W x`, `[steps * batch, 4 * hidden]`.
    const float *z;
    // The recurrent weights, `[4 * hidden, state_size]`.
    const float *u;
    // The initial h, `[batch, state_size]`.
    const float *h0;
    // The initial c, `[batch, hidden]`.
    const float *c0;
    // The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
    const float *peephole;
    // The projection's weights, `[state_size, hidden]`; null if there is none.
    const float *w_hr;
    // The outputs, `[steps * batch, state_size]`. `persistent` kernels exchange h through them, for which they
    // start as sentinels; with dense peepholes they exchange c instead.
    float *y;
    // `[steps * batch, hidden]`, sentinels at first: a second buffer through which `persistent` kernels exchange
    // the dense peephole's c or the projection's operand. Null otherwise.
    float *exchange;
    // h before and after each step, `[steps + 1, batch, state_size]`, for the backward pass; null in inference.
    float *trace_h;
    // c before and after each step, `[steps + 1, batch, hidden]`, for the backward pass; null in inference.
    float *trace_c;
    // The gates' activations, `[steps * batch, 4 * hidden]`, for the backward pass; null in inference.
    float *trace_gates;
    // The final h, `[batch, state_size]`.
    float *h_last;
    // The final c, `[batch, hidden]`.
    float *c_last;
    // Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
    const u32 *active_counts;
    u32 steps;
    u32 batch;
    u32 hidden;
    // Number of units per block.
    u32 units;
    // Number of sequences that a block, or a cluster, processes together: a row group.
    u32 group_rows;
    // Whether steps run from the last to the first.
    u32 reverse;
    // Size of h.
    u32 state_size;
    // Number of elements of h per block.
    u32 features;
    // Number of rows of a row group whose sums are computed at a time.
    u32 tile_rows;
    // For clusters, how many of a block's groups of four sums have their weights in registers; the others have
    // them in shared memory.
    u32 register_quads;
    CellOptions cell;
};

// Values of the activations at the bounds of clipped gates. Where a gate has such a value, its gradient is 0.
struct GateBounds {
    float sigmoid_low;
    float sigmoid_high;
    float tanh_low;
    float tanh_high;
};

// Arguments of the backward kernels for one step. They multiply the gates' gradients of the step visited before
// by U, which gives the gradient of h after this step, and then compute this step's gates' gradients. After the
// last step they run once more, without a step of their own, for the gradient of the initial state.
struct BackwardStepArgs {
    // Gates' gradients of the step visited before, `[batch, 4 * hidden]`.
    const float *dz_next;
    // Gates' activations of the step visited before, `[batch, 4 * hidden]`.
    const float *gates_next;
    // The recurrent weights, `[4 * hidden, state_size]`.
    const float *u;
    // The projection's weights, `[state_size, hidden]`; null if there is none.
    const float *w_hr;
    // Gradient of this step's output, `[batch, state_size]`.
    const float *dy;
    // This step's gates' activations, `[batch, 4 * hidden]`.
    const float *gates;
    // c before this step, `[batch, hidden]`.
    const float *c_old;
    // c after this step, `[batch, hidden]`.
    const float *c_new;
    // h after this step, `[batch, state_size]`.
    const float *h_new;
    // The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
    const float *peephole;
    // Running gradient of h, `[batch, state_size]`.
    float *dh;
    // Running gradient of c, `[batch, hidden]`.
    float *dc;
    // This step's gates' gradients, `[batch, 4 * hidden]`; null after the last step.
    float *dz;
    // With a projection, the gradient of the projected h, `[batch, state_size]`; null otherwise.
    float *dh_projected;
    // With a projection, its operand, `[batch, hidden]`; null otherwise.
    float *unprojected;
    // The recurrent product of each gate, `[4, batch, state_size]`, if a separate kernel computes it.
    float *gate_products;
    u32 batch;
    // Number of sequences that have this step.
    u32 active;
    // Number of sequences that have the step visited before.
    u32 active_next;
    u32 hidden;
    // Size of h.
    u32 state_size;
    u32 padding;
    CellOptions cell;
    GateBounds bounds;
};

// Arguments of the kernels that run the backward pass of all steps in one launch, as `ForwardSequenceArgs` does
// for the forward pass.
struct BackwardSequenceArgs {
    // The recurrent weights, `[4 * hidden, state_size]`.
    const float *u;
    // Gradients of the outputs, `[steps * batch, state_size]`.
    const float *dy;
    // The gates' activations, `[steps * batch, 4 * hidden]`.
    const float *gates;
    // h before and after each step, `[steps + 1, batch, state_size]`.
    const float *h;
    // c before and after each step, `[steps + 1, batch, hidden]`.
    const float *c;
    // The weights of diagonal peepholes, `[3, hidden]`; null if there are none.
    const float *peephole;
    // The projection's weights, `[state_size, hidden]`; null if there is none.
    const float *w_hr;
    // Gradient of the final h, snapped, then of the initial h, `[batch, state_size]`.
    float *dh;
    // Gradient of the final c, snapped, then of the initial c, `[batch, hidden]`.
    float *dc;
    // The gates' gradients, `[steps * batch, 4 * hidden]`. `persistent` kernels exchange them here; for these they
    // start as sentinels.
    float *dz;
    // With a projection, the gradients of the projected h, `[steps * batch, state_size]`, sentinels at first; null
    // otherwise.
    float *dh_projected;
    // With a projection, its operand, `[steps * batch, hidden]`; null otherwise.
    float *unprojected;
    // Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
    const u32 *active_counts;
    u32 steps;
    u32 batch;
    u32 hidden;
    // Number of units per block.
    u32 units;
    // Number of sequences that a block, or a cluster, processes together: a row group.
    u32 group_rows;
    // Whether the forward pass ran from the last step to the first.
    u32 reverse;
    // Size of h.
    u32 state_size;
    // Number of elements of h per block.
    u32 features;
    // Number of rows of a row group whose sums are computed at a time.
    u32 tile_rows;
    // For clusters, how many of a block's groups of four sums have their weights in registers; the others have
    // them in shared memory.
    u32 register_quads;
    CellOptions cell;
    GateBounds bounds;
};
