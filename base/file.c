/* base/file.c: open, size, read at, read all. */
#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

hd_status hd_file_open(int *fd, const char *path)
{
    struct stat info;
    int opened = open(path, O_RDONLY | O_CLOEXEC);
    if (opened >= 0 && fstat(opened, &info) == 0 && S_ISDIR(info.st_mode)) {
        close(opened);
        opened = -1;
        errno = EISDIR;
    }
    *fd = opened;
    if (opened >= 0) return HD_OK;
    switch (errno) {
    case ENOENT:
    case ENOTDIR:
        return hd_fail(HD_ERR_IO, "%s: there is no such file", path);
    case EISDIR:
        return hd_fail(HD_ERR_IO, "%s: is a folder, not a file", path);
    case EACCES:
    case EPERM:
        return hd_fail(HD_ERR_IO, "%s: no permission to read it", path);
    default:
        return hd_fail(HD_ERR_IO, "%s: cannot open it: %s", path, strerror(errno));
    }
}

hd_status hd_file_size(int fd, const char *path, int64_t *bytes)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return hd_fail(HD_ERR_IO, "%s: cannot read its size: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode)) return hd_fail(HD_ERR_IO, "%s: is not a regular file", path);
    *bytes = info.st_size;
    return HD_OK;
}

hd_status hd_file_read_at(int fd, const char *path, int64_t offset, void *into, int64_t bytes)
{
    char *at = into;
    while (bytes > 0) {
        ssize_t count = pread(fd, at, (size_t)bytes, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count < 0) return hd_fail(HD_ERR_IO, "%s: cannot read it: %s", path, strerror(errno));
        if (count == 0)
            return hd_fail(HD_ERR_IO,
                           "%s: ends at byte %lld, %lld more were expected; was it cut or replaced "
                           "while it was read?",
                           path, (long long)offset, (long long)bytes);
        at += count;
        offset += count;
        bytes -= count;
    }
    return HD_OK;
}

static hd_status read_all(int fd, char **text, size_t *bytes, const char *path, size_t most_bytes)
{
    struct stat info;
    size_t room = 65536; // of a pipe, at first
    if (fstat(fd, &info) == 0 && info.st_size > 0) room = (size_t)info.st_size + 1;
    if (room > most_bytes + 1) room = most_bytes + 1;
    char *all = malloc(room + 1);
    size_t used = 0;
    while (all) {
        ssize_t count = read(fd, all + used, room - used);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) {
            int error = count < 0 ? errno : 0;
            if (error) free(all);
            if (error) return hd_fail(HD_ERR_IO, "%s: cannot read it: %s", path, strerror(error));
            all[used] = 0;
            *text = all;
            *bytes = used;
            return HD_OK;
        }
        used += (size_t)count;
        if (used > most_bytes) {
            free(all);
            return hd_fail(HD_ERR_FORMAT, "%s: is larger than %zu bytes, the most that is read",
                           path, most_bytes);
        }
        if (used < room) continue;
        room = room * 2 < most_bytes + 1 ? room * 2 : most_bytes + 1;
        char *more = realloc(all, room + 1);
        if (!more) free(all);
        all = more;
    }
    return hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", path);
}

hd_status hd_file_read(char **text, size_t *bytes, const char *path, size_t most_bytes)
{
    int fd;
    HD_TRY(hd_file_open(&fd, path));
    hd_status status = read_all(fd, text, bytes, path, most_bytes);
    close(fd);
    return status;
}
