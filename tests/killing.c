/* Counts every call of this process that changes a file, libhdf5's own among them, and kills the process at one of
   them: before it, or after a prefix of it that ends at a page boundary, which is what SIGKILL can leave behind. Or it
   stops there, at every one of them, so that somebody may look at the files as they would be left, and goes on.
   Loaded with LD_PRELOAD by killing.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/types.h>
#include <unistd.h>

static volatile long armed = 0, target = -1, torn = 0, events = 0;
#define EVERY 0

/* The event to die at; EVERY: stop at each. */
void killing_arm(long n, long tear) { target = n; torn = tear; events = 0; armed = 1; }
long killing_events(void) { return events; }

/* One event happens: 1 if it is one to die or to stop at. */
int killing_event(void) { return armed && (++events == target || target == EVERY); }
static void die(void) {
    if (target == EVERY) { kill(getpid(), SIGSTOP); return; }
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

static ssize_t write_or_die(ssize_t (*real)(int, const void *, size_t, off_t), int fd, const void *data, size_t n,
                            off_t at) {
    if (killing_event()) {
        if (torn) {
            off_t middle = (at + (off_t)n / 2) / 4096 * 4096;
            if (middle > at) real(fd, data, middle - at, at);
        }
        die();
    }
    return real(fd, data, n, at);
}

#define REAL(name, type) static type real = 0; if (!real) real = (type)dlsym(RTLD_NEXT, name)
typedef ssize_t (*write_t)(int, const void *, size_t, off_t);
typedef int (*size_fn)(int, off_t);
typedef int (*range_fn)(int, off_t, off_t);
typedef int (*two_names)(const char *, const char *);
typedef int (*one_name)(const char *);

ssize_t pwrite(int fd, const void *d, size_t n, off_t at) { REAL("pwrite", write_t); return write_or_die(real, fd, d, n, at); }
ssize_t pwrite64(int fd, const void *d, size_t n, off_t at) { REAL("pwrite64", write_t); return write_or_die(real, fd, d, n, at); }
int ftruncate(int fd, off_t n) { REAL("ftruncate", size_fn); if (killing_event()) die(); return real(fd, n); }
int ftruncate64(int fd, off_t n) { REAL("ftruncate64", size_fn); if (killing_event()) die(); return real(fd, n); }
int posix_fallocate(int fd, off_t a, off_t n) { REAL("posix_fallocate", range_fn); if (killing_event()) die(); return real(fd, a, n); }
int posix_fallocate64(int fd, off_t a, off_t n) { REAL("posix_fallocate64", range_fn); if (killing_event()) die(); return real(fd, a, n); }
int rename(const char *a, const char *b) { REAL("rename", two_names); if (killing_event()) die(); return real(a, b); }
int unlink(const char *a) { REAL("unlink", one_name); if (killing_event()) die(); return real(a); }
