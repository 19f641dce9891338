// All steps of a sequence in one launch, for layers without a projection: blocks pass h on through `y`, or with the dense
// peephole, whose gates see c alone, c.

// Shared memory: `part` rows of what is passed on, [blocks][PITCH] each, in two places that take turns; sums of blocks,
// [blocks][rows][units] float4, in two as well; then the block's own h and c, [batch][units] each.
KERNEL(persistent, PersistentArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, first_unit = blockIdx.x * units;
    Share share(blocks_of(hidden), units);
    const u32 row_floats = share.blocks * PITCH, sums = share.blocks * args.rows * units;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + 2 * args.part * row_floats);
    float *state = reinterpret_cast<float *>(parts + 2 * sums);
    const Own h{state, units, first_unit, hidden}, c{state + batch * units, units, first_unit, hidden};
    const float *initial = args.cell.dense ? args.c0 : args.h0;
    float *passed = args.cell.dense ? args.passed : args.y;

    share.load(Strided{args.u, hidden, hidden, hidden, 1}, hidden * hidden, first_unit);
    const u64 first_place = (u64)(args.reverse ? args.steps : 0) * batch * hidden;
    h.take(batch, args.h0, args.h ? args.h + first_place : nullptr);
    c.take(batch, args.c0, args.h ? args.c + first_place : nullptr);
    // Nobody else reads it before the first step's barriers.

    // Of a batch that is joined in several parts, a part's cells are computed while the next one is summed, whose rows were
    // passed on long ago and are asked for early. Else all wait for one another: a turn without sums is one of cells alone.
    const bool several = batch > args.rows;
    const u32 mine = first_unit + threadIdx.x % units, my_row = threadIdx.x / units;
    const auto rows_of = [&](const Turn &turn, const Walk &at) {
        const u32 first = turn.row0 + turn.first;
        const u32 count = rows_from(turn.first, rows_from(turn.row0, at.active, args.rows), args.part);
        const float *before = passed + ((u64)at.before * batch + first) * hidden;
        return Rows(before, initial + (u64)first * hidden, hidden, count, rows_from(first, at.running, count));
    };
    Incoming<8> incoming(hidden);
    Turn now{0, 0, 0}, done{0, 0, 0};
    Rows coming = rows_of(now, Walk(args, 0));
    float *rows_place = rows, *rows_other = rows + args.part * row_floats;
    float4 *sums_place = parts, *sums_other = parts + sums;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    for (bool ready = false, pending = false;;) {
        const bool more = now.n < args.steps;
        const Walk at(args, more ? now.n : 0);
        const u32 count = rows_from(now.row0, at.active, args.rows);
        if (ready) incoming.bring(rows_place, coming);
        __syncthreads();
        if (pending) {
            const Walk then(args, done.n);
            const u32 some = rows_from(done.row0, then.active, args.rows), all = rows_from(done.row0, batch, args.rows);
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = done.row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                const u64 out = ((u64)then.t * batch + b) * hidden + unit;
                if (row < some) {
                    float u[4];
                    join(sums_other + i, share.blocks, args.rows * units, u);
                    if (i != threadIdx.x) x = input_of(args, then.t, b, unit);
                    const Unit next = run_unit(args, then.t, b, unit, x, u, c.v[own]);
                    c.v[own] = next.c;
                    h.v[own] = next.h;
                    pass_on(passed + out, args.cell.dense ? next.c : next.h);
                    if (args.cell.dense) args.y[out] = next.h;
                } else {
                    args.y[out] = 0.0f;
                }
                if (args.h) {
                    const u64 kept = ((u64)then.place * batch + b) * hidden + unit;
                    args.h[kept] = h.v[own];
                    args.c[kept] = c.v[own];
                }
            }
            if (!more) break;
            pending = false;
        }
        // It comes while others are waited for, or rows are summed.
        if (now.first == 0 && (several || !ready) && my_row < count && mine < hidden) x = input_of(args, at.t, now.row0 + my_row, mine);
        const Turn next = ready ? now.next(args, count) : now;
        const bool asks = next.n < args.steps && (several || !ready || next.first > 0);
        if (asks) {
            coming = rows_of(next, Walk(args, next.n));
            incoming.ask(incoming.first(), coming);
        }
        if (ready) {
            for (u32 r = share.group; share.works() && r < args.part && now.first + r < count; r += share.groups)
                sums_place[(share.block * args.rows + now.first + r) * units + share.four] = share.dot(rows_place + r * row_floats);
            swap(rows_place, rows_other);
            if (next.first == 0) {
                swap(sums_place, sums_other);
                pending = true, done = now;
            }
            now = next;
        }
        ready = asks;
    }
    __syncthreads();
    h.give(batch, args.h_last);
    c.give(batch, args.c_last);
}
