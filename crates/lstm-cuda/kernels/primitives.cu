// The primitives of `lstm_core::Backend`: elementwise operations, copies of parts, products.

DEVICE u64 first() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE u64 stride() { return (u64)gridDim.x * blockDim.x; }

KERNEL(map, MapArgs, 256) {
    for (u64 i = first(); i < args.len; i += stride()) {
        float v = 0.0f;
        switch (args.op) {
        case 0: v = snap(args.x[i]); break;
        case 1: v = sigmoid(args.x[i]); break;
        case 2: v = tanh_of(args.x[i]); break;
        case 3: v = clip(args.x[i], args.bound); break;
        case 4: v = value(~0u); break;
        }
        args.out[i] = v;
    }
}

KERNEL(mul_add, MulAddArgs, 256) {
    for (u64 i = first(); i < args.len; i += stride()) {
        const u64 col = i % args.cols;
        const float a = __fmul_rn(args.alpha, args.a[i]);
        const float b = args.b ? args.b[args.b_row ? col : i] : 1.0f;
        args.out[i] = args.c ? __fmaf_rn(a, b, args.c[args.c_row ? col : i]) : __fmul_rn(a, b);
    }
}

KERNEL(within, WithinArgs, 256) {
    for (u64 i = first(); i < args.len; i += stride()) {
        const float by = args.by[i];
        const bool outside = by <= args.low[i % args.cols] || by >= args.high[i % args.cols];
        args.out[i] = outside ? 0.0f : args.x[i];
    }
}

KERNEL(copy, CopyArgs, 256) {
    for (u64 i = first(); i < args.rows * args.cols; i += stride()) {
        const u64 row = i / args.cols, col = i % args.cols;
        const float v = args.from[row * args.from_stride + col];
        args.to[row * args.to_stride + col] = args.snapped ? snap(v) : v;
    }
}

template <class T, bool PARTS> DEVICE void gemm(const GemmArgs &args) {
    u32 row0, col0;
    T::place(args.cols, row0, col0);
    const Strided a{args.a, args.rows, args.depth, args.a_row, args.a_depth, (args.snapped & 1) != 0};
    const Strided b{args.b, args.cols, args.depth, args.b_col, args.b_depth, (args.snapped & 2) != 0};
    T tile;
    tile.clear();
    if constexpr (!PARTS) tile.product(args.depth, a, row0, b, col0);
    // A thread's neighbouring columns, where all of them are there and can be read and written as one.
    constexpr int N = T::ACROSS_EACH % 4 == 0 ? 4 : 1;
    const bool whole = N == 4 && (((u64)args.acc | (u64)args.out) & 15) == 0 && (args.acc_row | args.cols) % 4 == 0;
    // All that is added is read before anything is written, for which the next read would wait.
    if (args.acc)
#pragma unroll
        for (int i = 0; i < T::DOWN_EACH; i++)
#pragma unroll
            for (int j = 0; j < T::ACROSS_EACH; j += N) {
                const u32 row = row0 + T::row(i), col = col0 + T::col(j);
                if (row >= args.rows || col >= args.cols) continue;
                const float *acc = args.acc + ((u64)row * args.acc_row + col);
                float v[N] = {};
                if (whole) fetch<N>(acc, v);
                else
#pragma unroll
                    for (int n = 0; n < N; n++) v[n] = col + n < args.cols ? acc[n] : 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) tile.sum[i][j + n] = PARTS ? v[n] : __fadd_rn(v[n], tile.sum[i][j + n]);
            }
    if constexpr (PARTS) tile.join(args.parts, NOT_ONE, args.depth, a, args.a_part, row0, b, args.b_part, col0);
#pragma unroll
    for (int i = 0; i < T::DOWN_EACH; i++)
#pragma unroll
        for (int j = 0; j < T::ACROSS_EACH; j += N) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.rows || col >= args.cols) continue;
            float *out = args.out + ((u64)row * args.cols + col), *v = tile.sum[i] + j;
            if (whole) {
                if constexpr (N == 4) *reinterpret_cast<float4 *>(out) = {v[0], v[1], v[2], v[3]};
            } else
#pragma unroll
                for (int n = 0; n < N; n++)
                    if (col + n < args.cols) out[n] = v[n];
        }
}

KERNEL(gemm_small, GemmArgs, 64) { gemm<Small, true>(args); }
KERNEL(gemm_medium, GemmArgs, 256, 2) { gemm<Medium, true>(args); }
KERNEL(gemm_large, GemmArgs, 256) { gemm<Large, false>(args); }

// A block has 32 columns; each of its warps sums another LSTM_BLOCK rows of them, which are joined from the left.
KERNEL(sum, SumArgs, 256) {
    SHARED(blocks);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 col = blockIdx.x * 32 + lane;
    const float *d = args.d + col, *by = args.by ? args.by + col : nullptr;
    const u32 *active = args.active;
    float all = args.acc && col < args.cols ? args.acc[col] : 0.0f;
    for (u32 n = 0; n < args.parts; n++) {
        float total = 0.0f;
        for (u32 row0 = 0; row0 < args.rows; row0 += warps * LSTM_BLOCK) {
            float block = 0.0f;
#pragma unroll 16
            for (u32 i = 0; i < LSTM_BLOCK; i++) {
                const u32 row = row0 + warp * LSTM_BLOCK + i;
                bool there = row < args.rows && col < args.cols;
                if (there && active) there = row % args.batch < active[row / args.batch];
                float v = there ? d[(u64)row * args.d_stride] : 0.0f;
                if (there && by) v = __fmul_rn(v, by[(u64)row * args.cols]);
                block = __fadd_rn(block, v);
            }
            __syncthreads(); // the sums before have been read
            blocks[threadIdx.x] = block;
            __syncthreads();
            if (warp == 0)
                for (u32 k = 0; k < warps && row0 + k * LSTM_BLOCK < args.rows; k++) total = __fadd_rn(total, blocks[k * 32 + lane]);
        }
        all = __fadd_rn(all, total);
        d += (long long)args.part * args.d_stride;
        if (by) by += (long long)args.part * args.cols;
        if (active) active += args.part / (int)args.batch;
    }
    if (warp == 0 && col < args.cols) args.out[col] = all;
}
