#include "support/numbers.h"

#include <cmath>
#include <cstring>

#include "support/catch.h"

std::vector<char> stored(const std::vector<float> &values, hd_dtype dtype)
{
    std::vector<char> out(values.size() * hd_dtype_size(dtype));
    for (size_t i = 0; i < values.size(); i++) {
        uint16_t half = dtype == HD_BF16 ? hd_bf16_from_f32(values[i]) : hd_f16_from_f32(values[i]);
        if (dtype == HD_F32)
            memcpy(&out[i * 4], &values[i], 4);
        else
            memcpy(&out[i * 2], &half, 2);
    }
    return out;
}

std::vector<float> loaded(const std::vector<char> &bytes, hd_dtype dtype)
{
    std::vector<float> out(bytes.size() / hd_dtype_size(dtype));
    for (size_t i = 0; i < out.size(); i++) {
        uint16_t half = 0;
        if (dtype == HD_F32)
            memcpy(&out[i], &bytes[i * 4], 4);
        else
            memcpy(&half, &bytes[i * 2], 2);
        if (dtype == HD_BF16) out[i] = hd_bf16_to_f32(half);
        if (dtype == HD_F16) out[i] = hd_f16_to_f32(half);
    }
    return out;
}

void check_close(const std::vector<float> &y, const std::vector<double> &truth, hd_dtype dtype,
                 double tolerance)
{
    REQUIRE(y.size() == truth.size());
    double top = 0, worst = 0;
    for (double v : truth)
        top = std::fmax(top, std::fabs(v));
    for (size_t i = 0; i < y.size(); i++) {
        double error = std::fabs((double)y[i] - truth[i]);
        if (dtype == HD_BF16) error -= std::fabs(truth[i]) * 0x1p-8;
        if (!(error <= worst)) worst = error;
    }
    CHECK(worst <= tolerance * top);
}
