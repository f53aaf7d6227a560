/* base/tensor.h: a view of numbers in memory: where, of which type, how long and how far apart
 * along each axis.
 *
 * Passed by value; it owns and frees nothing. Axes are slowest first and channels are last: images
 * [N, H, W, C], tokens [N, L, C]. Sizes and strides are 64-bit and count elements. A tensor that
 * did not fit its arena has data == NULL, and the operator that meets it returns HD_ERR_NOMEM. */
#ifndef HD_BASE_TENSOR_H
#define HD_BASE_TENSOR_H

#include <stdbool.h>

#include "base/dtype.h"

HD_BEGIN_DECLS

#define HD_MAX_RANK 6

typedef struct hd_shape {
    int rank;
    int64_t dim[HD_MAX_RANK];
} hd_shape;

typedef struct hd_tensor {
    void *data;
    hd_dtype dtype;
    int rank;
    int64_t dim[HD_MAX_RANK];
    int64_t stride[HD_MAX_RANK]; // in elements
} hd_tensor;

static inline hd_shape hd_shape1(int64_t a)
{
    hd_shape s = {1, {a}};
    return s;
}
static inline hd_shape hd_shape2(int64_t a, int64_t b)
{
    hd_shape s = {2, {a, b}};
    return s;
}
static inline hd_shape hd_shape3(int64_t a, int64_t b, int64_t c)
{
    hd_shape s = {3, {a, b, c}};
    return s;
}
static inline hd_shape hd_shape4(int64_t a, int64_t b, int64_t c, int64_t d)
{
    hd_shape s = {4, {a, b, c, d}};
    return s;
}

/* Product of the sizes, 1 for rank 0; -1 when it does not fit 63 bits or a size is negative. */
int64_t hd_shape_count(hd_shape shape);
hd_shape hd_tensor_shape(hd_tensor t);
int64_t hd_tensor_count(hd_tensor t);
/* Elements x bytes of one: what a contiguous copy takes. */
int64_t hd_tensor_bytes(hd_tensor t);

/* A contiguous view of `data`. */
hd_tensor hd_tensor_of(void *data, hd_dtype dtype, hd_shape shape);
/* A tensor of no rank and no data: "this input is not given". hd_tensor_given tells. */
hd_tensor hd_tensor_none(void);
static inline bool hd_tensor_given(hd_tensor t)
{
    return t.rank > 0;
}
bool hd_tensor_contiguous(hd_tensor t);

/* The same elements under another shape. The tensor must be contiguous and the counts equal
 * (HD_ENSURE'd by the operator that meets the result: on a mismatch a tensor with data NULL comes
 * back). */
hd_tensor hd_tensor_reshape(hd_tensor t, hd_shape shape);
/* Elements start .. start + count - 1 along `axis`, as a view. The caller guarantees that they
 * exist. */
hd_tensor hd_tensor_slice(hd_tensor t, int axis, int64_t start, int64_t count);

/* "[2, 64, 64, 320] f32" into `text`, always terminated. Returns text. */
char *hd_tensor_text(char *text, size_t bytes, hd_tensor t);
char *hd_shape_text(char *text, size_t bytes, hd_shape shape);

/* HD_ERR_NOMEM for data == NULL; HD_ERR_SHAPE with `what` and both shapes if x differs from what is
 * expected. */
HD_CHECKED hd_status hd_expect_shape(const char *what, hd_tensor x, hd_dtype dtype, hd_shape shape);
/* x has the type and shape of `like`. */
HD_CHECKED hd_status hd_expect_like(const char *what, hd_tensor x, hd_tensor like);
/* x has the rank, data, and is contiguous. */
HD_CHECKED hd_status hd_expect_rank(const char *what, hd_tensor x, int rank);

HD_END_DECLS
#endif
