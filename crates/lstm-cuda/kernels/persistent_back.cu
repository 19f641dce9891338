// All steps of the way back in one launch, as `persistent.cu` does the way forward: a block has the columns of U of a few
// units in registers, and blocks pass the gates' gradients on.

// Shared memory: `part` rows of dz, [blocks][PITCH] each, in two places that take turns; sums of blocks,
// [blocks][rows][fours] float4, in two as well; then the block's own dh and dc, [batch][units] each.
KERNEL(persistent_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, first_unit = blockIdx.x * units;
    const u32 fours = (units + 3) / 4;
    Share share(4 * blocks_of(hidden), fours);
    const u32 row_floats = share.blocks * PITCH, sums = share.blocks * args.rows * fours;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + 2 * args.part * row_floats);
    float *state = reinterpret_cast<float *>(parts + 2 * sums);
    const Own dh{state, units, first_unit, hidden}, dc{state + batch * units, units, first_unit, hidden};

    share.load_back(Strided{args.u, hidden, hidden, 1, hidden}, hidden * hidden, first_unit);
    dh.take(batch, args.dh, nullptr);
    dc.take(batch, args.dc, nullptr);
    // Nobody else reads it before the first step's barriers.

    // Turns as on the way forward.
    const bool several = batch > args.rows;
    const u32 mine = first_unit + threadIdx.x % units, my_row = threadIdx.x / units;
    const auto rows_of = [&](const Turn &turn, const WalkBack &at) {
        const u32 count = rows_from(turn.first, rows_from(turn.row0, at.from, args.rows), args.part);
        const float *before = args.dz + ((u64)at.visited * batch + turn.row0 + turn.first) * 4 * hidden;
        return Rows(before, before, hidden, 4 * count, 4 * count); // one for each gate
    };
    Incoming<8> incoming(hidden);
    Turn now{0, 0, 0}, done{0, 0, 0};
    Rows coming = rows_of(now, WalkBack(args, 0));
    float *rows_place = rows, *rows_other = rows + args.part * row_floats;
    float4 *sums_place = parts, *sums_other = parts + sums;
    Seen seen = {};
    float dy = 0.0f;
    for (bool ready = false, pending = false;;) {
        const bool more = now.n <= args.steps;
        const WalkBack at(args, more ? now.n : 0);
        const u32 count = rows_from(now.row0, at.from, args.rows);
        if (ready) incoming.bring(rows_place, coming);
        __syncthreads();
        if (pending) {
            const WalkBack then(args, done.n);
            const u32 some = rows_from(done.row0, then.from, args.rows), all = rows_from(done.row0, batch, args.rows);
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = done.row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < some) {
                    float u[4];
                    const float *first = reinterpret_cast<const float *>(sums_other + row * fours) + i % units;
                    join_back(first, share.blocks, args.rows * fours * 4, u);
                    const float f = args.cell.dense ? args.gates[(((u64)then.visited * batch + b) * 4 + 1) * hidden + unit] : 0.0f;
                    state_back(args.cell.dense, u, f, dh.v[own], dc.v[own]);
                }
                if (then.last) continue;
                if (b < then.active) {
                    if (i != threadIdx.x) {
                        seen = seen_of(args, then.t, b, unit);
                        dy = args.dy[((u64)then.t * batch + b) * hidden + unit];
                    }
                    const UnitGradients back = run_unit_back(args, seen, {args.peephole, hidden, unit}, snap(__fadd_rn(dy, dh.v[own])), dc.v[own]);
                    dc.v[own] = back.dc;
                    pass_on_gradients(args, then.t, b, unit, back.dz);
                } else {
                    no_unit_back(args, then.t, b, unit);
                }
            }
            if (!more) break;
            pending = false;
        }
        // They come while others are waited for, or rows are summed.
        if (now.first == 0 && (several || !ready) && my_row < args.rows && now.row0 + my_row < at.active && mine < hidden) {
            seen = seen_of(args, at.t, now.row0 + my_row, mine);
            dy = args.dy[((u64)at.t * batch + now.row0 + my_row) * hidden + mine];
        }
        const Turn next = ready ? now.next(args, count) : now;
        const bool asks = next.n <= args.steps && (several || !ready || next.first > 0);
        if (asks) {
            coming = rows_of(next, WalkBack(args, next.n));
            incoming.ask(incoming.first(), coming);
        }
        if (ready) {
            for (u32 r = share.group; share.works() && r < args.part && now.first + r < count; r += share.groups)
                sums_place[(share.block * args.rows + now.first + r) * fours + share.four] = share.dot(rows_place + r * row_floats);
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
    dh.give(batch, args.dh);
    dc.give(batch, args.dc);
}
