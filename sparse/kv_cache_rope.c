/* sparse/kv_cache_rope.c: rotary positions, on by some more. */
#include <math.h>

#include "sparse/kv_cache.h"

static float load(const void *x, hd_dtype dtype, int64_t i)
{
    return dtype == HD_F32 ? ((const float *)x)[i] : hd_bf16_to_f32(((const uint16_t *)x)[i]);
}

static void store(void *x, hd_dtype dtype, int64_t i, double value)
{
    if (dtype == HD_F32)
        ((float *)x)[i] = (float)value;
    else
        ((uint16_t *)x)[i] = hd_bf16_from_f32((float)value);
}

void hd_rope_turn(const hd_rope *r, void *x, hd_dtype dtype, int64_t vectors, int64_t dim,
                  double positions)
{
    static const double whole_turn = 6.283185307179586476925;
    const int64_t pairs = r->channels / 2;
    for (int64_t j = 0; j < pairs; j++) {
        const double angle =
            fmod(positions * pow(r->base, -2.0 * (double)j / (double)r->channels), whole_turn);
        const double c = cos(angle), s = sin(angle);
        const int64_t a = r->first + (r->interleaved ? 2 * j : j);
        const int64_t b = a + (r->interleaved ? 1 : pairs);
        for (int64_t v = 0; v < vectors; v++) {
            const double u = (double)load(x, dtype, v * dim + a);
            const double w = (double)load(x, dtype, v * dim + b);
            store(x, dtype, v * dim + a, u * c - w * s);
            store(x, dtype, v * dim + b, u * s + w * c);
        }
    }
}
