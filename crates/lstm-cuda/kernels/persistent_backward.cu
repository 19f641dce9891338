// The backward pass of all steps in one launch, for layers without a projection: the counterpart of
// `persistent_forward.cu`. A block keeps the columns of U for a few units in registers, and blocks exchange the gates'
// gradients.

// Shared memory: a double buffer for `tile_rows` rows of dz, `[blocks][PITCH]` each; a double buffer for the sums of
// depth blocks, `[blocks][group_rows][quads]` float4; the block's dh and dc, `[batch][units]` each.
KERNEL(persistent_backward, BackwardSequenceArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units_per_block, first_unit = blockIdx.x * units;
    const u32 quads = (units + 3) / 4;
    WeightSlice slice(4 * depth_blocks(hidden), quads);
    const u32 row_stride = slice.blocks * PITCH, sums_size = slice.blocks * args.group_rows * quads;
    SHARED(rows);
    float4 *sums = reinterpret_cast<float4 *>(rows + 2 * args.tile_rows * row_stride);
    float *state = reinterpret_cast<float *>(sums + 2 * sums_size);
    const BlockState dh{state, units, first_unit, hidden}, dc{state + batch * units, units, first_unit, hidden};

    slice.load_backward(Strided{args.u, hidden, hidden, 1, hidden}, hidden * hidden, first_unit);
    dh.load(batch, args.dh, nullptr);
    dc.load(batch, args.dc, nullptr);
    // No other thread reads the state before the barriers of the first step.

    // Row groups are processed as in the forward pass.
    const bool multiple_groups = batch > args.group_rows;
    const u32 own_unit = first_unit + threadIdx.x % units, own_row = threadIdx.x / units;
    const auto rows_of_tile = [&](const RowTile &tile, const BackwardStep &step) {
        const u32 count = rows_in_range(
            tile.tile_start, rows_in_range(tile.group_start, step.previous_active, args.group_rows), args.tile_rows);
        const float *previous =
            args.dz + ((u64)step.previous * batch + tile.group_start + tile.tile_start) * 4 * hidden;
        return OperandRows(previous, previous, hidden, 4 * count, 4 * count); // one row for each gate
    };
    RowLoader<8> loader(hidden);
    RowTile current{0, 0, 0}, finished{0, 0, 0};
    OperandRows requested = rows_of_tile(current, BackwardStep(args, 0));
    float *current_rows = rows, *other_rows = rows + args.tile_rows * row_stride;
    float4 *current_sums = sums, *finished_sums = sums + sums_size;
    ForwardValues values = {};
    float dy = 0.0f;
    for (bool loading = false, cells_pending = false;;) {
        const bool more_steps = current.step <= args.steps;
        const BackwardStep step(args, more_steps ? current.step : 0);
        const u32 count = rows_in_range(current.group_start, step.previous_active, args.group_rows);
        if (loading) loader.receive(current_rows, requested);
        __syncthreads();
        if (cells_pending) {
            const BackwardStep finished_step(args, finished.step);
            const u32 active_rows = rows_in_range(finished.group_start, finished_step.previous_active, args.group_rows),
                      all_rows = rows_in_range(finished.group_start, batch, args.group_rows);
            for (u32 i = threadIdx.x; i < all_rows * units; i += blockDim.x) {
                const u32 row = i / units, b = finished.group_start + row, state_index = b * units + i % units,
                          unit = first_unit + i % units;
                if (unit >= hidden) continue;
                if (row < active_rows) {
                    float u[4];
                    const float *first = reinterpret_cast<const float *>(finished_sums + row * quads) + i % units;
                    add_block_sums_backward(first, slice.blocks, args.group_rows * quads * 4, u);
                    const float f =
                        args.cell.dense_peephole
                            ? args.gates[(((u64)finished_step.previous * batch + b) * 4 + 1) * hidden + unit]
                            : 0.0f;
                    state_gradients(args.cell.dense_peephole, u, f, dh.values[state_index], dc.values[state_index]);
                }
                if (finished_step.after_last) continue;
                if (b < finished_step.active) {
                    if (i != threadIdx.x) {
                        values = load_forward_values(args, finished_step.t, b, unit);
                        dy = args.dy[((u64)finished_step.t * batch + b) * hidden + unit];
                    }
                    const UnitGradients gradients =
                        unit_gradients(args, values, {args.peephole, hidden, unit},
                                       snap(__fadd_rn(dy, dh.values[state_index])), dc.values[state_index]);
                    dc.values[state_index] = gradients.dc;
                    publish_gradients(args, finished_step.t, b, unit, gradients.dz);
                } else {
                    zero_unit_gradients(args, finished_step.t, b, unit);
                }
            }
            if (!more_steps) break;
            cells_pending = false;
        }
        // These loads overlap with waiting for other blocks, or with sums.
        if (current.tile_start == 0 && (multiple_groups || !loading) && own_row < args.group_rows &&
            current.group_start + own_row < step.active && own_unit < hidden) {
            values = load_forward_values(args, step.t, current.group_start + own_row, own_unit);
            dy = args.dy[((u64)step.t * batch + current.group_start + own_row) * hidden + own_unit];
        }
        const RowTile next = loading ? current.next(args, count) : current;
        const bool requests_next = next.step <= args.steps && (multiple_groups || !loading || next.tile_start > 0);
        if (requests_next) {
            requested = rows_of_tile(next, BackwardStep(args, next.step));
            loader.request(loader.start(), requested);
        }
        if (loading) {
            for (u32 r = slice.group; slice.has_work() && r < args.tile_rows && current.tile_start + r < count;
                 r += slice.groups)
                current_sums[(slice.block * args.group_rows + current.tile_start + r) * quads + slice.quad] =
                    slice.dot(current_rows + r * row_stride);
            swap(current_rows, other_rows);
            if (next.tile_start == 0) {
                swap(current_sums, finished_sums);
                cells_pending = true, finished = current;
            }
            current = next;
        }
        loading = requests_next;
    }
    __syncthreads();
    dh.store(batch, args.dh);
    dc.store(batch, args.dc);
}
