// CUDA's threads as fibers: what each of them is, and where they meet. Part of executor.cpp.
#pragma once
#include "cuda.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sys/mman.h>
#include <vector>

#if SHIM_TSAN
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

// Saves the registers that a function keeps and the stack, and takes up another's.
extern "C" void lstm_shim_switch(void **save, void *load);
asm(".text\n.globl lstm_shim_switch\n.type lstm_shim_switch,@function\nlstm_shim_switch:\n"
    "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
    "mov %rsp,(%rdi)\nmov %rsi,%rsp\n"
    "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\nret\n.size lstm_shim_switch,.-lstm_shim_switch\n");

namespace shim {

const Kernel *Kernel::all = nullptr;
thread_local Place place;
thread_local dim3 block_size, grid_size;
thread_local float *shared;
thread_local unsigned cluster_blocks;

// Sanitizers want much room.
static const size_t STACK = 256 << 10;

enum class State : uint8_t { Ready, Waiting, Spinning, Done };

struct Barrier {
    unsigned arrived = 0, generation = 0;
    uint64_t order[2]; // what ThreadSanitizer orders by, one for every other generation
};

// What a warp's lanes bring to a product. There are two places: who brings the next one's may be ahead of who still reads.
struct Warp {
    Barrier barrier;
    float a[2][32][4], b[2][32][2];
};

struct Block;

struct Fiber {
    void *sp = nullptr;
    char *stack = nullptr;
    void *tsan = nullptr;
    Block *block = nullptr;
    Place place;
    State state = State::Ready;
    const Barrier *waits_for = nullptr;
    unsigned generation = 0; // of what it waits for
    unsigned arrived = 0;    // and of its cluster's barrier when it arrived there
    int line = 0;
};

// Its fields are read by its fibers, so none of the library's functions may be needed for that: they are instrumented.
struct Block {
    Barrier barrier;
    Barrier *cluster = nullptr; // shared by the cluster's blocks
    unsigned rank = 0;          // in its cluster
    unsigned threads = 0;
    std::vector<Fiber> fibers;
    std::unique_ptr<float4[]> shared;
    std::unique_ptr<Warp[]> warps;
    Warp *warp = nullptr; // the first of them
    unsigned alive = 0;
};

// What a launch is about, for the fibers.
static thread_local Fiber *current;
static thread_local void *scheduler_sp;
static thread_local const Kernel *kernel;
static thread_local const void *kernel_args;
static uint64_t launch_order, end_order; // the launch is before every thread, every thread is before the end
#if SHIM_TSAN
static thread_local void *scheduler_tsan;
#endif

// A barrier that is left out, to see that a race is found, and call sites of barriers; see sanitize.cpp.
struct Site {
    const char *file;
    int line;
};
static Site planted = {nullptr, 0};
static Site sites[64];
static unsigned site_count = 0;
static bool collecting = false;

SHIM_HIDDEN static bool is_at(const Site &site, const char *file, int line) {
    if (site.line != line || !site.file) return false;
    const char *a = site.file, *b = file;
    while (*a && *a == *b) a++, b++;
    return *a == *b;
}

SHIM_HIDDEN static void collect(const char *file, int line) {
    for (unsigned i = 0; i < site_count; i++)
        if (is_at(sites[i], file, line)) return;
    if (site_count < 64) sites[site_count++] = {file, line};
}

// Stacks are kept: most launches are small.
struct Stacks {
    std::vector<char *> spare;
    ~Stacks() {
        for (char *stack : spare) munmap(stack, STACK);
    }
    char *take() {
        if (spare.empty()) {
            void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            return stack == MAP_FAILED ? nullptr : static_cast<char *>(stack);
        }
        char *stack = spare.back();
        spare.pop_back();
        return stack;
    }
};
static thread_local Stacks stacks;
#if SHIM_TSAN
// ThreadSanitizer's fibers of launches before, whose ends all later launches are ordered after. To make them is what costs.
static thread_local std::vector<void *> spare_fibers;
#endif

SHIM_HIDDEN static void to_scheduler() {
    Fiber *fiber = current;
#if SHIM_TSAN
    __tsan_switch_to_fiber(scheduler_tsan, 1);
#endif
    lstm_shim_switch(&fiber->sp, scheduler_sp);
}

SHIM_HIDDEN static void wait(const Barrier &barrier, unsigned generation, int line) {
    Fiber *fiber = current;
    fiber->state = State::Waiting;
    fiber->waits_for = &barrier;
    fiber->generation = generation;
    fiber->line = line;
    to_scheduler();
}

SHIM_HIDDEN void sync_block(const char *file, int line) {
    if (collecting) collect(file, line);
    if (is_at(planted, file, line)) return;
    Fiber *fiber = current;
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

SHIM_HIDDEN unsigned rank() { return current->block->rank; }

SHIM_HIDDEN float *at_peer(float *p, unsigned rank) {
    Block *peer = current->block - current->block->rank + rank;
    // On a device that is not defined.
    if (rank >= cluster_blocks || !peer->alive) {
        std::fprintf(stderr, "block %u of a cluster of %u is told of something, and isn't there\n", rank, cluster_blocks);
        std::abort();
    }
    return reinterpret_cast<float *>(peer->shared.get()) + (p - shared);
}

SHIM_HIDDEN void arrive_cluster() {
    Fiber *fiber = current;
    Barrier &barrier = *fiber->block->cluster;
    fiber->arrived = barrier.generation;
    __tsan_release(&barrier.order[barrier.generation & 1]);
    if (++barrier.arrived == fiber->block->threads * cluster_blocks) barrier.arrived = 0, barrier.generation++;
}

SHIM_HIDDEN void wait_cluster(const char *file, int line) {
    if (collecting) collect(file, line);
    if (is_at(planted, file, line)) return;
    Fiber *fiber = current;
    Barrier &barrier = *fiber->block->cluster;
    const unsigned generation = fiber->arrived;
    if (barrier.generation == generation) wait(barrier, generation, line);
    __tsan_acquire(&barrier.order[generation & 1]);
}

// An operand's bits as far as tensor cores look at them; NaN stays one.
SHIM_HIDDEN static float tf32(float v) { return v == v ? __uint_as_float(__float_as_uint(v) & 0xffffe000u) : v; }

// Lane l has, with g = l / 4 and t = l % 4: of the left operand (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); of the right
// one (t, g), (t + 4, g); of the sums (g, 2 t), (g, 2 t + 1) at the top, and both 8 rows below at the bottom.
SHIM_HIDDEN void product(float *top, float *bottom, const float *a, const float *b, int line) {
    Fiber *fiber = current;
    const unsigned lane = fiber->place.thread.x % 32;
    Warp &warp = fiber->block->warp[fiber->place.thread.x / 32];
    Barrier &barrier = warp.barrier;
    const unsigned generation = barrier.generation, place = generation & 1;
    for (int i = 0; i < 4; i++) warp.a[place][lane][i] = tf32(a[i]);
    for (int i = 0; i < 2; i++) warp.b[place][lane][i] = tf32(b[i]);
    if (++barrier.arrived == 32) barrier.arrived = 0, barrier.generation++;
    else wait(barrier, generation, line);
    for (unsigned half = 0; half < 2; half++)
        for (unsigned side = 0; side < 2; side++) {
            const unsigned row = lane / 4, col = lane % 4 * 2 + side;
            float *sum = (half ? bottom : top) + side;
            for (unsigned k = 0; k < 8; k++) {
                const float left = warp.a[place][row * 4 + k % 4][k / 4 * 2 + half];
                *sum = __builtin_fmaf(left, warp.b[place][col * 4 + k % 4][k / 4], *sum);
            }
        }
}

SHIM_HIDDEN void pause() {
    current->state = State::Spinning;
    to_scheduler();
}

} // namespace shim
