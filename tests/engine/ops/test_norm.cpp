// Norms: every variant against f64, in place, and a row that knows nothing of its neighbours.
#include <cmath>
#include <cstring>

#include "engine/ops/norm.h"
#include "support/catch.h"
#include "support/numbers.h"
#include "support/run.h"

namespace
{

struct GroupCase {
    int64_t pixels, channels;
    int groups;
};

double activation_f64(double x, hd_activation act)
{
    switch (act) {
    case HD_ACT_SILU:
        return x / (1 + std::exp(-x));
    case HD_ACT_GELU:
        return x * (1 + std::erf(x / std::sqrt(2.0))) / 2;
    case HD_ACT_RELU:
        return std::fmax(x, 0);
    default:
        return x;
    }
}

std::vector<double> group_norm_f64(const std::vector<float> &x, int64_t rows, GroupCase c,
                                   const float *gamma, const float *beta, double eps,
                                   hd_activation act)
{
    std::vector<double> y(x.size());
    int64_t size = c.channels / c.groups;
    for (int64_t b = 0; b < rows; b++)
        for (int g = 0; g < c.groups; g++) {
            auto at = [&](int64_t p, int64_t k) {
                return (size_t)((b * c.pixels + p) * c.channels + g * size + k);
            };
            long double mean = 0, variance = 0;
            for (int64_t p = 0; p < c.pixels; p++)
                for (int64_t k = 0; k < size; k++)
                    mean += x[at(p, k)];
            mean /= (long double)(c.pixels * size);
            for (int64_t p = 0; p < c.pixels; p++)
                for (int64_t k = 0; k < size; k++)
                    variance += (x[at(p, k)] - mean) * (x[at(p, k)] - mean);
            variance /= (long double)(c.pixels * size);
            double rate = 1 / std::sqrt((double)variance + eps);
            for (int64_t p = 0; p < c.pixels; p++)
                for (int64_t k = 0; k < size; k++) {
                    double v = ((double)x[at(p, k)] - (double)mean) * rate;
                    v = v * (gamma ? (double)gamma[g * size + k] : 1.0) +
                        (beta ? (double)beta[g * size + k] : 0.0);
                    y[at(p, k)] = activation_f64(v, act);
                }
        }
    return y;
}

} // namespace

TEST_CASE("group_norm: every variant agrees with f64", "[ops][norm]")
{
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (GroupCase c : {GroupCase{6, 1, 1}, GroupCase{7, 15, 3}, GroupCase{9, 16, 4},
                                GroupCase{5, 17, 1}, GroupCase{3, 31, 31}, GroupCase{64, 33, 11},
                                GroupCase{200, 320, 32}, GroupCase{777, 130, 2}}) {
                INFO("has " << has << " " << hd_dtype_name(dtype) << " pixels " << c.pixels
                            << " channels " << c.channels);
                Run run(has, 2);
                auto x = stored(normal_values(2 * c.pixels * c.channels, 3, 2.0f), dtype);
                auto gamma = normal_values(c.channels, 4), beta = normal_values(c.channels, 5);
                std::vector<char> y(x.size());
                hd_shape shape = hd_shape3(2, c.pixels, c.channels);
                for (hd_activation act : {HD_ACT_NONE, HD_ACT_SILU, HD_ACT_GELU, HD_ACT_RELU}) {
                    REQUIRE_OK(hd_group_norm(&run, hd_tensor_of(y.data(), dtype, shape),
                                             hd_tensor_of(x.data(), dtype, shape), gamma.data(),
                                             beta.data(), c.groups, 1e-5f, act));
                    auto truth = group_norm_f64(loaded(x, dtype), 2, c, gamma.data(), beta.data(),
                                                1e-5, act);
                    check_close(loaded(y, dtype), truth, dtype, 2e-6);
                }
                CHECK(hd_arena_mark(run.exec.arena) == 0);
            }
}

TEST_CASE("group_norm: a large mean costs no accuracy in the statistics", "[ops][norm]")
{
    GroupCase c{4096, 64, 4};
    for (unsigned has : every_isa()) {
        Run run(has, 2);
        auto x = normal_values(c.pixels * c.channels, 6);
        for (float &v : x)
            v += 300.0f;
        std::vector<float> scale(64), shift(64);
        REQUIRE_OK(hd_group_norm_stats(&run, hd_tensor_of(scale.data(), HD_F32, hd_shape2(1, 64)),
                                       hd_tensor_of(shift.data(), HD_F32, hd_shape2(1, 64)),
                                       hd_tensor_of(x.data(), HD_F32, hd_shape3(1, 4096, 64)),
                                       nullptr, nullptr, 4, 1e-6f));
        auto truth = group_norm_f64(x, 1, c, nullptr, nullptr, 1e-6, HD_ACT_NONE);
        double rate = (truth[1] - truth[0]) / ((double)x[1] - (double)x[0]);
        CHECK(std::fabs((double)scale[0] / rate - 1) < 1e-6);
        CHECK(std::fabs((double)shift[0] - (truth[0] - (double)x[0] * rate)) <
              1e-4); // one f32 ulp of 300
    }
}

TEST_CASE("group_norm: a row alone equals the row in a batch, on any threads, in place",
          "[ops][norm][threads]")
{
    const int64_t pixels = 1500, channels = 96, row = pixels * channels;
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            auto x = stored(normal_values(5 * row, 8), dtype);
            size_t bytes = x.size() / 5;
            std::vector<char> alone(x.begin() + 2 * (long)bytes, x.begin() + 3 * (long)bytes);
            Run single(has, 1);
            hd_tensor a = hd_tensor_of(alone.data(), dtype, hd_shape3(1, pixels, channels));
            REQUIRE_OK(hd_group_norm(&single, a, a, nullptr, nullptr, 32, 1e-6f, HD_ACT_SILU));
            for (int64_t batch : {3, 5})
                for (int threads : {1, 2, 4}) {
                    Run run(has, threads);
                    auto copy = x;
                    hd_tensor t =
                        hd_tensor_of(copy.data(), dtype, hd_shape3(batch, pixels, channels));
                    REQUIRE_OK(hd_group_norm(&run, t, t, nullptr, nullptr, 32, 1e-6f, HD_ACT_SILU));
                    CHECK(memcmp(copy.data() + 2 * bytes, alone.data(), bytes) == 0);
                }
        }
}

TEST_CASE("group_norm: the dry pass takes the memory of the real one", "[ops][norm]")
{
    hd_arena *measuring = nullptr;
    REQUIRE_OK(hd_arena_create_measuring(&measuring));
    Run real;
    hd_exec dry = real.exec;
    dry.arena = measuring;
    dry.recording = true;
    hd_shape shape = hd_shape4(2, 32, 32, 320);
    hd_tensor x = hd_arena_tensor(measuring, HD_F32, shape);
    REQUIRE_OK(hd_group_norm(&dry, x, x, nullptr, nullptr, 32, 1e-5f, HD_ACT_NONE));
    hd_tensor r = hd_arena_tensor(real.exec.arena, HD_F32, shape);
    memset(r.data, 0, (size_t)hd_tensor_bytes(r));
    REQUIRE_OK(hd_group_norm(&real, r, r, nullptr, nullptr, 32, 1e-5f, HD_ACT_NONE));
    CHECK(hd_arena_peak_bytes(measuring) == hd_arena_peak_bytes(real.exec.arena));
    hd_arena_free(measuring);
}

TEST_CASE("layer_norm, rms_norm: every variant agrees with f64", "[ops][norm]")
{
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (int64_t c : {1, 15, 16, 17, 31, 33, 320, 768, 1280})
                for (bool affine : {false, true}) {
                    INFO("has " << has << " " << hd_dtype_name(dtype) << " channels " << c);
                    const int64_t rows = 77;
                    Run run(has, 2);
                    auto values = normal_values(rows * c, 11, 3.0f);
                    for (float &v : values)
                        v += 1.5f;
                    auto x = stored(values, dtype);
                    auto in = loaded(x, dtype);
                    auto gamma = normal_values(c, 12), beta = normal_values(c, 13);
                    std::vector<double> layer(in.size()), rms(in.size());
                    for (int64_t r = 0; r < rows; r++) {
                        double mean = 0, variance = 0, square = 0;
                        for (int64_t i = r * c; i < (r + 1) * c; i++) {
                            mean += (double)in[(size_t)i] / (double)c;
                            square += (double)in[(size_t)i] * (double)in[(size_t)i] / (double)c;
                        }
                        for (int64_t i = r * c; i < (r + 1) * c; i++)
                            variance += std::pow((double)in[(size_t)i] - mean, 2) / (double)c;
                        for (int64_t i = 0; i < c; i++) {
                            size_t at = (size_t)(r * c + i);
                            double g = affine ? (double)gamma[(size_t)i] : 1;
                            double b = affine ? (double)beta[(size_t)i] : 0;
                            layer[at] =
                                ((double)in[at] - mean) / std::sqrt(variance + 1e-5) * g + b;
                            rms[at] = (double)in[at] / std::sqrt(square + 1e-5) * g;
                        }
                    }
                    auto y = x;
                    hd_tensor t = hd_tensor_of(y.data(), dtype, hd_shape3(7, 11, c));
                    REQUIRE_OK(hd_layer_norm(&run, t, t, affine ? gamma.data() : nullptr,
                                             affine ? beta.data() : nullptr, 1e-5f));
                    check_close(loaded(y, dtype), layer, dtype, 2e-6);
                    y = x;
                    REQUIRE_OK(hd_rms_norm(&run, t, t, affine ? gamma.data() : nullptr, 1e-5f));
                    check_close(loaded(y, dtype), rms, dtype, 2e-6);
                }
}

TEST_CASE("layer_norm: a row alone equals the row in a batch, on any threads",
          "[ops][norm][threads]")
{
    const int64_t tokens = 100, c = 333, row = tokens * c;
    for (unsigned has : every_isa()) {
        auto x = normal_values(5 * row, 14);
        std::vector<float> alone((size_t)row);
        Run single(has, 1);
        REQUIRE_OK(hd_layer_norm(&single,
                                 hd_tensor_of(alone.data(), HD_F32, hd_shape3(1, tokens, c)),
                                 hd_tensor_of(x.data() + row, HD_F32, hd_shape3(1, tokens, c)),
                                 nullptr, nullptr, 1e-5f));
        for (int64_t batch : {2, 3, 5})
            for (int threads : {1, 2, 4}) {
                Run run(has, threads);
                std::vector<float> y((size_t)(batch * row));
                hd_shape shape = hd_shape3(batch, tokens, c);
                REQUIRE_OK(hd_layer_norm(&run, hd_tensor_of(y.data(), HD_F32, shape),
                                         hd_tensor_of(x.data(), HD_F32, shape), nullptr, nullptr,
                                         1e-5f));
                CHECK(memcmp(y.data() + row, alone.data(), alone.size() * sizeof(float)) == 0);
            }
    }
}

TEST_CASE("norms: what does not fit is refused", "[ops][norm]")
{
    Run run;
    float data[64] = {0};
    hd_tensor x = hd_tensor_of(data, HD_F32, hd_shape3(1, 4, 10));
    CHECK_FAILS(hd_group_norm(&run, x, x, nullptr, nullptr, 3, 1e-5f, HD_ACT_NONE), HD_ERR_SHAPE,
                "group_norm: 10 channels cannot be cut into 3 groups");
    hd_tensor y = hd_tensor_of(data, HD_F32, hd_shape3(1, 4, 5));
    CHECK_FAILS(hd_layer_norm(&run, y, x, nullptr, nullptr, 1e-5f), HD_ERR_SHAPE,
                "layer_norm: y is [1, 4, 5] f32, expected [1, 4, 10] f32");
    hd_tensor half = hd_tensor_of(data, HD_F16, hd_shape2(4, 10));
    CHECK_FAILS(hd_rms_norm(&run, half, half, nullptr, 1e-5f), HD_ERR_SHAPE,
                "rms_norm: x is [4, 10] f16, expected [..., C] f32 or bf16");
    hd_tensor cut = hd_tensor_slice(x, 2, 0, 5);
    CHECK_FAILS(hd_layer_norm(&run, cut, cut, nullptr, nullptr, 1e-5f), HD_ERR_SHAPE,
                "not contiguous");
    Run small(hd_cpu_features(), 1, 64);
    CHECK_FAILS(hd_group_norm(&small, x, x, nullptr, nullptr, 2, 1e-5f, HD_ACT_NONE), HD_ERR_NOMEM,
                "arena is full");
}
