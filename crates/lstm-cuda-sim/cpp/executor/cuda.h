// CUDA C++ on a CPU: the built-in variables and functions that the kernels use, so that the kernels' own sources
// compile for the CPU. It replaces the kernels' `device.cuh`.
//
// Each CUDA thread is a fiber. One operating system thread runs all fibers of a launch, in a deterministic order that
// depends on the launch's schedule. Shared memory is NaN at first. If no fiber can continue, the launch fails with the
// fibers and the lines where they wait.
//
// Under ThreadSanitizer, only operations that synchronize CUDA threads create happens-before edges between fibers. So
// accesses that CUDA leaves unordered are reported as data races.
//
// It can't detect wrong memory scopes, or waiting for blocks that are not resident at the same time on a GPU. It says
// nothing about speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

// NOT_SANITIZED marks functions of the executor that ThreadSanitizer must ignore: only the kernels are tested.
#if defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#define NOT_SANITIZED __attribute__((no_sanitize("thread"), noinline))
#else
#define UNDER_TSAN 0
#define NOT_SANITIZED __attribute__((noinline))
#endif

typedef uint32_t u32;
typedef unsigned long long u64;
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
struct dim3 {
    unsigned x, y, z;
};

namespace executor {
// The indices of a CUDA thread.
struct ThreadIndex {
    dim3 thread, block;
};
// Of the running CUDA thread: its indices, the sizes of its block and grid, and its block's shared memory.
extern thread_local ThreadIndex thread_index;
extern thread_local dim3 block_size, grid_size;
extern thread_local float *shared_memory;
// Blocks per cluster; 1 without clusters.
extern thread_local unsigned cluster_size;

// Implements `__syncthreads`. File and line of the call are for error messages and to leave out one barrier in a test.
void sync_block(const char *file, int line);
// The rank of the running thread's block in its cluster.
unsigned cluster_rank();
// The address in the shared memory of block `rank` of the cluster that corresponds to `p` in this block.
float *remote_address(float *p, unsigned rank);
void arrive_cluster();
void wait_cluster(const char *file, int line);
// Called while a thread polls memory: lets other fibers run.
void pause();
// Implements `mma`.
void warp_mma(float *top, float *bottom, const float *a, const float *b, int line);

// A kernel. All kernels are in a linked list.
struct Kernel {
    const char *name;
    size_t args_size; // bytes of its argument struct
    unsigned max_threads;
    void (*run)(const void *args); // runs one CUDA thread
    const Kernel *next;
    static const Kernel *all;
    Kernel(const char *name, size_t args_size, unsigned max_threads, void (*run)(const void *))
        : name(name), args_size(args_size), max_threads(max_threads), run(run), next(all) {
        all = this;
    }
    // The kernel of this name; null if there is none.
    static const Kernel *find(const char *name) {
        const Kernel *kernel = all;
        while (kernel && std::strcmp(kernel->name, name)) kernel = kernel->next;
        return kernel;
    }
};
} // namespace executor

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
// Inlined, as on a GPU. ThreadSanitizer would not see stores of structs that functions return.
#define DEVICE static __forceinline__
#define MEMBER __forceinline__
#define KERNEL(name, Args, threads, ...)                                                                               \
    static void name##_kernel(const Args &args);                                                                       \
    static void name##_run(const void *args) { name##_kernel(*static_cast<const Args *>(args)); }                      \
    static const executor::Kernel name##_entry(#name, sizeof(Args), threads, name##_run);                              \
    static void name##_kernel(const Args &args)
#define SHARED(name) float *name = executor::shared_memory

#define threadIdx (executor::thread_index.thread)
#define blockIdx (executor::thread_index.block)
#define blockDim (executor::block_size)
#define gridDim (executor::grid_size)
#define __syncthreads() executor::sync_block(__FILE__, __LINE__)

// Relaxed loads and stores.
static inline u32 load_relaxed(const float *p) {
    return __atomic_load_n(reinterpret_cast<const u32 *>(p), __ATOMIC_RELAXED);
}
static inline float4 load_relaxed4(const float *p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(float4)) __builtin_trap(); // a misaligned address fails on a GPU, too
    const u32 bits[4] = {load_relaxed(p), load_relaxed(p + 1), load_relaxed(p + 2), load_relaxed(p + 3)};
    float4 v;
    std::memcpy(&v, bits, sizeof v);
    return v;
}
static inline void store_relaxed(float *p, u32 v) { __atomic_store_n(reinterpret_cast<u32 *>(p), v, __ATOMIC_RELAXED); }
static inline void pause() { executor::pause(); }

// Thread block clusters.
#define CLUSTERS 1
static inline u32 cluster_rank() { return executor::cluster_rank(); }
static inline u32 cluster_size() { return executor::cluster_size; }
static inline void store_remote(float *p, u32 rank, float v) { *executor::remote_address(p, rank) = v; }
static inline void store_remote4(float *p, u32 stride, u32 rank, float4 v) {
    float *to = executor::remote_address(p, rank);
    to[0] = v.x, to[stride] = v.y, to[2 * stride] = v.z, to[3 * stride] = v.w;
}
#define cluster_arrive() executor::arrive_cluster()
#define cluster_wait() executor::wait_cluster(__FILE__, __LINE__)

// Arithmetic, each with a single rounding. Compiled with `-mfma -ffp-contract=off`, so the compiler neither contracts
// nor splits operations.
static inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __int2float_rn(int v) { return static_cast<float>(v); }
static inline u32 __float_as_uint(float v) {
    u32 bits;
    std::memcpy(&bits, &v, sizeof bits);
    return bits;
}
static inline float __uint_as_float(u32 bits) {
    float v;
    std::memcpy(&v, &bits, sizeof v);
    return v;
}

// Tensor cores. The lanes of a warp wait for each other in `mma`, which synchronizes nothing else. CUDA does not define
// the order of its sums. Here they are computed by fma with ascending depth, from operands truncated to 10 bits of
// mantissa.
#define TENSOR_CORES 1
// Rounds to 10 bits of mantissa, to nearest, ties away from zero. Infinity and NaN are unchanged.
static inline float to_tf32(float v) {
    const u32 bits = __float_as_uint(v);
    return (bits & 0x7f800000u) == 0x7f800000u ? v : __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}
static inline void mma(float *top, float *bottom, const float *a, const float *b, int line = __builtin_LINE()) {
    executor::warp_mma(top, bottom, a, b, line);
}
