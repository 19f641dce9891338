// The fast mode: products on tensor cores, with operands rounded to TF32. Not exact: an operand is off by up to 2^-11 of
// itself, and in which order the device sums is its own affair. Everything else is as in the exact kernels, which these are
// with other tiles.
#if TENSOR_CORES

// Four neighbours along the depth.
template <class Operand> DEVICE float4 four(const Operand &x, u32 k, u32 n) {
    if (x.along_depth() && x.holds(k + 3, n)) {
        const float *p = x.place(k, n);
        if (((u64)p & 15) == 0) {
            const float4 q = *reinterpret_cast<const float4 *>(p);
            return {x.taken(q.x), x.taken(q.y), x.taken(q.z), x.taken(q.w)};
        }
    }
    return {x.at(k, n), x.at(k + 1, n), x.at(k + 2, n), x.at(k + 3, n)};
}

// A warp has M x N products of one instruction each: 16 M rows, 8 N columns. A block takes K of the depth at a time.
template <int DOWN, int ACROSS, int M, int N, int K> struct TensorTile : Sums<16 * M * DOWN, 8 * N * ACROSS, 2 * M, 2 * N> {
    using Own = Sums<16 * M * DOWN, 8 * N * ACROSS, 2 * M, 2 * N>;
    using Own::clear, Own::sum, Own::ROWS, Own::COLS;
    static constexpr int THREADS = 32 * DOWN * ACROSS;
    // Between lines in shared memory: the eight lines and four pairs that a warp reads together are in different banks.
    static constexpr int PITCH = K + 8;
    static_assert(N % 2 == 0 && K % 32 == 0, "columns come in fours, the depth in whole rows of banks");

    MEMBER static u32 warp_row() { return threadIdx.x / 32 / ACROSS * (16 * M); }
    MEMBER static u32 warp_col() { return threadIdx.x / 32 % ACROSS * (8 * N); }
    MEMBER static u32 row(int i) { return warp_row() + i / 2 * 16 + i % 2 * 8 + threadIdx.x % 32 / 4; }
    // An instruction gives a lane two neighbours. Two instructions share out 16 columns so that it has four.
    MEMBER static u32 col(int j) { return warp_col() + j / 4 * 16 + threadIdx.x % 4 * 4 + j % 4; }

    // A thread's part of K of an operand's depth, on its way to shared memory.
    template <int LINES, bool COLUMNS> struct Way {
        static constexpr int FOURS = K / 4, EACH = LINES * FOURS / THREADS;
        static_assert(EACH * THREADS == LINES * FOURS, "every thread has as many");
        float4 held[EACH];

        // Neighbouring threads take what are neighbours in memory, yet no two of eight write to the same bank.
        MEMBER static void mine(int e, bool along, u32 &slot, u32 &k) {
            const u32 i = e * THREADS + threadIdx.x;
            slot = along ? i / FOURS : i / 8 % (LINES / 4) * 4 + i % 4;
            k = 4 * (along ? i % FOURS : i / (2 * LINES) * 2 + i / 4 % 2);
        }

        template <class Operand> MEMBER void fetch(const Operand &x, u32 k0, u32 n0) {
            // Without this the compiler keeps an address for each element from one block to the next, and runs out of registers.
            asm volatile("" : "+r"(k0), "+r"(n0));
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                u32 slot, k;
                mine(e, x.along_depth(), slot, k);
                // The column of an instruction's column: see `col`.
                const u32 line = COLUMNS ? slot / 16 * 16 + slot % 8 / 2 * 4 + slot / 8 % 2 * 2 + slot % 2 : slot;
                held[e] = four(x, k0 + k, n0 + line);
            }
        }

        MEMBER void store(float *to, bool along) const {
#pragma unroll
            for (int e = 0; e < EACH; e++) {
                u32 slot, k;
                mine(e, along, slot, k);
                const float4 v = held[e];
                *reinterpret_cast<float4 *>(to + slot * PITCH + k) = {to_tf32(v.x), to_tf32(v.y), to_tf32(v.z), to_tf32(v.w)};
            }
        }
    };

    // K of the depth. An instruction takes elements t and t + 4 of eight from a lane; here they are 2 t and 2 t + 1, on both
    // sides, so that they come as one vector.
    MEMBER void multiply(const float *left, const float *right) {
        const u32 lane = threadIdx.x % 32, at = lane / 4 * PITCH + lane % 4 * 2;
#pragma unroll
        for (int q = 0; q < K; q += 8) {
            float a[M][4], b[N][2];
#pragma unroll
            for (int m = 0; m < M; m++) {
                const float *p = left + (warp_row() + 16 * m) * PITCH + q + at;
                const float2 top = *reinterpret_cast<const float2 *>(p), bottom = *reinterpret_cast<const float2 *>(p + 8 * PITCH);
                a[m][0] = top.x, a[m][1] = bottom.x, a[m][2] = top.y, a[m][3] = bottom.y;
            }
#pragma unroll
            for (int n = 0; n < N; n++) {
                const float2 side = *reinterpret_cast<const float2 *>(right + (warp_col() + 8 * n) * PITCH + q + at);
                b[n][0] = side.x, b[n][1] = side.y;
            }
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < N; n++) mma(sum[2 * m] + 2 * n, sum[2 * m + 1] + 2 * n, a[m], b[n]);
        }
    }

    template <class A, class B> MEMBER void onto(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        SHARED(left);
        float *right = left + ROWS * PITCH;
        Way<ROWS, false> rows;
        Way<COLS, true> cols;
        rows.fetch(a, 0, row0), cols.fetch(b, 0, col0);
        for (u32 k = 0; k < depth; k += K) {
            __syncthreads(); // what was there before has been read
            rows.store(left, a.along_depth()), cols.store(right, b.along_depth());
            __syncthreads();
            // On its way while the sums are made.
            if (k + K < depth) rows.fetch(a, k + K, row0), cols.fetch(b, k + K, col0);
            multiply(left, right);
        }
    }

    template <class A, class B> MEMBER void product(u32 depth, const A &a, u32 row0, const B &b, u32 col0) {
        clear();
        onto(depth, a, row0, b, col0);
    }

    template <class A, class B>
    MEMBER void join(u32 count, u32 without, u32 depth, A a, int a_part, u32 row0, B b, int b_part, u32 col0) {
        for (u32 n = 0; n < count; n++, a.p += a_part, b.p += b_part) {
            if (n == without) continue;
            // Sums of its own: tensor cores may cut off what is added to a larger one.
            TensorTile next;
            next.product(depth, a, row0, b, col0);
            this->add(next);
        }
    }
};

// For steps, which have few rows, and for what is smaller than many wide tiles.
typedef TensorTile<4, 2, 1, 2, 64> Narrow;
typedef TensorTile<2, 4, 4, 4, 32> Wide;

KERNEL(fast_gemm_narrow, GemmArgs, 256) { gemm<Narrow, true>(args); }
KERNEL(fast_gemm_wide, GemmArgs, 256) { gemm<Wide, true>(args); }
KERNEL(fast_step, StepArgs, 256) { step<Narrow>(args); }
KERNEL(fast_project, ProjectArgs, 256) { project<Narrow>(args); }
KERNEL(fast_back, BackArgs, 256) { back<Narrow>(args); }
KERNEL(fast_back_state, BackArgs, 256) { back_state<Narrow>(args); }
KERNEL(fast_back_units, BackArgs, 256) { back_units<Narrow>(args); }

#endif
