/* Writes down what a process does to the files below POWER_ROOT, in order, to POWER_LOG; nothing else changes.
 *
 * One line for each call that succeeded: a letter, inode numbers and offsets, names and bytes in hexadecimal. Interposed
 * by LD_PRELOAD; what `power.py` makes of it stands there. Only what SQLite and Python on Linux call is here.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static int out = -1;
static const char *root;
static size_t root_length;


__attribute__((constructor)) static void begin(void) {
    const char *log = getenv("POWER_LOG");
    root = getenv("POWER_ROOT");
    if (!log || !root) return;
    root_length = strlen(root);
    out = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void say(const char *line, size_t length) {
    if (syscall(SYS_write, out, line, length) != (ssize_t)length) abort();
}

static int is_below(const char *path) {
    return out >= 0 && strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

/* The absolute path of a name, its directory resolved; 0 where it is not below the root. */
static int whole(int at, const char *name, char *path) {
    char folder[4096], link[64];
    if (out < 0) return 0;
    if (name[0] == '/') {
        if (strlen(name) >= 4096) return 0;
        strcpy(path, name);
    } else {
        ssize_t length;
        if (at == AT_FDCWD) {
            if (!getcwd(folder, sizeof folder)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            length = readlink(link, folder, sizeof folder - 1);
            if (length < 0) return 0;
            folder[length] = 0;
        }
        if (snprintf(path, 4096, "%.2000s/%.2000s", folder, name) >= 4096) return 0;
    }
    return is_below(path);
}

static int is_file(int fd, struct stat *found) {
    char link[64], path[4096];
    ssize_t length;
    if (out < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return is_below(path) && fstat(fd, found) == 0;
}

static void say_names(char what, ino_t inode, const char *one, const char *other) {
    char line[9000];
    int length = snprintf(line, sizeof line, "%c\t%lu\t%s\t%s\n", what, (unsigned long)inode, one, other);
    say(line, length);
}

static void say_bytes(int fd, off_t offset, const unsigned char *bytes, size_t count) {
    static const char digits[] = "0123456789abcdef";
    struct stat found;
    if (!is_file(fd, &found)) return;
    char *line = malloc(2 * count + 128);
    int at = sprintf(line, "w\t%lu\t%lld\t", (unsigned long)found.st_ino, (long long)offset);
    for (size_t i = 0; i < count; i++) {
        line[at++] = digits[bytes[i] >> 4];
        line[at++] = digits[bytes[i] & 15];
    }
    line[at++] = '\n';
    say(line, at);
    free(line);
}

static int opened(int at, const char *name, int flags, mode_t mode) {
    char path[4096];
    struct stat found;
    int below = whole(at, name, path);
    int was_there = below && fstatat(AT_FDCWD, path, &found, 0) == 0;
    int fd = syscall(SYS_openat, at, name, flags, mode);
    if (fd >= 0 && below && fstat(fd, &found) == 0) {
        if (!was_there) say_names('c', found.st_ino, path, "");
        else if (flags & O_TRUNC) say_names('t', found.st_ino, "0", "");
    }
    return fd;
}

#define OPENER(name) \
    int name(const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return opened(AT_FDCWD, path, flags, flags & (O_CREAT | O_TMPFILE) ? mode : 0); \
    }
OPENER(open)
OPENER(open64)
#define OPENER_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        va_list more; va_start(more, flags); mode_t mode = va_arg(more, mode_t); va_end(more); \
        return opened(at, path, flags, flags & (O_CREAT | O_TMPFILE) ? mode : 0); \
    }
OPENER_AT(openat)
OPENER_AT(openat64)

ssize_t write(int fd, const void *bytes, size_t count) {
    struct stat found;
    off_t before = 0;
    if (is_file(fd, &found)) before = fcntl(fd, F_GETFL) & O_APPEND ? found.st_size : lseek(fd, 0, SEEK_CUR);
    ssize_t done = syscall(SYS_write, fd, bytes, count);
    if (done > 0) say_bytes(fd, before, bytes, done);
    return done;
}
#define PWRITER(name, type) \
    ssize_t name(int fd, const void *bytes, size_t count, type offset) { \
        ssize_t done = syscall(SYS_pwrite64, fd, bytes, count, offset); \
        if (done > 0) say_bytes(fd, offset, bytes, done); \
        return done; \
    }
PWRITER(pwrite, off_t)
PWRITER(pwrite64, off64_t)

#define TRUNCATER(name, type) \
    int name(int fd, type length) { \
        struct stat found; char text[32]; \
        int done = syscall(SYS_ftruncate, fd, length); \
        snprintf(text, sizeof text, "%lld", (long long)length); \
        if (done == 0 && is_file(fd, &found)) say_names('t', found.st_ino, text, ""); \
        return done; \
    }
TRUNCATER(ftruncate, off_t)
TRUNCATER(ftruncate64, off64_t)

#define SYNCER(name, number) \
    int name(int fd) { \
        struct stat found; \
        int done = syscall(number, fd); \
        if (done == 0 && is_file(fd, &found)) say_names(S_ISDIR(found.st_mode) ? 'd' : 's', found.st_ino, "", ""); \
        return done; \
    }
SYNCER(fsync, SYS_fsync)
SYNCER(fdatasync, SYS_fdatasync)

static int renamed(int from_at, const char *from, int to_at, const char *to) {
    char one[4096], other[4096];
    int below = whole(from_at, from, one) && whole(to_at, to, other);
    int done = syscall(SYS_renameat, from_at, from, to_at, to);
    if (done == 0 && below) say_names('r', 0, one, other);
    return done;
}
int rename(const char *from, const char *to) { return renamed(AT_FDCWD, from, AT_FDCWD, to); }
int renameat(int from_at, const char *from, int to_at, const char *to) { return renamed(from_at, from, to_at, to); }

int unlinkat(int at, const char *name, int flags) {
    char path[4096];
    int below = whole(at, name, path);
    int done = syscall(SYS_unlinkat, at, name, flags);
    if (done == 0 && below) say_names('u', 0, path, "");
    return done;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int symlinkat(const char *target, int at, const char *name) {
    char path[4096];
    int below = whole(at, name, path);
    int done = syscall(SYS_symlinkat, target, at, name);
    if (done == 0 && below) say_names('l', 0, path, target);
    return done;
}
int symlink(const char *target, const char *name) { return symlinkat(target, AT_FDCWD, name); }

int mkdirat(int at, const char *name, mode_t mode) {
    char path[4096];
    struct stat found;
    int below = whole(at, name, path);
    int done = syscall(SYS_mkdirat, at, name, mode);
    if (done == 0 && below && stat(path, &found) == 0) say_names('m', found.st_ino, path, "");
    return done;
}
int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
