// All steps of a sequence in one launch, for layers without a projection: blocks pass h on through `y`, or with the dense
// peephole, whose gates see c alone, c.

// Shared memory: `rows` rows of what is passed on, [blocks][PITCH] each; sums of blocks, [blocks][rows][units] float4; then
// the block's own h and c, [batch][units] each.
KERNEL(persistent, PersistentArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, first_unit = blockIdx.x * units;
    Share share(hidden, units);
    const u32 row_floats = share.blocks * PITCH;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + args.rows * row_floats);
    float *state = reinterpret_cast<float *>(parts + share.blocks * args.rows * units);
    const Own h{state, units, first_unit, hidden}, c{state + batch * units, units, first_unit, hidden};
    const float *initial = args.cell.dense ? args.c0 : args.h0;
    float *passed = args.cell.dense ? args.passed : args.y;

    share.load(Strided{args.u, hidden, hidden, hidden, 1}, hidden * hidden, first_unit);
    const u64 first_place = (u64)(args.reverse ? args.steps : 0) * batch * hidden;
    h.take(batch, args.h0, args.h ? args.h + first_place : nullptr);
    c.take(batch, args.c0, args.h ? args.c + first_place : nullptr);
    // Nobody else reads it before the first step's barriers.

    for (u32 n = 0; n < args.steps; n++) {
        const Walk at(args, n);
        const float *before = passed + (u64)at.before * batch * hidden;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.active, args.rows), all = rows_from(row0, batch, args.rows);
            gather(rows, count, hidden, [=](u32 row, u32 k) {
                const u64 word = (u64)(row0 + row) * hidden + k;
                return row0 + row < at.running ? awaited(before + word) : initial[word];
            });
            __syncthreads();
            if (share.works())
                for (u32 row = 0; row < count; row++)
                    parts[(share.block * args.rows + row) * units + share.unit] = share.dot(rows + row * row_floats, 0);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                const u64 out = ((u64)at.t * batch + b) * hidden + unit;
                if (row < count) {
                    float u[4];
                    join(parts + i, share.blocks, args.rows * units, u);
                    const Unit next = run_unit(args, at.t, b, unit, u, c.v[own]);
                    c.v[own] = next.c;
                    h.v[own] = next.h;
                    pass_on(passed + out, args.cell.dense ? next.c : next.h);
                    if (args.cell.dense) args.y[out] = next.h;
                } else {
                    args.y[out] = 0.0f;
                }
                if (args.h) {
                    const u64 kept = ((u64)at.place * batch + b) * hidden + unit;
                    args.h[kept] = h.v[own];
                    args.c[kept] = c.v[own];
                }
            }
            // The next rows' sums come after another barrier, which these have passed.
        }
    }
    __syncthreads();
    h.give(batch, args.h_last);
    c.give(batch, args.c_last);
}
