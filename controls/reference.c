/* controls/reference.c: see reference.h. */
#include "controls/reference.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/kept.h"
#include "engine/rng.h"

/* --- masks --- */

// Mean of line [from, to) of a row of `size` values, `step` apart.
static double mean_between(const float *line, int64_t step, int64_t size, double from, double to)
{
    double sum = 0;
    for (int64_t i = (int64_t)from; i < size && (double)i < to; i++) {
        const double first = fmax(from, (double)i), end = fmin(to, (double)(i + 1));
        sum += (end - first) * (double)line[i * step];
    }
    return sum / (to - from);
}

static double area_at(const float *mask, int64_t height, int64_t width, int64_t h, int64_t w,
                      int64_t y, int64_t x)
{
    const double down = (double)height / (double)h, across = (double)width / (double)w;
    const double top = (double)y * down, end = (double)(y + 1) * down;
    double sum = 0;
    for (int64_t i = (int64_t)top; i < height && (double)i < end; i++) {
        const double share = fmin(end, (double)(i + 1)) - fmax(top, (double)i);
        sum += share * mean_between(mask + i * width, 1, width, (double)x * across,
                                    (double)(x + 1) * across);
    }
    return sum / down;
}

// Place `at` of `size` among `count`: the one before it, and how far it is on the way to the next.
static int64_t between(int64_t at, int64_t size, int64_t count, double *share)
{
    double middle = ((double)at + 0.5) * (double)count / (double)size - 0.5;
    middle = fmin(fmax(middle, 0.0), (double)(count - 1));
    const int64_t first = (int64_t)middle;
    *share = middle - (double)first;
    return first;
}

static double bilinear_at(const float *mask, int64_t height, int64_t width, int64_t h, int64_t w,
                          int64_t y, int64_t x)
{
    double down, across;
    const int64_t top = between(y, h, height, &down), left = between(x, w, width, &across);
    const int64_t below = top + 1 < height ? top + 1 : top;
    const int64_t right = left + 1 < width ? left + 1 : left;
    const double upper = (1 - across) * (double)mask[top * width + left] +
                         across * (double)mask[top * width + right];
    const double lower = (1 - across) * (double)mask[below * width + left] +
                         across * (double)mask[below * width + right];
    return (1 - down) * upper + down * lower;
}

void reference_resize_mask(float *out, int64_t h, int64_t w, const float *mask, int64_t height,
                           int64_t width, reference_resize how)
{
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            float *to = &out[y * w + x];
            if (how == REFERENCE_NEAREST)
                *to = mask[y * height / h * width + x * width / w];
            else if (how == REFERENCE_BILINEAR)
                *to = (float)bilinear_at(mask, height, width, h, w, y, x);
            else
                *to = (float)area_at(mask, height, width, h, w, y, x);
        }
}

/* --- keys --- */

const hd_token_segment *reference_grid(const hd_token_layout *layout)
{
    for (int s = 0; s < layout->segments; s++)
        if (layout->segment[s].kind == HD_TOKENS_GRID) return &layout->segment[s];
    return NULL;
}

hd_status reference_columns_make(reference_columns *c, const hd_token_segment *grid, float weight,
                                 const float *mask, int64_t height, int64_t width,
                                 reference_resize how)
{
    const int64_t places = grid->height * grid->width;
    *c = (reference_columns){0};
    c->column = calloc((size_t)grid->count, sizeof *c->column);
    c->bias = calloc((size_t)grid->count, sizeof *c->bias);
    float *share = malloc((size_t)places * sizeof *share);
    if (!c->column || !c->bias || !share) {
        free(share);
        return hd_fail(HD_ERR_NOMEM, "no memory for the keys of a reference");
    }
    if (mask) reference_resize_mask(share, grid->height, grid->width, mask, height, width, how);
    for (int64_t i = 0; i < grid->count; i++) {
        const float w = mask ? weight * share[i % places] : weight;
        if (w <= 0.0f) continue; // no column at all: a bias of minus infinity would say the same
        c->column[c->count] = (int32_t)(grid->start + i);
        c->bias[c->count++] = logf(w);
        c->weighs |= w != 1.0f;
    }
    free(share);
    return HD_OK;
}

void reference_columns_free(reference_columns *c)
{
    free(c->column);
    free(c->bias);
    *c = (reference_columns){0};
}

hd_status reference_picture_open(reference_picture *r, const hd_begin_ctx *ctx, const char *branch,
                                 const char *path, const hd_json *node)
{
    const int number = hd_branches_find(ctx->branches, branch);
    r->aside = number >= 0 && ctx->branches->item[number].aside;
    r->height = r->aside ? ctx->branches->item[number].latent_height : ctx->height;
    r->width = r->aside ? ctx->branches->item[number].latent_width : ctx->width;
    if (!path) return HD_OK;
    r->mask = calloc((size_t)(r->height * r->width), sizeof *r->mask);
    if (!r->mask) return hd_fail(HD_ERR_NOMEM, "no memory for the mask of a reference");
    return number < 0 ? hd_begin_mask(ctx, node, path, r->mask)
                      : hd_begin_branch_mask(ctx, node, path, branch, r->mask);
}

hd_token_segment reference_picture_grid(const reference_picture *r, const hd_site *site,
                                        const hd_token_segment *grid)
{
    if (!r->aside) return *grid;
    // each halving of a network rounds up
    hd_token_segment own = {.kind = HD_TOKENS_GRID, .frames = 1};
    own.height = (r->height + site->factor - 1) / site->factor;
    own.width = (r->width + site->factor - 1) / site->factor;
    own.count = own.height * own.width;
    return own;
}

void reference_picture_keep(hd_prepare_ctx *ctx, const reference_picture *r, const char *branch,
                            const hd_token_segment *grid)
{
    for (int i = 0; i < ctx->keeps; i++)
        if (strcmp(ctx->keep[i].branch, branch) == 0) return;
    if (!r->aside || ctx->keeps == HD_MAX_KEEPS) return;
    ctx->keep[ctx->keeps].branch = branch;
    ctx->keep[ctx->keeps++].tokens = grid->count;
}

int64_t reference_find(const hd_hook_ctx *ctx, const hd_tokens *tokens, const char *branch,
                       int64_t picture, hd_tensor *k, hd_tensor *v)
{
    *k = tokens->k, *v = tokens->v;
    const int64_t row = hd_rows_find(&ctx->call->forward->rows, branch, "cond", picture);
    return row >= 0 ? row : hd_kept_keys(ctx, branch, picture, k, v) ? 0 : -1;
}

static char *token_at(hd_tensor t, int64_t row, int64_t token)
{
    return (char *)t.data +
           (size_t)(row * t.stride[0] + token * t.stride[1]) * hd_dtype_size(t.dtype);
}

// `count` tokens behind each other; to is contiguous, from may be a view.
static void copy_run(hd_tensor to, int64_t row, int64_t at, hd_tensor from, int64_t source,
                     int64_t first, int64_t count)
{
    const size_t head = (size_t)from.dim[3] * hd_dtype_size(from.dtype);
    const bool whole = from.stride[2] == from.dim[3] && from.stride[1] == from.dim[2] * from.dim[3];
    if (whole) {
        memcpy(token_at(to, row, at), token_at(from, source, first),
               (size_t)(count * from.dim[2]) * head);
        return;
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t h = 0; h < from.dim[2]; h++)
            memcpy(token_at(to, row, at + i) + (size_t)h * head,
                   token_at(from, source, first + i) +
                       (size_t)(h * from.stride[2]) * hd_dtype_size(from.dtype),
                   head);
}

void reference_append(hd_tokens *tokens, int64_t row, const reference_columns *c, hd_tensor k,
                      hd_tensor v, int64_t source)
{
    int64_t at = tokens->key_len[row];
    for (int64_t i = 0, end; i < c->count; i = end) {
        for (end = i + 1; end < c->count && c->column[end] == c->column[end - 1] + 1;)
            end++;
        copy_run(tokens->k, row, at + i, k, source, c->column[i], end - i);
        copy_run(tokens->v, row, at + i, v, source, c->column[i], end - i);
    }
    tokens->key_len[row] = at + c->count;
}

void reference_bias(const hd_logits *logits, int64_t row, int64_t start, const reference_columns *c)
{
    const hd_tensor b = logits->column_bias;
    if (!c->weighs) return;
    for (int64_t h = 0; h < b.dim[1]; h++) {
        float *to = (float *)b.data + row * b.stride[0] + h * b.stride[1] + start;
        for (int64_t i = 0; i < c->count; i++)
            to[i] += c->bias[i];
    }
}

/* --- branches --- */

bool reference_is_target(const char *branch)
{
    return strcmp(branch, "main") == 0 || strncmp(branch, "target.", 7) == 0;
}

hd_status reference_add_noise(const hd_beside_ctx *ctx, const char *branch, hd_noise_level level,
                              uint64_t salt, bool fresh)
{
    hd_beside_branch *b = hd_beside(ctx, branch);
    const float now = hd_sampler_level(ctx->sampler, ctx->step.index).divisor;
    hd_rng *rng;
    // one odd factor each: pictures, references and steps have noises of their own
    uint64_t seed = ctx->seed + 0x9e3779b1u * (salt + 1);
    if (fresh) seed += 0x85ebca77u * (uint64_t)(ctx->step.index + 1);
    HD_TRY(hd_rng_create(&rng, HD_RNG_CPU, seed));
    hd_rng_normal(rng, b->latent, b->values);
    hd_rng_free(rng);
    // the pipeline divides by the divisor of this call, whatever the level
    const float back = now / level.divisor;
    for (int64_t i = 0; i < b->values; i++)
        b->latent[i] = (level.alpha * b->clean[i] + level.sigma * b->latent[i]) * back;
    b->timestep = level.timestep;
    return HD_OK;
}
