// A block's tile of a product, summed in the one order there is: blocks of LSTM_BLOCK along the depth, each by ascending
// fma from +0, block sums added left to right. What lies outside of the operands counts as +0, which changes no sum.

// `N` neighbours from shared memory.
template <int N> DEVICE void fetch(const float *p, float *v) {
    if constexpr (N == 4) {
        const float4 q = *reinterpret_cast<const float4 *>(p);
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = p[i];
    }
}

// An operand: elements in memory, as many of them as there are.
struct Strided {
    const float *p;
    u32 lines, depth, line, step; // lines are rows of the left operand, columns of the right one
    bool snapped = false;         // whether they count as snapped
    MEMBER bool along_depth() const { return step == 1; }
    MEMBER bool holds(u32 k, u32 n) const { return k < depth && n < lines; }
    MEMBER const float *place(u32 k, u32 n) const { return p + ((u64)n * line + (u64)k * step); }
    MEMBER float taken(float v) const { return snapped ? snap(v) : v; }
    MEMBER float at(u32 k, u32 n) const { return holds(k, n) ? taken(*place(k, n)) : 0.0f; }
};

// The sums of a tile of ROWS x COLS, of which a thread has DOWN_EACH x ACROSS_EACH.
template <int ROWS_, int COLS_, int DOWN_EACH_, int ACROSS_EACH_> struct Sums {
    static constexpr int ROWS = ROWS_, COLS = COLS_, DOWN_EACH = DOWN_EACH_, ACROSS_EACH = ACROSS_EACH_;

    float sum[DOWN_EACH][ACROSS_EACH];

    // The first row and column of this block's tile in a matrix of so many columns.
    MEMBER static void place(u32 cols, u32 &row, u32 &col) {
        const u32 across = (cols + COLS - 1) / COLS;
        row = blockIdx.x / across * ROWS;
        col = blockIdx.x % across * COLS;
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

template <int ROWS, int COLS, int DOWN_EACH, int ACROSS_EACH> struct Tile : Sums<ROWS, COLS, DOWN_EACH, ACROSS_EACH> {
    using Own = Sums<ROWS, COLS, DOWN_EACH, ACROSS_EACH>;
    using Own::add, Own::clear, Own::sum;
    static constexpr int ACROSS = COLS / ACROSS_EACH, DOWN = ROWS / DOWN_EACH, THREADS = ACROSS * DOWN;
    // Neighbouring rows and columns of a thread come as vectors; with more than four, in groups as far apart as the tile
    // allows, so that neighbouring threads read neighbouring vectors.
    static constexpr int DV = DOWN_EACH < 4 ? DOWN_EACH : 4, AV = ACROSS_EACH < 4 ? ACROSS_EACH : 4;
    // Distances in shared memory between the operands' rows.
    static constexpr int LEFT = ROWS + 4, RIGHT = COLS + 4;

    MEMBER static u32 row(int i) { return i / DV * (DV * DOWN) + threadIdx.x / ACROSS * DV + i % DV; }
    MEMBER static u32 col(int j) { return j / AV * (AV * ACROSS) + threadIdx.x % ACROSS * AV + j % AV; }

    template <int LINES, int PITCH, class Operand> MEMBER static void bring(float *to, const Operand &x, u32 k, u32 n) {
        const bool along = x.along_depth();
        for (u32 i = threadIdx.x; i < LSTM_BLOCK * LINES; i += THREADS) {
            const u32 depth = along ? i % LSTM_BLOCK : i / LINES, line = along ? i / LSTM_BLOCK : i % LINES;
            to[depth * PITCH + line] = x.at(k + depth, n + line);
        }
    }

    // The product of the rows from row0 of `a` and the columns from col0 of `b`.
    template <class A, class B> MEMBER void product(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        SHARED(left);
        float *right = left + LSTM_BLOCK * LEFT;
        clear();
        for (u32 k = 0; k < depth; k += LSTM_BLOCK) {
            __syncthreads(); // the block before has been read
            bring<ROWS, LEFT>(left, a, k, row0);
            bring<COLS, RIGHT>(right, b, k, col0);
            __syncthreads();
            Tile part;
            part.clear();
#pragma unroll 8
            for (int q = 0; q < LSTM_BLOCK; q++) {
                float x[DOWN_EACH], y[ACROSS_EACH];
#pragma unroll
                for (int i = 0; i < DOWN_EACH; i += DV) fetch<DV>(left + q * LEFT + row(i), x + i);
#pragma unroll
                for (int j = 0; j < ACROSS_EACH; j += AV) fetch<AV>(right + q * RIGHT + col(j), y + j);
#pragma unroll
                for (int i = 0; i < DOWN_EACH; i++)
#pragma unroll
                    for (int j = 0; j < ACROSS_EACH; j++) part.sum[i][j] = __fmaf_rn(x[i], y[j], part.sum[i][j]);
            }
            add(part);
        }
    }

    // The products of each of `count` parts of the operands, joined from the left.
    template <class A, class B>
    MEMBER void joined(u32 count, u32 depth, A a, u32 a_part, u32 row0, B b, u32 b_part, u32 col0) {
        product(depth, a, row0, b, col0);
        for (u32 n = 1; n < count; n++) {
            a.p += a_part, b.p += b_part;
            Tile next;
            next.product(depth, a, row0, b, col0);
            add(next);
        }
    }
};

// For the shapes that are most: little work, so as many blocks as possible; and much.
typedef Tile<16, 16, 2, 2> Small;
typedef Tile<64, 64, 4, 4> Medium;
typedef Tile<128, 128, 8, 8> Large;
// The four gates of a unit are one thread's.
typedef Tile<16, 16, 1, 4> SmallStep;
typedef Tile<64, 64, 4, 4> MediumStep;
