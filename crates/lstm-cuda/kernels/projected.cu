// As `persistent.cu` and `persistent_back.cu`, for layers with a projection: blocks pass on twice in a step, and each has
// some of the units and some of the projected features. h is `state` long.

// A thread's block of the depth of one feature or unit, of the projection's weights.
struct Line {
    u32 blocks, unit, block;
    float w[LSTM_BLOCK];

    MEMBER Line(u32 depth, u32 units) {
        blocks = blocks_of(depth);
        unit = threadIdx.x % units;
        block = threadIdx.x / units;
    }
    MEMBER bool works() const { return block < blocks; }

    MEMBER void load(const Strided &m, u32 first_unit) {
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k++) w[k] = m.at(block * LSTM_BLOCK + k, first_unit + unit);
    }
    MEMBER float dot(const float *x) const {
        float s = 0.0f;
        x += block * PITCH;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k += 4)
            s = along(s, *reinterpret_cast<const float4 *>(x + k), w[k], w[k + 1], w[k + 2], w[k + 3]);
        return s;
    }
};

DEVICE float join(const float *parts, u32 blocks, u32 pitch) {
    float s = parts[0];
    for (u32 k = 1; k < blocks; k++) s = __fadd_rn(s, parts[(u64)k * pitch]);
    return s;
}

// Float4s for the sums of blocks of one row, of either product.
DEVICE u32 most_parts(const Share &share, u32 of_share, const Line &line, u32 of_line) {
    return most(share.blocks * of_share, line.blocks * of_line);
}

// Shared memory: `rows` rows of h or of the projection's operand, of blocks of [PITCH]; sums of blocks, of U h
// [blocks][rows][units] float4, of the projection [blocks][rows][features]; then the block's own h, [batch][features], and
// c, [batch][units].
KERNEL(projected, PersistentArgs, 256) {
    const u32 hidden = args.hidden, size = args.state, batch = args.batch, units = args.units, features = args.features;
    const u32 first_unit = blockIdx.x * units, first_feature = blockIdx.x * features;
    Share share(blocks_of(size), units);
    Line line(hidden, features);
    const u32 h_floats = share.blocks * PITCH, operand_floats = line.blocks * PITCH; // of a row; the latter are more
    SHARED(rows);
    float *parts = rows + args.rows * operand_floats;
    float4 *gates = reinterpret_cast<float4 *>(parts);
    float *state = parts + 4 * args.rows * most_parts(share, units, line, features);
    const Own h{state, features, first_feature, size}, c{state + batch * features, units, first_unit, hidden};

    line.load(Strided{args.w_hr, size, hidden, hidden, 1}, first_feature);
    share.load(Strided{args.u, hidden, size, size, 1}, hidden * size, first_unit);
    const u64 first_place = (u64)(args.reverse ? args.steps : 0) * batch;
    h.take(batch, args.h0, args.h ? args.h + first_place * size : nullptr);
    c.take(batch, args.c0, args.h ? args.c + first_place * hidden : nullptr);
    // Nobody else reads it before the first step's barriers.

    for (u32 n = 0; n < args.steps; n++) {
        const Walk at(args, n);
        const u64 now = (u64)at.t * batch, kept = (u64)at.place * batch;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.active, args.rows), all = rows_from(row0, batch, args.rows);
            const float *before = args.y + ((u64)at.before * batch + row0) * size;
            gather<2>(rows, Rows(before, args.h0 + (u64)row0 * size, size, count, rows_from(row0, at.running, count)));
            __syncthreads();
            if (share.works())
                for (u32 row = share.group; row < count; row += share.groups)
                    gates[(share.block * args.rows + row) * units + share.four] = share.dot(rows + row * h_floats);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < count) {
                    float u[4];
                    join(gates + i, share.blocks, args.rows * units, u);
                    const Unit next = run_unit(args, at.t, b, unit, input_of(args, at.t, b, unit), u, c.v[own]);
                    c.v[own] = next.c;
                    pass_on(args.passed + (now + b) * hidden + unit, next.h);
                }
                if (args.c) args.c[(kept + b) * hidden + unit] = c.v[own];
            }
        }
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.active, args.rows), all = rows_from(row0, batch, args.rows);
            const float *operand = args.passed + (now + row0) * hidden;
            gather<2>(rows, Rows(operand, operand, hidden, count, count));
            __syncthreads();
            if (line.works())
                for (u32 row = 0; row < count; row++)
                    parts[(line.block * args.rows + row) * features + line.unit] = line.dot(rows + row * operand_floats);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * features; i += blockDim.x) {
                const u32 row = i / features, b = row0 + row, own = b * features + i % features;
                const u32 feature = first_feature + i % features;
                if (feature >= size) continue;
                float *y = args.y + (now + b) * size + feature;
                if (row < count) {
                    h.v[own] = snap(join(parts + i, line.blocks, args.rows * features));
                    pass_on(y, h.v[own]);
                } else {
                    *y = 0.0f;
                }
                if (args.h) args.h[(kept + b) * size + feature] = h.v[own];
            }
        }
    }
    __syncthreads();
    h.give(batch, args.h_last);
    c.give(batch, args.c_last);
}

// Shared memory: `rows` rows of dz or of the gradient of the projected h, of blocks of [PITCH]; sums of blocks, of dz U
// [blocks][rows][fours] float4, of the projection [blocks][rows][units]; then the block's own dh,
// [batch][features], and dc, [batch][units].
KERNEL(projected_back, PersistentBackArgs, 256) {
    const u32 hidden = args.hidden, size = args.state, batch = args.batch, units = args.units, features = args.features;
    const u32 first_unit = blockIdx.x * units, first_feature = blockIdx.x * features;
    const u32 fours = (features + 3) / 4;
    Share share(4 * blocks_of(hidden), fours);
    Line line(size, units);
    const u32 row_floats = share.blocks * PITCH, h_floats = line.blocks * PITCH;
    SHARED(rows);
    float *parts = rows + args.rows * row_floats;
    float4 *gates = reinterpret_cast<float4 *>(parts);
    float *state = parts + 4 * args.rows * most_parts(share, fours, line, units);
    const Own dh{state, features, first_feature, size}, dc{state + batch * features, units, first_unit, hidden};

    line.load(Strided{args.w_hr, hidden, size, 1, hidden}, first_unit);
    share.load_back(Strided{args.u, size, hidden, 1, size}, hidden * size, first_feature);
    dh.take(batch, args.dh, nullptr);
    dc.take(batch, args.dc, nullptr);
    // Nobody else reads it before the first step's barriers.

    for (u32 n = 0; n <= args.steps; n++) {
        const WalkBack at(args, n);
        const u64 now = (u64)at.t * batch;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.from, args.rows), all = rows_from(row0, batch, args.rows);
            const float *before = args.dz + ((u64)at.visited * batch + row0) * 4 * hidden;
            gather<2>(rows, Rows(before, before, hidden, 4 * count, 4 * count)); // one for each gate
            __syncthreads();
            if (share.works())
                for (u32 row = share.group; row < count; row += share.groups)
                    gates[(share.block * args.rows + row) * fours + share.four] = share.dot(rows + row * row_floats);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * features; i += blockDim.x) {
                const u32 row = i / features, b = row0 + row, own = b * features + i % features;
                const u32 feature = first_feature + i % features;
                if (feature >= size) continue;
                if (row < count) {
                    float u[4];
                    join_back(parts + row * fours * 4 + i % features, share.blocks, args.rows * fours * 4, u);
                    dh.v[own] = snap(__fadd_rn(__fadd_rn(__fadd_rn(u[0], u[1]), u[2]), u[3]));
                }
                if (at.last) continue;
                const u64 out = (now + b) * size + feature;
                if (b < at.active) pass_on(args.projected + out, snap(__fadd_rn(args.dy[out], dh.v[own])));
                else args.projected[out] = 0.0f;
            }
        }
        if (at.last) break;
        for (u32 row0 = 0; row0 < batch; row0 += args.rows) {
            const u32 count = rows_from(row0, at.active, args.rows), all = rows_from(row0, batch, args.rows);
            const float *gradient = args.projected + (now + row0) * size;
            gather<2>(rows, Rows(gradient, gradient, size, count, count));
            __syncthreads();
            if (line.works())
                for (u32 row = 0; row < count; row++)
                    parts[(line.block * args.rows + row) * units + line.unit] = line.dot(rows + row * h_floats);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all * units; i += blockDim.x) {
                const u32 row = i / units, b = row0 + row, own = b * units + i % units, unit = first_unit + i % units;
                if (unit >= hidden) continue;
                float *operand = args.unprojected + (now + b) * hidden + unit;
                if (row < count) {
                    const float dq = snap(join(parts + i, line.blocks, args.rows * units));
                    const UnitGradients back = run_unit_back(args, seen_of(args, at.t, b, unit), {args.peephole, hidden, unit}, dq, dc.v[own]);
                    dc.v[own] = back.dc;
                    pass_on_gradients(args, at.t, b, unit, back.dz);
                    *operand = back.operand;
                } else {
                    no_unit_back(args, at.t, b, unit);
                    *operand = 0.0f;
                }
            }
        }
    }
    __syncthreads();
    dh.give(batch, args.dh);
    dc.give(batch, args.dc);
}
