// All steps of a sequence in one launch, and those of the way back, for small hidden sizes: the blocks of a cluster share out
// the units of some sequences, and tell one another what a step gave through their shared memory. Clusters never wait for
// one another.
#if CLUSTERS

// As `Share`, of weights in shared memory, four of the depth side by side: [4][LSTM_BLOCK / 4] of them, `pitch` apart, so that
// neighbouring threads read neighbouring vectors.
struct Kept {
    float4 *w;
    u32 pitch;

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

// A cluster's block: its share of the units, in some sequences from `row0` on, and of shared memory: what steps tell, in two
// places that they read and write in turns, `rows` rows of [blocks][PITCH] each; sums of blocks, [blocks][rows][fours]
// float4; then the weights that are not in registers, where `held` of the fours are. A thread has at most one unit of one
// sequence, and its state.
struct Part {
    u32 hidden, units, fours, held, rows, size, first_unit, row0, count, row_floats; // of `rows` there are `count`
    float *places;
    float4 *parts;
    Share share;
    Kept kept;
    bool has_other;

    template <class Args> MEMBER Part(const Args &args, float *memory, bool back)
        : hidden(args.hidden), units(args.units), fours(back ? (args.units + 3) / 4 : args.units), held(args.held),
          rows(args.rows), size(cluster_size()), first_unit(cluster_rank() * args.units),
          row0(blockIdx.x / size * args.rows), places(memory), share((back ? 4 : 1) * blocks_of(args.hidden), args.held) {
        count = args.batch - row0 < rows ? args.batch - row0 : rows;
        row_floats = share.blocks * PITCH;
        parts = reinterpret_cast<float4 *>(places + 2 * rows * row_floats);
        const u32 others = fours - held, other = share.block * others + share.four;
        has_other = share.works() && share.four < others;
        kept = {parts + share.blocks * rows * fours + other, others * share.blocks};
        const Strided u{args.u, hidden, hidden, back ? 1 : hidden, back ? hidden : 1};
        if (back) share.load_back(u, hidden * hidden, first_unit);
        else share.load(u, hidden * hidden, first_unit);
        if (!has_other || share.group > 0) return;
        for (u32 n = 0; n < LSTM_BLOCK; n++) {
            const u32 sum = n / (LSTM_BLOCK / 4), four = held + share.four;
            const u32 depth = share.blocks / (back ? 4 : 1);
            const u32 unit = first_unit + (back ? 4 * four + sum : four), gate = back ? share.block / depth : sum;
            const u32 k = share.block % depth * LSTM_BLOCK + n % (LSTM_BLOCK / 4) * 4;
            const auto weight = [&](u32 on) { return Share::weight(u, unit, k + on, gate * hidden * hidden); };
            kept.w[n * kept.pitch] = {weight(0), weight(1), weight(2), weight(3)};
        }
    }
    MEMBER u32 row() const { return threadIdx.x / units; }
    MEMBER u32 unit() const { return first_unit + threadIdx.x % units; }
    MEMBER bool is_mine() const { return row() < count && unit() < hidden; }
    MEMBER float *place(u32 n) const { return places + n % 2 * rows * row_floats; }

    // The sums of some rows.
    MEMBER void sum(const float *from, u32 rows_there) const {
        for (u32 r = share.group; share.works() && r < rows_there; r += share.groups) {
            float4 *sums = parts + (share.block * rows + r) * fours + share.four;
            sums[0] = share.dot(from + r * row_floats);
            if (has_other) sums[held] = kept.dot(from + r * row_floats + share.block * PITCH);
        }
    }
};

// What steps tell is h, or with the dense peephole c.
KERNEL(cluster, PersistentArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const Part part(args, memory, false);
    const u32 b = part.row0 + part.row(), unit = part.unit();
    const bool mine = part.is_mine();
    // Not to be read again in each step: a barrier of the cluster empties the first cache.
    const Peephole peephole(mine ? args.peephole : nullptr, hidden, unit);
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
        part.sum(part.place(n), part.count);
        __syncthreads();
        Unit next;
        if (runs) {
            float u[4];
            join(part.parts + threadIdx.x, part.share.blocks, part.rows * part.units, u);
            next = cell(args.cell, x, peephole, u, c);
            c = next.c, h = next.h;
        }
        // Not after the last step: whoever is told must still be there.
        if (n + 1 < args.steps) {
            if (mine) {
                float *place = part.place(n + 1) + part.row() * part.row_floats + unit / LSTM_BLOCK * PITCH + unit % LSTM_BLOCK;
                for (u32 rank = 0; rank < part.size; rank++) tell(place, rank, args.cell.dense ? c : h);
            }
            cluster_arrive();
        }
        // The others wait for what is written from here on, if at all, at the next barrier.
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

// What steps tell is the gates' gradients.
KERNEL(cluster_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const Part part(args, memory, true);
    const u32 b = part.row0 + part.row(), unit = part.unit();
    const bool mine = part.is_mine();
    const Peephole peephole(mine ? args.peephole : nullptr, hidden, unit);
    const u64 own = (u64)b * hidden + unit;
    float dh = 0.0f, dc = 0.0f, f = 0.0f;
    if (mine) dh = args.dh[own], dc = args.dc[own];
    for (u32 i = threadIdx.x; i < 2 * part.rows * part.row_floats; i += blockDim.x) part.places[i] = 0.0f;
    cluster_arrive();

    for (u32 n = 0; n <= args.steps; n++) {
        const WalkBack at(args, n);
        const bool runs = mine && b < at.active;
        // They come while others are waited for.
        Seen seen = {};
        float dy = 0.0f;
        if (runs) {
            seen = seen_of(args, at.t, b, unit);
            dy = args.dy[((u64)at.t * args.batch + b) * hidden + unit];
        }
        cluster_wait();
        part.sum(part.place(n), rows_from(part.row0, at.from, part.rows));
        __syncthreads();
        if (mine && b < at.from) {
            float u[4];
            const float *first = reinterpret_cast<const float *>(part.parts + part.row() * part.fours) + (unit - part.first_unit);
            join_back(first, part.share.blocks, part.rows * part.fours * 4, u);
            state_back(args.cell.dense, u, f, dh, dc);
        }
        if (at.last) break;
        float4 dz = {0.0f, 0.0f, 0.0f, 0.0f};
        if (runs) {
            const UnitGradients back = run_unit_back(args, seen, peephole, snap(__fadd_rn(dy, dh)), dc);
            dz = {back.dz[0], back.dz[1], back.dz[2], back.dz[3]};
            dc = back.dc, f = seen.gates.y;
            float *place = part.place(n + 1) + part.row() * part.row_floats + unit / LSTM_BLOCK * PITCH + unit % LSTM_BLOCK;
            for (u32 rank = 0; rank < part.size; rank++) tell_four(place, part.row_floats / 4, rank, dz);
        }
        cluster_arrive();
        if (!mine) continue;
        float *p = gradients_of(args, at.t, b, unit);
        p[0] = dz.x, p[hidden] = dz.y, p[2 * (u64)hidden] = dz.z, p[3 * (u64)hidden] = dz.w;
    }
    if (mine) args.dh[own] = dh, args.dc[own] = dc;
}
#endif
