/* tests/support/numbers.h: arrays in the types of tensors, and how far they are from the truth. */
#ifndef HD_TESTS_SUPPORT_NUMBERS_H
#define HD_TESTS_SUPPORT_NUMBERS_H

#include <vector>

#include "base/tensor.h"

/* The values rounded to f32, bf16 or f16, as bytes. */
std::vector<char> stored(const std::vector<float> &values, hd_dtype dtype);
/* And back. */
std::vector<float> loaded(const std::vector<char> &bytes, hd_dtype dtype);

/* CHECKs that y is the truth to `tolerance` of the truth's largest value; where y went through
 * bf16, each value may also be off by half a unit of its own last place. NaN fails. */
void check_close(const std::vector<float> &y, const std::vector<double> &truth, hd_dtype dtype,
                 double tolerance);

#endif
