// State of the simulated NVIDIA driver, and what its calls share.
//
// The simulated driver is for tests on machines without a GPU. It has the calls that lstm-cuda makes, with the behavior
// that NVIDIA's documentation describes, or stricter behavior where the documentation allows several. Kernels run on
// the CPU by executor.cpp. Work of a stream runs in order when a later call waits for it. Memory is NaN before it is
// written and after it is freed. A forbidden call returns an error, or is recorded for the test (`sim_misuse`). The
// dynamic loader does not find calls that are not implemented.
//
// Limitation: it was written from the same documentation as the code under test. If both misread it, no test fails.
#pragma once
#include "../executor/cuda.h"

#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>
#include <vector>

extern "C" int lstm_cuda_sim_launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes,
                                    int cooperative, unsigned cluster_size, unsigned schedule, const void *args,
                                    size_t args_size, char *error, size_t error_size);

namespace sim {

// Values of the driver's `CUresult`.
enum Code : int {
    Success = 0,
    InvalidValue = 1,
    OutOfMemory = 2,
    NotInitialized = 3,
    InvalidDevice = 101,
    InvalidImage = 200,
    InvalidContext = 201,
    NoBinaryForGpu = 209,
    InvalidHandle = 400,
    IllegalState = 401,
    NotFound = 500,
    IllegalAddress = 700,
    ContextIsDestroyed = 709,
    LaunchFailed = 719,
    CooperativeLaunchTooLarge = 720,
    NotSupported = 801,
    CaptureUnsupported = 900,
    CaptureInvalidated = 901,
    CaptureWrongThread = 908,
    InvalidClusterSize = 912,
};

// Identifies an object. Handles are never reused and are not addresses, so a stale or wrong handle is always detected.
typedef uintptr_t Handle;

// All objects of one kind.
template <class T> struct Table {
    std::map<Handle, T> all;
    T *find(Handle handle) {
        const auto found = all.find(handle);
        return found == all.end() ? nullptr : &found->second;
    }
};

struct Context {
    int device;
    unsigned retained = 0;
    unsigned failed_releases = 0; // releases that failed because the test injected an error
};

struct Memory {
    Handle context;
    unsigned char *block; // the allocation, with a guard before and after the memory
    size_t bytes;         // without the guards
    Handle stream = 0;    // the stream of a stream-ordered allocation, else 0
    bool free_enqueued = false;
};

struct Module {
    Handle context;
    unsigned architecture;
    std::set<std::string> kernels;
};

struct Function {
    Handle context, module;
    const executor::Kernel *kernel;
    unsigned max_dynamic_shared_bytes = 48 << 10;
    bool non_portable_cluster_size = false;
};

// An operation in a stream's queue or in a graph.
struct Operation {
    enum Kind { Launch, Upload, Download, Free } kind;
    explicit Operation(Kind kind) : kind(kind) {}
    // Launch:
    Handle function = 0;
    unsigned grid = 0, threads = 0, shared_bytes = 0, cluster_size = 0;
    bool cooperative = false;
    std::vector<uint64_t> args;
    // Upload, Download and Free:
    uintptr_t device = 0;
    const unsigned char *upload_from = nullptr;
    unsigned char *download_to = nullptr;
    size_t bytes = 0;
    std::vector<unsigned char> staged; // a copy of an upload's source; empty if the device reads host memory itself
};

struct Stream {
    Handle context;
    std::deque<Operation> queue;
    bool capturing = false;
    bool capture_invalidated = false;
    int capture_mode = 0; // CUstreamCaptureMode
    std::thread::id capturing_thread;
    std::vector<Operation> captured;
};

struct Graph {
    Handle context;
    std::vector<Operation> operations;
};

struct State {
    std::recursive_mutex mutex;
    bool initialized = false;
    int sticky_error = 0; // an error after which every call that needs the device fails, until `sim_reset`
    // Properties of the simulated devices, which a test or the environment can change:
    // `architecture`: for example 90 for sm_90. `cooperative`: cooperative launches are supported. `pools`: memory
    // pools are supported. `pageable`: the device reads pageable host memory itself. `pinned`: all host memory counts
    // as pinned. `devices`: number of devices. `memory`: bytes of device memory. `largest_cluster`: blocks per cluster.
    std::map<std::string, int64_t> attributes = {{"architecture", 80}, {"multiprocessors", 4}, {"cooperative", 1},
                                                 {"pools", 1},         {"pageable", 0},        {"pinned", 0},
                                                 {"devices", 1},       {"memory", 1 << 30},    {"largest_cluster", 16}};
    Table<Context> contexts;
    Table<Module> modules;
    Table<Function> functions;
    Table<Stream> streams;
    Table<Graph> graphs, graph_execs;
    std::map<uintptr_t, Memory> memory; // by address
    std::map<uintptr_t, Memory> freed;  // freed memory that is kept to detect later accesses
    std::deque<uintptr_t> freed_order;  // oldest first
    size_t allocated_bytes = 0, freed_bytes = 0;
    std::set<Handle> leak_allowed; // objects whose release failed because the test injected an error
    std::vector<const char *> calls;
    std::vector<std::string> misuses;
    uint64_t fail_call = 0; // the call to fail, counted from 1; 0 for none
    int fail_code = 0;
    bool fail_is_sticky = false;
    uint64_t fail_launch = 0; // the kernel launch to fail, counted from 1; 0 for none
    int fail_launch_code = 0;
    uint64_t launches = 0;                          // kernels that have run since `sim_reset`
    std::set<const executor::Kernel *> kernels_run; // since the process began
    Handle last_handle = Handle(0x5a5a) << 48;

    int64_t get(const char *attribute) { return attributes.at(attribute); }
    void report_misuse(const std::string &what) {
        if (misuses.size() < 16) misuses.push_back(what);
    }
    template <class T> Handle add(Table<T> &table, T value) {
        last_handle += 16;
        table.all.emplace(last_handle, std::move(value));
        return last_handle;
    }
};
extern State state;
extern thread_local Handle current_context;

// What a call requires.
enum Requirements : unsigned {
    Initialized = 1,
    CurrentContext = 2,
    NotCapturing = 4, // the thread must not be capturing a stream: the call is unsafe during capture
    AllowedAfterStickyError = 8,
};

// Part of every call: holds the lock, counts the call, checks the requirements and fails if the test injected an error.
struct Call {
    std::lock_guard<std::recursive_mutex> lock;
    bool injected = false; // whether `code` is an injected error
    int code = Success;
    Call(const char *name, unsigned requirements);
};

#define ENTER(name, requirements)                                                                                      \
    Call call(#name, requirements);                                                                                    \
    if (call.code) return call.code
// The same for a call that releases `object`. If the test made the release fail, the object is not reported as a leak.
#define ENTER_RELEASE(name, requirements, object)                                                                      \
    Call call(#name, requirements);                                                                                    \
    if (call.injected) state.leak_allowed.insert(handle(object));                                                      \
    if (call.code) return call.code

inline Handle handle(uintptr_t address) { return address; }
template <class T> Handle handle(T *p) { return reinterpret_cast<Handle>(p); }
template <class T> T *pointer(Handle handle) { return reinterpret_cast<T *>(handle); }

// Finds an object of the thread's current context; null if there is none.
template <class T> T *find_in_context(Table<T> &table, Handle handle) {
    T *found = table.find(handle);
    return found && found->context == current_context ? found : nullptr;
}

// Sets the sticky error and drops all enqueued work.
void set_sticky_error(int code);

// Runs all operations of a stream's queue, in order. Returns the sticky error.
int finish_stream(Handle stream);
int finish_context(Handle context);
// Runs one operation of a stream.
int run_operation(Handle stream, Operation &operation);

// The memory that contains a range of addresses; null if there is none.
Memory *memory_at(uintptr_t address, size_t bytes);
Memory *freed_memory_at(uintptr_t address, size_t bytes);
// `stream` is 0 for memory that is not stream-ordered.
int allocate(size_t bytes, Handle stream, uintptr_t *address);
void release_memory(uintptr_t address);
// Reports writes to freed memory.
void check_freed_memory();

// Limits of the simulated device.
unsigned max_shared_bytes_per_block();
unsigned resident_blocks_per_multiprocessor(const Function &function, unsigned threads, unsigned shared_bytes);
int resident_clusters(const Function &function, unsigned cluster_size, unsigned threads, unsigned shared_bytes,
                      int *count);

} // namespace sim
