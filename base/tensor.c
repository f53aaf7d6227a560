/* base/tensor.c: views: making, cutting, naming and checking them. */
#include "base/tensor.h"

#include <stdio.h>

int64_t hd_shape_count(hd_shape shape)
{
    int64_t count = 1;
    for (int i = 0; i < shape.rank; i++)
        if (shape.dim[i] < 0 || __builtin_mul_overflow(count, shape.dim[i], &count)) return -1;
    return count;
}

hd_shape hd_tensor_shape(hd_tensor t)
{
    hd_shape shape = {.rank = t.rank};
    for (int i = 0; i < t.rank; i++)
        shape.dim[i] = t.dim[i];
    return shape;
}

int64_t hd_tensor_count(hd_tensor t)
{
    return hd_shape_count(hd_tensor_shape(t));
}

int64_t hd_tensor_bytes(hd_tensor t)
{
    int64_t bytes;
    if (__builtin_mul_overflow(hd_tensor_count(t), (int64_t)hd_dtype_size(t.dtype), &bytes))
        return -1;
    return bytes;
}

hd_tensor hd_tensor_of(void *data, hd_dtype dtype, hd_shape shape)
{
    hd_tensor t = {.data = data, .dtype = dtype, .rank = shape.rank};
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; i--) {
        t.dim[i] = shape.dim[i];
        t.stride[i] = stride;
        // wraps for a shape that no memory can hold: data is NULL then
        (void)__builtin_mul_overflow(stride, shape.dim[i], &stride);
    }
    return t;
}

hd_tensor hd_tensor_none(void)
{
    return (hd_tensor){.data = NULL, .rank = 0};
}

bool hd_tensor_contiguous(hd_tensor t)
{
    int64_t stride = 1;
    for (int i = t.rank - 1; i >= 0; i--) {
        if (t.dim[i] != 1 && t.stride[i] != stride) return false;
        (void)__builtin_mul_overflow(stride, t.dim[i], &stride);
    }
    return true;
}

hd_tensor hd_tensor_reshape(hd_tensor t, hd_shape shape)
{
    bool fits = hd_tensor_contiguous(t) && hd_shape_count(shape) == hd_tensor_count(t);
    return hd_tensor_of(fits ? t.data : NULL, t.dtype, shape);
}

hd_tensor hd_tensor_slice(hd_tensor t, int axis, int64_t start, int64_t count)
{
    if (t.data) t.data = (char *)t.data + start * t.stride[axis] * (int64_t)hd_dtype_size(t.dtype);
    t.dim[axis] = count;
    return t;
}

char *hd_shape_text(char *text, size_t bytes, hd_shape shape)
{
    size_t used = 0;
    text[0] = 0;
    for (int i = 0; i < shape.rank && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%lld", i ? ", " : "[",
                                 (long long)shape.dim[i]);
    if (used < bytes) snprintf(text + used, bytes - used, shape.rank ? "]" : "[]");
    return text;
}

char *hd_tensor_text(char *text, size_t bytes, hd_tensor t)
{
    char shape[160];
    snprintf(text, bytes, "%s %s", hd_shape_text(shape, sizeof shape, hd_tensor_shape(t)),
             hd_dtype_name(t.dtype));
    return text;
}

hd_status hd_expect_shape(const char *what, hd_tensor x, hd_dtype dtype, hd_shape shape)
{
    bool same = x.rank == shape.rank && x.dtype == dtype;
    for (int i = 0; same && i < shape.rank; i++)
        same = x.dim[i] == shape.dim[i];
    if (!same) {
        char found[200], expected[160];
        return hd_fail(HD_ERR_SHAPE, "%s is %s, expected %s %s", what,
                       hd_tensor_text(found, sizeof found, x),
                       hd_shape_text(expected, sizeof expected, shape), hd_dtype_name(dtype));
    }
    if (!x.data && hd_shape_count(shape) > 0)
        return hd_fail(HD_ERR_NOMEM, "%s has no memory: the arena is full", what);
    return HD_OK;
}

hd_status hd_expect_like(const char *what, hd_tensor x, hd_tensor like)
{
    return hd_expect_shape(what, x, like.dtype, hd_tensor_shape(like));
}

hd_status hd_expect_rank(const char *what, hd_tensor x, int rank)
{
    char text[200];
    if (x.rank != rank)
        return hd_fail(HD_ERR_SHAPE, "%s is %s, expected %d axes", what,
                       hd_tensor_text(text, sizeof text, x), rank);
    if (!x.data && hd_tensor_count(x) > 0)
        return hd_fail(HD_ERR_NOMEM, "%s has no memory: the arena is full", what);
    if (!hd_tensor_contiguous(x))
        return hd_fail(HD_ERR_SHAPE, "%s %s is not contiguous", what,
                       hd_tensor_text(text, sizeof text, x));
    return HD_OK;
}
