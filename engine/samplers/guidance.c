/* engine/samplers/guidance.c: classifier-free guidance. */
#include "engine/samplers/guidance.h"

#include <math.h>

void hd_guide(float *out, const float *uncond, const float *cond, double scale, int64_t count)
{
    float g = (float)scale;
    for (int64_t i = 0; i < count; i++)
        out[i] = uncond[i] + g * (cond[i] - uncond[i]);
}

// Of a sample, as torch.std has it; summed in f64 in the order of the values.
static double deviation(const float *x, int64_t count)
{
    double mean = 0, squares = 0;
    for (int64_t i = 0; i < count; i++)
        mean += (double)x[i];
    mean /= (double)count;
    for (int64_t i = 0; i < count; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    return count > 1 ? sqrt(squares / (double)(count - 1)) : 0;
}

void hd_guide_rescale(float *guided, const float *cond, double amount, int64_t count)
{
    double have = deviation(guided, count);
    if (amount == 0 || have == 0) return;
    float ratio = (float)deviation(cond, count) / (float)have;
    float back = (float)amount, keep = (float)(1.0 - amount);
    for (int64_t i = 0; i < count; i++)
        guided[i] = back * (guided[i] * ratio) + keep * guided[i];
}
