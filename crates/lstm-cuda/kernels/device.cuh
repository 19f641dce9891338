// What the kernels need of CUDA C++, on a device. `host/shim.h` is the same vocabulary on a CPU.
// No header is included: NVRTC compiles this where no CUDA toolkit is installed.
typedef unsigned int u32;
typedef unsigned long long u64;

#define DEVICE static __device__ __forceinline__
#define MEMBER __device__ __forceinline__

// A kernel takes one struct by value, so that it is launched the same way everywhere.
#define KERNEL(name, Args, threads) extern "C" __global__ void __launch_bounds__(threads, 1) name(const Args args)

// All shared memory is dynamic: its size comes with the launch.
extern __shared__ float4 shared_memory[];
#define SHARED(name) float *name = reinterpret_cast<float *>(shared_memory)

// A word that carries its own validity needs no order with any other: relaxed, but not cached by the reader.
DEVICE u32 peek(const float *p) {
    u32 v;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
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
DEVICE void tell(float *p, u32 rank, float v) {
    u32 at = (u32)__cvta_generic_to_shared(p);
    asm volatile("mapa.shared::cluster.u32 %0, %0, %1;" : "+r"(at) : "r"(rank));
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(at), "f"(v) : "memory");
}
// A barrier of all the cluster's threads in two halves: what a thread did before it arrives, others see once they have
// waited. Not `.aligned`: threads of a warp may come out of different branches.
DEVICE void cluster_arrive() { asm volatile("barrier.cluster.arrive.release;" ::: "memory"); }
DEVICE void cluster_wait() { asm volatile("barrier.cluster.wait.acquire;" ::: "memory"); }
#endif
