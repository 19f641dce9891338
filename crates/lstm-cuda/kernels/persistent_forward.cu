// The forward pass of all steps in one launch, for layers without a projection. Blocks exchange h through `y`. With
// dense peepholes, whose gates depend on c only, they exchange c.

// Shared memory: a double buffer for `tile_rows` rows of what is exchanged, `[blocks][PITCH]` each; a double buffer for
// the sums of depth blocks, `[blocks][group_rows][units]` float4; the block's h and c, `[batch][units]` each.
KERNEL(persistent_forward, ForwardSequenceArgs, 256) {
    const u32 hidden = args.hidden, batch = args.batch, units = args.units_per_block, first_unit = blockIdx.x * units;
    WeightSlice slice(depth_blocks(hidden), units);
    const u32 row_stride = slice.blocks * PITCH, sums_size = slice.blocks * args.group_rows * units;
    SHARED(rows);
    float4 *sums = reinterpret_cast<float4 *>(rows + 2 * args.tile_rows * row_stride);
    float *state = reinterpret_cast<float *>(sums + 2 * sums_size);
    const BlockState h{state, units, first_unit, hidden}, c{state + batch * units, units, first_unit, hidden};
    const float *initial = args.cell.dense_peephole ? args.c0 : args.h0;
    float *exchange = args.cell.dense_peephole ? args.exchange_buffer : args.y;

    slice.load(Strided{args.u, hidden, hidden, hidden, 1}, hidden * hidden, first_unit);
    const u64 trace_start = (u64)(args.reverse ? args.steps : 0) * batch * hidden;
    h.load(batch, args.h0, args.trace_h ? args.trace_h + trace_start : nullptr);
    c.load(batch, args.c0, args.trace_h ? args.trace_c + trace_start : nullptr);
    // No other thread reads the state before the barriers of the first step.

    // With several row groups, the cells of one group are computed while the next group is summed. The rows of that
    // group were written long before, and are requested early. With one group there is nothing to overlap: an iteration
    // either sums a tile, or computes cells.
    const bool multiple_groups = batch > args.group_rows;
    const u32 own_unit = first_unit + threadIdx.x % units, own_row = threadIdx.x / units;
    const auto rows_of_tile = [&](const RowTile &tile, const ForwardStep &step) {
        const u32 first = tile.group_start + tile.tile_start;
        const u32 count = rows_in_range(tile.tile_start, rows_in_range(tile.group_start, step.active, args.group_rows),
                                        args.tile_rows);
        const float *previous = exchange + ((u64)step.previous * batch + first) * hidden;
        return OperandRows(previous, initial + (u64)first * hidden, hidden, count,
                           rows_in_range(first, step.previous_active, count));
    };
    RowLoader<8> loader(hidden);
    RowTile current{0, 0, 0}, finished{0, 0, 0};
    OperandRows requested = rows_of_tile(current, ForwardStep(args, 0));
    float *current_rows = rows, *other_rows = rows + args.tile_rows * row_stride;
    float4 *current_sums = sums, *finished_sums = sums + sums_size;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    for (bool loading = false, cells_pending = false;;) {
        const bool more_steps = current.step < args.steps;
        const ForwardStep step(args, more_steps ? current.step : 0);
        const u32 count = rows_in_range(current.group_start, step.active, args.group_rows);
        if (loading) loader.receive(current_rows, requested);
        __syncthreads();
        if (cells_pending) {
            const ForwardStep finished_step(args, finished.step);
            const u32 active_rows = rows_in_range(finished.group_start, finished_step.active, args.group_rows),
                      all_rows = rows_in_range(finished.group_start, batch, args.group_rows);
            for (u32 i = threadIdx.x; i < all_rows * units; i += blockDim.x) {
                const u32 row = i / units, b = finished.group_start + row, state_index = b * units + i % units,
                          unit = first_unit + i % units;
                if (unit >= hidden) continue;
                const u64 out = ((u64)finished_step.t * batch + b) * hidden + unit;
                if (row < active_rows) {
                    float u[4];
                    add_block_sums(finished_sums + i, slice.blocks, args.group_rows * units, u);
                    if (i != threadIdx.x) x = load_input_gates(args, finished_step.t, b, unit);
                    const CellOutput next = unit_forward(args, finished_step.t, b, unit, x, u, c.values[state_index]);
                    c.values[state_index] = next.c;
                    h.values[state_index] = next.h;
                    publish(exchange + out, args.cell.dense_peephole ? next.c : next.h);
                    if (args.cell.dense_peephole) args.y[out] = next.h;
                } else {
                    args.y[out] = 0.0f;
                }
                if (args.trace_h) {
                    const u64 trace_index = ((u64)finished_step.trace_index * batch + b) * hidden + unit;
                    args.trace_h[trace_index] = h.values[state_index];
                    args.trace_c[trace_index] = c.values[state_index];
                }
            }
            if (!more_steps) break;
            cells_pending = false;
        }
        // This load overlaps with waiting for other blocks, or with sums.
        if (current.tile_start == 0 && (multiple_groups || !loading) && own_row < count && own_unit < hidden)
            x = load_input_gates(args, step.t, current.group_start + own_row, own_unit);
        const RowTile next = loading ? current.next(args, count) : current;
        const bool requests_next = next.step < args.steps && (multiple_groups || !loading || next.tile_start > 0);
        if (requests_next) {
            requested = rows_of_tile(next, ForwardStep(args, next.step));
            loader.request(loader.start(), requested);
        }
        if (loading) {
            for (u32 r = slice.group; slice.has_work() && r < args.tile_rows && current.tile_start + r < count;
                 r += slice.groups)
                current_sums[(slice.block * args.group_rows + current.tile_start + r) * units + slice.quad] =
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
    h.store(batch, args.h_last);
    c.store(batch, args.c_last);
}
