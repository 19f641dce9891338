// What kernels for all steps of a sequence have in common: each block keeps the weights of a few units in registers, and
// blocks pass on what a step gave through global memory. Every word of it holds the sentinel until it is there, so the word
// itself says that it can be used, and a step costs one trip through the cache. All blocks must be resident.

// Between blocks of the depth in shared memory: threads of neighbouring blocks read from different banks.
#define PITCH (LSTM_BLOCK + 4)
#define PITCH_OF_FOUR (4 * LSTM_BLOCK + 4)

// A sum's next four products.
DEVICE float along(float s, float4 x, float w0, float w1, float w2, float w3) {
    return __fmaf_rn(x.w, w3, __fmaf_rn(x.z, w2, __fmaf_rn(x.y, w1, __fmaf_rn(x.x, w0, s))));
}

// A thread has one block of the depth (LSTM_BLOCK of it) of one unit, all four gates.
struct Share {
    u32 blocks, unit, block; // blocks of the depth in all, this thread's unit among its block's, and its block of the depth
    float w[4][LSTM_BLOCK];

    MEMBER Share(u32 depth, u32 units) {
        blocks = (depth + LSTM_BLOCK - 1) / LSTM_BLOCK;
        unit = threadIdx.x % units;
        block = threadIdx.x / units;
    }
    MEMBER bool works() const { return block < blocks; }

    // The part's weights, from the first gate's matrix, whose lines are units; the gates' matrices are `apart`. In 32 bits,
    // which is what a matrix's elements are counted in: longer places would want the registers that weights go to.
    MEMBER void load(const Strided &u, u32 apart, u32 first_unit) {
        const u32 n = first_unit + unit;
#pragma unroll
        for (int gate = 0; gate < 4; gate++)
#pragma unroll
            for (int i = 0; i < LSTM_BLOCK; i++) {
                const u32 k = block * LSTM_BLOCK + i;
                w[gate][i] = n < u.lines && k < u.depth ? u.p[gate * apart + n * u.line + k * u.step] : 0.0f;
            }
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

    // The same of a row whose gates lie side by side, [blocks][PITCH_OF_FOUR].
    MEMBER float4 dot_of_four(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
        x += block * PITCH_OF_FOUR;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k++) {
            const float4 v = *reinterpret_cast<const float4 *>(x + 4 * k);
            s.x = __fmaf_rn(v.x, w[0][k], s.x), s.y = __fmaf_rn(v.y, w[1][k], s.y);
            s.z = __fmaf_rn(v.z, w[2][k], s.z), s.w = __fmaf_rn(v.w, w[3][k], s.w);
        }
        return s;
    }
};

// Block sums from the left; `parts` are those of one row and unit, `pitch` apart.
DEVICE void join(const float4 *parts, u32 blocks, u32 pitch, float *sum) {
    float4 s = parts[0];
#pragma unroll 4
    for (u32 k = 1; k < blocks; k++) {
        const float4 p = parts[(u64)k * pitch];
        s.x = __fadd_rn(s.x, p.x), s.y = __fadd_rn(s.y, p.y), s.z = __fadd_rn(s.z, p.z), s.w = __fadd_rn(s.w, p.w);
    }
    sum[0] = s.x, sum[1] = s.y, sum[2] = s.z, sum[3] = s.w;
}

// No NaN that was computed may look like a word that is not there.
DEVICE void pass_on(float *p, float v) { publish(p, bits_of(v) == ~0u ? 0x7fc00000u : bits_of(v)); }

// Rows of an operand in memory: of sequences that run, words that were passed on; of others, where they start.
struct Rows {
    const float *passed, *initial;
    u32 width, first, running; // elements of a row, the first row, and from which one on they start
    bool fours;                // whether words can be read by fours

    MEMBER Rows(const float *passed, const float *initial, u32 width, u32 first, u32 running)
        : passed(passed), initial(initial), width(width), first(first), running(running) {
        fours = (((u64)passed | (u64)initial) & 15) == 0 && width % 4 == 0;
    }
    MEMBER bool waits(u32 row) const { return first + row < running; }
    MEMBER float4 four(u32 row, u32 k) const {
        const float *p = (waits(row) ? passed : initial) + ((u64)(first + row) * width + k);
        float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
        if (fours) {
            if (k < width) v = peek_four(p);
        } else {
            if (k < width) v.x = value(peek(p));
            if (k + 1 < width) v.y = value(peek(p + 1));
            if (k + 2 < width) v.z = value(peek(p + 2));
            if (k + 3 < width) v.w = value(peek(p + 3));
        }
        return v;
    }
};

DEVICE bool is_missing(float4 v) {
    return bits_of(v.x) == ~0u || bits_of(v.y) == ~0u || bits_of(v.z) == ~0u || bits_of(v.w) == ~0u;
}

// Rows on their way to shared memory, [blocks][PITCH] each, where their padding is +0: a thread has N fours on their way at
// a time, since each of them takes a trip through the cache.
template <int N> struct Incoming {
    u32 each, rows_on, on; // fours of a row; and by how much a thread goes on from one to the next
    float4 held[N];

    MEMBER Incoming(u32 width) {
        each = (width + LSTM_BLOCK - 1) / LSTM_BLOCK * (LSTM_BLOCK / 4);
        rows_on = blockDim.x / each, on = blockDim.x % each;
    }

    struct Place {
        u32 row, at;
    };
    MEMBER Place first() const { return {threadIdx.x / each, threadIdx.x % each}; }
    MEMBER void next(Place &place) const {
        place.row += rows_on, place.at += on;
        if (place.at >= each) place.at -= each, place.row++;
    }

    MEMBER void ask(Place place, const Rows &from, u32 count) {
#pragma unroll
        for (int e = 0; e < N; e++, next(place))
            if (place.row < count) held[e] = from.four(place.row, 4 * place.at);
    }
    // `count` rows, of which the first fours were asked for.
    MEMBER void bring(float *to, const Rows &from, u32 count) {
        for (Place start = first();; ask(start, from, count)) {
            for (bool whole = false; !whole;) {
                whole = true;
                Place place = start;
                // Else the compiler keeps all addresses from one look to the next, in registers that weights need.
                asm volatile("" : "+r"(place.row), "+r"(place.at));
#pragma unroll
                for (int e = 0; e < N; e++, next(place))
                    if (place.row < count && from.waits(place.row) && is_missing(held[e])) {
                        held[e] = from.four(place.row, 4 * place.at);
                        whole = false;
                    }
                if (!whole) pause();
            }
#pragma unroll
            for (int e = 0; e < N; e++, next(start)) {
                const u32 block = start.row * (each / (LSTM_BLOCK / 4)) + start.at / (LSTM_BLOCK / 4);
                float *p = to + (block * PITCH + start.at % (LSTM_BLOCK / 4) * 4);
                if (start.row < count) *reinterpret_cast<float4 *>(p) = held[e];
            }
            if (start.row >= count) break;
        }
    }
};

// All of it.
template <int N> DEVICE void gather(float *to, const Rows &from, u32 count) {
    Incoming<N> incoming(from.width);
    incoming.ask(incoming.first(), from, count);
    incoming.bring(to, from, count);
}

// A block's own part of what each sequence carries from step to step, in shared memory: [batch][units].
struct Own {
    float *v;
    u32 units, first, width; // elements that the block has, the first of them, and how many there are in all

    // From rows of memory; what training keeps of it, too.
    MEMBER void take(u32 batch, const float *from, float *kept) const {
        for (u32 i = threadIdx.x; i < batch * units; i += blockDim.x) {
            const u32 unit = first + i % units;
            if (unit >= width) continue;
            const u64 at = (u64)(i / units) * width + unit;
            v[i] = from[at];
            if (kept) kept[at] = v[i];
        }
    }
    MEMBER void give(u32 batch, float *to) const {
        for (u32 i = threadIdx.x; i < batch * units; i += blockDim.x) {
            const u32 unit = first + i % units;
            if (unit < width) to[(u64)(i / units) * width + unit] = v[i];
        }
    }
};

DEVICE u32 active_at(const u32 *active, u32 t, u32 batch) { return active ? active[t] : batch; }

// How many of the rows from row0 on there are, at most `rows`.
DEVICE u32 rows_from(u32 row0, u32 end, u32 rows) { return row0 >= end ? 0 : end - row0 < rows ? end - row0 : rows; }

// The nth step of a forward pass.
struct Walk {
    u32 t, before, place; // the step, the one walked before it, and where training keeps the state after it
    u32 active, running;  // sequences that have it, and that had the one before; the others start here

    MEMBER Walk(const PersistentArgs &args, u32 n) {
        t = args.reverse ? args.steps - 1 - n : n;
        before = n == 0 ? t : args.reverse ? t + 1 : t - 1;
        place = args.reverse ? t : t + 1;
        active = active_at(args.active, t, args.batch);
        running = n == 0 ? 0 : active_at(args.active, before, args.batch);
    }
};

// The nth step of the way back. There is one more than there are steps: the last gives the initial state's gradient.
struct WalkBack {
    bool last;
    u32 t, visited;   // the step, and the one visited before it
    u32 active, from; // sequences that have it, and that had the one visited before

    MEMBER WalkBack(const PersistentBackArgs &args, u32 n) {
        last = n == args.steps;
        t = last ? 0 : args.reverse ? n : args.steps - 1 - n;
        visited = n == 0 ? 0 : args.reverse ? n - 1 : args.steps - n;
        active = last ? 0 : active_at(args.active, t, args.batch);
        from = n == 0 ? 0 : active_at(args.active, visited, args.batch);
    }
};

// `bias + W x` of the gates of one unit of sequence b in step t.
DEVICE float4 input_of(const PersistentArgs &args, u32 t, u32 b, u32 unit) {
    return of_gates(args.z + (((u64)t * args.batch + b) * 4 * args.hidden + unit), args.hidden);
}

// Its cell, from that and `U h`. Training keeps the gates.
DEVICE Unit run_unit(const PersistentArgs &args, u32 t, u32 b, u32 unit, float4 x, const float *u, float c) {
    const u64 gates = ((u64)t * args.batch + b) * 4 * args.hidden + unit;
    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
    const Unit next = cell(args.cell, x, peephole, args.hidden, u, c);
    if (args.gates)
        for (int k = 0; k < 4; k++) args.gates[gates + (u64)k * args.hidden] = next.gates[k];
    return next;
}

// What the four gates' products of the step visited before give the state's gradient; `f` is its gate.
DEVICE void state_back(bool dense, const float *u, float f, float &dh, float &dc) {
    const float two = __fadd_rn(u[0], u[1]);
    if (dense) {
        // The candidate does not see the state, and what the others see is c.
        dc = snap(__fmaf_rn(dc, f, snap(__fadd_rn(two, u[3]))));
        dh = 0.0f;
    } else {
        dh = snap(__fadd_rn(__fadd_rn(two, u[2]), u[3]));
    }
}

// The way back through it; the gates' gradients are passed on.
DEVICE UnitGradients run_unit_back(const PersistentBackArgs &args, u32 t, u32 b, u32 unit, float dq, float dc) {
    const u64 gates = ((u64)t * args.batch + b) * 4 * args.hidden + unit;
    const u64 old = ((u64)(args.reverse ? t + 1 : t) * args.batch + b) * args.hidden + unit;
    const u64 now = ((u64)(args.reverse ? t : t + 1) * args.batch + b) * args.hidden + unit;
    const float *peephole = args.peephole ? args.peephole + unit : nullptr;
    const float h = args.cell.dense ? args.h[now] : 0.0f;
    const UnitGradients back = cell_back(args.cell, args.bounds, of_gates(args.gates + gates, args.hidden), peephole,
                                         args.hidden, args.c[old], args.c[now], h, dq, dc);
    for (int k = 0; k < 4; k++) pass_on(args.dz + gates + (u64)k * args.hidden, back.dz[k]);
    return back;
}

// The gates' gradients of a sequence that does not have the step; nobody waits for them.
DEVICE void no_unit_back(const PersistentBackArgs &args, u32 t, u32 b, u32 unit) {
    for (int k = 0; k < 4; k++) args.dz[(((u64)t * args.batch + b) * 4 + k) * args.hidden + unit] = 0.0f;
}
