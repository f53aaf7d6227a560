// Noise against torch.randn (bit for bit) and against Philox in double precision.
#include "engine/rng.h"

#include <cmath>
#include <cstring>
#include <memory>

#include "support/catch.h"
#include "support/fixture.h"

namespace
{

struct Generator {
    Generator(hd_rng_kind kind, uint64_t seed)
    {
        REQUIRE(hd_rng_create(&rng, kind, seed) == HD_OK);
    }
    ~Generator()
    {
        hd_rng_free(rng);
    }
    std::vector<float> normal(int64_t count)
    {
        std::vector<float> values((size_t)count);
        hd_rng_normal(rng, values.data(), count);
        return values;
    }
    hd_rng *rng = nullptr;
};

int64_t weighted_bits(const std::vector<float> &values)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < values.size(); i++) {
        uint32_t bits;
        memcpy(&bits, &values[i], sizeof bits);
        sum += bits * (2 * (uint64_t)i + 1);
    }
    return (int64_t)sum;
}

} // namespace

TEST_CASE("rng: cpu is torch.randn bit for bit, over consecutive calls of every size", "[rng]")
{
    Fixture f = fixture_open("rng/cpu.safetensors");
    const int64_t keep = 128;
    for (int64_t s = 0; s < f["seeds"].count(); s++) {
        uint64_t seed = (uint64_t)f["seeds"].i64()[s];
        INFO("seed " << seed);
        Generator g(HD_RNG_CPU, seed);
        std::string name = std::to_string(s);
        const float *stored = f[name + ".values"].f32();
        for (int64_t c = 0; c < f["sizes"].count(); c++) {
            int64_t size = f["sizes"].i64()[c];
            INFO("call " << c << " of " << size << " values");
            std::vector<float> values = g.normal(size);
            CHECK(weighted_bits(values) == f[name + ".sums"].i64()[c]);
            int64_t head = size <= 2 * keep ? size : keep, tail = size <= 2 * keep ? 0 : keep;
            CHECK(memcmp(values.data(), stored, sizeof(float) * (size_t)head) == 0);
            CHECK(memcmp(values.data() + size - tail, stored + head,
                         sizeof(float) * (size_t)tail) == 0);
            stored += head + tail;
        }
    }
}

TEST_CASE("rng: philox gives the published known answers", "[rng]")
{
    // Random123's kat_vectors, philox4x32 with 10 rounds.
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (const auto &k : known) {
        uint32_t out[4];
        hd_philox4x32(k.counter, k.key, out);
        for (int i = 0; i < 4; i++)
            CHECK(out[i] == k.out[i]);
    }
}

TEST_CASE("rng: cuda words are exact and normals agree with f64", "[rng]")
{
    Fixture f = fixture_open("rng/cuda.safetensors");
    for (int64_t s = 0; s < f["seeds"].count(); s++) {
        uint64_t seed = (uint64_t)f["seeds"].i64()[s];
        INFO("seed " << seed);
        Generator g(HD_RNG_CUDA, seed);
        for (uint32_t call = 0; call < 2; call++) {
            std::string name = std::to_string(s) + "." + std::to_string(call);
            int64_t count = f[name + ".normals"].count();
            const double *normals =
                reinterpret_cast<const double *>(f[name + ".normals"].bytes.data());
            std::vector<float> values = g.normal(count);
            double worst = 0;
            for (int64_t i = 0; i < count; i++) {
                double unit = std::fmax(std::fabs(normals[i]), 1e-3);
                worst = std::fmax(worst, std::fabs((double)values[(size_t)i] - normals[i]) / unit);
                uint32_t counter[4] = {call, 0, (uint32_t)i, 0}, out[4];
                uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
                hd_philox4x32(counter, key, out);
                for (int w = 0; w < 4; w++)
                    if (out[w] != (uint32_t)f[name + ".words"].i64()[4 * i + w])
                        FAIL("word " << w << " of value " << i);
            }
            CHECK(worst <= 1e-6);
        }
    }
}

TEST_CASE("rng: a call is a call: values depend on the sizes of the calls before", "[rng]")
{
    Generator once(HD_RNG_CUDA, 5), twice(HD_RNG_CUDA, 5), other(HD_RNG_CUDA, 6);
    auto a = once.normal(64), b = twice.normal(32), c = twice.normal(32), d = other.normal(64);
    CHECK(memcmp(a.data(), b.data(), 32 * sizeof(float)) == 0);
    CHECK(memcmp(a.data() + 32, c.data(), 32 * sizeof(float)) != 0);
    CHECK(memcmp(a.data(), d.data(), 64 * sizeof(float)) != 0);
    // Nothing is drawn for nothing.
    hd_rng_normal(once.rng, nullptr, 0);
    twice.normal(0);
}

TEST_CASE("rng: cpu seeds that differ by 2^32 are one stream, as in torch", "[rng]")
{
    Generator a(HD_RNG_CPU, 7), b(HD_RNG_CPU, 7 + (UINT64_C(1) << 32));
    Generator c(HD_RNG_CUDA, 7), d(HD_RNG_CUDA, 7 + (UINT64_C(1) << 32));
    CHECK(a.normal(40) == b.normal(40));
    CHECK(c.normal(40) != d.normal(40));
}
