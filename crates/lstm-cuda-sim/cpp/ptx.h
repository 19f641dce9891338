// The semantics of PTX instructions, to run kernels that NVRTC compiled on a CPU. tests/driver/ptx.rs translates each
// instruction to a call of the function of its name in this file, with `_` for `.`. An instruction that is missing here
// is a compile error. Source: NVIDIA's manual "Parallel Thread Execution ISA".
//
// A register is a C++ variable that holds bits. The instruction determines how they are interpreted. A computed NaN has
// the bits that a GPU produces. A misaligned address ends the process, since it would end the kernel on a GPU.
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
// The line of the PTX, as a default argument: `#line` directives keep the line numbers of the PTX.
#define LINE int line = __builtin_LINE()
#define FILE_NAME "lstm.ptx"

// Converts a register's bits to a type: truncates wider integers, and sign- or zero-extends narrower ones by their
// type.
template <class To, class From> static __forceinline__ To as(From v) {
    if constexpr (std::is_same_v<To, From>) return v;
    else if constexpr (std::is_same_v<To, float>) return __uint_as_float(static_cast<u32>(v));
    else if constexpr (std::is_same_v<From, float>) return static_cast<To>(__float_as_uint(v));
    else return static_cast<To>(v);
}

// Defines an instruction `d = f(a)`, `d = f(a, b)` or `d = f(a, b, c)` with operands and a result of type T.
#define UNARY(name, T, ...)                                                                                            \
    PTX name(D &d, A x) {                                                                                              \
        const T a = as<T>(x);                                                                                          \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }
#define BINARY(name, T, ...)                                                                                           \
    PTX name(D &d, A x, B y) {                                                                                         \
        const T a = as<T>(x), b = as<T>(y);                                                                            \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }
#define TERNARY(name, T, ...)                                                                                          \
    PTX name(D &d, A x, B y, C z) {                                                                                    \
        const T a = as<T>(x), b = as<T>(y), c = as<T>(z);                                                              \
        d = as<D>(static_cast<T>(__VA_ARGS__));                                                                        \
    }

// ---- Floating point. Each instruction rounds once and keeps subnormals; the compiler contracts nothing.

// Replaces a computed NaN by the NaN that a GPU produces.
static __forceinline__ float canonical(float v) { return v == v ? v : __uint_as_float(0x7fffffffu); }
BINARY(add_rn_f32, f32, canonical(a + b))
BINARY(sub_rn_f32, f32, canonical(a - b))
BINARY(mul_rn_f32, f32, canonical(a *b))
TERNARY(fma_rn_f32, f32, canonical(__builtin_fmaf(a, b, c)))
UNARY(neg_f32, f32, -a)
UNARY(abs_f32, f32, __builtin_fabsf(a))
BINARY(copysign_f32, f32, __builtin_copysignf(b, a)) // the sign of a, the magnitude of b
PTX cvt_rn_f32_s32(D &d, A a) { d = as<D>(static_cast<float>(as<s32>(a))); }
// Truncates. A number that is too large becomes the nearest integer, NaN becomes 0.
PTX cvt_rzi_s32_f32(D &d, A x) {
    const float a = as<f32>(x);
    d = as<D>(a != a ? 0 : a >= 0x1p31f ? INT32_MAX : a < -0x1p31f ? INT32_MIN : static_cast<s32>(a));
}
PTX cvt_rna_tf32_f32(D &d, A a) { d = as<D>(to_tf32(as<f32>(a))); }

// ---- Integers. Overflow wraps. A shift by at least the width of the operand gives 0.

#define INTEGER(signed_type, T)                                                                                        \
    BINARY(add_##signed_type, T, a + b)                                                                                \
    BINARY(sub_##signed_type, T, a - b)                                                                                \
    BINARY(mul_lo_##signed_type, T, a *b)                                                                              \
    TERNARY(mad_lo_##signed_type, T, a *b + c)
INTEGER(s32, u32)
INTEGER(s64, u64)
BINARY(mul_hi_u32, u32, static_cast<u64>(a) * b >> 32)
BINARY(div_u32, u32, b ? a / b : ~0u)
BINARY(rem_u32, u32, b ? a % b : a)
BINARY(div_u64, u64, b ? a / b : ~0ull)
BINARY(rem_u64, u64, b ? a % b : a)
BINARY(div_s32, s32, b ? static_cast<s64>(a) / b : -1)
BINARY(min_u32, u32, a < b ? a : b)
BINARY(max_u32, u32, a > b ? a : b)
PTX mul_wide_u32(D &d, A a, B b) { d = as<D>(u64{as<u32>(a)} * as<u32>(b)); }
PTX mul_wide_s32(D &d, A a, B b) { d = as<D>(s64{as<s32>(a)} * as<s32>(b)); }
BINARY(shl_b32, u32, b < 32 ? a << b : 0)
PTX shl_b64(D &d, A a, B b) { d = as<D>(as<u32>(b) < 64 ? as<u64>(a) << as<u32>(b) : 0); }
BINARY(shr_u16, u16, b < 16 ? a >> b : 0)
BINARY(shr_u32, u32, b < 32 ? a >> b : 0)
PTX shr_u64(D &d, A a, B b) { d = as<D>(as<u32>(b) < 64 ? as<u64>(a) >> as<u32>(b) : 0); }
// Replaces the bits of b from bit `from` on by the lowest `length` bits of a.
PTX bfi_b32(D &d, A a, B b, C from, int length) {
    const u32 low = as<u32>(from) & 255, count = static_cast<u32>(length) & 255;
    const u64 mask = ((count < 32 ? 1ull << count : 1ull << 32) - 1) << (low < 32 ? low : 32);
    d = as<D>(static_cast<u32>((as<u32>(b) & ~mask) | ((u64{as<u32>(a)} << (low < 32 ? low : 32)) & mask)));
}

#define BITS(t, T)                                                                                                     \
    BINARY(and_##t, T, a &b)                                                                                           \
    BINARY(or_##t, T, a | b)                                                                                           \
    BINARY(xor_##t, T, a ^ b)
BITS(b16, u16)
BITS(b32, u32)
BITS(b64, u64)
BITS(pred, bool)
UNARY(not_b32, u32, ~a)
UNARY(not_b64, u64, ~a)
UNARY(not_pred, bool, !a)

// ---- Comparisons. They are false if an operand is NaN.

#define COMPARISON(name, T, condition)                                                                                 \
    PTX setp_##name(D &d, A x, B y) {                                                                                  \
        const T a = as<T>(x), b = as<T>(y);                                                                            \
        d = condition;                                                                                                 \
    }
#define COMPARISONS(t, T)                                                                                              \
    COMPARISON(eq_##t, T, a == b)                                                                                      \
    COMPARISON(ne_##t, T, a<b || a> b)                                                                                 \
    COMPARISON(lt_##t, T, a < b)                                                                                       \
    COMPARISON(le_##t, T, a <= b)                                                                                      \
    COMPARISON(gt_##t, T, a > b)                                                                                       \
    COMPARISON(ge_##t, T, a >= b)
COMPARISONS(u32, u32)
COMPARISONS(s32, s32)
COMPARISONS(b32, u32)
COMPARISONS(u64, u64)
COMPARISONS(s64, s64)
COMPARISONS(s16, int16_t)
COMPARISONS(f32, f32)

// ---- Moves, selections and conversions.

#define MOVES(t, T)                                                                                                    \
    UNARY(mov_##t, T, a)                                                                                               \
    PTX selp_##t(D &d, A x, B y, C p) { d = as<D>(p ? as<T>(x) : as<T>(y)); }
MOVES(f32, f32)
MOVES(b32, u32)
MOVES(u32, u32)
MOVES(b64, u64)
MOVES(u64, u64)
MOVES(u16, u16)
MOVES(pred, bool)
// Packs two 32-bit registers into a 64-bit one, or unpacks one.
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
UNARY(cvta_to_global_u64, u64, a)

// ---- Special registers.

#define tid_x threadIdx.x
#define ntid_x blockDim.x
#define ctaid_x blockIdx.x
#define nctaid_x gridDim.x
#define cluster_ctarank executor::cluster_rank()
#define cluster_nctarank executor::cluster_size

// ---- Memory.

// Addresses of the running block's shared memory start at 0. In addresses of a cluster's shared memory, the bits from
// RANK_SHIFT on are the block's rank plus 1.
static constexpr u64 shared_memory = 0;
static constexpr u32 RANK_SHIFT = 24;
[[noreturn]] static __attribute__((noinline, cold)) void bad_address(u64 at, size_t bytes, int line) {
    std::fprintf(stderr, "%s, line %d: invalid address %llx for an access of %zu bytes\n", FILE_NAME, line, at, bytes);
    std::abort();
}
// Converts an address of a state space to a pointer to N elements of type T, and checks it.
template <class T, int N> static __forceinline__ T *global_address(u64 at, int line) {
    if (at % sizeof(T[N])) bad_address(at, sizeof(T[N]), line);
    return reinterpret_cast<T *>(at);
}
template <class T, int N> static __forceinline__ T *shared_address(u64 at, int line) {
    if (at % sizeof(T[N]) || at >> RANK_SHIFT) bad_address(at, sizeof(T[N]), line);
    return reinterpret_cast<T *>(reinterpret_cast<char *>(executor::shared_memory) + at);
}
template <class T, int N> static __forceinline__ T *cluster_address(u64 at, int line) {
    if (!(at >> RANK_SHIFT)) bad_address(at, sizeof(T[N]), line);
    float *local = shared_address<float, 1>(at & ((1u << RANK_SHIFT) - 1), line);
    return reinterpret_cast<T *>(executor::remote_address(local, static_cast<u32>(at >> RANK_SHIFT) - 1));
}
PTX mapa_shared_cluster_u32(D &d, A at, B rank) { d = as<D>(as<u32>(at) | (as<u32>(rank) + 1) << RANK_SHIFT); }

#define LOADS(name, address, T)                                                                                        \
    template <class A> static __forceinline__ void ld_##name##T(A &a, u64 at, LINE) {                                  \
        a = as<A>(*address<T, 1>(at, line));                                                                           \
    }                                                                                                                  \
    template <class A> static __forceinline__ void ld_##name##v2_##T(A &a, A &b, u64 at, LINE) {                       \
        const T *w = address<T, 2>(at, line);                                                                          \
        a = as<A>(w[0]), b = as<A>(w[1]);                                                                              \
    }                                                                                                                  \
    template <class A> static __forceinline__ void ld_##name##v4_##T(A &a, A &b, A &c, A &d, u64 at, LINE) {           \
        const T *w = address<T, 4>(at, line);                                                                          \
        a = as<A>(w[0]), b = as<A>(w[1]), c = as<A>(w[2]), d = as<A>(w[3]);                                            \
    }
#define STORES(name, address, T)                                                                                       \
    template <class A> static __forceinline__ void st_##name##T(u64 at, A a, LINE) {                                   \
        *address<T, 1>(at, line) = as<T>(a);                                                                           \
    }                                                                                                                  \
    template <class A, class B, class C, class D>                                                                      \
    static __forceinline__ void st_##name##v4_##T(u64 at, A a, B b, C c, D d, LINE) {                                  \
        T *w = address<T, 4>(at, line);                                                                                \
        w[0] = as<T>(a), w[1] = as<T>(b), w[2] = as<T>(c), w[3] = as<T>(d);                                            \
    }
#define MEMORY(T)                                                                                                      \
    LOADS(param_, global_address, T)                                                                                   \
    LOADS(global_, global_address, T)                                                                                  \
    LOADS(shared_, shared_address, T)                                                                                  \
    LOADS(, global_address, T)                                                                                         \
    STORES(global_, global_address, T)                                                                                 \
    STORES(shared_, shared_address, T)                                                                                 \
    STORES(shared_cluster_, cluster_address, T)                                                                        \
    STORES(, global_address, T)
MEMORY(f32)
MEMORY(u32)
MEMORY(u64)

// A relaxed load. If a word is the sentinel (all bits set), which marks a value that was not written yet, the kernel is
// polling. Then other fibers run first.
template <int N, class... Words> static __forceinline__ void poll(u64 at, int line, Words &...words) {
    const float *from = global_address<float, N>(at, line);
    bool pending = false;
    ((words = as<Words>(load_relaxed(from++)), pending |= as<u32>(words) == ~0u), ...);
    if (pending) executor::pause();
}
PTX ld_relaxed_gpu_global_u32(D &d, A at, LINE) { poll<1>(at, line, d); }
PTX ld_relaxed_gpu_global_v4_f32(D &a, D &b, D &c, D &d, A at, LINE) { poll<4>(at, line, a, b, c, d); }
PTX st_relaxed_gpu_global_u32(D at, A v, LINE) { store_relaxed(global_address<float, 1>(at, line), as<u32>(v)); }

// ---- Synchronization and tensor cores.

static __forceinline__ void bar_sync(int barrier, LINE) {
    if (barrier) bad_address(barrier, 0, line);
    executor::sync_block(FILE_NAME, line);
}
static __forceinline__ void barrier_cluster_arrive_release() { executor::arrive_cluster(); }
static __forceinline__ void barrier_cluster_wait_acquire(LINE) { executor::wait_cluster(FILE_NAME, line); }
template <class D, class A>
static __forceinline__ void mma_sync_aligned_m16n8k8_row_col_f32_tf32_tf32_f32(D &d0, D &d1, D &d2, D &d3, A a0, A a1,
                                                                               A a2, A a3, A b0, A b1, D c0, D c1, D c2,
                                                                               D c3, LINE) {
    float top[2] = {c0, c1}, bottom[2] = {c2, c3};
    const float a[4] = {as<float>(a0), as<float>(a1), as<float>(a2), as<float>(a3)},
                b[2] = {as<float>(b0), as<float>(b1)};
    executor::warp_mma(top, bottom, a, b, line);
    d0 = top[0], d1 = top[1], d2 = bottom[0], d3 = bottom[1];
}
