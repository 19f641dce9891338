// A stand-in for NVIDIA's driver: what it keeps, and the rules that its calls share. See driver.cpp.
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

extern "C" int lstm_cuda_sim_launch(const char *name, unsigned grid, unsigned threads, size_t shared_bytes, int resident,
                                     unsigned cluster, unsigned seed, const void *args, size_t args_size, char *why, size_t why_size);

namespace standin {

// The driver's numbers for them.
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

// No two objects ever have the same, and none is an address.
typedef uintptr_t Handle;

template <class T> struct Table {
    std::map<Handle, T> all;
    T *find(Handle handle) {
        const auto found = all.find(handle);
        return found == all.end() ? nullptr : &found->second;
    }
};

struct Context {
    int device;
    unsigned retained = 0, excused = 0;
};

struct Memory {
    Handle context;
    unsigned char *block; // with a guard on either side
    size_t bytes;
    Handle ordered = 0; // the stream that it was allocated on
    bool freeing = false;
};

struct Module {
    Handle context;
    unsigned architecture;
    std::set<std::string> kernels;
};

struct Function {
    Handle context, module;
    const shim::Kernel *kernel;
    unsigned max_dynamic = 48 << 10;
    bool non_portable = false;
};

// What a stream has still to do.
struct Op {
    enum Kind { Launch, Upload, Download, Free } kind;
    explicit Op(Kind kind) : kind(kind) {}
    Handle function = 0;
    unsigned grid = 0, threads = 0, shared = 0, cluster = 0;
    bool resident = false;
    std::vector<uint64_t> args;
    uintptr_t device = 0;
    const unsigned char *from = nullptr;
    unsigned char *to = nullptr;
    size_t bytes = 0;
    std::vector<unsigned char> staged;
};

struct Stream {
    Handle context;
    std::deque<Op> queue;
    bool capturing = false, invalid = false;
    int mode = 0;
    std::thread::id thread;
    std::vector<Op> recorded;
};

struct Graph {
    Handle context;
    std::vector<Op> ops;
};

struct State {
    std::recursive_mutex mutex;
    bool initialized = false;
    int lost = 0; // the error that ended all work of the process
    std::map<std::string, int64_t> attributes = {{"architecture", 80}, {"multiprocessors", 4}, {"cooperative", 1}, {"pools", 1},
                                                 {"pageable", 0},      {"pinned", 0},          {"devices", 1},
                                                 {"memory", 1 << 30},  {"largest_cluster", 16}};
    Table<Context> contexts;
    Table<Module> modules;
    Table<Function> functions;
    Table<Stream> streams;
    Table<Graph> graphs, execs;
    std::map<uintptr_t, Memory> memory, freed;
    std::deque<uintptr_t> freed_order;
    size_t live_bytes = 0, freed_bytes = 0;
    std::set<Handle> excused; // what a free that was made to fail left behind
    std::vector<const char *> calls;
    std::vector<std::string> misuses;
    uint64_t fail_call = 0, fail_launch = 0, launches = 0;
    std::set<const shim::Kernel *> ran; // since the process began
    int fail_code = 0, fail_launch_code = 0;
    bool fail_lasts = false;
    Handle next = Handle(0x5a5a) << 48;

    int64_t get(const char *what) { return attributes.at(what); }
    void misuse(const std::string &what) {
        if (misuses.size() < 16) misuses.push_back(what);
    }
    template <class T> Handle add(Table<T> &table, T value) {
        next += 16;
        table.all.emplace(next, std::move(value));
        return next;
    }
};
extern State state;
extern thread_local Handle current; // the thread's context

// What a call needs, and what may be said against it.
enum Needs : unsigned {
    Nothing = 0,
    Init = 1,
    Current = 2,    // a context, which the thread made current
    Unsafe = 4,     // not while the thread captures
    EvenIfLost = 8, // goes on after an error that ended all work
};

// Part of every call: holds the lock, counts, fails if it was told to.
struct Call {
    std::lock_guard<std::recursive_mutex> lock;
    bool injected = false;
    int code = Success;
    Call(const char *name, unsigned needs);
};

#define BEGIN(name, needs)                                                                                             \
    Call call(#name, needs);                                                                                           \
    if (call.code) return call.code
// Of a call that gives an object back: if it does not because the test wanted so, nobody is to blame.
#define BEGIN_END_OF(name, needs, object)                                                                              \
    Call call(#name, needs);                                                                                           \
    if (call.injected) state.excused.insert(handle(object));                                                           \
    if (call.code) return call.code

inline Handle handle(uintptr_t address) { return address; }
template <class T> Handle handle(T *p) { return reinterpret_cast<Handle>(p); }
template <class T> T *pointer(Handle handle) { return reinterpret_cast<T *>(handle); }

// An object of the thread's context, or null.
template <class T> T *mine(Table<T> &table, Handle handle) {
    T *found = table.find(handle);
    return found && found->context == current ? found : nullptr;
}

void lose(int code);
// Does what a stream has to do, in order.
int drain(Handle stream);
int drain_context(Handle context);
// The memory that has all of a range, or null.
Memory *memory_at(uintptr_t address, size_t bytes);
int allocate(size_t bytes, Handle ordered, uintptr_t *address);
void give_up(uintptr_t address);
void check_freed();

// Shared memory of a block that asks for more than 48 KiB, at most; blocks of a kernel on a multiprocessor.
unsigned max_shared();
unsigned blocks_at_once(const Function &function, unsigned threads, unsigned shared);
int clusters_at_once(const Function &function, unsigned size, unsigned threads, unsigned shared, int *count);

} // namespace standin
