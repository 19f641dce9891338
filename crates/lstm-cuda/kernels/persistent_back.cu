// All steps of the way back in one launch, as `persistent.cu` does the way forward: a block has the columns of U of a few
// units in registers, and blocks pass the gates' gradients on.

// Shared memory: `rows` rows of dz, [4][blocks][PITCH] each; sums of blocks, [blocks][rows][units] float4; then the
// block's own dh and dc, [batch][units] each.
KERNEL(persistent_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, first_unit = blockIdx.x * units;
    Share share(hidden, units);
    const u32 gate_floats = share.blocks * PITCH, row_floats = 4 * gate_floats;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + args.rows * row_floats);
    float *state = reinterpret_cast<float *>(parts + share.blocks * args.rows * units);
    const Own dh{state, units, first_unit, hidden}, dc{state + batch * units, units, first_unit, hidden};

    share.load(Strided{args.u, hidden, hidden, 1, hidden}, hidden * hidden, first_unit);
    dh.take(batch, args.dh, nullptr);
    dc.take(batch, args.dc, nullptr);
    // Nobody else reads it before the first step's barriers.

    constexpr u32 PART = 2; // rows that are asked for together
    Incoming<8> incoming(hidden);
    for (u32 n = 0; n <= args.steps; n++) {
        const WalkBack at(args, n);
        const float *before = args.dz + (u64)at.visited * batch * 4 * hidden;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.from, args.rows), all = rows_from(row0, batch, args.rows);
            // A row of each gate; those that are summed next are on their way while these are.
            const auto some = [=](u32 row) { return 4 * (count - row < PART ? count - row : PART); };
            for (u32 first = 0; first < count; first += PART) {
                const Rows from(before, before, hidden, 4 * (row0 + first), 4 * batch);
                if (first == 0) incoming.ask(incoming.first(), from, some(0));
                incoming.bring(rows + first * row_floats, from, some(first));
                __syncthreads();
                const u32 next = first + PART;
                if (next < count) incoming.ask(incoming.first(), Rows(before, before, hidden, 4 * (row0 + next), 4 * batch), some(next));
                if (share.works())
                    for (u32 row = first; row < count && row < next; row++)
                        parts[(share.block * args.rows + row) * units + share.unit] =
                            share.dot(rows + row * row_floats, gate_floats);
            }
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < count) {
                    float u[4];
                    join(parts + i, share.blocks, args.rows * units, u);
                    const float f = args.cell.dense ? args.gates[(((u64)at.visited * batch + b) * 4 + 1) * hidden + unit] : 0.0f;
                    state_back(args.cell.dense, u, f, dh.v[own], dc.v[own]);
                }
                if (at.last) continue;
                if (b < at.active) {
                    const float dq = snap(__fadd_rn(args.dy[((u64)at.t * batch + b) * hidden + unit], dh.v[own]));
                    dc.v[own] = run_unit_back(args, at.t, b, unit, dq, dc.v[own]).dc;
                } else {
                    no_unit_back(args, at.t, b, unit);
                }
            }
        }
    }
    __syncthreads();
    dh.give(batch, args.dh);
    dc.give(batch, args.dc);
}
