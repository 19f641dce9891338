// Runs kernels on the CPU: see cuda.h. One translation unit with the kernels themselves, so that they are inlined.
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#ifdef LSTM_PTX // as NVRTC compiled them, see tests/driver/ptx.rs
#include "../ptx.h"
#include "lstm_ptx.cpp"
#else
#include "../../../lstm-cuda/kernels/constants.cuh"
#include "../../../lstm-cuda/kernels/args.cuh"
#include "../../../lstm-cuda/kernels/arithmetic.cuh"
#include "../../../lstm-cuda/kernels/tile.cuh"
#include "../../../lstm-cuda/kernels/primitives.cu"
#include "../../../lstm-cuda/kernels/forward_step.cu"
#include "../../../lstm-cuda/kernels/backward_step.cu"
#include "../../../lstm-cuda/kernels/tf32.cu"
#include "../../../lstm-cuda/kernels/sequence.cuh"
#include "../../../lstm-cuda/kernels/persistent_forward.cu"
#include "../../../lstm-cuda/kernels/persistent_backward.cu"
#include "../../../lstm-cuda/kernels/persistent_projected.cu"
#include "../../../lstm-cuda/kernels/cluster.cu"
#endif

#include "fibers.h"

namespace shim {

SHIM_HIDDEN static void entry() {
    __tsan_acquire(&launch_order);
    kernel->run(kernel_args);
    __tsan_release(&end_order);
    current->state = State::Done;
    to_scheduler();
    std::abort();
}

// False if there is no memory for its stack.
SHIM_HIDDEN static bool resume(Fiber &fiber) {
    if (!fiber.stack) {
        fiber.stack = stacks.take();
        if (!fiber.stack) return false;
        // Six registers, then the return to `entry`, whose own return address must be 8 off a multiple of 16.
        void **sp = reinterpret_cast<void **>(fiber.stack + STACK - 8);
        *--sp = reinterpret_cast<void *>(entry);
        fiber.sp = sp - 6;
#if SHIM_TSAN
        if (spare_fibers.empty()) spare_fibers.push_back(__tsan_create_fiber(0));
        fiber.tsan = spare_fibers.back();
        spare_fibers.pop_back();
        __tsan_release(&launch_order); // what it finds was made before it starts
#endif
    }
    current = &fiber;
    place = fiber.place;
    shared = reinterpret_cast<float *>(fiber.block->shared.get());
    fiber.state = State::Ready;
#if SHIM_TSAN
    __tsan_switch_to_fiber(fiber.tsan, 1);
#endif
    lstm_shim_switch(&scheduler_sp, fiber.sp);
    if (fiber.state == State::Done) {
        fiber.block->alive--;
#if !SHIM_TSAN // which would take the next thread's stack for this one's: it is given back at the end
        stacks.spare.push_back(fiber.stack);
        fiber.stack = nullptr;
#endif
    }
    return true;
}

// The order in which blocks and threads take their turns: as they are numbered, backwards, or as the seed says.
struct Order {
    unsigned seed;
    uint64_t state;
    explicit Order(unsigned seed) : seed(seed), state(seed * 0x9e3779b97f4a7c15ull + 1) {}
    unsigned draw(unsigned n) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        return static_cast<unsigned>(state >> 33) % n;
    }
    void fill(std::vector<unsigned> &order) {
        const unsigned n = static_cast<unsigned>(order.size());
        for (unsigned i = 0; i < n; i++) order[i] = seed == 1 ? n - 1 - i : i;
        if (seed > 1)
            for (unsigned i = n; i > 1; i--) std::swap(order[i - 1], order[draw(i)]);
    }
};

// Vectors behind shared memory that nobody may write. AddressSanitizer sees for itself.
#ifdef __SANITIZE_ADDRESS__
static constexpr size_t GUARD = 0;
#else
static constexpr size_t GUARD = 4;
#endif

struct Launch {
    unsigned grid, threads;
    size_t shared_bytes;
    Order order;
    std::string error;

    bool prepare(Block &block, unsigned index, Barrier &cluster) {
        const size_t vectors = (shared_bytes + 15) / 16;
        if (!block.shared) block.shared.reset(new (std::nothrow) float4[vectors + GUARD]);
        if (!block.shared) return fail("no memory for shared memory");
        const float poison = __uint_as_float(0x7fc0deadu);
        for (size_t i = 0; i < vectors + GUARD; i++) block.shared[i] = {poison, poison, poison, poison};
        const unsigned warps = (threads + 31) / 32;
        if (!block.warps) block.warps.reset(new (std::nothrow) Warp[warps]);
        if (!block.warps) return fail("no memory for warps");
        for (unsigned w = 0; w < warps; w++) block.warps[w].barrier = Barrier();
        block.warp = block.warps.get();
        block.barrier = Barrier();
        block.cluster = &cluster;
        block.rank = index % cluster_blocks;
        block.threads = block.alive = threads;
        block.fibers.resize(threads);
        for (unsigned t = 0; t < threads; t++) {
            Fiber &fiber = block.fibers[t];
            fiber = Fiber();
            fiber.block = &block;
            fiber.place = {{t, 0, 0}, {index, 0, 0}};
        }
        return true;
    }

    // Whether a block left alone what lies behind its shared memory.
    bool guarded(const Block &block) const {
        const size_t vectors = (shared_bytes + 15) / 16;
        for (size_t i = vectors; i < vectors + GUARD; i++) {
            const float4 v = block.shared[i];
            for (const float word : {v.x, v.y, v.z, v.w})
                if (__float_as_uint(word) != 0x7fc0deadu) return false;
        }
        return true;
    }

    // What threads still have, above all those that did not end.
    void release(std::vector<Block> &blocks) {
        for (Block &block : blocks)
            for (Fiber &fiber : block.fibers) {
                if (fiber.stack) stacks.spare.push_back(fiber.stack);
#if SHIM_TSAN
                if (fiber.tsan) spare_fibers.push_back(fiber.tsan);
#endif
            }
    }

    bool fail(std::string why) {
        error = std::move(why);
        return false;
    }

    // Runs some blocks, all of them live at once.
    SHIM_HIDDEN bool run(std::vector<Block> &blocks) {
        std::vector<unsigned> block_order(blocks.size()), thread_order(threads);
        order.fill(block_order), order.fill(thread_order);
        for (unsigned idle = 0;;) {
            bool alive = false, progress = false;
            if (order.seed > 1) order.fill(block_order);
            for (unsigned b : block_order) {
                Block &block = blocks[b];
                for (bool again = block.alive > 0; again;) {
                    again = false;
                    if (order.seed > 1) std::swap(thread_order[order.draw(threads)], thread_order[order.draw(threads)]);
                    for (unsigned t : thread_order) {
                        Fiber &fiber = block.fibers[t];
                        const bool waits =
                            fiber.state == State::Waiting && fiber.waits_for->generation == fiber.generation;
                        if (fiber.state == State::Done || waits) continue;
                        const bool spun = fiber.state == State::Spinning;
                        if (!resume(fiber)) return fail("no memory for a thread's stack");
                        if (fiber.state != State::Spinning) again = progress = true;
                        else if (!spun) progress = true;
                    }
                }
                alive |= block.alive > 0;
            }
            if (!alive) return true;
            idle = progress ? 0 : idle + 1;
            if (idle > 4) return fail(stuck(blocks));
        }
    }

    std::string stuck(std::vector<Block> &blocks) {
        std::string text = "no thread can go on:";
        unsigned shown = 0;
        for (Block &block : blocks)
            for (Fiber &fiber : block.fibers) {
                if (fiber.state == State::Done || shown++ >= 4) continue;
                text += " block " + std::to_string(fiber.place.block.x) + " thread " + std::to_string(fiber.place.thread.x);
                text += fiber.state == State::Spinning ? " waits for a word;"
                                                       : " waits in line " + std::to_string(fiber.line) + ";";
            }
        return text;
    }
};

// Runs a grid: blocks (or if there are any, clusters of so many blocks) one after another, or if they are `resident` all
// at once. Empty: it went well.
SHIM_HIDDEN std::string launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes, bool resident,
                               unsigned cluster, unsigned seed, const void *args, size_t args_size) {
    const Kernel *found = Kernel::all;
    while (found && std::strcmp(found->name, name)) found = found->next;
    if (!found) return std::string("no kernel is called ") + name;
    if (found->args_size != args_size) return "arguments of " + std::to_string(args_size) + " bytes, not " + std::to_string(found->args_size);
    if (!grid || !threads || threads > found->max_threads) return "a grid of " + std::to_string(grid) + " blocks of " + std::to_string(threads) + " threads";
    cluster_blocks = cluster ? cluster : 1;
    if (grid % cluster_blocks) return "a grid of " + std::to_string(grid) + " blocks in clusters of " + std::to_string(cluster);
    kernel = found, kernel_args = args;
    grid_size = {grid, 1, 1}, block_size = {threads, 1, 1};
#if SHIM_TSAN
    scheduler_tsan = __tsan_get_current_fiber();
#endif
    Launch launch{grid, threads, shared_bytes, Order(seed), {}};
    // Blocks that share memory and run one after another would look as if they were ordered.
    const unsigned together = resident || SHIM_TSAN ? grid : cluster_blocks;
    std::vector<unsigned> indices(grid / together);
    launch.order.fill(indices);
    std::vector<Block> blocks(together);
    std::vector<Barrier> barriers(together / cluster_blocks);
    bool ok = true;
    for (unsigned index : indices) {
        for (Barrier &barrier : barriers) barrier = Barrier();
        for (unsigned i = 0; i < together && ok; i++)
            ok = launch.prepare(blocks[i], index * together + i, barriers[i / cluster_blocks]);
        ok = ok && launch.run(blocks);
        for (const Block &block : blocks) ok = ok && (launch.guarded(block) || launch.fail("a write beyond shared memory"));
        if (!ok) break;
    }
    __tsan_acquire(&end_order);
    launch.release(blocks);
    return ok ? std::string() : launch.error;
}

} // namespace shim

// For Rust: 0 if it went well, else the reason is in `why`.
extern "C" int lstm_cuda_sim_launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes, int resident,
                                     unsigned cluster, unsigned seed, const void *args, size_t args_size, char *why, size_t why_size) {
    const std::string error = shim::launch(name, grid, threads, shared_bytes, resident, cluster, seed, args, args_size);
    std::snprintf(why, why_size, "%s", error.c_str());
    return !error.empty();
}
