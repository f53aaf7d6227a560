// Convolutions against f64 loops, with everything that is fused in; rows that do not see each
// other; refusals.
#include "engine/ops/conv.h"

#include "support/catch.h"
#include "support/values.h"

namespace
{

struct Conv {
    hd_conv *p = nullptr;
    Conv(const hd_exec *ex, hd_conv_spec spec, const Values &w, hd_tensor bias, hd_dtype compute)
    {
        REQUIRE_OK(hd_conv_create(&p, ex, spec, w.t, bias, compute));
    }
    ~Conv()
    {
        hd_conv_free(p);
    }
};

// The input as the convolution sees it: normalised, activated, upsampled; [B, UH, UW, C].
std::vector<double> prepare_f64(const Values &x, const hd_conv_norm *norm, int64_t up_h,
                                int64_t up_w)
{
    int64_t batch = x.t.dim[0], h = x.t.dim[1], w = x.t.dim[2], c = x.t.dim[3];
    std::vector<double> v((size_t)x.count());
    for (int64_t i = 0; i < x.count(); i++)
        v[(size_t)i] = x.at(i);
    for (int64_t b = 0; norm && b < batch; b++)
        for (int g = 0; g < norm->groups; g++) {
            int64_t size = c / norm->groups;
            double sum = 0, square = 0, count = (double)(h * w * size);
            for (int pass = 0; pass < 3; pass++)
                for (int64_t p = 0; p < h * w; p++)
                    for (int64_t i = g * size; i < (g + 1) * size; i++) {
                        double &e = v[(size_t)((b * h * w + p) * c + i)];
                        if (pass == 0) sum += e;
                        if (pass == 1) square += (e - sum / count) * (e - sum / count);
                        if (pass < 2) continue;
                        e = (e - sum / count) / std::sqrt(square / count + (double)norm->eps);
                        e = e * (double)norm->gamma[i] + (double)norm->beta[i];
                        if (norm->silu) e = e / (1 + std::exp(-e));
                    }
        }
    std::vector<double> up((size_t)(batch * up_h * up_w * c));
    for (int64_t b = 0; b < batch; b++)
        for (int64_t i = 0; i < up_h * up_w * c; i++) {
            int64_t row = i / c / up_w * h / up_h, column = i / c % up_w * w / up_w;
            up[(size_t)(b * up_h * up_w * c + i)] =
                v[(size_t)(((b * h + row) * w + column) * c + i % c)];
        }
    return up;
}

// Every `step`-th element of y; the others stay 0.
std::vector<double> conv_f64(const std::vector<double> &x, int64_t h, int64_t w, const Values &y,
                             const Values &weight, hd_conv_spec s, int64_t step = 1)
{
    int64_t oh = y.t.dim[1], ow = y.t.dim[2], out = y.t.dim[3];
    int64_t in = weight.t.dim[1], kh = weight.t.dim[2], kw = weight.t.dim[3];
    std::vector<double> sums((size_t)y.count());
    for (int64_t n = 0; n < y.count(); n += step) {
        int64_t o = n % out, c = n / out % ow, r = n / out / ow % oh, b = n / out / ow / oh;
        for (int64_t i = 0; i < kh; i++)
            for (int64_t j = 0; j < kw; j++) {
                int64_t row = r * s.stride + i - s.pad_top, column = c * s.stride + j - s.pad_left;
                if (row < 0 || row >= h || column < 0 || column >= w) continue;
                for (int64_t k = 0; k < in; k++)
                    sums[(size_t)n] += x[(size_t)(((b * h + row) * w + column) * in + k)] *
                                       weight.at(((o * in + k) * kh + i) * kw + j);
            }
    }
    return sums;
}

Values output_of(const hd_conv *conv, hd_dtype dtype, int64_t batch, int64_t h, int64_t w)
{
    int64_t oh, ow;
    hd_conv_out_size(conv, h, w, &oh, &ow);
    return Values(dtype, hd_shape4(batch, oh, ow, hd_conv_out(conv)));
}

double tolerance(hd_dtype compute)
{
    return compute == HD_F32 ? 1e-5 : 1e-2;
}

std::vector<hd_dtype> types()
{
    bool bf16 = (hd_cpu_features() & HD_AVX512) != 0;
    return bf16 ? std::vector<hd_dtype>{HD_F32, HD_BF16} : std::vector<hd_dtype>{HD_F32};
}

} // namespace

TEST_CASE("conv: kernels, strides and paddings agree with f64 loops", "[ops]")
{
    struct Case {
        int64_t in, out, kernel, h, w;
        hd_conv_spec spec;
    };
    auto c = GENERATE(Case{4, 24, 3, 9, 7, {1, 1, 1, 1, 1}},     // conv_in
                      Case{24, 4, 3, 9, 7, {1, 1, 1, 1, 1}},     // conv_out
                      Case{16, 70, 3, 8, 8, {2, 1, 1, 1, 1}},    // a UNet's downsampler
                      Case{16, 24, 3, 8, 10, {2, 0, 0, 1, 1}},   // an autoencoder's
                      Case{16, 24, 3, 7, 9, {2, 1, 0, 0, 2}},    // every side another
                      Case{20, 64, 1, 5, 6, {1, 0, 0, 0, 0}},    // read where it lies
                      Case{20, 12, 1, 7, 6, {2, 0, 0, 0, 0}},    //
                      Case{20, 12, 3, 7, 6, {1, 0, 0, 0, 0}},    //
                      Case{3, 5, 5, 6, 6, {1, 2, 2, 2, 2}},      //
                      Case{8, 130, 3, 40, 30, {1, 1, 1, 1, 1}}); // several strips and blocks
    auto compute = GENERATE(from_range(types()));
    auto x_type = GENERATE(HD_F32, HD_BF16);
    if (compute == HD_F32 && x_type == HD_BF16) return; // not in the contract
    Run run(hd_cpu_features(), 2);
    float scale = 1 / std::sqrt((float)(c.in * c.kernel * c.kernel));
    Values w = Values::normal(compute, hd_shape4(c.out, c.in, c.kernel, c.kernel), 1, scale);
    Values x = Values::normal(x_type, hd_shape4(2, c.h, c.w, c.in), 2);
    Conv conv(&run, c.spec, w, hd_tensor_none(), compute);
    Values y = output_of(conv.p, HD_F32, 2, c.h, c.w);
    REQUIRE_OK(hd_conv_run(&run, conv.p, y.t, x.t, nullptr));
    std::vector<double> truth = conv_f64(prepare_f64(x, nullptr, c.h, c.w), c.h, c.w, y, w, c.spec);
    CHECK(worst_error(y, truth) < tolerance(compute));
}

TEST_CASE("conv: norm, SiLU, upsampling, biases and residual are those of f64", "[ops]")
{
    auto has = GENERATE(from_range(every_isa()));
    auto compute = GENERATE(from_range(types()));
    auto silu = GENERATE(false, true);
    auto up = GENERATE(0, 1, 2);
    Run run(has, 2);
    const int64_t c = 32, out = 72, h = 6, w = 5;
    int64_t up_h = up == 0 ? h : up == 1 ? 12 : 11, up_w = up == 0 ? w : up == 1 ? 10 : 13;
    Values weight = Values::normal(compute, hd_shape4(out, c, 3, 3), 1, 0.06f);
    Values bias = Values::normal(HD_F16, hd_shape1(out), 2);
    Values row_bias = Values::normal(HD_F32, hd_shape2(2, out), 3);
    Values x = Values::normal(compute, hd_shape4(2, h, w, c), 4, 3.0f);
    std::vector<float> gamma = normal_values(c, 5), beta = normal_values(c, 6);
    hd_conv_norm norm = {gamma.data(), beta.data(), 8, 1e-5f, silu};
    hd_conv_spec spec = {1, 1, 1, 1, 1};
    Conv conv(&run, spec, weight, bias.t, compute);
    Values y = output_of(conv.p, compute, 2, up_h, up_w);
    Values residual = Values::normal(compute, hd_tensor_shape(y.t), 7), in_place(residual);
    hd_conv_extra extra = {&norm, row_bias.t, residual.t, up ? up_h : 0, up ? up_w : 0};
    REQUIRE_OK(hd_conv_run(&run, conv.p, y.t, x.t, &extra));

    std::vector<double> truth =
        conv_f64(prepare_f64(x, &norm, up_h, up_w), up_h, up_w, y, weight, spec);
    for (int64_t i = 0; i < y.count(); i++) {
        int64_t row = i / (y.count() / 2);
        truth[(size_t)i] += bias.at(i % out) + row_bias.at(row * out + i % out) + residual.at(i);
    }
    CHECK(worst_error(y, truth) < tolerance(compute));
    extra.residual = in_place.t;
    REQUIRE_OK(hd_conv_run(&run, conv.p, in_place.t, x.t, &extra));
    CHECK(in_place.bytes == y.bytes);
}

TEST_CASE("conv: a large image goes through the threads' own buffers", "[ops]")
{
    auto compute = GENERATE(from_range(types()));
    auto stride = GENERATE(1, 2);
    Run run(hd_cpu_features(), 2, 256u << 20);
    // more than 8 MiB when gathered
    int64_t h = 150, w = 230, c = compute == HD_F32 ? 64 : 128;
    hd_conv_spec spec = {stride, 1, 1, 1, 1};
    Values weight = Values::normal(compute, hd_shape4(2, c, 3, 3), 1, 0.05f);
    Values x = Values::normal(compute, hd_shape4(1, h, w, c), 2);
    std::vector<float> gamma = normal_values(c, 5), beta = normal_values(c, 6);
    hd_conv_norm norm = {gamma.data(), beta.data(), 8, 1e-5f, false};
    hd_conv_extra extra = {&norm, hd_tensor_none(), hd_tensor_none(), 0, 0};
    Conv conv(&run, spec, weight, hd_tensor_none(), compute);
    Values y = output_of(conv.p, compute, 1, h, w);
    REQUIRE_OK(hd_conv_run(&run, conv.p, y.t, x.t, &extra));
    const int64_t step = 37;
    std::vector<double> truth = conv_f64(prepare_f64(x, &norm, h, w), h, w, y, weight, spec, step);
    for (int64_t i = 0; i < y.count(); i++)
        if (i % step) y.set(i, 0);
    CHECK(worst_error(y, truth) < tolerance(compute));
}

TEST_CASE("conv: images that go by tiles agree with f64 loops", "[ops]")
{
    struct Case {
        int64_t in, out, h, w;
    };
    auto c = GENERATE(Case{64, 96, 30, 43},     // few tiles: step by step; a narrower last block
                      Case{128, 128, 61, 70},   // stacks of chunks, the last one lower
                      Case{96, 72, 7, 600},     // wider than a chunk
                      Case{1280, 640, 20, 20}); // groups of output channels
    auto compute = GENERATE(from_range(types()));
    Run run(hd_cpu_features(), 2, 512u << 20);
    Values weight =
        Values::normal(compute, hd_shape4(c.out, c.in, 3, 3), 1, 1 / std::sqrt(9.0f * (float)c.in));
    Values x = Values::normal(compute, hd_shape4(2, c.h, c.w, c.in), 2);
    Values bias = Values::normal(HD_F32, hd_shape1(c.out), 3);
    Values row_bias = Values::normal(HD_F32, hd_shape2(2, c.out), 4);
    hd_conv_spec spec = {1, 1, 1, 1, 1};
    Conv conv(&run, spec, weight, bias.t, compute);
    Values y = output_of(conv.p, compute, 2, c.h, c.w);
    Values residual = Values::normal(compute, hd_tensor_shape(y.t), 5);
    hd_conv_extra extra = {nullptr, row_bias.t, residual.t, 0, 0};
    REQUIRE_OK(hd_conv_run(&run, conv.p, y.t, x.t, &extra));
    const int64_t step = 211;
    std::vector<double> truth =
        conv_f64(prepare_f64(x, nullptr, c.h, c.w), c.h, c.w, y, weight, spec, step);
    for (int64_t i = 0; i < y.count(); i++) {
        int64_t row = i / (y.count() / 2);
        if (i % step)
            y.set(i, 0);
        else
            truth[(size_t)i] +=
                bias.at(i % c.out) + row_bias.at(row * c.out + i % c.out) + residual.at(i);
    }
    CHECK(worst_error(y, truth) < tolerance(compute));
}

TEST_CASE("conv: a row alone equals the same row in any batch, at any threads", "[ops][threads]")
{
    struct Case {
        int64_t in, out, kernel, h, w;
    };
    auto compute = GENERATE(from_range(types()));
    auto c = GENERATE(Case{32, 100, 3, 24, 40}, Case{32, 100, 1, 24, 40}, Case{128, 8, 3, 200, 180},
                      Case{64, 96, 3, 30, 43}, Case{128, 128, 3, 61, 70});
    Run alone(hd_cpu_features(), 1, 256u << 20);
    bool large = c.h == 200;
    int pad = c.kernel == 3;
    hd_conv_spec spec = {1, pad, pad, pad, pad};
    Values weight = Values::normal(HD_F32, hd_shape4(c.out, c.in, c.kernel, c.kernel), 1, 0.1f);
    Values x = Values::normal(compute, hd_shape4(large ? 3 : 5, c.h, c.w, c.in), 2);
    int64_t rows = x.t.dim[0];
    Values row_bias = Values::normal(HD_F32, hd_shape2(rows, c.out), 3);
    std::vector<float> gamma = normal_values(c.in, 5), beta = normal_values(c.in, 6);
    hd_conv_norm norm = {gamma.data(), beta.data(), 8, 1e-5f, true};
    hd_conv_extra extra = {&norm, row_bias.t, hd_tensor_none(), 0, 0};
    Conv conv(&alone, spec, weight, hd_tensor_none(), compute);
    Values first = output_of(conv.p, compute, rows, c.h, c.w);
    for (int64_t row = 0; row < rows; row++) {
        extra.row_bias = hd_tensor_slice(row_bias.t, 0, row, 1);
        REQUIRE_OK(hd_conv_run(&alone, conv.p, hd_tensor_slice(first.t, 0, row, 1),
                               hd_tensor_slice(x.t, 0, row, 1), &extra));
    }
    for (int threads : {1, 2, 4})
        for (int64_t batch : {2, 3, 5}) {
            if (batch > rows) continue;
            Run run(hd_cpu_features(), threads, 256u << 20);
            Values y = output_of(conv.p, compute, batch, c.h, c.w);
            extra.row_bias = hd_tensor_slice(row_bias.t, 0, rows - batch, batch);
            REQUIRE_OK(hd_conv_run(&run, conv.p, y.t, hd_tensor_slice(x.t, 0, rows - batch, batch),
                                   &extra));
            size_t bytes = (size_t)hd_tensor_bytes(y.t), all = (size_t)hd_tensor_bytes(first.t);
            CHECK(memcmp(y.t.data, (char *)first.t.data + all - bytes, bytes) == 0);
        }
}

TEST_CASE("conv: the dry pass finds the memory that a run takes", "[ops]")
{
    Run run(hd_cpu_features(), 2);
    Values weight = Values::normal(HD_F32, hd_shape4(16, 8, 3, 3), 1);
    std::vector<float> one(8, 1.0f);
    hd_conv_norm norm = {one.data(), one.data(), 2, 1e-5f, true};
    hd_conv_extra extra = {&norm, hd_tensor_none(), hd_tensor_none(), 0, 0};
    Conv conv(&run, {1, 1, 1, 1, 1}, weight, hd_tensor_none(), HD_F32);
    hd_exec dry = run.exec;
    REQUIRE_OK(hd_arena_create_measuring(&dry.arena));
    dry.recording = true;
    hd_tensor x = hd_arena_tensor(dry.arena, HD_F32, hd_shape4(2, 10, 12, 8));
    hd_tensor y = hd_arena_tensor(dry.arena, HD_F32, hd_shape4(2, 10, 12, 16));
    REQUIRE_OK(hd_conv_run(&dry, conv.p, y, x, &extra));
    size_t peak = hd_arena_peak_bytes(dry.arena);
    hd_arena_free(dry.arena);

    Run exact(hd_cpu_features(), 2, peak);
    x = hd_arena_tensor(exact.exec.arena, HD_F32, hd_shape4(2, 10, 12, 8));
    y = hd_arena_tensor(exact.exec.arena, HD_F32, hd_shape4(2, 10, 12, 16));
    memset(x.data, 0, (size_t)hd_tensor_bytes(x));
    REQUIRE_OK(hd_conv_run(&exact, conv.p, y, x, &extra));
    Run small(hd_cpu_features(), 2, 4096);
    CHECK_FAILS(hd_conv_run(&small, conv.p, y, x, &extra), HD_ERR_NOMEM, "arena is full");
}

TEST_CASE("conv: what does not fit is refused by name", "[ops]")
{
    Run run;
    hd_conv *p = nullptr;
    hd_conv_spec spec = {1, 0, 0, 0, 0};
    Values weight(HD_F32, hd_shape4(8, 16, 3, 3)), bias(HD_F32, hd_shape1(9));
    CHECK_FAILS(hd_conv_create(&p, &run, spec, bias.t, hd_tensor_none(), HD_F32), HD_ERR_SHAPE,
                "conv: weight is [9] f32, expected [out, in, kh, kw]");
    CHECK_FAILS(hd_conv_create(&p, &run, spec, weight.t, bias.t, HD_F32), HD_ERR_SHAPE,
                "conv: bias is [9] f32, expected [8] f32");
    CHECK_FAILS(hd_conv_create(&p, &run, {0, 0, 0, 0, 0}, weight.t, hd_tensor_none(), HD_F32),
                HD_ERR_ARGUMENT, "conv: stride 0");
    CHECK_FAILS(hd_conv_create(&p, &run, spec, weight.t, hd_tensor_none(), HD_I8), HD_ERR_ARGUMENT,
                "conv: cannot compute in i8");
    CHECK(p == nullptr);

    Conv conv(&run, spec, weight, hd_tensor_none(), HD_F32);
    Values x(HD_F32, hd_shape4(1, 5, 5, 16)), thin(HD_F32, hd_shape4(1, 2, 5, 16));
    Values wrong(HD_F32, hd_shape4(1, 5, 5, 15)), y(HD_F32, hd_shape4(1, 3, 3, 8));
    CHECK_FAILS(hd_conv_run(&run, conv.p, y.t, wrong.t, nullptr), HD_ERR_SHAPE,
                "conv: x is [1, 5, 5, 15] f32, expected [B, H, W, 16] f32");
    CHECK_FAILS(hd_conv_run(&run, conv.p, y.t, thin.t, nullptr), HD_ERR_SHAPE,
                "smaller than the 3 x 3 kernel");
    CHECK_FAILS(hd_conv_run(&run, conv.p, x.t, x.t, nullptr), HD_ERR_SHAPE,
                "conv: y is [1, 5, 5, 16] f32, expected [1, 3, 3, 8] f32");
    Values short_bias(HD_F32, hd_shape2(2, 8));
    hd_conv_extra extra = {nullptr, short_bias.t, hd_tensor_none(), 0, 0};
    CHECK_FAILS(hd_conv_run(&run, conv.p, y.t, x.t, &extra), HD_ERR_SHAPE,
                "conv: row_bias is [2, 8] f32, expected [1, 8] f32");
    extra = {nullptr, hd_tensor_none(), x.t, 0, 0};
    CHECK_FAILS(hd_conv_run(&run, conv.p, y.t, x.t, &extra), HD_ERR_SHAPE, "conv: residual is");
    std::vector<float> one(16, 1.0f);
    hd_conv_norm norm = {one.data(), one.data(), 3, 1e-5f, false};
    extra = {&norm, hd_tensor_none(), hd_tensor_none(), 0, 0};
    CHECK_FAILS(hd_conv_run(&run, conv.p, y.t, x.t, &extra), HD_ERR_SHAPE,
                "16 channels cannot be cut into 3 groups");
}
