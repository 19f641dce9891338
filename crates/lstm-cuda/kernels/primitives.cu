// The primitives of the backend trait: elementwise operations, copies of matrix parts, products and column sums.

DEVICE u64 first_index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
DEVICE u64 grid_stride() { return (u64)gridDim.x * blockDim.x; }

KERNEL(map, MapArgs, 256) {
    for (u64 i = first_index(); i < args.len; i += grid_stride()) {
        float v = 0.0f;
        switch (args.op) {
        case 0: v = snap(args.x[i]); break;
        case 1: v = sigmoid(args.x[i]); break;
        case 2: v = lstm_tanh(args.x[i]); break;
        case 3: v = clip(args.x[i], args.bound); break;
        case 4: v = from_bits(~0u); break;
        }
        args.out[i] = v;
    }
}

KERNEL(mul_add, MulAddArgs, 256) {
    for (u64 i = first_index(); i < args.len; i += grid_stride()) {
        const u64 col = i % args.cols;
        const float a = __fmul_rn(args.alpha, args.a[i]);
        const float b = args.b ? args.b[args.b_is_row ? col : i] : 1.0f;
        args.out[i] = args.c ? __fmaf_rn(a, b, args.c[args.c_is_row ? col : i]) : __fmul_rn(a, b);
    }
}

KERNEL(select_between, SelectBetweenArgs, 256) {
    for (u64 i = first_index(); i < args.len; i += grid_stride()) {
        const float selector = args.selector[i];
        const bool outside = selector <= args.low[i % args.cols] || selector >= args.high[i % args.cols];
        args.out[i] = outside ? 0.0f : args.x[i];
    }
}

KERNEL(copy, CopyArgs, 256) {
    for (u64 i = first_index(); i < args.rows * args.cols; i += grid_stride()) {
        const u64 col = i % args.cols;
        const u64 row = args.row_numbers ? args.row_numbers[i / args.cols] : i / args.cols;
        const float v = args.src[row * args.src_stride + col];
        args.dst[row * args.dst_stride + col] = args.snap ? snap(v) : v;
    }
}

template <class T, bool SEGMENTS> DEVICE void gemm(const GemmArgs &args) {
    u32 row0, col0;
    T::origin(args.cols, row0, col0);
    const Strided a{args.a, args.rows, args.depth, args.a_row_stride, args.a_depth_stride, (args.snap & 1) != 0};
    const Strided b{args.b, args.cols, args.depth, args.b_col_stride, args.b_depth_stride, (args.snap & 2) != 0};
    T tile;
    tile.clear();
    if constexpr (!SEGMENTS) tile.product(args.depth, a, row0, b, col0);
    // Adjacent columns of a thread are read and written as one vector, if all of them exist and are aligned.
    constexpr int N = T::THREAD_COLS % 4 == 0 ? 4 : 1;
    const bool vectorized =
        N == 4 && (((u64)args.acc | (u64)args.out) & 15) == 0 && (args.acc_row_stride | args.cols) % 4 == 0;
    // Read all summands before writing any result: a load after a store would have to wait for it, in case both
    // overlap.
    if (args.acc)
#pragma unroll
        for (int i = 0; i < T::THREAD_ROWS; i++)
#pragma unroll
            for (int j = 0; j < T::THREAD_COLS; j += N) {
                const u32 row = row0 + T::row(i), col = col0 + T::col(j);
                if (row >= args.rows || col >= args.cols) continue;
                const float *acc = args.acc + ((u64)row * args.acc_row_stride + col);
                float v[N] = {};
                if (vectorized) load_vector<N>(acc, v);
                else
#pragma unroll
                    for (int n = 0; n < N; n++) v[n] = col + n < args.cols ? acc[n] : 0.0f;
#pragma unroll
                for (int n = 0; n < N; n++) tile.sum[i][j + n] = SEGMENTS ? v[n] : __fadd_rn(v[n], tile.sum[i][j + n]);
            }
    if constexpr (SEGMENTS)
        tile.add_segments(args.segments, NO_SEGMENT, args.depth, a, args.a_segment_stride, row0, b,
                          args.b_segment_stride, col0);
#pragma unroll
    for (int i = 0; i < T::THREAD_ROWS; i++)
#pragma unroll
        for (int j = 0; j < T::THREAD_COLS; j += N) {
            const u32 row = row0 + T::row(i), col = col0 + T::col(j);
            if (row >= args.rows || col >= args.cols) continue;
            float *out = args.out + ((u64)row * args.cols + col), *v = tile.sum[i] + j;
            if (vectorized) {
                if constexpr (N == 4) *reinterpret_cast<float4 *>(out) = {v[0], v[1], v[2], v[3]};
            } else
#pragma unroll
                for (int n = 0; n < N; n++)
                    if (col + n < args.cols) out[n] = v[n];
        }
}

KERNEL(gemm_small, GemmArgs, 64) { gemm<SmallTile, true>(args); }
KERNEL(gemm_medium, GemmArgs, 256, 2) { gemm<MediumTile, true>(args); }
KERNEL(gemm_large, GemmArgs, 256) { gemm<LargeTile, false>(args); }

DEVICE float select_factor(const EighthFactors &f, u32 eighth) {
    const float low = eighth & 2 ? (eighth & 1 ? f.f3 : f.f2) : (eighth & 1 ? f.f1 : f.f0);
    const float high = eighth & 2 ? (eighth & 1 ? f.f7 : f.f6) : (eighth & 1 ? f.f5 : f.f4);
    return eighth & 4 ? high : low;
}

// Each block quantizes a row: `lstm_core::quantized` in the same steps. The number of threads is a power of two.
KERNEL(quantize_rows, QuantizeRowsArgs, 256) {
    SHARED(magnitudes);
    const u64 first = (u64)blockIdx.x * args.cols;
    const float *x = args.x + first;
    float *q = args.q + first;
    u32 magnitude = args.min_magnitude;
    for (u32 k = threadIdx.x; k < args.cols; k += blockDim.x) {
        const u32 v = to_bits(x[k]) & LSTM_MAGNITUDE_BITS;
        magnitude = v > magnitude ? v : magnitude;
    }
    magnitudes[threadIdx.x] = from_bits(magnitude);
    __syncthreads();
    for (u32 n = blockDim.x / 2; n > 0; n /= 2) {
        if (threadIdx.x < n) {
            const u32 v = to_bits(magnitudes[threadIdx.x + n]);
            magnitude = v > magnitude ? v : magnitude;
            magnitudes[threadIdx.x] = from_bits(magnitude);
        }
        __syncthreads();
    }
    magnitude = to_bits(magnitudes[0]);

    // Infinity and NaN also have an exponent of 254 or more.
    const u32 rounded = magnitude + LSTM_EIGHTH_ROUND_UP, exponent = rounded >> 23, eighth = rounded >> 20 & 7;
    float to_integer = 0.0f, from_integer = 0.0f;
    if (exponent >= 254) {
        from_integer = from_bits(0x7fc00000u);
    } else if (magnitude >= LSTM_SNAP_BITS) {
        to_integer = __fmul_rn(select_factor(args.to_integer_factors, eighth), from_bits((254 - exponent) << 23));
        from_integer = __fmul_rn(select_factor(args.from_integer_factors, eighth), from_bits(exponent << 23));
    }
    if (threadIdx.x == 0) args.from_integer[blockIdx.x] = from_integer;
    for (u32 k = threadIdx.x; k < args.cols; k += blockDim.x) {
        // Rounds to an integer, which the difference is exactly.
        const float shifted = __fmaf_rn(x[k], to_integer, from_bits(LSTM_MAGIC));
        q[k] = to_integer == 0.0f ? 0.0f : __fsub_rn(shifted, from_bits(LSTM_MAGIC));
    }
}

// Each thread computes one element of the result, or several.
KERNEL(gemm_quantized, GemmQuantizedArgs, 256) {
    for (u64 i = first_index(); i < args.len; i += grid_stride()) {
        const u64 row = i / args.cols, col = i % args.cols;
        const float *a = args.a + row * args.inner, *w = args.w + col * args.inner;
        const float factor = __fmul_rn(args.scale[col], args.from_integer[row]);
        float z = args.acc ? args.acc[args.acc_is_row ? col : i] : 0.0f;
        for (u32 start = 0; start < args.inner; start += args.block) {
            const u32 length = args.inner - start < args.block ? args.inner - start : args.block;
            int sum = 0;
            u32 k = 0;
            // A sum of four products is below 2^24, so floats hold it exactly.
            for (; k + 4 <= length; k += 4) {
                float products = __fmul_rn(a[k], w[k]);
                products = __fmaf_rn(a[k + 1], w[k + 1], products);
                products = __fmaf_rn(a[k + 2], w[k + 2], products);
                sum += (int)__fmaf_rn(a[k + 3], w[k + 3], products);
            }
            for (; k < length; k++) sum += (int)__fmul_rn(a[k], w[k]);
            z = __fmaf_rn(__int2float_rn(sum), factor, z);
            a += length;
            w += length;
        }
        args.out[i] = z;
    }
}

// Each block sums 32 columns. Each of its warps sums another LSTM_BLOCK rows of them; the warps' sums are then added
// from left to right.
KERNEL(column_sums, ColumnSumArgs, 256) {
    SHARED(blocks);
    const u32 lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const u32 col = blockIdx.x * 32 + lane;
    const float *x = args.x + col, *factor = args.factor ? args.factor + col : nullptr;
    const u32 *active = args.active_counts;
    float sum = args.acc && col < args.cols ? args.acc[col] : 0.0f;
    for (u32 n = 0; n < args.segments; n++) {
        float total = 0.0f;
        for (u32 row0 = 0; row0 < args.rows; row0 += warps * LSTM_BLOCK) {
            float block = 0.0f;
#pragma unroll 16
            for (u32 i = 0; i < LSTM_BLOCK; i++) {
                const u32 row = row0 + warp * LSTM_BLOCK + i;
                bool counts = row < args.rows && col < args.cols;
                if (counts && active) counts = row % args.batch < active[row / args.batch];
                float v = counts ? x[(u64)row * args.x_stride] : 0.0f;
                if (counts && factor) v = __fmul_rn(v, factor[(u64)row * args.cols]);
                block = __fadd_rn(block, v);
            }
            __syncthreads(); // the previous sums have been read
            blocks[threadIdx.x] = block;
            __syncthreads();
            if (warp == 0)
                for (u32 k = 0; k < warps && row0 + k * LSTM_BLOCK < args.rows; k++)
                    total = __fadd_rn(total, blocks[k * 32 + lane]);
        }
        sum = __fadd_rn(sum, total);
        x += (long long)args.segment_stride * args.x_stride;
        if (factor) factor += (long long)args.segment_stride * args.cols;
        if (active) active += args.segment_stride / (int)args.batch;
    }
    if (warp == 0 && col < args.cols) args.out[col] = sum;
}
