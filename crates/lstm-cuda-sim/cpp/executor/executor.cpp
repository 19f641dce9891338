// Compiles the kernels for the CPU and runs them: see cuda.h. The kernels are included, so that the functions that they
// call are inlined.
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#ifdef LSTM_PTX // the kernels as NVRTC compiled them, translated to C++ by tests/driver/ptx.rs
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

namespace executor {

// Where a fiber starts.
NOT_SANITIZED static void run_fiber() {
    __tsan_acquire(&launch_order);
    kernel->run(kernel_args);
    __tsan_release(&end_order);
    current_fiber->state = State::Done;
    switch_to_scheduler();
    std::abort(); // a fiber that is done is not resumed
}

// Runs a fiber until it waits, polls or ends. Returns false if there is no memory for its stack.
NOT_SANITIZED static bool resume(Fiber &fiber) {
    if (!fiber.stack) {
        fiber.stack = stacks.take();
        if (!fiber.stack) return false;
        // The initial stack: six registers and the address of `run_fiber`, to which `lstm_cuda_sim_switch` returns. In
        // `run_fiber`, the stack pointer must be 8 bytes off a multiple of 16, as after a call.
        void **sp = reinterpret_cast<void **>(fiber.stack + STACK - 8);
        *--sp = reinterpret_cast<void *>(run_fiber);
        fiber.sp = sp - 6;
#if UNDER_TSAN
        if (unused_tsan_fibers.empty()) unused_tsan_fibers.push_back(__tsan_create_fiber(0));
        fiber.tsan = unused_tsan_fibers.back();
        unused_tsan_fibers.pop_back();
        __tsan_release(&launch_order); // everything before the launch happens before the fiber starts
#endif
    }
    current_fiber = &fiber;
    thread_index = fiber.index;
    shared_memory = reinterpret_cast<float *>(fiber.block->shared_memory.get());
    fiber.state = State::Ready;
#if UNDER_TSAN
    __tsan_switch_to_fiber(fiber.tsan, 1);
#endif
    lstm_cuda_sim_switch(&scheduler_sp, fiber.sp);
    if (fiber.state == State::Done) {
        fiber.block->alive--;
#if !UNDER_TSAN // ThreadSanitizer would confuse threads that share a stack: there it is reused only after the launch
        stacks.unused.push_back(fiber.stack);
        fiber.stack = nullptr;
#endif
    }
    return true;
}

// The order in which blocks and threads are scheduled: 0 is ascending, 1 descending, any other number is the seed of a
// pseudorandom order.
struct Schedule {
    unsigned number;
    uint64_t random_state;
    explicit Schedule(unsigned number) : number(number), random_state(number * 0x9e3779b97f4a7c15ull + 1) {}
    bool is_random() const { return number > 1; }
    // A pseudorandom number below n, by xorshift.
    unsigned random(unsigned n) {
        random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
        return static_cast<unsigned>(random_state >> 33) % n;
    }
    // Fills a vector with the indices from 0 in scheduled order.
    void fill(std::vector<unsigned> &order) {
        const unsigned n = static_cast<unsigned>(order.size());
        for (unsigned i = 0; i < n; i++) order[i] = number == 1 ? n - 1 - i : i;
        if (is_random())
            for (unsigned i = n; i > 1; i--) std::swap(order[i - 1], order[random(i)]);
    }
};

// `float4` elements after shared memory that kernels must not write. AddressSanitizer detects such writes without them.
#ifdef __SANITIZE_ADDRESS__
static constexpr size_t GUARD = 0;
#else
static constexpr size_t GUARD = 4;
#endif
// The NaN that fills shared memory at first.
static constexpr u32 UNINITIALIZED = 0x7fc0deadu;

struct Launch {
    unsigned threads;
    size_t shared_bytes;
    Schedule schedule;
    std::string error;

    size_t shared_vectors() const { return (shared_bytes + 15) / 16; }

    // Makes a block ready to run: its shared memory, barriers and fibers.
    bool prepare(Block &block, unsigned index, Barrier &cluster_barrier) {
        const size_t vectors = shared_vectors() + GUARD;
        if (!block.shared_memory) block.shared_memory.reset(new (std::nothrow) float4[vectors]);
        if (!block.shared_memory) return fail("out of memory for shared memory");
        const float nan = __uint_as_float(UNINITIALIZED);
        for (size_t i = 0; i < vectors; i++) block.shared_memory[i] = {nan, nan, nan, nan};
        const unsigned warps = (threads + 31) / 32;
        if (!block.warp_storage) block.warp_storage.reset(new (std::nothrow) Warp[warps]);
        if (!block.warp_storage) return fail("out of memory for warps");
        for (unsigned w = 0; w < warps; w++) block.warp_storage[w].barrier = Barrier();
        block.warps = block.warp_storage.get();
        block.barrier = Barrier();
        block.cluster_barrier = &cluster_barrier;
        block.cluster_rank = index % cluster_size;
        block.threads = block.alive = threads;
        block.fibers.resize(threads);
        for (unsigned t = 0; t < threads; t++) {
            Fiber &fiber = block.fibers[t];
            fiber = Fiber();
            fiber.block = &block;
            fiber.index = {{t, 0, 0}, {index, 0, 0}};
        }
        return true;
    }

    // Whether the guard after the block's shared memory is unchanged.
    bool is_guard_intact(const Block &block) const {
        for (size_t i = shared_vectors(); i < shared_vectors() + GUARD; i++) {
            const float4 v = block.shared_memory[i];
            for (const float word : {v.x, v.y, v.z, v.w})
                if (__float_as_uint(word) != UNINITIALIZED) return false;
        }
        return true;
    }

    // Recycles what fibers still hold, in particular fibers that have not ended.
    void release(std::vector<Block> &blocks) {
        for (Block &block : blocks)
            for (Fiber &fiber : block.fibers) {
                if (fiber.stack) stacks.unused.push_back(fiber.stack);
#if UNDER_TSAN
                if (fiber.tsan) unused_tsan_fibers.push_back(fiber.tsan);
#endif
            }
    }

    // Sets the error; returns false.
    bool fail(std::string message) {
        error = std::move(message);
        return false;
    }

    // Runs blocks that are resident at the same time, until all have ended.
    NOT_SANITIZED bool run(std::vector<Block> &blocks) {
        std::vector<unsigned> block_order(blocks.size()), thread_order(threads);
        schedule.fill(block_order), schedule.fill(thread_order);
        for (unsigned rounds_without_progress = 0;;) {
            bool alive = false, progress = false;
            if (schedule.is_random()) schedule.fill(block_order);
            for (unsigned b : block_order) {
                Block &block = blocks[b];
                for (bool again = block.alive > 0; again;) {
                    again = false;
                    if (schedule.is_random())
                        std::swap(thread_order[schedule.random(threads)], thread_order[schedule.random(threads)]);
                    for (unsigned t : thread_order) {
                        Fiber &fiber = block.fibers[t];
                        const bool waits =
                            fiber.state == State::Waiting && fiber.waits_for->generation == fiber.generation;
                        if (fiber.state == State::Done || waits) continue;
                        const bool was_polling = fiber.state == State::Polling;
                        if (!resume(fiber)) return fail("out of memory for a thread's stack");
                        if (fiber.state != State::Polling) again = progress = true;
                        else if (!was_polling) progress = true;
                    }
                }
                alive |= block.alive > 0;
            }
            if (!alive) return true;
            rounds_without_progress = progress ? 0 : rounds_without_progress + 1;
            if (rounds_without_progress > 4) return fail(describe_deadlock(blocks));
        }
    }

    // Lists where up to four threads wait.
    std::string describe_deadlock(std::vector<Block> &blocks) {
        std::string text = "deadlock:";
        unsigned shown = 0;
        for (Block &block : blocks)
            for (Fiber &fiber : block.fibers) {
                if (fiber.state == State::Done || shown++ >= 4) continue;
                const ThreadIndex &at = fiber.index;
                text += " block " + std::to_string(at.block.x) + " thread " + std::to_string(at.thread.x);
                text += fiber.state == State::Polling ? " polls memory;"
                                                      : " waits in line " + std::to_string(fiber.line) + ";";
            }
        return text;
    }
};

// Runs a grid. All blocks of a cooperative launch are resident at the same time. Other launches run one block, or the
// blocks of one cluster, after another. `size_of_cluster` is 0 without clusters. Returns an error message, empty on
// success.
NOT_SANITIZED std::string launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes,
                                 bool cooperative, unsigned size_of_cluster, unsigned schedule, const void *args,
                                 size_t args_size) {
    const Kernel *found = Kernel::find(name);
    if (!found) return std::string("no kernel is named ") + name;
    if (found->args_size != args_size)
        return "expected " + std::to_string(found->args_size) + " bytes of arguments, got " + std::to_string(args_size);
    if (!grid || !threads || threads > found->max_threads)
        return "invalid launch of " + std::to_string(grid) + " blocks of " + std::to_string(threads) +
               " threads; a block can have " + std::to_string(found->max_threads);
    cluster_size = size_of_cluster ? size_of_cluster : 1;
    if (grid % cluster_size)
        return "a grid of " + std::to_string(grid) + " blocks is not divisible into clusters of " +
               std::to_string(cluster_size);
    kernel = found, kernel_args = args;
    grid_size = {grid, 1, 1}, block_size = {threads, 1, 1};
#if UNDER_TSAN
    scheduler_tsan = __tsan_get_current_fiber();
#endif
    Launch launch{threads, shared_bytes, Schedule(schedule), {}};
    // Under ThreadSanitizer all blocks are resident: blocks that ran one after another would seem to be synchronized.
    const unsigned resident = cooperative || UNDER_TSAN ? grid : cluster_size;
    std::vector<unsigned> indices(grid / resident);
    launch.schedule.fill(indices);
    std::vector<Block> blocks(resident);
    std::vector<Barrier> cluster_barriers(resident / cluster_size);
    bool ok = true;
    for (unsigned index : indices) {
        for (Barrier &barrier : cluster_barriers) barrier = Barrier();
        for (unsigned i = 0; i < resident && ok; i++)
            ok = launch.prepare(blocks[i], index * resident + i, cluster_barriers[i / cluster_size]);
        ok = ok && launch.run(blocks);
        for (const Block &block : blocks)
            ok = ok && (launch.is_guard_intact(block) || launch.fail("write beyond the end of shared memory"));
        if (!ok) break;
    }
    __tsan_acquire(&end_order);
    launch.release(blocks);
    return ok ? std::string() : launch.error;
}

} // namespace executor

// The same for Rust and for the simulated driver. Returns 0 on success. Otherwise writes the message to `error`.
extern "C" int lstm_cuda_sim_launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes,
                                    int cooperative, unsigned cluster_size, unsigned schedule, const void *args,
                                    size_t args_size, char *error, size_t error_size) {
    const std::string message =
        executor::launch(name, grid, threads, shared_bytes, cooperative, cluster_size, schedule, args, args_size);
    std::snprintf(error, error_size, "%s", message.c_str());
    return !message.empty();
}
