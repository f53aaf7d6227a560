/* engine/ops/norm.c: group, layer and RMS norm: checks, the cut into pieces, the choice of kernel.
 *
 * Statistics of a group norm: a row is cut into pieces by its own shape alone, each piece is summed
 * per channel by one thread, and the pieces are added in ascending order. So a row's bytes depend
 * neither on the threads nor on the rows beside it. */
#include "engine/ops/norm.h"

#include <math.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/ops/spans.h"
#include "kernels/norm.h"

#define PIECES_MAX 64 // of a row whose sums are kept: bounds the scratch

static const hd_norm_kernels *norm_kernels(const hd_exec *ex)
{
    static const hd_norm_kernels *const variants[] = {
#if HD_WITH_AVX512
        &hd_norm_avx512,
#endif
#if HD_WITH_AVX2
        &hd_norm_avx2,
#endif
        &hd_norm_reference,
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i]->needs)) return variants[i];
    return NULL;
}

hd_scale_shift *hd_scale_shift_kernel(const hd_exec *ex)
{
    return norm_kernels(ex)->scale_shift;
}

static hd_status norm_expect(const char *what, const hd_norm_kernels *kernels, hd_tensor x)
{
    char text[200];
    if (!kernels) return hd_fail(HD_ERR_UNSUPPORTED, "%s: no variant for this device", what);
    if (x.rank < 1 || (x.dtype != HD_F32 && x.dtype != HD_BF16) || x.dim[x.rank - 1] < 1)
        return hd_fail(HD_ERR_SHAPE, "%s: x is %s, expected [..., C] f32 or bf16", what,
                       hd_tensor_text(text, sizeof text, x));
    return hd_expect_rank(what, x, x.rank);
}

static hd_status norm_expect_groups(const hd_norm_kernels *kernels, hd_tensor x, int groups)
{
    HD_TRY(norm_expect("group_norm", kernels, x));
    char text[200];
    if (x.rank < 2)
        return hd_fail(HD_ERR_SHAPE, "group_norm: x is %s, expected [B, ..., C]",
                       hd_tensor_text(text, sizeof text, x));
    if (groups < 1 || x.dim[x.rank - 1] % groups != 0)
        return hd_fail(HD_ERR_SHAPE, "group_norm: %lld channels cannot be cut into %d groups",
                       (long long)x.dim[x.rank - 1], groups);
    return HD_OK;
}

static int64_t min64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t pieces_of(int64_t count, int64_t piece)
{
    return (count + piece - 1) / piece;
}

typedef struct group_work {
    const hd_norm_kernels *kernels;
    hd_tensor x, y;
    int64_t pixels, channels; // of one row
    int64_t piece, pieces;    // pixels of a piece, pieces of a row
    double *sums;             // [B, pieces, 2, C]
    const float *scale, *shift;
    hd_activation act;
} group_work;

static group_work group_work_of(const hd_norm_kernels *kernels, hd_tensor y, hd_tensor x,
                                int64_t pieces_max)
{
    group_work w = {.kernels = kernels, .x = x, .y = y, .pixels = 1, .piece = 1};
    w.channels = x.dim[x.rank - 1];
    for (int i = 1; i < x.rank - 1; i++)
        w.pixels *= x.dim[i];
    int64_t pieces = min64(pieces_of(w.pixels * w.channels, HD_SPAN_ELEMENTS), pieces_max);
    if (pieces > 0) w.piece = pieces_of(w.pixels, pieces);
    w.pieces = pieces_of(w.pixels, w.piece);
    return w;
}

static char *group_piece(const group_work *w, hd_tensor t, int64_t item, int64_t *pixels)
{
    int64_t row = item / w->pieces, from = item % w->pieces * w->piece;
    *pixels = min64(w->piece, w->pixels - from);
    int64_t offset = (row * w->pixels + from) * w->channels;
    return (char *)t.data + offset * (int64_t)hd_dtype_size(t.dtype);
}

static hd_status group_sum(void *arg, int64_t item, int thread)
{
    const group_work *w = arg;
    (void)thread;
    int64_t pixels;
    const void *x = group_piece(w, w->x, item, &pixels);
    double *sum = w->sums + item * 2 * w->channels;
    memset(sum, 0, (size_t)w->channels * 2 * sizeof *sum);
    w->kernels->channel_sums(sum, sum + w->channels, x, w->x.dtype, pixels, w->channels);
    return HD_OK;
}

static hd_status group_apply(void *arg, int64_t item, int thread)
{
    const group_work *w = arg;
    (void)thread;
    int64_t pixels, row = item / w->pieces;
    const void *x = group_piece(w, w->x, item, &pixels);
    void *y = group_piece(w, w->y, item, &pixels);
    w->kernels->scale_shift(y, w->y.dtype, x, w->x.dtype, w->scale + row * w->channels,
                            w->shift + row * w->channels, pixels, w->channels, w->act);
    return HD_OK;
}

// The sums of one row to its scale and shift; the sums of its first piece become those of the row.
static void group_finish(const group_work *w, double *sums, float *scale, float *shift,
                         const float *gamma, const float *beta, int groups, double eps)
{
    int64_t channels = w->channels, size = channels / groups;
    for (int64_t p = 1; p < w->pieces; p++)
        for (int64_t c = 0; c < 2 * channels; c++)
            sums[c] += sums[p * 2 * channels + c];
    double count = (double)(w->pixels * size);
    for (int64_t first = 0; first < channels; first += size) {
        double sum = 0, square = 0;
        for (int64_t c = first; c < first + size; c++) {
            sum += sums[c];
            square += sums[channels + c];
        }
        double mean = sum / count, variance = fmax(square / count - mean * mean, 0);
        double rate = 1 / sqrt(variance + eps);
        for (int64_t c = first; c < first + size; c++) {
            double factor = rate * (gamma ? (double)gamma[c] : 1);
            scale[c] = (float)factor;
            shift[c] = (float)((beta ? (double)beta[c] : 0) - mean * factor);
        }
    }
}

hd_status hd_group_norm_stats(const hd_exec *ex, hd_tensor scale, hd_tensor shift, hd_tensor x,
                              const float *gamma, const float *beta, int groups, float eps)
{
    const hd_norm_kernels *kernels = norm_kernels(ex);
    HD_TRY(norm_expect_groups(kernels, x, groups));
    group_work w = group_work_of(kernels, x, x, PIECES_MAX);
    hd_shape per_channel = hd_shape2(x.dim[0], w.channels);
    HD_TRY(hd_expect_shape("group_norm: scale", scale, HD_F32, per_channel));
    HD_TRY(hd_expect_shape("group_norm: shift", shift, HD_F32, per_channel));
    HD_ENSURE(ex->arena && hd_tensor_contiguous(scale) && hd_tensor_contiguous(shift));
    int64_t rows = w.pixels > 0 ? x.dim[0] : 0;

    size_t mark = hd_arena_mark(ex->arena);
    int64_t row_sums = w.pieces * 2 * w.channels;
    w.sums = hd_arena_bytes(ex->arena, (size_t)(rows * row_sums) * sizeof *w.sums);
    if (!w.sums) return hd_fail(HD_ERR_NOMEM, "group_norm: the arena is full");
    hd_status status = HD_OK;
    if (!ex->recording) {
        status = hd_parallel_for(ex->pool, rows * w.pieces, group_sum, &w);
        for (int64_t row = 0; row < rows && status == HD_OK; row++)
            group_finish(&w, w.sums + row * row_sums, (float *)scale.data + row * w.channels,
                         (float *)shift.data + row * w.channels, gamma, beta, groups, (double)eps);
    }
    hd_arena_rewind(ex->arena, mark);
    return status;
}

hd_status hd_group_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma,
                        const float *beta, int groups, float eps, hd_activation act)
{
    const hd_norm_kernels *kernels = norm_kernels(ex);
    HD_TRY(norm_expect_groups(kernels, x, groups));
    HD_TRY(hd_expect_like("group_norm: y", y, x));
    HD_ENSURE(ex->arena && hd_tensor_contiguous(y));
    group_work w = group_work_of(kernels, y, x, INT64_MAX);

    size_t mark = hd_arena_mark(ex->arena);
    hd_shape per_channel = hd_shape2(x.dim[0], w.channels);
    hd_tensor scale = hd_arena_tensor(ex->arena, HD_F32, per_channel);
    hd_tensor shift = hd_arena_tensor(ex->arena, HD_F32, per_channel);
    hd_status status = hd_group_norm_stats(ex, scale, shift, x, gamma, beta, groups, eps);
    if (status == HD_OK && !ex->recording) {
        w.scale = scale.data;
        w.shift = shift.data;
        w.act = act;
        status = hd_parallel_for(ex->pool, x.dim[0] * w.pieces, group_apply, &w);
    }
    hd_arena_rewind(ex->arena, mark);
    return status;
}

typedef struct row_work {
    const hd_norm_kernels *kernels;
    hd_tensor x, y;
    const float *gamma, *beta;
    float eps;
    int64_t channels;
    bool centred; // layer norm; else RMS norm
} row_work;

static hd_status row_piece(const void *arg, int64_t from, int64_t rows)
{
    const row_work *w = arg;
    int64_t offset = from * w->channels * (int64_t)hd_dtype_size(w->x.dtype);
    const void *x = (const char *)w->x.data + offset;
    void *y = (char *)w->y.data + offset;
    if (w->centred)
        w->kernels->layer_norm(y, x, w->x.dtype, w->gamma, w->beta, w->eps, rows, w->channels);
    else
        w->kernels->rms_norm(y, x, w->x.dtype, w->gamma, w->eps, rows, w->channels);
    return HD_OK;
}

static hd_status norm_rows(const hd_exec *ex, row_work w)
{
    if (ex->recording) return HD_OK;
    w.channels = w.x.dim[w.x.rank - 1];
    return hd_for_spans(ex, hd_tensor_count(w.x) / w.channels, w.channels, row_piece, &w);
}

hd_status hd_layer_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma,
                        const float *beta, float eps)
{
    const hd_norm_kernels *kernels = norm_kernels(ex);
    HD_TRY(norm_expect("layer_norm", kernels, x));
    HD_TRY(hd_expect_like("layer_norm: y", y, x));
    HD_ENSURE(hd_tensor_contiguous(y));
    return norm_rows(ex, (row_work){.kernels = kernels,
                                    .x = x,
                                    .y = y,
                                    .gamma = gamma,
                                    .beta = beta,
                                    .eps = eps,
                                    .centred = true});
}

hd_status hd_rms_norm(const hd_exec *ex, hd_tensor y, hd_tensor x, const float *gamma, float eps)
{
    const hd_norm_kernels *kernels = norm_kernels(ex);
    HD_TRY(norm_expect("rms_norm", kernels, x));
    HD_TRY(hd_expect_like("rms_norm: y", y, x));
    HD_ENSURE(hd_tensor_contiguous(y));
    return norm_rows(ex,
                     (row_work){.kernels = kernels, .x = x, .y = y, .gamma = gamma, .eps = eps});
}
