// Activations, sums, copies and what else moves memory: every variant against f64 or plain indices.
#include <cmath>
#include <cstring>

#include "engine/ops/elementwise.h"
#include "support/catch.h"
#include "support/numbers.h"
#include "support/run.h"

namespace
{

const int64_t sizes[] = {1, 15, 16, 17, 31, 33, 320, 70001};

double activation_f64(double x, hd_activation act)
{
    switch (act) {
    case HD_ACT_SILU:
        return x / (1 + std::exp(-x));
    case HD_ACT_GELU:
        return x * std::erfc(-x / std::sqrt(2.0)) / 2;
    case HD_ACT_GELU_TANH:
        return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * std::pow(x, 3))));
    case HD_ACT_QUICK_GELU:
        return x / (1 + std::exp(-1.702 * x));
    case HD_ACT_RELU:
        return std::fmax(x, 0);
    case HD_ACT_NONE:
        break;
    }
    return x;
}

const hd_activation activations[] = {HD_ACT_NONE,      HD_ACT_SILU,       HD_ACT_GELU,
                                     HD_ACT_GELU_TANH, HD_ACT_QUICK_GELU, HD_ACT_RELU};

hd_tensor view(std::vector<char> &bytes, hd_dtype dtype, hd_shape shape)
{
    REQUIRE((int64_t)bytes.size() >= hd_shape_count(shape) * (int64_t)hd_dtype_size(dtype));
    return hd_tensor_of(bytes.data(), dtype, shape);
}

hd_tensor view(std::vector<float> &values, hd_shape shape)
{
    REQUIRE((int64_t)values.size() >= hd_shape_count(shape));
    return hd_tensor_of(values.data(), HD_F32, shape);
}

std::vector<float> numbered(int64_t count)
{
    std::vector<float> out((size_t)count);
    for (size_t i = 0; i < out.size(); i++)
        out[i] = (float)(i % 251) - 100; // exact in bf16 and f16 too
    return out;
}

} // namespace

TEST_CASE("activate: every variant agrees with f64 at every length, in place", "[ops][elementwise]")
{
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (hd_activation act : activations)
                for (int64_t n : sizes) {
                    INFO("has " << has << " " << hd_dtype_name(dtype) << " act " << act << " n "
                                << n);
                    Run run(has, 2, 64);
                    auto x = stored(normal_values(n, 21, 3.0f), dtype);
                    std::vector<double> truth;
                    for (float v : loaded(x, dtype))
                        truth.push_back(activation_f64((double)v, act));
                    hd_tensor t = view(x, dtype, hd_shape1(n));
                    REQUIRE_OK(hd_activate(&run, t, t, act));
                    check_close(loaded(x, dtype), truth, dtype, 1e-6);
                }
}

TEST_CASE("activate: each value is right to a few ulp, tails and specials too",
          "[ops][elementwise]")
{
    std::vector<float> x;
    for (float v = -12.0f; v <= 20.0f; v += 0.00037f)
        x.push_back(v);
    for (float v : {0.0f, -0.0f, 1e-30f, -1e-30f, 80.0f, 1e30f, INFINITY})
        x.push_back(v);
    for (unsigned has : every_isa())
        for (hd_activation act : activations) {
            Run run(has, 1, 64);
            std::vector<float> y(x.size());
            hd_shape shape = hd_shape1((int64_t)x.size());
            REQUIRE_OK(hd_activate(&run, view(y, shape), view(x, shape), act));
            double relative = 0, absolute = 0;
            bool exact = true;
            for (size_t i = 0; i < x.size(); i++) {
                double truth = activation_f64((double)x[i], act);
                double error = std::fabs((double)y[i] - truth);
                // 1 + tanh loses its bits near -1, in the truth as well: there only the size counts
                bool tail = act == HD_ACT_GELU_TANH && x[i] < -3;
                if (!tail && (std::isinf(truth) || truth == 0)) {
                    exact &= (double)y[i] == truth;
                    continue;
                }
                if (!tail) relative = std::fmax(relative, error / std::fabs(truth));
                if (x[i] < 1e3f) absolute = std::fmax(absolute, error);
            }
            INFO("has " << has << " act " << act << " absolute " << absolute);
            CHECK(exact);
            // e^(-x^2/2) at x = -12: half an ulp of the exponent 72 is 4e-6
            CHECK(relative <= (act == HD_ACT_GELU ? 5e-6 : 3e-6));
            CHECK(absolute <= 3e-6); // an ulp of 20 is 1.9e-6
        }
}

TEST_CASE("gelu: off by at most 1e-6 where its argument is of the size of activations",
          "[ops][elementwise]")
{
    std::vector<float> x;
    for (float v = -8.0f; v <= 8.0f; v += 0.0001f)
        x.push_back(v);
    for (unsigned has : every_isa()) {
        Run run(has, 1, 64);
        auto y = x;
        hd_tensor t = view(y, hd_shape1((int64_t)x.size()));
        REQUIRE_OK(hd_activate(&run, t, t, HD_ACT_GELU));
        double worst = 0;
        for (size_t i = 0; i < x.size(); i++)
            worst = std::fmax(worst,
                              std::fabs((double)y[i] - activation_f64((double)x[i], HD_ACT_GELU)));
        CHECK(worst <= 1e-6);
    }
}

TEST_CASE("activate: NaN stays NaN", "[ops][elementwise]")
{
    for (unsigned has : every_isa())
        for (hd_activation act : activations) {
            Run run(has, 1, 64);
            std::vector<float> x(20, NAN);
            hd_tensor t = view(x, hd_shape1(20));
            REQUIRE_OK(hd_activate(&run, t, t, act));
            for (float v : x)
                CHECK(std::isnan(v));
        }
}

TEST_CASE("geglu: every variant agrees with f64", "[ops][elementwise]")
{
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (int64_t c : {1, 15, 16, 17, 31, 33, 320, 1280}) {
                INFO("has " << has << " " << hd_dtype_name(dtype) << " channels " << c);
                const int64_t rows = 53;
                Run run(has, 2, 64);
                auto x = stored(normal_values(rows * 2 * c, 22, 2.0f), dtype);
                auto in = loaded(x, dtype);
                std::vector<double> truth;
                for (int64_t r = 0; r < rows; r++)
                    for (int64_t i = 0; i < c; i++)
                        truth.push_back(
                            (double)in[(size_t)(r * 2 * c + i)] *
                            activation_f64((double)in[(size_t)(r * 2 * c + c + i)], HD_ACT_GELU));
                std::vector<char> y(x.size() / 2);
                REQUIRE_OK(hd_geglu(&run, view(y, dtype, hd_shape3(1, rows, c)),
                                    view(x, dtype, hd_shape3(1, rows, 2 * c))));
                check_close(loaded(y, dtype), truth, dtype, 1e-6);
            }
}

TEST_CASE("add, affine: every variant agrees with f64 and may write over an input",
          "[ops][elementwise]")
{
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16})
            for (int64_t n : sizes) {
                INFO("has " << has << " " << hd_dtype_name(dtype) << " n " << n);
                Run run(has, 2, 64);
                auto a = stored(normal_values(n, 23), dtype);
                auto b = stored(normal_values(n, 24), dtype);
                auto va = loaded(a, dtype), vb = loaded(b, dtype);
                std::vector<double> sum, affine;
                for (size_t i = 0; i < (size_t)n; i++) {
                    sum.push_back((double)va[i] + (double)vb[i]);
                    affine.push_back((double)va[i] * 1.25 - 0.5);
                }
                hd_shape shape = hd_shape1(n);
                std::vector<char> y(a.size());
                REQUIRE_OK(
                    hd_affine(&run, view(y, dtype, shape), view(a, dtype, shape), 1.25f, -0.5f));
                check_close(loaded(y, dtype), affine, dtype, 1e-7);
                hd_tensor t = view(b, dtype, shape);
                REQUIRE_OK(hd_add(&run, t, view(a, dtype, shape), t));
                check_close(loaded(b, dtype), sum, dtype, 1e-7);
            }
}

TEST_CASE("elementwise: a row alone equals the row in a batch, on any threads",
          "[ops][elementwise][threads]")
{
    // not a multiple of the vector width: in a batch the row starts in the middle of a vector
    const int64_t row = 40 * 1001, c = 1001;
    for (unsigned has : every_isa())
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            auto x = stored(normal_values(5 * row * 2, 25), dtype);
            size_t bytes = (size_t)row * hd_dtype_size(dtype);
            hd_shape one = hd_shape3(1, 40, c), one_wide = hd_shape3(1, 40, 2 * c);
            std::vector<char> act(bytes), gate(bytes),
                second(x.begin() + (long)bytes * 2, x.begin() + (long)bytes * 4);
            Run single(has, 1, 64);
            REQUIRE_OK(
                hd_activate(&single, view(act, dtype, one), view(second, dtype, one), HD_ACT_GELU));
            REQUIRE_OK(hd_geglu(&single, view(gate, dtype, one), view(second, dtype, one_wide)));
            for (int64_t batch : {2, 3, 5})
                for (int threads : {1, 2, 4}) {
                    Run run(has, threads, 64);
                    std::vector<char> y((size_t)batch * bytes);
                    REQUIRE_OK(hd_geglu(&run, view(y, dtype, hd_shape3(batch, 40, c)),
                                        view(x, dtype, hd_shape3(batch, 40, 2 * c))));
                    CHECK(memcmp(y.data() + bytes, gate.data(), bytes) == 0);
                    auto all = x; // its rows of c numbers: the third is `second`'s first
                    hd_tensor t = view(all, dtype, hd_shape3(2 * batch, 40, c));
                    REQUIRE_OK(hd_activate(&run, t, t, HD_ACT_GELU));
                    CHECK(memcmp(all.data() + 2 * bytes, act.data(), bytes) == 0);
                }
        }
}

TEST_CASE("copy: any type to any other, as one conversion of each value", "[ops][elementwise]")
{
    auto values = normal_values(1000, 26, 50.0f);
    for (hd_dtype from : {HD_F32, HD_BF16, HD_F16})
        for (hd_dtype to : {HD_F32, HD_BF16, HD_F16}) {
            INFO(hd_dtype_name(from) << " to " << hd_dtype_name(to));
            Run run(hd_cpu_features(), 2, 64);
            auto x = stored(values, from);
            auto truth = stored(loaded(x, from), to);
            std::vector<char> y(truth.size());
            REQUIRE_OK(
                hd_copy(&run, view(y, to, hd_shape2(10, 100)), view(x, from, hd_shape2(10, 100))));
            CHECK(y == truth);
        }
}

TEST_CASE("copy: outer strides on both sides", "[ops][elementwise]")
{
    Run run(hd_cpu_features(), 2, 64);
    const int64_t b = 3, l = 50, h = 4, d = 10;
    auto in = numbered(b * l * h * d);
    auto x = stored(in, HD_F32);
    std::vector<char> y((size_t)(b * h * l * d * 2));
    hd_tensor from = view(x, HD_F32, hd_shape4(b, l, h, d));
    hd_tensor to = view(y, HD_BF16, hd_shape4(b, h, l, d));
    std::swap(to.dim[1], to.dim[2]); // [B, L, H, D] through strides
    std::swap(to.stride[1], to.stride[2]);
    REQUIRE_OK(hd_copy(&run, to, from));
    auto out = loaded(y, HD_BF16);
    bool same = true;
    for (int64_t i = 0; i < b * l * h * d; i++) {
        int64_t k = i % d, j = i / d % h, t = i / d / h % l, n = i / d / h / l;
        same &= out[(size_t)(((n * h + j) * l + t) * d + k)] == in[(size_t)i];
    }
    CHECK(same);

    // a slice of the middle axis into its own memory: two inner axes go as one
    std::vector<float> part((size_t)(b * 7 * h * d));
    REQUIRE_OK(hd_copy(&run, view(part, hd_shape4(b, 7, h, d)), hd_tensor_slice(from, 1, 5, 7)));
    same = true;
    for (int64_t n = 0; n < b; n++)
        for (int64_t i = 0; i < 7 * h * d; i++)
            same &= part[(size_t)(n * 7 * h * d + i)] == in[(size_t)((n * l + 5) * h * d + i)];
    CHECK(same);
}

TEST_CASE("concat: channels of a, then of b", "[ops][elementwise]")
{
    for (hd_dtype dtype : {HD_F32, HD_BF16}) {
        Run run(hd_cpu_features(), 2, 64);
        const int64_t rows = 700, ca = 33, cb = 64;
        auto va = numbered(rows * ca), vb = numbered(rows * cb);
        auto a = stored(va, dtype), b = stored(vb, dtype);
        std::vector<char> y(a.size() + b.size());
        REQUIRE_OK(hd_concat_channels(&run, view(y, dtype, hd_shape4(2, 35, 10, ca + cb)),
                                      view(a, dtype, hd_shape4(2, 35, 10, ca)),
                                      view(b, dtype, hd_shape4(2, 35, 10, cb))));
        auto out = loaded(y, dtype);
        bool same = true;
        for (int64_t r = 0; r < rows; r++)
            for (int64_t c = 0; c < ca + cb; c++)
                same &= out[(size_t)(r * (ca + cb) + c)] ==
                        (c < ca ? va[(size_t)(r * ca + c)] : vb[(size_t)(r * cb + c - ca)]);
        CHECK(same);
    }
}

TEST_CASE("upsample: nearest, by two and to a size that is not a multiple", "[ops][elementwise]")
{
    for (hd_dtype dtype : {HD_F32, HD_BF16})
        for (auto size : {std::pair<int64_t, int64_t>{12, 10}, {11, 9}, {6, 5}, {7, 23}}) {
            Run run(hd_cpu_features(), 2, 64);
            const int64_t h = 6, w = 5, c = 19, oh = size.first, ow = size.second;
            auto in = numbered(2 * h * w * c);
            auto x = stored(in, dtype);
            std::vector<char> y((size_t)(2 * oh * ow * c) * hd_dtype_size(dtype));
            REQUIRE_OK(hd_upsample_nearest(&run, view(y, dtype, hd_shape4(2, oh, ow, c)),
                                           view(x, dtype, hd_shape4(2, h, w, c))));
            auto out = loaded(y, dtype);
            bool same = true;
            for (int64_t b = 0; b < 2; b++)
                for (int64_t i = 0; i < oh; i++)
                    for (int64_t j = 0; j < ow; j++)
                        for (int64_t k = 0; k < c; k++) {
                            auto si = (int64_t)std::floor((double)i * (double)h / (double)oh);
                            auto sj = (int64_t)std::floor((double)j * (double)w / (double)ow);
                            same &= out[(size_t)(((b * oh + i) * ow + j) * c + k)] ==
                                    in[(size_t)(((b * h + si) * w + sj) * c + k)];
                        }
            CHECK(same);
        }
}

TEST_CASE("nchw_to_nhwc and back, in f32 and bf16", "[ops][elementwise]")
{
    for (hd_dtype dtype : {HD_F32, HD_BF16})
        for (int64_t w : {5, 300}) {
            Run run(hd_cpu_features(), 2, 64);
            const int64_t b = 2, c = 4, h = 7;
            auto in = numbered(b * c * h * w);
            auto x = stored(in, HD_F32);
            std::vector<char> last((size_t)(b * c * h * w) * hd_dtype_size(dtype)), back(x.size());
            hd_tensor first = view(x, HD_F32, hd_shape4(b, c, h, w));
            REQUIRE_OK(hd_nchw_to_nhwc(&run, view(last, dtype, hd_shape4(b, h, w, c)), first));
            auto out = loaded(last, dtype);
            bool same = true;
            for (int64_t i = 0; i < b * h * w * c; i++) {
                int64_t k = i % c, col = i / c % w, row = i / c / w % h, n = i / c / w / h;
                same &= out[(size_t)i] == in[(size_t)(((n * c + k) * h + row) * w + col)];
            }
            CHECK(same);
            REQUIRE_OK(hd_nhwc_to_nchw(&run, view(back, HD_F32, hd_shape4(b, c, h, w)),
                                       view(last, dtype, hd_shape4(b, h, w, c))));
            CHECK(back == x);
        }
}

TEST_CASE("gather_rows: rows by number, and numbers that do not exist", "[ops][elementwise]")
{
    Run run;
    auto values = numbered(50 * 33);
    const int64_t index[] = {49, 0, 7, 7, 13};
    for (hd_dtype from : {HD_F32, HD_BF16, HD_F16})
        for (hd_dtype to : {HD_F32, HD_BF16}) {
            auto table = stored(values, from);
            std::vector<char> y(5 * 33 * hd_dtype_size(to));
            REQUIRE_OK(hd_gather_rows(&run, view(y, to, hd_shape2(5, 33)),
                                      view(table, from, hd_shape2(50, 33)), index, 5));
            auto out = loaded(y, to);
            bool same = true;
            for (int64_t i = 0; i < 5 * 33; i++)
                same &= out[(size_t)i] == values[(size_t)(index[i / 33] * 33 + i % 33)];
            CHECK(same);
        }
    std::vector<float> y(2 * 33);
    const int64_t beyond[] = {1, 50};
    CHECK_FAILS(
        hd_gather_rows(&run, view(y, hd_shape2(2, 33)), view(values, hd_shape2(50, 33)), beyond, 2),
        HD_ERR_ARGUMENT, "gather_rows: number 1 is 50, must be 0 to 49");
    const int64_t negative[] = {-1};
    CHECK_FAILS(hd_gather_rows(&run, view(y, hd_shape2(1, 33)), view(values, hd_shape2(50, 33)),
                               negative, 1),
                HD_ERR_ARGUMENT, "number 0 is -1");
}

TEST_CASE("timestep_embedding: sines and cosines of falling frequency", "[ops][elementwise]")
{
    Run run;
    const float t[] = {0, 1, 499, 999, 0.25f};
    for (int64_t dim : {320, 33})
        for (bool flip : {false, true})
            for (float shift : {0.0f, 1.0f}) {
                std::vector<float> y((size_t)(5 * dim));
                REQUIRE_OK(hd_timestep_embedding(&run, view(y, hd_shape2(5, dim)), t, 5, flip,
                                                 shift, 10000.0f));
                double worst = 0;
                int64_t half = dim / 2;
                for (int64_t r = 0; r < 5; r++)
                    for (int64_t i = 0; i < dim; i++) {
                        double k = (double)(i % half), angle = (double)t[r];
                        angle *= std::pow(10000.0, -k / ((double)half - (double)shift));
                        double truth = (i < half) != flip ? std::sin(angle) : std::cos(angle);
                        if (i == 2 * half) truth = 0;
                        worst =
                            std::fmax(worst, std::fabs((double)y[(size_t)(r * dim + i)] - truth));
                    }
                CHECK(worst < 2e-4); // an f32 angle near 1000 has an ulp of 6e-5
                CHECK(y[(size_t)(flip ? 0 : half)] == 1.0f);
            }
    std::vector<float> y(2);
    CHECK_FAILS(hd_timestep_embedding(&run, view(y, hd_shape2(1, 2)), t, 1, true, 1.0f, 10000.0f),
                HD_ERR_ARGUMENT, "timestep_embedding: width 2 with freq_shift 1");
}

TEST_CASE("elementwise: what does not fit is refused, and a dry pass touches nothing",
          "[ops][elementwise]")
{
    Run run;
    std::vector<float> data(64);
    hd_tensor x = view(data, hd_shape2(4, 6)), other = view(data, hd_shape2(4, 5));
    CHECK_FAILS(hd_activate(&run, other, x, HD_ACT_SILU), HD_ERR_SHAPE,
                "activate: y is [4, 5] f32, expected [4, 6] f32");
    CHECK_FAILS(hd_geglu(&run, x, other), HD_ERR_SHAPE,
                "geglu: x is [4, 5] f32, expected an even number of channels");
    CHECK_FAILS(hd_geglu(&run, other, x), HD_ERR_SHAPE, "expected [4, 3] f32");
    CHECK_FAILS(hd_add(&run, x, x, other), HD_ERR_SHAPE, "add: b is [4, 5] f32");
    CHECK_FAILS(hd_concat_channels(&run, x, other, other), HD_ERR_SHAPE,
                "concat: y is [4, 6] f32, expected [4, 10] f32");
    hd_tensor whole = hd_tensor_of(data.data(), HD_I32, hd_shape2(4, 6));
    CHECK_FAILS(hd_copy(&run, whole, x), HD_ERR_SHAPE, "copy: [4, 6] f32 to i32");
    hd_tensor none = x;
    none.data = nullptr;
    CHECK_FAILS(hd_affine(&run, none, x, 2, 0), HD_ERR_NOMEM, "arena is full");
    hd_tensor gaps = hd_tensor_slice(x, 1, 0, 5);
    CHECK_FAILS(hd_affine(&run, gaps, gaps, 2, 0), HD_ERR_SHAPE, "not contiguous");

    hd_exec dry = run.exec;
    dry.recording = true;
    hd_tensor fake = hd_tensor_of((void *)64, HD_F32, hd_shape4(1, 2, 3, 4));
    hd_tensor wide = hd_tensor_of((void *)64, HD_F32, hd_shape4(1, 2, 3, 8));
    hd_tensor first = hd_tensor_of((void *)64, HD_F32, hd_shape4(1, 4, 2, 3));
    CHECK(hd_activate(&dry, fake, fake, HD_ACT_SILU) == HD_OK);
    CHECK(hd_geglu(&dry, fake, wide) == HD_OK);
    CHECK(hd_add(&dry, fake, fake, fake) == HD_OK);
    CHECK(hd_affine(&dry, fake, fake, 1, 1) == HD_OK);
    CHECK(hd_copy(&dry, fake, fake) == HD_OK);
    CHECK(hd_concat_channels(&dry, wide, fake, fake) == HD_OK);
    CHECK(hd_upsample_nearest(&dry, fake, fake) == HD_OK);
    CHECK(hd_nchw_to_nhwc(&dry, fake, first) == HD_OK);
    CHECK(hd_nhwc_to_nchw(&dry, first, fake) == HD_OK);
}
