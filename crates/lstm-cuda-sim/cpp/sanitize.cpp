// Runs all kernels on small shapes, for ThreadSanitizer and AddressSanitizer. It is a program of its own, since Rust
// test binaries are not instrumented by the C++ compiler's sanitizers. Results are compared with plain loops, under
// several schedules. tests/sanitizers.rs compiles and runs it.
//
//   sanitize                 runs all kernels, then prints the place of every barrier as `barrier FILE LINE`
//   sanitize FILE LINE       skips this barrier: ThreadSanitizer must report a data race
//   sanitize release         passes data from one block to another with release and acquire: no data race
//   sanitize no-release      the same with relaxed operations: ThreadSanitizer must report a data race
//   sanitize overflow        writes beyond the end of shared memory: AddressSanitizer must report it
//   sanitize divergence      one thread skips a barrier: the executor must report a deadlock
//   sanitize lane            one lane of a warp skips an `mma`: the executor must report a deadlock
#include "executor/executor.cpp"

#include <random>

// ---- Kernels with deliberate errors.

struct PublishArgs {
    u32 *data, *flag;
    u32 is_ordered, padding;
};

// Block 0 writes data and then a flag. Block 1 waits for the flag and reads the data.
KERNEL(publish, PublishArgs, 1) {
    if (blockIdx.x == 0) {
        *args.data = 42;
        __atomic_store_n(args.flag, 1u, args.is_ordered ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);
    } else {
        while (!__atomic_load_n(args.flag, args.is_ordered ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED)) pause();
        if (*args.data != 42) std::abort();
    }
}

struct IndexArgs {
    u32 index, padding;
};
// Writes shared memory from `index` on.
KERNEL(overflow, IndexArgs, 32) {
    SHARED(memory);
    memory[threadIdx.x + args.index] = 1.0f;
}
// Thread `index` skips a barrier.
KERNEL(divergence, IndexArgs, 32) {
    if (threadIdx.x != args.index) __syncthreads();
}
// Lane `index` skips an `mma`.
KERNEL(lane, IndexArgs, 32) {
    float sums[4] = {}, a[4] = {}, b[2] = {};
    if (threadIdx.x != args.index) mma(sums, sums + 2, a, b);
}

// Arguments of `one_mma`, a single `mma` of one warp. Each lane has a row.
struct MmaArgs {
    const float *a, *b; // [32, 4] and [32, 2]
    float *c;           // [32, 4]
};
KERNEL(one_mma, MmaArgs, 32) {
    float *c = args.c + 4 * threadIdx.x, top[2] = {c[0], c[1]}, bottom[2] = {c[2], c[3]};
    mma(top, bottom, args.a + 4 * threadIdx.x, args.b + 2 * threadIdx.x);
    c[0] = top[0], c[1] = top[1], c[2] = bottom[0], c[3] = bottom[1];
}

// ---- Helpers.

static bool failed = false;
static unsigned schedule = 0;

struct Grid {
    unsigned blocks, threads;
    size_t shared_floats = 0;
    bool cooperative = false;
    unsigned cluster_size = 0;
};

template <class Args> static void launch(const char *kernel, const Grid &grid, const Args &args) {
    const std::string error = executor::launch(kernel, grid.blocks, grid.threads, grid.shared_floats * sizeof(float),
                                               grid.cooperative, grid.cluster_size, schedule, &args, sizeof args);
    if (!error.empty()) std::printf("%s: %s\n", kernel, error.c_str()), failed = true;
}

typedef std::vector<float> Values;
static std::mt19937 generator(1);
static Values random_values(size_t n) {
    std::uniform_real_distribution<float> distribution(-1.0f, 1.0f);
    Values values(n);
    for (float &v : values) v = snap(distribution(generator));
    return values;
}

// Fails unless all values are bit-identical.
static void expect_equal(const char *what, const Values &got, const Values &want) {
    for (size_t i = 0; i < want.size(); i++)
        if (to_bits(got[i]) != to_bits(want[i])) {
            std::printf("%s, schedule %u: element %zu is %g, expected %g\n", what, schedule, i, got[i], want[i]);
            failed = true;
            return;
        }
}

// Fails unless all errors are at most what rounding both factors of each product to 11 significant bits explains.
// `magnitudes` are the sums of the products' absolute values.
static void expect_near(const char *what, const Values &got, const Values &want, const Values &magnitudes) {
    for (size_t i = 0; i < want.size(); i++)
        if (!(std::fabs(got[i] - want[i]) <= std::ldexp(1.01f, -10) * magnitudes[i])) {
            std::printf("%s, schedule %u: element %zu is %g, expected about %g\n", what, schedule, i, got[i], want[i]);
            failed = true;
            return;
        }
}

// A dot product in the specified order: blocks of LSTM_BLOCK elements, whose sums are added.
static float dot(u32 depth, const float *a, u32 a_stride, const float *b, u32 b_stride) {
    float total = 0.0f;
    for (u32 k0 = 0; k0 < depth; k0 += LSTM_BLOCK) {
        float partial = 0.0f;
        for (u32 k = k0; k < depth && k < k0 + LSTM_BLOCK; k++)
            partial = std::fma(a[(u64)k * a_stride], b[(u64)k * b_stride], partial);
        total = total + partial;
    }
    return total;
}

// Floats of shared memory of a kernel with this tile, which is double-buffered.
template <class Tile> size_t tile_floats() { return 2 * Tile::BUFFER_FLOATS; }
// The same for kernels on tensor cores.
static const size_t NARROW_FLOATS = 96 * 72, WIDE_FLOATS = 256 * 40;

// ---- Matrix products and sums.

// Products of sizes that are multiples of 4, whose elements can be loaded as `float4`, and of other sizes; each operand
// stored with the depth contiguous, or transposed.
static void test_products() {
    for (const bool multiple_of_4 : {false, true})
        for (u32 transposed = 0; transposed < 4; transposed++) { // bit 0 for a, bit 1 for b
            const u32 m = multiple_of_4 ? 20 : 19, n = multiple_of_4 ? 24 : 18, k = multiple_of_4 ? 72 : 70;
            GemmArgs args{};
            args.a_row_stride = transposed & 1 ? 1 : k, args.a_depth_stride = transposed & 1 ? m : 1;
            args.b_col_stride = transposed & 2 ? 1 : k, args.b_depth_stride = transposed & 2 ? n : 1;
            const Values a = random_values(m * k), b = random_values(n * k), acc = random_values(n);
            Values want(m * n), out(m * n);
            for (u32 i = 0; i < m * n; i++)
                want[i] = acc[i % n] + dot(k, &a[i / n * args.a_row_stride], args.a_depth_stride,
                                           &b[i % n * args.b_col_stride], args.b_depth_stride);
            args.a = a.data(), args.b = b.data(), args.acc = acc.data(), args.out = out.data();
            args.rows = m, args.cols = n, args.depth = k, args.segments = 1;
            launch("gemm_small", {4, 64, tile_floats<SmallTile>()}, args);
            expect_equal("gemm_small", out, want);
            launch("gemm_medium", {1, 256, tile_floats<MediumTile>()}, args);
            expect_equal("gemm_medium", out, want);
            if (transposed == (multiple_of_4 ? 3 : 0)) {
                launch("gemm_large", {1, 256, tile_floats<LargeTile>()}, args);
                expect_equal("gemm_large", out, want);
            }
        }
}

static Values round_to_tf32(Values values) {
    for (float &v : values) v = to_tf32(v);
    return values;
}

// Compares the simulated `mma` with a plain matrix product. Elements are distributed to lanes as the PTX manual's
// tables for m16n8k8 with .tf32 say.
static void test_mma() {
    const Values a = random_values(16 * 8), b = random_values(8 * 8), c = random_values(16 * 8);
    const Values rounded_a = round_to_tf32(a), rounded_b = round_to_tf32(b);
    Values lanes_a(32 * 4), lanes_b(32 * 2), lanes_c(32 * 4), got(16 * 8), want = c;
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 group = lane >> 2, member = lane & 3;
        for (u32 i = 0; i < 4; i++) {
            lanes_a[lane * 4 + i] =
                rounded_a[(i == 0 || i == 2 ? group : group + 8) * 8 + (i < 2 ? member : member + 4)];
            lanes_c[lane * 4 + i] = c[(i < 2 ? group : group + 8) * 8 + member * 2 + (i & 1)];
        }
        for (u32 i = 0; i < 2; i++) lanes_b[lane * 2 + i] = rounded_b[(i == 0 ? member : member + 4) * 8 + group];
    }
    launch("one_mma", {1, 32}, MmaArgs{lanes_a.data(), lanes_b.data(), lanes_c.data()});
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 4; i++)
            got[((i < 2 ? 0 : 8) + lane / 4) * 8 + lane % 4 * 2 + i % 2] = lanes_c[lane * 4 + i];
    for (u32 row = 0; row < 16; row++)
        for (u32 col = 0; col < 8; col++)
            for (u32 k = 0; k < 8; k++)
                want[row * 8 + col] = std::fma(rounded_a[row * 8 + k], rounded_b[k * 8 + col], want[row * 8 + col]);
    expect_equal("mma", got, want);
    // 1 + 2^-11 is halfway between two TF32 numbers, and rounds away from zero.
    const float cases[][2] = {
        {1.00048828125f, 1.0009765625f}, {-1.00048828125f, -1.0009765625f}, {1.0004882f, 1.0f}, {0.0f, 0.0f}};
    for (const auto &one : cases) expect_equal("to_tf32", {to_tf32(one[0])}, {one[1]});
}

static Values transposed(const Values &x, u32 rows, u32 cols) {
    Values out(x.size());
    for (u32 i = 0; i < rows * cols; i++) out[i % cols * rows + i / cols] = x[i];
    return out;
}

static Values absolute(Values values) {
    for (float &v : values) v = std::fabs(v);
    return values;
}

static void test_tf32_products() {
    const u32 m = 19, n = 37, k = 70;
    const Values a = random_values(m * k), b = random_values(n * k), absolute_a = absolute(a), absolute_b = absolute(b);
    const Values transposed_a = transposed(a, m, k), transposed_b = transposed(b, n, k);
    Values out(m * n), want(m * n), magnitudes(m * n);
    for (u32 i = 0; i < m * n; i++) {
        want[i] = dot(k, &a[i / n * k], 1, &b[i % n * k], 1);
        magnitudes[i] = dot(k, &absolute_a[i / n * k], 1, &absolute_b[i % n * k], 1);
    }
    for (const bool is_transposed : {false, true}) {
        GemmArgs args{};
        args.a = (is_transposed ? transposed_a : a).data(), args.b = (is_transposed ? transposed_b : b).data();
        args.out = out.data(), args.rows = m, args.cols = n, args.depth = k, args.segments = 1;
        args.a_row_stride = args.b_col_stride = is_transposed ? 1 : k;
        args.a_depth_stride = is_transposed ? m : 1, args.b_depth_stride = is_transposed ? n : 1;
        launch("tf32_gemm_narrow", {2, 256, NARROW_FLOATS}, args);
        expect_near("tf32_gemm_narrow", out, want, magnitudes);
        launch("tf32_gemm_wide", {1, 256, WIDE_FLOATS}, args);
        expect_near("tf32_gemm_wide", out, want, magnitudes);
    }
}

// Column sums of two segments, the second of which is first in memory. Two warps sum them in several rounds.
static void test_column_sums() {
    const u32 rows = 150, cols = 40, segment = rows * cols;
    const Values x = random_values(2 * segment), factor = random_values(2 * segment), acc = random_values(cols);
    const Values ones(rows, 1.0f);
    for (const bool has_factor : {false, true}) {
        Values out(cols), want(cols), products = x;
        for (u32 i = 0; has_factor && i < x.size(); i++) products[i] = x[i] * factor[i];
        for (u32 i = 0; i < cols; i++)
            want[i] = acc[i] + dot(rows, &products[segment + i], cols, ones.data(), 1) +
                      dot(rows, &products[i], cols, ones.data(), 1);
        ColumnSumArgs args{};
        args.x = &x[segment], args.factor = has_factor ? &factor[segment] : nullptr;
        args.acc = acc.data(), args.out = out.data();
        args.rows = rows, args.cols = cols, args.x_stride = cols, args.batch = 1;
        args.segments = 2, args.segment_stride = -(int)rows;
        launch("column_sums", {2, 64, 64}, args);
        expect_equal("column_sums", out, want);
    }
}

// Rows of values below 1, quantized with the scale of a row whose largest magnitude is 1, times a matrix of integers.
static void test_quantized_products() {
    const u32 rows = 3, cols = 5, inner = 150, block = 64;
    const Values x = random_values(rows * inner), scale = random_values(cols), acc = random_values(cols);
    Values w = random_values(cols * inner), integers(rows * inner), q(rows * inner), factors(rows), out(rows * cols);
    for (float &v : w) v = std::nearbyint(127.0f * v);
    for (u32 i = 0; i < rows * inner; i++) integers[i] = std::nearbyint(127.0 * x[i]) + 0.0; // never -0
    QuantizeRowsArgs quantize{};
    quantize.x = x.data(), quantize.q = q.data(), quantize.from_integer = factors.data();
    quantize.cols = inner, quantize.min_magnitude = to_bits(1.0f);
    quantize.to_integer_factors.f0 = 127.0f, quantize.from_integer_factors.f0 = 1.0f / 127.0f;
    launch("quantize_rows", {rows, 128, 128}, quantize);
    expect_equal("quantize_rows", q, integers);
    expect_equal("factors of quantize_rows", factors, Values(rows, 1.0f / 127.0f));

    Values want(rows * cols);
    for (u32 i = 0; i < rows * cols; i++) {
        want[i] = acc[i % cols];
        for (u32 start = 0; start < inner; start += block) {
            const u32 length = inner - start < block ? inner - start : block;
            const float sum = dot(length, &integers[i / cols * inner + start], 1, &w[i % cols * inner + start], 1);
            want[i] = std::fma(sum, scale[i % cols] * factors[0], want[i]);
        }
    }
    GemmQuantizedArgs args{};
    args.a = q.data(), args.from_integer = factors.data(), args.w = w.data(), args.scale = scale.data();
    args.acc = acc.data(), args.out = out.data();
    args.len = rows * cols, args.cols = cols, args.inner = inner, args.block = block, args.acc_is_row = 1;
    launch("gemm_quantized", {1, 32}, args);
    expect_equal("gemm_quantized", out, want);
}

// ---- Steps and layers.

// Compares kernels for one step on tensor cores with the exact ones. The error of a state is smaller than that of a
// gate's sum, since no activation has a slope above 1. Gradients get the same bound: they are products of few factors
// below 1.
static void test_tf32_steps() {
    const u32 hidden = 37, batch = 19, cells = batch * hidden;
    const Values z = random_values(4 * cells), u = random_values(4 * hidden * hidden);
    const Values h = random_values(cells), c = random_values(cells), dy = random_values(cells);
    Values h_new[2], c_new[2], gates[2], dz[2], dh[2], dc[2]; // exact, then in TF32
    for (const bool tf32 : {false, true}) {
        h_new[tf32] = c_new[tf32] = dh[tf32] = dc[tf32] = Values(cells), gates[tf32] = dz[tf32] = Values(4 * cells);
        ForwardStepArgs forward{};
        forward.z = z.data(), forward.u = u.data(), forward.h_old = h.data(), forward.c_old = c.data();
        forward.h_new = h_new[tf32].data(), forward.c_new = c_new[tf32].data(), forward.gates = gates[tf32].data();
        forward.batch = batch, forward.active_rows = batch - 1, forward.hidden = forward.state_size = hidden;
        if (tf32) launch("tf32_forward_step", {5, 256, NARROW_FLOATS}, forward);
        else launch("forward_step_small", {20, 64, tile_floats<SmallStepTile>()}, forward);
        BackwardStepArgs backward{};
        backward.dz_next = z.data(), backward.gates_next = backward.gates = gates[0].data(), backward.u = u.data();
        backward.dy = dy.data(), backward.c_old = c.data(), backward.c_new = c_new[0].data();
        backward.dh = dh[tf32].data(), backward.dc = dc[tf32].data(), backward.dz = dz[tf32].data();
        backward.batch = backward.active_rows = batch, backward.active_rows_next = batch - 1;
        backward.hidden = backward.state_size = hidden;
        if (tf32) launch("tf32_backward_step", {2, 256, NARROW_FLOATS}, backward);
        else launch("backward_step_small", {6, 64, tile_floats<SmallTile>()}, backward);
    }
    const Values bound(4 * cells, hidden);
    expect_near("tf32_forward_step: h", h_new[1], h_new[0], bound);
    expect_near("tf32_forward_step: c", c_new[1], c_new[0], bound);
    expect_near("tf32_backward_step: dz", dz[1], dz[0], bound);
    expect_near("tf32_backward_step: dh", dh[1], dh[0], Values(cells, 4.0f * hidden));
}

enum Kind { STANDARD, DIAGONAL_PEEPHOLE, DENSE_PEEPHOLE, PROJECTED };

// Runs a layer over a few steps with one kernel per step, with the persistent kernels and with the cluster kernels,
// forward and backward, and compares the results.
struct LayerTest {
    const bool reverse, has_lengths;
    const Kind kind;
    const bool projects = kind == PROJECTED;
    // The sizes don't divide one another, so that every thread reads values that other threads wrote. With lengths, the
    // hidden size is a multiple of 4, so that `float4` loads are used, and for the standard kind a multiple of 32.
    const u32 hidden = has_lengths ? (kind == STANDARD ? 64 : 40) : 37, batch = 4, steps = 3;
    const u32 state_size = projects ? hidden - (has_lengths ? 4 : 2) : hidden;
    const size_t cells = batch * hidden, states = batch * state_size; // elements of c and of h in one step
    const u32 depth = depth_blocks(hidden);                           // also of the state size
    const std::vector<u32> active_counts = has_lengths ? std::vector<u32>{4, 2, 0} : std::vector<u32>(steps, batch);
    const CellOptions cell{kind == DENSE_PEEPHOLE, 0, 1, 0.75f};
    const GateBounds bounds{sigmoid(-0.75f), sigmoid(0.75f), lstm_tanh(-0.75f), lstm_tanh(0.75f)};

    // How the persistent kernels divide the layer. Reversed, one row group has all rows; else the last one is smaller.
    const u32 units = 9, group_rows = reverse ? 4 : 3, tile_rows = 2, blocks = (hidden + units - 1) / units;
    const u32 features = projects ? (state_size + blocks - 1) / blocks : units;
    // How the cluster kernels do: two clusters, the second with one sequence. Some weights are in shared memory.
    const u32 cluster_size = 2, cluster_units = (hidden + 1) / 2, cluster_rows = 3;
    const u32 register_quads = cluster_units - cluster_units / 3, register_quads_backward = (cluster_units + 3) / 4 - 2;
    const float sentinel = from_bits(~0u);

    const Values z = random_values(steps * 4 * cells), u = random_values(4 * hidden * state_size);
    const Values peephole = random_values(3 * hidden), w_hr = random_values(state_size * hidden);
    const Values h0 = random_values(states), c0 = random_values(cells), dy = random_values(steps * states);
    const Values dh_last = random_values(states), dc_last = random_values(cells);

    // Results of the kernels for one step.
    Values h = Values((steps + 1) * states), c = Values((steps + 1) * cells), y = Values(steps * states);
    Values gates = Values(4 * steps * cells);
    Values dh = dh_last, dc = dc_last, dz = Values(4 * steps * cells);
    Values dh_projected = Values(steps * states), unprojected = Values(steps * cells);

    const float *peephole_or_null() const { return kind == DIAGONAL_PEEPHOLE ? peephole.data() : nullptr; }
    const float *w_hr_or_null() const { return projects ? w_hr.data() : nullptr; }
    // Index of the states before and after step `t` in `h` and `c`.
    u32 before(u32 t) const { return reverse ? t + 1 : t; }
    u32 after(u32 t) const { return reverse ? t : t + 1; }

    void forward_by_steps() {
        Values operand(cells);
        std::copy(h0.begin(), h0.end(), h.begin() + (reverse ? steps : 0) * states);
        std::copy(c0.begin(), c0.end(), c.begin() + (reverse ? steps : 0) * cells);
        for (u32 n = 0; n < steps; n++) {
            const u32 t = reverse ? steps - 1 - n : n;
            float *h_old = &h[before(t) * states], *h_new = &h[after(t) * states], *y_step = &y[t * states];
            ForwardStepArgs args{};
            args.z = &z[t * 4 * cells], args.u = u.data(), args.peephole = peephole_or_null();
            args.h_old = h_old, args.c_old = &c[before(t) * cells], args.c_new = &c[after(t) * cells];
            args.gates = &gates[t * 4 * cells];
            if (projects) args.projection_input = operand.data();
            else args.h_new = h_new, args.y = y_step;
            args.batch = batch, args.active_rows = active_counts[t], args.hidden = hidden, args.state_size = state_size;
            args.cell = cell;
            launch("forward_step_small", {(4 * hidden + 15) / 16, 64, tile_floats<SmallStepTile>()}, args);
            const ProjectionArgs projection{operand.data(), w_hr.data(),      h_old,  h_new,     y_step,
                                            batch,          active_counts[t], hidden, state_size};
            if (projects)
                launch("forward_projection_small", {(state_size + 15) / 16, 64, tile_floats<SmallTile>()}, projection);
        }
    }

    // The grid of a persistent kernel whose blocks have `quads` groups of four sums and whose operand has
    // `operand_blocks` blocks of depth. Two groups of threads divide the rows; their number is rounded up to a multiple
    // of 8.
    Grid persistent_grid(size_t quads, size_t operand_blocks) const {
        const size_t operand = (projects ? group_rows : 2 * tile_rows) * operand_blocks * PITCH;
        const size_t sums = (projects ? 1 : 2) * group_rows * 4 * quads;
        return {blocks, unsigned(2 * quads + 7) / 8 * 8, operand + sums + batch * (units + features), true};
    }

    // The grid of a cluster kernel, likewise.
    Grid cluster_grid(size_t quads, size_t operand_blocks, size_t in_registers) const {
        const size_t sums = cluster_rows * (2 * operand_blocks * PITCH + 4 * operand_blocks * quads);
        const size_t weights = (quads - in_registers) * operand_blocks * LSTM_BLOCK * 4;
        return {2 * cluster_size, cluster_rows * cluster_units, sums + weights, false, cluster_size};
    }

    void forward_by_sequence(bool use_clusters) {
        Values other_y(y.size(), sentinel), exchange(steps * cells, sentinel);
        Values other_h(h.size()), other_c(c.size()), other_gates(gates.size()), h_last(states), c_last(cells);
        ForwardSequenceArgs args{};
        args.z = z.data(), args.u = u.data(), args.h0 = h0.data(), args.c0 = c0.data();
        args.peephole = peephole_or_null(), args.w_hr = w_hr_or_null();
        args.y = other_y.data(), args.exchange_buffer = use_clusters ? nullptr : exchange.data();
        args.trace_h = other_h.data(), args.trace_c = other_c.data(), args.trace_gates = other_gates.data();
        args.h_last = h_last.data(), args.c_last = c_last.data(), args.active_counts = active_counts.data();
        args.steps = steps, args.batch = batch, args.hidden = hidden, args.state_size = state_size;
        args.reverse = reverse, args.cell = cell;
        if (use_clusters) {
            args.units_per_block = args.features_per_block = cluster_units;
            args.group_rows = args.tile_rows = cluster_rows;
            args.quads_in_registers = register_quads;
            launch("cluster_forward", cluster_grid(cluster_units, depth, register_quads), args);
        } else {
            args.units_per_block = args.quads_in_registers = units, args.features_per_block = features;
            args.group_rows = group_rows, args.tile_rows = tile_rows;
            const char *kernel = projects ? "persistent_projected_forward" : "persistent_forward";
            launch(kernel, persistent_grid(units * depth, depth), args);
        }
        const u32 last = reverse ? 0 : steps;
        expect_equal("sequence: y", other_y, y);
        expect_equal("sequence: h", other_h, h), expect_equal("sequence: c", other_c, c);
        expect_equal("sequence: gates", other_gates, gates);
        expect_equal("sequence: last h", h_last, Values(&h[last * states], &h[last * states] + states));
        expect_equal("sequence: last c", c_last, Values(&c[last * cells], &c[last * cells] + cells));
    }

    // With lengths by kernels that compute the gates' products first, else by kernels that compute all of a step.
    void backward_by_steps() {
        Values gate_products(4 * states);
        // One more than there are steps: the last call computes the gradient of the initial state.
        for (u32 n = 0; n <= steps; n++) {
            const bool is_end = n == steps;
            const u32 t = is_end ? 0 : reverse ? n : steps - 1 - n, next = n == 0 ? 0 : reverse ? n - 1 : steps - n;
            BackwardStepArgs args{};
            args.dz_next = &dz[next * 4 * cells], args.gates_next = &gates[next * 4 * cells];
            args.u = u.data(), args.w_hr = w_hr_or_null(), args.peephole = peephole_or_null();
            args.dy = &dy[t * states], args.gates = &gates[t * 4 * cells];
            args.c_old = &c[before(t) * cells], args.c_new = &c[after(t) * cells], args.h_new = &h[after(t) * states];
            args.dh = dh.data(), args.dc = dc.data(), args.dz = is_end ? nullptr : &dz[t * 4 * cells];
            if (projects && !is_end)
                args.dh_projected = &dh_projected[t * states], args.projection_input = &unprojected[t * cells];
            args.gate_products = gate_products.data();
            args.batch = batch, args.hidden = hidden, args.state_size = state_size;
            args.active_rows = is_end ? 0 : active_counts[t], args.active_rows_next = n == 0 ? 0 : active_counts[next];
            args.cell = cell, args.bounds = bounds;
            if (has_lengths) {
                if (n > 0) launch("backward_gate_products", {4, 256, tile_floats<MediumTile>()}, args);
                launch(projects ? "backward_state_combine" : "backward_step_combine", {(state_size + 31) / 32, 256},
                       args);
            } else {
                const Grid grid{(state_size + 15) / 16, 64, tile_floats<SmallTile>()};
                launch(projects ? "backward_state_small" : "backward_step_small", grid, args);
            }
            if (projects && !is_end)
                launch("backward_units_small", {(hidden + 15) / 16, 64, tile_floats<SmallTile>()}, args);
        }
    }

    void backward_by_sequence(bool use_clusters) {
        Values other_dh = dh_last, other_dc = dc_last, other_dz(dz.size(), sentinel);
        Values other_dh_projected(dh_projected.size(), sentinel), other_unprojected(unprojected.size());
        BackwardSequenceArgs args{};
        args.u = u.data(), args.dy = dy.data(), args.gates = gates.data(), args.h = h.data(), args.c = c.data();
        args.peephole = peephole_or_null(), args.w_hr = w_hr_or_null();
        args.dh = other_dh.data(), args.dc = other_dc.data(), args.dz = other_dz.data();
        args.active_counts = active_counts.data();
        args.steps = steps, args.batch = batch, args.hidden = hidden, args.state_size = state_size;
        args.reverse = reverse, args.cell = cell, args.bounds = bounds;
        if (use_clusters) {
            args.units_per_block = args.features_per_block = cluster_units;
            args.group_rows = args.tile_rows = cluster_rows;
            args.quads_in_registers = register_quads_backward;
            launch("cluster_backward", cluster_grid((cluster_units + 3) / 4, 4 * depth, register_quads_backward), args);
        } else {
            args.dh_projected = other_dh_projected.data(), args.projection_input = other_unprojected.data();
            args.units_per_block = args.quads_in_registers = units, args.features_per_block = features;
            args.group_rows = group_rows, args.tile_rows = tile_rows;
            const size_t quads = std::max(4 * depth * ((features + 3) / 4), projects ? units * depth : 0);
            const char *kernel = projects ? "persistent_projected_backward" : "persistent_backward";
            launch(kernel, persistent_grid(quads, 4 * depth), args);
        }
        expect_equal("backward sequence: dz", other_dz, dz);
        expect_equal("backward sequence: dh", other_dh, dh), expect_equal("backward sequence: dc", other_dc, dc);
        if (projects) {
            expect_equal("backward sequence: projected dh", other_dh_projected, dh_projected);
            expect_equal("backward sequence: unprojected h", other_unprojected, unprojected);
        }
    }

    void run() {
        forward_by_steps();
        forward_by_sequence(false);
        if (!projects) forward_by_sequence(true);
        backward_by_steps();
        backward_by_sequence(false);
        if (!projects) backward_by_sequence(true);
    }
};

int main(int argc, char **argv) {
    const std::string mode = argc > 1 ? argv[1] : "";
    if (mode == "release" || mode == "no-release") {
        u32 data = 0, flag = 0;
        launch("publish", {2, 1, 0, true}, PublishArgs{&data, &flag, mode == "release", 0});
        return failed;
    }
    if (mode == "overflow") {
        launch("overflow", {1, 32, 32}, IndexArgs{1, 0});
        return failed;
    }
    if (mode == "divergence" || mode == "lane") {
        launch(mode.c_str(), {1, 32, 32}, IndexArgs{7, 0});
        return failed;
    }
    const bool skips_barrier = argc == 3;
    executor::collect_barriers = argc == 1;
    if (skips_barrier) executor::skipped_barrier = {argv[1], std::atoi(argv[2])};
    for (schedule = 0; schedule < 3; schedule++) {
        test_products(), test_column_sums(), test_quantized_products();
        test_mma(), test_tf32_products(), test_tf32_steps();
        // All kinds, both directions, with and without lengths; with a skipped barrier only some combinations, to save
        // time.
        for (int n = 0; n < 16; n++)
            if (!skips_barrier || n % 5 == 0 || n == 12) LayerTest{bool(n & 1), bool(n & 2), Kind(n / 4)}.run();
    }
    for (unsigned i = 0; i < executor::barrier_count; i++)
        std::printf("barrier %s %d\n", executor::barriers[i].file, executor::barriers[i].line);
    std::puts(failed ? "FAILED" : "passed");
    return failed;
}
