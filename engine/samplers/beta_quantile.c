/* engine/samplers/beta_quantile.c: the inverse of the regularised incomplete beta function.
 *
 * "Beta Sampling is All You Need" spaces noise levels by it. The function itself is the continued
 * fraction of DLMF 8.17.22 evaluated by Lentz's method; the inverse is found by bisection in the
 * argument, then Newton's steps, which is exact to f64 and needs no table. */
#include <math.h>

#include "engine/samplers/schedule.h"

static double kept_off_zero(double x)
{
    return fabs(x) < 1e-300 ? 1e-300 : x;
}

static double fraction(double x, double a, double b)
{
    double c = 1, d = 1 / kept_off_zero(1 - (a + b) * x / (a + 1)), h = d;
    for (int m = 1; m < 500; m++) {
        double even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m));
        d = 1 / kept_off_zero(1 + even * d);
        c = kept_off_zero(1 + even / c);
        h *= d * c;
        double odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1));
        d = 1 / kept_off_zero(1 + odd * d);
        c = kept_off_zero(1 + odd / c);
        double step = d * c;
        h *= step;
        if (fabs(step - 1) < 1e-16) break;
    }
    return h;
}

static double log_beta(double a, double b)
{
    return log(tgamma(a) * tgamma(b) / tgamma(a + b)); // lgamma would write a global
}

static double incomplete(double x, double a, double b)
{
    if (x <= 0) return 0;
    if (x >= 1) return 1;
    double front = exp(a * log(x) + b * log1p(-x) - log_beta(a, b));
    // the fraction converges fast on one side of the mean only
    if (x < (a + 1) / (a + b + 2)) return front * fraction(x, a, b) / a;
    return 1 - front * fraction(1 - x, b, a) / b;
}

double hd_beta_quantile(double p, double a, double b)
{
    if (p <= 0) return 0;
    if (p >= 1) return 1;
    double low = 0, high = 1;
    for (int i = 0; i < 60; i++) {
        double middle = 0.5 * (low + high);
        if (incomplete(middle, a, b) < p)
            low = middle;
        else
            high = middle;
    }
    double x = 0.5 * (low + high);
    for (int i = 0; i < 2; i++) {
        double density = exp((a - 1) * log(x) + (b - 1) * log1p(-x) - log_beta(a, b));
        double better = x - (incomplete(x, a, b) - p) / density;
        if (better > 0 && better < 1) x = better;
    }
    return x;
}
