// Winograd's transforms: every instruction set equals the plain one, and together they convolve.
#include "kernels/winograd.h"

#include "support/catch.h"
#include "support/values.h"

namespace
{

std::vector<const hd_winograd_kernels *> variants()
{
    std::vector<const hd_winograd_kernels *> list = {&hd_winograd_reference};
#if defined(__x86_64__)
    for (const hd_winograd_kernels *k : {&hd_winograd_avx2, &hd_winograd_avx512})
        if ((hd_cpu_features() & k->needs) == k->needs) list.push_back(k);
#endif
    return list;
}

// Weights as oneDNN packs them, [3, 3, in / pair, columns, pair], from a function of place.
Values packed_weights(hd_dtype dtype, const Values &plain, int64_t in, int64_t columns,
                      int64_t pair)
{
    Values out(dtype, hd_shape4(9, in, columns, 1));
    for (int64_t k = 0; k < 9; k++)
        for (int64_t i = 0; i < in; i++)
            for (int64_t c = 0; c < columns; c++)
                out.set((k * in + i / pair * pair) * columns + c * pair + i % pair,
                        (float)plain.at((k * in + i) * columns + c));
    return out;
}

} // namespace

TEST_CASE("winograd: a tile is convolved", "[kernels]")
{
    auto kernels = GENERATE(from_range(variants()));
    auto dtype = GENERATE(HD_F32, HD_BF16);
    auto channels = GENERATE(2, 16, 24, 38);
    const int64_t tiles = 3, columns = 21, pair = dtype == HD_BF16 ? 2 : 1;
    const int64_t v_plane = tiles * channels + 16, u_plane = channels * columns + 16;
    Values plain = Values::normal(dtype, hd_shape3(9, channels, columns), 1, 0.1f);
    Values g = packed_weights(dtype, plain, channels, columns, pair);
    Values x = Values::normal(dtype, hd_shape3(6, 4 * tiles + 2, channels), 2);
    std::vector<float> v((size_t)(36 * v_plane)), u((size_t)(36 * u_plane)), m(36 * columns);
    hd_winograd_weights weights = {g.t.data, dtype, channels, columns, pair};
    kernels->filter(u.data(), u_plane, columns, weights, 0, channels);
    kernels->input(v.data(), v_plane, x.t.data, dtype, (4 * tiles + 2) * channels, tiles, channels);
    for (int64_t t = 0; t < tiles; t++) {
        for (int64_t p = 0; p < 36; p++)
            for (int64_t c = 0; c < columns; c++) {
                double sum = 0;
                for (int64_t i = 0; i < channels; i++)
                    sum += (double)v[(size_t)(p * v_plane + t * channels + i)] *
                           (double)u[(size_t)(p * u_plane + i * columns + c)];
                m[(size_t)(p * columns + c)] = (float)sum;
            }
        Values y(HD_F32, hd_shape3(4, 4, columns), 9.0f);
        std::vector<float> bias((size_t)columns, 0.5f);
        hd_winograd_out to = {{y.t.data, HD_F32, columns, y.t.data, columns, bias.data()},
                              4 * columns,
                              3,
                              4}; // a row less: that one stays as it is
        kernels->output(to, m.data(), columns, columns);
        double worst = 0;
        for (int64_t n = 0; n < y.count(); n++) {
            int64_t c = n % columns, j = n / columns % 4, i = n / columns / 4;
            double sum = 9;
            for (int64_t k = 0; i < 3 && k < 9; k++)
                for (int64_t a = 0; a < channels; a++)
                    sum +=
                        x.at(((i + k / 3) * (4 * tiles + 2) + 4 * t + j + k % 3) * channels + a) *
                        plain.at((k * channels + a) * columns + c);
            if (i < 3) sum += 0.5;
            worst = std::fmax(worst, std::fabs(sum - y.at(n)));
        }
        CHECK(worst < 2e-5);
    }
}

TEST_CASE("winograd: every instruction set equals the plain transforms", "[kernels]")
{
    auto kernels = GENERATE(from_range(variants()));
    const int64_t channels = 26, plane = 2 * channels + 16;
    Values x = Values::normal(HD_BF16, hd_shape3(6, 10, channels), 2);
    std::vector<float> v((size_t)(36 * plane)), truth(v.size());
    kernels->input(v.data(), plane, x.t.data, HD_BF16, 10 * channels, 2, channels);
    hd_winograd_reference.input(truth.data(), plane, x.t.data, HD_BF16, 10 * channels, 2, channels);
    double worst = 0;
    for (size_t i = 0; i < v.size(); i++)
        worst = std::fmax(worst, (double)std::fabs(v[i] - truth[i]));
    CHECK(worst < 1e-5);

    Values m = Values::normal(HD_F32, hd_shape2(36, channels), 3);
    for (hd_dtype dtype : {HD_F32, HD_BF16})
        for (bool residual : {false, true}) {
            Values y(dtype, hd_shape3(4, 4, channels), 1.0f), expected(y);
            hd_winograd_out to = {
                {y.t.data, dtype, channels, nullptr, channels, nullptr}, 4 * channels, 4, 2};
            if (residual) to.out.residual = y.t.data;
            kernels->output(to, (const float *)m.t.data, channels, channels);
            to.out.y = expected.t.data;
            if (residual) to.out.residual = expected.t.data;
            hd_winograd_reference.output(to, (const float *)m.t.data, channels, channels);
            for (int64_t i = 0; i < y.count(); i++)
                CHECK(std::fabs(y.at(i) - expected.at(i)) <=
                      (dtype == HD_F32 ? 2e-5 : 0.008 * std::fabs(expected.at(i)) + 2e-5));
        }
}
