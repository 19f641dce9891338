// One step of a sequence: the recurrent product, and the cell at once where its sums are.

// U for a tile whose columns are units, four gates side by side.
struct Interleaved {
    const float *p;
    u32 lines, depth, hidden;
    static constexpr u32 line = 0, step = 1;
    static constexpr bool snapped = false; // they are, as they are kept
    MEMBER bool along_depth() const { return true; }
    MEMBER bool in_fours() const { return ((u64)p & 15) == 0 && depth % 4 == 0; }
    MEMBER bool holds(u32 k, u32 n) const { return k < depth && n < lines; }
    MEMBER const float *place(u32 k, u32 n) const { return p + (((u64)(n % 4) * hidden + n / 4) * depth + k); }
    MEMBER float taken(float v) const { return v; }
    MEMBER float at(u32 k, u32 n) const { return holds(k, n) ? *place(k, n) : 0.0f; }
};

// What a step gives one unit of one sequence.
struct Unit {
    float gates[4], c, h;
};

// A unit's four gates, whose rows are `hidden` apart.
DEVICE float4 of_gates(const float *x, u32 hidden) { return {x[0], x[hidden], x[2 * (u64)hidden], x[3 * (u64)hidden]}; }

// What a unit's gates have of the cell state, from the vectors of all units (rows `hidden` apart) or null.
struct Peephole {
    bool there;
    float i = 0.0f, f = 0.0f, o = 0.0f;
    MEMBER Peephole(const float *vectors, u32 hidden, u32 unit) : there(vectors) {
        if (there) i = vectors[unit], f = vectors[hidden + unit], o = vectors[2 * hidden + unit];
    }
};

// The cell, from `bias + W x` and `U h` of its gates and the cell state before.
DEVICE Unit cell(const CellOptions &options, float4 x, const Peephole &p, const float *u, float c_old) {
    float z[4] = {__fadd_rn(x.x, u[0]), __fadd_rn(x.y, u[1]), __fadd_rn(x.z, u[2]), __fadd_rn(x.w, u[3])};
    if (options.dense) z[2] = x.z;
    if (p.there) {
        z[0] = __fmaf_rn(p.i, c_old, z[0]);
        z[1] = __fmaf_rn(p.f, c_old, z[1]);
    }
    if (options.clipped) {
#pragma unroll
        for (int k = 0; k < 3; k++) z[k] = clip(z[k], options.clip);
    }
    Unit unit;
    unit.gates[0] = sigmoid(z[0]);
    unit.gates[1] = options.coupled ? __fsub_rn(1.0f, unit.gates[0]) : sigmoid(z[1]);
    unit.gates[2] = snap(options.dense ? sigmoid(z[2]) : tanh_of(z[2]));
    unit.c = snap(__fmaf_rn(unit.gates[1], c_old, __fmul_rn(unit.gates[0], unit.gates[2])));
    if (p.there) z[3] = __fmaf_rn(p.o, unit.c, z[3]);
    if (options.clipped) z[3] = clip(z[3], options.clip);
    unit.gates[3] = sigmoid(z[3]);
    unit.h = snap(options.dense ? tanh_of(__fmul_rn(unit.gates[3], unit.c)) : __fmul_rn(unit.gates[3], tanh_of(unit.c)));
    return unit;
}

template <class T> DEVICE void step(const StepArgs &args) {
    u32 row0, col0;
    T::place(4 * args.hidden, row0, col0);
    const u32 unit = (col0 + T::col(0)) / 4;
    // They come while products are summed; after what one row writes, the next one's would have to wait for it.
    float4 x[T::DOWN_EACH];
    float c_old[T::DOWN_EACH];
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++) {
        const u32 row = row0 + T::row(i);
        const bool there = row < args.batch && unit < args.hidden;
        x[i] = {0.0f, 0.0f, 0.0f, 0.0f};
        if (there && row < args.active) x[i] = of_gates(args.z + (u64)row * 4 * args.hidden + unit, args.hidden);
        c_old[i] = there ? args.c_old[(u64)row * args.hidden + unit] : 0.0f;
    }
    const float *operand = args.cell.dense ? args.c_old : args.h_old;
    T tile;
    tile.clear();
    // All threads of a block agree on it.
    if (row0 < args.active)
        tile.product(args.state, Strided{operand, args.active, args.state, args.state, 1}, row0,
                     Interleaved{args.u, 4 * args.hidden, args.state, args.hidden}, col0);
    if (unit >= args.hidden) return;
    const Peephole peephole(args.peephole, args.hidden, unit);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++) {
        const u32 row = row0 + T::row(i);
        if (row >= args.batch) continue;
        const u64 at = (u64)row * args.hidden + unit;
        const bool active = row < args.active;
        if (active) {
            const Unit next = cell(args.cell, x[i], peephole, tile.sum[i], c_old[i]);
            args.c_new[at] = next.c;
            (args.unprojected ? args.unprojected : args.h_new)[at] = next.h;
            if (args.gates)
                for (int k = 0; k < 4; k++) args.gates[((u64)row * 4 + k) * args.hidden + unit] = next.gates[k];
            if (args.y) args.y[at] = next.h;
        } else {
            args.c_new[at] = c_old[i];
            if (args.h_new) args.h_new[at] = args.h_old[at];
            if (args.y) args.y[at] = 0.0f;
        }
    }
}

KERNEL(step_small, StepArgs, 64) { step<SmallStep>(args); }
KERNEL(step_medium, StepArgs, 256, 2) { step<MediumStep>(args); }

template <class T> DEVICE void project(const ProjectArgs &args) {
    u32 row0, col0;
    T::place(args.state, row0, col0);
    T tile;
    tile.clear();
    if (row0 < args.active)
        tile.product(args.hidden, Strided{args.unprojected, args.active, args.hidden, args.hidden, 1}, row0,
                     Strided{args.w, args.state, args.hidden, args.hidden, 1}, col0);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++)
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j++) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.batch || col >= args.state) continue;
            const u64 at = (u64)row * args.state + col;
            const float h = snap(tile.sum[i][j]);
            args.h_new[at] = row < args.active ? h : args.h_old[at];
            if (args.y) args.y[at] = row < args.active ? h : 0.0f;
        }
}

KERNEL(project_small, ProjectArgs, 64) { project<Small>(args); }
KERNEL(project_medium, ProjectArgs, 256, 2) { project<Medium>(args); }
