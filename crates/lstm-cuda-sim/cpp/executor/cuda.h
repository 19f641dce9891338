// CUDA C++'s vocabulary on a CPU, so that the kernels' own sources run there: one fiber per CUDA thread, one operating
// system thread per launch, a schedule that follows from a seed. Shared memory starts as NaN; a launch that can't go on
// says where its threads wait.
//
// Under ThreadSanitizer every CUDA thread is a fiber that it knows, and only what orders threads in CUDA orders them here:
// an access that CUDA leaves unordered is reported as a race.
//
// What it can't see: wrong memory scopes, blocks that are not resident together on a device, anything about speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SANITIZE_THREAD__)
#define SHIM_TSAN 1
// The shim's own state is not under test.
#define SHIM_HIDDEN __attribute__((no_sanitize("thread"), noinline))
#else
#define SHIM_TSAN 0
#define SHIM_HIDDEN __attribute__((noinline))
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

namespace shim {
// Where the current CUDA thread is.
struct Place {
    dim3 thread, block;
};
extern thread_local Place place;
extern thread_local dim3 block_size, grid_size;
extern thread_local float *shared;

void sync_block(const char *file, int line);
// Clusters: how many blocks one has, which of them this is, and where block `rank` has what `p` is here.
extern thread_local unsigned cluster_blocks;
unsigned rank();
float *at_peer(float *p, unsigned rank);
void arrive_cluster();
void wait_cluster(const char *file, int line);
// Lets others run.
void pause();
// A warp's product: see `mma`.
void product(float *top, float *bottom, const float *a, const float *b, int line);

// A kernel by name.
struct Kernel {
    const char *name;
    size_t args_size;
    unsigned max_threads;
    void (*run)(const void *args);
    const Kernel *next;
    static const Kernel *all;
    Kernel(const char *name, size_t args_size, unsigned max_threads, void (*run)(const void *))
        : name(name), args_size(args_size), max_threads(max_threads), run(run), next(all) {
        all = this;
    }
};
} // namespace shim

#define __device__
#define __forceinline__ inline __attribute__((always_inline))
// Inlined as on a device: ThreadSanitizer does not see the store of a struct that a call returns.
#define DEVICE static __forceinline__
#define MEMBER __forceinline__
#define KERNEL(name, Args, threads, ...)                                                                                    \
    static void name##_kernel(const Args &args);                                                                       \
    static void name##_run(const void *args) { name##_kernel(*static_cast<const Args *>(args)); }                      \
    static const shim::Kernel name##_entry(#name, sizeof(Args), threads, name##_run);                                  \
    static void name##_kernel(const Args &args)
#define SHARED(name) float *name = shim::shared

#define threadIdx (shim::place.thread)
#define blockIdx (shim::place.block)
#define blockDim (shim::block_size)
#define gridDim (shim::grid_size)
#define __syncthreads() shim::sync_block(__FILE__, __LINE__)

static inline u32 load_relaxed(const float *p) { return __atomic_load_n(reinterpret_cast<const u32 *>(p), __ATOMIC_RELAXED); }
static inline float4 load_relaxed4(const float *p) {
    if (reinterpret_cast<uintptr_t>(p) % sizeof(float4)) __builtin_trap(); // as on a device
    const u32 bits[4] = {load_relaxed(p), load_relaxed(p + 1), load_relaxed(p + 2), load_relaxed(p + 3)};
    float4 v;
    std::memcpy(&v, bits, sizeof v);
    return v;
}
static inline void store_relaxed(float *p, u32 v) { __atomic_store_n(reinterpret_cast<u32 *>(p), v, __ATOMIC_RELAXED); }
static inline void pause() { shim::pause(); }

#define CLUSTERS 1
static inline u32 cluster_rank() { return shim::rank(); }
static inline u32 cluster_size() { return shim::cluster_blocks; }
static inline void store_remote(float *p, u32 rank, float v) { *shim::at_peer(p, rank) = v; }
static inline void store_remote4(float *p, u32 apart, u32 rank, float4 v) {
    float *to = shim::at_peer(p, rank);
    to[0] = v.x, to[apart] = v.y, to[2 * apart] = v.z, to[3 * apart] = v.w;
}
#define cluster_arrive() shim::arrive_cluster()
#define cluster_wait() shim::wait_cluster(__FILE__, __LINE__)

// Built with -mfma -ffp-contract=off: one rounding where it says fma, none of them moved.
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

// Tensor cores' vocabulary. A warp's lanes meet in `mma`, which orders nothing else between them. As the stand-in's own
// choice, a sum is made by ascending fma; of operands the first 10 bits of the mantissa count.
#define TENSOR_CORES 1
static inline float to_tf32(float v) {
    const u32 bits = __float_as_uint(v);
    // Ties go away from zero. Infinity and NaN stay what they are.
    return (bits & 0x7f800000u) == 0x7f800000u ? v : __uint_as_float((bits + 0x1000u) & 0xffffe000u);
}
static inline void mma(float *top, float *bottom, const float *a, const float *b, int line = __builtin_LINE()) {
    shim::product(top, bottom, a, b, line);
}
