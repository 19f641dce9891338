// All steps of the way back in one launch, as `persistent.cu` does the way forward: a block has the columns of U of a few
// units in registers, and blocks pass the gates' gradients on.

// Shared memory: `rows` rows of dz, [4][blocks][PITCH] each; sums of blocks, [blocks][rows][units] float4; then the
// block's own dh and dc, [batch][units] each.
KERNEL(persistent_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, threads = blockDim.x;
    Share share(hidden, units);
    const u32 gate_floats = share.blocks * PITCH, row_floats = 4 * gate_floats, first_unit = blockIdx.x * units;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + args.rows * row_floats);
    float *own_h = reinterpret_cast<float *>(parts + share.blocks * args.rows * units), *own_c = own_h + batch * units;

#pragma unroll
    for (int gate = 0; gate < 4; gate++)
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k++) {
            const u32 unit = first_unit + share.unit, depth = share.block * LSTM_BLOCK + k;
            const bool there = unit < hidden && depth < hidden;
            share.w[gate][k] = there ? args.u[((u64)gate * hidden + depth) * hidden + unit] : 0.0f;
        }
    for (u32 i = threadIdx.x; i < batch * units; i += threads) {
        const u32 unit = first_unit + i % units;
        if (unit >= hidden) continue;
        own_h[i] = args.dh[(u64)(i / units) * hidden + unit];
        own_c[i] = args.dc[(u64)(i / units) * hidden + unit];
    }
    // Nobody else reads it before the first step's barriers.

    // One more than there are steps: the last gives the initial state's gradient.
    for (u32 n = 0; n <= args.steps; n++) {
        const bool last = n == args.steps;
        const u32 t = last ? 0 : args.reverse ? n : args.steps - 1 - n;
        const u32 visited = n == 0 ? 0 : args.reverse ? n - 1 : args.steps - n;
        const u32 active = last ? 0 : active_at(args.active, t, batch);
        const u32 from = n == 0 ? 0 : active_at(args.active, visited, batch);
        const float *before = args.dz + (u64)visited * batch * 4 * hidden;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = row0 >= from ? 0 : from - row0 < args.rows ? from - row0 : args.rows;
            const u32 padded = share.blocks * LSTM_BLOCK;
            for (u32 i = threadIdx.x; i < count * 4 * padded; i += threads) {
                const u32 row = i / (4 * padded), gate = i / padded % 4, k = i % padded;
                const float v = k < hidden ? awaited(before + ((u64)(row0 + row) * 4 + gate) * hidden + k) : 0.0f;
                rows[row * row_floats + gate * gate_floats + k / LSTM_BLOCK * PITCH + k % LSTM_BLOCK] = v;
            }
            __syncthreads();
            if (share.works())
                for (u32 row = 0; row < count; row++)
                    parts[(share.block * args.rows + row) * units + share.unit] =
                        share.dot(rows + row * row_floats, gate_floats);
            __syncthreads();
            const u32 all = batch - row0 < args.rows ? batch - row0 : args.rows;
            for (u32 i = threadIdx.x; i < all * units; i += threads) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < count) {
                    float u[4];
                    join(parts + i, share.blocks, args.rows * units, u);
                    own_h[own] = snap(__fadd_rn(__fadd_rn(__fadd_rn(u[0], u[1]), u[2]), u[3]));
                }
                if (last) continue;
                const u64 place = (u64)t * batch + b;
                float *dz = args.dz + place * 4 * hidden + unit;
                if (b < active) {
                    const float dh = snap(__fadd_rn(args.dy[place * hidden + unit], own_h[own]));
                    const u64 old = ((u64)(args.reverse ? t + 1 : t) * batch + b) * hidden + unit;
                    const u64 now = ((u64)(args.reverse ? t : t + 1) * batch + b) * hidden + unit;
                    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
                    const UnitGradients back =
                        cell_back(args.cell, args.bounds, args.gates + place * 4 * hidden + unit, peephole, hidden,
                                  args.c[old], args.c[now], 0.0f, dh, own_c[own]);
                    own_c[own] = back.dc;
                    for (int k = 0; k < 4; k++) pass_on(dz + (u64)k * hidden, back.dz[k]);
                } else {
                    for (int k = 0; k < 4; k++) dz[(u64)k * hidden] = 0.0f;
                }
            }
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < batch * units; i += threads) {
        const u32 unit = first_unit + i % units;
        if (unit >= hidden) continue;
        args.dh[(u64)(i / units) * hidden + unit] = own_h[i];
        args.dc[(u64)(i / units) * hidden + unit] = own_c[i];
    }
}
