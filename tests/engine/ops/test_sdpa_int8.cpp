// Attention with its products in int8: the quantiser, the integer products, the smoothing of the
// keys, the probabilities' scale per step of keys, the accuracy, the refusals. The published
// algorithm is SageAttention (arXiv 2410.02367); figures are of this engine's rules.
#include "tests/engine/ops/sdpa_int8.h"

#include "kernels/cpu/sdpa.h"
#include "kernels/int8.h"

namespace
{

struct Quantised {
    float step;
    std::vector<int> codes;
};

Quantised quantise(const std::vector<float> &x)
{
    float largest = 0.0f;
    for (float each : x)
        largest = std::max(largest, std::fabs(each));
    Quantised q{hd_int8_step(largest), {}};
    for (float each : x)
        q.codes.push_back(hd_int8_code(each, hd_int8_inverse(largest)));
    return q;
}

void run_int8(Call &c, hd_attention_number qk, hd_attention_number pv, int threads = 1,
              unsigned has = hd_cpu_features())
{
    Run run(has, threads, (size_t)256 << 20);
    hd_sdpa a = c.args();
    a.qk = qk, a.pv = pv;
    REQUIRE_OK(hd_sdpa_run(&run, &a));
}

// Sum of |got - want| over sum of |want|.
double relative_l1(const Call &got, const Call &want)
{
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < want.n.lq; i++)
        for (int64_t d = 0; d < want.n.dv; d++) {
            difference += std::fabs(got.out.at(0, i, 0, d) - want.out.at(0, i, 0, d));
            size += std::fabs(want.out.at(0, i, 0, d));
        }
    return difference / size;
}

double int8_error(const Call &c, hd_attention_number qk, hd_attention_number pv)
{
    Call native = c, rounded = c;
    run_int8(native, HD_NUMBER_NATIVE, HD_NUMBER_NATIVE);
    run_int8(rounded, qk, pv);
    return relative_l1(rounded, native);
}

} // namespace

TEST_CASE("int8: codes round to the nearest, halves to even, and keep within 127", "[ops][int8]")
{
    Quantised q = quantise({0.5f, -2.0f, 1.27f, 0.003f});
    CHECK(q.codes == std::vector<int>{32, -127, 81, 0});
    CHECK(q.step == Approx(0.0157480));
    CHECK((double)q.step * 32 == Approx(0.503937));
    CHECK((double)q.step * 81 == Approx(1.275591));
    CHECK(quantise({1.0f, -0.5f}).codes == std::vector<int>{127, -64});
    CHECK(quantise({0.0f, 0.0f}).codes == std::vector<int>{0, 0});
    CHECK(std::isnan(hd_int8_step(std::nanf(""))));
    INFO("random groups, seed 1 ..");
    for (uint64_t seed = 1; seed <= 200; seed++)
        for (int code : quantise(normal_values(37, seed, 3.0f)).codes)
            CHECK(std::abs(code) <= 127);
}

TEST_CASE("int8: taking the mean key off keeps the small channel", "[ops][int8]")
{
    const std::vector<float> raw = {10, 1, 10.2f, -1, 9.8f, 0},
                             centred = {0, 1, 0.2f, -1, -0.2f, 0};
    const Quantised k = quantise(raw), smooth = quantise(centred), q = quantise({0.5f, 1});
    CHECK(k.codes == std::vector<int>{125, 12, 127, -12, 122, 0});
    CHECK(k.step == Approx(0.0803150));
    CHECK(smooth.codes == std::vector<int>{0, 127, 25, -127, -25, 0});
    CHECK(smooth.step == Approx(0.00787402));
    CHECK(q.codes == std::vector<int>{64, 127});
    auto logit = [&](const Quantised &of, size_t j) {
        const int dot = q.codes[0] * of.codes[2 * j] + q.codes[1] * of.codes[2 * j + 1];
        return (double)dot * (double)q.step * (double)of.step;
    };
    const double rough[] = {6.02299, 4.17638, 4.93779}, fine[] = {6.0, 4.0992, 4.9008};
    for (size_t j = 0; j < 3; j++) {
        CHECK(logit(k, j) == Approx(rough[j]).margin(1e-5));
        CHECK(logit(smooth, j) + 5 == Approx(fine[j]).margin(1e-5));
    }
    // the same keys through the kernels, which give every key a step of its own: each alone, so
    // that its logit is the log of the sum
    for (unsigned isa : {(unsigned)HD_CPU, hd_cpu_features()}) {
        if (isa != HD_CPU && !has_int8()) continue;
        Call c({1, 3, 3, 1, 1, 2, 1, HD_F32});
        c.scale = 1.0f;
        c.mask_shape = hd_shape4(1, 1, 3, 3), c.mask = {1, 0, 0, 0, 1, 0, 0, 0, 1};
        for (int64_t j = 0; j < 3; j++) {
            c.k.set(0, j, 0, 0, raw[(size_t)(2 * j)]),
                c.k.set(0, j, 0, 1, raw[(size_t)(2 * j + 1)]);
            c.q.set(0, j, 0, 0, 0.5f), c.q.set(0, j, 0, 1, 1.0f);
        }
        run_int8(c, HD_NUMBER_INT8, HD_NUMBER_NATIVE, 1, isa);
        const double exact[] = {6.0, 4.1, 4.9};
        for (size_t j = 0; j < 3; j++)
            CHECK((double)c.lse[j] == Approx(exact[j]).margin(2e-3));
    }
}

TEST_CASE("int8: a vector added to every key changes no bit but the log-sum-exp's", "[ops][int8]")
{
    if (!has_int8()) return;
    // numbers whose sums and means are exact: multiples of 1/64 in opposite pairs, 256 keys
    std::mt19937_64 rng(5);
    Call c({1, 40, 256, 1, 1, 24, 8, HD_F32}, 3), moved = c;
    float offset[24];
    for (float &x : offset)
        x = (float)(int)(rng() % 9) - 4.0f;
    for (int64_t j = 0; j < 256; j += 2)
        for (int64_t d = 0; d < 24; d++) {
            const float x = ((float)(int)(rng() % 129) - 64.0f) / 64.0f;
            for (int64_t i = 0; i < 2; i++) {
                c.k.set(0, j + i, 0, d, i ? x : -x);
                moved.k.set(0, j + i, 0, d, (i ? x : -x) + offset[d]);
            }
        }
    for (auto [qk, pv] : int8_pairs) {
        if (qk != HD_NUMBER_INT8) continue;
        run_int8(c, qk, pv), run_int8(moved, qk, pv);
        CHECK(c.out.bits(0) == moved.out.bits(0));
        for (int64_t i = 0; i < 40; i++) {
            double shift = 0.0;
            for (int64_t d = 0; d < 24; d++)
                shift += c.q.at(0, i, 0, d) * (double)offset[d] * (double)c.scale;
            const auto at = (size_t)i;
            CHECK((double)moved.lse[at] - (double)c.lse[at] == Approx(shift).margin(3e-6));
        }
    }
}

TEST_CASE("int8: a step of keys is rounded against its own largest", "[ops][int8]")
{
    // two steps of 128 keys, of which two each are seen: scores 0, -1, then -6, -6.5
    const double score[] = {0.0, -1.0, -6.0, -6.5};
    const int64_t key[] = {0, 1, 128, 129};
    CHECK(std::rint(127 * std::exp(-1.0)) == 47); // one scale for all steps: s8 loses the second
    CHECK(std::rint(127 * std::exp(-6.0)) == 0);
    CHECK(std::rint(255 * std::exp(-1.0)) == 94);
    CHECK(std::rint(255 * std::exp(-6.0)) == 1);
    CHECK(std::rint(255 * std::exp(-6.5)) == 0);
    const double beta = std::exp(-6.0);
    CHECK(beta == Approx(0.00247875).epsilon(1e-5));
    const double weight[] = {1.0, 94.0 / 255, beta, beta * 155 / 255};
    CHECK(weight[3] == Approx(0.00150669).epsilon(1e-5));
    for (unsigned isa : {(unsigned)HD_CPU, hd_cpu_features()}) {
        if (isa != HD_CPU && !has_int8()) continue;
        Call c({1, 1, 256, 1, 1, 1, 4, HD_F32});
        c.scale = 1.0f;
        c.mask_shape = hd_shape4(1, 1, 1, 256), c.mask.assign(256, 0);
        c.q.set(0, 0, 0, 0, 1.0f);
        for (int64_t j = 0; j < 256; j++)
            for (int64_t d = 0; d < 4; d++)
                c.v.set(0, j, 0, d, 0.0f);
        for (int64_t i = 0; i < 4; i++) {
            c.mask[(size_t)key[i]] = 1;
            c.k.set(0, key[i], 0, 0, (float)score[i]);
            c.v.set(0, key[i], 0, i, 1.0f); // channel i is the weight of key i
        }
        run_int8(c, HD_NUMBER_NATIVE, HD_NUMBER_INT8, 1, isa);
        const double sum = weight[0] + weight[1] + weight[2] + weight[3];
        for (int64_t i = 0; i < 4; i++)
            CHECK(c.out.at(0, 0, 0, i) == Approx(weight[i] / sum).epsilon(2e-6));
        CHECK((double)c.lse[0] == Approx(std::log(sum)).margin(1e-6));
    }
}

#if defined(__x86_64__)

namespace
{

// Scores of `keys` whole numbers against 16 queries by the kernel's own steps, which know no scale.
std::vector<float> whole_scores(const hd_sdpa_kernel &kernel, const std::vector<float> &q,
                                const std::vector<float> &k, int64_t keys, int64_t dim,
                                void (*touch)(int8_t *key))
{
    std::vector<float> mean((size_t)dim), packed((size_t)(keys * (2 + (dim + 3) / 4)));
    std::vector<float> block_q((size_t)((dim + 3) / 4 * 16)), scores((size_t)(keys * 16));
    std::vector<float> max(16), sum(16), factor(16), largest(16), weight(16), out(16);
    std::vector<int32_t> token(256);
    for (size_t i = 0; i < token.size(); i++)
        token[i] = (int32_t)i;
    hd_sdpa_head head{};
    head.dtype = HD_F32, head.q = q.data(), head.k = k.data();
    head.q_stride = head.k_stride = head.dim = dim;
    head.queries = 16, head.keys = keys, head.scale = 1.0f, head.value_dim = 1;
    head.key_mean = mean.data();
    const hd_sdpa_packed to{packed.data(), nullptr, 0};
    kernel.pack_keys(&head, token.data(), 0, keys, &to);
    if (touch) touch((int8_t *)(packed.data() + 2)), packed[0] = 0.0f;
    hd_sdpa_block block{};
    block.head = &head, block.token = token.data(), block.queries = 16;
    block.q = block_q.data(), block.scores = scores.data(), block.out = out.data();
    block.max = max.data(), block.sum = sum.data(), block.factor = factor.data();
    block.largest = largest.data(), block.weight = weight.data();
    kernel.begin(&block);
    auto step = std::make_unique<hd_sdpa_step>();
    step->packed = &to, step->count = keys, step->spans = 1, step->span[0] = {0, (int32_t)keys};
    kernel.scores(&block, step.get());
    return scores;
}

void check_whole(const hd_sdpa_kernel &kernel)
{
    INFO("seed 11, " << kernel.lanes << " lanes");
    std::mt19937_64 rng(11);
    auto code = [&] { return (float)((int)(rng() % 255) - 127); };
    int64_t met = 0;
    for (int64_t dim :
         {1, 3, 4, 17, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 128}) {
        const int64_t keys = 100;
        std::vector<float> q((size_t)(16 * dim)), k((size_t)(keys * dim));
        for (float &x : q)
            x = code();
        for (float &x : k)
            x = code();
        for (int64_t i = 0; i < 16; i++) // so that the codes are the numbers
            q[(size_t)(i * dim)] = i % 2 ? 127.0f : -127.0f;
        for (int64_t j = 0; j < keys; j++)
            k[(size_t)(j * dim + dim - 1)] = j % 3 ? 127.0f : -127.0f;
        auto scores = whole_scores(kernel, q, k, keys, dim, nullptr);
        int wrong = 0;
        for (int64_t j = 0; j < keys; j++)
            for (int64_t i = 0; i < 16; i++, met++) {
                int dot = 0;
                for (int64_t d = 0; d < dim; d++)
                    dot += (int)q[(size_t)(i * dim + d)] * (int)k[(size_t)(j * dim + d)];
                wrong += scores[(size_t)(j * 16 + i)] != (float)dot;
            }
        CHECK(wrong == 0);
    }
    CHECK(met >= 2000 * 16);
    auto extreme = whole_scores(kernel, std::vector<float>(16 * 64, -127.0f),
                                std::vector<float>(64, 127.0f), 1, 64, nullptr);
    for (float x : extreme)
        CHECK(x == -1032256.0f);
    // 255 x -128 four times, neither of which the codes have: no saturation on the way
    auto raw =
        whole_scores(kernel, std::vector<float>(16 * 4, 127.0f), std::vector<float>(4, 127.0f), 1,
                     4, [](int8_t *key) { memset(key, -128, 4); });
    for (float x : raw)
        CHECK(x == -130560.0f);
}

} // namespace

TEST_CASE("int8: the unsigned product with its start is the signed one", "[ops][int8]")
{
    for (unsigned has : int8_vectors())
        check_whole(has & HD_AVX512_VNNI ? hd_sdpa_avx512vnni : hd_sdpa_avxvnni);
}

#endif

TEST_CASE("int8: values that are all the same come out as their code says", "[ops][int8]")
{
    for (uint64_t seed = 1; seed <= 24; seed++) {
        CAPTURE(seed);
        std::mt19937_64 rng(seed);
        const hd_dtype dtype = seed % 2 ? HD_F32 : HD_BF16;
        Call c({2, 70, 200, 2, 1, 40, 19, dtype}, seed, Tokens::packed, 2.0f);
        for (int64_t b = 0; b < 2; b++)
            for (int64_t j = 0; j < 200; j++)
                for (int64_t d = 0; d < 19; d++)
                    c.v.set(b, j, 0, d, 0.37f * (float)(d - 9));
        if (seed % 3 == 0) c.add_mask(hd_shape4(1, 1, 70, 200), rng, 0.3);
        if (seed % 3 == 1) c.add_plan(2, 64, 64, rng, 0.7);
        for (unsigned isa : {(unsigned)HD_CPU, hd_cpu_features()}) {
            if (isa != HD_CPU && !has_int8()) continue;
            Call now = c;
            run_int8(now, int8_pairs[seed % 3].first, HD_NUMBER_INT8, 1, isa);
            for (int64_t i = 0; i < 70; i++)
                for (int64_t d = 0; d < 19; d++) {
                    const double v = c.v.at(0, 0, 0, d), got = now.out.at(1, i, 1, d);
                    if (std::isinf(now.lse[(size_t)(3 * 70 + i)])) // saw no key
                        CHECK(got == 0.0);
                    else // 127 of 127 steps
                        CHECK(got == Approx(v).epsilon(dtype == HD_F32 ? 1e-6 : 4e-3));
                }
        }
    }
}

TEST_CASE("int8: normal inputs keep within the accepted error", "[ops][int8]")
{
    if (!has_int8()) return;
    const Call c({1, 96, 4096, 1, 1, 128, 128, HD_F32}, 2);
    const double qk = int8_error(c, HD_NUMBER_INT8, HD_NUMBER_NATIVE);
    const double pv = int8_error(c, HD_NUMBER_NATIVE, HD_NUMBER_INT8);
    const double both = int8_error(c, HD_NUMBER_INT8, HD_NUMBER_INT8);
    CAPTURE(qk, pv, both);
    CHECK(qk <= 0.015);
    CHECK(both <= 0.02);
    CHECK(qk >= 0.004); // it is rounded at all
    CHECK(pv >= 0.004);
}

namespace
{

// Queries and keys in clusters, channels with an offset of their own in all three.
Call clustered(uint64_t seed)
{
    const int64_t keys = 2048, dim = 64, clusters = 16;
    Call c({1, 64, keys, 1, 1, dim, dim, HD_F32}, seed);
    auto centre = normal_values(clusters * dim, seed + 100, 1.5f);
    auto offset = normal_values(3 * dim, seed + 101, 1.0f);
    for (int64_t d = 0; d < dim; d++) {
        const auto at = (size_t)d;
        if (d % 16 == 3) offset[at] *= 12.0f; // the few huge channels that keys have
        for (int64_t j = 0; j < keys; j++) {
            const float of = centre[(size_t)(j * clusters / keys * dim + d)];
            c.k.set(0, j, 0, d, (float)c.k.at(0, j, 0, d) + of + offset[at]);
            c.v.set(0, j, 0, d, 0.3f * (float)c.v.at(0, j, 0, d) + offset[at + (size_t)dim]);
        }
        for (int64_t i = 0; i < 64; i++)
            c.q.set(0, i, 0, d,
                    0.5f * (float)c.q.at(0, i, 0, d) +
                        0.6f * centre[(size_t)(i * clusters / 64 * dim + d)] +
                        0.2f * offset[at + 2 * (size_t)dim]);
    }
    return c;
}

// The same call in f64 with probabilities rounded to `levels` of the row's largest, divided by the
// sum of what they were before.
double static_error(const Call &c, double levels)
{
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < c.n.lq; i++) {
        std::vector<double> p;
        double max = -(double)infinity, sum = 0.0;
        for (int64_t j = 0; j < c.n.lk; j++)
            p.push_back(c.score(0, 0, i, j)), max = std::max(max, p.back());
        for (double &x : p)
            x = std::exp(x - max), sum += x;
        for (int64_t d = 0; d < c.n.dv; d++) {
            double exact = 0.0, rounded = 0.0;
            for (int64_t j = 0; j < c.n.lk; j++) {
                const double v = c.v.at(0, j, 0, d), x = p[(size_t)j];
                exact += x / sum * v, rounded += std::rint(x * levels) / levels / sum * v;
            }
            difference += std::fabs(rounded - exact), size += std::fabs(exact);
        }
    }
    return difference / size;
}

} // namespace

TEST_CASE("int8: clustered keys: the step's own scale is what makes values in int8 work",
          "[ops][int8]")
{
    if (!has_int8()) return;
    const Call c = clustered(3);
    const double pv = int8_error(c, HD_NUMBER_NATIVE, HD_NUMBER_INT8);
    const double qk = int8_error(c, HD_NUMBER_INT8, HD_NUMBER_NATIVE);
    const double s8 = static_error(c, 127.0), u8 = static_error(c, 255.0);
    CAPTURE(pv, qk, s8, u8);
    CHECK(pv < 0.005);
    CHECK(pv * 4 < s8);
    CHECK(pv * 2 < u8);
    CHECK(qk < 0.005);
}

TEST_CASE("int8: a row's bytes depend on that row alone", "[ops][int8]")
{
    if (!has_int8()) return;
    for (auto [qk, pv] : int8_pairs)
        for (hd_dtype dtype : {HD_F32, HD_BF16}) {
            Call c({3, 150, 300, 2, 2, 40, 24, dtype}, 9), one({1, 150, 300, 2, 2, 40, 24, dtype});
            run_int8(c, qk, pv, 1);
            one.q.copy_row(0, c.q, 1), one.k.copy_row(0, c.k, 1), one.v.copy_row(0, c.v, 1);
            run_int8(one, qk, pv, 2);
            CHECK(one.out.bits(0) == c.out.bits(1));
            Call again = c;
            run_int8(again, qk, pv, 3);
            for (int64_t b = 0; b < 3; b++)
                CHECK(again.out.bits(b) == c.out.bits(b));
        }
}

TEST_CASE("int8: the vectors and the plain integers agree at the head sizes of networks",
          "[ops][int8]")
{
    auto d = GENERATE(1, 3, 40, 64, 80, 128, 160, 512);
    for (uint64_t seed = 0; seed < 6; seed++) {
        CAPTURE(d, seed);
        check_int8(Call({1, 20, 150, 1, 1, d, d, seed < 3 ? HD_F32 : HD_BF16}, seed + 1), seed);
    }
}

TEST_CASE("int8: huge and NaN numbers", "[ops][int8]")
{
    if (!has_int8()) return;
    for (auto [qk, pv] : int8_pairs) {
        Call c({1, 20, 200, 1, 1, 16, 8, HD_F32}, 4, Tokens::packed, 60.0f);
        check_int8(c, qk == pv ? 2 : qk == HD_NUMBER_INT8 ? 0 : 1); // scores of thousands
        for (Tokens *bad : {&c.q, &c.k, &c.v}) {
            Call now = c;
            (bad == &c.q ? now.q : bad == &c.k ? now.k : now.v).set(0, 3, 0, 5, std::nanf(""));
            for (unsigned isa : {(unsigned)HD_CPU, hd_cpu_features()}) {
                if (isa == HD_CPU && bad == &c.v && pv == HD_NUMBER_NATIVE)
                    continue; // f64 leaves values of weight 0 out
                run_int8(now, qk, pv, 1, isa);
                CHECK(std::isnan(now.out.at(0, 3, 0, 5)));
                if (bad == &c.q) CHECK(std::isfinite(now.out.at(0, 4, 0, 5)));
            }
        }
    }
}

TEST_CASE("int8: refusals", "[ops][int8]")
{
    Call c({1, 8, 16, 1, 1, 8, 8, HD_BF16});
    if (hd_cpu_features() & HD_AVX2) {
        Run run(HD_CPU | HD_AVX2);
        hd_sdpa a = c.args();
        a.qk = HD_NUMBER_INT8;
        CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED,
                    "products in int8 need AVX-512 VNNI or AVX-VNNI, and this processor has avx2");
    }
    Run run((unsigned)HD_CPU);
    c.add_indicators(2, 5);
    hd_sdpa a = c.args();
    a.pv = HD_NUMBER_INT8;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED, "probes need exact weights");
    a.indicator = a.probed = hd_tensor_none();
    std::mt19937_64 rng(1);
    c.add_segments(rng, true, true);
    hd_sdpa_segments segments = {
        c.query_label.data(), c.key_label.data(), c.query_labels, c.key_labels, nullptr,
        c.segment_gain.data()};
    a.segments = &segments;
    CHECK_FAILS(hd_sdpa_run(&run, &a), HD_ERR_UNSUPPORTED, "gains of segments");
    a.pv = HD_NUMBER_NATIVE, a.qk = HD_NUMBER_INT8;
    CHECK(hd_sdpa_run(&run, &a) == HD_OK);
}
