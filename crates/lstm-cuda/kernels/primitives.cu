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
    if constexpr (PARTS) tile.joined(args.parts, NOT_ONE, args.depth, a, args.a_part, row0, b, args.b_part, col0);
    else tile.product(args.depth, a, row0, b, col0);
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
                for (int n = 0; n < N; n++) tile.sum[i][j + n] = __fadd_rn(v[n], tile.sum[i][j + n]);
            }
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

KERNEL(sum, SumArgs, 64) {
    for (u64 col = first(); col < args.cols; col += stride()) {
        float total = 0.0f;
        for (u32 row0 = 0; row0 < args.rows; row0 += LSTM_BLOCK) {
            float part = 0.0f;
            for (u32 row = row0; row < args.rows && row < row0 + LSTM_BLOCK; row++) {
                float d = args.d[(u64)row * args.d_stride + col];
                if (args.by) {
                    const bool there = !args.active || row % args.batch < args.active[row / args.batch];
                    d = there ? __fmul_rn(d, args.by[(u64)row * args.cols + col]) : 0.0f;
                }
                part = __fadd_rn(part, d);
            }
            total = __fadd_rn(total, part);
        }
        args.out[col] = args.acc ? __fadd_rn(args.acc[col], total) : total;
    }
}
