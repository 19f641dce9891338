// What kernels for all steps of a sequence have in common: each block keeps the weights of a few units in registers, and
// blocks pass on what a step gave through global memory. Every word of it holds the sentinel until it is there, so the word
// itself says that it can be used, and a step costs one trip through the cache. All blocks must be resident.

// Between blocks of the depth in shared memory: threads of neighbouring blocks read from different banks.
#define PITCH (LSTM_BLOCK + 4)

DEVICE u32 blocks_of(u32 depth) { return (depth + LSTM_BLOCK - 1) / LSTM_BLOCK; }

// A sum's next four products.
DEVICE float along(float s, float4 x, float w0, float w1, float w2, float w3) {
    return __fmaf_rn(x.w, w3, __fmaf_rn(x.z, w2, __fmaf_rn(x.y, w1, __fmaf_rn(x.x, w0, s))));
}

// A thread has four sums over one block of the depth (LSTM_BLOCK of it), so that what it reads of an operand counts four
// times: on the way forward a unit's four gates. On the way back, where each gate has an operand of its own, four units of one
// gate; the gates' blocks of the depth lie one after another and count as four times as many. Where a block of threads has several
// groups that can do all of it, they share out an operand's rows.
struct Share {
    u32 blocks, four, block; // blocks in all, which of its block's fours of sums this thread has, and which block
    u32 group, groups;
    float w[4][LSTM_BLOCK];

    MEMBER Share(u32 blocks, u32 fours) : blocks(blocks) {
        const u32 n = threadIdx.x / fours;
        four = threadIdx.x % fours, block = n % blocks;
        group = n / blocks, groups = blockDim.x / (fours * blocks);
    }
    MEMBER bool works() const { return group < groups; }

    // The part's weights, from the first gate's matrix, whose lines are units; the gates' matrices are `apart`. In 32 bits,
    // which is what a matrix's elements are counted in: longer places would want the registers that weights go to.
    MEMBER void load(const Strided &u, u32 apart, u32 first_unit) {
#pragma unroll
        for (int sum = 0; sum < 4; sum++)
#pragma unroll
            for (int i = 0; i < LSTM_BLOCK; i++) w[sum][i] = weight(u, first_unit + four, block * LSTM_BLOCK + i, sum * apart);
    }
    MEMBER void load_back(const Strided &u, u32 apart, u32 first_unit) {
        const u32 gate = block / (blocks / 4), k = block % (blocks / 4) * LSTM_BLOCK;
#pragma unroll
        for (int sum = 0; sum < 4; sum++)
#pragma unroll
            for (int i = 0; i < LSTM_BLOCK; i++)
                w[sum][i] = weight(u, first_unit + 4 * four + sum, k + i, gate * apart);
    }
    MEMBER static float weight(const Strided &u, u32 unit, u32 k, u32 gate) {
        return unit < u.lines && k < u.depth ? u.p[gate + unit * u.line + k * u.step] : 0.0f;
    }

    // The part's sums, of one row of an operand in shared memory.
    MEMBER float4 dot(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
        x += block * PITCH;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k += 4) {
            const float4 v = *reinterpret_cast<const float4 *>(x + k);
            s.x = along(s.x, v, w[0][k], w[0][k + 1], w[0][k + 2], w[0][k + 3]);
            s.y = along(s.y, v, w[1][k], w[1][k + 1], w[1][k + 2], w[1][k + 3]);
            s.z = along(s.z, v, w[2][k], w[2][k + 1], w[2][k + 2], w[2][k + 3]);
            s.w = along(s.w, v, w[3][k], w[3][k + 1], w[3][k + 2], w[3][k + 3]);
        }
        return s;
    }
};

// Block sums of a unit's four gates from the left; `parts` are those of one row and unit, `pitch` apart.
DEVICE void join(const float4 *parts, u32 blocks, u32 pitch, float *sum) {
    float4 s = parts[0];
#pragma unroll 4
    for (u32 k = 1; k < blocks; k++) {
        const float4 p = parts[(u64)k * pitch];
        s.x = __fadd_rn(s.x, p.x), s.y = __fadd_rn(s.y, p.y), s.z = __fadd_rn(s.z, p.z), s.w = __fadd_rn(s.w, p.w);
    }
    sum[0] = s.x, sum[1] = s.y, sum[2] = s.z, sum[3] = s.w;
}

// The same on the way back, where a block's sums are one gate's.
DEVICE void join_back(const float *parts, u32 blocks, u32 pitch, float *sum) {
    const u32 gates = blocks / 4 * pitch;
    for (u32 gate = 0; gate < 4; gate++) sum[gate] = parts[gate * gates];
#pragma unroll 4
    for (u32 k = 1; k < blocks / 4; k++)
#pragma unroll
        for (u32 gate = 0; gate < 4; gate++) sum[gate] = __fadd_rn(sum[gate], parts[gate * gates + k * pitch]);
}

// No NaN that was computed may look like a word that is not there.
DEVICE void pass_on(float *p, float v) { publish(p, bits_of(v) == ~0u ? 0x7fc00000u : bits_of(v)); }

// Rows of an operand in memory, one after another: the first of them were passed on, the others lie where sequences start.
struct Rows {
    const float *passed, *initial;
    u32 width, count, waiting; // elements of a row, rows, and how many of them were passed on
    bool fours, whole;         // whether words can be read by fours, and blocks of all rows lie one after another

    MEMBER Rows(const float *passed, const float *initial, u32 width, u32 count, u32 waiting)
        : passed(passed), initial(initial), width(width), count(count), waiting(waiting < count ? waiting : count) {
        fours = (((u64)passed | (u64)initial) & 15) == 0 && width % 4 == 0;
        whole = fours && width % LSTM_BLOCK == 0 && this->waiting == count;
    }
};

// Words `k` and the next three of a row that begins at `row`.
DEVICE float4 words(const float *row, u32 k, u32 width) {
    float4 v = {0.0f, 0.0f, 0.0f, 0.0f};
    if (k < width) v.x = value(peek(row + k));
    if (k + 1 < width) v.y = value(peek(row + k + 1));
    if (k + 2 < width) v.z = value(peek(row + k + 2));
    if (k + 3 < width) v.w = value(peek(row + k + 3));
    return v;
}

DEVICE u32 most(u32 a, u32 b) { return a > b ? a : b; }
// All bits are set if a word is missing.
DEVICE u32 most(float4 v) { return most(most(bits_of(v.x), bits_of(v.y)), most(bits_of(v.z), bits_of(v.w))); }

// Rows on their way to shared memory, [blocks][PITCH] each, where their padding is +0: a thread has N fours on their way at a
// time, since each of them takes a trip through the cache. Eight threads have a block, and there is no rest of a division by eight.
template <int N> struct Incoming {
    u32 width, blocks, slots; // a row's blocks, and how many of all blocks are brought at a time
    u32 rows_on, on;          // by how much a thread goes on from one of its blocks to the next
    float4 held[N];

    MEMBER Incoming(u32 width) : width(width), blocks(blocks_of(width)) {
        slots = blockDim.x / (LSTM_BLOCK / 4), rows_on = slots / blocks, on = slots % blocks;
    }
    // A block: which of all, and where it is.
    struct Place {
        u32 n, row, block;
    };
    MEMBER Place first() const {
        const u32 n = threadIdx.x / (LSTM_BLOCK / 4);
        return {n, n / blocks, n % blocks};
    }
    MEMBER void next(Place &p) const {
        p.n += slots, p.row += rows_on, p.block += on;
        if (p.block >= blocks) p.block -= blocks, p.row++;
    }
    // Of a block, this thread's words.
    MEMBER static u32 mine() { return threadIdx.x % (LSTM_BLOCK / 4) * 4; }

    MEMBER float4 look(const Place &p, const Rows &from) const {
        if (from.whole) return peek_four(from.passed + (p.n * LSTM_BLOCK + mine()));
        const u32 k = p.block * LSTM_BLOCK + mine();
        const float *row = (p.row < from.waiting ? from.passed : from.initial) + p.row * width;
        if (!from.fours) return words(row, k, width);
        return k < width ? peek_four(row + k) : float4{0.0f, 0.0f, 0.0f, 0.0f};
    }

    MEMBER void ask(Place at, const Rows &from) {
        if (from.whole) {
            const float *p = from.passed + (at.n * LSTM_BLOCK + mine());
#pragma unroll
            for (int e = 0; e < N; e++, at.n += slots, p += slots * LSTM_BLOCK) {
                held[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                if (at.n < from.count * blocks) held[e] = peek_four(p);
            }
        } else {
#pragma unroll
            for (int e = 0; e < N; e++, next(at)) {
                held[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                if (at.row < from.count) held[e] = look(at, from);
            }
        }
    }
    // Of the rows the first fours were asked for.
    MEMBER void bring(float *to, const Rows &from) {
        for (Place start = first();;) {
            u32 missing = 0;
#pragma unroll
            for (int e = 0; e < N; e++) missing = most(missing, most(held[e]));
            while (missing == ~0u) {
                missing = 0;
                Place at = start;
                // Else the compiler keeps all addresses from one look to the next, in registers that weights need.
                asm volatile("" : "+r"(at.n), "+r"(at.row), "+r"(at.block));
#pragma unroll
                for (int e = 0; e < N; e++, next(at))
                    if (at.row < from.waiting && most(held[e]) == ~0u) {
                        held[e] = look(at, from);
                        missing = ~0u;
                    }
                if (missing) pause();
            }
            const u32 all = from.count * blocks;
            float *p = to + (start.n * PITCH + mine());
#pragma unroll
            for (int e = 0; e < N; e++, p += slots * PITCH)
                if (start.n + e * slots < all) *reinterpret_cast<float4 *>(p) = held[e];
            if (start.n + N * slots >= all) break;
            for (int e = 0; e < N; e++) next(start);
            ask(start, from);
        }
    }
};

// All of it.
template <int N> DEVICE void gather(float *to, const Rows &from) {
    Incoming<N> incoming(from.width);
    incoming.ask(incoming.first(), from);
    incoming.bring(to, from);
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

template <class T> DEVICE void swap(T *&a, T *&b) {
    T *const c = a;
    a = b, b = c;
}

// Which rows are summed: from `first` on some of those that are joined together, which go from row0 on.
struct Turn {
    u32 n, row0, first;

    // `count` of them take part in the step.
    template <class Args> MEMBER Turn next(const Args &args, u32 count) const {
        if (first + args.part < count) return {n, row0, first + args.part};
        const bool same = row0 + args.rows < args.batch;
        return {same ? n : n + 1, same ? row0 + args.rows : 0, 0};
    }
};

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
    const Unit next = cell(args.cell, x, {args.peephole, args.hidden, unit}, u, c);
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

// Without `dc`, which these kernels have in shared memory or registers.
DEVICE Seen seen_of(const PersistentBackArgs &args, u32 t, u32 b, u32 unit) {
    const u64 first = ((u64)t * args.batch + b) * args.hidden + unit, second = first + (u64)args.batch * args.hidden;
    const u64 old = args.reverse ? second : first, now = args.reverse ? first : second;
    return {of_gates(args.gates + (first - unit) * 4 + unit, args.hidden), args.c[old], args.c[now],
            args.cell.dense ? args.h[now] : 0.0f, 0.0f};
}

DEVICE UnitGradients run_unit_back(const PersistentBackArgs &args, const Seen &seen, const Peephole &peephole, float dq, float dc) {
    return cell_back(args.cell, args.bounds, seen.gates, peephole, seen.c_old, seen.c, seen.h, dq, dc);
}

DEVICE float *gradients_of(const PersistentBackArgs &args, u32 t, u32 b, u32 unit) {
    return args.dz + (((u64)t * args.batch + b) * 4 * args.hidden + unit);
}

// The gates' gradients of a sequence that does not have the step; nobody waits for them.
DEVICE void no_unit_back(const PersistentBackArgs &args, u32 t, u32 b, u32 unit) {
    float *p = gradients_of(args, t, b, unit);
    for (int k = 0; k < 4; k++) p[(u64)k * args.hidden] = 0.0f;
}

DEVICE void pass_on_gradients(const PersistentBackArgs &args, u32 t, u32 b, u32 unit, const float *dz) {
    float *p = gradients_of(args, t, b, unit);
    for (int k = 0; k < 4; k++) pass_on(p + (u64)k * args.hidden, dz[k]);
}
