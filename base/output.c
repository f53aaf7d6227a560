/* base/output.c: a temporary file beside its target, renamed when it is complete. */
#include "base/output.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINKS_MOST = 40 }; // as many as the kernel follows

struct hd_output {
    int fd;
    char *path;
    char *target;    // path with symbolic links followed; NULL when written directly
    char *temporary; // NULL when there is none
};

static hd_status output_failed(int error, const char *path, const char *doing)
{
    switch (error) {
    case ENOSPC:
        return hd_fail(HD_ERR_IO, "%s: the disk is full", path);
    case EDQUOT:
    case EFBIG:
        return hd_fail(HD_ERR_IO, "%s: larger than the system allows (%s)", path,
                       error == EFBIG ? "file size limit" : "disk quota");
    case EPIPE:
        return hd_fail(HD_ERR_IO, "%s: whoever read it has gone", path);
    case EACCES:
    case EPERM:
    case EROFS:
        return hd_fail(HD_ERR_IO, "%s: no permission to %s", path, doing);
    default:
        return hd_fail(HD_ERR_IO, "%s: cannot %s: %s", path, doing, strerror(error));
    }
}

// The folder part of a path, with its slash; 0 when there is none.
static size_t folder_length(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? (size_t)(slash - path) + 1 : 0;
}

// N for a path that names an open descriptor of this process, else -1. Replacing what the
// descriptor leads to would miss an appended or an unlinked file.
static int named_descriptor(const char *path)
{
    static const char *const folders[] = {"/dev/fd/", "/proc/self/fd/"};
    if (strcmp(path, "/dev/stdout") == 0) return STDOUT_FILENO;
    if (strcmp(path, "/dev/stderr") == 0) return STDERR_FILENO;
    for (size_t i = 0; i < HD_COUNT(folders); i++) {
        size_t length = strlen(folders[i]);
        if (strncmp(path, folders[i], length) != 0) continue;
        char *end;
        long number = strtol(path + length, &end, 10);
        if (end != path + length && *end == 0 && number >= 0 && number <= INT32_MAX)
            return (int)number;
    }
    return -1;
}

// *target: malloc'd, the path with its last component no longer a symbolic link. What it names need
// not exist.
static hd_status follow_links(char **target, const char *path)
{
    char link[4096];
    char *at = strdup(path);
    for (int i = 0; at; i++) {
        ssize_t length = readlink(at, link, sizeof link - 1);
        if (length < 0) {
            *target = at;
            return HD_OK;
        }
        if (i == LINKS_MOST) {
            free(at);
            return hd_fail(HD_ERR_IO, "%s: a chain of more than %d symbolic links", path, i);
        }
        link[length] = 0;
        size_t folder = link[0] == '/' ? 0 : folder_length(at);
        char *next = malloc(folder + (size_t)length + 1);
        if (next) {
            memcpy(next, at, folder);
            memcpy(next + folder, link, (size_t)length + 1);
        }
        free(at);
        at = next;
    }
    return hd_fail(HD_ERR_NOMEM, "%s: no memory for its name", path);
}

// The name says nothing about the target: the longest file name must still have room.
static hd_status create_temporary(hd_output *o, mode_t mode)
{
    size_t folder = folder_length(o->target);
    size_t bytes = folder + 40;
    o->temporary = malloc(bytes);
    if (!o->temporary) return hd_fail(HD_ERR_NOMEM, "%s: no memory for its name", o->path);
    memcpy(o->temporary, o->target, folder);
    for (int attempt = 0; attempt < 100; attempt++) {
        uint64_t random = 0;
        if (getrandom(&random, sizeof random, GRND_NONBLOCK) != sizeof random)
            random = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid() + (uint64_t)attempt;
        snprintf(o->temporary + folder, bytes - folder, ".heddle-%016llx.tmp",
                 (unsigned long long)random);
        o->fd = open(o->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (o->fd >= 0 || errno != EEXIST) break;
    }
    if (o->fd >= 0) return HD_OK;
    int error = errno;
    free(o->temporary);
    o->temporary = NULL;
    if (error == ENOENT || error == ENOTDIR)
        return hd_fail(HD_ERR_IO, "%s: there is no folder %.*s; make it first", o->path,
                       (int)folder, o->target);
    return output_failed(error, o->path, "create a file in its folder");
}

// Opens what `path` names: a temporary file for something that can be replaced, the thing itself
// for something that cannot.
static hd_status open_target(hd_output *o)
{
    int descriptor = named_descriptor(o->path);
    if (descriptor >= 0) {
        o->fd = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
        return o->fd >= 0 ? HD_OK : output_failed(errno, o->path, "write");
    }
    HD_TRY(follow_links(&o->target, o->path));
    if (o->target[folder_length(o->target)] == 0)
        return hd_fail(HD_ERR_IO, "%s: names a folder; add the name of a file", o->path);
    struct stat info;
    if (stat(o->target, &info) != 0) return create_temporary(o, 0666);
    if (S_ISDIR(info.st_mode))
        return hd_fail(HD_ERR_IO, "%s: is a folder; add the name of a file", o->path);
    if (S_ISREG(info.st_mode)) {
        if (faccessat(AT_FDCWD, o->target, W_OK, AT_EACCESS) != 0)
            return output_failed(errno, o->path, "replace it");
        HD_TRY(create_temporary(o, 0600));
        // The new file keeps the old one's permissions.
        return fchmod(o->fd, info.st_mode & 0777) == 0
                   ? HD_OK
                   : output_failed(errno, o->path, "keep its permissions");
    }
    if (!S_ISFIFO(info.st_mode) && !S_ISCHR(info.st_mode))
        return hd_fail(HD_ERR_IO, "%s: is a %s, not a file", o->path,
                       S_ISBLK(info.st_mode) ? "block device" : "socket");
    free(o->target);
    o->target = NULL;
    o->fd = open(o->path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
    return o->fd >= 0 ? HD_OK : output_failed(errno, o->path, "write");
}

hd_status hd_output_open(hd_output **out, const char *path)
{
    if (!path[0]) return hd_fail(HD_ERR_ARGUMENT, "the name of the output file is empty");
    hd_output *o = calloc(1, sizeof *o);
    if (!o) return hd_fail(HD_ERR_NOMEM, "%s: no memory to write it", path);
    o->fd = -1;
    o->path = strdup(path);
    hd_status status =
        o->path ? open_target(o) : hd_fail(HD_ERR_NOMEM, "%s: no memory to write it", path);
    if (status != HD_OK) {
        hd_output_discard(o);
        return status;
    }
    *out = o;
    return HD_OK;
}

// write(), with the signals of a closed pipe and of the file size limit kept from the program: both
// come back as errors.
static ssize_t write_quietly(int fd, const void *data, size_t bytes)
{
    sigset_t quiet, before, pending;
    sigemptyset(&quiet);
    sigaddset(&quiet, SIGPIPE);
    sigaddset(&quiet, SIGXFSZ);
    sigpending(&pending);
    pthread_sigmask(SIG_BLOCK, &quiet, &before);
    ssize_t count = write(fd, data, bytes);
    int error = count < 0 ? errno : 0;
    int raised = error == EPIPE ? SIGPIPE : error == EFBIG ? SIGXFSZ : 0;
    if (raised && !sigismember(&pending, raised)) {
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, raised);
        struct timespec now = {0, 0};
        while (sigtimedwait(&one, NULL, &now) < 0 && errno == EINTR)
            ;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    errno = error;
    return count;
}

hd_status hd_output_write(hd_output *o, const void *data, size_t bytes)
{
    const char *at = data;
    while (bytes > 0) {
        ssize_t count = write_quietly(o->fd, at, bytes);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return output_failed(errno, o->path, "write");
        at += count;
        bytes -= (size_t)count;
    }
    return HD_OK;
}

// A rename is on the disk once its folder is. Nothing can be done if that fails, and the file is
// whole either way. The name of the temporary file, which is gone, becomes that of the folder.
static void sync_folder(hd_output *o)
{
    size_t folder = folder_length(o->temporary);
    strcpy(o->temporary + folder, folder ? "" : ".");
    int fd = open(o->temporary, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0) return;
    (void)!fsync(fd);
    close(fd);
}

hd_status hd_output_commit(hd_output *o)
{
    hd_status status = HD_OK;
    // Some file systems cannot sync; what they do on close has to be enough.
    if (o->temporary && fsync(o->fd) != 0 && errno != EINVAL && errno != ENOTSUP)
        status = output_failed(errno, o->path, "write");
    int closed = close(o->fd);
    o->fd = -1;
    if (status == HD_OK && closed != 0) status = output_failed(errno, o->path, "write");
    if (status == HD_OK && o->temporary) {
        if (rename(o->temporary, o->target) == 0) {
            sync_folder(o);
            free(o->temporary);
            o->temporary = NULL;
        } else {
            status = output_failed(errno, o->path, "put it in place");
        }
    }
    hd_output_discard(o);
    return status;
}

void hd_output_discard(hd_output *o)
{
    if (!o) return;
    if (o->fd >= 0) close(o->fd);
    if (o->temporary) unlink(o->temporary);
    free(o->temporary);
    free(o->target);
    free(o->path);
    free(o);
}

const char *hd_output_path(const hd_output *o)
{
    return o->path;
}
