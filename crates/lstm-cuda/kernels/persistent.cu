// All steps of a sequence in one launch. Each block keeps the recurrent weights of a few units in registers, and blocks
// pass h on through global memory: every word of `y` holds the sentinel until it is there, so the word itself says that
// it can be used, and a step costs one trip through the cache. All blocks must be resident.

// Between blocks of the depth in shared memory: threads of neighbouring blocks read from different banks.
#define PITCH (LSTM_BLOCK + 4)

// A sum's next four products.
DEVICE float along(float s, float4 x, float w0, float w1, float w2, float w3) {
    return __fmaf_rn(x.w, w3, __fmaf_rn(x.z, w2, __fmaf_rn(x.y, w1, __fmaf_rn(x.x, w0, s))));
}

// A thread has one block of the depth (LSTM_BLOCK of it) of one unit, all four gates.
struct Share {
    u32 blocks, unit, block; // blocks of the depth in all, this thread's unit among its block's, and its block of the depth
    float w[4][LSTM_BLOCK];

    MEMBER Share(u32 hidden, u32 units) {
        blocks = (hidden + LSTM_BLOCK - 1) / LSTM_BLOCK;
        unit = threadIdx.x % units;
        block = threadIdx.x / units;
    }
    MEMBER bool works() const { return block < blocks; }

    // The part's weights, from U.
    MEMBER void load(const float *u, u32 hidden, u32 first_unit) {
#pragma unroll
        for (int gate = 0; gate < 4; gate++)
#pragma unroll
            for (int k = 0; k < LSTM_BLOCK; k++) w[gate][k] = weight(u, hidden, gate, first_unit + unit, block * LSTM_BLOCK + k);
    }
    // An element of U, or +0 where there is none.
    MEMBER static float weight(const float *u, u32 hidden, u32 gate, u32 unit, u32 depth) {
        return unit < hidden && depth < hidden ? u[((u64)gate * hidden + unit) * hidden + depth] : 0.0f;
    }

    // The part's sums, of one row of an operand in shared memory; the rows of different gates are `gate` apart.
    MEMBER float4 dot(const float *x, u32 gate) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
        x += block * PITCH;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k += 4) {
            const float4 a = *reinterpret_cast<const float4 *>(x + k);
            const float4 b = *reinterpret_cast<const float4 *>(x + gate + k);
            const float4 c = *reinterpret_cast<const float4 *>(x + 2 * gate + k);
            const float4 d = *reinterpret_cast<const float4 *>(x + 3 * gate + k);
            s.x = along(s.x, a, w[0][k], w[0][k + 1], w[0][k + 2], w[0][k + 3]);
            s.y = along(s.y, b, w[1][k], w[1][k + 1], w[1][k + 2], w[1][k + 3]);
            s.z = along(s.z, c, w[2][k], w[2][k + 1], w[2][k + 2], w[2][k + 3]);
            s.w = along(s.w, d, w[3][k], w[3][k + 1], w[3][k + 2], w[3][k + 3]);
        }
        return s;
    }
};

// Block sums from the left; `parts` are those of one row and unit, `pitch` apart.
DEVICE void join(const float4 *parts, u32 blocks, u32 pitch, float *sum) {
    float4 s = parts[0];
    for (u32 k = 1; k < blocks; k++) {
        const float4 p = parts[(u64)k * pitch];
        s.x = __fadd_rn(s.x, p.x), s.y = __fadd_rn(s.y, p.y), s.z = __fadd_rn(s.z, p.z), s.w = __fadd_rn(s.w, p.w);
    }
    sum[0] = s.x, sum[1] = s.y, sum[2] = s.z, sum[3] = s.w;
}

// Waits for a word.
DEVICE float awaited(const float *p) {
    u32 v = peek(p);
    while (v == ~0u) {
        pause();
        v = peek(p);
    }
    return value(v);
}

// No NaN that was computed may look like a word that is not there.
DEVICE void pass_on(float *p, float v) { publish(p, bits_of(v) == ~0u ? 0x7fc00000u : bits_of(v)); }

DEVICE u32 active_at(const u32 *active, u32 t, u32 batch) { return active ? active[t] : batch; }

// Shared memory: `rows` rows of h, [blocks][PITCH] each; sums of blocks, [blocks][rows][units] float4; then the
// block's own h and c, [batch][units] each.
KERNEL(persistent, PersistentArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units, threads = blockDim.x;
    Share share(hidden, units);
    const u32 row_floats = share.blocks * PITCH, first_unit = blockIdx.x * units;
    SHARED(rows);
    float4 *parts = reinterpret_cast<float4 *>(rows + args.rows * row_floats);
    float *own_h = reinterpret_cast<float *>(parts + share.blocks * args.rows * units), *own_c = own_h + batch * units;

    share.load(args.u, hidden, first_unit);
    const u32 first_place = args.reverse ? args.steps : 0;
    for (u32 i = threadIdx.x; i < batch * units; i += threads) {
        const u32 unit = first_unit + i % units;
        if (unit >= hidden) continue;
        const u64 at = (u64)(i / units) * hidden + unit;
        own_h[i] = args.h0[at];
        own_c[i] = args.c0[at];
        if (args.h) {
            args.h[(u64)first_place * batch * hidden + at] = own_h[i];
            args.c[(u64)first_place * batch * hidden + at] = own_c[i];
        }
    }
    // Nobody else reads it before the first step's barriers.

    for (u32 n = 0; n < args.steps; n++) {
        const u32 t = args.reverse ? args.steps - 1 - n : n, place = args.reverse ? t : t + 1;
        const u32 active = active_at(args.active, t, batch);
        // Sequences that had the step before; the others start here.
        const u32 running = n == 0 ? 0 : active_at(args.active, args.reverse ? t + 1 : t - 1, batch);
        const float *before = n == 0 ? args.h0 : args.y + (u64)(args.reverse ? t + 1 : t - 1) * batch * hidden;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = row0 >= active ? 0 : active - row0 < args.rows ? active - row0 : args.rows;
            for (u32 i = threadIdx.x; i < count * share.blocks * LSTM_BLOCK; i += threads) {
                const u32 row = i / (share.blocks * LSTM_BLOCK), k = i % (share.blocks * LSTM_BLOCK), b = row0 + row;
                float v = 0.0f;
                if (k < hidden) {
                    const u64 at = (u64)b * hidden + k;
                    v = b < running ? awaited(before + at) : args.h0[at];
                }
                rows[row * row_floats + k / LSTM_BLOCK * PITCH + k % LSTM_BLOCK] = v;
            }
            __syncthreads();
            if (share.works())
                for (u32 row = 0; row < count; row++)
                    parts[(share.block * args.rows + row) * units + share.unit] = share.dot(rows + row * row_floats, 0);
            __syncthreads();
            const u32 all = batch - row0 < args.rows ? batch - row0 : args.rows;
            for (u32 i = threadIdx.x; i < all * units; i += threads) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                const u64 at = ((u64)t * batch + b) * hidden + unit;
                if (row < count) {
                    float u[4];
                    join(parts + i, share.blocks, args.rows * units, u);
                    const float4 x = of_gates(args.z + ((u64)t * batch + b) * 4 * hidden + unit, hidden);
                    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
                    const Unit next = cell(args.cell, x, peephole, hidden, u, own_c[own]);
                    own_c[own] = next.c;
                    own_h[own] = next.h;
                    pass_on(args.y + at, next.h);
                    if (args.gates)
                        for (int k = 0; k < 4; k++)
                            args.gates[(((u64)t * batch + b) * 4 + k) * hidden + unit] = next.gates[k];
                } else {
                    args.y[at] = 0.0f;
                }
                if (args.h) {
                    args.h[((u64)place * batch + b) * hidden + unit] = own_h[own];
                    args.c[((u64)place * batch + b) * hidden + unit] = own_c[own];
                }
            }
            // The next rows' sums come after another barrier, which these have passed.
        }
    }
    __syncthreads();
    for (u32 i = threadIdx.x; i < batch * units; i += threads) {
        const u32 unit = first_unit + i % units;
        if (unit >= hidden) continue;
        args.h_last[(u64)(i / units) * hidden + unit] = own_h[i];
        args.c_last[(u64)(i / units) * hidden + unit] = own_c[i];
    }
}
