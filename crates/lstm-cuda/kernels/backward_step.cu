// One step of the backward pass, one launch or a few per step: the product of the gates' gradients of the step visited
// before with U, then this step's gates' gradients.

// Gradients of one step for one unit of one sequence.
struct UnitGradients {
    float dz[4], dc, operand;
};

// A gate's gradient: `d` times the activation's slope, or +0 where the gate's sum was clipped.
DEVICE float gate_gradient(float d, float slope, float gate, bool clipped, float low, float high) {
    const float dz = snap(__fmul_rn(d, slope));
    return clipped && (gate <= low || gate >= high) ? 0.0f : dz;
}

DEVICE float sigmoid_slope(float s) { return __fmaf_rn(-s, s, s); }
DEVICE float tanh_slope(float t) { return __fmaf_rn(-t, t, 1.0f); }

// The backward pass of one cell. `dq` is the gradient of the cell's output, which is the projection's operand if there
// is a projection. The returned `dc` is the gradient of the cell state before the step; with dense peepholes a part of
// it is still missing, which the recurrent product adds.
DEVICE UnitGradients cell_backward(const CellOptions &options, const GateBounds &bounds, float4 gates,
                                   const Peephole &p, float c_old, float c, float h, float dq, float dc) {
    const float i = gates.x, f = gates.y, g = gates.z, o = gates.w;
    const bool clipped = options.has_clip;
    const float low = bounds.sigmoid_min, high = bounds.sigmoid_max;
    UnitGradients unit;
    float t;
    if (options.dense_peephole) {
        t = c;
        dq = __fmul_rn(dq, tanh_slope(h));
        dc = snap(__fmaf_rn(dq, o, dc));
    } else {
        t = lstm_tanh(c);
        dc = snap(__fmaf_rn(__fmul_rn(dq, o), tanh_slope(t), dc));
    }
    unit.operand = snap(__fmul_rn(o, t));
    unit.dz[3] = gate_gradient(__fmul_rn(dq, t), sigmoid_slope(o), o, clipped, low, high);
    if (p.present) dc = snap(__fmaf_rn(unit.dz[3], p.o, dc));
    if (options.coupled_gates) {
        // f = 1 - i has no sum of its own.
        unit.dz[0] = gate_gradient(__fmaf_rn(-dc, c_old, __fmul_rn(dc, g)), sigmoid_slope(i), i, clipped, low, high);
        unit.dz[1] = 0.0f;
    } else {
        unit.dz[0] = gate_gradient(__fmul_rn(dc, g), sigmoid_slope(i), i, clipped, low, high);
        unit.dz[1] = gate_gradient(__fmul_rn(dc, c_old), sigmoid_slope(f), f, clipped, low, high);
    }
    const float dg = __fmul_rn(dc, i);
    unit.dz[2] = options.dense_peephole ? gate_gradient(dg, sigmoid_slope(g), g, clipped, low, high)
                               : gate_gradient(dg, tanh_slope(g), g, clipped, bounds.tanh_min, bounds.tanh_max);
    if (!options.dense_peephole) {
        dc = snap(__fmul_rn(dc, f));
        if (p.present) {
            dc = snap(__fmaf_rn(unit.dz[0], p.i, dc));
            dc = snap(__fmaf_rn(unit.dz[1], p.f, dc));
        }
    }
    unit.dc = dc;
    return unit;
}

// The operands of the first gate's product: the gates' gradients of the step visited before, and U. The other gates'
// operands follow at fixed distances.
DEVICE Strided dz_operand(const BackwardStepArgs &args) {
    return {args.dz_next, args.active_rows_next, args.hidden, 4 * args.hidden, 1};
}
DEVICE Strided u_operand(const BackwardStepArgs &args) {
    return {args.u, args.state_size, args.hidden, 1, args.state_size};
}

// Computes `dz U`, summed over the gates, for the sequences that have the step visited before.
template <class T> DEVICE void recurrent_product(const BackwardStepArgs &args, u32 row0, u32 col0, T &tile) {
    tile.clear();
    // With dense peepholes, the candidate gate has no recurrent term.
    if (row0 < args.active_rows_next)
        tile.add_segments(4, args.cell.dense_peephole ? 2 : NO_SEGMENT, args.hidden, dz_operand(args), (int)args.hidden,
                          row0, u_operand(args), (int)(args.hidden * args.state_size), col0);
}

// Computes the product of each gate in a block of its own, `[4, batch, state_size]`. Used where a step has too few
// tiles to occupy the device.
KERNEL(backward_gate_products, BackwardStepArgs, 256, 2) {
    const u32 tiles = gridDim.x / 4, gate = blockIdx.x / tiles;
    u32 row0, col0;
    MediumTile::origin(args.state_size, row0, col0, blockIdx.x % tiles);
    if (row0 >= args.active_rows_next || (args.cell.dense_peephole && gate == 2)) return;
    Strided dz = dz_operand(args), u = u_operand(args);
    dz.p += (u64)gate * args.hidden, u.p += (u64)gate * args.hidden * args.state_size;
    MediumTile tile;
    tile.product(args.hidden, dz, row0, u, col0);
#pragma unroll
    for (int i = 0; i < MediumTile::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < MediumTile::THREAD_COLS; j++) {
            const u32 row = row0 + MediumTile::row(i), col = col0 + MediumTile::col(j);
            if (row < args.active_rows_next && col < args.state_size)
                args.gate_products[((u64)gate * args.batch + row) * args.state_size + col] = tile.sum[i][j];
        }
}

// A tile that adds the four products of `backward_gate_products`, in place of computing them.
struct GateSumTile : TileSums<8, 32, 1, 1> {
    MEMBER static u32 row(int) { return threadIdx.x / 32; }
    MEMBER static u32 col(int) { return threadIdx.x % 32; }
};
DEVICE void recurrent_product(const BackwardStepArgs &args, u32 row0, u32 col0, GateSumTile &tile) {
    const u32 row = row0 + GateSumTile::row(0), col = col0 + GateSumTile::col(0);
    tile.clear();
    if (row >= args.active_rows_next || col >= args.state_size) return;
    const float *p = args.gate_products + ((u64)row * args.state_size + col);
    for (u32 gate = 0; gate < 4; gate++, p += (u64)args.batch * args.state_size)
        if (!args.cell.dense_peephole || gate != 2) tile.sum[0][0] = __fadd_rn(tile.sum[0][0], *p);
}

// Values of the forward pass that a unit's backward pass reads, and the gradient of its cell state.
struct ForwardValues {
    float4 gates;
    float c_old, c, h, dc;
};

DEVICE ForwardValues load_forward_values(const BackwardStepArgs &args, u32 row, u32 unit) {
    const u64 index = (u64)row * args.hidden + unit;
    const float4 gates = load_gates(args.gates + ((u64)row * 4 * args.hidden + unit), args.hidden);
    return {gates, args.c_old[index], args.c_new[index], args.cell.dense_peephole ? args.h_new[index] : 0.0f,
            args.dc[index]};
}

DEVICE void unit_backward(const BackwardStepArgs &args, u32 row, u32 unit, const ForwardValues &values, float dq) {
    const u64 index = (u64)row * args.hidden + unit;
    const UnitGradients gradients =
        cell_backward(args.cell, args.bounds, values.gates, {args.peephole, args.hidden, unit}, values.c_old, values.c,
                      values.h, dq, values.dc);
    for (int k = 0; k < 4; k++) args.dz[((u64)row * 4 + k) * args.hidden + unit] = gradients.dz[k];
    args.dc[index] = gradients.dc;
    if (args.projection_input) args.projection_input[index] = gradients.operand;
}

DEVICE void zero_unit_gradients(const BackwardStepArgs &args, u32 row, u32 unit) {
    for (int k = 0; k < 4; k++) args.dz[((u64)row * 4 + k) * args.hidden + unit] = 0.0f;
    if (args.projection_input) args.projection_input[(u64)row * args.hidden + unit] = 0.0f;
}

// A whole step of the backward pass, without a projection. After the last step it runs once more, with no active
// sequence and without `dz`, for the gradient of the initial state.
template <class T> DEVICE void backward_step(const BackwardStepArgs &args) {
    u32 row0, col0;
    T::origin(args.hidden, row0, col0);
    T tile;
    recurrent_product(args, row0, col0, tile);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        // Load a whole row first: after a store, a load would have to wait for it, in case both overlap.
        ForwardValues values[T::THREAD_COLS] = {};
        float dy[T::THREAD_COLS] = {}, dh[T::THREAD_COLS];
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            const u64 index = (u64)row * args.hidden + unit;
            dh[j] = row < args.active_rows_next ? snap(tile.sum[i][j]) : args.dh[index];
            if (row < args.active_rows) values[j] = load_forward_values(args, row, unit), dy[j] = args.dy[index];
            if (row < args.active_rows_next && args.cell.dense_peephole) {
                const float f = args.gates_next[((u64)row * 4 + 1) * args.hidden + unit];
                values[j].dc = snap(__fmaf_rn(args.dc[index], f, dh[j]));
                dh[j] = 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            const u64 index = (u64)row * args.hidden + unit;
            if (row < args.active_rows_next) {
                args.dh[index] = dh[j];
                if (args.cell.dense_peephole) args.dc[index] = values[j].dc;
            }
            if (row < args.active_rows) unit_backward(args, row, unit, values[j], snap(__fadd_rn(dy[j], dh[j])));
            else if (args.dz) zero_unit_gradients(args, row, unit);
        }
    }
}

KERNEL(backward_step_small, BackwardStepArgs, 64) { backward_step<SmallTile>(args); }
KERNEL(backward_step_combine, BackwardStepArgs, 256) { backward_step<GateSumTile>(args); }
KERNEL(backward_step_medium, BackwardStepArgs, 256, 2) { backward_step<MediumTile>(args); }

// With a projection a step takes two kernels: this one computes the gradient of the projected h, which needs all of
// `dz`; `backward_units` computes the rest, which needs all of this gradient.
template <class T> DEVICE void backward_state(const BackwardStepArgs &args) {
    u32 row0, col0;
    T::origin(args.state_size, row0, col0);
    T tile;
    recurrent_product(args, row0, col0, tile);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.batch || col >= args.state_size) continue;
            const u64 index = (u64)row * args.state_size + col;
            if (row < args.active_rows_next) args.dh[index] = snap(tile.sum[i][j]);
            if (!args.dh_projected) continue;
            args.dh_projected[index] = row < args.active_rows ? snap(__fadd_rn(args.dy[index], args.dh[index])) : 0.0f;
        }
}

KERNEL(backward_state_small, BackwardStepArgs, 64) { backward_state<SmallTile>(args); }
KERNEL(backward_state_combine, BackwardStepArgs, 256) { backward_state<GateSumTile>(args); }
KERNEL(backward_state_medium, BackwardStepArgs, 256, 2) { backward_state<MediumTile>(args); }

template <class T> DEVICE void backward_units(const BackwardStepArgs &args) {
    u32 row0, col0;
    T::origin(args.hidden, row0, col0);
    T tile;
    tile.clear();
    if (row0 < args.active_rows)
        tile.product(args.state_size, Strided{args.dh_projected, args.active_rows, args.state_size, args.state_size, 1},
                     row0, Strided{args.w_hr, args.hidden, args.state_size, 1, args.hidden}, col0);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        // Load a whole row first, as above.
        ForwardValues values[T::THREAD_COLS] = {};
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++)
            if (row < args.active_rows && col0 + T::col(j) < args.hidden)
                values[j] = load_forward_values(args, row, col0 + T::col(j));
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            if (row < args.active_rows) unit_backward(args, row, unit, values[j], snap(tile.sum[i][j]));
            else zero_unit_gradients(args, row, unit);
        }
    }
}

KERNEL(backward_units_small, BackwardStepArgs, 64) { backward_units<SmallTile>(args); }
KERNEL(backward_units_medium, BackwardStepArgs, 256, 2) { backward_units<MediumTile>(args); }
