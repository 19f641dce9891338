// Simulated driver: modules, their kernels, and how many blocks can be resident.
#include "driver.h"

#include <cstring>

namespace sim {

static unsigned threads_per_multiprocessor() {
    const int64_t architecture = state.get("architecture");
    return architecture == 75 ? 1024 : architecture == 86 || architecture == 89 ? 1536 : 2048;
}

static unsigned shared_bytes_per_multiprocessor() {
    switch (state.get("architecture")) {
    case 70: return 96 << 10;
    case 75: return 64 << 10;
    case 80: return 164 << 10;
    case 86:
    case 89: return 100 << 10;
    default: return 228 << 10;
    }
}

// Shared memory that CUDA reserves for each block, from sm_80 on.
static unsigned reserved_shared_bytes() { return state.get("architecture") >= 80 ? 1 << 10 : 0; }

unsigned max_shared_bytes_per_block() { return shared_bytes_per_multiprocessor() - reserved_shared_bytes(); }

unsigned resident_blocks_per_multiprocessor(const Function &function, unsigned threads, unsigned shared_bytes) {
    const unsigned max_threads = function.kernel->max_threads, registers = 65536;
    if (threads > max_threads || shared_bytes > function.max_dynamic_shared_bytes) return 0;
    // Assumes that a thread uses as many registers as it can have in a block of the largest size.
    const unsigned thread_registers = registers / max_threads < 255 ? registers / max_threads : 255;
    unsigned blocks = threads_per_multiprocessor() / threads;
    const unsigned by_registers = registers / (thread_registers * threads);
    if (by_registers < blocks) blocks = by_registers;
    const unsigned block_shared_bytes = shared_bytes + reserved_shared_bytes();
    if (block_shared_bytes && shared_bytes_per_multiprocessor() / block_shared_bytes < blocks)
        blocks = shared_bytes_per_multiprocessor() / block_shared_bytes;
    return blocks;
}

int resident_clusters(const Function &function, unsigned cluster_size, unsigned threads, unsigned shared_bytes,
                      int *count) {
    if (state.get("architecture") < 90) return NotSupported;
    if (!cluster_size || cluster_size > (function.non_portable_cluster_size ? 16u : 8u)) return InvalidClusterSize;
    if (cluster_size > unsigned(state.get("largest_cluster"))) return InvalidValue;
    const unsigned blocks = resident_blocks_per_multiprocessor(function, threads, shared_bytes) *
                            static_cast<unsigned>(state.get("multiprocessors"));
    *count = static_cast<int>(blocks / cluster_size);
    return Success;
}

} // namespace sim

using namespace sim;

// Loads an image of the fake NVRTC (nvrtc.cpp). It is text: a first line with the kind of image and the architecture, a
// line with the name of each kernel, and the line `end`.
extern "C" int cuModuleLoadData(void **module, const void *image) {
    ENTER(cuModuleLoadData, Initialized | CurrentContext | NotCapturing);
    const char *text = static_cast<const char *>(image);
    const char cubin[] = "simulated cubin sm_", ptx[] = "simulated PTX compute_";
    const bool is_cubin = !std::strncmp(text, cubin, sizeof cubin - 1);
    if (!is_cubin && std::strncmp(text, ptx, sizeof ptx - 1)) return InvalidImage;
    text += is_cubin ? sizeof cubin - 1 : sizeof ptx - 1;
    unsigned architecture = 0;
    for (; *text >= '0' && *text <= '9'; text++) architecture = architecture * 10 + static_cast<unsigned>(*text - '0');
    const unsigned device_architecture = static_cast<unsigned>(state.get("architecture"));
    // A cubin runs on devices of its major version only; PTX runs on all later devices.
    if (architecture > device_architecture || (is_cubin && architecture / 10 != device_architecture / 10))
        return NoBinaryForGpu;
    Module loaded{current_context, architecture, {}};
    for (std::string name; std::strncmp(text, "\nend\n", 5);) {
        if (*text++ != '\n') return InvalidImage;
        for (name.clear(); *text && *text != '\n'; text++) name += *text;
        loaded.kernels.insert(name);
    }
    // The call does not get the image's length, so PTX must be zero-terminated.
    if (!is_cubin && text[5]) return InvalidImage;
    *module = pointer<void>(state.add(state.modules, std::move(loaded)));
    return Success;
}

extern "C" int cuModuleUnload(void *module) {
    ENTER_RELEASE(cuModuleUnload, Initialized | CurrentContext | NotCapturing, module);
    if (!find_in_context(state.modules, handle(module))) return InvalidHandle;
    state.modules.all.erase(handle(module));
    for (auto at = state.functions.all.begin(); at != state.functions.all.end();)
        at = at->second.module == handle(module) ? state.functions.all.erase(at) : std::next(at);
    return Success;
}

extern "C" int cuModuleGetFunction(void **function, void *module, const char *name) {
    ENTER(cuModuleGetFunction, Initialized | CurrentContext);
    const Module *found = find_in_context(state.modules, handle(module));
    if (!found) return InvalidHandle;
    const executor::Kernel *kernel = executor::Kernel::find(name);
    if (!kernel || !found->kernels.count(name)) return NotFound;
    *function = pointer<void>(state.add(state.functions, Function{current_context, handle(module), kernel}));
    return Success;
}

// Values of `CUfunction_attribute`.
enum FunctionAttribute { MaxDynamicSharedSizeBytes = 8, NonPortableClusterSizeAllowed = 14 };

extern "C" int cuFuncSetAttribute(void *function, int attribute, int value) {
    ENTER(cuFuncSetAttribute, Initialized | CurrentContext);
    Function *found = find_in_context(state.functions, handle(function));
    if (!found) return InvalidHandle;
    if (attribute == MaxDynamicSharedSizeBytes) {
        if (value < 0 || static_cast<unsigned>(value) > max_shared_bytes_per_block()) return InvalidValue;
        found->max_dynamic_shared_bytes = static_cast<unsigned>(value);
        return Success;
    }
    if (attribute != NonPortableClusterSizeAllowed) return InvalidValue;
    if (state.get("architecture") < 90) return NotSupported;
    found->non_portable_cluster_size = value != 0;
    return Success;
}

extern "C" int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads,
                                                           size_t shared_bytes) {
    ENTER(cuOccupancyMaxActiveBlocksPerMultiprocessor, Initialized | CurrentContext);
    const Function *found = find_in_context(state.functions, handle(function));
    if (!found) return InvalidHandle;
    if (threads <= 0 || shared_bytes > max_shared_bytes_per_block()) return InvalidValue;
    *blocks = static_cast<int>(resident_blocks_per_multiprocessor(*found, static_cast<unsigned>(threads),
                                                                  static_cast<unsigned>(shared_bytes)));
    return Success;
}
