// CUDA threads as fibers, and the operations that synchronize them. Included by executor.cpp only.
#pragma once
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sys/mman.h>
#include <vector>

#if UNDER_TSAN
extern "C" {
void *__tsan_get_current_fiber(void);
void *__tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void *fiber);
void __tsan_switch_to_fiber(void *fiber, unsigned flags);
void __tsan_acquire(void *at);
void __tsan_release(void *at);
}
#else
static inline void __tsan_acquire(void *) {}
static inline void __tsan_release(void *) {}
#endif

// Switches stacks: pushes the callee-saved registers, stores the stack pointer in `*save`, and restores the registers
// from the stack `load`.
extern "C" void lstm_cuda_sim_switch(void **save, void *load);
asm(".text\n.globl lstm_cuda_sim_switch\n.type lstm_cuda_sim_switch,@function\nlstm_cuda_sim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n"
    ".size lstm_cuda_sim_switch,.-lstm_cuda_sim_switch\n");

namespace executor {

const Kernel *Kernel::all = nullptr;
thread_local ThreadIndex thread_index;
thread_local dim3 block_size, grid_size;
thread_local float *shared_memory;
thread_local unsigned cluster_size;

// Bytes of a fiber's stack. Sanitizers need large stack frames.
static const size_t STACK = 256 << 10;

enum class State : uint8_t { Ready, Waiting, Polling, Done };

// A barrier. Its generation increases when all threads have arrived.
struct Barrier {
    unsigned arrived = 0, generation = 0;
    uint64_t order[2]; // addresses for ThreadSanitizer's acquire and release, for even and odd generations
};

// The operands of a warp's `mma`, by lane. They are double-buffered: a lane may write the next operands while others
// still read these.
struct Warp {
    Barrier barrier;
    float a[2][32][4], b[2][32][2];
};

struct Block;

struct Fiber {
    void *sp = nullptr;
    char *stack = nullptr;
    void *tsan = nullptr; // ThreadSanitizer's handle of this fiber
    Block *block = nullptr;
    ThreadIndex index;
    State state = State::Ready;
    const Barrier *waits_for = nullptr;
    unsigned generation = 0;         // the generation of `waits_for` that this fiber waits to end
    unsigned cluster_generation = 0; // the generation of the cluster's barrier when this fiber arrived
    int line = 0;                    // the source line where this fiber waits
};

// Fibers access the fields directly: functions of the standard library would be instrumented by ThreadSanitizer.
struct Block {
    Barrier barrier;
    Barrier *cluster_barrier = nullptr; // shared by the blocks of the cluster
    unsigned cluster_rank = 0;
    unsigned threads = 0;
    std::vector<Fiber> fibers;
    std::unique_ptr<float4[]> shared_memory;
    std::unique_ptr<Warp[]> warp_storage;
    Warp *warps = nullptr; // the elements of `warp_storage`
    unsigned alive = 0;    // fibers that are not done
};

// The current launch.
static thread_local Fiber *current_fiber;
static thread_local void *scheduler_sp;
static thread_local const Kernel *kernel;
static thread_local const void *kernel_args;
// Addresses for ThreadSanitizer: the launch happens before all threads start, and all threads end before the launch
// returns.
static uint64_t launch_order, end_order;
#if UNDER_TSAN
static thread_local void *scheduler_tsan;
#endif

// The place of a barrier in the sources.
struct CallSite {
    const char *file;
    int line;
};
// For sanitize.cpp: a barrier that is skipped, so that the sanitizer must report a race, and all barriers that were
// executed.
static CallSite skipped_barrier = {nullptr, 0};
static CallSite barriers[64];
static unsigned barrier_count = 0;
static bool collect_barriers = false;

NOT_SANITIZED static bool is_at(const CallSite &site, const char *file, int line) {
    if (site.line != line || !site.file) return false;
    const char *a = site.file, *b = file;
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

NOT_SANITIZED static void collect_barrier(const char *file, int line) {
    for (unsigned i = 0; i < barrier_count; i++)
        if (is_at(barriers[i], file, line)) return;
    if (barrier_count < 64) barriers[barrier_count++] = {file, line};
}

// Unused stacks of earlier fibers. Allocating stacks would dominate the time of small launches.
struct StackPool {
    std::vector<char *> unused;
    ~StackPool() {
        for (char *stack : unused) munmap(stack, STACK);
    }
    // Null if there is no memory.
    char *take() {
        if (unused.empty()) {
            void *stack =
                mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            return stack == MAP_FAILED ? nullptr : static_cast<char *>(stack);
        }
        char *stack = unused.back();
        unused.pop_back();
        return stack;
    }
};
static thread_local StackPool stacks;
#if UNDER_TSAN
// ThreadSanitizer's fibers of earlier launches, which are slow to create. Reuse is correct, since a launch happens
// after the end of all earlier ones.
static thread_local std::vector<void *> unused_tsan_fibers;
#endif

NOT_SANITIZED static void switch_to_scheduler() {
    Fiber *fiber = current_fiber;
#if UNDER_TSAN
    __tsan_switch_to_fiber(scheduler_tsan, 1);
#endif
    lstm_cuda_sim_switch(&fiber->sp, scheduler_sp);
}

// Suspends the fiber until the barrier's generation is no longer `generation`.
NOT_SANITIZED static void wait(const Barrier &barrier, unsigned generation, int line) {
    Fiber *fiber = current_fiber;
    fiber->state = State::Waiting;
    fiber->waits_for = &barrier;
    fiber->generation = generation;
    fiber->line = line;
    switch_to_scheduler();
}

NOT_SANITIZED void sync_block(const char *file, int line) {
    if (collect_barriers) collect_barrier(file, line);
    if (is_at(skipped_barrier, file, line)) return;
    Fiber *fiber = current_fiber;
    Barrier &barrier = fiber->block->barrier;
    const unsigned generation = barrier.generation;
    __tsan_release(&barrier.order[generation & 1]);
    if (++barrier.arrived == fiber->block->threads) {
        barrier.arrived = 0;
        barrier.generation = generation + 1;
    } else {
        wait(barrier, generation, line);
    }
    __tsan_acquire(&barrier.order[generation & 1]);
}

NOT_SANITIZED unsigned cluster_rank() { return current_fiber->block->cluster_rank; }

NOT_SANITIZED float *remote_address(float *p, unsigned rank) {
    Block *block = current_fiber->block - current_fiber->block->cluster_rank + rank;
    // On a GPU, access to the shared memory of a block that has ended is undefined behavior.
    if (rank >= cluster_size || !block->alive) {
        std::fprintf(stderr,
                     "access to shared memory of block %u of a cluster of %u, which does not exist or has ended\n",
                     rank, cluster_size);
        std::abort();
    }
    return reinterpret_cast<float *>(block->shared_memory.get()) + (p - shared_memory);
}

NOT_SANITIZED void arrive_cluster() {
    Fiber *fiber = current_fiber;
    Barrier &barrier = *fiber->block->cluster_barrier;
    fiber->cluster_generation = barrier.generation;
    __tsan_release(&barrier.order[barrier.generation & 1]);
    if (++barrier.arrived == fiber->block->threads * cluster_size) barrier.arrived = 0, barrier.generation++;
}

NOT_SANITIZED void wait_cluster(const char *file, int line) {
    if (collect_barriers) collect_barrier(file, line);
    if (is_at(skipped_barrier, file, line)) return;
    Fiber *fiber = current_fiber;
    Barrier &barrier = *fiber->block->cluster_barrier;
    const unsigned generation = fiber->cluster_generation;
    if (barrier.generation == generation) wait(barrier, generation, line);
    __tsan_acquire(&barrier.order[generation & 1]);
}

// The part of an operand that tensor cores use: its upper 19 bits. NaN stays NaN.
NOT_SANITIZED static float truncate_to_tf32(float v) {
    return v == v ? __uint_as_float(__float_as_uint(v) & 0xffffe000u) : v;
}

// Elements (row, column) of lane l, with g = l / 4 and t = l % 4. Left operand: (g, t), (g + 8, t), (g, t + 4), (g + 8,
// t + 4). Right operand: (t, g), (t + 4, g). Sums: (g, 2 t) and (g, 2 t + 1) in `top`, (g + 8, 2 t) and (g + 8, 2 t +
// 1) in `bottom`.
NOT_SANITIZED void warp_mma(float *top, float *bottom, const float *a, const float *b, int line) {
    Fiber *fiber = current_fiber;
    const unsigned lane = fiber->index.thread.x % 32;
    Warp &warp = fiber->block->warps[fiber->index.thread.x / 32];
    Barrier &barrier = warp.barrier;
    const unsigned generation = barrier.generation, buffer = generation & 1;
    for (int i = 0; i < 4; i++) warp.a[buffer][lane][i] = truncate_to_tf32(a[i]);
    for (int i = 0; i < 2; i++) warp.b[buffer][lane][i] = truncate_to_tf32(b[i]);
    if (++barrier.arrived == 32) barrier.arrived = 0, barrier.generation++;
    else wait(barrier, generation, line);
    for (unsigned half = 0; half < 2; half++)
        for (unsigned side = 0; side < 2; side++) {
            const unsigned row = lane / 4, col = lane % 4 * 2 + side;
            float *sum = (half ? bottom : top) + side;
            for (unsigned k = 0; k < 8; k++) {
                const float left = warp.a[buffer][row * 4 + k % 4][k / 4 * 2 + half];
                *sum = __builtin_fmaf(left, warp.b[buffer][col * 4 + k % 4][k / 4], *sum);
            }
        }
}

NOT_SANITIZED void pause() {
    current_fiber->state = State::Polling;
    switch_to_scheduler();
}

} // namespace executor
