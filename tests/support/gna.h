/* tests/support/gna.h: which keys a neighbourhood window shows, said as its definition says it. */
#ifndef HD_TESTS_SUPPORT_GNA_H
#define HD_TESTS_SUPPORT_GNA_H

#include "sparse/gna.h"

/* Does query x see key y on an axis of `length`? The leader's window inside the dilation group, as
 * the paper has it. */
inline bool gna_sees(const hd_gna_axis &a, int64_t length, int64_t x, int64_t y)
{
    if (x % a.dilation != y % a.dilation) return false;
    const int64_t i = x / a.dilation, j = y / a.dilation;
    int64_t group_length = 0;
    for (int64_t t = x % a.dilation; t < length; t += a.dilation)
        group_length++;
    int64_t leader = i - i % a.stride + (a.causal ? a.stride - 1 : a.stride / 2);
    if (leader > group_length - 1) leader = group_length - 1;
    if (a.causal) return j <= i && j > leader - a.window;
    int64_t left = a.window / 2, right = a.window - 1 - left, shift = 0;
    if (leader - left < 0)
        shift = left - leader;
    else if (leader + right > group_length - 1)
        shift = group_length - 1 - (leader + right);
    return j >= leader - left + shift && j <= leader + right + shift;
}

#endif
