// A stand-in for NVIDIA's driver, for tests on machines without a GPU: the calls that lstm-cuda makes, as the driver's
// documentation has them, or stricter where it leaves a choice. It runs the kernels by executor.cpp. What is asked of a stream is
// done at the next call that waits, in order; memory is NaN until it is written and when it was freed; whatever is not
// allowed is an error, or is noted for the test (`sim_misuse`). What it does not have, the dynamic loader does not find.
//
// It is not the driver: it was written from the same pages as the code that it tests.
#include "driver.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace standin {

State state;
thread_local Handle current = 0;

Call::Call(const char *name, unsigned needs) : lock(state.mutex) {
    state.calls.push_back(name);
    if (state.calls.size() == state.fail_call) {
        injected = true;
        code = state.fail_code;
        if (state.fail_lasts) lose(code);
        return;
    }
    if ((needs & Init) && !state.initialized) code = NotInitialized;
    else if (state.lost && !(needs & EvenIfLost)) code = state.lost;
    else if ((needs & Current) && !current) code = InvalidContext;
    else if ((needs & Current) && !state.contexts.find(current)) code = ContextIsDestroyed;
    if (code || !(needs & Unsafe)) return;
    for (auto &[_, stream] : state.streams.all)
        if (stream.capturing && (stream.mode == 0 || (stream.mode == 1 && stream.thread == std::this_thread::get_id())))
            stream.invalid = true, code = CaptureUnsupported;
}

void lose(int code) {
    state.lost = code;
    for (auto &[_, stream] : state.streams.all) stream.queue.clear();
}

} // namespace standin

using namespace standin;

// ---- The driver and its devices.

extern "C" int cuInit(unsigned flags) {
    BEGIN(cuInit, EvenIfLost);
    if (flags) return InvalidValue;
    // Of a program that does not know this for a stand-in, the environment says what it stands for: SIM_architecture=90.
    if (!state.initialized)
        for (auto &[what, value] : state.attributes)
            if (const char *set = std::getenv(("SIM_" + what).c_str())) value = std::atoll(set);
    state.initialized = true;
    return Success;
}

extern "C" int cuDriverGetVersion(int *version) {
    BEGIN(cuDriverGetVersion, EvenIfLost);
    *version = 13000;
    return Success;
}

extern "C" int cuDeviceGetCount(int *count) {
    BEGIN(cuDeviceGetCount, Init | EvenIfLost);
    *count = static_cast<int>(state.get("devices"));
    return Success;
}

extern "C" int cuDeviceGet(int *device, int ordinal) {
    BEGIN(cuDeviceGet, Init | EvenIfLost);
    if (ordinal < 0 || ordinal >= state.get("devices")) return InvalidDevice;
    *device = ordinal;
    return Success;
}

static bool is_device(int device) { return device >= 0 && device < state.get("devices"); }

extern "C" int cuDeviceGetName(char *name, int len, int device) {
    BEGIN(cuDeviceGetName, Init | EvenIfLost);
    if (!is_device(device) || len <= 0) return InvalidDevice;
    std::snprintf(name, static_cast<size_t>(len), "stand-in for a driver, not a GPU (%d)", device);
    return Success;
}

extern "C" int cuDeviceGetAttribute(int *value, int attribute, int device) {
    BEGIN(cuDeviceGetAttribute, Init | EvenIfLost);
    if (!is_device(device)) return InvalidDevice;
    switch (attribute) {
    case 16: *value = static_cast<int>(state.get("multiprocessors")); return Success;
    case 75: *value = static_cast<int>(state.get("architecture") / 10); return Success;
    case 76: *value = static_cast<int>(state.get("architecture") % 10); return Success;
    case 88: *value = static_cast<int>(state.get("pageable")); return Success;
    case 95: *value = static_cast<int>(state.get("cooperative")); return Success;
    case 97: *value = static_cast<int>(max_shared()); return Success;
    case 115: *value = static_cast<int>(state.get("pools")); return Success;
    default: state.misuse("attribute " + std::to_string(attribute) + " is not one that the stand-in has"); return InvalidValue;
    }
}

extern "C" int cuDeviceGetDefaultMemPool(void **pool, int device) {
    BEGIN(cuDeviceGetDefaultMemPool, Init);
    if (!is_device(device)) return InvalidDevice;
    if (!state.get("pools")) return NotSupported;
    *pool = pointer<void>((Handle(0x5a5b) << 48) + Handle(device));
    return Success;
}

extern "C" int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    BEGIN(cuMemPoolSetAttribute, Init);
    if (handle(pool) >> 48 != 0x5a5b || attribute != 4 || !value) return InvalidValue;
    return Success;
}

// ---- Contexts.

extern "C" int cuDevicePrimaryCtxRetain(void **context, int device) {
    BEGIN(cuDevicePrimaryCtxRetain, Init);
    if (!is_device(device)) return InvalidDevice;
    for (auto &[handle, there] : state.contexts.all)
        if (there.device == device) {
            there.retained++;
            *context = pointer<void>(handle);
            return Success;
        }
    *context = pointer<void>(state.add(state.contexts, Context{device, 1, 0}));
    return Success;
}

// What is of a context goes with it.
template <class T> static void end_all(Table<T> &table, Handle context, const char *what) {
    for (auto at = table.all.begin(); at != table.all.end();) {
        if (at->second.context != context) {
            ++at;
            continue;
        }
        if (!state.lost && !state.excused.count(at->first)) state.misuse(std::string("a context ended with ") + what);
        at = table.all.erase(at);
    }
}

extern "C" int cuDevicePrimaryCtxRelease_v2(int device) {
    Call call("cuDevicePrimaryCtxRelease_v2", Init | EvenIfLost);
    for (auto &[handle, context] : state.contexts.all) {
        if (context.device != device) continue;
        context.excused += call.injected;
        if (call.code) return call.code;
        if (--context.retained) return Success;
        const Handle ended = handle;
        drain_context(ended);
        end_all(state.execs, ended, "a graph's executable");
        end_all(state.graphs, ended, "a graph");
        for (auto at = state.functions.all.begin(); at != state.functions.all.end();)
            at = at->second.context == ended ? state.functions.all.erase(at) : std::next(at);
        end_all(state.modules, ended, "a module");
        end_all(state.streams, ended, "a stream");
        std::vector<uintptr_t> left;
        for (auto &[address, memory] : state.memory)
            if (memory.context == ended) left.push_back(address);
        for (uintptr_t address : left) {
            if (!state.lost && !state.excused.count(address)) state.misuse("a context ended with memory that was not freed");
            give_up(address);
        }
        state.contexts.all.erase(ended);
        return Success;
    }
    return call.code ? call.code : InvalidContext;
}

extern "C" int cuCtxGetCurrent(void **context) {
    BEGIN(cuCtxGetCurrent, Init | EvenIfLost);
    *context = pointer<void>(current);
    return Success;
}

extern "C" int cuCtxSetCurrent(void *context) {
    BEGIN(cuCtxSetCurrent, Init | EvenIfLost);
    if (context && !state.contexts.find(handle(context))) return InvalidContext;
    current = handle(context);
    return Success;
}

// ---- Memory.

extern "C" int cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    BEGIN(cuMemAlloc_v2, Init | Current | Unsafe);
    return allocate(bytes, 0, address);
}

extern "C" int cuMemFree_v2(uintptr_t address) {
    BEGIN_END_OF(cuMemFree_v2, Init | Current | Unsafe, address);
    const auto found = state.memory.find(address);
    if (found == state.memory.end() || found->second.context != current || found->second.freeing) return InvalidValue;
    if (const int code = drain_context(current)) return code;
    give_up(address);
    return Success;
}

extern "C" int cuMemAllocAsync(uintptr_t *address, size_t bytes, void *stream) {
    BEGIN(cuMemAllocAsync, Init | Current);
    const Stream *found = mine(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (!state.get("pools")) return NotSupported;
    if (found->capturing) return CaptureUnsupported; // It would be a node of the graph, which nobody here wants.
    return allocate(bytes, handle(stream), address);
}

extern "C" int cuMemFreeAsync(uintptr_t address, void *stream) {
    BEGIN_END_OF(cuMemFreeAsync, Init | Current, address);
    Stream *found = mine(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (found->capturing) return CaptureUnsupported;
    const auto memory = state.memory.find(address);
    if (memory == state.memory.end() || memory->second.freeing || !memory->second.ordered) return InvalidValue;
    memory->second.freeing = true;
    Op op(Op::Free);
    op.device = address;
    found->queue.push_back(std::move(op));
    return Success;
}

// A copy's stream, if all about it is right.
static int check_copy(uintptr_t device, const void *host, size_t bytes, Handle stream, Stream **found) {
    *found = mine(state.streams, stream);
    if (!*found) return InvalidHandle;
    const Memory *memory = memory_at(device, bytes);
    if (!bytes || !host || !memory || memory->freeing || memory->context != current) return InvalidValue;
    if (memory_at(handle(host), 1)) return InvalidValue; // The device's memory is not the host's.
    if ((*found)->capturing) {
        (*found)->invalid = true;
        return CaptureUnsupported;
    }
    return Success;
}

extern "C" int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) {
    BEGIN(cuMemcpyHtoDAsync_v2, Init | Current);
    Stream *found;
    if (const int code = check_copy(to, from, bytes, handle(stream), &found)) return code;
    Op op(Op::Upload);
    op.device = to, op.bytes = bytes, op.from = static_cast<const unsigned char *>(from);
    // A device that reads the host's memory itself may do so later.
    if (!state.get("pageable") && !state.get("pinned")) op.staged.assign(op.from, op.from + bytes);
    found->queue.push_back(std::move(op));
    return Success;
}

extern "C" int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) {
    BEGIN(cuMemcpyDtoHAsync_v2, Init | Current);
    Stream *found;
    if (const int code = check_copy(from, to, bytes, handle(stream), &found)) return code;
    Op op(Op::Download);
    op.device = from, op.bytes = bytes, op.to = static_cast<unsigned char *>(to);
    found->queue.push_back(std::move(op));
    return Success;
}

extern "C" int cuPointerGetAttribute(void *value, int attribute, uintptr_t address) {
    BEGIN(cuPointerGetAttribute, Init | Current);
    if (attribute != 2 || !value) return InvalidValue;
    const bool device = memory_at(address, 1);
    if (!device && !state.get("pinned")) return InvalidValue;
    *static_cast<unsigned *>(value) = device ? 2 : 1;
    return Success;
}

// ---- For the test.

// From here on calls and launches are counted anew, nothing is to fail, and what was lost is there again, as in a new process.
extern "C" void sim_reset() {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    state.calls.clear(), state.misuses.clear();
    state.fail_call = state.fail_launch = state.launches = 0;
    state.lost = 0;
}

extern "C" uint64_t sim_calls() {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    return state.calls.size();
}

// The name of a call, counted from 0.
extern "C" const char *sim_call(uint64_t n) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    return n < state.calls.size() ? state.calls[n] : "";
}

// The call with this number, counted from 0, is to fail; if that `lasts`, so do all after it.
extern "C" void sim_fail(uint64_t n, int code, int lasts) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    state.fail_call = n + 1, state.fail_code = code, state.fail_lasts = lasts;
}

// The kernel that runs as this one, counted from 0, is to fail as it runs.
extern "C" void sim_fail_launch(uint64_t n, int code) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    state.fail_launch = n + 1, state.fail_launch_code = code;
}

extern "C" uint64_t sim_launches() {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    return state.launches;
}

// The names of the kernels that never ran.
extern "C" const char *sim_idle() {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    static std::string text;
    text.clear();
    for (const shim::Kernel *kernel = shim::Kernel::all; kernel; kernel = kernel->next)
        if (!state.ran.count(kernel)) text += std::string(text.empty() ? "" : ", ") + kernel->name;
    return text.c_str();
}

extern "C" int sim_attribute(const char *what, int64_t value) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    const auto found = state.attributes.find(what);
    if (found == state.attributes.end()) return InvalidValue;
    found->second = value;
    return Success;
}

template <class Map> static uint64_t count(const Map &all) {
    uint64_t n = 0;
    for (auto &entry : all) n += !state.excused.count(entry.first);
    return n;
}

// How many there are: of memory that is not given back, modules, streams, graphs, their executables, retained contexts.
extern "C" uint64_t sim_live(const char *what) {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    const std::string kind = what;
    if (kind == "contexts") {
        uint64_t n = 0;
        for (auto &[_, context] : state.contexts.all) n += context.retained - context.excused;
        return n;
    }
    if (kind == "memory") {
        uint64_t n = 0;
        for (auto &[address, memory] : state.memory) n += !memory.freeing && !state.excused.count(address);
        return n;
    }
    if (kind == "modules") return count(state.modules.all);
    if (kind == "streams") return count(state.streams.all);
    if (kind == "graphs") return count(state.graphs.all);
    if (kind == "execs") return count(state.execs.all);
    return ~uint64_t(0);
}

// What was done that a device would not have forgiven, or would have without telling; until the next call.
extern "C" const char *sim_misuse() {
    std::lock_guard<std::recursive_mutex> lock(state.mutex);
    static std::string text;
    check_freed();
    text.clear();
    for (const std::string &misuse : state.misuses) text += misuse + "\n";
    return text.c_str();
}
