// Conversions of the 16-bit floats: against their definition, and every instruction set alike.
#include "base/dtype.h"

#include <cmath>
#include <cstring>
#include <random>

#include "base/dtype_loops.h"
#include "base/exec.h"
#include "support/catch.h"

namespace
{

// The value of a half by its definition: sign, 5 bits of exponent, 10 of mantissa.
double half_value(unsigned bits)
{
    double sign = bits & 0x8000 ? -1 : 1;
    int exponent = (int)(bits >> 10 & 31), mantissa = (int)(bits & 1023);
    if (exponent == 31) return mantissa ? (double)NAN : sign * (double)INFINITY;
    return sign *
           (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

// And of a bfloat16: 8 bits of exponent, 7 of mantissa.
double bf16_value(unsigned bits)
{
    double sign = bits & 0x8000 ? -1 : 1;
    int exponent = (int)(bits >> 7 & 255), mantissa = (int)(bits & 127);
    if (exponent == 255) return mantissa ? (double)NAN : sign * (double)INFINITY;
    return sign *
           (exponent ? std::ldexp(128 + mantissa, exponent - 134) : std::ldexp(mantissa, -133));
}

bool same_value(double a, double b)
{
    return std::isnan(b) ? std::isnan(a) : a == b && std::signbit(a) == std::signbit(b);
}

std::vector<const hd_dtype_loops *> sets_of_this_machine()
{
    std::vector<const hd_dtype_loops *> out;
    for (const hd_dtype_loops *set : {
             &hd_dtype_plain,
#if defined(__x86_64__)
                 &hd_dtype_avx2, &hd_dtype_avx512,
#endif
         })
        if ((hd_cpu_features() & set->needs) == set->needs) out.push_back(set);
    return out;
}

uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

// Between two neighbours the middle goes to the even one, everything else to the nearer.
template <class Value, class Round>
bool rounds_to_nearest_even(Value value, Round round, unsigned largest)
{
    bool good = true;
    for (unsigned low = 0; low < largest; low++)
        for (float sign : {1.0f, -1.0f}) {
            unsigned minus = sign < 0 ? 0x8000 : 0;
            auto middle = (float)((value(low) + value(low + 1)) / 2);
            float above = std::nextafterf(middle, INFINITY), below = std::nextafterf(middle, 0);
            good &= round(sign * middle) == ((low & 1 ? low + 1 : low) | minus);
            good &= round(sign * above) == ((low + 1) | minus);
            good &= round(sign * below) == (low | minus);
        }
    return good;
}

} // namespace

TEST_CASE("dtype: every half and bfloat16 has the value of its definition and comes back",
          "[base][dtype]")
{
    bool f16 = true, bf16 = true, f16_back = true, bf16_back = true;
    for (unsigned bits = 0; bits < 65536; bits++) {
        f16 &= same_value((double)hd_f16_to_f32((hd_f16)bits), half_value(bits));
        bf16 &= same_value((double)hd_bf16_to_f32((hd_bf16)bits), bf16_value(bits));
        unsigned quiet_f16 = std::isnan(half_value(bits)) ? bits | 0x200 : bits;
        unsigned quiet_bf16 = std::isnan(bf16_value(bits)) ? bits | 0x40 : bits;
        f16_back &= hd_f16_from_f32(hd_f16_to_f32((hd_f16)bits)) == quiet_f16;
        bf16_back &= hd_bf16_from_f32(hd_bf16_to_f32((hd_bf16)bits)) == quiet_bf16;
    }
    CHECK(f16);
    CHECK(bf16);
    CHECK(f16_back);
    CHECK(bf16_back);
}

TEST_CASE("dtype: rounding is to nearest, ties to even, overflow is infinity", "[base][dtype]")
{
    CHECK(rounds_to_nearest_even(half_value, hd_f16_from_f32, 0x7bff));
    CHECK(rounds_to_nearest_even(bf16_value, hd_bf16_from_f32, 0x7f7f));
    CHECK(hd_f16_from_f32(65519.996f) == 0x7bff);
    CHECK(hd_f16_from_f32(65520.0f) == 0x7c00);
    CHECK(hd_f16_from_f32(-1e30f) == 0xfc00);
    CHECK(hd_f16_from_f32(1e-30f) == 0);
    CHECK(hd_bf16_from_f32(3.4e38f) == 0x7f80);
    CHECK(hd_bf16_from_f32(-INFINITY) == 0xff80);
}

TEST_CASE("dtype: every instruction set converts to the same bits, at every length",
          "[base][dtype]")
{
    std::vector<uint16_t> halves;
    for (unsigned bits = 0; bits < 65536; bits++)
        halves.push_back((uint16_t)bits);
    std::vector<float> floats;
    std::mt19937 rng(5);
    for (int i = 0; i < 200000; i++) {
        auto bits = (uint32_t)rng();
        // half of them where f16 is normal or subnormal
        if (i % 2) bits = (bits & 0x807fffff) | (uint32_t)(100 + i % 50) << 23;
        float f;
        memcpy(&f, &bits, 4);
        floats.push_back(f);
    }
    for (float f : {65504.0f, 65519.0f, 65520.0f, -0.0f, INFINITY, -INFINITY, NAN})
        floats.push_back(f);
    for (const hd_dtype_loops *set : sets_of_this_machine())
        for (hd_dtype dtype : {HD_BF16, HD_F16}) {
            INFO("set " << set->needs << " " << hd_dtype_name(dtype));
            std::vector<float> wide(halves.size()), plain_wide(halves.size());
            hd_dtype_plain.widen(plain_wide.data(), halves.data(), dtype, (int64_t)wide.size());
            set->widen(wide.data(), halves.data(), dtype, (int64_t)wide.size());
            CHECK(memcmp(wide.data(), plain_wide.data(), wide.size() * 4) == 0);
            std::vector<uint16_t> narrow(floats.size()), plain_narrow(floats.size());
            hd_dtype_plain.narrow(plain_narrow.data(), dtype, floats.data(),
                                  (int64_t)floats.size());
            set->narrow(narrow.data(), dtype, floats.data(), (int64_t)floats.size());
            CHECK(narrow == plain_narrow);
            for (int64_t n = 0; n < 40; n++) {
                // exactly sized blocks, so that the sanitizer sees a step beyond
                std::vector<uint16_t> in(halves.begin() + 1000, halves.begin() + 1000 + n);
                std::vector<uint16_t> back((size_t)n);
                std::vector<float> out((size_t)n);
                set->widen(out.data(), in.data(), dtype, n);
                set->narrow(back.data(), dtype, out.data(), n);
                CHECK(back == in);
            }
        }
}

TEST_CASE("dtype: whole arrays, f64 among them, and types that are no floats", "[base][dtype]")
{
    const double in[] = {1.5, -0.1, 1e300, 0};
    float out[4];
    REQUIRE_OK(hd_convert_to_f32(out, in, HD_F64, 4));
    CHECK(bits_of(out[1]) == bits_of(-0.1f));
    CHECK(std::isinf(out[2]));
    const float back[] = {1.00390625f, 2, 3, 4}; // a tie: 1 + 2^-8
    hd_bf16 bf[4];
    hd_convert_f32_to_bf16(bf, back, 4);
    CHECK(bf[0] == 0x3f80);
    REQUIRE_OK(hd_convert_from_f32(bf, HD_F16, back, 4));
    CHECK(bf[1] == 0x4000);
    CHECK_FAILS(hd_convert_to_f32(out, in, HD_I64, 1), HD_ERR_UNSUPPORTED,
                "convert: i64 is not a floating type");
    CHECK_FAILS(hd_convert_from_f32(bf, HD_U8, back, 1), HD_ERR_UNSUPPORTED,
                "convert: f32 does not become u8");
}

TEST_CASE("dtype: sizes and names", "[base][dtype]")
{
    CHECK(hd_dtype_size(HD_BF16) == 2);
    CHECK(hd_dtype_size(HD_F64) == 8);
    CHECK(hd_dtype_size(HD_DTYPE_COUNT) == 0);
    CHECK(std::string(hd_dtype_name(HD_BOOL)) == "bool");
    CHECK(std::string(hd_dtype_name((hd_dtype)99)) == "unknown type");
}
