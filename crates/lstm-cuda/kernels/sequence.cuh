// Common parts of the kernels that run all steps of a sequence in one launch. Each block keeps the recurrent weights of
// a few units in registers, and blocks exchange the results of a step through global memory. Before a word is written
// it holds the sentinel, so that each word shows by itself whether it is valid, and an exchange costs one trip through
// the cache. All blocks must be resident at the same time.

// Stride between blocks of the depth in shared memory: threads of adjacent blocks read from different banks.
#define PITCH (LSTM_BLOCK + 4)

DEVICE u32 depth_blocks(u32 depth) { return (depth + LSTM_BLOCK - 1) / LSTM_BLOCK; }

// Adds the next four products to a sum.
DEVICE float fma4(float s, float4 x, float w0, float w1, float w2, float w3) {
    return __fmaf_rn(x.w, w3, __fmaf_rn(x.z, w2, __fmaf_rn(x.y, w1, __fmaf_rn(x.x, w0, s))));
}

// The weights that a thread keeps in registers: of a quad (four sums), over one block of the depth (LSTM_BLOCK
// elements). Four sums per thread, so that each operand element is loaded once for four of them. In the forward pass a
// quad is the four gates of a unit. In the backward pass each gate has an operand of its own: a quad is four units of
// one gate, and there are four times as many depth blocks, those of one gate after those of another. If a thread block
// has enough threads for several groups that each have all weights, the groups share the operand's rows.
struct WeightSlice {
    u32 blocks, quad, block; // depth blocks in total, this thread's quad in its depth block, and its depth block
    u32 group, groups;
    float w[4][LSTM_BLOCK];

    MEMBER WeightSlice(u32 blocks, u32 quads) : blocks(blocks) {
        const u32 n = threadIdx.x / quads;
        quad = threadIdx.x % quads, block = n % blocks;
        group = n / blocks, groups = blockDim.x / (quads * blocks);
    }
    MEMBER bool has_work() const { return group < groups; }

    // Loads the weights. `u` is the first gate's matrix, whose lines are units; the gates' matrices are `gate_stride`
    // elements apart. Offsets have 32 bits, which suffice for a matrix: with 64 bits there are too few registers for
    // the weights.
    MEMBER void load(const Strided &u, u32 gate_stride, u32 first_unit) {
#pragma unroll
        for (int sum = 0; sum < 4; sum++)
#pragma unroll
            for (int i = 0; i < LSTM_BLOCK; i++)
                w[sum][i] = weight(u, first_unit + quad, block * LSTM_BLOCK + i, sum * gate_stride);
    }
    MEMBER void load_backward(const Strided &u, u32 gate_stride, u32 first_unit) {
        const u32 gate = block / (blocks / 4), k = block % (blocks / 4) * LSTM_BLOCK;
#pragma unroll
        for (int sum = 0; sum < 4; sum++)
#pragma unroll
            for (int i = 0; i < LSTM_BLOCK; i++)
                w[sum][i] = weight(u, first_unit + 4 * quad + sum, k + i, gate * gate_stride);
    }
    MEMBER static float weight(const Strided &u, u32 unit, u32 k, u32 gate) {
        return unit < u.lines && k < u.depth ? u.p[gate + unit * u.line_stride + k * u.depth_stride] : 0.0f;
    }

    // The four sums over this depth block of one row, which is in shared memory.
    MEMBER float4 dot(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
        x += block * PITCH;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k += 4) {
            const float4 v = *reinterpret_cast<const float4 *>(x + k);
            s.x = fma4(s.x, v, w[0][k], w[0][k + 1], w[0][k + 2], w[0][k + 3]);
            s.y = fma4(s.y, v, w[1][k], w[1][k + 1], w[1][k + 2], w[1][k + 3]);
            s.z = fma4(s.z, v, w[2][k], w[2][k + 1], w[2][k + 2], w[2][k + 3]);
            s.w = fma4(s.w, v, w[3][k], w[3][k + 1], w[3][k + 2], w[3][k + 3]);
        }
        return s;
    }
};

// Adds the sums of all depth blocks from left to right, for the four gates of one unit and row. The depth blocks are
// `stride` elements apart.
DEVICE void add_block_sums(const float4 *block_sums, u32 blocks, u32 stride, float *sum) {
    float4 s = block_sums[0];
#pragma unroll 4
    for (u32 k = 1; k < blocks; k++) {
        const float4 p = block_sums[(u64)k * stride];
        s.x = __fadd_rn(s.x, p.x), s.y = __fadd_rn(s.y, p.y), s.z = __fadd_rn(s.z, p.z), s.w = __fadd_rn(s.w, p.w);
    }
    sum[0] = s.x, sum[1] = s.y, sum[2] = s.z, sum[3] = s.w;
}

// The same in the backward pass, where a depth block belongs to one gate.
DEVICE void add_block_sums_backward(const float *block_sums, u32 blocks, u32 stride, float *sum) {
    const u32 gate_distance = blocks / 4 * stride;
    for (u32 gate = 0; gate < 4; gate++) sum[gate] = block_sums[gate * gate_distance];
#pragma unroll 4
    for (u32 k = 1; k < blocks / 4; k++)
#pragma unroll
        for (u32 gate = 0; gate < 4; gate++)
            sum[gate] = __fadd_rn(sum[gate], block_sums[gate * gate_distance + k * stride]);
}

// Writes a value for other blocks. A computed NaN is replaced if it has the sentinel's bits.
DEVICE void publish(float *p, float v) { store_relaxed(p, to_bits(v) == ~0u ? 0x7fc00000u : to_bits(v)); }

// Rows of an operand in global memory, one after another. The first of them are exchanged between blocks, the other
// ones are initial states.
struct OperandRows {
    const float *exchanged, *initial;
    u32 width, count, exchanged_count; // elements per row, number of rows, and how many of them are exchanged
    bool vectorized, contiguous; // whether rows can be read as float4, and whether all depth blocks are contiguous

    MEMBER OperandRows(const float *exchanged, const float *initial, u32 width, u32 count, u32 exchanged_count)
        : exchanged(exchanged), initial(initial), width(width), count(count),
          exchanged_count(exchanged_count < count ? exchanged_count : count) {
        vectorized = (((u64)exchanged | (u64)initial) & 15) == 0 && width % 4 == 0;
        contiguous = vectorized && width % LSTM_BLOCK == 0 && this->exchanged_count == count;
    }
};

// Loads words k to k + 3 of a row.
DEVICE float4 load_words(const float *row, u32 k, u32 width) {
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k < width) v.x = from_bits(load_relaxed(row + k));
    if (k + 1 < width) v.y = from_bits(load_relaxed(row + k + 1));
    if (k + 2 < width) v.z = from_bits(load_relaxed(row + k + 2));
    if (k + 3 < width) v.w = from_bits(load_relaxed(row + k + 3));
    return v;
}

DEVICE u32 max_of(u32 a, u32 b) { return a > b ? a : b; }
// All bits are set if a word is the sentinel, which has all bits set.
DEVICE u32 max_bits(float4 v) { return max_of(max_of(to_bits(v.x), to_bits(v.y)), max_of(to_bits(v.z), to_bits(v.w))); }

// Loads rows to shared memory, `[blocks][PITCH]` each, padded with +0. Each thread has N float4 in flight, since each
// load takes a trip through the cache. Eight threads load one depth block, so that the number of threads must be a
// multiple of eight.
template <int N> struct RowLoader {
    u32 width, blocks,
        blocks_per_pass; // elements and depth blocks of a row, and depth blocks that all threads load at once
    u32 row_step, block_step; // the distance from one of a thread's depth blocks to its next, in rows and blocks
    float4 words[N];

    MEMBER RowLoader(u32 width) : width(width), blocks(depth_blocks(width)) {
        blocks_per_pass = blockDim.x / (LSTM_BLOCK / 4), row_step = blocks_per_pass / blocks,
        block_step = blocks_per_pass % blocks;
    }
    // A depth block: its index among those of all rows, its row and its index in the row.
    struct Position {
        u32 n, row, block;
    };
    MEMBER Position start() const {
        const u32 n = threadIdx.x / (LSTM_BLOCK / 4);
        return {n, n / blocks, n % blocks};
    }
    MEMBER void advance(Position &p) const {
        p.n += blocks_per_pass, p.row += row_step, p.block += block_step;
        if (p.block >= blocks) p.block -= blocks, p.row++;
    }
    // The first of this thread's four words in a depth block.
    MEMBER static u32 first_word() { return threadIdx.x % (LSTM_BLOCK / 4) * 4; }

    MEMBER float4 poll(const Position &p, const OperandRows &from) const {
        if (from.contiguous) return load_relaxed4(from.exchanged + (p.n * LSTM_BLOCK + first_word()));
        const u32 k = p.block * LSTM_BLOCK + first_word();
        const float *row = (p.row < from.exchanged_count ? from.exchanged : from.initial) + p.row * width;
        if (!from.vectorized) return load_words(row, k, width);
        return k < width ? load_relaxed4(row + k) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }

    MEMBER void request(Position position, const OperandRows &from) {
        if (from.contiguous) {
            const float *p = from.exchanged + (position.n * LSTM_BLOCK + first_word());
#pragma unroll
            for (int e = 0; e < N; e++, position.n += blocks_per_pass, p += blocks_per_pass * LSTM_BLOCK) {
                words[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                if (position.n < from.count * blocks) words[e] = load_relaxed4(p);
            }
        } else {
#pragma unroll
            for (int e = 0; e < N; e++, advance(position)) {
                words[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                if (position.row < from.count) words[e] = poll(position, from);
            }
        }
    }
    // Waits for the requested words and stores them, then does the same for the rest of the rows.
    MEMBER void receive(float *to, const OperandRows &from) {
        for (Position first = start();;) {
            u32 missing = 0;
#pragma unroll
            for (int e = 0; e < N; e++) missing = max_of(missing, max_bits(words[e]));
            while (missing == ~0u) {
                missing = 0;
                Position position = first;
                // Prevents the compiler from keeping all addresses from one poll to the next, in registers that the
                // weights need.
                asm volatile("" : "+r"(position.n), "+r"(position.row), "+r"(position.block));
#pragma unroll
                for (int e = 0; e < N; e++, advance(position))
                    if (position.row < from.exchanged_count && max_bits(words[e]) == ~0u) {
                        words[e] = poll(position, from);
                        missing = ~0u;
                    }
                if (missing) pause();
            }
            const u32 all = from.count * blocks;
            float *p = to + (first.n * PITCH + first_word());
#pragma unroll
            for (int e = 0; e < N; e++, p += blocks_per_pass * PITCH)
                if (first.n + e * blocks_per_pass < all) *reinterpret_cast<float4 *>(p) = words[e];
            if (first.n + N * blocks_per_pass >= all) break;
            for (int e = 0; e < N; e++) advance(first);
            request(first, from);
        }
    }
};

// Loads all rows to shared memory.
template <int N> DEVICE void gather_rows(float *to, const OperandRows &from) {
    RowLoader<N> loader(from.width);
    loader.request(loader.start(), from);
    loader.receive(to, from);
}

// A block's part of a state that each sequence carries from step to step, in shared memory: `[batch][elements]`.
struct BlockState {
    float *values;
    u32 elements, first, width; // the block's number of elements, its first element, and the state's size

    // Loads the state from global memory, and copies it to the trace if there is one.
    MEMBER void load(u32 batch, const float *from, float *trace) const {
        for (u32 i = threadIdx.x; i < batch * elements; i += blockDim.x) {
            const u32 element = first + i % elements;
            if (element >= width) continue;
            const u64 index = (u64)(i / elements) * width + element;
            values[i] = from[index];
            if (trace) trace[index] = values[i];
        }
    }
    MEMBER void store(u32 batch, float *to) const {
        for (u32 i = threadIdx.x; i < batch * elements; i += blockDim.x) {
            const u32 element = first + i % elements;
            if (element < width) to[(u64)(i / elements) * width + element] = values[i];
        }
    }
};

DEVICE u32 active_at(const u32 *active, u32 t, u32 batch) { return active ? active[t] : batch; }

// The number of rows from row0 up to `end`, at most `rows`.
DEVICE u32 rows_in_range(u32 row0, u32 end, u32 rows) {
    return row0 >= end ? 0 : end - row0 < rows ? end - row0 : rows;
}

template <class T> DEVICE void swap(T *&a, T *&b) {
    T *const c = a;
    a = b, b = c;
}

// The rows whose sums are computed at a time: a tile of a row group. `group_start` is the first row of the group,
// `tile_start` the tile's first row relative to it.
struct RowTile {
    u32 step, group_start, tile_start;

    // The next tile; `count` rows of the group are active in the step.
    template <class Args> MEMBER RowTile next(const Args &args, u32 count) const {
        if (tile_start + args.tile_rows < count) return {step, group_start, tile_start + args.tile_rows};
        const bool same_step = group_start + args.group_rows < args.batch;
        return {same_step ? step : step + 1, same_step ? group_start + args.group_rows : 0, 0};
    }
};

// Step n of the forward pass, in the order in which steps run.
struct ForwardStep {
    u32 t, previous, trace_index; // the step's index, that of the step run before it, and where the trace has its state
    u32 active, previous_active; // number of sequences that have this step, and that had the previous one

    MEMBER ForwardStep(const ForwardSequenceArgs &args, u32 n) {
        t = args.reverse ? args.steps - 1 - n : n;
        previous = n == 0 ? t : args.reverse ? t + 1 : t - 1;
        trace_index = args.reverse ? t : t + 1;
        active = active_at(args.active_counts, t, args.batch);
        previous_active = n == 0 ? 0 : active_at(args.active_counts, previous, args.batch);
    }
};

// Step n of the backward pass. There is one more than the sequence has steps: the last one computes the gradient of the
// initial state.
struct BackwardStep {
    bool after_last; // whether this is the additional step
    u32 t, previous; // the step's index, and that of the step visited before it
    u32 active, previous_active; // number of sequences that have this step, and that had the previous one

    MEMBER BackwardStep(const BackwardSequenceArgs &args, u32 n) {
        after_last = n == args.steps;
        t = after_last ? 0 : args.reverse ? n : args.steps - 1 - n;
        previous = n == 0 ? 0 : args.reverse ? n - 1 : args.steps - n;
        active = after_last ? 0 : active_at(args.active_counts, t, args.batch);
        previous_active = n == 0 ? 0 : active_at(args.active_counts, previous, args.batch);
    }
};

// Loads `bias + W x` of the gates of one unit of sequence b in step t.
DEVICE float4 load_input_gates(const ForwardSequenceArgs &args, u32 t, u32 b, u32 unit) {
    return load_gates(args.z + (((u64)t * args.batch + b) * 4 * args.hidden + unit), args.hidden);
}

// Computes the cell of one unit of sequence b in step t, and stores the gates in the trace if there is one.
DEVICE CellOutput unit_forward(const ForwardSequenceArgs &args, u32 t, u32 b, u32 unit, float4 x, const float *u,
                               float c) {
    const u64 gates = ((u64)t * args.batch + b) * 4 * args.hidden + unit;
    const CellOutput next = cell_forward(args.cell, x, {args.peephole, args.hidden, unit}, u, c);
    if (args.trace_gates)
        for (int k = 0; k < 4; k++) args.trace_gates[gates + (u64)k * args.hidden] = next.gates[k];
    return next;
}

// The gradient of the state before a step: `u` are the products of the four gates' gradients with U, `f` is the forget
// gate of the previous step.
DEVICE void state_gradients(bool dense, const float *u, float f, float &dh, float &dc) {
    const float first_two = __fadd_rn(u[0], u[1]);
    if (dense) {
        // With dense peepholes the candidate gate has no recurrent term, and that of the other gates is made from c.
        dc = snap(__fmaf_rn(dc, f, snap(__fadd_rn(first_two, u[3]))));
        dh = 0.0f;
    } else {
        dh = snap(__fadd_rn(__fadd_rn(first_two, u[2]), u[3]));
    }
}

// Loads all values but `dc`, which these kernels keep in shared memory or registers.
DEVICE ForwardValues load_forward_values(const BackwardSequenceArgs &args, u32 t, u32 b, u32 unit) {
    const u64 first = ((u64)t * args.batch + b) * args.hidden + unit, second = first + (u64)args.batch * args.hidden;
    const u64 old = args.reverse ? second : first, now = args.reverse ? first : second;
    return {load_gates(args.gates + (first - unit) * 4 + unit, args.hidden), args.c[old], args.c[now],
            args.cell.dense_peephole ? args.h[now] : 0.0f, 0.0f};
}

DEVICE UnitGradients unit_gradients(const BackwardSequenceArgs &args, const ForwardValues &values,
                                    const Peephole &peephole, float dq, float dc) {
    return cell_backward(args.cell, args.bounds, values.gates, peephole, values.c_old, values.c, values.h, dq, dc);
}

DEVICE float *dz_address(const BackwardSequenceArgs &args, u32 t, u32 b, u32 unit) {
    return args.dz + (((u64)t * args.batch + b) * 4 * args.hidden + unit);
}

// Zeros the gates' gradients of a sequence that does not have the step; no block waits for them.
DEVICE void zero_unit_gradients(const BackwardSequenceArgs &args, u32 t, u32 b, u32 unit) {
    float *p = dz_address(args, t, b, unit);
    for (int k = 0; k < 4; k++) p[(u64)k * args.hidden] = 0.0f;
}

DEVICE void publish_gradients(const BackwardSequenceArgs &args, u32 t, u32 b, u32 unit, const float *dz) {
    float *p = dz_address(args, t, b, unit);
    for (int k = 0; k < 4; k++) publish(p + (u64)k * args.hidden, dz[k]);
}
