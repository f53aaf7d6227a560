/* tests/fuzz/fuzz_safetensors.c: any bytes are a .safetensors file or an error, and every tensor of
 * a file that was accepted can be read to its last byte. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "engine/weights/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void read_all(const hd_safetensors *file, int64_t file_bytes)
{
    int64_t all = 0;
    for (int64_t i = 0; i < hd_safetensors_count(file); i++) {
        const hd_safetensors_entry *e = hd_safetensors_at(file, i);
        if (e->bytes < 0 || e->offset < 8 || e->offset > file_bytes - e->bytes) abort();
        // exactly as large as it is said to be: the sanitizer sees a byte too much
        char *into = malloc(e->bytes ? (size_t)e->bytes : 1);
        if (!into) abort();
        if (hd_safetensors_read(file, e, 0, into, e->bytes) != HD_OK) abort();
        free(into);
        all += e->bytes;
    }
    if (all > file_bytes) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    static int fd = -1; // one file in memory for all runs
    static char path[64];
    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (ftruncate(fd, 0) != 0 || pwrite(fd, data, bytes, 0) != (ssize_t)bytes) abort();
    hd_safetensors *file;
    if (hd_safetensors_open(&file, path) != HD_OK) return 0;
    read_all(file, (int64_t)bytes);
    hd_safetensors_free(file);
    return 0;
}
