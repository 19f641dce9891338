// One step of the way back: what the step visited before gives through U, then the gates' gradients.

// What a step back gives one unit of one sequence.
struct UnitGradients {
    float dz[4], dc, operand;
};

// The gate's gradient, +0 where its sum was clipped.
DEVICE float through(float d, float slope, float gate, bool clipped, float low, float high) {
    const float dz = snap(__fmul_rn(d, slope));
    return clipped && (gate <= low || gate >= high) ? 0.0f : dz;
}

DEVICE float sigmoid_slope(float s) { return __fmaf_rn(-s, s, s); }
DEVICE float tanh_slope(float t) { return __fmaf_rn(-t, t, 1.0f); }

// `dq` is the gradient of the cell's own output (of a projection's operand, where there is one); `dc` of the dense peephole is
// not yet that of the state before the step.
DEVICE UnitGradients cell_back(const CellOptions &options, const GateBounds &bounds, float4 gates, const Peephole &p,
                               float c_old, float c, float h, float dq, float dc) {
    const float i = gates.x, f = gates.y, g = gates.z, o = gates.w;
    const bool clipped = options.clipped;
    const float low = bounds.sigmoid_low, high = bounds.sigmoid_high;
    UnitGradients unit;
    float t;
    if (options.dense) {
        t = c;
        dq = __fmul_rn(dq, tanh_slope(h));
        dc = snap(__fmaf_rn(dq, o, dc));
    } else {
        t = tanh_of(c);
        dc = snap(__fmaf_rn(__fmul_rn(dq, o), tanh_slope(t), dc));
    }
    unit.operand = snap(__fmul_rn(o, t));
    unit.dz[3] = through(__fmul_rn(dq, t), sigmoid_slope(o), o, clipped, low, high);
    if (p.there) dc = snap(__fmaf_rn(unit.dz[3], p.o, dc));
    if (options.coupled) {
        // f = 1 - i has no sum of its own.
        unit.dz[0] = through(__fmaf_rn(-dc, c_old, __fmul_rn(dc, g)), sigmoid_slope(i), i, clipped, low, high);
        unit.dz[1] = 0.0f;
    } else {
        unit.dz[0] = through(__fmul_rn(dc, g), sigmoid_slope(i), i, clipped, low, high);
        unit.dz[1] = through(__fmul_rn(dc, c_old), sigmoid_slope(f), f, clipped, low, high);
    }
    const float dg = __fmul_rn(dc, i);
    unit.dz[2] = options.dense ? through(dg, sigmoid_slope(g), g, clipped, low, high)
                               : through(dg, tanh_slope(g), g, clipped, bounds.tanh_low, bounds.tanh_high);
    if (!options.dense) {
        dc = snap(__fmul_rn(dc, f));
        if (p.there) {
            dc = snap(__fmaf_rn(unit.dz[0], p.i, dc));
            dc = snap(__fmaf_rn(unit.dz[1], p.f, dc));
        }
    }
    unit.dc = dc;
    return unit;
}

// The gates' gradients of the step visited before, of the first gate, and what they go through.
DEVICE Strided gates_of(const BackArgs &args) { return {args.dz_next, args.active_next, args.hidden, 4 * args.hidden, 1}; }
DEVICE Strided u_of(const BackArgs &args) { return {args.u, args.state, args.hidden, 1, args.state}; }

// The sums over the gates of `dz U`, for the sequences that the step visited before had.
template <class T> DEVICE void through_u(const BackArgs &args, u32 row0, u32 col0, T &tile) {
    tile.clear();
    // The dense peephole's candidate does not see the state.
    if (row0 < args.active_next)
        tile.join(4, args.cell.dense ? 2 : NOT_ONE, args.hidden, gates_of(args), (int)args.hidden, row0, u_of(args),
                    (int)(args.hidden * args.state), col0);
}

// Where a step has too few tiles for a device, each gate's product is a block's own: [4][batch][state].
KERNEL(back_gates, BackArgs, 256, 2) {
    const u32 tiles = gridDim.x / 4, gate = blockIdx.x / tiles;
    u32 row0, col0;
    Medium::place(args.state, row0, col0, blockIdx.x % tiles);
    if (row0 >= args.active_next || (args.cell.dense && gate == 2)) return;
    Strided dz = gates_of(args), u = u_of(args);
    dz.p += (u64)gate * args.hidden, u.p += (u64)gate * args.hidden * args.state;
    Medium tile;
    tile.product(args.hidden, dz, row0, u, col0);
#pragma unroll
    for (int i = 0; i < Medium::DOWN_EACH; i++)
#pragma unroll
        for (int j = 0; j < Medium::ACROSS_EACH; j++) {
            const u32 row = row0 + Medium::row(i), col = col0 + Medium::col(j);
            if (row < args.active_next && col < args.state)
                args.sums[((u64)gate * args.batch + row) * args.state + col] = tile.sum[i][j];
        }
}

// And these are joined.
struct Joined : Sums<8, 32, 1, 1> {
    MEMBER static u32 row(int) { return threadIdx.x / 32; }
    MEMBER static u32 col(int) { return threadIdx.x % 32; }
};
DEVICE void through_u(const BackArgs &args, u32 row0, u32 col0, Joined &tile) {
    const u32 row = row0 + Joined::row(0), col = col0 + Joined::col(0);
    tile.clear();
    if (row >= args.active_next || col >= args.state) return;
    const float *p = args.sums + ((u64)row * args.state + col);
    for (u32 gate = 0; gate < 4; gate++, p += (u64)args.batch * args.state)
        if (!args.cell.dense || gate != 2) tile.sum[0][0] = __fadd_rn(tile.sum[0][0], *p);
}

// What a unit's step back reads of the pass forward, and the gradient of its cell state.
struct Seen {
    float4 gates;
    float c_old, c, h, dc;
};

DEVICE Seen seen_of(const BackArgs &args, u32 row, u32 unit) {
    const u64 at = (u64)row * args.hidden + unit;
    const float4 gates = of_gates(args.gates + ((u64)row * 4 * args.hidden + unit), args.hidden);
    return {gates, args.c_old[at], args.c_new[at], args.cell.dense ? args.h_new[at] : 0.0f, args.dc[at]};
}

DEVICE void unit_back(const BackArgs &args, u32 row, u32 unit, const Seen &seen, float dq) {
    const u64 at = (u64)row * args.hidden + unit;
    const UnitGradients back = cell_back(args.cell, args.bounds, seen.gates, {args.peephole, args.hidden, unit}, seen.c_old,
                                         seen.c, seen.h, dq, seen.dc);
    for (int k = 0; k < 4; k++) args.dz[((u64)row * 4 + k) * args.hidden + unit] = back.dz[k];
    args.dc[at] = back.dc;
    if (args.unprojected) args.unprojected[at] = back.operand;
}

DEVICE void no_unit_back(const BackArgs &args, u32 row, u32 unit) {
    for (int k = 0; k < 4; k++) args.dz[((u64)row * 4 + k) * args.hidden + unit] = 0.0f;
    if (args.unprojected) args.unprojected[(u64)row * args.hidden + unit] = 0.0f;
}

// Without a projection, all of a step. After the last one it is started once more, with no active sequence and without
// `dz`, for the initial state's gradient.
template <class T> DEVICE void back(const BackArgs &args) {
    u32 row0, col0;
    T::place(args.hidden, row0, col0);
    T tile;
    through_u(args, row0, col0, tile);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        // A row's at once: after what one unit writes, the next one's would have to wait for it.
        Seen seen[T::ACROSS_EACH] = {};
        float dy[T::ACROSS_EACH] = {}, dh[T::ACROSS_EACH];
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            const u64 at = (u64)row * args.hidden + unit;
            dh[j] = row < args.active_next ? snap(tile.sum[i][j]) : args.dh[at];
            if (row < args.active) seen[j] = seen_of(args, row, unit), dy[j] = args.dy[at];
            if (row < args.active_next && args.cell.dense) {
                const float f = args.gates_next[((u64)row * 4 + 1) * args.hidden + unit];
                seen[j].dc = snap(__fmaf_rn(args.dc[at], f, dh[j]));
                dh[j] = 0.0f;
            }
        }
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            const u64 at = (u64)row * args.hidden + unit;
            if (row < args.active_next) {
                args.dh[at] = dh[j];
                if (args.cell.dense) args.dc[at] = seen[j].dc;
            }
            if (row < args.active) unit_back(args, row, unit, seen[j], snap(__fadd_rn(dy[j], dh[j])));
            else if (args.dz) no_unit_back(args, row, unit);
        }
    }
}

KERNEL(back_small, BackArgs, 64) { back<Small>(args); }
KERNEL(back_joined, BackArgs, 256) { back<Joined>(args); }
KERNEL(back_medium, BackArgs, 256, 2) { back<Medium>(args); }

// With a projection it takes two kernels: the gradient of the projected h, which needs all of `dz`, and the rest, which
// needs all of that gradient.
template <class T> DEVICE void back_state(const BackArgs &args) {
    u32 row0, col0;
    T::place(args.state, row0, col0);
    T tile;
    through_u(args, row0, col0, tile);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++)
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.batch || col >= args.state) continue;
            const u64 at = (u64)row * args.state + col;
            if (row < args.active_next) args.dh[at] = snap(tile.sum[i][j]);
            if (!args.projected) continue;
            args.projected[at] = row < args.active ? snap(__fadd_rn(args.dy[at], args.dh[at])) : 0.0f;
        }
}

KERNEL(back_state_small, BackArgs, 64) { back_state<Small>(args); }
KERNEL(back_state_joined, BackArgs, 256) { back_state<Joined>(args); }
KERNEL(back_state_medium, BackArgs, 256, 2) { back_state<Medium>(args); }

template <class T> DEVICE void back_units(const BackArgs &args) {
    u32 row0, col0;
    T::place(args.hidden, row0, col0);
    T tile;
    tile.clear();
    if (row0 < args.active)
        tile.product(args.state, Strided{args.projected, args.active, args.state, args.state, 1}, row0,
                     Strided{args.w_hr, args.hidden, args.state, 1, args.hidden}, col0);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        // A row's at once, as above.
        Seen seen[T::ACROSS_EACH] = {};
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++)
            if (row < args.active && col0 + T::col(j) < args.hidden) seen[j] = seen_of(args, row, col0 + T::col(j));
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++) {
            const u32 unit = col0 + T::col(j);
            if (unit >= args.hidden) continue;
            if (row < args.active) unit_back(args, row, unit, seen[j], snap(tile.sum[i][j]));
            else no_unit_back(args, row, unit);
        }
    }
}

KERNEL(back_units_small, BackArgs, 64) { back_units<Small>(args); }
KERNEL(back_units_medium, BackArgs, 256, 2) { back_units<Medium>(args); }
