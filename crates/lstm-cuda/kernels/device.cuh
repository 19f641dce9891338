// What the kernels need of CUDA C++, on a device. `host/shim.h` is the same vocabulary on a CPU.
// No header is included: NVRTC compiles this where no CUDA toolkit is installed.
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define MEMBER __device__ __forceinline__

// A kernel takes one struct by value, so that it is launched the same way everywhere. Last, if it matters, as how many of
// its blocks a multiprocessor's registers must do for.
#define KERNEL(name, Args, threads, ...) KERNEL_(name, Args, threads, ##__VA_ARGS__, 1)
#define KERNEL_(name, Args, threads, blocks, ...) extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args)

// All shared memory is dynamic: its size comes with the launch.
extern __shared__ float4 shared_memory[];
#define SHARED(name) float *name = reinterpret_cast<float *>(shared_memory)

// A word that carries its own validity needs no order with any other: relaxed, but not cached by the reader.
DEVICE u32 peek(const float *p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE float4 peek_four(const float *p) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}
DEVICE void publish(float *p, u32 v) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
DEVICE void pause() {}

// From here on blocks can form clusters, whose shared memory all of their blocks reach.
#define CLUSTERS (__CUDA_ARCH__ >= 900)
#if CLUSTERS
DEVICE u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}
DEVICE u32 cluster_size() {
    u32 size;
    asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    return size;
}
// Writes where block `rank` of the cluster has what `p` is here.
DEVICE u32 at_peer(float *p, u32 rank) {
    u32 at = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    return at;
}
DEVICE void tell(float *p, u32 rank, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at_peer(p, rank)), "f"(v) : "memory");
}
// The same of four words, so many apart.
DEVICE void tell_four(float *p, u32 apart, u32 rank, float4 v) {
    const u32 at = at_peer(p, rank);
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v.x) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at + 4 * apart), "f"(v.y) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at + 8 * apart), "f"(v.z) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at + 12 * apart), "f"(v.w) : "memory");
}
// A barrier of all the cluster's threads in two halves: what a thread did before it arrives, others see once they have
// waited. Not `.aligned`: threads of a warp may come out of different branches.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
#endif

// From here on tensor cores take TF32: f32 with 10 bits of mantissa.
#define TENSOR_CORES (__CUDA_ARCH__ >= 800)
#if TENSOR_CORES
// The nearest, ties away from zero.
DEVICE float to_tf32(float v) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return __uint_as_float(bits);
}
// A warp's product of 16 x 8 and 8 x 8 elements, added to 16 x 8 sums. What a lane has of them is the instruction's to say:
// `top` and `bottom` are two sums each, in rows 8 apart. In which order it sums is not said anywhere. Volatile: it must stay
// where all of the warp's lanes are.
DEVICE void mma(float *top, float *bottom, const float *a, const float *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1])
        : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
          "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif
