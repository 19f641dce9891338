// A fake NVRTC for tests. It compiles nothing. Its images are text with the architecture and the names of the kernels
// that the source has for this architecture. The simulated driver loads them. So it does not detect errors in a source.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

// Values of `nvrtcResult`.
enum Result { Success = 0, InvalidInput = 3, InvalidProgram = 4, InvalidOption = 5, Compilation = 6 };

struct Program {
    std::string source, image, log;
    bool is_cubin = false;
};

static std::mutex mutex;
static std::set<Program *> programs;
static std::vector<int> supported = {70, 75, 80, 86, 89, 90, 100};
static bool fails_compilation = false; // set by the test

static bool is_program(Program *program) { return programs.count(program) > 0; }

extern "C" int nvrtcVersion(int *major, int *minor) {
    *major = 13, *minor = 0;
    return Success;
}

extern "C" int nvrtcGetNumSupportedArchs(int *count) {
    std::lock_guard<std::mutex> lock(mutex);
    *count = static_cast<int>(supported.size());
    return Success;
}

extern "C" int nvrtcGetSupportedArchs(int *all) {
    std::lock_guard<std::mutex> lock(mutex);
    for (int architecture : supported) *all++ = architecture;
    return Success;
}

extern "C" int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers,
                                  const char *const *texts, const char *const *names) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!source || !name || headers || texts || names) return InvalidInput;
    *program = new Program;
    (*program)->source = source;
    programs.insert(*program);
    return Success;
}

extern "C" int nvrtcDestroyProgram(Program **program) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(*program)) return InvalidProgram;
    programs.erase(*program);
    delete *program;
    return Success;
}

// Whether the source has a kernel for an architecture: see CLUSTERS and TENSOR_CORES in device.cuh.
static bool has_kernel(const std::string &kernel, int architecture) {
    if (!kernel.compare(0, 8, "cluster_")) return architecture >= 90;
    return kernel.compare(0, 5, "tf32_") || architecture >= 80;
}

extern "C" int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(program)) return InvalidProgram;
    if (fails_compilation) {
        program->log = "lstm.cu(1): error: injected compilation error";
        return Compilation;
    }
    int architecture = 0;
    const std::string prefix = "--gpu-architecture=";
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (option.compare(0, prefix.size(), prefix)) continue;
        const std::string value = option.substr(prefix.size());
        program->is_cubin = !value.compare(0, 3, "sm_");
        architecture = std::stoi(value.substr(value.find('_') + 1));
        program->image = (program->is_cubin ? "simulated cubin " : "simulated PTX ") + value;
    }
    bool is_supported = false;
    for (int other : supported) is_supported |= other == architecture;
    if (!is_supported) return InvalidOption;
    const std::string start = "\nKERNEL(";
    for (size_t at = 0; (at = program->source.find(start, at)) != std::string::npos;) {
        at += start.size();
        const std::string kernel = program->source.substr(at, program->source.find(',', at) - at);
        if (has_kernel(kernel, architecture)) program->image += "\n" + kernel;
    }
    program->image += "\nend\n";
    return Success;
}

// Copies a text. All texts of NVRTC but cubins are zero-terminated.
static int copy(const std::string &text, char *to, bool zero_terminated) {
    std::memcpy(to, text.c_str(), text.size() + zero_terminated);
    return Success;
}

extern "C" int nvrtcGetProgramLogSize(Program *program, size_t *size) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(program)) return InvalidProgram;
    *size = program->log.size() + 1;
    return Success;
}

extern "C" int nvrtcGetProgramLog(Program *program, char *log) {
    std::lock_guard<std::mutex> lock(mutex);
    return is_program(program) ? copy(program->log, log, true) : InvalidProgram;
}

extern "C" int nvrtcGetCUBINSize(Program *program, size_t *size) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(program) || !program->is_cubin) return InvalidProgram;
    *size = program->image.size();
    return Success;
}

extern "C" int nvrtcGetCUBIN(Program *program, char *image) {
    std::lock_guard<std::mutex> lock(mutex);
    return is_program(program) && program->is_cubin ? copy(program->image, image, false) : InvalidProgram;
}

extern "C" int nvrtcGetPTXSize(Program *program, size_t *size) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(program) || program->is_cubin) return InvalidProgram;
    *size = program->image.size() + 1;
    return Success;
}

extern "C" int nvrtcGetPTX(Program *program, char *image) {
    std::lock_guard<std::mutex> lock(mutex);
    return is_program(program) && !program->is_cubin ? copy(program->image, image, true) : InvalidProgram;
}

// For the test: sets the newest supported architecture and whether compilation fails. Returns the number of programs
// that have not been destroyed.
extern "C" size_t sim_nvrtc_setup(int newest, int fails) {
    std::lock_guard<std::mutex> lock(mutex);
    supported.clear();
    for (int architecture : {70, 75, 80, 86, 89, 90, 100})
        if (architecture <= newest) supported.push_back(architecture);
    fails_compilation = fails;
    return programs.size();
}
