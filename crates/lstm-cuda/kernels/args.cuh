// Arguments of the kernels. Generated from `src/kernels/args.rs`; do not edit.

// Arguments of `map`, which applies one function to each element.
struct MapArgs {
    // The operand, `[len]`.
    const float *x;
    // The result, `[len]`; may be `x`.
    float *out;
    u64 len;
    // Which function is applied: 0 snap (magnitudes below 2^-40 become +0), 1 sigmoid, 2 tanh, 3 clip to
    // `[-bound, bound]`, 4 the constant sentinel (a word with all bits set).
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

// Arguments of `select_between`: `out` is `x` where `low < selector < high`, else +0.
struct SelectBetweenArgs {
    const float *x;
    const float *selector;
    // The lower bounds, one row, `[cols]`.
    const float *low;
    // The upper bounds, one row, `[cols]`.
    const float *high;
    float *out;
    // Number of elements of `x`, `selector` and `out`.
    u64 len;
    u32 cols;
    u32 padding;
};

// Arguments of `copy`, which copies rows of a matrix to memory that may have another row stride.
struct CopyArgs {
    const float *src;
    float *dst;
    // The numbers of the rows that are copied, `[rows]`. A row has the same number in `src` and `dst`. Null to copy
    // the first `rows` rows.
    const u32 *row_numbers;
    // Number of rows that are copied.
    u64 rows;
    u32 cols;
    // Number of elements from one row of `src` to the next.
    u32 src_stride;
    // Number of elements from one row of `dst` to the next.
    u32 dst_stride;
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
    // Number of elements from one row of `a` to the next.
    u32 a_row_stride;
    // Number of elements of `a` from one index of the inner dimension to the next.
    u32 a_depth_stride;
    // Number of elements from `a_0` to `a_1`, and from each further operand to the next.
    int a_segment_stride;
    // Number of elements from one column of `b` to the next.
    u32 b_col_stride;
    // Number of elements of `b` from one index of the inner dimension to the next.
    u32 b_depth_stride;
    // Number of elements from `b_0` to `b_1`, and from each further operand to the next.
    int b_segment_stride;
    // Number of elements from one row of `acc` to the next; 0 if `acc` is one row, used for all rows.
    u32 acc_row_stride;
    // Which operands are snapped as they are read: bit 0 for `a`, bit 1 for `b`.
    u32 snap;
};

// Factors of a quantized format, for largest magnitudes of 8/8, 9/8, ..., 15/8.
struct EighthFactors {
    float f0;
    float f1;
    float f2;
    float f3;
    float f4;
    float f5;
    float f6;
    float f7;
};

// Arguments of `quantize_rows`, which quantizes each row of a matrix.
struct QuantizeRowsArgs {
    // The matrix, `[rows, cols]`. Each block of the grid quantizes a row.
    const float *x;
    // The integers, as floats, `[rows, cols]`.
    float *q;
    // The factor from an integer to a value, `[rows]`; NaN for a row with a value that is not finite.
    float *from_integer;
    u32 cols;
    // Bits that the largest magnitude of each row is taken to have at least.
    u32 min_magnitude;
    EighthFactors to_integer_factors;
    EighthFactors from_integer_factors;
};

// Arguments of `gemm_quantized`, which computes `acc + a W^T` of integers and their factors.
struct GemmQuantizedArgs {
    // The integers of `a`, as floats, `[rows, inner]`.
    const float *a;
    // The factor of each row of `a`, `[rows]`.
    const float *from_integer;
    // The integers of W, as floats, `[cols, inner]`.
    const float *w;
    // The factor of each row of W, `[cols]`.
    const float *scale;
    // What the product is added to, `[rows, cols]` or one row; null for 0.
    const float *acc;
    // The result, `[rows, cols]`.
    float *out;
    // Number of elements of `out`.
    u64 len;
    u32 cols;
    u32 inner;
    // Number of products in a block.
    u32 block;
    // Whether `acc` is one row, used for all rows.
    u32 acc_is_row;
};

// Arguments of `column_sums`, which sums each column of a matrix, in the order of summation of the product of a
// row of ones with the matrix.
struct ColumnSumArgs {
    // The first segment of the matrix, `[rows, cols]`.
    const float *x;
    // Factors by which the elements are multiplied before they are summed, `[rows, cols]`; null for 1.
    const float *factor;
    // What the sums are added to, `[cols]`; null for 0.
    const float *acc;
    // The sums, `[cols]`.
    float *out;
    // Number of sequences that have each step, from the first segment's first step on. Rows of shorter sequences
    // are left out. Null if all sequences have all steps.
    const u32 *active_counts;
    u32 rows;
    u32 cols;
    // Number of elements from one row of `x` to the next.
    u32 x_stride;
    // Number of rows per step: the batch size.
    u32 batch;
    // Number of segments. Their sums are added one after another.
    u32 segments;
    // Number of rows from one segment to the next.
    int segment_stride;
};

// Options of a cell, which select its equations. All but `clip` are 0 or 1.
struct CellOptions {
    // Whether the recurrent weights multiply the cell state (dense peepholes).
    u32 dense_peephole;
    // Whether the forget gate is one minus the input gate.
    u32 coupled_gates;
    // Whether the gates' pre-activations are clipped to `[-clip, clip]`.
    u32 has_clip;
    float clip;
};

// Arguments of the forward kernels for one step. Without a projection they compute the whole step; with a
// projection they compute only the projection's input.
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
    // The projection's input, `[batch, hidden]`; null without a projection.
    float *projection_input;
    u32 batch;
    // Number of sequences that are long enough to have this step. They are the first rows of the batch; the other
    // rows keep their state.
    u32 active_rows;
    u32 hidden;
    // Number of elements of h: the projection's size, or `hidden`.
    u32 state_size;
    CellOptions cell;
};

// Arguments of the kernels that compute the projection of one step.
struct ProjectionArgs {
    // The projection's input, `[batch, hidden]`.
    const float *projection_input;
    // The projection's weights, `[state_size, hidden]`.
    const float *w_hr;
    // h before the step, `[batch, state_size]`.
    const float *h_old;
    // h after the step, `[batch, state_size]`.
    float *h_new;
    // The step's output, `[batch, state_size]`; null if it is not needed.
    float *y;
    u32 batch;
    // Number of sequences that are long enough to have this step. They are the first rows of the batch; the other
    // rows keep their state.
    u32 active_rows;
    u32 hidden;
    // Number of elements of h.
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
    // The outputs, `[steps * batch, state_size]`. Unless there are dense peepholes, the blocks of `persistent`
    // kernels exchange h through this buffer, which must then be filled with sentinels before the launch.
    float *y;
    // A second buffer, `[steps * batch, hidden]`, filled with sentinels before the launch, through which the
    // blocks of `persistent` kernels exchange c (with dense peepholes) or the projection's input. Null otherwise.
    float *exchange_buffer;
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
    // Number of units that each block computes.
    u32 units_per_block;
    // Number of sequences in a row group, the sequences that a block or a cluster processes together.
    u32 group_rows;
    // Whether steps run from the last to the first.
    u32 reverse;
    // Number of elements of h.
    u32 state_size;
    // Number of elements of h that each block computes.
    u32 features_per_block;
    // Number of rows of a row group whose sums are computed at a time.
    u32 tile_rows;
    // For clusters, how many of a block's groups of four sums have their weights in registers; the others have
    // them in shared memory.
    u32 quads_in_registers;
    CellOptions cell;
};

// Values of the activation functions at the bounds to which pre-activations are clipped. Where a gate's activation
// has such a value, the gate's gradient is 0.
struct GateBounds {
    float sigmoid_min;
    float sigmoid_max;
    float tanh_min;
    float tanh_max;
};

// Arguments of the backward kernels for one step. The backward pass visits the steps one after another. For each
// step the kernels multiply the gates' gradients of the previously visited step by U, which gives the gradient of
// h after this step, and then compute this step's gates' gradients. After the last step they run once more, only
// to compute the gradient of the initial state.
struct BackwardStepArgs {
    // Gates' gradients of the previously visited step, `[batch, 4 * hidden]`.
    const float *dz_next;
    // Gates' activations of the previously visited step, `[batch, 4 * hidden]`.
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
    // Gradient of h, `[batch, state_size]`, which each launch updates.
    float *dh;
    // Gradient of c, `[batch, hidden]`, which each launch updates.
    float *dc;
    // This step's gates' gradients, `[batch, 4 * hidden]`; null in the extra launch after the last step.
    float *dz;
    // With a projection, the gradient of the projected h, `[batch, state_size]`; null otherwise.
    float *dh_projected;
    // With a projection, the input of the projection, `[batch, hidden]`; null otherwise.
    float *projection_input;
    // The recurrent product of each gate, `[4, batch, state_size]`, if a separate kernel computes it.
    float *gate_products;
    u32 batch;
    // Number of sequences that are long enough to have this step.
    u32 active_rows;
    // Number of sequences that are long enough to have the previously visited step.
    u32 active_rows_next;
    u32 hidden;
    // Number of elements of h.
    u32 state_size;
    u32 padding;
    CellOptions cell;
    GateBounds bounds;
};

// Arguments of the kernels that run the backward pass of all steps in one launch. They are the counterpart of
// `ForwardSequenceArgs`.
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
    // Gradient of h, `[batch, state_size]`: of the final h (snapped) before the launch, and of the initial h after
    // it.
    float *dh;
    // Gradient of c, `[batch, hidden]`: of the final c (snapped) before the launch, and of the initial c after it.
    float *dc;
    // The gates' gradients, `[steps * batch, 4 * hidden]`. The blocks of `persistent` kernels exchange them
    // through this buffer, which must then be filled with sentinels before the launch.
    float *dz;
    // With a projection, the gradients of the projected h, `[steps * batch, state_size]`, filled with sentinels
    // before the launch; null otherwise.
    float *dh_projected;
    // With a projection, the input of the projection, `[steps * batch, hidden]`; null otherwise.
    float *projection_input;
    // Number of sequences that have each step, `[steps]`; null if all sequences have all steps.
    const u32 *active_counts;
    u32 steps;
    u32 batch;
    u32 hidden;
    // Number of units that each block computes.
    u32 units_per_block;
    // Number of sequences in a row group, the sequences that a block or a cluster processes together.
    u32 group_rows;
    // Whether the forward pass ran from the last step to the first.
    u32 reverse;
    // Number of elements of h.
    u32 state_size;
    // Number of elements of h that each block computes.
    u32 features_per_block;
    // Number of rows of a row group whose sums are computed at a time.
    u32 tile_rows;
    // For clusters, how many of a block's groups of four sums have their weights in registers; the others have
    // them in shared memory.
    u32 quads_in_registers;
    CellOptions cell;
    GateBounds bounds;
};
