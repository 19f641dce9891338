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
