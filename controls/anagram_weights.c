/* controls/anagram_weights.c: how much each prediction counts, and how large their sum is to be (Xu
 * et al., arXiv 2412.02693). */
#include <math.h>

#include "controls/anagram.h"

void anagram_balance(float *weight, const float *similarity, int count, const double exponent[2],
                     double progress)
{
    double sum = 0, power[ANAGRAM_MOST];
    for (int i = 0; i < count; i++) {
        const double least = 1e-3; // a similarity of 0 or less has no such power
        const double s = (double)similarity[i] > least ? (double)similarity[i] : least;
        sum += power[i] = pow(s, -exponent[0] - exponent[1] * progress);
    }
    for (int i = 0; i < count; i++)
        weight[i] = (float)(power[i] / sum);
}

double anagram_rectify_formula(const float *weight, const double *product, int count)
{
    double sum = 0;
    for (int i = 0; i < count; i++) {
        sum += (double)weight[i] * (double)weight[i];
        for (int j = i + 1; j < count; j++)
            sum += 2 * product[i * count + j] * (double)weight[i] * (double)weight[j];
    }
    return sum > 0 ? 1 / sqrt(sum) : 1;
}

double anagram_rectify_measured(const double *variance, int count, double combined)
{
    double mean = 0;
    for (int i = 0; i < count; i++)
        mean += variance[i] / count;
    return combined > 0 ? sqrt(mean) / sqrt(combined) : 1;
}

double anagram_variance(const float *x, int64_t count)
{
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)x[i];
    const double mean = sum / (double)count;
    for (int64_t i = 0; i < count; i++)
        squares += ((double)x[i] - mean) * ((double)x[i] - mean);
    return squares / (double)count;
}

double anagram_mean_product(const float *a, const float *b, int64_t count)
{
    double sum = 0;
    for (int64_t i = 0; i < count; i++)
        sum += (double)a[i] * (double)b[i];
    return sum / (double)count;
}
