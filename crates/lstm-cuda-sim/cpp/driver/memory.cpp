// Part of the stand-in for a driver: its memory, and what streams do when somebody waits for them.
#include "driver.h"

#include <cstring>

namespace standin {

static const size_t GUARD = 256, KEPT = 8 << 20;
static const uint32_t POISON = 0x7fc0dead, FREED = 0x7fc0f2ee, EDGE = 0x7fc0ed9e;

static void fill(unsigned char *at, size_t bytes, uint32_t word) {
    for (size_t i = 0; i < bytes; i += 4) std::memcpy(at + i, &word, bytes - i < 4 ? bytes - i : 4);
}

static bool holds(const unsigned char *at, size_t bytes, uint32_t word) {
    const size_t first = bytes < 4 ? bytes : 4;
    return !std::memcmp(at, &word, first) && !std::memcmp(at, at + first, bytes - first);
}

static size_t rounded(size_t bytes) { return (bytes + GUARD - 1) / GUARD * GUARD; }

int allocate(size_t bytes, Handle ordered, uintptr_t *address) {
    if (!bytes || !address) return InvalidValue;
    const size_t limit = static_cast<size_t>(state.get("memory"));
    if (bytes > limit || state.live_bytes > limit - bytes) {
        // Memory that is given back in a stream's order is there once the stream is that far.
        if (const int code = drain_context(current)) return code;
        if (bytes > limit || state.live_bytes > limit - bytes) return OutOfMemory;
    }
    auto *block = static_cast<unsigned char *>(std::aligned_alloc(GUARD, rounded(bytes) + 2 * GUARD));
    if (!block) return OutOfMemory;
    fill(block, GUARD, EDGE);
    fill(block + GUARD, bytes, POISON);
    fill(block + GUARD + bytes, rounded(bytes) - bytes + GUARD, EDGE);
    *address = handle(block) + GUARD;
    state.memory[*address] = Memory{current, block, bytes, ordered};
    state.live_bytes += bytes;
    return Success;
}

static void check(const Memory &memory) {
    if (!holds(memory.block + GUARD, memory.bytes, FREED)) state.misuse("memory was written after it was freed");
}

void give_up(uintptr_t address) {
    Memory memory = state.memory.at(address);
    state.memory.erase(address);
    state.live_bytes -= memory.bytes;
    const size_t behind = rounded(memory.bytes) - memory.bytes + GUARD;
    if (!holds(memory.block, GUARD, EDGE) || !holds(memory.block + GUARD + memory.bytes, behind, EDGE))
        state.misuse("something was written beside memory of " + std::to_string(memory.bytes) + " bytes");
    fill(memory.block + GUARD, memory.bytes, FREED);
    // For a while nobody gets it again, so that who still uses it is found.
    state.freed[address] = memory;
    state.freed_order.push_back(address);
    state.freed_bytes += memory.bytes;
    while (state.freed_bytes > KEPT || state.freed_order.size() > 2048) {
        const auto oldest = state.freed.find(state.freed_order.front());
        check(oldest->second);
        std::free(oldest->second.block);
        state.freed_bytes -= oldest->second.bytes;
        state.freed.erase(oldest);
        state.freed_order.pop_front();
    }
}

void check_freed() {
    for (auto &[_, memory] : state.freed) check(memory);
}

static Memory *in(std::map<uintptr_t, Memory> &all, uintptr_t address, size_t bytes) {
    auto next = all.upper_bound(address);
    if (next == all.begin()) return nullptr;
    auto &[start, memory] = *--next;
    return address - start < memory.bytes && bytes <= memory.bytes - (address - start) ? &memory : nullptr;
}

Memory *memory_at(uintptr_t address, size_t bytes) { return in(state.memory, address, bytes); }

static int run_launch(Handle stream, Op &op) {
    if (++state.launches == state.fail_launch) return state.fail_launch_code;
    const Function *function = state.functions.find(op.function);
    if (!function) {
        state.misuse("a kernel's module was unloaded before it ran");
        return LaunchFailed;
    }
    const std::string name = function->kernel->name;
    for (uint64_t word : op.args) {
        const Memory *memory = in(state.memory, word, 1);
        if (in(state.freed, word, 1)) {
            state.misuse("kernel " + name + " ran on memory that was freed");
            return IllegalAddress;
        }
        if (memory && memory->ordered && memory->ordered != stream) state.misuse("kernel " + name + " ran on another stream's memory");
        if (memory && memory->context != function->context) {
            state.misuse("kernel " + name + " ran on another context's memory");
            return IllegalAddress;
        }
    }
    char why[512];
    const size_t bytes = op.args.size() * sizeof(uint64_t);
    if (!lstm_cuda_sim_launch(name.c_str(), op.grid, op.threads, op.shared, op.resident, op.cluster, 0, op.args.data(), bytes, why, sizeof why)) {
        state.ran.insert(function->kernel);
        return Success;
    }
    state.misuse("kernel " + name + ": " + why);
    return LaunchFailed;
}

static int run(Handle stream, Op &op) {
    if (op.kind == Op::Launch) return run_launch(stream, op);
    if (op.kind == Op::Free) {
        give_up(op.device);
        return Success;
    }
    if (!memory_at(op.device, op.bytes)) {
        state.misuse("a copy's memory was freed before it");
        return IllegalAddress;
    }
    auto *device = pointer<unsigned char>(op.device);
    if (op.kind == Op::Upload) std::memcpy(device, op.staged.empty() ? op.from : op.staged.data(), op.bytes);
    else std::memcpy(op.to, device, op.bytes);
    return Success;
}

int drain(Handle handle) {
    Stream &stream = *state.streams.find(handle);
    while (!state.lost && !stream.queue.empty()) {
        Op op = std::move(stream.queue.front());
        stream.queue.pop_front();
        if (const int code = run(handle, op)) lose(code);
    }
    return state.lost;
}

int drain_context(Handle context) {
    for (auto &[handle, stream] : state.streams.all)
        if (stream.context == context) drain(handle);
    return state.lost;
}

} // namespace standin
