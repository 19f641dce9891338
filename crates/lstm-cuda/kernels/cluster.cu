// All steps of a sequence in one launch, for small hidden sizes: the blocks of a cluster share out the units of some
// sequences, and tell one another what a step gave through their shared memory. Clusters never wait for one another.
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
};

// Shared memory: h (with the dense peephole c) in two places that steps read and write in turns, `rows` rows of
// [blocks][PITCH] each; sums of blocks, [blocks][rows][units] float4; then the weights that are not in registers. A
// thread has at most one unit of one sequence, and its state.
KERNEL(cluster, ClusterArgs, 256) {
    const u32 hidden = args.hidden, units = args.units, size = cluster_size(), first_unit = cluster_rank() * units;
    const u32 row0 = blockIdx.x / size * args.rows;
    const u32 rows = args.batch - row0 < args.rows ? args.batch - row0 : args.rows;
    Share share(hidden, args.held);
    const u32 row_floats = share.blocks * PITCH, place_floats = args.rows * row_floats;
    SHARED(places);
    float4 *parts = reinterpret_cast<float4 *>(places + 2 * place_floats);
    const u32 others = units - args.held, other = share.block * others + share.unit;
    const bool has_other = share.works() && share.unit < others;
    const Kept kept{parts + share.blocks * args.rows * units + other, others * share.blocks};

    const Strided u{args.u, hidden, hidden, hidden, 1};
    share.load(u, hidden * hidden, first_unit);
    if (has_other) kept.load(u, hidden * hidden, first_unit + args.held + share.unit, share.block * LSTM_BLOCK);

    const u32 row = threadIdx.x / units, b = row0 + row, unit = first_unit + threadIdx.x % units;
    const bool mine = row < rows && unit < hidden;
    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
    const float *initial = args.cell.dense ? args.c0 : args.h0;
    float h = 0.0f, c = 0.0f;
    if (mine) {
        h = snap(args.h0[(u64)b * hidden + unit]);
        c = snap(args.c0[(u64)b * hidden + unit]);
    }
    // The padding is +0 in both places.
    for (u32 i = threadIdx.x; i < 2 * place_floats; i += blockDim.x) {
        const u32 r = i / row_floats, k = i % row_floats / PITCH * LSTM_BLOCK + i % PITCH;
        const bool there = r < rows && i % PITCH < LSTM_BLOCK && k < hidden;
        places[i] = there ? snap(initial[(u64)(row0 + r) * hidden + k]) : 0.0f;
    }
    cluster_arrive();

    for (u32 n = 0; n < args.steps; n++) {
        const u32 t = args.reverse ? args.steps - 1 - n : n;
        const u64 at = (u64)t * args.batch + b;
        const bool runs = mine && b < active_at(args.active, t, args.batch);
        // It comes while others are waited for.
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
        if (runs) x = of_gates(args.z + at * 4 * hidden + unit, hidden);
        cluster_wait();
        const float *from = places + n % 2 * place_floats;
        float *to = places + (n + 1) % 2 * place_floats;
        for (u32 r = 0; share.works() && r < rows; r++) {
            float4 *sums = parts + (share.block * args.rows + r) * units + share.unit;
            sums[0] = share.dot(from + r * row_floats, 0);
            if (has_other) sums[args.held] = kept.dot(from + r * row_floats + share.block * PITCH);
        }
        __syncthreads();
        if (runs) {
            float u[4];
            join(parts + threadIdx.x, share.blocks, args.rows * units, u);
            const Unit next = cell(args.cell, x, peephole, hidden, u, c);
            c = next.c, h = next.h;
        }
        // Not after the last step: whoever is told must still be there.
        if (n + 1 < args.steps) {
            if (mine) {
                float *place = to + row * row_floats + unit / LSTM_BLOCK * PITCH + unit % LSTM_BLOCK;
                for (u32 rank = 0; rank < size; rank++) tell(place, rank, args.cell.dense ? c : h);
            }
            cluster_arrive();
        }
        if (mine) args.y[at * hidden + unit] = runs ? h : 0.0f;
    }
    if (mine) {
        args.h_last[(u64)b * hidden + unit] = h;
        args.c_last[(u64)b * hidden + unit] = c;
    }
}
#endif
