/* kernels/cpu/onednn.h: oneDNN's matmul and convolution, cut into pieces that one thread runs.
 *
 * A filter is a weight matrix or a convolution's weights, cut along its outputs into blocks and
 * packed once, in the order that oneDNN's fastest implementation for this machine asks for. A panel
 * is a shape of input (rows, or an image with its padding already around it), with the primitives
 * for it. Running a panel on a block multiplies on the calling thread alone: the numbers depend on
 * the panel's shape and on nothing else.
 *
 * The only file that knows oneDNN; 2.6 and 3.x. Its headers stay in the .c file. */
#ifndef HD_KERNELS_CPU_ONEDNN_H
#define HD_KERNELS_CPU_ONEDNN_H

#include <stdbool.h>

#include "base/pool.h"
#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_dnn hd_dnn;
typedef struct hd_dnn_panel hd_dnn_panel;

typedef struct hd_dnn_filter {
    int64_t in, out;
    int64_t kh, kw, stride; // 0, 0, 0: a matmul, y = x W^T
    int64_t block;          // outputs of a block; the last may have fewer
    hd_dtype compute;       // of x and the weights, HD_F32 (strict) or HD_BF16; sums are f32
    bool plain;             // a matmul by W [in, out] of the caller's, named at each run: one block
} hd_dnn_filter;

typedef struct hd_dnn_input {
    int64_t h, w;     // pixels of the input, padding included; a matmul has h = 1 and w rows
    int64_t x_stride; // elements from one row to the next (a convolution's pixels touch: `in`)
} hd_dnn_input;

/* Finds the implementation and takes the memory of the packed weights. HD_ERR_UNSUPPORTED when
 * oneDNN has none for the type on this machine. The caller owns *out. hd_dnn_free(NULL) does
 * nothing. */
HD_CHECKED hd_status hd_dnn_create(hd_dnn **out, hd_dnn_filter filter);
void hd_dnn_free(hd_dnn *dnn);
int64_t hd_dnn_blocks(const hd_dnn *dnn);
int64_t hd_dnn_block_out(const hd_dnn *dnn, int64_t block); // outputs of this block
int64_t hd_dnn_bytes(const hd_dnn *dnn);

/* Packs one block from `plain` [outputs of the block, in, kh, kw] in the compute type. Different
 * blocks may be packed by different threads at once. */
HD_CHECKED hd_status hd_dnn_pack(hd_dnn *dnn, int64_t block, const void *plain);

/* Where a packed block of convolution weights lies, for who wants to read it again: f32 or bf16
 * [kh, kw, in / pair, outputs, pair]. False: oneDNN packed it in another order. */
typedef struct hd_dnn_packed {
    const void *data;
    int64_t pair; // 1, or 2 for bf16
} hd_dnn_packed;
bool hd_dnn_packed_block(const hd_dnn *dnn, int64_t block, hd_dnn_packed *out);

/* The panel for this shape, for up to `threads` threads; made on first use, kept by `dnn`,
 * borrowed: it lives until some tens of other shapes were asked for. */
HD_CHECKED hd_status hd_dnn_panel_get(hd_dnn *dnn, int threads, hd_dnn_input input,
                                      hd_dnn_panel **out);
/* What a thread hands to hd_dnn_panel_run, 64-byte aligned. */
size_t hd_dnn_panel_scratch_bytes(const hd_dnn_panel *panel);
/* y [output pixels, outputs of the block] f32 without gaps. `thread` is below `threads`, and no two
 * threads share a number. */
HD_CHECKED hd_status hd_dnn_panel_run(hd_dnn_panel *panel, int thread, int64_t block, float *y,
                                      const void *x, void *scratch);
/* The same for a plain filter: y [rows, out] = x W. */
HD_CHECKED hd_status hd_dnn_panel_run_plain(hd_dnn_panel *panel, int thread, float *y,
                                            const void *x, const void *weights, void *scratch);
/* "brgconv:avx512_core_bf16": what oneDNN chose for whole blocks. */
const char *hd_dnn_panel_name(const hd_dnn_panel *panel);

/* The yardstick: seconds that oneDNN's own matmul takes, on its own `threads` threads and in its
 * own order of weights, for [m, k] x [k, n] in and out of `dtype`; the best of `repeats` runs. */
HD_CHECKED hd_status hd_dnn_matmul_seconds(double *out, hd_dtype dtype, int threads, int64_t m,
                                           int64_t k, int64_t n, int repeats);

/* oneDNN's version, "2.6.3". */
const char *hd_dnn_version(char text[32]);

HD_END_DECLS
#endif
