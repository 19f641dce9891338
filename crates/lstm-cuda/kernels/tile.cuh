// Matrix products by tiles: each block computes one tile of the result. Sums have the specified order: the inner
// dimension (the depth) is divided into blocks of LSTM_BLOCK, each is summed by ascending fma from +0, and the block
// sums are added from left to right. Elements outside of the operands count as +0, which changes no sum.

// Loads `N` adjacent values from shared memory.
template <int N> DEVICE void load_vector(const float *p, float *v) {
    if constexpr (N == 4) {
        const float4 q = *reinterpret_cast<const float4 *>(p);
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else if constexpr (N == 2) {
        const float2 q = *reinterpret_cast<const float2 *>(p);
        v[0] = q.x, v[1] = q.y;
    } else {
        static_assert(N == 1, "vectors have 1, 2 or 4 elements");
        v[0] = *p;
    }
}

// For `add_segments`: no segment is skipped.
#define NO_SEGMENT (~0u)

// A strided operand of a product in global memory. Its lines are the rows of a left operand or the columns of a right
// operand.
struct Strided {
    const float *p;
    u32 lines, depth, line_stride, depth_stride; // number of lines, elements per line, and the strides of both
    bool snaps = false; // whether values are snapped as they are read
    MEMBER bool along_depth() const { return depth_stride == 1; }
    // Whether adjacent values can be read as float4.
    MEMBER bool allows_float4() const {
        const u32 aligned = depth_stride == 1 ? line_stride | depth : line_stride == 1 ? depth_stride : 1;
        return ((u64)p & 15) == 0 && aligned % 4 == 0;
    }
    MEMBER bool contains(u32 k, u32 n) const { return k < depth && n < lines; }
    MEMBER const float *address(u32 k, u32 n) const { return p + ((u64)n * line_stride + (u64)k * depth_stride); }
    MEMBER float snapped(float v) const { return snaps ? snap(v) : v; }
    MEMBER float load(u32 k, u32 n) const { return contains(k, n) ? snapped(*address(k, n)) : 0.0f; }
};

// The sums of a tile of ROWS x COLS results; each thread has THREAD_ROWS x THREAD_COLS of them.
template <int ROWS_, int COLS_, int THREAD_ROWS_, int THREAD_COLS_> struct TileSums {
    static constexpr int ROWS = ROWS_, COLS = COLS_, THREAD_ROWS = THREAD_ROWS_, THREAD_COLS = THREAD_COLS_;

    float sum[THREAD_ROWS][THREAD_COLS];

    // The first row and column of a tile (by default, this block's) of a matrix with `cols` columns.
    MEMBER static void origin(u32 cols, u32 &row, u32 &col, u32 tile = blockIdx.x) {
        const u32 tiles_across = (cols + COLS - 1) / COLS;
        row = tile / tiles_across * ROWS;
        col = tile % tiles_across * COLS;
    }

    MEMBER void clear() {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLS; j++) sum[i][j] = 0.0f;
    }

    MEMBER void add(const TileSums &other) {
#pragma unroll
        for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < THREAD_COLS; j++) sum[i][j] = __fadd_rn(sum[i][j], other.sum[i][j]);
    }
};

// A tile computed by fma. A block processes K of the depth at a time; while it sums these, it loads the next K.
template <int ROWS, int COLS, int THREAD_ROWS, int THREAD_COLS, int K> struct Tile
    : TileSums<ROWS, COLS, THREAD_ROWS, THREAD_COLS> {
    using Base = TileSums<ROWS, COLS, THREAD_ROWS, THREAD_COLS>;
    using Base::add, Base::clear, Base::sum;
    static constexpr int THREADS_ACROSS = COLS / THREAD_COLS, THREADS_DOWN = ROWS / THREAD_ROWS,
                         THREADS = THREADS_ACROSS * THREADS_DOWN;
    // A thread's adjacent rows and columns are loaded as vectors of up to four. If there are more than four, the
    // vectors are as far apart as the tile allows, so that adjacent threads load adjacent vectors.
    static constexpr int ROW_VECTOR = THREAD_ROWS < 4 ? THREAD_ROWS : 4, COL_VECTOR = THREAD_COLS < 4 ? THREAD_COLS : 4;
    // A warp's threads cover 4 x 8 vectors, or the width of the tile: with this shape a warp loads the fewest distinct
    // words.
    static constexpr int WARP_COLS = THREADS_ACROSS < 8 ? THREADS_ACROSS : 8, WARP_ROWS = 32 / WARP_COLS,
                         WARPS_ACROSS = THREADS_ACROSS / WARP_COLS;
    // Strides in shared memory between the operands' rows, and the size of a buffer for both operands.
    static constexpr int LEFT_PITCH = ROWS + 4, RIGHT_PITCH = COLS + 4, BUFFER_FLOATS = K * (LEFT_PITCH + RIGHT_PITCH);
    // How much of the depth is summed without interruption: a block of LSTM_BLOCK, or all of K if that is less.
    static constexpr int SPAN = K < LSTM_BLOCK ? K : LSTM_BLOCK;
    // How often the inner loop is unrolled. It must fit in the first-level instruction cache.
    static constexpr int UNROLL = 512 / (THREAD_ROWS * THREAD_COLS) < SPAN ? 512 / (THREAD_ROWS * THREAD_COLS) : SPAN;
    static_assert(THREADS_ACROSS % WARP_COLS == 0 && THREADS_DOWN % WARP_ROWS == 0, "a tile consists of whole warps");
    static_assert(K % SPAN == 0 && LSTM_BLOCK % SPAN == 0 && K % 8 == 0,
                  "K is a multiple of SPAN, which divides a block");

    MEMBER static u32 thread_row() {
        return threadIdx.x / 32 / WARPS_ACROSS * WARP_ROWS + threadIdx.x % 32 / WARP_COLS;
    }
    MEMBER static u32 thread_col() { return threadIdx.x / 32 % WARPS_ACROSS * WARP_COLS + threadIdx.x % WARP_COLS; }
    MEMBER static u32 row(int i) {
        return i / ROW_VECTOR * (ROW_VECTOR * THREADS_DOWN) + thread_row() * ROW_VECTOR + i % ROW_VECTOR;
    }
    MEMBER static u32 col(int j) {
        return j / COL_VECTOR * (COL_VECTOR * THREADS_ACROSS) + thread_col() * COL_VECTOR + j % COL_VECTOR;
    }

    // Loads a thread's part of K of an operand's depth to registers, and stores it to shared memory. The part consists
    // of float4 of adjacent elements, which either all belong to one line, along the depth, or to four lines.
    template <int LINES> struct Loader {
        static constexpr int VECTORS = LINES * K / (4 * THREADS), DEPTH_STEP = K / VECTORS, PITCH = LINES + 4;
        static_assert(4 * VECTORS * THREADS == LINES * K && DEPTH_STEP % 8 == 0,
                      "every thread loads the same number of vectors");
        const float *p; // address of the next float4
        u32 depth_stride, element_stride; // along the depth, and between the elements of a float4
        u32 depth_left, lines_left; // remaining depth from the first float4 on; number of lines from its first line on
        u32 slot; // position of the first float4 in shared memory
        bool along, vectorized;
        float4 loaded[VECTORS];

        // Adjacent threads load adjacent elements. Along the depth, a warp loads only 32 bytes of each of 16 lines, so
        // that no two of its threads store to the same bank.
        template <class Operand> MEMBER Loader(const Operand &x, u32 line0) {
            along = x.along_depth();
            const u32 k = along ? threadIdx.x / (2 * LINES) * 8 + threadIdx.x % 2 * 4 : threadIdx.x / (LINES / 4);
            const u32 n = along ? threadIdx.x / 2 % LINES : threadIdx.x % (LINES / 4) * 4;
            const u32 left = line0 + n < x.lines ? x.lines - line0 - n : 0;
            p = x.address(k, line0 + n);
            depth_stride = x.depth_stride, element_stride = along ? 1 : x.line_stride;
            depth_left = left && k < x.depth ? x.depth - k : 0;
            lines_left = left;
            slot = k * PITCH + n;
            vectorized = x.allows_float4() && (along || left >= 4);
        }

        // Loads from depth k0 on, a multiple of K. Calls must come in ascending order.
        MEMBER void fetch(u32 k0) {
#pragma unroll
            for (int e = 0; e < VECTORS; e++, p += (u64)DEPTH_STEP * depth_stride) {
                const u32 k = k0 + e * DEPTH_STEP, valid = k >= depth_left ? 0 : along ? depth_left - k : lines_left;
                if (vectorized) {
                    loaded[e] = {0.0f, 0.0f, 0.0f, 0.0f};
                    if (valid) loaded[e] = *reinterpret_cast<const float4 *>(p);
                } else {
                    loaded[e].x = valid > 0 ? p[0] : 0.0f;
                    loaded[e].y = valid > 1 ? p[element_stride] : 0.0f;
                    loaded[e].z = valid > 2 ? p[2 * (u64)element_stride] : 0.0f;
                    loaded[e].w = valid > 3 ? p[3 * (u64)element_stride] : 0.0f;
                }
            }
        }

        template <class Operand> MEMBER void store(float *to, const Operand &x) {
#pragma unroll
            for (int e = 0; e < VECTORS; e++) {
                if (x.snaps) loaded[e] = {snap(loaded[e].x), snap(loaded[e].y), snap(loaded[e].z), snap(loaded[e].w)};
                float *target = to + (slot + e * DEPTH_STEP * PITCH);
                if (along)
                    target[0] = loaded[e].x, target[PITCH] = loaded[e].y, target[2 * PITCH] = loaded[e].z,
                    target[3 * PITCH] = loaded[e].w;
                else *reinterpret_cast<float4 *>(target) = loaded[e];
            }
        }
    };

    // Sums K of the depth from k on. Sums of whole blocks are added to `total`.
    MEMBER void accumulate(Tile &total, const float *left, u32 k, u32 depth) {
        const float *right = left + K * LEFT_PITCH;
#pragma unroll
        for (u32 from = 0; from < K; from += SPAN) {
            if (from && k + from >= depth) break;
#pragma unroll UNROLL
            for (u32 q = from; q < from + SPAN; q++) {
                float x[THREAD_ROWS], y[THREAD_COLS];
#pragma unroll
                for (int i = 0; i < THREAD_ROWS; i += ROW_VECTOR)
                    load_vector<ROW_VECTOR>(left + q * LEFT_PITCH + row(i), x + i);
#pragma unroll
                for (int j = 0; j < THREAD_COLS; j += COL_VECTOR)
                    load_vector<COL_VECTOR>(right + q * RIGHT_PITCH + col(j), y + j);
#pragma unroll
                for (int i = 0; i < THREAD_ROWS; i++)
#pragma unroll
                    for (int j = 0; j < THREAD_COLS; j++) sum[i][j] = __fmaf_rn(x[i], y[j], sum[i][j]);
            }
            // Clearing is part of the same branch as adding: if it were separate, the compiler would select each sum in
            // every iteration.
            if ((k + from + SPAN) % LSTM_BLOCK == 0 || k + from + SPAN >= depth) {
                total.add(*this);
                clear();
            }
        }
    }

    // Computes the product of the rows from row0 of `a` and the columns from col0 of `b`. Shared memory is a double
    // buffer for K of both operands.
    template <class A, class B> MEMBER void product(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        SHARED(buffers);
        Loader<ROWS> rows(a, row0);
        Loader<COLS> cols(b, col0);
        Tile part;
        clear(), part.clear();
        __syncthreads(); // the previous use of shared memory is over
        for (u32 k = 0;; k += K) {
            if (k < depth) rows.fetch(k), cols.fetch(k);
            // Sums the buffer that was stored in the previous iteration.
            if (k) part.accumulate(*this, buffers + (k / K - 1) % 2 * BUFFER_FLOATS, k - K, depth);
            if (k >= depth) break;
            float *left = buffers + k / K % 2 * BUFFER_FLOATS;
            rows.store(left, a), cols.store(left + K * LEFT_PITCH, b);
            __syncthreads(); // this buffer is stored, and the other one is no longer read
        }
    }

    // Adds the products of `count` segments of the operands, one after another, except for segment `skipped`
    // (NO_SEGMENT for none). `a_stride` and `b_stride` are the distances between segments.
    template <class A, class B> MEMBER void add_segments(u32 count, u32 skipped, u32 depth, A a, int a_stride, u32 row0,
                                                         B b, int b_stride, u32 col0) {
        for (u32 n = 0; n < count; n++, a.p += a_stride, b.p += b_stride) {
            if (n == skipped) continue;
            Tile next;
            next.product(depth, a, row0, b, col0);
            add(next); // adding to +0 is exact, since no sum is -0
        }
    }
};

// Tile shapes. Small tiles give many blocks, for products with little work; large tiles need fewer loads.
typedef Tile<16, 16, 2, 2, 64> SmallTile;
typedef Tile<64, 64, 4, 4, 32> MediumTile;
typedef Tile<128, 128, 8, 8, 16> LargeTile;
// For a step of the forward pass, where each thread has the four gates of a unit.
typedef Tile<16, 16, 1, 4, 64> SmallStepTile;
typedef Tile<64, 64, 4, 4, 32> MediumStepTile;
