// Simulated driver: allocation and copies of device memory.
#include "driver.h"

#include <cstring>

namespace sim {

// Bytes of the guards before and after memory, which is also the alignment.
static const size_t GUARD = 256;
// How much freed memory is kept to detect accesses to it.
static const size_t KEPT_BYTES = 8 << 20, KEPT_BLOCKS = 2048;
// NaN values that fill memory before it is written, memory that was freed, and guards.
static const uint32_t UNINITIALIZED = 0x7fc0dead, FREED = 0x7fc0f2ee, GUARD_WORD = 0x7fc0ed9e;

static void fill(unsigned char *at, size_t bytes, uint32_t word) {
    for (size_t i = 0; i < bytes; i += 4) std::memcpy(at + i, &word, bytes - i < 4 ? bytes - i : 4);
}

static bool is_filled(const unsigned char *at, size_t bytes, uint32_t word) {
    const size_t first = bytes < 4 ? bytes : 4;
    return !std::memcmp(at, &word, first) && !std::memcmp(at, at + first, bytes - first);
}

static size_t round_up(size_t bytes) { return (bytes + GUARD - 1) / GUARD * GUARD; }

int allocate(size_t bytes, Handle stream, uintptr_t *address) {
    if (!bytes || !address) return InvalidValue;
    const size_t limit = static_cast<size_t>(state.get("memory"));
    if (bytes > limit || state.allocated_bytes > limit - bytes) {
        // Stream-ordered frees release memory only when their streams reach them.
        if (const int code = finish_context(current_context)) return code;
        if (bytes > limit || state.allocated_bytes > limit - bytes) return OutOfMemory;
    }
    auto *block = static_cast<unsigned char *>(std::aligned_alloc(GUARD, round_up(bytes) + 2 * GUARD));
    if (!block) return OutOfMemory;
    fill(block, GUARD, GUARD_WORD);
    fill(block + GUARD, bytes, UNINITIALIZED);
    fill(block + GUARD + bytes, round_up(bytes) - bytes + GUARD, GUARD_WORD);
    *address = handle(block) + GUARD;
    state.memory[*address] = Memory{current_context, block, bytes, stream};
    state.allocated_bytes += bytes;
    return Success;
}

static void check_freed(const Memory &memory) {
    if (!is_filled(memory.block + GUARD, memory.bytes, FREED))
        state.report_misuse("memory was written after it was freed");
}

void release_memory(uintptr_t address) {
    Memory memory = state.memory.at(address);
    state.memory.erase(address);
    state.allocated_bytes -= memory.bytes;
    const size_t guard_after = round_up(memory.bytes) - memory.bytes + GUARD;
    if (!is_filled(memory.block, GUARD, GUARD_WORD) ||
        !is_filled(memory.block + GUARD + memory.bytes, guard_after, GUARD_WORD))
        state.report_misuse("a write before or after memory of " + std::to_string(memory.bytes) + " bytes");
    fill(memory.block + GUARD, memory.bytes, FREED);
    // Freed memory is not reused for a while, so that accesses to it are detected.
    state.freed[address] = memory;
    state.freed_order.push_back(address);
    state.freed_bytes += memory.bytes;
    while (state.freed_bytes > KEPT_BYTES || state.freed_order.size() > KEPT_BLOCKS) {
        const auto oldest = state.freed.find(state.freed_order.front());
        check_freed(oldest->second);
        std::free(oldest->second.block);
        state.freed_bytes -= oldest->second.bytes;
        state.freed.erase(oldest);
        state.freed_order.pop_front();
    }
}

void check_freed_memory() {
    for (auto &[_, memory] : state.freed) check_freed(memory);
}

static Memory *find_range(std::map<uintptr_t, Memory> &all, uintptr_t address, size_t bytes) {
    auto next = all.upper_bound(address);
    if (next == all.begin()) return nullptr;
    auto &[start, memory] = *--next;
    return address - start < memory.bytes && bytes <= memory.bytes - (address - start) ? &memory : nullptr;
}

Memory *memory_at(uintptr_t address, size_t bytes) { return find_range(state.memory, address, bytes); }
Memory *freed_memory_at(uintptr_t address, size_t bytes) { return find_range(state.freed, address, bytes); }

} // namespace sim

using namespace sim;

// ---- Memory pools.

// A pool's handle is this tag in the high 16 bits, and the device's number.
static const Handle POOL_TAG = 0x5a5b;

extern "C" int cuDeviceGetDefaultMemPool(void **pool, int device) {
    ENTER(cuDeviceGetDefaultMemPool, Initialized);
    if (device < 0 || device >= state.get("devices")) return InvalidDevice;
    if (!state.get("pools")) return NotSupported;
    *pool = pointer<void>((POOL_TAG << 48) + Handle(device));
    return Success;
}

extern "C" int cuMemPoolSetAttribute(void *pool, int attribute, void *value) {
    ENTER(cuMemPoolSetAttribute, Initialized);
    const int release_threshold = 4; // CU_MEMPOOL_ATTR_RELEASE_THRESHOLD
    if (handle(pool) >> 48 != POOL_TAG || attribute != release_threshold || !value) return InvalidValue;
    return Success;
}

// ---- Allocation.

extern "C" int cuMemAlloc_v2(uintptr_t *address, size_t bytes) {
    ENTER(cuMemAlloc_v2, Initialized | CurrentContext | NotCapturing);
    return allocate(bytes, 0, address);
}

extern "C" int cuMemFree_v2(uintptr_t address) {
    ENTER_RELEASE(cuMemFree_v2, Initialized | CurrentContext | NotCapturing, address);
    const auto found = state.memory.find(address);
    if (found == state.memory.end() || found->second.context != current_context || found->second.free_enqueued)
        return InvalidValue;
    if (const int code = finish_context(current_context)) return code;
    release_memory(address);
    return Success;
}

extern "C" int cuMemAllocAsync(uintptr_t *address, size_t bytes, void *stream) {
    ENTER(cuMemAllocAsync, Initialized | CurrentContext);
    const Stream *found = find_in_context(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (!state.get("pools")) return NotSupported;
    // NVIDIA's driver would add an allocation node to the graph, which lstm-cuda never intends.
    if (found->capturing) return CaptureUnsupported;
    return allocate(bytes, handle(stream), address);
}

extern "C" int cuMemFreeAsync(uintptr_t address, void *stream) {
    ENTER_RELEASE(cuMemFreeAsync, Initialized | CurrentContext, address);
    Stream *found = find_in_context(state.streams, handle(stream));
    if (!found) return InvalidHandle;
    if (found->capturing) return CaptureUnsupported;
    const auto memory = state.memory.find(address);
    if (memory == state.memory.end() || memory->second.free_enqueued || !memory->second.stream) return InvalidValue;
    memory->second.free_enqueued = true;
    Operation operation(Operation::Free);
    operation.device = address;
    found->queue.push_back(std::move(operation));
    return Success;
}

// ---- Copies.

// Checks the arguments of a copy and finds its stream.
static int check_copy(uintptr_t device, const void *host, size_t bytes, Handle stream, Stream **found) {
    *found = find_in_context(state.streams, stream);
    if (!*found) return InvalidHandle;
    const Memory *memory = memory_at(device, bytes);
    if (!bytes || !host || !memory || memory->free_enqueued || memory->context != current_context) return InvalidValue;
    if (memory_at(handle(host), 1)) return InvalidValue; // a device address where a host address belongs
    if ((*found)->capturing) {
        (*found)->capture_invalidated = true;
        return CaptureUnsupported;
    }
    return Success;
}

extern "C" int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, void *stream) {
    ENTER(cuMemcpyHtoDAsync_v2, Initialized | CurrentContext);
    Stream *found;
    if (const int code = check_copy(to, from, bytes, handle(stream), &found)) return code;
    Operation operation(Operation::Upload);
    operation.device = to, operation.bytes = bytes, operation.upload_from = static_cast<const unsigned char *>(from);
    // The call copies pageable memory to a staging buffer, unless the device reads host memory itself: then it reads
    // later.
    if (!state.get("pageable") && !state.get("pinned"))
        operation.staged.assign(operation.upload_from, operation.upload_from + bytes);
    found->queue.push_back(std::move(operation));
    return Success;
}

extern "C" int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, void *stream) {
    ENTER(cuMemcpyDtoHAsync_v2, Initialized | CurrentContext);
    Stream *found;
    if (const int code = check_copy(from, to, bytes, handle(stream), &found)) return code;
    Operation operation(Operation::Download);
    operation.device = from, operation.bytes = bytes, operation.download_to = static_cast<unsigned char *>(to);
    found->queue.push_back(std::move(operation));
    return Success;
}

extern "C" int cuPointerGetAttribute(void *value, int attribute, uintptr_t address) {
    ENTER(cuPointerGetAttribute, Initialized | CurrentContext);
    const int memory_type = 2; // CU_POINTER_ATTRIBUTE_MEMORY_TYPE
    if (attribute != memory_type || !value) return InvalidValue;
    const bool is_device_memory = memory_at(address, 1);
    if (!is_device_memory && !state.get("pinned")) return InvalidValue;
    *static_cast<unsigned *>(value) = is_device_memory ? 2 : 1; // CU_MEMORYTYPE_DEVICE, CU_MEMORYTYPE_HOST
    return Success;
}
