// Preloaded into the tool: makes one of its calls that change files in a folder fail.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// Whether this is the call that fails, number FAULT_NUMBER of those in FAULT_FOLDER. The file FAULT_LOG tells the test.
static int is_turn(const char *path) {
    static int calls;
    const char *folder = getenv("FAULT_FOLDER");
    if (strncmp(path, folder, strlen(folder)) != 0) return 0;
    if (__sync_add_and_fetch(&calls, 1) != atoi(getenv("FAULT_NUMBER"))) return 0;
    close(open(getenv("FAULT_LOG"), O_CREAT | O_WRONLY, 0600));
    return 1;
}

static int is_turn_of_descriptor(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return is_turn(path);
}

static int is_kind(const char *kind) { return strcmp(getenv("FAULT_KIND"), kind) == 0; }

static int fail(void) {
    errno = is_kind("ENOSPC") ? ENOSPC : EIO;
    return -1;
}

ssize_t write(int fd, const void *bytes, size_t len) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    if (!is_turn_of_descriptor(fd)) return real(fd, bytes, len);
    if (!is_kind("short")) return fail();
    return real(fd, bytes, len > 1 ? len / 2 : len);
}

int fsync(int fd) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    return is_turn_of_descriptor(fd) && !is_kind("short") ? fail() : real(fd);
}

int rename(const char *from, const char *to) {
    static int (*real)(const char *, const char *);
    if (!real) real = dlsym(RTLD_NEXT, "rename");
    return is_turn(from) && !is_kind("short") ? fail() : real(from, to);
}
