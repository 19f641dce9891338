// All steps of a sequence in one launch, and those of the way back, for small hidden sizes: the blocks of a cluster share out
// the units of some sequences, and tell one another what a step gave through their shared memory. Clusters never wait for
// one another.
#if CLUSTERS

// A thread's part of a unit whose weights are in shared memory, four of the depth side by side: [4][LSTM_BLOCK / 4] of
// them, `pitch` apart, so that neighbouring threads read neighbouring vectors.
struct Kept {
    float4 *w;
    u32 pitch;

    // As `Share::load`, of one block of the depth.
    MEMBER void load(Strided u, u32 apart, u32 unit, u32 depth) const {
        for (u32 n = 0; n < LSTM_BLOCK; n++) {
            const u32 k = depth + n % (LSTM_BLOCK / 4) * 4;
            w[n * pitch] = {u.at(k, unit), u.at(k + 1, unit), u.at(k + 2, unit), u.at(k + 3, unit)};
            if (n % (LSTM_BLOCK / 4) == LSTM_BLOCK / 4 - 1) u.p += apart;
        }
    }

    // As `Share::dot`, of one block of the depth.
    MEMBER float4 dot(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2 // more would want registers that hold weights
        for (int n = 0; n < LSTM_BLOCK / 4; n++) {
            const float4 v = *reinterpret_cast<const float4 *>(x + 4 * n);
            const float4 i = w[n * pitch], f = w[(LSTM_BLOCK / 4 + n) * pitch];
            const float4 g = w[(2 * (LSTM_BLOCK / 4) + n) * pitch], o = w[(3 * (LSTM_BLOCK / 4) + n) * pitch];
            s.x = along(s.x, v, i.x, i.y, i.z, i.w);
            s.y = along(s.y, v, f.x, f.y, f.z, f.w);
            s.z = along(s.z, v, g.x, g.y, g.z, g.w);
            s.w = along(s.w, v, o.x, o.y, o.z, o.w);
        }
        return s;
    }

    // As `Share::dot_of_four`, of one block of the depth.
    MEMBER float4 dot_of_four(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 1 // again
        for (int n = 0; n < LSTM_BLOCK / 4; n++) {
            const float4 *v = reinterpret_cast<const float4 *>(x + 16 * n);
            const float4 a = v[0], b = v[1], c = v[2], d = v[3];
            const float4 i = w[n * pitch], f = w[(LSTM_BLOCK / 4 + n) * pitch];
            const float4 g = w[(2 * (LSTM_BLOCK / 4) + n) * pitch], o = w[(3 * (LSTM_BLOCK / 4) + n) * pitch];
            s.x = along(s.x, {a.x, b.x, c.x, d.x}, i.x, i.y, i.z, i.w);
            s.y = along(s.y, {a.y, b.y, c.y, d.y}, f.x, f.y, f.z, f.w);
            s.z = along(s.z, {a.z, b.z, c.z, d.z}, g.x, g.y, g.z, g.w);
            s.w = along(s.w, {a.w, b.w, c.w, d.w}, o.x, o.y, o.z, o.w);
        }
        return s;
    }
};

// A cluster's block: its share of the units, in some sequences from `row0` on, and of shared memory: what steps tell, in two
// places that they read and write in turns, `rows` rows of [blocks][pitch] each; sums of blocks, [blocks][rows][units]
// float4; then the weights that are not in registers. A thread has at most one unit of one sequence, and its state.
struct Part {
    u32 hidden, units, held, rows, size, first_unit, row0, count, row_floats; // of `rows` there are `count`
    float *places;
    float4 *parts;
    Share share;
    Kept kept;
    bool has_other;

    template <class Args> MEMBER Part(const Args &args, float *memory, u32 pitch, Strided u)
        : hidden(args.hidden), units(args.units), held(args.held), rows(args.rows), size(cluster_size()),
          first_unit(cluster_rank() * args.units), row0(blockIdx.x / size * args.rows), places(memory),
          share(args.hidden, args.held) {
        count = args.batch - row0 < rows ? args.batch - row0 : rows;
        row_floats = share.blocks * pitch;
        parts = reinterpret_cast<float4 *>(places + 2 * rows * row_floats);
        const u32 others = units - held, other = share.block * others + share.unit;
        has_other = share.works() && share.unit < others;
        kept = {parts + share.blocks * rows * units + other, others * share.blocks};
        share.load(u, hidden * hidden, first_unit);
        if (has_other) kept.load(u, hidden * hidden, first_unit + held + share.unit, share.block * LSTM_BLOCK);
    }
    MEMBER u32 row() const { return threadIdx.x / units; }
    MEMBER u32 unit() const { return first_unit + threadIdx.x % units; }
    MEMBER bool is_mine() const { return row() < count && unit() < hidden; }
    MEMBER float *place(u32 n) const { return places + n % 2 * rows * row_floats; }
    MEMBER float4 *sums(u32 r) const { return parts + (share.block * rows + r) * units + share.unit; }
    MEMBER void join(float *u) const { ::join(parts + threadIdx.x, share.blocks, rows * units, u); }
};

// What steps tell is h, or with the dense peephole c.
KERNEL(cluster, PersistentArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const Part part(args, memory, PITCH, Strided{args.u, hidden, hidden, hidden, 1});
    const u32 b = part.row0 + part.row(), unit = part.unit();
    const bool mine = part.is_mine();
    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
    const float *initial = args.cell.dense ? args.c0 : args.h0;
    float h = 0.0f, c = 0.0f;
    // What training keeps of the state.
    const auto keep = [&](u32 place) {
        const u64 at = ((u64)place * args.batch + b) * hidden + unit;
        args.h[at] = h, args.c[at] = c;
    };
    if (mine) {
        h = snap(args.h0[(u64)b * hidden + unit]);
        c = snap(args.c0[(u64)b * hidden + unit]);
        if (args.h) keep(args.reverse ? args.steps : 0);
    }
    // The padding is +0 in both places.
    for (u32 i = threadIdx.x; i < 2 * part.rows * part.row_floats; i += blockDim.x) {
        const u32 r = i / part.row_floats, k = i % part.row_floats / PITCH * LSTM_BLOCK + i % PITCH;
        const bool there = r < part.count && i % PITCH < LSTM_BLOCK && k < hidden;
        part.places[i] = there ? snap(initial[(u64)(part.row0 + r) * hidden + k]) : 0.0f;
    }
    cluster_arrive();

    for (u32 n = 0; n < args.steps; n++) {
        const Walk at(args, n);
        const u64 out = (u64)at.t * args.batch + b;
        const bool runs = mine && b < at.active;
        // It comes while others are waited for.
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
        if (runs) x = input_of(args, at.t, b, unit);
        cluster_wait();
        const float *from = part.place(n);
        float *to = part.place(n + 1);
        for (u32 r = 0; part.share.works() && r < part.count; r++) {
            float4 *sums = part.sums(r);
            sums[0] = part.share.dot(from + r * part.row_floats, 0);
            if (part.has_other) sums[part.held] = part.kept.dot(from + r * part.row_floats + part.share.block * PITCH);
        }
        __syncthreads();
        Unit next;
        if (runs) {
            float u[4];
            part.join(u);
            next = cell(args.cell, x, peephole, hidden, u, c);
            c = next.c, h = next.h;
        }
        // Not after the last step: whoever is told must still be there.
        if (n + 1 < args.steps) {
            if (mine) {
                float *place = to + part.row() * part.row_floats + unit / LSTM_BLOCK * PITCH + unit % LSTM_BLOCK;
                for (u32 rank = 0; rank < part.size; rank++) tell(place, rank, args.cell.dense ? c : h);
            }
            cluster_arrive();
        }
        // What is written from here on, the others do not wait for.
        if (!mine) continue;
        args.y[out * hidden + unit] = runs ? h : 0.0f;
        if (args.h) keep(at.place);
        if (runs && args.gates)
            for (int k = 0; k < 4; k++) args.gates[(out * 4 + k) * hidden + unit] = next.gates[k];
    }
    if (mine) {
        args.h_last[(u64)b * hidden + unit] = h;
        args.c_last[(u64)b * hidden + unit] = c;
    }
}

// What steps tell is the gates' gradients, a unit's four side by side.
KERNEL(cluster_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const Part part(args, memory, PITCH_OF_FOUR, Strided{args.u, hidden, hidden, 1, hidden});
    const u32 b = part.row0 + part.row(), unit = part.unit();
    const bool mine = part.is_mine();
    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
    const u64 own = (u64)b * hidden + unit;
    float dh = 0.0f, dc = 0.0f, f = 0.0f;
    if (mine) dh = args.dh[own], dc = args.dc[own];
    for (u32 i = threadIdx.x; i < 2 * part.rows * part.row_floats; i += blockDim.x) part.places[i] = 0.0f;
    cluster_arrive();

    for (u32 n = 0; n <= args.steps; n++) {
        const WalkBack at(args, n);
        const u64 out = (u64)at.t * args.batch + b, step = (u64)args.batch * hidden;
        const bool runs = mine && b < at.active;
        // They come while others are waited for.
        float4 gates = {0.0f, 0.0f, 0.0f, 0.0f};
        float c_old = 0.0f, c = 0.0f, h = 0.0f, dy = 0.0f;
        if (runs) {
            const u64 first = out * hidden + unit, second = first + step;
            gates = of_gates(args.gates + out * 4 * hidden + unit, hidden);
            c_old = args.c[args.reverse ? second : first], c = args.c[args.reverse ? first : second];
            if (args.cell.dense) h = args.h[args.reverse ? first : second];
            dy = args.dy[first];
        }
        cluster_wait();
        const float *from = part.place(n);
        const u32 count = rows_from(part.row0, at.from, part.rows);
        for (u32 r = 0; part.share.works() && r < count; r++) {
            float4 *sums = part.sums(r);
            sums[0] = part.share.dot_of_four(from + r * part.row_floats);
            if (part.has_other) sums[part.held] = part.kept.dot_of_four(from + r * part.row_floats + part.share.block * PITCH_OF_FOUR);
        }
        __syncthreads();
        if (mine && b < at.from) {
            float u[4];
            part.join(u);
            state_back(args.cell.dense, u, f, dh, dc);
        }
        if (at.last) break;
        float4 dz = {0.0f, 0.0f, 0.0f, 0.0f};
        if (runs) {
            const float dq = snap(__fadd_rn(dy, dh));
            const UnitGradients back = cell_back(args.cell, args.bounds, gates, peephole, hidden, c_old, c, h, dq, dc);
            dz = {back.dz[0], back.dz[1], back.dz[2], back.dz[3]};
            dc = back.dc, f = gates.y;
            float *place = part.place(n + 1) + part.row() * part.row_floats + unit / LSTM_BLOCK * PITCH_OF_FOUR + unit % LSTM_BLOCK * 4;
            for (u32 rank = 0; rank < part.size; rank++) tell(place, rank, dz);
        }
        cluster_arrive();
        if (!mine) continue;
        float *p = args.dz + out * 4 * hidden + unit;
        p[0] = dz.x, p[hidden] = dz.y, p[2 * (u64)hidden] = dz.z, p[3 * (u64)hidden] = dz.w;
    }
    if (mine) args.dh[own] = dh, args.dc[own] = dc;
}
#endif
