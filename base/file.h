/* base/file.h: reading files, with errors that name them. */
#ifndef HD_BASE_FILE_H
#define HD_BASE_FILE_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* HD_ERR_IO naming the file: missing, a folder, no permission. The caller closes *fd. */
HD_CHECKED hd_status hd_file_open(int *fd, const char *path);
/* The size of an open file; HD_ERR_IO when it is no regular file (a pipe has no size). */
HD_CHECKED hd_status hd_file_size(int fd, const char *path, int64_t *bytes);
/* `bytes` bytes from `offset`; HD_ERR_IO when the file ends earlier or cannot be read. Several
 * threads may read one descriptor. */
HD_CHECKED hd_status hd_file_read_at(int fd, const char *path, int64_t offset, void *into,
                                     int64_t bytes);
/* A whole file or pipe, with a 0 after its end that *bytes does not count. More than `most_bytes`
 * is HD_ERR_FORMAT. The caller frees *text. */
HD_CHECKED hd_status hd_file_read(char **text, size_t *bytes, const char *path, size_t most_bytes);

HD_END_DECLS
#endif
