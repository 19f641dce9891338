// What each kernel is launched with. `src/args.rs` has the same structs; pointers first, so that nothing is padded.

struct MapArgs {
    const float *x;
    float *out;
    u64 len;
    u32 op; // 0 snap, 1 sigmoid, 2 tanh, 3 clip, 4 the sentinel of data that carry their own validity
    float bound;
};

struct MulAddArgs {
    const float *a, *b, *c; // b and c may be null
    float *out;
    u64 len;
    u32 cols, b_row, c_row; // whether b or c is one row
    float alpha;
};

struct WithinArgs {
    const float *x, *by, *low, *high;
    float *out;
    u64 len;
    u32 cols, unused;
};

struct CopyArgs {
    const float *from;
    float *to;
    u64 rows;
    u32 cols, from_stride, to_stride, snapped;
};

// out = (acc + a . b) + a' . b' + ..., with as many parts of the operands as there are; acc may be null. `gemm_large` has one.
struct GemmArgs {
    const float *a, *b, *acc;
    float *out;
    u32 rows, cols, depth, parts;
    u32 a_row, a_depth; // distances between elements
    int a_part;
    u32 b_col, b_depth;
    int b_part;
    u32 acc_row, snapped;       // acc_row 0: one row for all; snapped 1: a is snapped first, 2: b, 3: both
};

// Columns' sums over rows, in the order of a product with a row of ones; `by` multiplies first, where a sequence has the
// step of its row.
struct SumArgs {
    const float *d, *by, *acc;
    float *out;
    const u32 *active; // null: all of the batch, at every step
    u32 rows, cols, d_stride, batch;
    u32 parts;
    int part; // rows from one part to the next; parts' sums are joined from the left
};

// Which equations.
struct CellOptions {
    u32 dense, coupled, clipped;
    float clip;
};

// One step of a sequence, all rows of the batch.
struct StepArgs {
    const float *z; // bias + W x, [batch, 4 * hidden]
    const float *u; // [4 * hidden, state]
    const float *h_old, *c_old, *peephole; // peephole: [3, hidden] or null
    float *h_new, *c_new, *y, *gates;      // gates may be null; with a projection h_new and y are null
    float *unprojected;                    // [batch, hidden], with a projection
    u32 batch, active, hidden, state;
    CellOptions cell;
};

// The projection of a step.
struct ProjectArgs {
    const float *unprojected, *w, *h_old;
    float *h_new, *y;
    u32 batch, active, hidden, state;
};

// All steps, in one launch whose blocks are all resident, or of clusters, each with some of the sequences. Clusters pass
// nothing on through memory, and snap h0 and c0 on their way.
struct PersistentArgs {
    const float *z, *u, *h0, *c0, *peephole, *w_hr; // w_hr: a projection's [state, hidden], or null
    float *y;             // [steps * batch, state], the sentinel everywhere at first unless c is passed on instead
    float *passed;        // [steps * batch, hidden], too: the dense peephole's c or a projection's operand; else null
    float *h, *c, *gates; // what training keeps, or null
    float *h_last, *c_last;
    const u32 *active; // null: all of the batch, at every step
    u32 steps, batch, hidden, units, rows, reverse; // units a block has, rows it takes at a time, or that a cluster has
    u32 state, features;                            // h's size, and how much of it a block has
    u32 part, held; // of those rows, how many are summed together; what a cluster's block has in registers: see `Part`
    CellOptions cell;
};

// The value of a clipped gate at its bounds.
struct GateBounds {
    float sigmoid_low, sigmoid_high, tanh_low, tanh_high;
};

// A step of the way back: what the step after it (on the walk forward) gives through U, then the gates' gradients.
struct BackArgs {
    const float *dz_next;    // [batch, 4 * hidden] of the step visited before
    const float *gates_next; // its gates
    const float *u, *w_hr;   // w_hr: [state, hidden] or null
    const float *dy, *gates, *c_old, *c_new, *h_new, *peephole;
    float *dh, *dc;      // the state's gradients, [batch, state] and [batch, hidden]
    float *dz;           // [batch, 4 * hidden]
    float *projected;    // with a projection: dh of the projected h, [batch, state]
    float *unprojected;  // and its operand, [batch, hidden]
    float *sums;         // the gates' products where they are made apart, [4, batch, state]
    u32 batch, active, active_next, hidden, state, unused;
    CellOptions cell;
    GateBounds bounds;
};

// All steps of the way back, in such a launch.
struct PersistentBackArgs {
    const float *u, *dy, *gates, *h, *c, *peephole, *w_hr;
    float *dh, *dc; // the final state's gradients, snapped; then the initial one's
    float *dz;      // [steps * batch, 4 * hidden], the sentinel everywhere at first
    float *projected;   // with a projection: dh of the projected h, [steps * batch, state], too
    float *unprojected; // and its operand, [steps * batch, hidden]
    const u32 *active;
    u32 steps, batch, hidden, units, rows, reverse;
    u32 state, features, part, held;
    CellOptions cell;
    GateBounds bounds;
};
