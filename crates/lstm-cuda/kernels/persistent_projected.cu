// The counterparts of `persistent_forward.cu` and `persistent_backward.cu` for layers with a projection. Blocks
// exchange results twice per step, and each block has some units and some features of the projected h, whose size is
// `state_size`.

// The weights of the projection that a thread keeps in registers: those of one output over one block of the depth.
// Outputs are features in the forward pass, units in the backward pass.
struct ProjectionSlice {
    u32 blocks, output, block; // depth blocks in total, this thread's output, and its depth block
    float w[LSTM_BLOCK];

    MEMBER ProjectionSlice(u32 depth, u32 outputs) {
        blocks = depth_blocks(depth);
        output = threadIdx.x % outputs;
        block = threadIdx.x / outputs;
    }
    MEMBER bool has_work() const { return block < blocks; }

    MEMBER void load(const Strided &m, u32 first_output) {
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k++) w[k] = m.load(block * LSTM_BLOCK + k, first_output + output);
    }
    MEMBER float dot(const float *x) const {
        float s = 0.0f;
        x += block * PITCH;
#pragma unroll
        for (int k = 0; k < LSTM_BLOCK; k += 4)
            s = fma4(s, *reinterpret_cast<const float4 *>(x + k), w[k], w[k + 1], w[k + 2], w[k + 3]);
        return s;
    }
};

DEVICE float add_block_sums(const float *block_sums, u32 blocks, u32 stride) {
    float s = block_sums[0];
    for (u32 k = 1; k < blocks; k++) s = __fadd_rn(s, block_sums[(u64)k * stride]);
    return s;
}

// How many float4 per row suffice for the sums of depth blocks of either product.
DEVICE u32 max_block_sums(const WeightSlice &slice, u32 quads, const ProjectionSlice &projection, u32 outputs) {
    return max_of(slice.blocks * quads, projection.blocks * outputs);
}

// Shared memory: `group_rows` rows of h or of the projection's operand, in blocks of `[PITCH]`; sums of depth blocks,
// of U h `[blocks][group_rows][units]` float4, of the projection `[blocks][group_rows][features]`; the block's h,
// `[batch][features]`, and c, `[batch][units]`.
KERNEL(persistent_projected_forward, ForwardSequenceArgs, 256) {
    const u32 hidden = args.hidden, state_size = args.state_size, batch = args.batch, units = args.units_per_block,
              features = args.features_per_block;
    const u32 first_unit = blockIdx.x * units, first_feature = blockIdx.x * features;
    WeightSlice slice(depth_blocks(state_size), units);
    ProjectionSlice projection(hidden, features);
    const u32 h_stride = slice.blocks * PITCH,
              operand_stride = projection.blocks * PITCH; // per row; the operand's are more
    SHARED(rows);
    float *block_sums = rows + args.group_rows * operand_stride;
    float4 *gate_sums = reinterpret_cast<float4 *>(block_sums);
    float *state = block_sums + 4 * args.group_rows * max_block_sums(slice, units, projection, features);
    const BlockState h{state, features, first_feature, state_size},
        c{state + batch * features, units, first_unit, hidden};

    projection.load(Strided{args.w_hr, state_size, hidden, hidden, 1}, first_feature);
    slice.load(Strided{args.u, hidden, state_size, state_size, 1}, hidden * state_size, first_unit);
    const u64 trace_start = (u64)(args.reverse ? args.steps : 0) * batch;
    h.load(batch, args.h0, args.trace_h ? args.trace_h + trace_start * state_size : nullptr);
    c.load(batch, args.c0, args.trace_h ? args.trace_c + trace_start * hidden : nullptr);
    // No other thread reads the state before the barriers of the first step.

    for (u32 n = 0; n < args.steps; n++) {
        const ForwardStep step(args, n);
        const u64 step_row = (u64)step.t * batch, trace_row = (u64)step.trace_index * batch;
        for (u32 group_start = 0; group_start < batch; group_start += args.group_rows) {
            const u32 count = rows_in_range(group_start, step.active, args.group_rows),
                      all_rows = rows_in_range(group_start, batch, args.group_rows);
            const float *previous = args.y + ((u64)step.previous * batch + group_start) * state_size;
            gather_rows<2>(rows, OperandRows(previous, args.h0 + (u64)group_start * state_size, state_size, count,
                                             rows_in_range(group_start, step.previous_active, count)));
            __syncthreads();
            if (slice.has_work())
                for (u32 row = slice.group; row < count; row += slice.groups)
                    gate_sums[(slice.block * args.group_rows + row) * units + slice.quad] =
                        slice.dot(rows + row * h_stride);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all_rows * units; i += blockDim.x) {
                const u32 row = i / units, b = group_start + row, state_index = b * units + i % units,
                          unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < count) {
                    float u[4];
                    add_block_sums(gate_sums + i, slice.blocks, args.group_rows * units, u);
                    const CellOutput next = unit_forward(args, step.t, b, unit, load_input_gates(args, step.t, b, unit),
                                                         u, c.values[state_index]);
                    c.values[state_index] = next.c;
                    publish(args.exchange_buffer + (step_row + b) * hidden + unit, next.h);
                }
                if (args.trace_c) args.trace_c[(trace_row + b) * hidden + unit] = c.values[state_index];
            }
        }
        for (u32 group_start = 0; group_start < batch; group_start += args.group_rows) {
            const u32 count = rows_in_range(group_start, step.active, args.group_rows),
                      all_rows = rows_in_range(group_start, batch, args.group_rows);
            const float *operand = args.exchange_buffer + (step_row + group_start) * hidden;
            gather_rows<2>(rows, OperandRows(operand, operand, hidden, count, count));
            __syncthreads();
            if (projection.has_work())
                for (u32 row = 0; row < count; row++)
                    block_sums[(projection.block * args.group_rows + row) * features + projection.output] =
                        projection.dot(rows + row * operand_stride);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all_rows * features; i += blockDim.x) {
                const u32 row = i / features, b = group_start + row, state_index = b * features + i % features;
                const u32 feature = first_feature + i % features;
                if (feature >= state_size) continue;
                float *y = args.y + (step_row + b) * state_size + feature;
                if (row < count) {
                    h.values[state_index] =
                        snap(add_block_sums(block_sums + i, projection.blocks, args.group_rows * features));
                    publish(y, h.values[state_index]);
                } else {
                    *y = 0.0f;
                }
                if (args.trace_h) args.trace_h[(trace_row + b) * state_size + feature] = h.values[state_index];
            }
        }
    }
    __syncthreads();
    h.store(batch, args.h_last);
    c.store(batch, args.c_last);
}

// Shared memory: `group_rows` rows of dz or of the gradient of the projected h, in blocks of `[PITCH]`; sums of depth
// blocks, of dz U `[blocks][group_rows][quads]` float4, of the projection `[blocks][group_rows][units]`; the block's
// dh, `[batch][features]`, and dc, `[batch][units]`.
KERNEL(persistent_projected_backward, BackwardSequenceArgs, 256) {
    const u32 hidden = args.hidden, state_size = args.state_size, batch = args.batch, units = args.units_per_block,
              features = args.features_per_block;
    const u32 first_unit = blockIdx.x * units, first_feature = blockIdx.x * features;
    const u32 quads = (features + 3) / 4;
    WeightSlice slice(4 * depth_blocks(hidden), quads);
    ProjectionSlice projection(state_size, units);
    const u32 row_stride = slice.blocks * PITCH, h_stride = projection.blocks * PITCH;
    SHARED(rows);
    float *block_sums = rows + args.group_rows * row_stride;
    float4 *gate_sums = reinterpret_cast<float4 *>(block_sums);
    float *state = block_sums + 4 * args.group_rows * max_block_sums(slice, quads, projection, units);
    const BlockState dh{state, features, first_feature, state_size},
        dc{state + batch * features, units, first_unit, hidden};

    projection.load(Strided{args.w_hr, hidden, state_size, 1, hidden}, first_unit);
    slice.load_backward(Strided{args.u, state_size, hidden, 1, state_size}, hidden * state_size, first_feature);
    dh.load(batch, args.dh, nullptr);
    dc.load(batch, args.dc, nullptr);
    // No other thread reads the state before the barriers of the first step.

    for (u32 n = 0; n <= args.steps; n++) {
        const BackwardStep step(args, n);
        const u64 step_row = (u64)step.t * batch;
        for (u32 group_start = 0; group_start < batch; group_start += args.group_rows) {
            const u32 count = rows_in_range(group_start, step.previous_active, args.group_rows),
                      all_rows = rows_in_range(group_start, batch, args.group_rows);
            const float *previous = args.dz + ((u64)step.previous * batch + group_start) * 4 * hidden;
            gather_rows<2>(rows,
                           OperandRows(previous, previous, hidden, 4 * count, 4 * count)); // one row for each gate
            __syncthreads();
            if (slice.has_work())
                for (u32 row = slice.group; row < count; row += slice.groups)
                    gate_sums[(slice.block * args.group_rows + row) * quads + slice.quad] =
                        slice.dot(rows + row * row_stride);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all_rows * features; i += blockDim.x) {
                const u32 row = i / features, b = group_start + row, state_index = b * features + i % features;
                const u32 feature = first_feature + i % features;
                if (feature >= state_size) continue;
                if (row < count) {
                    float u[4];
                    add_block_sums_backward(block_sums + row * quads * 4 + i % features, slice.blocks,
                                            args.group_rows * quads * 4, u);
                    dh.values[state_index] = snap(__fadd_rn(__fadd_rn(__fadd_rn(u[0], u[1]), u[2]), u[3]));
                }
                if (step.after_last) continue;
                const u64 out = (step_row + b) * state_size + feature;
                if (b < step.active)
                    publish(args.dh_projected + out, snap(__fadd_rn(args.dy[out], dh.values[state_index])));
                else args.dh_projected[out] = 0.0f;
            }
        }
        if (step.after_last) break;
        for (u32 group_start = 0; group_start < batch; group_start += args.group_rows) {
            const u32 count = rows_in_range(group_start, step.active, args.group_rows),
                      all_rows = rows_in_range(group_start, batch, args.group_rows);
            const float *gradient = args.dh_projected + (step_row + group_start) * state_size;
            gather_rows<2>(rows, OperandRows(gradient, gradient, state_size, count, count));
            __syncthreads();
            if (projection.has_work())
                for (u32 row = 0; row < count; row++)
                    block_sums[(projection.block * args.group_rows + row) * units + projection.output] =
                        projection.dot(rows + row * h_stride);
            __syncthreads();
            for (u32 i = threadIdx.x; i < all_rows * units; i += blockDim.x) {
                const u32 row = i / units, b = group_start + row, state_index = b * units + i % units,
                          unit = first_unit + i % units;
                if (unit >= hidden) continue;
                float *operand = args.projection_input + (step_row + b) * hidden + unit;
                if (row < count) {
                    const float dq = snap(add_block_sums(block_sums + i, projection.blocks, args.group_rows * units));
                    const UnitGradients gradients =
                        unit_gradients(args, load_forward_values(args, step.t, b, unit), {args.peephole, hidden, unit},
                                       dq, dc.values[state_index]);
                    dc.values[state_index] = gradients.dc;
                    publish_gradients(args, step.t, b, unit, gradients.dz);
                    *operand = gradients.operand;
                } else {
                    zero_unit_gradients(args, step.t, b, unit);
                    *operand = 0.0f;
                }
            }
        }
    }
    __syncthreads();
    dh.store(batch, args.dh);
    dc.store(batch, args.dc);
}
