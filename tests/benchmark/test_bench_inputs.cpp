// What attention is measured on: drawn inputs depend on seed, head and place alone; the effective
// key count is that of a plain loop; captured files are read, and refused by what is wrong.
#include <cmath>
#include <cstring>

#include "benchmark/inputs.h"
#include "engine/weights/safetensors_write.h"
#include "support/catch.h"
#include "support/folder.h"
#include "support/values.h"

namespace
{

hd_bench_shape small(int64_t heads = 2, int64_t text = 0)
{
    hd_bench_shape s{};
    s.network = HD_NETWORK_DIT;
    s.grid[0] = s.base[0] = 3, s.grid[1] = s.base[1] = 5, s.grid[2] = s.base[2] = 7;
    s.scale = 1, s.heads = heads, s.head_dim = 32, s.text = text;
    return s;
}

struct Inputs : hd_bench_inputs {
    Inputs() : hd_bench_inputs{}
    {
    }
    ~Inputs()
    {
        hd_bench_inputs_free(this);
    }
};

double at(hd_tensor t, int64_t token, int64_t head, int64_t d)
{
    const int64_t i = (token * t.dim[2] + head) * t.dim[3] + d;
    return t.dtype == HD_F32 ? (double)static_cast<float *>(t.data)[i]
                             : (double)hd_bf16_to_f32(static_cast<hd_bf16 *>(t.data)[i]);
}

} // namespace

TEST_CASE("bench inputs: neither threads nor other heads change a head", "[bench]")
{
    Run one(hd_cpu_features(), 1), three(hd_cpu_features(), 3);
    const bool random = GENERATE(false, true);
    Inputs a, b;
    hd_bench_shape two = small(2, 9), four = small(4, 9);
    if (random) {
        REQUIRE_OK(hd_bench_inputs_random(&a, &one, &two, HD_F32, 5));
        REQUIRE_OK(hd_bench_inputs_random(&b, &three, &four, HD_F32, 5));
    } else {
        REQUIRE_OK(hd_bench_inputs_field(&a, &one, &two, HD_F32, 10, 5));
        REQUIRE_OK(hd_bench_inputs_field(&b, &three, &four, HD_F32, 10, 5));
    }
    CHECK(a.q.dim[1] == 3 * 5 * 7 + 9);
    int64_t differ = 0;
    for (int64_t t = 0; t < a.q.dim[1]; t++)
        for (int64_t h = 0; h < 2; h++)
            for (int64_t d = 0; d < 32; d++)
                differ += at(a.q, t, h, d) != at(b.q, t, h, d) ||
                          at(a.k, t, h, d) != at(b.k, t, h, d) ||
                          at(a.v, t, h, d) != at(b.v, t, h, d);
    CHECK(differ == 0);
}

TEST_CASE("bench inputs: random values are normal", "[bench]")
{
    Run run;
    Inputs a;
    hd_bench_shape shape = small(8);
    REQUIRE_OK(hd_bench_inputs_random(&a, &run, &shape, HD_F32, 1));
    double sum = 0, squares = 0, n = (double)hd_tensor_count(a.v);
    for (int64_t i = 0; i < hd_tensor_count(a.v); i++) {
        const double x = (double)static_cast<float *>(a.v.data)[i];
        sum += x, squares += x * x;
    }
    CHECK(std::fabs(sum / n) < 5 / std::sqrt(n));
    CHECK(std::fabs(squares / n - 1) < 8 / std::sqrt(n));
}

TEST_CASE("bench inputs: the field's scores are at most the gain, and look at what is near",
          "[bench]")
{
    Run run;
    Inputs a;
    hd_bench_shape shape = small(4);
    REQUIRE_OK(hd_bench_inputs_field(&a, &run, &shape, HD_F32, 10, 3));
    double near = 0, far = 0, top = 0;
    int64_t near_count = 0, far_count = 0;
    for (int64_t h = 0; h < 4; h++)
        for (int64_t i = 0; i < 105; i++)
            for (int64_t j = 0; j < 105; j++) {
                double s = 0;
                for (int64_t d = 0; d < 32; d++)
                    s += at(a.q, i, h, d) * at(a.k, j, h, d) / std::sqrt(32.0);
                top = std::fmax(top, std::fabs(s));
                const int64_t distance = std::llabs(i / 35 - j / 35) +
                                         std::llabs(i / 7 % 5 - j / 7 % 5) +
                                         std::llabs(i % 7 - j % 7);
                if (distance <= 1) near += s, near_count++;
                if (distance >= 5) far += s, far_count++;
            }
    CHECK(top <= 10.001);
    CHECK(near / (double)near_count > far / (double)far_count + 1);
}

TEST_CASE("bench inputs: effective keys are those of a plain loop", "[bench]")
{
    Run run(hd_cpu_features(), 2);
    Inputs a;
    hd_bench_shape shape = small(1);
    const double scale = 1 / std::sqrt(32.0);
    REQUIRE_OK(hd_bench_inputs_field(&a, &run, &shape, HD_BF16, 12, 3));
    double keys, mean = 0;
    REQUIRE_OK(hd_bench_effective_keys(&keys, &run, &a, scale));
    for (int64_t sample = 0; sample < 256; sample++) {
        const int64_t i = sample * 105 / 256;
        std::vector<double> p(105);
        double sum = 0;
        for (int64_t j = 0; j < 105; j++) {
            double s = 0;
            for (int64_t d = 0; d < 32; d++)
                s += at(a.q, i, 0, d) * at(a.k, j, 0, d);
            sum += p[(size_t)j] = std::exp(s * scale);
        }
        for (double x : p)
            mean -= x / sum * std::log(x / sum) / 256;
    }
    CHECK(keys == Approx(std::exp(mean)).epsilon(1e-4));
}

TEST_CASE("bench inputs: captured tensors come back, in any float type", "[bench]")
{
    Folder f;
    const hd_shape shape = hd_shape4(2, 12, 3, 8);
    Values q = Values::normal(HD_F32, shape, 1), k = Values::normal(HD_F32, shape, 2),
           v = Values::normal(HD_F32, shape, 3);
    hd_named_tensor tensors[] = {{"q", q.t}, {"k", k.t}, {"v", v.t}};
    const char *metadata[] = {"grid", "1,2,5", "grid_start", "2", nullptr};
    const std::string path = f.path("a.safetensors"), bare = f.path("b.safetensors");
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 3, tensors, metadata));
    REQUIRE_OK(hd_safetensors_write(bare.c_str(), 3, tensors, nullptr));
    Inputs a, b;
    hd_bench_shape s = small();
    REQUIRE_OK(hd_bench_inputs_file(&a, &s, HD_F32, path.c_str()));
    CHECK(s.grid[0] == 1);
    CHECK(s.grid[1] == 2);
    CHECK(s.grid[2] == 5);
    CHECK(s.text == 2);
    CHECK(s.text_first);
    CHECK(s.heads == 3);
    CHECK(s.head_dim == 8);
    CHECK(std::memcmp(a.k.data, k.t.data, (size_t)hd_tensor_bytes(k.t)) == 0);
    s.grid[0] = 3, s.grid[1] = 2, s.grid[2] = 2, s.text = 0;
    REQUIRE_OK(hd_bench_inputs_file(&b, &s, HD_BF16, bare.c_str()));
    CHECK(static_cast<hd_bf16 *>(b.v.data)[17] == hd_bf16_from_f32((float)v.at(17)));
}

TEST_CASE("bench inputs: files that do not fit say what is missing", "[bench]")
{
    Folder f;
    Values q(HD_F32, hd_shape4(1, 12, 3, 8)), k(HD_F32, hd_shape4(1, 10, 3, 8));
    hd_named_tensor two[] = {{"q", q.t}, {"k", q.t}},
                    three[] = {{"q", q.t}, {"k", k.t}, {"v", q.t}},
                    good[] = {{"q", q.t}, {"k", q.t}, {"v", q.t}};
    const char *bad_grid[] = {"grid", "wide", nullptr};
    const std::string path = f.path("a.safetensors");
    Inputs in;
    hd_bench_shape s = small();
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 2, two, nullptr));
    CHECK_FAILS(hd_bench_inputs_file(&in, &s, HD_F32, path.c_str()), HD_ERR_FORMAT,
                "has no tensor v");
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 3, three, nullptr));
    CHECK_FAILS(hd_bench_inputs_file(&in, &s, HD_F32, path.c_str()), HD_ERR_FORMAT,
                "k is [1, 10, 3, 8], q is [1, 12, 3, 8]");
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 3, good, nullptr));
    CHECK_FAILS(hd_bench_inputs_file(&in, &s, HD_F32, path.c_str()), HD_ERR_ARGUMENT,
                "has 12 tokens; 3x5x7 + 0 text are 105");
    REQUIRE_OK(hd_safetensors_write(path.c_str(), 3, good, bad_grid));
    CHECK_FAILS(hd_bench_inputs_file(&in, &s, HD_F32, path.c_str()), HD_ERR_FORMAT,
                "\"grid\" is \"wide\", expected F,H,W");
    CHECK_FAILS(hd_bench_inputs_file(&in, &s, HD_F32, f.path("absent").c_str()), HD_ERR_IO,
                "absent");
}
