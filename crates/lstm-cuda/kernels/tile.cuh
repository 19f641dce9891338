// A block's tile of a product, summed in the one order there is: blocks of LSTM_BLOCK along the depth, each by ascending
// fma from +0, block sums added left to right. What lies outside of the operands counts as +0, which changes no sum.

// `N` neighbours from shared memory.
template <int N> DEVICE void fetch(const float *p, float *v) {
    if constexpr (N == 4) {
        const float4 q = *reinterpret_cast<const float4 *>(p);
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else if constexpr (N == 2) {
        const float2 q = *reinterpret_cast<const float2 *>(p);
        v[0] = q.x, v[1] = q.y;
    } else {
        static_assert(N == 1, "as vectors come");
        v[0] = *p;
    }
}

// No part of a product is left out.
#define NOT_ONE (~0u)

// An operand: elements in memory, as many of them as there are.
struct Strided {
    const float *p;
    u32 lines, depth, line, step; // lines are rows of the left operand, columns of the right one
    bool snapped = false;         // whether they count as snapped
    MEMBER bool along_depth() const { return step == 1; }
    // Whether neighbours in memory can be read by fours.
    MEMBER bool in_fours() const {
        const u32 apart = step == 1 ? line | depth : line == 1 ? step : 1;
        return ((u64)p & 15) == 0 && apart % 4 == 0;
    }
    MEMBER bool holds(u32 k, u32 n) const { return k < depth && n < lines; }
    MEMBER const float *place(u32 k, u32 n) const { return p + ((u64)n * line + (u64)k * step); }
    MEMBER float taken(float v) const { return snapped ? snap(v) : v; }
    MEMBER float at(u32 k, u32 n) const { return holds(k, n) ? taken(*place(k, n)) : 0.0f; }
};

// The sums of a tile of ROWS x COLS, of which a thread has DOWN_EACH x ACROSS_EACH.
template <int ROWS_, int COLS_, int DOWN_EACH_, int ACROSS_EACH_> struct Sums {
    static constexpr int ROWS = ROWS_, COLS = COLS_, DOWN_EACH = DOWN_EACH_, ACROSS_EACH = ACROSS_EACH_;

    float sum[DOWN_EACH][ACROSS_EACH];

    // The first row and column of a tile (else this block's) in a matrix of so many columns.
    MEMBER static void place(u32 cols, u32 &row, u32 &col, u32 tile = blockIdx.x) {
        const u32 across = (cols + COLS - 1) / COLS;
        row = tile / across * ROWS;
        col = tile % across * COLS;
    }

    MEMBER void clear() {
#pragma unroll
        for (int i = 0; i < DOWN_EACH; i++)
#pragma unroll
            for (int j = 0; j < ACROSS_EACH; j++) sum[i][j] = 0.0f;
    }

    MEMBER void add(const Sums &other) {
#pragma unroll
        for (int i = 0; i < DOWN_EACH; i++)
#pragma unroll
            for (int j = 0; j < ACROSS_EACH; j++) sum[i][j] = __fadd_rn(sum[i][j], other.sum[i][j]);
    }
};

// A block takes K of the depth at a time; what it takes next is on its way while the sums of it are made.
template <int ROWS, int COLS, int DOWN_EACH, int ACROSS_EACH, int K> struct Tile : Sums<ROWS, COLS, DOWN_EACH, ACROSS_EACH> {
    using Own = Sums<ROWS, COLS, DOWN_EACH, ACROSS_EACH>;
    using Own::add, Own::clear, Own::sum;
    static constexpr int ACROSS = COLS / ACROSS_EACH, DOWN = ROWS / DOWN_EACH, THREADS = ACROSS * DOWN;
    // Neighbouring rows and columns of a thread come as vectors; with more than four, in groups as far apart as the tile
    // allows, so that neighbouring threads read neighbouring vectors.
    static constexpr int DV = DOWN_EACH < 4 ? DOWN_EACH : 4, AV = ACROSS_EACH < 4 ? ACROSS_EACH : 4;
    // A warp's threads are 4 x 8, or as wide as the tile: so it reads the fewest different words of both operands.
    static constexpr int WIDE = ACROSS < 8 ? ACROSS : 8, HIGH = 32 / WIDE, WARPS = ACROSS / WIDE;
    // Distances in shared memory between the operands' rows.
    static constexpr int LEFT = ROWS + 4, RIGHT = COLS + 4, STAGE = K * (LEFT + RIGHT);
    // What is summed without a break: a block of the depth, or as much of it as there is.
    static constexpr int SPAN = K < LSTM_BLOCK ? K : LSTM_BLOCK;
    // Of it, what is written out: the loop is to stay in the first cache for instructions.
    static constexpr int RUN = 512 / (DOWN_EACH * ACROSS_EACH) < SPAN ? 512 / (DOWN_EACH * ACROSS_EACH) : SPAN;
    static_assert(ACROSS % WIDE == 0 && DOWN % HIGH == 0, "whole warps");
    static_assert(K % SPAN == 0 && LSTM_BLOCK % SPAN == 0 && K % 8 == 0, "whole blocks, or parts of one");

    MEMBER static u32 down() { return threadIdx.x / 32 / WARPS * HIGH + threadIdx.x % 32 / WIDE; }
    MEMBER static u32 across() { return threadIdx.x / 32 % WARPS * WIDE + threadIdx.x % WIDE; }
    MEMBER static u32 row(int i) { return i / DV * (DV * DOWN) + down() * DV + i % DV; }
    MEMBER static u32 col(int j) { return j / AV * (AV * ACROSS) + across() * AV + j % AV; }

    // A thread's part of K of an operand's depth, on its way to shared memory: fours of what lies side by side, all of them
    // from one line along the depth, or from four lines.
    template <int LINES> struct Way {
        static constexpr int EACH = LINES * K / (4 * THREADS), APART = K / EACH, PITCH = LINES + 4;
        static_assert(4 * EACH * THREADS == LINES * K && APART % 8 == 0, "every thread has as many");
        const float *p;   // the next one
        u32 step, aside;  // between elements along the depth, and between those of a four
        u32 depth, others; // how much of the depth there is from the first one on; across lines, how many of a four there are
        u32 slot;         // the first one's in shared memory
        bool along, fours;
        float4 held[EACH];

        // Neighbouring threads take what are neighbours in memory; along the depth only 32 bytes of each of 16 lines, so
        // that no two of a warp write to the same bank.
        template <class Operand> MEMBER Way(const Operand &x, u32 line0) {
            along = x.along_depth();
            const u32 k = along ? threadIdx.x / (2 * LINES) * 8 + threadIdx.x % 2 * 4 : threadIdx.x / (LINES / 4);
            const u32 n = along ? threadIdx.x / 2 % LINES : threadIdx.x % (LINES / 4) * 4;
            const u32 left = line0 + n < x.lines ? x.lines - line0 - n : 0;
            p = x.place(k, line0 + n);
            step = x.step, aside = along ? 1 : x.line;
            depth = left && k < x.depth ? x.depth - k : 0;
            others = left;
            slot = k * PITCH + n;
            fours = x.in_fours() && (along || left >= 4);
        }

        // From k0 of the depth on, a multiple of K; in order.
        MEMBER void fetch(u32 k0) {
#pragma unroll
            for (int e = 0; e < EACH; e++, p += (u64)APART * step) {
                const u32 at = k0 + e * APART, there = at >= depth ? 0 : along ? depth - at : others;
                if (fours) {
                    held[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                    if (there) held[e] = *reinterpret_cast<const float4 *>(p);
                } else {
                    held[e].x = there > 0 ? p[0] : 0.0f;
                    held[e].y = there > 1 ? p[aside] : 0.0f;
                    held[e].z = there > 2 ? p[2 * (u64)aside] : 0.0f;
                    held[e].w = there > 3 ? p[3 * (u64)aside] : 0.0f;
                }
            }
        }

        template <class Operand> MEMBER void store(float *to, const Operand &x) {
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                if (x.snapped) held[e] = {snap(held[e].x), snap(held[e].y), snap(held[e].z), snap(held[e].w)};
                float *at = to + (slot + e * APART * PITCH);
                if (along) at[0] = held[e].x, at[PITCH] = held[e].y, at[2 * PITCH] = held[e].z, at[3 * PITCH] = held[e].w;
                else *reinterpret_cast<float4 *>(at) = held[e];
            }
        }
    };

    // K of the depth from k on; whole block sums are added to `total`.
    MEMBER void sums(Tile &total, const float *left, u32 k, u32 depth) {
        const float *right = left + K * LEFT;
#pragma unroll
        for (u32 from = 0; from < K; from += SPAN) {
            if (from && k + from >= depth) break;
#pragma unroll RUN
            for (u32 q = from; q < from + SPAN; q++) {
                float x[DOWN_EACH], y[ACROSS_EACH];
#pragma unroll
                for (int i = 0; i < DOWN_EACH; i += DV) fetch<DV>(left + q * LEFT + row(i), x + i);
#pragma unroll
                for (int j = 0; j < ACROSS_EACH; j += AV) fetch<AV>(right + q * RIGHT + col(j), y + j);
#pragma unroll
                for (int i = 0; i < DOWN_EACH; i++)
#pragma unroll
                    for (int j = 0; j < ACROSS_EACH; j++) sum[i][j] = __fmaf_rn(x[i], y[j], sum[i][j]);
            }
            // As one branch: cleared by itself before its block, it would be selected word by word in every turn.
            if ((k + from + SPAN) % LSTM_BLOCK == 0 || k + from + SPAN >= depth) {
                total.add(*this);
                clear();
            }
        }
    }

    // The product of the rows from row0 of `a` and the columns from col0 of `b`. Shared memory: two places for K of both
    // operands, written in turns.
    template <class A, class B> MEMBER void product(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        SHARED(places);
        Way<ROWS> rows(a, row0);
        Way<COLS> cols(b, col0);
        Tile part;
        clear(), part.clear();
        __syncthreads(); // what was there before has been read
        for (u32 k = 0;; k += K) {
            if (k < depth) rows.fetch(k), cols.fetch(k);
            // What was stored in the turn before.
            if (k) part.sums(*this, places + (k / K - 1) % 2 * STAGE, k - K, depth);
            if (k >= depth) break;
            float *left = places + k / K % 2 * STAGE;
            rows.store(left, a), cols.store(left + K * LEFT, b);
            __syncthreads(); // this place is written, the other one read
        }
    }

    // Adds the products of each of `count` parts of the operands but one (none: NOT_ONE), one after another.
    template <class A, class B>
    MEMBER void join(u32 count, u32 without, u32 depth, A a, int a_part, u32 row0, B b, int b_part, u32 col0) {
        for (u32 n = 0; n < count; n++, a.p += a_part, b.p += b_part) {
            if (n == without) continue;
            Tile next;
            next.product(depth, a, row0, b, col0);
            add(next); // onto +0 it stays what it is: no sum is -0
        }
    }
};

// For the shapes that are most: little work, so as many blocks as possible; and much.
typedef Tile<16, 16, 2, 2, 64> Small;
typedef Tile<64, 64, 4, 4, 32> Medium;
typedef Tile<128, 128, 8, 8, 16> Large;
// The four gates of a unit are one thread's.
typedef Tile<16, 16, 1, 4, 64> SmallStep;
typedef Tile<64, 64, 4, 4, 32> MediumStep;
