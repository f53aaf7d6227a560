/* engine/attention/edit.c: rows of q, k, v and out. */
#include "engine/attention/edit.h"

#include <string.h>

static char *head_at(hd_tensor t, int64_t row, int64_t token, int64_t head)
{
    int64_t at = row * t.stride[0] + token * t.stride[1] + head * t.stride[2];
    return (char *)t.data + at * (int64_t)hd_dtype_size(t.dtype);
}

static float value_at(const char *p, hd_dtype dtype, int64_t i)
{
    return dtype == HD_BF16 ? hd_bf16_to_f32(((const hd_bf16 *)p)[i]) : ((const float *)p)[i];
}

static void put(char *p, hd_dtype dtype, int64_t i, float x)
{
    if (dtype == HD_BF16)
        ((hd_bf16 *)p)[i] = hd_bf16_from_f32(x);
    else
        ((float *)p)[i] = x;
}

// Do the heads of a token, and the tokens of a row, stand one behind the other?
static bool dense_row(hd_tensor t)
{
    return t.stride[2] == t.dim[3] && t.stride[1] == t.dim[2] * t.dim[3];
}

void hd_edit_copy(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens)
{
    if (dense_row(to) && dense_row(from)) {
        memcpy(head_at(to, row, 0, 0), head_at(from, source, 0, 0),
               (size_t)(tokens * to.dim[2] * to.dim[3]) * hd_dtype_size(to.dtype));
        return;
    }
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t h = 0; h < to.dim[2]; h++)
            memcpy(head_at(to, row, i, h), head_at(from, source, i, h),
                   (size_t)to.dim[3] * hd_dtype_size(to.dtype));
}

// y += part (x - y), in loops that a compiler vectorises.
static void mix_values(char *y, const char *x, hd_dtype dtype, int64_t count, float part)
{
    if (dtype == HD_F32) {
        float *own = (float *)y;
        const float *other = (const float *)x;
        for (int64_t d = 0; d < count; d++)
            own[d] += part * (other[d] - own[d]);
        return;
    }
    for (int64_t d = 0; d < count; d++) {
        const float own = value_at(y, dtype, d);
        put(y, dtype, d, own + part * (value_at(x, dtype, d) - own));
    }
}

void hd_edit_mix(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens,
                 float share, const float *weight)
{
    if (share == 1.0f && !weight) {
        hd_edit_copy(to, row, from, source, tokens);
        return;
    }
    const bool dense = dense_row(to) && dense_row(from);
    const int64_t heads = dense ? 1 : to.dim[2], values = dense ? to.dim[2] * to.dim[3] : to.dim[3];
    for (int64_t i = 0; i < tokens; i++) {
        const float part = weight ? share * weight[i] : share;
        if (part == 0.0f) continue;
        for (int64_t h = 0; h < heads; h++) {
            char *y = head_at(to, row, i, h), *x = head_at(from, source, i, h);
            if (part == 1.0f)
                memcpy(y, x, (size_t)values * hd_dtype_size(to.dtype));
            else
                mix_values(y, x, to.dtype, values, part);
        }
    }
}

void hd_edit_add(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t tokens,
                 float factor)
{
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t h = 0; h < to.dim[2]; h++) {
            char *y = head_at(to, row, i, h), *x = head_at(from, source, i, h);
            for (int64_t d = 0; d < to.dim[3]; d++)
                put(y, to.dtype, d, value_at(y, to.dtype, d) + factor * value_at(x, from.dtype, d));
        }
}

// One head, in f32 on the stack, a stretch of channels at a time.
static void recombine_head(hd_tensor to, int64_t row, hd_tensor from, int64_t source, int64_t head,
                           int64_t token, const hd_edit_term *term, int64_t terms)
{
    enum { STRETCH = 64 };
    for (int64_t d = 0; d < to.dim[3]; d += STRETCH) {
        const int64_t n = to.dim[3] - d < STRETCH ? to.dim[3] - d : STRETCH;
        float sum[STRETCH] = {0};
        for (int64_t k = 0; k < terms; k++) {
            const char *x = head_at(from, source, term[k].from, head);
            for (int64_t i = 0; i < n; i++)
                sum[i] += term[k].share * value_at(x, from.dtype, d + i);
        }
        char *y = head_at(to, row, token, head);
        for (int64_t i = 0; i < n; i++)
            put(y, to.dtype, d + i, sum[i]);
    }
}

void hd_edit_recombine(hd_tensor to, int64_t row, hd_tensor from, int64_t source,
                       const hd_edit_term *term, int64_t terms)
{
    // terms of one token stand together
    for (int64_t token = 0, k = 0; token < to.dim[1]; token++) {
        while (k < terms && term[k].to < token)
            k++;
        int64_t end = k;
        while (end < terms && term[end].to == token)
            end++;
        for (int64_t h = 0; h < to.dim[2]; h++)
            recombine_head(to, row, from, source, h, token, term + k, end - k);
        k = end;
    }
}
