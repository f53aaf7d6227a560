/* tests/support/values.h: numbers in the type that an operator computes in, and their f64 truth. */
#ifndef HD_TESTS_SUPPORT_VALUES_H
#define HD_TESTS_SUPPORT_VALUES_H

#include <cmath>
#include <vector>

#include "base/tensor.h"
#include "support/run.h"

/* A contiguous tensor of f32, bf16 or f16 with memory of its own. at() is what the operator sees.
 */
struct Values {
    std::vector<char> bytes;
    hd_tensor t{};

    Values(hd_dtype dtype, hd_shape shape, float fill = 0.0f)
        : bytes((size_t)hd_shape_count(shape) * hd_dtype_size(dtype) + 1)
    {
        t = hd_tensor_of(bytes.data(), dtype, shape);
        for (int64_t i = 0; i < count(); i++)
            set(i, fill);
    }
    static Values normal(hd_dtype dtype, hd_shape shape, uint64_t seed, float scale = 1.0f)
    {
        Values v(dtype, shape);
        std::vector<float> numbers = normal_values(v.count(), seed, scale);
        for (int64_t i = 0; i < v.count(); i++)
            v.set(i, numbers[(size_t)i]);
        return v;
    }
    // the vector's memory does not move with the object, but a copy has its own
    Values(const Values &other) : bytes(other.bytes), t(other.t)
    {
        t.data = bytes.data();
    }
    Values &operator=(const Values &) = delete;

    int64_t count() const
    {
        return hd_tensor_count(t);
    }
    double at(int64_t i) const
    {
        if (t.dtype == HD_F32) return (double)reinterpret_cast<const float *>(bytes.data())[i];
        uint16_t half = reinterpret_cast<const uint16_t *>(bytes.data())[i];
        return (double)(t.dtype == HD_BF16 ? hd_bf16_to_f32(half) : hd_f16_to_f32(half));
    }
    void set(int64_t i, float value)
    {
        if (t.dtype == HD_F32) {
            reinterpret_cast<float *>(bytes.data())[i] = value;
            return;
        }
        reinterpret_cast<uint16_t *>(bytes.data())[i] =
            t.dtype == HD_BF16 ? hd_bf16_from_f32(value) : hd_f16_from_f32(value);
    }
};

/* max |a - b| / max |b| */
inline double worst_error(const Values &a, const std::vector<double> &b)
{
    double worst = 0, top = 0;
    for (int64_t i = 0; i < a.count(); i++) {
        double d = std::fabs(a.at(i) - b[(size_t)i]);
        if (!(d <= worst)) worst = d; // NaN counts
        top = std::fmax(top, std::fabs(b[(size_t)i]));
    }
    return top > 0 ? worst / top : worst;
}

#endif
