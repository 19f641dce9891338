// The parts of CUDA C++ that the kernels use, as they exist on a GPU. A simulation on a CPU replaces this file. It
// includes no header, since NVRTC compiles it on machines without a CUDA toolkit.
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define MEMBER __device__ __forceinline__

// Declares a kernel. Each kernel takes one struct by value, so that all are launched in the same way. The optional last
// argument is the number of blocks that must fit in a multiprocessor's registers.
#define KERNEL(name, Args, threads, ...) KERNEL_(name, Args, threads, ##__VA_ARGS__, 1)
#define KERNEL_(name, Args, threads, blocks, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const Args args)

// All shared memory is dynamic: its size is given with the launch.
extern __shared__ float4 shared_memory[];
#define SHARED(name) float *name = reinterpret_cast<float *>(shared_memory)

// Relaxed loads and stores at GPU scope, for words that other blocks write or read. Ordering is not needed, since each
// word shows by itself whether it is valid (see `sequence.cuh`); the loads must not hit a stale first-level cache.
DEVICE u32 load_relaxed(const float *p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}
DEVICE float4 load_relaxed4(const float *p) {
    float4 v;
    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0, %1, %2, %3}, [%4];"
                 : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
DEVICE void store_relaxed(float *p, u32 v) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}
DEVICE void pause() {}

// Thread block clusters: from sm_90 on, blocks of a cluster can access each other's shared memory.
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
// The shared-memory address in block `rank` of the cluster that corresponds to `p` in this block.
DEVICE u32 remote_address(float *p, u32 rank) {
    u32 address = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(address) : "r"(rank));
    return address;
}
DEVICE void store_remote(float *p, u32 rank, float v) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(remote_address(p, rank)), "f"(v) : "memory");
}
// Stores four words `stride` floats apart in the shared memory of block `rank`.
DEVICE void store_remote4(float *p, u32 stride, u32 rank, float4 v) {
    const u32 address = remote_address(p, rank);
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(v.x) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address + 4 * stride), "f"(v.y) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address + 8 * stride), "f"(v.z) : "memory");
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address + 12 * stride), "f"(v.w) : "memory");
}
// A barrier of all threads of the cluster, split in two. What a thread wrote before it arrives is visible to the others
// after they have waited. It is not `.aligned`, since the threads of a warp may arrive from different branches.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
#endif

// Tensor cores: from sm_80 on, they multiply in TF32, which is f32 with 10 bits of mantissa.
#define TENSOR_CORES (__CUDA_ARCH__ >= 800)
#if TENSOR_CORES
// Rounds to the nearest TF32 value, ties away from zero.
DEVICE float to_tf32(float v) {
    u32 bits;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
    return __uint_as_float(bits);
}
// A warp's product of a 16 x 8 and an 8 x 8 matrix, added to a 16 x 8 matrix. The instruction defines which elements
// each lane holds: `top` and `bottom` are two adjacent sums each, in rows 8 apart. The order of summation is
// unspecified. The asm is volatile so that the compiler leaves it where all lanes of the warp execute it.
DEVICE void mma(float *top, float *bottom, const float *a, const float *b) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(top[0]), "+f"(top[1]), "+f"(bottom[0]), "+f"(bottom[1])
                 : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])),
                   "r"(__float_as_uint(a[3])), "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
}
#endif
