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

    const auto rows_of = [&](const Walk &at, u32 row0) {
        return Rows(passed + (u64)at.before * batch * hidden, initial, hidden, row0, at.running);
    };
    Incoming<8> incoming(hidden);
    // Of several parts of the batch the next one was passed on while this one was summed: it is asked for early.
    const bool early = batch > args.rows;
    for (u32 n = 0; n < args.steps; n++) {
        const Walk at(args, n);
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.active, args.rows), all = rows_from(row0, batch, args.rows);
            const Rows from = rows_of(at, row0);
            if (!early || (n == 0 && row0 == 0)) incoming.ask(incoming.first(), from, count);
            // It comes while others are waited for.
            const u32 mine = first_unit + threadIdx.x % units;
            float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
            if (threadIdx.x < count * units && mine < hidden) x = input_of(args, at.t, row0 + threadIdx.x / units, mine);
            incoming.bring(rows, from, count);
            __syncthreads();
            const bool goes_on = row0 + args.rows < batch;
            if (early && (goes_on || n + 1 < args.steps)) {
                const Walk then(args, goes_on ? n : n + 1);
                const u32 next = goes_on ? row0 + args.rows : 0;
                incoming.ask(incoming.first(), rows_of(then, next), rows_from(next, then.active, args.rows));
            }
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
                    if (i != threadIdx.x) x = input_of(args, at.t, b, unit);
                    const Unit next = run_unit(args, at.t, b, unit, x, u, c.v[own]);
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
