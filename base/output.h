/* base/output.h: a file that appears whole or not at all.
 *
 * What is written goes to a temporary file in the folder of the target; hd_output_commit puts it in
 * place in one step, so that a failure, a full disk or Ctrl-C leaves what was there before. A
 * symbolic link stays a link: the file it names is replaced. A pipe, a terminal, a character device
 * and an open descriptor (/dev/stdout, /dev/fd/3) cannot be replaced and are written directly. */
#ifndef HD_BASE_OUTPUT_H
#define HD_BASE_OUTPUT_H

#include <stddef.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef struct hd_output hd_output;

/* HD_ERR_IO with the reason and the path when nothing can be written there: no such folder, no
 * permission, a folder, a block device. The caller owns *out and ends it with hd_output_commit or
 * hd_output_discard. */
HD_CHECKED hd_status hd_output_open(hd_output **out, const char *path);

/* Appends. HD_ERR_IO with the path: disk full, reader gone. No signal is raised. */
HD_CHECKED hd_status hd_output_write(hd_output *output, const void *data, size_t bytes);

/* Brings the bytes to the disk and the file to its name, and frees `output`; when that fails, the
 * temporary file is removed and `output` is freed all the same. */
HD_CHECKED hd_status hd_output_commit(hd_output *output);

/* Removes the temporary file and frees `output`; hd_output_discard(NULL) does nothing. */
void hd_output_discard(hd_output *output);

const char *hd_output_path(const hd_output *output); // as it was given to hd_output_open

HD_END_DECLS
#endif
