// Products on tensor cores in TF32, which are not exact: each operand is rounded, by up to 2^-11 of its value, and the
// order of summation is up to the device. The kernels are those of the exact mode with another tile type, so that
// everything else is exact.
#if TENSOR_CORES

// Loads four adjacent values along the depth.
template <class Operand> DEVICE float4 load4(const Operand &x, u32 k, u32 n) {
    if (x.along_depth() && x.contains(k + 3, n)) {
        const float *p = x.address(k, n);
        if (((u64)p & 15) == 0) {
            const float4 q = *reinterpret_cast<const float4 *>(p);
            return {x.snapped(q.x), x.snapped(q.y), x.snapped(q.z), x.snapped(q.w)};
        }
    }
    return {x.load(k, n), x.load(k + 1, n), x.load(k + 2, n), x.load(k + 3, n)};
}

// A tile computed by tensor cores. WARPS_DOWN x WARPS_ACROSS warps each have M x N products of one instruction: 16 M
// rows and 8 N columns. A block processes K of the depth at a time.
template <int WARPS_DOWN, int WARPS_ACROSS, int M, int N, int K> struct TensorTile
    : TileSums<16 * M * WARPS_DOWN, 8 * N * WARPS_ACROSS, 2 * M, 2 * N> {
    using Base = TileSums<16 * M * WARPS_DOWN, 8 * N * WARPS_ACROSS, 2 * M, 2 * N>;
    using Base::clear, Base::sum, Base::ROWS, Base::COLS;
    static constexpr int THREADS = 32 * WARPS_DOWN * WARPS_ACROSS;
    // Stride between lines in shared memory. With it, the eight lines and four pairs that a warp reads together are in
    // different banks.
    static constexpr int PITCH = K + 8;
    static_assert(N % 2 == 0 && K % 32 == 0, "columns are multiples of four, the depth is a multiple of the banks");

    MEMBER static u32 warp_row() { return threadIdx.x / 32 / WARPS_ACROSS * (16 * M); }
    MEMBER static u32 warp_col() { return threadIdx.x / 32 % WARPS_ACROSS * (8 * N); }
    MEMBER static u32 row(int i) { return warp_row() + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4; }
    // An instruction gives a lane two adjacent sums. Two instructions share 16 columns such that a lane has four
    // adjacent ones.
    MEMBER static u32 col(int j) { return warp_col() + j / 4 * 16 + threadIdx.x % 4 * 4 + j % 4; }

    // Loads a thread's part of K of an operand's depth to registers, and stores it to shared memory. COLUMNS is true
    // for the right operand.
    template <int LINES, bool COLUMNS> struct Loader {
        static constexpr int DEPTH_VECTORS = K / 4, VECTORS = LINES * DEPTH_VECTORS / THREADS;
        static_assert(VECTORS * THREADS == LINES * DEPTH_VECTORS, "every thread loads the same number of vectors");
        float4 loaded[VECTORS];

        // The position of a thread's vector e: adjacent threads load adjacent elements, and no two of eight store to
        // the same bank.
        MEMBER static void position(int e, bool along, u32 &slot, u32 &k) {
            const u32 i = e * THREADS + threadIdx.x;
            slot = along ? i / DEPTH_VECTORS : i / 8 % (LINES / 4) * 4 + i % 4;
            k = 4 * (along ? i % DEPTH_VECTORS : i / (2 * LINES) * 2 + i / 4 % 2);
        }

        template <class Operand> MEMBER void fetch(const Operand &x, u32 k0, u32 n0) {
            // Prevents the compiler from keeping the address of each element from one iteration to the next, for which
            // there are too few registers.
            asm volatile("" : "+r"(k0), "+r"(n0));
#pragma unroll
            for (int e = 0; e < VECTORS; e++) {
                u32 slot, k;
                position(e, x.along_depth(), slot, k);
                // The column of the matrix that is column `slot` of an instruction: see `col`.
                const u32 line = COLUMNS ? slot / 16 * 16 + slot % 8 / 2 * 4 + slot / 8 % 2 * 2 + slot % 2 : slot;
                loaded[e] = load4(x, k0 + k, n0 + line);
            }
        }

        MEMBER void store(float *to, bool along) const {
#pragma unroll
            for (int e = 0; e < VECTORS; e++) {
                u32 slot, k;
                position(e, along, slot, k);
                const float4 v = loaded[e];
                *reinterpret_cast<float4 *>(to + slot * PITCH + k) = {to_tf32(v.x), to_tf32(v.y), to_tf32(v.z),
                                                                      to_tf32(v.w)};
            }
        }
    };

    // Multiplies K of the depth. An instruction takes elements t and t + 4 of eight from a lane. Here they are elements
    // 2 t and 2 t + 1, of both operands, so that they are loaded as one vector.
    MEMBER void multiply(const float *left, const float *right) {
        const u32 lane = threadIdx.x % 32, lane_offset = lane / 4 * PITCH + lane % 4 * 2;
#pragma unroll
        for (int q = 0; q < K; q += 8) {
            float a[M][4], b[N][2];
#pragma unroll
            for (int m = 0; m < M; m++) {
                const float *p = left + (warp_row() + 16 * m) * PITCH + q + lane_offset;
                const float2 top = *reinterpret_cast<const float2 *>(p),
                             bottom = *reinterpret_cast<const float2 *>(p + 8 * PITCH);
                a[m][0] = top.x, a[m][1] = bottom.x, a[m][2] = top.y, a[m][3] = bottom.y;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 side =
                    *reinterpret_cast<const float2 *>(right + (warp_col() + 8 * n) * PITCH + q + lane_offset);
                b[n][0] = side.x, b[n][1] = side.y;
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++) mma(sum[2 * m] + 2 * n, sum[2 * m + 1] + 2 * n, a[m], b[n]);
        }
    }

    template <class A, class B> MEMBER void accumulate(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        SHARED(left);
        float *right = left + ROWS * PITCH;
        Loader<ROWS, false> rows;
        Loader<COLS, true> cols;
        rows.fetch(a, 0, row0), cols.fetch(b, 0, col0);
        for (u32 k = 0; k < depth; k += K) {
            __syncthreads(); // the previous use of shared memory is over
            rows.store(left, a.along_depth()), cols.store(right, b.along_depth());
            __syncthreads();
            // Loads of the next K overlap with this product.
            if (k + K < depth) rows.fetch(a, k + K, row0), cols.fetch(b, k + K, col0);
            multiply(left, right);
        }
    }

    template <class A, class B> MEMBER void product(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        clear();
        accumulate(depth, a, row0, b, col0);
    }

    template <class A, class B> MEMBER void add_segments(u32 count, u32 skipped, u32 depth, A a, int a_stride, u32 row0,
                                                         B b, int b_stride, u32 col0) {
        for (u32 n = 0; n < count; n++, a.p += a_stride, b.p += b_stride) {
            if (n == skipped) continue;
            // A segment has sums of its own: tensor cores may truncate a small summand of a large sum.
            TensorTile next;
            next.product(depth, a, row0, b, col0);
            this->add(next);
        }
    }
};

// Narrow tiles are for steps, which have few rows, and for products with few tiles.
typedef TensorTile<4, 2, 1, 2, 64> NarrowTile;
typedef TensorTile<2, 4, 4, 4, 32> WideTile;

KERNEL(tf32_gemm_narrow, GemmArgs, 256) { gemm<NarrowTile, true>(args); }
KERNEL(tf32_gemm_wide, GemmArgs, 256) { gemm<WideTile, true>(args); }
KERNEL(tf32_forward_step, ForwardStepArgs, 256) { forward_step<NarrowTile>(args); }
KERNEL(tf32_forward_projection, ProjectionArgs, 256) { forward_projection<NarrowTile>(args); }
KERNEL(tf32_backward_step, BackwardStepArgs, 256) { backward_step<NarrowTile>(args); }
KERNEL(tf32_backward_state, BackwardStepArgs, 256) { backward_state<NarrowTile>(args); }
KERNEL(tf32_backward_units, BackwardStepArgs, 256) { backward_units<NarrowTile>(args); }

#endif
