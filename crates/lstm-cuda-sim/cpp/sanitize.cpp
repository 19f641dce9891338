// The kernels on small shapes, for ThreadSanitizer and AddressSanitizer: a program of its own, because a Rust test binary
// is not built for them. It compares with plain loops, under several schedules.
//
//   sanitize                 all kernels; then prints every barrier's place as `barrier FILE LINE`
//   sanitize FILE LINE       the same without that barrier: the sanitizer must report a race
//   sanitize release         a word that is passed on, with its order and the sanitizer must be silent;
//   sanitize no-release      without, and it must report a race though the numbers are right
//   sanitize overflow        a write beyond shared memory: AddressSanitizer must report it
//   sanitize divergence      a barrier that a thread never reaches: the runner must say who waits where
//   sanitize lane            likewise a warp's product that one of its lanes never reaches
#include "executor/executor.cpp"

#include <random>

struct PassArgs {
    u32 *data, *flag;
    u32 ordered, unused;
};

// Block 0 writes data, then a flag; block 1 waits for the flag and reads the data.
KERNEL(pass, PassArgs, 1) {
    if (blockIdx.x == 0) {
        *args.data = 42;
        __atomic_store_n(args.flag, 1u, args.ordered ? __ATOMIC_RELEASE : __ATOMIC_RELAXED);
    } else {
        while (!__atomic_load_n(args.flag, args.ordered ? __ATOMIC_ACQUIRE : __ATOMIC_RELAXED)) pause();
        if (*args.data != 42) std::abort();
    }
}

struct OverflowArgs {
    u32 at, unused;
};
KERNEL(overflow, OverflowArgs, 32) {
    SHARED(memory);
    memory[threadIdx.x + args.at] = 1.0f;
}
KERNEL(divergence, OverflowArgs, 32) {
    if (threadIdx.x != args.at) __syncthreads();
}
KERNEL(lane, OverflowArgs, 32) {
    float sums[4] = {}, a[4] = {}, b[2] = {};
    if (threadIdx.x != args.at) mma(sums, sums + 2, a, b);
}

// One of tensor cores' instructions: a lane's own values, as the instruction has them.
struct InstructionArgs {
    const float *a, *b; // [32, 4] and [32, 2]
    float *c;           // [32, 4]
};
KERNEL(instruction, InstructionArgs, 32) {
    float *c = args.c + 4 * threadIdx.x, top[2] = {c[0], c[1]}, bottom[2] = {c[2], c[3]};
    mma(top, bottom, args.a + 4 * threadIdx.x, args.b + 2 * threadIdx.x);
    c[0] = top[0], c[1] = top[1], c[2] = bottom[0], c[3] = bottom[1];
}

static bool failed = false;
static unsigned seed = 0;

template <class A> static void start(const char *name, unsigned grid, unsigned threads, size_t floats, bool resident, const A &args, unsigned cluster = 0) {
    const std::string why = shim::launch(name, grid, threads, floats * 4, resident, cluster, seed, &args, sizeof args);
    if (!why.empty()) std::printf("%s: %s\n", name, why.c_str()), failed = true;
}

typedef std::vector<float> Values;
static std::mt19937 generator(1);
static Values numbers(size_t n) {
    std::uniform_real_distribution<float> d(-1.0f, 1.0f);
    Values v(n);
    for (float &x : v) x = snap(d(generator));
    return v;
}

static void same(const char *what, const Values &got, const Values &want) {
    for (size_t i = 0; i < want.size(); i++)
        if (to_bits(got[i]) != to_bits(want[i])) {
            std::printf("%s, schedule %u: %zu is %g, not %g\n", what, seed, i, got[i], want[i]);
            failed = true;
            return;
        }
}

static float dot(u32 depth, const float *a, u32 a_step, const float *b, u32 b_step) {
    float total = 0.0f;
    for (u32 k0 = 0; k0 < depth; k0 += LSTM_BLOCK) {
        float part = 0.0f;
        for (u32 k = k0; k < depth && k < k0 + LSTM_BLOCK; k++) part = std::fma(a[(u64)k * a_step], b[(u64)k * b_step], part);
        total = total + part;
    }
    return total;
}

enum Kind { STANDARD, DIAGONAL, DENSE, PROJECTED };

template <class Tile> size_t tile_floats() { return 2 * Tile::BUFFER_FLOATS; }

// Of sizes whose elements can be read by fours and of others, each operand lying along the depth or beside it.
static void products() {
    for (u32 whole = 0; whole < 2; whole++)
        for (u32 lies = 0; lies < 4; lies++) {
            const u32 m = whole ? 20 : 19, n = whole ? 24 : 18, k = whole ? 72 : 70;
            const u32 a_row = lies & 1 ? 1 : k, a_depth = lies & 1 ? m : 1, b_col = lies & 2 ? 1 : k, b_depth = lies & 2 ? n : 1;
            const Values a = numbers(m * k), b = numbers(n * k), acc = numbers(n);
            Values want(m * n), out(m * n);
            for (u32 i = 0; i < m * n; i++)
                want[i] = acc[i % n] + dot(k, &a[i / n * a_row], a_depth, &b[i % n * b_col], b_depth);
            const GemmArgs args{a.data(), b.data(), acc.data(), out.data(), m, n, k, 1, a_row, a_depth, 0, b_col, b_depth, 0, 0, 0};
            start("gemm_small", 4, 64, tile_floats<SmallTile>(), false, args);
            same("gemm_small", out, want);
            start("gemm_medium", 1, 256, tile_floats<MediumTile>(), false, args);
            same("gemm_medium", out, want);
            if (lies == 3 * whole) {
                start("gemm_large", 1, 256, tile_floats<LargeTile>(), false, args);
                same("gemm_large", out, want);
            }
        }
}

static Values rounded(Values v) {
    for (float &x : v) x = to_tf32(x);
    return v;
}

// The stand-in for tensor cores' instruction against a plain product of its matrices, which lie in lanes as PTX's tables for
// m16n8k8 with .tf32 say.
static void fragments() {
    const Values a = numbers(16 * 8), b = numbers(8 * 8), c = numbers(16 * 8), ra = rounded(a), rb = rounded(b);
    Values as(32 * 4), bs(32 * 2), cs(32 * 4), got(16 * 8), want = c;
    for (u32 lane = 0; lane < 32; lane++) {
        const u32 group = lane >> 2, member = lane & 3;
        for (u32 i = 0; i < 4; i++) {
            as[lane * 4 + i] = ra[(i == 0 || i == 2 ? group : group + 8) * 8 + (i < 2 ? member : member + 4)];
            cs[lane * 4 + i] = c[(i < 2 ? group : group + 8) * 8 + member * 2 + (i & 1)];
        }
        for (u32 i = 0; i < 2; i++) bs[lane * 2 + i] = rb[(i == 0 ? member : member + 4) * 8 + group];
    }
    start("instruction", 1, 32, 0, false, InstructionArgs{as.data(), bs.data(), cs.data()});
    for (u32 lane = 0; lane < 32; lane++)
        for (u32 i = 0; i < 4; i++) got[((i < 2 ? 0 : 8) + lane / 4) * 8 + lane % 4 * 2 + i % 2] = cs[lane * 4 + i];
    for (u32 row = 0; row < 16; row++)
        for (u32 col = 0; col < 8; col++)
            for (u32 k = 0; k < 8; k++) want[row * 8 + col] = std::fma(ra[row * 8 + k], rb[k * 8 + col], want[row * 8 + col]);
    same("instruction", got, want);
    // 1 + 2^-11 lies halfway between two neighbours; the sign and 10 bits are kept.
    const float ties[][2] = {{1.00048828125f, 1.0009765625f}, {-1.00048828125f, -1.0009765625f}, {1.0004882f, 1.0f}, {0.0f, 0.0f}};
    for (const auto &tie : ties) same("to_tf32", {to_tf32(tie[0])}, {tie[1]});
}

// Off by no more than rounding both factors of each term to 11 bits explains.
static void near(const char *what, const Values &got, const Values &want, const Values &terms) {
    for (size_t i = 0; i < want.size(); i++)
        if (!(std::fabs(got[i] - want[i]) <= std::ldexp(1.01f, -10) * terms[i])) {
            std::printf("%s, schedule %u: %zu is %g, not about %g\n", what, seed, i, got[i], want[i]);
            failed = true;
            return;
        }
}

static void fast_products() {
    const u32 m = 19, n = 37, k = 70;
    const Values a = numbers(m * k), b = numbers(n * k);
    Values at(a.size()), bt(b.size()), magnitudes_a = a, magnitudes_b = b, out(m * n), want(m * n), terms(m * n);
    for (u32 i = 0; i < m * k; i++) at[i % k * m + i / k] = a[i], magnitudes_a[i] = std::fabs(a[i]);
    for (u32 i = 0; i < n * k; i++) bt[i % k * n + i / k] = b[i], magnitudes_b[i] = std::fabs(b[i]);
    for (u32 i = 0; i < m * n; i++) {
        want[i] = dot(k, &a[i / n * k], 1, &b[i % n * k], 1);
        terms[i] = dot(k, &magnitudes_a[i / n * k], 1, &magnitudes_b[i % n * k], 1);
    }
    for (const bool turned : {false, true}) {
        GemmArgs args{a.data(), b.data(), nullptr, out.data(), m, n, k, 1, k, 1, 0, k, 1, 0, 0, 0};
        if (turned) args.a = at.data(), args.b = bt.data(), args.a_row_stride = args.b_col_stride = 1, args.a_depth_stride = m, args.b_depth_stride = n;
        start("tf32_gemm_narrow", 2, 256, 96 * 72, false, args);
        near("tf32_gemm_narrow", out, want, terms);
        start("tf32_gemm_wide", 1, 256, 256 * 40, false, args);
        near("tf32_gemm_wide", out, want, terms);
    }
}

// Columns' sums of two parts in several rounds of two warps.
static void sums() {
    const u32 rows = 150, cols = 40;
    const Values d = numbers(2 * rows * cols), by = numbers(2 * rows * cols), acc = numbers(cols), ones(rows, 1.0f);
    for (const bool multiplied : {false, true}) {
        Values out(cols), want(cols), products = d;
        for (u32 i = 0; multiplied && i < d.size(); i++) products[i] = d[i] * by[i];
        // The second half first.
        const u32 second = rows * cols;
        for (u32 i = 0; i < cols; i++)
            want[i] = acc[i] + dot(rows, &products[second + i], cols, ones.data(), 1) + dot(rows, &products[i], cols, ones.data(), 1);
        start("column_sums", 2, 64, 64, false, ColumnSumArgs{&d[second], multiplied ? &by[second] : nullptr, acc.data(), out.data(), nullptr, rows, cols, cols, 1, 2, -(int)rows});
        same("column_sums", out, want);
    }
}

// One step's kernels against the exact ones. What a state is off by is less than what a gate's sum is, since no slope is
// greater than 1; of gradients, which are products of few factors below 1, the same is asked.
static void fast_steps() {
    const u32 hidden = 37, batch = 19, place = batch * hidden;
    const Values z = numbers(4 * place), u = numbers(4 * hidden * hidden), h = numbers(place), c = numbers(place), dy = numbers(place);
    const CellOptions cell{0, 0, 0, 0.0f};
    const Values bound(4 * place, hidden);
    Values h2[2], c2[2], gates[2], dz[2], dh[2], dc[2];
    for (int fast = 0; fast < 2; fast++) {
        h2[fast] = c2[fast] = dh[fast] = dc[fast] = Values(place), gates[fast] = Values(4 * place), dz[fast] = Values(4 * place);
        const ForwardStepArgs step{z.data(), u.data(), h.data(), c.data(), nullptr, h2[fast].data(), c2[fast].data(), nullptr, gates[fast].data(), nullptr, batch, batch - 1, hidden, hidden, cell};
        if (fast) start("tf32_forward_step", 5, 256, 96 * 72, false, step);
        else start("forward_step_small", 20, 64, tile_floats<SmallStepTile>(), false, step);
        const BackwardStepArgs back{z.data(), gates[0].data(), u.data(), nullptr, dy.data(), gates[0].data(), c.data(), c2[0].data(), nullptr, nullptr, dh[fast].data(), dc[fast].data(), dz[fast].data(), nullptr, nullptr, nullptr, batch, batch, batch - 1, hidden, hidden, 0, cell, GateBounds()};
        if (fast) start("tf32_backward_step", 2, 256, 96 * 72, false, back);
        else start("backward_step_small", 6, 64, tile_floats<SmallTile>(), false, back);
    }
    near("tf32_forward_step: h", h2[1], h2[0], bound), near("tf32_forward_step: c", c2[1], c2[0], bound);
    near("tf32_backward_step: dz", dz[1], dz[0], bound), near("tf32_backward_step: dh", dh[1], dh[0], Values(place, 4.0f * hidden));
}

// A layer over a few steps, by a kernel a step and by one kernel, forward and back.
static void layer(bool reverse, bool lengths, Kind kind) {
    // Rows and threads that do not divide one another, so that no thread finds only what it wrote itself.
    const bool projects = kind == PROJECTED, dense = kind == DENSE;
    // Words that can't be read by fours, that can, and where blocks of all rows lie one after another.
    // The batch is joined in two parts, or at once; rows are summed two at a time.
    const u32 hidden = lengths ? (kind == STANDARD ? 64 : 40) : 37, batch = 4, steps = 3, units = 9, rows = reverse ? 4 : 3, part = 2, blocks = (hidden + units - 1) / units;
    const u32 state = projects ? hidden - (lengths ? 4 : 2) : hidden, features = projects ? (state + blocks - 1) / blocks : units;
    const Values z = numbers(steps * batch * 4 * hidden), u = numbers(4 * hidden * state), p = numbers(3 * hidden);
    const Values w = numbers(state * hidden), h0 = numbers(batch * state), c0 = numbers(batch * hidden);
    const Values dy = numbers(steps * batch * state);
    const std::vector<u32> active = lengths ? std::vector<u32>{4, 2, 0} : std::vector<u32>(steps, batch);
    const float *peephole = kind == DIAGONAL ? p.data() : nullptr, *w_hr = projects ? w.data() : nullptr;
    const CellOptions cell{dense, 0, 1, 0.75f};
    const GateBounds bounds{sigmoid(-0.75f), sigmoid(0.75f), lstm_tanh(-0.75f), lstm_tanh(0.75f)};
    const size_t wide = batch * hidden, narrow = batch * state; // a step's cell states, and its h

    Values h((steps + 1) * narrow), c((steps + 1) * wide), y(steps * narrow), gates(4 * steps * wide), operand(wide);
    const u32 first = reverse ? steps : 0;
    std::copy(h0.begin(), h0.end(), h.begin() + first * narrow);
    std::copy(c0.begin(), c0.end(), c.begin() + first * wide);
    for (u32 n = 0; n < steps; n++) {
        const u32 t = reverse ? steps - 1 - n : n, from = reverse ? t + 1 : t, to = reverse ? t : t + 1;
        float *h_new = &h[to * narrow], *y_new = &y[t * narrow];
        const ForwardStepArgs args{&z[t * 4 * wide], u.data(), &h[from * narrow], &c[from * wide], peephole, projects ? nullptr : h_new, &c[to * wide], projects ? nullptr : y_new, &gates[t * 4 * wide], projects ? operand.data() : nullptr, batch, active[t], hidden, state, cell};
        start("forward_step_small", (4 * hidden + 15) / 16, 64, tile_floats<SmallStepTile>(), false, args);
        const ProjectionArgs project{operand.data(), w_hr, &h[from * narrow], h_new, y_new, batch, active[t], hidden, state};
        if (projects) start("forward_projection_small", (state + 15) / 16, 64, tile_floats<SmallTile>(), false, project);
    }
    const size_t depth = depth_blocks(hidden); // of h as well
    const auto shared = [&](size_t fours, size_t blocks) {
        return (projects ? rows : 2 * part) * blocks * PITCH + (projects ? 1 : 2) * rows * 4 * fours + batch * (units + features);
    };
    const float empty = from_bits(~0u);
    Values y2(y.size(), empty), passed(steps * wide, empty), h2(h.size()), c2(c.size()), gates2(gates.size()), h_last(narrow), c_last(wide);
    const ForwardSequenceArgs one{z.data(), u.data(), h0.data(), c0.data(), peephole, w_hr, y2.data(), passed.data(), h2.data(), c2.data(), gates2.data(), h_last.data(), c_last.data(), active.data(), steps, batch, hidden, units, rows, reverse, state, features, part, units, cell};
    const size_t fours = units * depth, fours_back = std::max(4 * depth * ((features + 3) / 4), projects ? fours : 0);
    // Of two groups that share out the rows, and threads in eights.
    const auto threads = [](size_t fours) { return unsigned(2 * fours + 7) / 8 * 8; };
    start(projects ? "persistent_projected_forward" : "persistent_forward", blocks, threads(fours), shared(fours, depth), true, one);
    const u32 last = reverse ? 0 : steps;
    same("all steps: y", y2, y), same("all steps: h", h2, h), same("all steps: c", c2, c), same("all steps: gates", gates2, gates);
    same("all steps: last h", h_last, Values(&h[last * narrow], &h[last * narrow] + narrow));
    same("all steps: last c", c_last, Values(&c[last * wide], &c[last * wide] + wide));

    // Two clusters, the second with one sequence; some units' weights in shared memory.
    const u32 size = 2, most = (hidden + 1) / 2, held = most - most / 3, held_back = (most + 3) / 4 - 2, in_cluster = 3;
    const auto cluster_floats = [&](size_t blocks, size_t fours, size_t held) {
        return in_cluster * (2 * blocks * PITCH + 4 * blocks * fours) + (fours - held) * blocks * LSTM_BLOCK * 4;
    };
    if (!projects) {
        Values y3(y.size()), h3(h.size()), c3(c.size()), gates3(gates.size()), h_last3(narrow), c_last3(wide);
        const ForwardSequenceArgs clusters{z.data(), u.data(), h0.data(), c0.data(), peephole, nullptr, y3.data(), nullptr, h3.data(), c3.data(), gates3.data(), h_last3.data(), c_last3.data(), active.data(), steps, batch, hidden, most, in_cluster, reverse, state, most, in_cluster, held, cell};
        start("cluster_forward", 2 * size, in_cluster * most, cluster_floats(depth, most, held), false, clusters, size);
        same("cluster: y", y3, y), same("cluster: last h", h_last3, h_last), same("cluster: last c", c_last3, c_last);
        same("cluster: h", h3, h), same("cluster: c", c3, c), same("cluster: gates", gates3, gates);
    }

    Values dh = numbers(narrow), dc = numbers(wide), dz(4 * steps * wide), dp(steps * narrow), m(steps * wide);
    Values dh2 = dh, dc2 = dc, dh3 = dh, dc3 = dc, dz2(dz.size(), empty), dz3(dz.size()), dp2(dp.size(), empty), m2(m.size()), sums(4 * narrow);
    for (u32 n = 0; n <= steps; n++) {
        const u32 t = n == steps ? 0 : reverse ? n : steps - 1 - n, visited = n == 0 ? 0 : reverse ? n - 1 : steps - n;
        const bool end = n == steps;
        const u32 from = reverse ? t + 1 : t, to = reverse ? t : t + 1;
        const BackwardStepArgs args{&dz[visited * 4 * wide], &gates[visited * 4 * wide], u.data(), w_hr, &dy[t * narrow], &gates[t * 4 * wide], &c[from * wide], &c[to * wide], &h[to * narrow], peephole, dh.data(), dc.data(), end ? nullptr : &dz[t * 4 * wide], projects && !end ? &dp[t * narrow] : nullptr, projects && !end ? &m[t * wide] : nullptr, sums.data(), batch, end ? 0 : active[t], n == 0 ? 0 : active[visited], hidden, state, 0, cell, bounds};
        if (lengths) {
            // The gates' products apart.
            if (n > 0) start("backward_gate_products", 4, 256, tile_floats<MediumTile>(), false, args);
            start(projects ? "backward_state_combine" : "backward_step_combine", (state + 31) / 32, 256, 0, false, args);
        } else {
            start(projects ? "backward_state_small" : "backward_step_small", (state + 15) / 16, 64, tile_floats<SmallTile>(), false, args);
        }
        if (projects && !end) start("backward_units_small", (hidden + 15) / 16, 64, tile_floats<SmallTile>(), false, args);
    }
    const BackwardSequenceArgs back{u.data(), dy.data(), gates.data(), h.data(), c.data(), peephole, w_hr, dh2.data(), dc2.data(), dz2.data(), dp2.data(), m2.data(), active.data(), steps, batch, hidden, units, rows, reverse, state, features, part, units, cell, bounds};
    start(projects ? "persistent_projected_backward" : "persistent_backward", blocks, threads(fours_back), shared(fours_back, 4 * depth), true, back);
    same("all steps back: dz", dz2, dz), same("all steps back: dh", dh2, dh), same("all steps back: dc", dc2, dc);
    if (!projects) {
        const BackwardSequenceArgs clusters{u.data(), dy.data(), gates.data(), h.data(), c.data(), peephole, nullptr, dh3.data(), dc3.data(), dz3.data(), nullptr, nullptr, active.data(), steps, batch, hidden, most, in_cluster, reverse, state, most, in_cluster, held_back, cell, bounds};
        start("cluster_backward", 2 * size, in_cluster * most, cluster_floats(4 * depth, (most + 3) / 4, held_back), false, clusters, size);
        same("cluster back: dz", dz3, dz), same("cluster back: dh", dh3, dh), same("cluster back: dc", dc3, dc);
    }
    if (projects) same("all steps back: projected", dp2, dp), same("all steps back: operand", m2, m);
}

int main(int argc, char **argv) {
    const std::string what = argc > 1 ? argv[1] : "";
    if (what == "release" || what == "no-release") {
        u32 data = 0, flag = 0;
        start("pass", 2, 1, 0, true, PassArgs{&data, &flag, what == "release", 0});
        return failed;
    }
    if (what == "overflow") {
        start("overflow", 1, 32, 32, false, OverflowArgs{1, 0});
        return failed;
    }
    if (what == "divergence" || what == "lane") {
        start(what.c_str(), 1, 32, 32, false, OverflowArgs{7, 0});
        return failed;
    }
    shim::collecting = argc == 1;
    if (argc == 3) shim::planted = {argv[1], std::atoi(argv[2])};
    for (seed = 0; seed < 3; seed++) {
        products(), sums();
        fragments(), fast_products(), fast_steps();
        // Every kind; with a planted fault, fewer directions and lengths.
        for (int k = 0; k < 16; k++)
            if (argc != 3 || k % 5 == 0 || k == 12) layer(k & 1, k & 2, Kind(k / 4));
    }
    for (unsigned i = 0; i < shim::site_count; i++) std::printf("barrier %s %d\n", shim::sites[i].file, shim::sites[i].line);
    std::puts(failed ? "FAILED" : "all as it should be");
    return failed;
}
