// One step of the forward pass, one launch per step. Each block computes a tile of the recurrent product, and the cells
// of the same units and sequences.

// U as the right operand of a tile whose columns are units, with the four gates of each unit side by side.
struct InterleavedGates {
    const float *p;
    u32 lines, depth, hidden;
    static constexpr u32 line_stride = 0, depth_stride = 1;
    static constexpr bool snaps = false; // weights are stored snapped
    MEMBER bool along_depth() const { return true; }
    MEMBER bool allows_float4() const { return ((u64)p & 15) == 0 && depth % 4 == 0; }
    MEMBER bool contains(u32 k, u32 n) const { return k < depth && n < lines; }
    MEMBER const float *address(u32 k, u32 n) const { return p + (((u64)(n % 4) * hidden + n / 4) * depth + k); }
    MEMBER float snapped(float v) const { return v; }
    MEMBER float load(u32 k, u32 n) const { return contains(k, n) ? *address(k, n) : 0.0f; }
};

// A step's results for one unit of one sequence.
struct CellOutput {
    float gates[4], c, h;
};

// Loads the four values of one unit, from rows of `hidden` values, one per gate.
DEVICE float4 load_gates(const float *x, u32 hidden) {
    return {x[0], x[hidden], x[2 * (u64)hidden], x[3 * (u64)hidden]};
}

// The diagonal peephole weights of one unit, from vectors of all units with stride `hidden`; absent if `vectors` is
// null.
struct Peephole {
    bool present;
    float i = 0.0f, f = 0.0f, o = 0.0f;
    MEMBER Peephole(const float *vectors, u32 hidden, u32 unit) : present(vectors) {
        if (present) i = vectors[unit], f = vectors[hidden + unit], o = vectors[2 * hidden + unit];
    }
};

// Computes the cell from `x`, which is `bias + W x` of the four gates, `u`, which is `U h`, and the cell state before
// the step.
DEVICE CellOutput cell_forward(const CellOptions &options, float4 x, const Peephole &p, const float *u, float c_old) {
    float z[4] = {__fadd_rn(x.x, u[0]), __fadd_rn(x.y, u[1]), __fadd_rn(x.z, u[2]), __fadd_rn(x.w, u[3])};
    if (options.dense_peephole) z[2] = x.z;
    if (p.present) {
        z[0] = __fmaf_rn(p.i, c_old, z[0]);
        z[1] = __fmaf_rn(p.f, c_old, z[1]);
    }
    if (options.has_clip) {
#pragma unroll
        for (int k = 0; k < 3; k++) z[k] = clip(z[k], options.clip);
    }
    CellOutput unit;
    unit.gates[0] = sigmoid(z[0]);
    unit.gates[1] = options.coupled_gates ? __fsub_rn(1.0f, unit.gates[0]) : sigmoid(z[1]);
    unit.gates[2] = snap(options.dense_peephole ? sigmoid(z[2]) : lstm_tanh(z[2]));
    unit.c = snap(__fmaf_rn(unit.gates[1], c_old, __fmul_rn(unit.gates[0], unit.gates[2])));
    if (p.present) z[3] = __fmaf_rn(p.o, unit.c, z[3]);
    if (options.has_clip) z[3] = clip(z[3], options.clip);
    unit.gates[3] = sigmoid(z[3]);
    unit.h = snap(options.dense_peephole ? lstm_tanh(__fmul_rn(unit.gates[3], unit.c))
                                         : __fmul_rn(unit.gates[3], lstm_tanh(unit.c)));
    return unit;
}

template <class T> DEVICE void forward_step(const ForwardStepArgs &args) {
    u32 row0, col0;
    T::origin(4 * args.hidden, row0, col0);
    const u32 unit = (col0 + T::col(0)) / 4;
    // Loaded before the product, to hide the latency. After a store, a load would have to wait for it, in case both
    // overlap.
    float4 x[T::THREAD_ROWS];
    float c_old[T::THREAD_ROWS];
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++) {
        const u32 row = row0 + T::row(i);
        const bool exists = row < args.batch && unit < args.hidden;
        x[i] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (exists && row < args.active_rows)
            x[i] = load_gates(args.z + (u64)row * 4 * args.hidden + unit, args.hidden);
        c_old[i] = exists ? args.c_old[(u64)row * args.hidden + unit] : 0.0f;
    }
    const float *operand = args.cell.dense_peephole ? args.c_old : args.h_old;
    T tile;
    tile.clear();
    // The condition is the same for all threads of a block, as the barriers in `product` require.
    if (row0 < args.active_rows)
        tile.product(args.state_size, Strided{operand, args.active_rows, args.state_size, args.state_size, 1}, row0,
                     InterleavedGates{args.u, 4 * args.hidden, args.state_size, args.hidden}, col0);
    if (unit >= args.hidden) return;
    const Peephole peephole(args.peephole, args.hidden, unit);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        const u64 index = (u64)row * args.hidden + unit;
        const bool active = row < args.active_rows;
        if (active) {
            const CellOutput next = cell_forward(args.cell, x[i], peephole, tile.sum[i], c_old[i]);
            args.c_new[index] = next.c;
            (args.projection_input ? args.projection_input : args.h_new)[index] = next.h;
            if (args.gates)
                for (int k = 0; k < 4; k++) args.gates[((u64)row * 4 + k) * args.hidden + unit] = next.gates[k];
            if (args.y) args.y[index] = next.h;
        } else {
            args.c_new[index] = c_old[i];
            if (args.h_new) args.h_new[index] = args.h_old[index];
            if (args.y) args.y[index] = 0.0f;
        }
    }
}

KERNEL(forward_step_small, ForwardStepArgs, 64) { forward_step<SmallStepTile>(args); }
KERNEL(forward_step_medium, ForwardStepArgs, 256, 2) { forward_step<MediumStepTile>(args); }

template <class T> DEVICE void forward_projection(const ProjectionArgs &args) {
    u32 row0, col0;
    T::origin(args.state_size, row0, col0);
    T tile;
    tile.clear();
    if (row0 < args.active_rows)
        tile.product(args.hidden, Strided{args.projection_input, args.active_rows, args.hidden, args.hidden, 1}, row0,
                     Strided{args.w_hr, args.state_size, args.hidden, args.hidden, 1}, col0);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.batch || col >= args.state_size) continue;
            const u64 index = (u64)row * args.state_size + col;
            const float h = snap(tile.sum[i][j]);
            args.h_new[index] = row < args.active_rows ? h : args.h_old[index];
            if (args.y) args.y[index] = row < args.active_rows ? h : 0.0f;
        }
}

KERNEL(forward_projection_small, ProjectionArgs, 64) { forward_projection<SmallTile>(args); }
KERNEL(forward_projection_medium, ProjectionArgs, 256, 2) { forward_projection<MediumTile>(args); }
