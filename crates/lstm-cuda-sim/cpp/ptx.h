// What PTX's instructions mean, for the kernels as NVRTC compiled them: tests/driver/ptx.rs makes each instruction a call
// of the function here that has its name. One that is not here does not compile. After NVIDIA's manual "Parallel Thread
// Execution ISA".
//
// A NaN that is computed is the one that devices make; an address that is not aligned ends the process, as it ends a kernel.
// Registers are variables that hold bits, whose type is the instruction's to say.
#pragma once
#include "executor/cuda.h"

#include <cstdio>
#include <cstdlib>
#include <type_traits>

typedef uint16_t u16;
typedef int32_t s32;
typedef long long s64;
typedef float f32;

#define PTX template <class D, class A = int, class B = int, class C = int> static __forceinline__ void
#define HERE int line = __builtin_LINE()
#define FILE_NAME "lstm.ptx"

// A register's bits as a type. What is wider is cut off, what is narrower extended as its type says.
template <class To, class From> static __forceinline__ To as(From v) {
    if constexpr (std::is_same_v<To, From>) return v;
    else if constexpr (std::is_same_v<To, float>) return __uint_as_float(static_cast<u32>(v));
    else if constexpr (std::is_same_v<From, float>) return static_cast<To>(__float_as_uint(v));
    else return static_cast<To>(v);
}

// d = f(a), f(a, b), f(a, b, c), where all are of type T.
#define ONE(name, T, ...)                                                                                              \
    PTX name(D &d, A x) {                                                                                              \
        const T a = as<T>(x);                                                                                          \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }
#define TWO(name, T, ...)                                                                                              \
    PTX name(D &d, A x, B y) {                                                                                         \
        const T a = as<T>(x), b = as<T>(y);                                                                            \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }
#define THREE(name, T, ...)                                                                                            \
    PTX name(D &d, A x, B y, C z) {                                                                                    \
        const T a = as<T>(x), b = as<T>(y), c = as<T>(z);                                                              \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }

// Floating point. One rounding each, nothing flushed, nothing contracted.
static __forceinline__ float made(float v) { return v == v ? v : __uint_as_float(0x7fffffffu); }
TWO(add_rn_f32, f32, made(a + b))
TWO(sub_rn_f32, f32, made(a - b))
TWO(mul_rn_f32, f32, made(a * b))
THREE(fma_rn_f32, f32, made(__builtin_fmaf(a, b, c)))
ONE(neg_f32, f32, -a)
ONE(abs_f32, f32, __builtin_fabsf(a))
TWO(copysign_f32, f32, __builtin_copysignf(b, a)) // the sign of a
PTX cvt_rn_f32_s32(D &d, A a) { d = as<D>(static_cast<float>(as<s32>(a))); }
PTX cvt_rna_tf32_f32(D &d, A a) { d = as<D>(to_tf32(as<f32>(a))); }

// Whole numbers wrap. A shift by as many bits as there are, or more, leaves none.
#define WHOLE(signed_, T)                                                                                              \
    TWO(add_##signed_, T, a + b)                                                                                       \
    TWO(sub_##signed_, T, a - b)                                                                                       \
    TWO(mul_lo_##signed_, T, a *b)                                                                                     \
    THREE(mad_lo_##signed_, T, a *b + c)
WHOLE(s32, u32)
WHOLE(s64, u64)
TWO(mul_hi_u32, u32, static_cast<u64>(a) * b >> 32)
TWO(div_u32, u32, b ? a / b : ~0u)
TWO(rem_u32, u32, b ? a % b : a)
TWO(div_u64, u64, b ? a / b : ~0ull)
TWO(rem_u64, u64, b ? a % b : a)
TWO(div_s32, s32, b ? static_cast<s64>(a) / b : -1)
TWO(min_u32, u32, a < b ? a : b)
TWO(max_u32, u32, a > b ? a : b)
PTX mul_wide_u32(D &d, A a, B b) { d = as<D>(u64{as<u32>(a)} * as<u32>(b)); }
PTX mul_wide_s32(D &d, A a, B b) { d = as<D>(s64{as<s32>(a)} * as<s32>(b)); }
TWO(shl_b32, u32, b < 32 ? a << b : 0)
PTX shl_b64(D &d, A a, B b) { d = as<D>(as<u32>(b) < 64 ? as<u64>(a) << as<u32>(b) : 0); }
TWO(shr_u16, u16, b < 16 ? a >> b : 0)
TWO(shr_u32, u32, b < 32 ? a >> b : 0)
PTX shr_u64(D &d, A a, B b) { d = as<D>(as<u32>(b) < 64 ? as<u64>(a) >> as<u32>(b) : 0); }
// `length` bits of a, over those of b from `from` on.
PTX bfi_b32(D &d, A a, B b, C from, int length) {
    const u32 low = as<u32>(from) & 255, count = static_cast<u32>(length) & 255;
    const u64 mask = ((count < 32 ? 1ull << count : 1ull << 32) - 1) << (low < 32 ? low : 32);
    d = as<D>(static_cast<u32>((as<u32>(b) & ~mask) | ((u64{as<u32>(a)} << (low < 32 ? low : 32)) & mask)));
}

#define BITS(t, T)                                                                                                     \
    TWO(and_##t, T, a &b)                                                                                              \
    TWO(or_##t, T, a | b)                                                                                              \
    TWO(xor_##t, T, a ^ b)
BITS(b16, u16)
BITS(b32, u32)
BITS(b64, u64)
BITS(pred, bool)
ONE(not_b32, u32, ~a)
ONE(not_b64, u64, ~a)
ONE(not_pred, bool, !a)

// Of floating-point numbers none of these holds where one is NaN.
#define TEST(name, T, holds)                                                                                           \
    PTX setp_##name(D &d, A x, B y) {                                                                                  \
        const T a = as<T>(x), b = as<T>(y);                                                                            \
        d = holds;                                                                                                     \
    }
#define TESTS(t, T)                                                                                                    \
    TEST(eq_##t, T, a == b)                                                                                            \
    TEST(ne_##t, T, a < b || a > b)                                                                                    \
    TEST(lt_##t, T, a < b)                                                                                             \
    TEST(le_##t, T, a <= b)                                                                                            \
    TEST(gt_##t, T, a > b)                                                                                             \
    TEST(ge_##t, T, a >= b)
TESTS(u32, u32)
TESTS(s32, s32)
TESTS(b32, u32)
TESTS(u64, u64)
TESTS(s64, s64)
TESTS(s16, int16_t)
TESTS(f32, f32)

#define MOVES(t, T)                                                                                                    \
    ONE(mov_##t, T, a)                                                                                                 \
    PTX selp_##t(D &d, A x, B y, C p) { d = as<D>(p ? as<T>(x) : as<T>(y)); }
MOVES(f32, f32)
MOVES(b32, u32)
MOVES(u32, u32)
MOVES(b64, u64)
MOVES(u64, u64)
MOVES(u16, u16)
MOVES(pred, bool)
// Two words as one, and one as two: the register that is wider tells which.
template <class Low, class High> static __forceinline__ void mov_b64(u64 &d, Low low, High high) {
    d = as<u32>(low) | u64{as<u32>(high)} << 32;
}
template <class Low, class High> static __forceinline__ void mov_b64(Low &low, High &high, u64 a) {
    low = as<Low>(static_cast<u32>(a)), high = as<High>(static_cast<u32>(a >> 32));
}

#define CONVERT(to, from)                                                                                              \
    PTX cvt_##to##_##from(D &d, A a) { d = as<D>(static_cast<to>(as<from>(a))); }
CONVERT(u16, u32)
CONVERT(u32, u16)
CONVERT(u32, u64)
CONVERT(u64, u32)
CONVERT(s64, s32)
ONE(cvta_to_global_u64, u64, a)

// Where threads are.
#define tid_x threadIdx.x
#define ntid_x blockDim.x
#define ctaid_x blockIdx.x
#define nctaid_x gridDim.x
#define cluster_ctarank shim::rank()
#define cluster_nctarank shim::cluster_blocks

// Memory. A block's own begins at address 0 of its space; that of block `rank` of a cluster has `rank + 1` in the high bits.
static constexpr u64 shared_memory = 0;
static constexpr u32 WINDOW = 24;
[[noreturn]] static __attribute__((noinline, cold)) void bad_address(u64 at, size_t bytes, int line) {
    std::fprintf(stderr, "%s, line %d: address %llx of %zu bytes\n", FILE_NAME, line, at, bytes);
    std::abort();
}
template <class T, int N> static __forceinline__ T *anywhere(u64 at, int line) {
    if (at % sizeof(T[N])) bad_address(at, sizeof(T[N]), line);
    return reinterpret_cast<T *>(at);
}
template <class T, int N> static __forceinline__ T *in_block(u64 at, int line) {
    if (at % sizeof(T[N]) || at >> WINDOW) bad_address(at, sizeof(T[N]), line);
    return reinterpret_cast<T *>(reinterpret_cast<char *>(shim::shared) + at);
}
template <class T, int N> static __forceinline__ T *in_cluster(u64 at, int line) {
    if (!(at >> WINDOW)) bad_address(at, sizeof(T[N]), line);
    float *here = in_block<float, 1>(at & ((1u << WINDOW) - 1), line);
    return reinterpret_cast<T *>(shim::at_peer(here, static_cast<u32>(at >> WINDOW) - 1));
}
PTX mapa_shared_cluster_u32(D &d, A at, B rank) { d = as<D>(as<u32>(at) | (as<u32>(rank) + 1) << WINDOW); }

#define LOADS(name, place, T)                                                                                          \
    template <class A> static __forceinline__ void ld_##name##T(A &a, u64 at, HERE) { a = as<A>(*place<T, 1>(at, line)); } \
    template <class A> static __forceinline__ void ld_##name##v2_##T(A &a, A &b, u64 at, HERE) {                       \
        const T *w = place<T, 2>(at, line);                                                                            \
        a = as<A>(w[0]), b = as<A>(w[1]);                                                                              \
    }                                                                                                                  \
    template <class A> static __forceinline__ void ld_##name##v4_##T(A &a, A &b, A &c, A &d, u64 at, HERE) {           \
        const T *w = place<T, 4>(at, line);                                                                            \
        a = as<A>(w[0]), b = as<A>(w[1]), c = as<A>(w[2]), d = as<A>(w[3]);                                            \
    }
#define STORES(name, place, T)                                                                                         \
    template <class A> static __forceinline__ void st_##name##T(u64 at, A a, HERE) { *place<T, 1>(at, line) = as<T>(a); } \
    template <class A, class B, class C, class D>                                                                      \
    static __forceinline__ void st_##name##v4_##T(u64 at, A a, B b, C c, D d, HERE) {                                  \
        T *w = place<T, 4>(at, line);                                                                                  \
        w[0] = as<T>(a), w[1] = as<T>(b), w[2] = as<T>(c), w[3] = as<T>(d);                                            \
    }
#define MEMORY(T)                                                                                                      \
    LOADS(param_, anywhere, T)                                                                                         \
    LOADS(global_, anywhere, T)                                                                                        \
    LOADS(shared_, in_block, T)                                                                                        \
    LOADS(, anywhere, T)                                                                                               \
    STORES(global_, anywhere, T)                                                                                       \
    STORES(shared_, in_block, T)                                                                                       \
    STORES(shared_cluster_, in_cluster, T)                                                                             \
    STORES(, anywhere, T)
MEMORY(f32)
MEMORY(u32)
MEMORY(u64)

// Who sees the word that says that nothing is there yet looks again: others must have their turn first.
template <int N, class... Words> static __forceinline__ void relaxed(u64 at, int line, Words &...words) {
    const float *from = anywhere<float, N>(at, line);
    bool missing = false;
    ((words = as<Words>(peek(from++)), missing |= as<u32>(words) == ~0u), ...);
    if (missing) shim::pause();
}
PTX ld_relaxed_gpu_global_u32(D &d, A at, HERE) { relaxed<1>(at, line, d); }
PTX ld_relaxed_gpu_global_v4_f32(D &a, D &b, D &c, D &d, A at, HERE) { relaxed<4>(at, line, a, b, c, d); }
PTX st_relaxed_gpu_global_u32(D at, A v, HERE) { publish(anywhere<float, 1>(at, line), as<u32>(v)); }

// Where threads meet.
static __forceinline__ void bar_sync(int barrier, HERE) {
    if (barrier) bad_address(barrier, 0, line);
    shim::sync_block(FILE_NAME, line);
}
static __forceinline__ void barrier_cluster_arrive_release() { shim::arrive_cluster(); }
static __forceinline__ void barrier_cluster_wait_acquire(HERE) { shim::wait_cluster(FILE_NAME, line); }
template <class D, class A>
static __forceinline__ void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(D &d0, D &d1, D &d2, D &d3, A a0, A a1, A a2, A a3, A b0,
                                                                        A b1, D c0, D c1, D c2, D c3, HERE) {
    float top[2] = {c0, c1}, bottom[2] = {c2, c3};
    const float a[4] = {as<float>(a0), as<float>(a1), as<float>(a2), as<float>(a3)}, b[2] = {as<float>(b0), as<float>(b1)};
    shim::product(top, bottom, a, b, line);
    d0 = top[0], d1 = top[1], d2 = bottom[0], d3 = bottom[1];
}
