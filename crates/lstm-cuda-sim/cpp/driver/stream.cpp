// Simulated driver: streams, kernel launches and graphs.
#include "driver.h"

#include <cstring>

namespace sim {

// ---- Running a stream's operations.

// Runs a kernel. First it checks every argument word that is an address of device memory.
static int run_launch(Handle stream, Operation &operation) {
    if (++state.launches == state.fail_launch) return state.fail_launch_code;
    const Function *function = state.functions.find(operation.function);
    if (!function) {
        state.report_misuse("a kernel's module was unloaded before the kernel ran");
        return LaunchFailed;
    }
    const std::string name = function->kernel->name;
    for (uint64_t word : operation.args) {
        const Memory *memory = memory_at(word, 1);
        if (freed_memory_at(word, 1)) {
            state.report_misuse("kernel " + name + " ran on freed memory");
            return IllegalAddress;
        }
        if (memory && memory->stream && memory->stream != stream)
            state.report_misuse("kernel " + name + " ran on another stream's memory");
        if (memory && memory->context != function->context) {
            state.report_misuse("kernel " + name + " ran on another context's memory");
            return IllegalAddress;
        }
    }
    char error[512];
    const int failed = lstm_cuda_sim_launch(name.c_str(), operation.grid, operation.threads, operation.shared_bytes,
                                            operation.cooperative, operation.cluster_size, 0, operation.args.data(),
                                            operation.args.size() * sizeof(uint64_t), error, sizeof error);
    if (!failed) {
        state.kernels_run.insert(function->kernel);
        return Success;
    }
    state.report_misuse("kernel " + name + ": " + error);
    return LaunchFailed;
}

int run_operation(Handle stream, Operation &operation) {
    if (operation.kind == Operation::Launch) return run_launch(stream, operation);
    if (operation.kind == Operation::Free) {
        release_memory(operation.device);
        return Success;
    }
    if (!memory_at(operation.device, operation.bytes)) {
        state.report_misuse("memory was freed before a copy that uses it");
        return IllegalAddress;
    }
    auto *device = pointer<unsigned char>(operation.device);
    if (operation.kind == Operation::Download) std::memcpy(operation.download_to, device, operation.bytes);
    else
        std::memcpy(device, operation.staged.empty() ? operation.upload_from : operation.staged.data(),
                    operation.bytes);
    return Success;
}

int finish_stream(Handle handle) {
    Stream &stream = *state.streams.find(handle);
    while (!state.sticky_error && !stream.queue.empty()) {
        Operation operation = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (const int code = run_operation(handle, operation)) set_sticky_error(code);
    }
    return state.sticky_error;
}

int finish_context(Handle context) {
    for (auto &[handle, stream] : state.streams.all)
        if (stream.context == context) finish_stream(handle);
    return state.sticky_error;
}

// ---- Launches.

static int check_launch(const Function &function, const Operation &launch) {
    if (!launch.grid || !launch.threads || launch.threads > function.kernel->max_threads) return InvalidValue;
    if (launch.shared_bytes > function.max_dynamic_shared_bytes) return InvalidValue;
    if (launch.cooperative) {
        if (!state.get("cooperative")) return NotSupported;
        const uint64_t resident =
            uint64_t(resident_blocks_per_multiprocessor(function, launch.threads, launch.shared_bytes)) *
            uint64_t(state.get("multiprocessors"));
        if (launch.grid > resident) return CooperativeLaunchTooLarge;
    }
    if (!launch.cluster_size) return Success;
    int count = 0;
    if (const int code = resident_clusters(function, launch.cluster_size, launch.threads, launch.shared_bytes, &count))
        return code;
    if (launch.grid % launch.cluster_size) return InvalidValue;
    return count ? Success : InvalidClusterSize;
}

// Enqueues a launch, or records it if the stream is capturing. The kernel has one parameter, a struct.
static int enqueue_launch(Operation launch, Handle stream, void **params) {
    Stream *found = find_in_context(state.streams, stream);
    const Function *function = find_in_context(state.functions, launch.function);
    if (!found || !function) return InvalidHandle;
    if (!params || !params[0]) return InvalidValue;
    if (const int code = check_launch(*function, launch)) return code;
    launch.args.resize(function->kernel->args_size / sizeof(uint64_t));
    std::memcpy(launch.args.data(), params[0], function->kernel->args_size);
    if (!found->capturing) {
        found->queue.push_back(std::move(launch));
        return Success;
    }
    if (found->capturing_thread != std::this_thread::get_id()) return CaptureWrongThread;
    if (found->capture_invalidated) return CaptureInvalidated;
    found->captured.push_back(std::move(launch));
    return Success;
}

} // namespace sim

using namespace sim;

extern "C" int cuLaunchKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads, unsigned threads_y,
                              unsigned threads_z, unsigned shared_bytes, void *stream, void **params, void **extra) {
    ENTER(cuLaunchKernel, Initialized | CurrentContext);
    if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1 || extra) return InvalidValue;
    Operation launch(Operation::Launch);
    launch.function = handle(function), launch.grid = x, launch.threads = threads, launch.shared_bytes = shared_bytes;
    return enqueue_launch(std::move(launch), handle(stream), params);
}

extern "C" int cuLaunchCooperativeKernel(void *function, unsigned x, unsigned y, unsigned z, unsigned threads,
                                         unsigned threads_y, unsigned threads_z, unsigned shared_bytes, void *stream,
                                         void **params) {
    ENTER(cuLaunchCooperativeKernel, Initialized | CurrentContext);
    if (y != 1 || z != 1 || threads_y != 1 || threads_z != 1) return InvalidValue;
    Operation launch(Operation::Launch);
    launch.function = handle(function), launch.grid = x, launch.threads = threads, launch.shared_bytes = shared_bytes;
    launch.cooperative = true;
    return enqueue_launch(std::move(launch), handle(stream), params);
}

// `CUlaunchAttribute`, of which only the cluster's dimensions are used.
struct LaunchAttribute {
    unsigned id, padding;
    union {
        unsigned cluster[3];
        unsigned char bytes[64];
    };
};
// `CUlaunchConfig`.
struct LaunchConfig {
    unsigned grid[3], threads[3], shared_bytes;
    void *stream;
    LaunchAttribute *attributes;
    unsigned attribute_count;
};
static_assert(sizeof(LaunchAttribute) == 72 && sizeof(LaunchConfig) == 56, "sizes in the driver's interface");

// Whether the grid, blocks and clusters are one-dimensional, and the cluster's dimensions are the only attribute.
static bool is_supported(const LaunchConfig &config) {
    const unsigned cluster_dimension = 4; // CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION
    return config.grid[1] == 1 && config.grid[2] == 1 && config.threads[1] == 1 && config.threads[2] == 1 &&
           config.attribute_count == 1 && config.attributes->id == cluster_dimension &&
           config.attributes->cluster[1] == 1 && config.attributes->cluster[2] == 1;
}

extern "C" int cuLaunchKernelEx(const LaunchConfig *config, void *function, void **params, void **extra) {
    ENTER(cuLaunchKernelEx, Initialized | CurrentContext);
    if (!is_supported(*config) || !config->attributes->cluster[0] || extra) return InvalidValue;
    Operation launch(Operation::Launch);
    launch.function = handle(function), launch.grid = config->grid[0], launch.threads = config->threads[0];
    launch.shared_bytes = config->shared_bytes, launch.cluster_size = config->attributes->cluster[0];
    return enqueue_launch(std::move(launch), handle(config->stream), params);
}

extern "C" int cuOccupancyMaxActiveClusters(int *count, void *function, const LaunchConfig *config) {
    ENTER(cuOccupancyMaxActiveClusters, Initialized | CurrentContext);
    const Function *found = find_in_context(state.functions, handle(function));
    if (!found || !find_in_context(state.streams, handle(config->stream))) return InvalidHandle;
    const unsigned cluster_size = config->attributes->cluster[0];
    if (!is_supported(*config) || !cluster_size || config->grid[0] % cluster_size || !config->threads[0])
        return InvalidValue;
    return resident_clusters(*found, cluster_size, config->threads[0], config->shared_bytes, count);
}

// ---- Streams.

extern "C" int cuStreamCreate(void **stream, unsigned flags) {
    ENTER(cuStreamCreate, Initialized | CurrentContext);
    if (flags > 1) return InvalidValue;
    Stream created;
    created.context = current_context;
    *stream = pointer<void>(state.add(state.streams, std::move(created)));
    return Success;
}

extern "C" int cuStreamDestroy_v2(void *stream) {
    ENTER_RELEASE(cuStreamDestroy_v2, Initialized | CurrentContext, stream);
    const Stream *found = find_in_context(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (found->capturing) state.report_misuse("a stream was destroyed while it was capturing");
    finish_stream(handle(stream));
    state.streams.all.erase(handle(stream));
    return Success;
}

extern "C" int cuStreamSynchronize(void *stream) {
    Call call("cuStreamSynchronize", Initialized | CurrentContext);
    Stream *found = find_in_context(state.streams, handle(stream));
    // Also waits when the test injected an error: a caller can't safely continue after a wait that did not wait.
    if (call.injected && found && !found->capturing) finish_stream(handle(stream));
    if (call.code) return call.code;
    if (!found) return InvalidHandle;
    if (found->capturing) {
        found->capture_invalidated = true;
        return CaptureUnsupported;
    }
    return finish_stream(handle(stream));
}

// ---- Capture and graphs.

extern "C" int cuStreamBeginCapture_v2(void *stream, int mode) {
    ENTER(cuStreamBeginCapture_v2, Initialized | CurrentContext);
    Stream *found = find_in_context(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (mode < 0 || mode > 2) return InvalidValue;
    if (found->capturing) return IllegalState;
    found->capturing = true, found->capture_invalidated = false;
    found->capture_mode = mode, found->capturing_thread = std::this_thread::get_id();
    found->captured.clear();
    return Success;
}

extern "C" int cuStreamEndCapture(void *stream, void **graph) {
    Call call("cuStreamEndCapture", Initialized | CurrentContext);
    Stream *found = find_in_context(state.streams, handle(stream));
    *graph = nullptr;
    // The call ends the capture even if it fails and returns no graph.
    if (call.injected && found) found->capturing = false;
    if (call.code) return call.code;
    if (!found) return InvalidHandle;
    if (!found->capturing) return IllegalState;
    const int relaxed = 2; // CU_STREAM_CAPTURE_MODE_RELAXED: any thread may end the capture
    if (found->capture_mode != relaxed && found->capturing_thread != std::this_thread::get_id())
        return CaptureWrongThread;
    found->capturing = false;
    if (found->capture_invalidated) return CaptureInvalidated;
    *graph = pointer<void>(state.add(state.graphs, Graph{current_context, std::move(found->captured)}));
    return Success;
}

extern "C" int cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long flags) {
    ENTER(cuGraphInstantiateWithFlags, Initialized | CurrentContext);
    const Graph *found = find_in_context(state.graphs, handle(graph));
    if (!found) return InvalidHandle;
    if (flags) return InvalidValue;
    *exec = pointer<void>(state.add(state.graph_execs, Graph(*found)));
    return Success;
}

extern "C" int cuGraphDestroy(void *graph) {
    ENTER_RELEASE(cuGraphDestroy, Initialized | CurrentContext, graph);
    if (!find_in_context(state.graphs, handle(graph))) return InvalidHandle;
    state.graphs.all.erase(handle(graph));
    return Success;
}

extern "C" int cuGraphLaunch(void *exec, void *stream) {
    ENTER(cuGraphLaunch, Initialized | CurrentContext);
    const Graph *found = find_in_context(state.graph_execs, handle(exec));
    Stream *on = find_in_context(state.streams, handle(stream));
    if (!found || !on) return InvalidHandle;
    if (on->capturing) return CaptureUnsupported;
    for (const Operation &operation : found->operations)
        if (!state.functions.find(operation.function)) return InvalidHandle;
    // The queue gets copies: an enqueued launch runs even if the executable graph is destroyed before.
    on->queue.insert(on->queue.end(), found->operations.begin(), found->operations.end());
    return Success;
}

extern "C" int cuGraphExecDestroy(void *exec) {
    ENTER_RELEASE(cuGraphExecDestroy, Initialized | CurrentContext, exec);
    if (!find_in_context(state.graph_execs, handle(exec))) return InvalidHandle;
    state.graph_execs.all.erase(handle(exec));
    return Success;
}
