// Linear layers against f64 sums; rows that do not see each other; refusals.
#include "engine/ops/linear.h"

#include "support/catch.h"
#include "support/values.h"

namespace
{

struct Linear {
    hd_linear *p = nullptr;
    Linear(const hd_exec *ex, const std::vector<hd_tensor> &w, const std::vector<hd_tensor> &b,
           hd_dtype compute)
    {
        REQUIRE_OK(hd_linear_create(&p, ex, (int)w.size(), w.data(), b.empty() ? nullptr : b.data(),
                                    compute));
    }
    ~Linear()
    {
        hd_linear_free(p);
    }
};

// [B, T, in] x [out, in]^T + bias + residual
std::vector<double> linear_f64(const Values &x, const Values &w, const Values *bias,
                               const Values *residual)
{
    int64_t in = w.t.dim[1], out = w.t.dim[0], rows = x.count() / in;
    std::vector<double> y((size_t)(rows * out));
    for (int64_t r = 0; r < rows; r++)
        for (int64_t o = 0; o < out; o++) {
            double sum = bias ? bias->at(o) : 0;
            for (int64_t i = 0; i < in; i++)
                sum += x.at(r * in + i) * w.at(o * in + i);
            if (residual) sum += residual->at(r * out + o);
            y[(size_t)(r * out + o)] = sum;
        }
    return y;
}

double tolerance(hd_dtype compute)
{
    return compute == HD_F32 ? 1e-5 : 1e-2;
}

bool has_bf16()
{
    return (hd_cpu_features() & HD_AVX512) != 0;
}

std::vector<hd_dtype> types()
{
    return has_bf16() ? std::vector<hd_dtype>{HD_F32, HD_BF16} : std::vector<hd_dtype>{HD_F32};
}

} // namespace

TEST_CASE("linear: agrees with f64 sums at odd sizes", "[ops]")
{
    auto compute = GENERATE(from_range(types()));
    auto tokens = GENERATE(1, 3, 77, 100, 300);
    auto in = GENERATE(4, 24, 320);
    auto out = GENERATE(4, 24, 320, 330);
    Run run(hd_cpu_features(), 2);
    Values w = Values::normal(compute, hd_shape2(out, in), 1, 1 / std::sqrt((float)in));
    Values bias = Values::normal(HD_F32, hd_shape1(out), 2);
    Values x = Values::normal(compute, hd_shape3(2, tokens, in), 3);
    Values y(compute, hd_shape3(2, tokens, out));
    Linear l(&run, {w.t}, {bias.t}, compute);
    REQUIRE_OK(hd_linear_run(&run, l.p, y.t, x.t, hd_tensor_none()));
    CHECK(worst_error(y, linear_f64(x, w, &bias, nullptr)) < tolerance(compute));
    CHECK(hd_linear_in(l.p) == in);
    CHECK(hd_linear_out(l.p) == out);
    CHECK(hd_linear_bytes(l.p) >= out * in * (int64_t)hd_dtype_size(compute));
}

TEST_CASE("linear: every instruction set adds bias and residual alike", "[ops]")
{
    auto has = GENERATE(from_range(every_isa()));
    auto compute = GENERATE(from_range(types()));
    auto y_type = GENERATE(HD_F32, HD_BF16);
    if (compute == HD_F32 && y_type == HD_BF16) return; // not in the contract
    Run run(has, 1);
    Values w = Values::normal(HD_F16, hd_shape2(37, 40), 1, 0.2f);
    Values bias = Values::normal(HD_BF16, hd_shape1(37), 2);
    Values x = Values::normal(compute, hd_shape3(2, 9, 40), 3);
    Values residual = Values::normal(y_type, hd_shape3(2, 9, 37), 4);
    Values y(y_type, hd_shape3(2, 9, 37)), in_place(residual);
    Linear l(&run, {w.t}, {bias.t}, compute);
    REQUIRE_OK(hd_linear_run(&run, l.p, y.t, x.t, residual.t));
    CHECK(worst_error(y, linear_f64(x, w, &bias, &residual)) < tolerance(compute));
    REQUIRE_OK(hd_linear_run(&run, l.p, in_place.t, x.t, in_place.t));
    CHECK(in_place.bytes == y.bytes);
}

TEST_CASE("linear: parts are stacked, y may be a column slice, x may be strided", "[ops]")
{
    auto compute = GENERATE(from_range(types()));
    Run run(hd_cpu_features(), 2);
    Values w1 = Values::normal(HD_F32, hd_shape4(70, 48, 1, 1), 1, 0.2f);
    Values w2 = Values::normal(HD_BF16, hd_shape2(5, 48), 2, 0.2f);
    Values bias = Values::normal(HD_F32, hd_shape1(5), 3);
    Values wide = Values::normal(compute, hd_shape3(2, 130, 60), 4);
    Values y(HD_F32, hd_shape3(2, 130, 90), 7.0f);
    Linear l(&run, {w1.t, w2.t}, {hd_tensor_none(), bias.t}, compute);
    REQUIRE_OK(hd_linear_run(&run, l.p, hd_tensor_slice(y.t, 2, 10, 75),
                             hd_tensor_slice(wide.t, 2, 6, 48), hd_tensor_none()));
    for (int64_t r = 0; r < 260; r++) {
        CHECK(y.at(r * 90 + 9) == 7.0);
        CHECK(y.at(r * 90 + 85) == 7.0);
        double worst = 0;
        for (int64_t o = 0; o < 75; o++) {
            const Values &w = o < 70 ? w1 : w2;
            int64_t first = (o < 70 ? o : o - 70) * 48;
            double sum = o < 70 ? 0 : bias.at(o - 70);
            for (int64_t i = 0; i < 48; i++) {
                double weight = w.at(first + i);
                if (compute == HD_BF16)
                    weight = (double)hd_bf16_to_f32(hd_bf16_from_f32((float)weight));
                sum += wide.at(r * 60 + 6 + i) * weight;
            }
            worst = std::fmax(worst, std::fabs(sum - y.at(r * 90 + 10 + o)));
        }
        CHECK(worst < 2e-5); // sums are f32 in both types
    }
}

TEST_CASE("linear: gated, it equals both halves and the product in f64", "[ops]")
{
    auto has = GENERATE(from_range(every_isa()));
    auto compute = GENERATE(from_range(types()));
    auto out = GENERATE(512, 40); // halves of whole blocks; halves that share one
    Run run(has, 2);
    Values w = Values::normal(compute, hd_shape2(out, 40), 1, 0.3f);
    Values bias = Values::normal(HD_F32, hd_shape1(out), 2);
    Values x = Values::normal(compute, hd_shape3(2, 150, 40), 3);
    Values y(compute, hd_shape3(2, 150, out / 2));
    Linear l(&run, {w.t}, {bias.t}, compute);
    REQUIRE_OK(hd_linear_run_geglu(&run, l.p, y.t, x.t));
    std::vector<double> wide = linear_f64(x, w, &bias, nullptr), truth((size_t)y.count());
    for (int64_t i = 0; i < y.count(); i++) {
        const double *row = &wide[(size_t)(i / (out / 2) * out)];
        double value = row[i % (out / 2)], gate = row[i % (out / 2) + out / 2];
        truth[(size_t)i] = value * gate * 0.5 * std::erfc(-gate * std::sqrt(0.5));
    }
    CHECK(worst_error(y, truth) < tolerance(compute));
    CHECK_FAILS(hd_linear_run_geglu(&run, l.p, x.t, x.t), HD_ERR_SHAPE, "linear: y is");
}

TEST_CASE("linear: a row alone equals the same row in any batch, at any threads", "[ops][threads]")
{
    auto compute = GENERATE(from_range(types()));
    auto tokens = GENERATE(1, 77, 300);
    Run alone(hd_cpu_features(), 1);
    Values w = Values::normal(HD_F32, hd_shape2(200, 96), 1, 0.1f);
    Values bias = Values::normal(HD_F32, hd_shape1(200), 2);
    Values x = Values::normal(compute, hd_shape3(5, tokens, 96), 3);
    Values first(compute, hd_shape3(5, tokens, 200));
    Linear l(&alone, {w.t}, {bias.t}, compute);
    for (int64_t row = 0; row < 5; row++)
        REQUIRE_OK(hd_linear_run(&alone, l.p, hd_tensor_slice(first.t, 0, row, 1),
                                 hd_tensor_slice(x.t, 0, row, 1), hd_tensor_none()));
    for (int threads : {1, 2, 4})
        for (int64_t batch : {2, 3, 5}) {
            Run run(hd_cpu_features(), threads);
            Values y(compute, hd_shape3(batch, tokens, 200));
            Linear again(&run, {w.t}, {bias.t}, compute);
            // the last rows, so that a row's place differs too
            REQUIRE_OK(hd_linear_run(&run, again.p, y.t, hd_tensor_slice(x.t, 0, 5 - batch, batch),
                                     hd_tensor_none()));
            size_t bytes = (size_t)hd_tensor_bytes(y.t), all = (size_t)hd_tensor_bytes(first.t);
            CHECK(memcmp(y.t.data, (char *)first.t.data + all - bytes, bytes) == 0);
        }
}

TEST_CASE("linear: the dry pass takes the memory and touches no data", "[ops]")
{
    Run run(hd_cpu_features(), 2);
    Values w = Values::normal(HD_F32, hd_shape2(64, 32), 1);
    Linear l(&run, {w.t}, {}, HD_F32);
    hd_exec dry = run.exec;
    REQUIRE_OK(hd_arena_create_measuring(&dry.arena));
    dry.recording = true;
    hd_tensor x = hd_arena_tensor(dry.arena, HD_F32, hd_shape3(2, 50, 32));
    hd_tensor y = hd_arena_tensor(dry.arena, HD_F32, hd_shape3(2, 50, 64));
    size_t before = hd_arena_mark(dry.arena);
    REQUIRE_OK(hd_linear_run(&dry, l.p, y, x, hd_tensor_none()));
    CHECK(hd_arena_mark(dry.arena) == before);
    size_t peak = hd_arena_peak_bytes(dry.arena);
    CHECK(peak > before);
    hd_arena_free(dry.arena);

    Run exact(hd_cpu_features(), 2, peak);
    x = hd_arena_tensor(exact.exec.arena, HD_F32, hd_shape3(2, 50, 32));
    y = hd_arena_tensor(exact.exec.arena, HD_F32, hd_shape3(2, 50, 64));
    memset(x.data, 0, (size_t)hd_tensor_bytes(x));
    REQUIRE_OK(hd_linear_run(&exact, l.p, y, x, hd_tensor_none()));
    Run small(hd_cpu_features(), 2, 4096);
    CHECK_FAILS(hd_linear_run(&small, l.p, y, x, hd_tensor_none()), HD_ERR_NOMEM,
                "the arena is full");
}

TEST_CASE("linear: what does not fit is refused by name", "[ops]")
{
    Run run;
    hd_linear *p = nullptr;
    Values w(HD_F32, hd_shape2(8, 16)), other(HD_F32, hd_shape2(8, 17));
    Values bias(HD_F32, hd_shape1(9));
    CHECK_FAILS(hd_linear_create(&p, &run, 1, &w.t, &bias.t, HD_F32), HD_ERR_SHAPE,
                "linear: bias is [9] f32, expected [8] f32");
    CHECK_FAILS(hd_linear_create(&p, &run, 1, &w.t, nullptr, HD_F16), HD_ERR_ARGUMENT,
                "linear: cannot compute in f16, only in f32 or bf16");
    CHECK_FAILS(hd_linear_create(&p, &run, 1, &bias.t, nullptr, HD_F32), HD_ERR_SHAPE,
                "linear: weight is [9] f32, expected [out, in]");
    hd_tensor parts[2] = {w.t, other.t};
    CHECK_FAILS(hd_linear_create(&p, &run, 2, parts, nullptr, HD_F32), HD_ERR_SHAPE,
                "linear: weight is [8, 17] f32");
    CHECK(p == nullptr);

    Linear l(&run, {w.t}, {}, HD_F32);
    Values x(HD_F32, hd_shape3(1, 2, 16)), wrong(HD_F32, hd_shape3(1, 2, 17));
    Values y(HD_F32, hd_shape3(1, 2, 8)), half(HD_BF16, hd_shape3(1, 2, 16));
    CHECK_FAILS(hd_linear_run(&run, l.p, y.t, wrong.t, hd_tensor_none()), HD_ERR_SHAPE,
                "linear: x is [1, 2, 17] f32, expected [B, ..., 16] f32");
    CHECK_FAILS(hd_linear_run(&run, l.p, y.t, half.t, hd_tensor_none()), HD_ERR_SHAPE,
                "linear: x is [1, 2, 16] bf16");
    CHECK_FAILS(hd_linear_run(&run, l.p, x.t, x.t, hd_tensor_none()), HD_ERR_SHAPE,
                "linear: y is [1, 2, 16] f32, expected [1, 2, 8] f32");
    CHECK_FAILS(hd_linear_run(&run, l.p, y.t, x.t, x.t), HD_ERR_SHAPE,
                "linear: residual is [1, 2, 16] f32, expected [1, 2, 8] f32");
    hd_tensor full = y.t;
    full.data = nullptr;
    CHECK_FAILS(hd_linear_run(&run, l.p, full, x.t, hd_tensor_none()), HD_ERR_NOMEM,
                "linear: y has no memory");
}
