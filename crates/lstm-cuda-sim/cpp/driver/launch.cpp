// Part of the stand-in for a driver: modules and their kernels, streams, launches, and graphs that are recorded from them.
#include "driver.h"

#include <cstring>

namespace standin {

// What a multiprocessor of some architectures has: threads, and KiB of shared memory.
static unsigned threads_of_multiprocessor() {
    const int64_t architecture = state.get("architecture");
    return architecture == 75 ? 1024 : architecture == 86 || architecture == 89 ? 1536 : 2048;
}

static unsigned shared_of_multiprocessor() {
    switch (state.get("architecture")) {
    case 70: return 96 << 10;
    case 75: return 64 << 10;
    case 80: return 164 << 10;
    case 86: case 89: return 100 << 10;
    default: return 228 << 10;
    }
}

// From sm_80 on the system keeps 1 KiB of shared memory for each block.
static unsigned kept_for_block() { return state.get("architecture") >= 80 ? 1 << 10 : 0; }

unsigned max_shared() { return shared_of_multiprocessor() - kept_for_block(); }

unsigned blocks_at_once(const Function &function, unsigned threads, unsigned shared) {
    if (threads > function.kernel->max_threads || shared > function.max_dynamic) return 0;
    // A thread has as many registers as one block of the most threads leaves it.
    const unsigned registers = 65536 / function.kernel->max_threads < 255 ? 65536 / function.kernel->max_threads : 255;
    unsigned blocks = threads_of_multiprocessor() / threads;
    const unsigned by_registers = 65536 / (registers * threads);
    if (by_registers < blocks) blocks = by_registers;
    const unsigned each = shared + kept_for_block();
    if (each && shared_of_multiprocessor() / each < blocks) blocks = shared_of_multiprocessor() / each;
    return blocks;
}

int clusters_at_once(const Function &function, unsigned size, unsigned threads, unsigned shared, int *count) {
    if (state.get("architecture") < 90) return NotSupported;
    if (!size || size > (function.non_portable ? 16u : 8u)) return InvalidClusterSize;
    if (size > unsigned(state.get("largest_cluster"))) return InvalidValue;
    *count = static_cast<int>(blocks_at_once(function, threads, shared) * static_cast<unsigned>(state.get("multiprocessors")) / size);
    return Success;
}

// Whether what a launch has is allowed; the blocks of a cluster, 0 if it forms none.
static int check_launch(const Function &function, unsigned grid, unsigned threads, unsigned shared, unsigned cluster) {
    if (!grid || !threads || threads > function.kernel->max_threads) return InvalidValue;
    if (shared > function.max_dynamic) return InvalidValue;
    if (!cluster) return Success;
    int count = 0;
    if (const int code = clusters_at_once(function, cluster, threads, shared, &count)) return code;
    if (grid % cluster) return InvalidValue;
    return count ? Success : InvalidClusterSize;
}

static int launch(Op op, Handle stream, void **params) {
    Stream *found = mine(state.streams, stream);
    const Function *function = mine(state.functions, op.function);
    if (!found || !function) return InvalidHandle;
    if (!params || !params[0]) return InvalidValue;
    if (const int code = check_launch(*function, op.grid, op.threads, op.shared, op.cluster)) return code;
    if (op.resident) {
        if (!state.get("cooperative")) return NotSupported;
        const uint64_t most = uint64_t(blocks_at_once(*function, op.threads, op.shared)) * uint64_t(state.get("multiprocessors"));
        if (op.grid > most) return CooperativeLaunchTooLarge;
    }
    op.args.resize(function->kernel->args_size / sizeof(uint64_t));
    std::memcpy(op.args.data(), params[0], function->kernel->args_size);
    if (!found->capturing) {
        found->queue.push_back(std::move(op));
        return Success;
    }
    if (found->thread != std::this_thread::get_id()) return CaptureWrongThread;
    if (found->invalid) return CaptureInvalidated;
    found->recorded.push_back(std::move(op));
    return Success;
}

} // namespace standin

using namespace standin;

// ---- Modules. An image is text: what it is, its architecture, its kernels, and `end`; see driver_nvrtc.cpp.

extern "C" int cuModuleLoadData(void **module, const void *image) {
    BEGIN(cuModuleLoadData, Init | Current | Unsafe);
    const char *text = static_cast<const char *>(image);
    const char cubin[] = "stand-in cubin sm_", ptx[] = "stand-in PTX compute_";
    const bool is_cubin = !std::strncmp(text, cubin, sizeof cubin - 1);
    if (!is_cubin && std::strncmp(text, ptx, sizeof ptx - 1)) return InvalidImage;
    text += is_cubin ? sizeof cubin - 1 : sizeof ptx - 1;
    unsigned architecture = 0;
    for (; *text >= '0' && *text <= '9'; text++) architecture = architecture * 10 + static_cast<unsigned>(*text - '0');
    const unsigned here = static_cast<unsigned>(state.get("architecture"));
    // Machine code is for one major version; PTX is for all that come later.
    if (architecture > here || (is_cubin && architecture / 10 != here / 10)) return NoBinaryForGpu;
    Module loaded{current, architecture, {}};
    for (std::string name; std::strncmp(text, "\nend\n", 5);) {
        if (*text++ != '\n') return InvalidImage;
        for (name.clear(); *text && *text != '\n'; text++) name += *text;
        loaded.kernels.insert(name);
    }
    // Its length is not told, so PTX must end in a zero.
    if (!is_cubin && text[5]) return InvalidImage;
    *module = pointer<void>(state.add(state.modules, std::move(loaded)));
    return Success;
}

extern "C" int cuModuleUnload(void *module) {
    BEGIN_END_OF(cuModuleUnload, Init | Current | Unsafe, module);
    if (!mine(state.modules, handle(module))) return InvalidHandle;
    state.modules.all.erase(handle(module));
    for (auto at = state.functions.all.begin(); at != state.functions.all.end();)
        at = at->second.module == handle(module) ? state.functions.all.erase(at) : std::next(at);
    return Success;
}

extern "C" int cuModuleGetFunction(void **function, void *module, const char *name) {
    BEGIN(cuModuleGetFunction, Init | Current);
    const Module *found = mine(state.modules, handle(module));
    if (!found) return InvalidHandle;
    const shim::Kernel *kernel = shim::Kernel::all;
    while (kernel && std::strcmp(kernel->name, name)) kernel = kernel->next;
    if (!kernel || !found->kernels.count(name)) return NotFound;
    *function = pointer<void>(state.add(state.functions, Function{current, handle(module), kernel}));
    return Success;
}

extern "C" int cuFuncSetAttribute(void *function, int attribute, int value) {
    BEGIN(cuFuncSetAttribute, Init | Current);
    Function *found = mine(state.functions, handle(function));
    if (!found) return InvalidHandle;
    if (attribute == 8) {
        if (value < 0 || static_cast<unsigned>(value) > max_shared()) return InvalidValue;
        found->max_dynamic = static_cast<unsigned>(value);
        return Success;
    }
    if (attribute != 14) return InvalidValue;
    if (state.get("architecture") < 90) return NotSupported;
    found->non_portable = value != 0;
    return Success;
}

extern "C" int cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, void *function, int threads, size_t shared) {
    BEGIN(cuOccupancyMaxActiveBlocksPerMultiprocessor, Init | Current);
    const Function *found = mine(state.functions, handle(function));
    if (!found) return InvalidHandle;
    if (threads <= 0 || shared > max_shared()) return InvalidValue;
    *blocks = static_cast<int>(blocks_at_once(*found, static_cast<unsigned>(threads), static_cast<unsigned>(shared)));
    return Success;
}

// ---- Streams and launches.

extern "C" int cuStreamCreate(void **stream, unsigned flags) {
    BEGIN(cuStreamCreate, Init | Current);
    if (flags > 1) return InvalidValue;
    Stream made;
    made.context = current;
    *stream = pointer<void>(state.add(state.streams, std::move(made)));
    return Success;
}

extern "C" int cuStreamDestroy_v2(void *stream) {
    BEGIN_END_OF(cuStreamDestroy_v2, Init | Current, stream);
    const Stream *found = mine(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (found->capturing) state.misuse("a stream was destroyed while it captured");
    drain(handle(stream));
    state.streams.all.erase(handle(stream));
    return Success;
}

extern "C" int cuStreamSynchronize(void *stream) {
    Call call("cuStreamSynchronize", Init | Current);
    Stream *found = mine(state.streams, handle(stream));
    // Nobody could go on safely after a wait that did not even wait.
    if (call.injected && found && !found->capturing) drain(handle(stream));
    if (call.code) return call.code;
    if (!found) return InvalidHandle;
    if (found->capturing) {
        found->invalid = true;
        return CaptureUnsupported;
    }
    return drain(handle(stream));
}

extern "C" int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                              unsigned threads_z, unsigned shared, void *stream, void **params, void **extra) {
    BEGIN(cuLaunchKernel, Init | Current);
    if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1 || extra) return InvalidValue;
    Op op(Op::Launch);
    op.function = handle(function), op.grid = x, op.threads = threads, op.shared = shared;
    return launch(std::move(op), handle(stream), params);
}

extern "C" int cuLaunchCooperativeKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                                         unsigned threads_z, unsigned shared, void *stream, void **params) {
    BEGIN(cuLaunchCooperativeKernel, Init | Current);
    if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1) return InvalidValue;
    Op op(Op::Launch);
    op.function = handle(function), op.grid = x, op.threads = threads, op.shared = shared, op.resident = true;
    return launch(std::move(op), handle(stream), params);
}

// As the driver lays them out.
struct Attribute {
    unsigned id, pad;
    union {
        unsigned cluster[3];
        unsigned char room[64];
    };
};
struct Config {
    unsigned grid[3], threads[3], shared;
    void *stream;
    Attribute *attributes;
    unsigned count;
};
static_assert(sizeof(Attribute) == 72 && sizeof(Config) == 56, "the driver's layout");

static bool is_plain(const Config &config) {
    return config.grid[1] == 1 && config.grid[2] == 1 && config.threads[1] == 1 && config.threads[2] == 1 && config.count == 1 &&
           config.attributes->id == 4 && config.attributes->cluster[1] == 1 && config.attributes->cluster[2] == 1;
}

extern "C" int cuLaunchKernelEx(const Config *config, void *function, void **params, void **extra) {
    BEGIN(cuLaunchKernelEx, Init | Current);
    if (!is_plain(*config) || !config->attributes->cluster[0] || extra) return InvalidValue;
    Op op(Op::Launch);
    op.function = handle(function), op.grid = config->grid[0], op.threads = config->threads[0];
    op.shared = config->shared, op.cluster = config->attributes->cluster[0];
    return launch(std::move(op), handle(config->stream), params);
}

extern "C" int cuOccupancyMaxActiveClusters(int *count, void *function, const Config *config) {
    BEGIN(cuOccupancyMaxActiveClusters, Init | Current);
    const Function *found = mine(state.functions, handle(function));
    if (!found || !mine(state.streams, handle(config->stream))) return InvalidHandle;
    const unsigned size = config->attributes->cluster[0];
    if (!is_plain(*config) || !size || config->grid[0] % size || !config->threads[0]) return InvalidValue;
    return clusters_at_once(*found, size, config->threads[0], config->shared, count);
}

// ---- Graphs.

extern "C" int cuStreamBeginCapture_v2(void *stream, int mode) {
    BEGIN(cuStreamBeginCapture_v2, Init | Current);
    Stream *found = mine(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (mode < 0 || mode > 2) return InvalidValue;
    if (found->capturing) return IllegalState;
    found->capturing = true, found->invalid = false, found->mode = mode, found->thread = std::this_thread::get_id();
    found->recorded.clear();
    return Success;
}

extern "C" int cuStreamEndCapture(void *stream, void **graph) {
    Call call("cuStreamEndCapture", Init | Current);
    Stream *found = mine(state.streams, handle(stream));
    *graph = nullptr;
    // It ends the capture even where there is no graph then.
    if (call.injected && found) found->capturing = false;
    if (call.code) return call.code;
    if (!found) return InvalidHandle;
    if (!found->capturing) return IllegalState;
    if (found->mode != 2 && found->thread != std::this_thread::get_id()) return CaptureWrongThread;
    found->capturing = false;
    if (found->invalid) return CaptureInvalidated;
    *graph = pointer<void>(state.add(state.graphs, Graph{current, std::move(found->recorded)}));
    return Success;
}

extern "C" int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    BEGIN(cuGraphInstantiateWithFlags, Init | Current);
    const Graph *found = mine(state.graphs, handle(graph));
    if (!found) return InvalidHandle;
    if (flags) return InvalidValue;
    *exec = pointer<void>(state.add(state.execs, Graph(*found)));
    return Success;
}

extern "C" int cuGraphDestroy(void *graph) {
    BEGIN_END_OF(cuGraphDestroy, Init | Current, graph);
    if (!mine(state.graphs, handle(graph))) return InvalidHandle;
    state.graphs.all.erase(handle(graph));
    return Success;
}

extern "C" int cuGraphLaunch(void *exec, void *stream) {
    BEGIN(cuGraphLaunch, Init | Current);
    const Graph *found = mine(state.execs, handle(exec));
    Stream *on = mine(state.streams, handle(stream));
    if (!found || !on) return InvalidHandle;
    if (on->capturing) return CaptureUnsupported;
    for (const Op &op : found->ops)
        if (!state.functions.find(op.function)) return InvalidHandle;
    // What is asked for is done even if the executable is destroyed before.
    on->queue.insert(on->queue.end(), found->ops.begin(), found->ops.end());
    return Success;
}

extern "C" int cuGraphExecDestroy(void *exec) {
    BEGIN_END_OF(cuGraphExecDestroy, Init | Current, exec);
    if (!mine(state.execs, handle(exec))) return InvalidHandle;
    state.execs.all.erase(handle(exec));
    return Success;
}
