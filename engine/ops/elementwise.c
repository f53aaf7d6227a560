/* engine/ops/elementwise.c: activations, sums and the timestep embedding: checks, the cut into
 * pieces, the choice of kernel. What only moves memory is in layout.c. */
#include "engine/ops/elementwise.h"

#include <math.h>

#include "engine/ops/spans.h"
#include "kernels/elementwise.h"

typedef struct elementwise_work {
    const hd_elementwise_kernels *kernels;
    hd_tensor y, a, b;
    int64_t channels; // of a row of y, for GEGLU
    hd_activation act;
    float factor, offset;
} elementwise_work;

static const hd_elementwise_kernels *elementwise_kernels(const hd_exec *ex)
{
    static const hd_elementwise_kernels *const variants[] = {
#if HD_WITH_AVX512
        &hd_elementwise_avx512,
#endif
#if HD_WITH_AVX2
        &hd_elementwise_avx2,
#endif
        &hd_elementwise_reference,
    };
    for (size_t i = 0; i < HD_COUNT(variants); i++)
        if (hd_exec_has(ex, variants[i]->needs)) return variants[i];
    return NULL;
}

static void *at(hd_tensor t, int64_t element)
{
    return (char *)t.data + element * (int64_t)hd_dtype_size(t.dtype);
}

static hd_status elementwise_expect(const char *what, elementwise_work *w, const hd_exec *ex)
{
    char text[200];
    w->kernels = elementwise_kernels(ex);
    if (!w->kernels) return hd_fail(HD_ERR_UNSUPPORTED, "%s: no variant for this device", what);
    if (w->a.dtype != HD_F32 && w->a.dtype != HD_BF16)
        return hd_fail(HD_ERR_SHAPE, "%s: x is %s, expected f32 or bf16", what,
                       hd_tensor_text(text, sizeof text, w->a));
    HD_TRY(hd_expect_rank(what, w->a, w->a.rank));
    return hd_expect_rank(what, w->y, w->y.rank); // y's shape is the caller's to check
}

static hd_status run_activate(const void *arg, int64_t from, int64_t count)
{
    const elementwise_work *w = arg;
    w->kernels->activate(at(w->y, from), at(w->a, from), w->y.dtype, count, w->act);
    return HD_OK;
}

hd_status hd_activate(const hd_exec *ex, hd_tensor y, hd_tensor x, hd_activation act)
{
    elementwise_work w = {.y = y, .a = x, .act = act};
    HD_TRY(hd_expect_like("activate: y", y, x));
    HD_TRY(elementwise_expect("activate", &w, ex));
    if (ex->recording) return HD_OK;
    return hd_for_spans(ex, hd_tensor_count(x), 1, run_activate, &w);
}

static hd_status run_geglu(const void *arg, int64_t from, int64_t count)
{
    const elementwise_work *w = arg;
    w->kernels->geglu(at(w->y, from * w->channels), at(w->a, from * 2 * w->channels), w->y.dtype,
                      count, w->channels);
    return HD_OK;
}

hd_status hd_geglu(const hd_exec *ex, hd_tensor y, hd_tensor x)
{
    elementwise_work w = {.y = y, .a = x};
    char text[200];
    if (x.rank < 1 || x.dim[x.rank - 1] % 2 != 0)
        return hd_fail(HD_ERR_SHAPE, "geglu: x is %s, expected an even number of channels",
                       hd_tensor_text(text, sizeof text, x));
    hd_shape half = hd_tensor_shape(x);
    w.channels = half.dim[half.rank - 1] /= 2;
    HD_TRY(hd_expect_shape("geglu: y", y, x.dtype, half));
    HD_TRY(elementwise_expect("geglu", &w, ex));
    if (ex->recording || w.channels == 0) return HD_OK;
    return hd_for_spans(ex, hd_tensor_count(y) / w.channels, w.channels, run_geglu, &w);
}

static hd_status run_add(const void *arg, int64_t from, int64_t count)
{
    const elementwise_work *w = arg;
    w->kernels->add(at(w->y, from), at(w->a, from), at(w->b, from), w->y.dtype, count);
    return HD_OK;
}

hd_status hd_add(const hd_exec *ex, hd_tensor y, hd_tensor a, hd_tensor b)
{
    elementwise_work w = {.y = y, .a = a, .b = b};
    HD_TRY(hd_expect_like("add: y", y, a));
    HD_TRY(hd_expect_like("add: b", b, a));
    HD_TRY(hd_expect_rank("add: b", b, b.rank));
    HD_TRY(elementwise_expect("add", &w, ex));
    if (ex->recording) return HD_OK;
    return hd_for_spans(ex, hd_tensor_count(a), 1, run_add, &w);
}

static hd_status run_affine(const void *arg, int64_t from, int64_t count)
{
    const elementwise_work *w = arg;
    w->kernels->affine(at(w->y, from), at(w->a, from), w->y.dtype, count, w->factor, w->offset);
    return HD_OK;
}

hd_status hd_affine(const hd_exec *ex, hd_tensor y, hd_tensor x, float factor, float offset)
{
    elementwise_work w = {.y = y, .a = x, .factor = factor, .offset = offset};
    HD_TRY(hd_expect_like("affine: y", y, x));
    HD_TRY(elementwise_expect("affine", &w, ex));
    if (ex->recording) return HD_OK;
    return hd_for_spans(ex, hd_tensor_count(x), 1, run_affine, &w);
}

hd_status hd_timestep_embedding(const hd_exec *ex, hd_tensor y, const float *t, int64_t count,
                                bool flip_sin_to_cos, float freq_shift, float max_period)
{
    int64_t dim = y.rank == 2 ? y.dim[1] : 0, half = dim / 2;
    HD_TRY(hd_expect_shape("timestep_embedding: y", y, HD_F32, hd_shape2(count, dim)));
    HD_TRY(hd_expect_rank("timestep_embedding: y", y, 2));
    float divisor = (float)half - freq_shift;
    if (!(divisor > 0) || !(max_period > 0))
        return hd_fail(HD_ERR_ARGUMENT,
                       "timestep_embedding: width %lld with freq_shift %g and max_period %g has no "
                       "frequencies",
                       (long long)dim, (double)freq_shift, (double)max_period);
    if (ex->recording) return HD_OK;
    // Rounded to f32 where PyTorch rounds: an angle may be near 1000, where an ulp of the frequency
    // is visible in the sine.
    for (int64_t i = 0; i < half; i++) {
        float exponent = (float)-log((double)max_period) * (float)i / divisor;
        float frequency = (float)exp((double)exponent);
        for (int64_t row = 0; row < count; row++) {
            float angle = t[row] * frequency, *out = (float *)y.data + row * dim;
            out[flip_sin_to_cos ? half + i : i] = (float)sin((double)angle);
            out[flip_sin_to_cos ? i : half + i] = (float)cos((double)angle);
        }
    }
    if (dim % 2)
        for (int64_t row = 0; row < count; row++)
            ((float *)y.data)[row * dim + dim - 1] = 0;
    return HD_OK;
}
