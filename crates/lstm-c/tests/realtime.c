/* Steps of a stream neither allocate nor enter the operating system. Run with one or more models; prints the time of a
 * step. Linux with glibc: this program replaces malloc, and forbids all calls of the system but read and write. */
#define _GNU_SOURCE
#include <lstm.h>

#include <linux/seccomp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { STEPS = 64, BLOCKS = 2000 };

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *memory, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *memory);

static volatile size_t calls;

void *malloc(size_t size) {
    calls++;
    return __libc_malloc(size);
}
void *calloc(size_t count, size_t size) {
    calls++;
    return __libc_calloc(count, size);
}
void *realloc(void *memory, size_t size) {
    calls++;
    return __libc_realloc(memory, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
    calls++;
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **memory, size_t alignment, size_t size) {
    calls++;
    *memory = __libc_memalign(alignment, size);
    return *memory == NULL;
}
void free(void *memory) {
    calls += memory != NULL;
    __libc_free(memory);
}

static void require(int condition, const char *what) {
    if (!condition) {
        fprintf(stderr, "realtime: %s: %s\n", what, lstm_last_error());
        exit(1);
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Runs `work` in a child process that may only read, write and exit. Returns whether it exited with 0. */
static int runs_alone(int (*work)(void *), void *argument) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT) != 0) {
            _exit(3);
        }
        int result = work(argument);
        syscall(SYS_exit, result);
    }
    int status = 0;
    require(child > 0 && waitpid(child, &status, 0) == child, "fork");
    require(!WIFEXITED(status) || WEXITSTATUS(status) != 3, "seccomp is not available");
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

struct Work {
    LstmStream *stream;
    float *x, *y;
    size_t inputs, outputs;
};

static int run_blocks(void *argument) {
    struct Work *work = argument;
    for (size_t k = 0; k < 10; k++) {
        if (lstm_stream_run(work->stream, work->x, work->y, STEPS) != LSTM_STATUS_OK) {
            return 1;
        }
        for (size_t t = 0; t < STEPS; t++) {
            const float *x = work->x + t * work->inputs;
            if (lstm_stream_step(work->stream, x, work->y + t * work->outputs) != LSTM_STATUS_OK) {
                return 1;
            }
        }
    }
    return 0;
}

static int get_parent(void *argument) {
    (void)argument;
    return (int)syscall(SYS_getppid) < 0;
}

static void test_model(const char *path, const char *precision) {
    LstmOptions *options = NULL;
    LstmModel *model = NULL;
    struct Work work = {0};
    require(lstm_options_create(&options) == LSTM_STATUS_OK, "options");
    require(lstm_options_set(options, "precision", precision) == LSTM_STATUS_OK, precision);
    require(lstm_model_open(path, options, &model) == LSTM_STATUS_OK, path);
    require(lstm_model_is_real_time(model), "lstm_model_is_real_time");
    require(lstm_stream_create(model, 1, &work.stream) == LSTM_STATUS_OK, "stream");
    work.inputs = lstm_model_input_size(model);
    work.outputs = lstm_model_output_size(model);
    work.x = calloc(STEPS * work.inputs, sizeof *work.x);
    work.y = calloc(STEPS * work.outputs, sizeof *work.y);
    for (size_t k = 0; k < STEPS * work.inputs; k++) {
        work.x[k] = (float)(k * 37 % 101) / 50.0f - 1.0f;
    }

    size_t before = calls;
    require(before > 0, "malloc is not replaced");
    require(run_blocks(&work) == 0, "run");
    require(calls == before, "a step allocates or frees");
    require(runs_alone(run_blocks, &work), "a step enters the operating system");

    double best = 1e9;
    for (size_t repeat = 0; repeat < 10; repeat++) {
        double start = now();
        for (size_t k = 0; k < BLOCKS / 10; k++) {
            lstm_stream_run(work.stream, work.x, work.y, STEPS);
        }
        double time = (now() - start) / (BLOCKS / 10 * STEPS);
        best = time < best ? time : best;
    }
    printf("%s in %s: no allocation, no system call, %.0f ns per step\n", path, precision, 1e9 * best);
    free(work.x);
    free(work.y);
    lstm_stream_destroy(work.stream);
    lstm_model_destroy(model);
    lstm_options_destroy(options);
}

int main(int argc, char **argv) {
    require(!runs_alone(get_parent, NULL), "seccomp lets a system call pass");
    for (int k = 1; k < argc; k++) {
        test_model(argv[k], "f32");
        test_model(argv[k], "int8");
    }
    return 0;
}
