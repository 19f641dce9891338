// All steps of the forward or backward pass in one launch, for small hidden sizes. The blocks of a cluster divide the
// units of some sequences among them, and write the results of a step to each other's shared memory. Clusters never
// wait for one another.
#if CLUSTERS

// A `WeightSlice` in shared memory: `[4][LSTM_BLOCK / 4]` float4, each of four adjacent elements of the depth, with
// distance `stride`, so that adjacent threads read adjacent vectors.
struct SharedWeightSlice {
    float4 *w;
    u32 stride;

    MEMBER float4 dot(const float *x) const {
        float4 s = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll 2 // unrolling further would need registers that hold weights
        for (int n = 0; n < LSTM_BLOCK / 4; n++) {
            const float4 v = *reinterpret_cast<const float4 *>(x + 4 * n);
            const float4 i = w[n * stride], f = w[(LSTM_BLOCK / 4 + n) * stride];
            const float4 g = w[(2 * (LSTM_BLOCK / 4) + n) * stride], o = w[(3 * (LSTM_BLOCK / 4) + n) * stride];
            s.x = fma4(s.x, v, i.x, i.y, i.z, i.w);
            s.y = fma4(s.y, v, f.x, f.y, f.z, f.w);
            s.z = fma4(s.z, v, g.x, g.y, g.z, g.w);
            s.w = fma4(s.w, v, o.x, o.y, o.z, o.w);
        }
        return s;
    }
};

// A block's part in a cluster: some units of the sequences from `first_row` on. Its shared memory has three parts: a
// double buffer for what steps exchange, `group_rows` rows of `[blocks][PITCH]` each; sums of depth blocks,
// `[blocks][group_rows][quads]` float4; the weights of the quads that are not in registers, which hold those of the
// first `register_quads`. A thread has at most one unit of one sequence, and keeps its state in registers.
struct ClusterBlock {
    u32 hidden, units, quads, register_quads, group_rows, cluster_blocks, first_unit, first_row;
    u32 row_count, row_stride; // the cluster has `row_count` sequences, at most `group_rows`
    float *buffers;
    float4 *block_sums;
    WeightSlice slice;
    SharedWeightSlice shared_slice;
    bool has_shared_slice;

    template <class Args> MEMBER ClusterBlock(const Args &args, float *memory, bool backward)
        : hidden(args.hidden), units(args.units_per_block),
          quads(backward ? (args.units_per_block + 3) / 4 : args.units_per_block),
          register_quads(args.quads_in_registers), group_rows(args.group_rows), cluster_blocks(cluster_size()),
          first_unit(cluster_rank() * args.units_per_block), first_row(blockIdx.x / cluster_blocks * args.group_rows),
          buffers(memory), slice((backward ? 4 : 1) * depth_blocks(args.hidden), args.quads_in_registers) {
        row_count = args.batch - first_row < group_rows ? args.batch - first_row : group_rows;
        row_stride = slice.blocks * PITCH;
        block_sums = reinterpret_cast<float4 *>(buffers + 2 * group_rows * row_stride);
        const u32 shared_quads = quads - register_quads, index = slice.block * shared_quads + slice.quad;
        has_shared_slice = slice.has_work() && slice.quad < shared_quads;
        shared_slice = {block_sums + slice.blocks * group_rows * quads + index, shared_quads * slice.blocks};
        const Strided u{args.u, hidden, hidden, backward ? 1 : hidden, backward ? hidden : 1};
        if (backward) slice.load_backward(u, hidden * hidden, first_unit);
        else slice.load(u, hidden * hidden, first_unit);
        if (!has_shared_slice || slice.group > 0) return;
        for (u32 n = 0; n < LSTM_BLOCK; n++) {
            const u32 sum = n / (LSTM_BLOCK / 4), quad = register_quads + slice.quad;
            const u32 depth = slice.blocks / (backward ? 4 : 1);
            const u32 unit = first_unit + (backward ? 4 * quad + sum : quad),
                      gate = backward ? slice.block / depth : sum;
            const u32 k = slice.block % depth * LSTM_BLOCK + n % (LSTM_BLOCK / 4) * 4;
            const auto weight = [&](u32 offset) {
                return WeightSlice::weight(u, unit, k + offset, gate * hidden * hidden);
            };
            shared_slice.w[n * shared_slice.stride] = {weight(0), weight(1), weight(2), weight(3)};
        }
    }
    MEMBER u32 row() const { return threadIdx.x / units; }
    MEMBER u32 unit() const { return first_unit + threadIdx.x % units; }
    MEMBER bool has_unit() const { return row() < row_count && unit() < hidden; }
    MEMBER float *buffer(u32 n) const { return buffers + n % 2 * group_rows * row_stride; }

    // Computes the sums of some rows.
    MEMBER void compute_sums(const float *rows, u32 rows_to_sum) const {
        for (u32 r = slice.group; slice.has_work() && r < rows_to_sum; r += slice.groups) {
            float4 *sums = block_sums + (slice.block * group_rows + r) * quads + slice.quad;
            sums[0] = slice.dot(rows + r * row_stride);
            if (has_shared_slice) sums[register_quads] = shared_slice.dot(rows + r * row_stride + slice.block * PITCH);
        }
    }
};

// Steps exchange h, or with dense peepholes c.
KERNEL(cluster_forward, ForwardSequenceArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const ClusterBlock block(args, memory, false);
    const u32 b = block.first_row + block.row(), unit = block.unit();
    const bool has_unit = block.has_unit();
    // Loaded once: a cluster barrier invalidates the first-level cache, so that loads in each step would be slow.
    const Peephole peephole(has_unit ? args.peephole : nullptr, hidden, unit);
    const float *initial = args.cell.dense_peephole ? args.c0 : args.h0;
    float h = 0.0f, c = 0.0f;
    // Stores the state in the trace.
    const auto store_trace = [&](u32 trace_index) {
        const u64 index = ((u64)trace_index * args.batch + b) * hidden + unit;
        args.trace_h[index] = h, args.trace_c[index] = c;
    };
    if (has_unit) {
        h = snap(args.h0[(u64)b * hidden + unit]);
        c = snap(args.c0[(u64)b * hidden + unit]);
        if (args.trace_h) store_trace(args.reverse ? args.steps : 0);
    }
    // The padding is +0 in both buffers.
    for (u32 i = threadIdx.x; i < 2 * block.group_rows * block.row_stride; i += blockDim.x) {
        const u32 r = i / block.row_stride, k = i % block.row_stride / PITCH * LSTM_BLOCK + i % PITCH;
        const bool exists = r < block.row_count && i % PITCH < LSTM_BLOCK && k < hidden;
        block.buffers[i] = exists ? snap(initial[(u64)(block.first_row + r) * hidden + k]) : 0.0f;
    }
    cluster_arrive();

    for (u32 n = 0; n < args.steps; n++) {
        const ForwardStep step(args, n);
        const u64 out = (u64)step.t * args.batch + b;
        const bool active = has_unit && b < step.active;
        // This load overlaps with waiting for other blocks.
        float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
        if (active) x = load_input_gates(args, step.t, b, unit);
        cluster_wait();
        block.compute_sums(block.buffer(n), block.row_count);
        __syncthreads();
        CellOutput next;
        if (active) {
            float u[4];
            add_block_sums(block.block_sums + threadIdx.x, block.slice.blocks, block.group_rows * block.units, u);
            next = cell_forward(args.cell, x, peephole, u, c);
            c = next.c, h = next.h;
        }
        // Not after the last step, since a block may end before another writes to its shared memory.
        if (n + 1 < args.steps) {
            if (has_unit) {
                float *target = block.buffer(n + 1) + block.row() * block.row_stride + unit / LSTM_BLOCK * PITCH +
                                unit % LSTM_BLOCK;
                for (u32 rank = 0; rank < block.cluster_blocks; rank++)
                    store_remote(target, rank, args.cell.dense_peephole ? c : h);
            }
            cluster_arrive();
        }
        // Stores from here on need to complete only at the next cluster barrier.
        if (!has_unit) continue;
        args.y[out * hidden + unit] = active ? h : 0.0f;
        if (args.trace_h) store_trace(step.trace_index);
        if (active && args.trace_gates)
            for (int k = 0; k < 4; k++) args.trace_gates[(out * 4 + k) * hidden + unit] = next.gates[k];
    }
    if (has_unit) {
        args.h_last[(u64)b * hidden + unit] = h;
        args.c_last[(u64)b * hidden + unit] = c;
    }
}

// Steps exchange the gates' gradients.
KERNEL(cluster_backward, BackwardSequenceArgs, 256) {
    const u32 hidden = args.hidden;
    SHARED(memory);
    const ClusterBlock block(args, memory, true);
    const u32 b = block.first_row + block.row(), unit = block.unit();
    const bool has_unit = block.has_unit();
    const Peephole peephole(has_unit ? args.peephole : nullptr, hidden, unit);
    const u64 index = (u64)b * hidden + unit;
    float dh = 0.0f, dc = 0.0f, f = 0.0f;
    if (has_unit) dh = args.dh[index], dc = args.dc[index];
    for (u32 i = threadIdx.x; i < 2 * block.group_rows * block.row_stride; i += blockDim.x) block.buffers[i] = 0.0f;
    cluster_arrive();

    for (u32 n = 0; n <= args.steps; n++) {
        const BackwardStep step(args, n);
        const bool active = has_unit && b < step.active;
        // These loads overlap with waiting for other blocks.
        ForwardValues values = {};
        float dy = 0.0f;
        if (active) {
            values = load_forward_values(args, step.t, b, unit);
            dy = args.dy[((u64)step.t * args.batch + b) * hidden + unit];
        }
        cluster_wait();
        block.compute_sums(block.buffer(n), rows_in_range(block.first_row, step.previous_active, block.group_rows));
        __syncthreads();
        if (has_unit && b < step.previous_active) {
            float u[4];
            const float *first = reinterpret_cast<const float *>(block.block_sums + block.row() * block.quads) +
                                 (unit - block.first_unit);
            add_block_sums_backward(first, block.slice.blocks, block.group_rows * block.quads * 4, u);
            state_gradients(args.cell.dense_peephole, u, f, dh, dc);
        }
        if (step.after_last) break;
        float4 dz = {0.0f, 0.0f, 0.0f, 0.0f};
        if (active) {
            const UnitGradients gradients = unit_gradients(args, values, peephole, snap(__fadd_rn(dy, dh)), dc);
            dz = {gradients.dz[0], gradients.dz[1], gradients.dz[2], gradients.dz[3]};
            dc = gradients.dc, f = values.gates.y;
            float *target =
                block.buffer(n + 1) + block.row() * block.row_stride + unit / LSTM_BLOCK * PITCH + unit % LSTM_BLOCK;
            for (u32 rank = 0; rank < block.cluster_blocks; rank++)
                store_remote4(target, block.row_stride / 4, rank, dz);
        }
        cluster_arrive();
        if (!has_unit) continue;
        float *p = dz_address(args, step.t, b, unit);
        p[0] = dz.x, p[hidden] = dz.y, p[2 * (u64)hidden] = dz.z, p[3 * (u64)hidden] = dz.w;
    }
    if (has_unit) args.dh[index] = dh, args.dc[index] = dc;
}
#endif
