/* engine/rng.c: PyTorch's noise: MT19937 with its two ways to make normals, and Philox as curand
 * uses it.
 *
 * MT19937: Matsumoto and Nishimura 1998, initialisation of 2002. Philox: Salmon et al. 2011. The
 * polynomials for log, sin and cos are those of Cephes (Moshier) in single precision; what makes
 * torch's bits is where its build fuses a multiplication with an addition, so every fusion here is
 * an explicit fmaf, which the C library computes exactly on machines without the instruction. */
#include "engine/rng.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { MT_WORDS = 624, MT_SHIFT = 397, BLOCK = 16, HALF = BLOCK / 2 };

struct hd_rng {
    hd_rng_kind kind;
    uint64_t seed;
    uint64_t calls; // Philox: how many times normals were drawn
    uint32_t mt[MT_WORDS];
    int mt_next;
    bool has_spare; // the second value of a pair drawn in double precision
    double spare;
};

const char *const hd_rng_kinds[] = {"cpu", "cuda", NULL};

static void mt_seed(hd_rng *rng, uint32_t seed)
{
    rng->mt[0] = seed;
    for (uint32_t i = 1; i < MT_WORDS; i++)
        rng->mt[i] = 1812433253u * (rng->mt[i - 1] ^ (rng->mt[i - 1] >> 30)) + i;
    rng->mt_next = MT_WORDS;
}

static void mt_refill(hd_rng *rng)
{
    uint32_t *s = rng->mt;
    for (int i = 0; i < MT_WORDS; i++) {
        uint32_t y = (s[i] & 0x80000000u) | (s[(i + 1) % MT_WORDS] & 0x7fffffffu);
        s[i] = s[(i + MT_SHIFT) % MT_WORDS] ^ (y >> 1) ^ ((y & 1) ? 0x9908b0dfu : 0);
    }
    rng->mt_next = 0;
}

static uint32_t mt_next32(hd_rng *rng)
{
    if (rng->mt_next == MT_WORDS) mt_refill(rng);
    uint32_t y = rng->mt[rng->mt_next++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
}

/* [0, 1) in steps of 2^-24. */
static float mt_uniform(hd_rng *rng)
{
    return (float)(mt_next32(rng) & 0xffffffu) * 0x1p-24f;
}

/* [0, 1) in steps of 2^-53. */
static double mt_uniform53(hd_rng *rng)
{
    uint64_t high = mt_next32(rng);
    uint64_t low = mt_next32(rng);
    return (double)(((high << 32) | low) & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

static uint32_t float_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static float bits_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* log(x) for x in (0, 1], x normal: Cephes' logf on the mantissa in [sqrt(1/2), sqrt(2)). */
static float block_log(float x)
{
    static const float p[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                              -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                              2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
    uint32_t bits = float_bits(x);
    float e = (float)((int)(bits >> 23) - 126);
    float m = bits_float((bits & 0x007fffffu) | 0x3f000000u); // [0.5, 1)
    if (m < 0.707106781186547524f) {
        e -= 1.0f;
        m = m - 1.0f + m;
    } else {
        m = m - 1.0f;
    }
    float z = m * m;
    float y = p[0];
    for (size_t i = 1; i < HD_COUNT(p); i++)
        y = fmaf(y, m, p[i]);
    y = y * m;
    y = fmaf(y, z, e * -2.12194440e-4f);
    y = fmaf(z, -0.5f, y);
    return fmaf(e, 0.693359375f, m + y);
}

/* sin and cos of x in [0, 2 pi): reduction by multiples of pi/4 in three parts, then Cephes' two
 * polynomials on [-pi/4, pi/4]. */
static void block_sincos(float x, float *sine, float *cosine)
{
    int octant = ((int)(x * 1.27323954473516f) + 1) & ~1;
    float k = (float)octant;
    x = fmaf(k, -0.78515625f, x);
    x = fmaf(k, -2.4187564849853515625e-4f, x);
    x = fmaf(k, -3.77489497744594108e-8f, x);
    float z = x * x;

    float c = fmaf(2.443315711809948e-5f, z, -1.388731625493765e-3f);
    c = fmaf(c, z, 4.166664568298827e-2f) * z;
    c = fmaf(c, z, z * -0.5f) + 1.0f;

    float s = fmaf(-1.9515295891e-4f, z, 8.3321608736e-3f);
    s = fmaf(s, z, -1.6666654611e-1f) * z;
    s = fmaf(s, x, x);

    bool swapped = (octant & 2) != 0;
    float sin_part = swapped ? c : s, cos_part = swapped ? s : c;
    *sine = (octant & 4) ? -sin_part : sin_part;
    *cosine = ((octant - 2) & 4) ? cos_part : -cos_part;
}

static void block_normals(float block[BLOCK])
{
    for (int i = 0; i < HALF; i++) {
        float radius = sqrtf(-2.0f * block_log(1.0f - block[i]));
        float s, c;
        block_sincos(6.283185307179586f * block[i + HALF], &s, &c);
        // + 0: torch scales by 1 and adds the mean 0, which leaves no negative zero
        block[i] = radius * c + 0.0f;
        block[i + HALF] = radius * s + 0.0f;
    }
}

static void normal_blocks(hd_rng *rng, float *values, int64_t count)
{
    for (int64_t i = 0; i < count; i++)
        values[i] = mt_uniform(rng);
    for (int64_t i = 0; i + BLOCK <= count; i += BLOCK)
        block_normals(values + i);
    if (count % BLOCK == 0) return;
    float *last = values + count - BLOCK;
    for (int i = 0; i < BLOCK; i++)
        last[i] = mt_uniform(rng);
    block_normals(last);
}

static double normal_double(hd_rng *rng)
{
    if (rng->has_spare) {
        rng->has_spare = false;
        return rng->spare;
    }
    double u1 = mt_uniform53(rng);
    double u2 = mt_uniform53(rng);
    double radius = sqrt(-2.0 * log1p(-u2));
    double theta = 2.0 * 3.14159265358979323846 * u1;
    rng->spare = radius * sin(theta);
    rng->has_spare = true;
    return radius * cos(theta);
}

void hd_philox4x32(const uint32_t counter[4], const uint32_t key[2], uint32_t out[4])
{
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    uint32_t k0 = key[0], k1 = key[1];
    for (int round = 0; round < 10; round++) {
        uint64_t a = (uint64_t)0xd2511f53u * c0;
        uint64_t b = (uint64_t)0xcd9e8d57u * c2;
        c0 = (uint32_t)(b >> 32) ^ c1 ^ k0;
        c1 = (uint32_t)b;
        c2 = (uint32_t)(a >> 32) ^ c3 ^ k1;
        c3 = (uint32_t)a;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
    out[0] = c0;
    out[1] = c1;
    out[2] = c2;
    out[3] = c3;
}

/* curand's Box-Muller: both uniforms are f32 in (0, 1] and (0, 2 pi]; the first normal of a pair
 * is the sine. */
static void normal_philox(hd_rng *rng, float *values, int64_t count)
{
    const uint32_t key[2] = {(uint32_t)rng->seed, (uint32_t)(rng->seed >> 32)};
    for (int64_t i = 0; i < count; i++) {
        const uint32_t counter[4] = {(uint32_t)rng->calls, (uint32_t)(rng->calls >> 32),
                                     (uint32_t)i, (uint32_t)((uint64_t)i >> 32)};
        uint32_t x[4];
        hd_philox4x32(counter, key, x);
        float u = fmaf((float)x[0], 0x1p-32f, 0x1p-33f);
        float v = fmaf((float)x[1], 0x1p-32f * 6.2831855f, 0x1p-33f * 6.2831855f);
        values[i] = (float)(sqrt(-2.0 * log((double)u)) * sin((double)v));
    }
    rng->calls++;
}

void hd_rng_normal(hd_rng *rng, float *values, int64_t count)
{
    if (count <= 0) return;
    if (rng->kind == HD_RNG_CUDA) {
        normal_philox(rng, values, count);
    } else if (count >= BLOCK) {
        normal_blocks(rng, values, count);
    } else {
        for (int64_t i = 0; i < count; i++)
            values[i] = (float)normal_double(rng);
    }
}

hd_status hd_rng_create(hd_rng **out, hd_rng_kind kind, uint64_t seed)
{
    hd_rng *rng = calloc(1, sizeof *rng);
    if (!rng) return hd_fail(HD_ERR_NOMEM, "rng: no memory for a generator");
    rng->kind = kind;
    rng->seed = seed;
    mt_seed(rng, (uint32_t)seed);
    *out = rng;
    return HD_OK;
}

void hd_rng_free(hd_rng *rng)
{
    free(rng);
}
