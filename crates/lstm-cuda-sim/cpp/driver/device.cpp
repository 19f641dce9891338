// Simulated driver: initialization, devices and contexts.
#include "driver.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>

namespace sim {

State state;
thread_local Handle current_context = 0;

Call::Call(const char *name, unsigned requirements) : lock(state.mutex) {
    state.calls.push_back(name);
    if (state.calls.size() == state.fail_call) {
        injected = true;
        code = state.fail_code;
        if (state.fail_is_sticky) set_sticky_error(code);
        return;
    }
    if ((requirements & Initialized) && !state.initialized) code = NotInitialized;
    else if (state.sticky_error && !(requirements & AllowedAfterStickyError)) code = state.sticky_error;
    else if ((requirements & CurrentContext) && !current_context) code = InvalidContext;
    else if ((requirements & CurrentContext) && !state.contexts.find(current_context)) code = ContextIsDestroyed;
    if (code || !(requirements & NotCapturing)) return;
    // A capture in mode 0 (global) forbids the call on every thread, in mode 1 (thread local) on the capturing thread.
    for (auto &[_, stream] : state.streams.all) {
        const bool on_this_thread = stream.capturing_thread == std::this_thread::get_id();
        if (stream.capturing && (stream.capture_mode == 0 || (stream.capture_mode == 1 && on_this_thread)))
            stream.capture_invalidated = true, code = CaptureUnsupported;
    }
}

void set_sticky_error(int code) {
    state.sticky_error = code;
    for (auto &[_, stream] : state.streams.all) stream.queue.clear();
}

} // namespace sim

using namespace sim;

// ---- The driver and its devices.

// Sets device properties from environment variables, such as SIM_ARCHITECTURE=90. They are for programs that don't call
// `sim_attribute`.
static void read_environment() {
    for (auto &[attribute, value] : state.attributes) {
        std::string name = "SIM_" + attribute;
        std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) { return std::toupper(c); });
        if (const char *text = std::getenv(name.c_str())) value = std::atoll(text);
    }
}

extern "C" int cuInit(unsigned flags) {
    ENTER(cuInit, AllowedAfterStickyError);
    if (flags) return InvalidValue;
    if (!state.initialized) read_environment();
    state.initialized = true;
    return Success;
}

extern "C" int cuDriverGetVersion(int *version) {
    ENTER(cuDriverGetVersion, AllowedAfterStickyError);
    *version = 13000;
    return Success;
}

extern "C" int cuDeviceGetCount(int *count) {
    ENTER(cuDeviceGetCount, Initialized | AllowedAfterStickyError);
    *count = static_cast<int>(state.get("devices"));
    return Success;
}

extern "C" int cuDeviceGet(int *device, int ordinal) {
    ENTER(cuDeviceGet, Initialized | AllowedAfterStickyError);
    if (ordinal < 0 || ordinal >= state.get("devices")) return InvalidDevice;
    *device = ordinal;
    return Success;
}

static bool is_device(int device) { return device >= 0 && device < state.get("devices"); }

extern "C" int cuDeviceGetName(char *name, int len, int device) {
    ENTER(cuDeviceGetName, Initialized | AllowedAfterStickyError);
    if (!is_device(device) || len <= 0) return InvalidDevice;
    std::snprintf(name, static_cast<size_t>(len), "simulated GPU %d", device);
    return Success;
}

// Values of `CUdevice_attribute`.
enum DeviceAttribute {
    MultiprocessorCount = 16,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    PageableMemoryAccess = 88,
    CooperativeLaunch = 95,
    MaxSharedMemoryPerBlockOptin = 97,
    MemoryPoolsSupported = 115,
};

extern "C" int cuDeviceGetAttribute(int *value, int attribute, int device) {
    ENTER(cuDeviceGetAttribute, Initialized | AllowedAfterStickyError);
    if (!is_device(device)) return InvalidDevice;
    switch (attribute) {
    case MultiprocessorCount: *value = static_cast<int>(state.get("multiprocessors")); return Success;
    case ComputeCapabilityMajor: *value = static_cast<int>(state.get("architecture") / 10); return Success;
    case ComputeCapabilityMinor: *value = static_cast<int>(state.get("architecture") % 10); return Success;
    case PageableMemoryAccess: *value = static_cast<int>(state.get("pageable")); return Success;
    case CooperativeLaunch: *value = static_cast<int>(state.get("cooperative")); return Success;
    case MaxSharedMemoryPerBlockOptin: *value = static_cast<int>(max_shared_bytes_per_block()); return Success;
    case MemoryPoolsSupported: *value = static_cast<int>(state.get("pools")); return Success;
    }
    state.report_misuse("the simulated driver does not implement device attribute " + std::to_string(attribute));
    return InvalidValue;
}

// ---- Contexts.

extern "C" int cuDevicePrimaryCtxRetain(void **context, int device) {
    ENTER(cuDevicePrimaryCtxRetain, Initialized);
    if (!is_device(device)) return InvalidDevice;
    for (auto &[handle, existing] : state.contexts.all)
        if (existing.device == device) {
            existing.retained++;
            *context = pointer<void>(handle);
            return Success;
        }
    *context = pointer<void>(state.add(state.contexts, Context{device, 1, 0}));
    return Success;
}

// Destroys the context's objects in a table, and reports each as a leak.
template <class T> static void destroy_all(Table<T> &table, Handle context, const char *kind) {
    for (auto at = table.all.begin(); at != table.all.end();) {
        if (at->second.context != context) {
            ++at;
            continue;
        }
        if (!state.sticky_error && !state.leak_allowed.count(at->first))
            state.report_misuse(std::string("a context was destroyed before ") + kind);
        at = table.all.erase(at);
    }
}

static void destroy_context(Handle context) {
    finish_context(context);
    destroy_all(state.graph_execs, context, "an executable graph");
    destroy_all(state.graphs, context, "a graph");
    for (auto at = state.functions.all.begin(); at != state.functions.all.end();)
        at = at->second.context == context ? state.functions.all.erase(at) : std::next(at);
    destroy_all(state.modules, context, "a module");
    destroy_all(state.streams, context, "a stream");
    std::vector<uintptr_t> addresses;
    for (auto &[address, memory] : state.memory)
        if (memory.context == context) addresses.push_back(address);
    for (uintptr_t address : addresses) {
        if (!state.sticky_error && !state.leak_allowed.count(address))
            state.report_misuse("a context was destroyed before its memory was freed");
        release_memory(address);
    }
    state.contexts.all.erase(context);
}

extern "C" int cuDevicePrimaryCtxRelease_v2(int device) {
    Call call("cuDevicePrimaryCtxRelease_v2", Initialized | AllowedAfterStickyError);
    for (auto &[handle, context] : state.contexts.all) {
        if (context.device != device) continue;
        context.failed_releases += call.injected;
        if (call.code) return call.code;
        if (--context.retained == 0) destroy_context(Handle(handle));
        return Success;
    }
    return call.code ? call.code : InvalidContext;
}

extern "C" int cuCtxGetCurrent(void **context) {
    ENTER(cuCtxGetCurrent, Initialized | AllowedAfterStickyError);
    *context = pointer<void>(current_context);
    return Success;
}

extern "C" int cuCtxSetCurrent(void *context) {
    ENTER(cuCtxSetCurrent, Initialized | AllowedAfterStickyError);
    if (context && !state.contexts.find(handle(context))) return InvalidContext;
    current_context = handle(context);
    return Success;
}
