// Functions by which a test controls the simulated driver, injects errors and inspects it. NVIDIA's driver does not
// have them.
#include "driver.h"

using namespace sim;

typedef std::lock_guard<std::recursive_mutex> Lock;

// Counts calls and launches from 0 again, removes injected errors, and clears misuse and the sticky error. Objects
// stay.
extern "C" void sim_reset() {
    Lock lock(state.mutex);
    state.calls.clear(), state.misuses.clear();
    state.fail_call = state.fail_launch = state.launches = 0;
    state.sticky_error = 0;
}

// Sets a device property; see `State::attributes`.
extern "C" int sim_attribute(const char *attribute, int64_t value) {
    Lock lock(state.mutex);
    const auto found = state.attributes.find(attribute);
    if (found == state.attributes.end()) return InvalidValue;
    found->second = value;
    return Success;
}

// Number of calls since `sim_reset`.
extern "C" uint64_t sim_call_count() {
    Lock lock(state.mutex);
    return state.calls.size();
}

// The name of call `n`, counted from 0.
extern "C" const char *sim_call_name(uint64_t n) {
    Lock lock(state.mutex);
    return n < state.calls.size() ? state.calls[n] : "";
}

// Number of kernels that have run since `sim_reset`.
extern "C" uint64_t sim_launch_count() {
    Lock lock(state.mutex);
    return state.launches;
}

// Makes call `n`, counted from 0, return `code`. If the error is sticky, later calls fail too.
extern "C" void sim_fail_call(uint64_t n, int code, int is_sticky) {
    Lock lock(state.mutex);
    state.fail_call = n + 1, state.fail_code = code, state.fail_is_sticky = is_sticky;
}

// Makes kernel launch `n`, counted from 0, fail while it runs. Such an error is sticky.
extern "C" void sim_fail_launch(uint64_t n, int code) {
    Lock lock(state.mutex);
    state.fail_launch = n + 1, state.fail_launch_code = code;
}

// The names of the kernels that have not run since the process began. Valid until the next call of this function.
extern "C" const char *sim_kernels_not_run() {
    Lock lock(state.mutex);
    static std::string text;
    text.clear();
    for (const executor::Kernel *kernel = executor::Kernel::all; kernel; kernel = kernel->next)
        if (!state.kernels_run.count(kernel)) text += std::string(text.empty() ? "" : ", ") + kernel->name;
    return text.c_str();
}

template <class Map> static uint64_t count_leaks(const Map &all) {
    uint64_t n = 0;
    for (auto &entry : all) n += !state.leak_allowed.count(entry.first);
    return n;
}

// Number of objects of a kind that have not been released: "memory", "modules", "streams", "graphs", "graph_execs", or
// "contexts" (how often they are retained). Objects whose release failed because the test injected an error don't
// count.
extern "C" uint64_t sim_live_count(const char *kind_name) {
    Lock lock(state.mutex);
    const std::string kind = kind_name;
    if (kind == "contexts") {
        uint64_t n = 0;
        for (auto &[_, context] : state.contexts.all) n += context.retained - context.failed_releases;
        return n;
    }
    if (kind == "memory") {
        uint64_t n = 0;
        for (auto &[address, memory] : state.memory) n += !memory.free_enqueued && !state.leak_allowed.count(address);
        return n;
    }
    if (kind == "modules") return count_leaks(state.modules.all);
    if (kind == "streams") return count_leaks(state.streams.all);
    if (kind == "graphs") return count_leaks(state.graphs.all);
    if (kind == "graph_execs") return count_leaks(state.graph_execs.all);
    return ~uint64_t(0);
}

// The misuse since `sim_reset`, one line each: what a GPU would punish with undefined behavior, or would tolerate
// silently. Valid until the next call of this function.
extern "C" const char *sim_misuse() {
    Lock lock(state.mutex);
    static std::string text;
    check_freed_memory();
    text.clear();
    for (const std::string &misuse : state.misuses) text += misuse + "\n";
    return text.c_str();
}
