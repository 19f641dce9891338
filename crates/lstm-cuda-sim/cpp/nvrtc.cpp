// A stand-in for NVRTC, for tests: what it "compiles" is a text that names the architecture and the kernels that the source
// has for it, which the stand-in for the driver loads. Nothing is compiled, so nothing is found that is wrong with a source.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <set>
#include <string>
#include <vector>

enum Result { Success = 0, InvalidInput = 3, InvalidProgram = 4, InvalidOption = 5, Compilation = 6 };

struct Program {
    std::string source, image, log;
    bool is_cubin = false;
};

static std::mutex mutex;
static std::set<Program *> programs;
static std::vector<int> known = {70, 75, 80, 86, 89, 90, 100};
static bool failing = false;

static bool is_program(Program *program) { return programs.count(program) > 0; }

extern "C" int nvrtcVersion(int *major, int *minor) {
    *major = 13, *minor = 0;
    return Success;
}

extern "C" int nvrtcGetNumSupportedArchs(int *count) {
    std::lock_guard<std::mutex> lock(mutex);
    *count = static_cast<int>(known.size());
    return Success;
}

extern "C" int nvrtcGetSupportedArchs(int *all) {
    std::lock_guard<std::mutex> lock(mutex);
    for (int architecture : known) *all++ = architecture;
    return Success;
}

extern "C" int nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers, const char *const *texts,
                                  const char *const *names) {
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

// Below some architectures kernels are left out: see CLUSTERS and TENSOR_CORES in device.cuh.
static bool is_built(const std::string &kernel, int architecture) {
    if (!kernel.compare(0, 8, "cluster_")) return architecture >= 90;
    return kernel.compare(0, 5, "tf32_") || architecture >= 80;
}

extern "C" int nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    std::lock_guard<std::mutex> lock(mutex);
    if (!is_program(program)) return InvalidProgram;
    if (failing) {
        program->log = "lstm.cu(1): error: the stand-in was told to refuse this";
        return Compilation;
    }
    int architecture = 0;
    const std::string wanted = "--gpu-architecture=";
    for (int i = 0; i < count; i++) {
        const std::string option = options[i];
        if (option.compare(0, wanted.size(), wanted)) continue;
        const std::string value = option.substr(wanted.size());
        program->is_cubin = !value.compare(0, 3, "sm_");
        architecture = std::stoi(value.substr(value.find('_') + 1));
        program->image = (program->is_cubin ? "stand-in cubin " : "stand-in PTX ") + value;
    }
    bool is_known = false;
    for (int one : known) is_known |= one == architecture;
    if (!is_known) return InvalidOption;
    const std::string start = "\nKERNEL(";
    for (size_t at = 0; (at = program->source.find(start, at)) != std::string::npos;) {
        at += start.size();
        const std::string kernel = program->source.substr(at, program->source.find(',', at) - at);
        if (is_built(kernel, architecture)) program->image += "\n" + kernel;
    }
    program->image += "\nend\n";
    return Success;
}

// With a zero at its end, as all of NVRTC's texts but machine code.
static int copy(const std::string &text, char *to, bool zero) {
    std::memcpy(to, text.c_str(), text.size() + zero);
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

// For the test: the newest architecture that is known, and whether compiling fails. Returns how many programs there are.
extern "C" size_t sim_nvrtc(int newest, int fails) {
    std::lock_guard<std::mutex> lock(mutex);
    known.clear();
    for (int architecture : {70, 75, 80, 86, 89, 90, 100})
        if (architecture <= newest) known.push_back(architecture);
    failing = fails;
    return programs.size();
}
