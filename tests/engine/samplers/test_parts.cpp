// The pieces of sampling: beta levels, guidance, predictions there and back, thresholding and rows,
// noise stored channels last.
#include "engine/samplers/sampler.h"

#include <cmath>
#include <memory>

#include "engine/samplers/guidance.h"
#include "engine/samplers/noise.h"
#include "engine/samplers/schedule.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/run.h"

namespace
{

using Sampler = std::unique_ptr<hd_sampler, decltype(&hd_sampler_free)>;

Sampler create(const char *name, const std::string &keys, int64_t rows, int64_t row_values)
{
    hd_json_doc *doc = nullptr;
    REQUIRE_OK(hd_json_parse(&doc, "config", keys.data(), keys.size()));
    hd_sampler_options o{};
    o.name = name;
    o.config = hd_json_root(doc);
    o.steps = 5;
    o.rows = rows;
    o.row_values = row_values;
    hd_sampler *s = nullptr;
    REQUIRE_OK(hd_sampler_create(&s, &o));
    hd_json_free(doc);
    return Sampler(s, hd_sampler_free);
}

void counted(void *arg, int64_t row, float *values, int64_t count)
{
    auto *seen = static_cast<std::vector<int64_t> *>(arg);
    int64_t draw = ++(*seen)[(size_t)row];
    for (int64_t i = 0; i < count; i++)
        values[i] = 0.01f * (float)((row * 31 + draw * 7 + i * 3) % 101) - 0.5f;
}

} // namespace

TEST_CASE("sampler parts: beta quantiles agree with scipy", "[samplers]")
{
    Fixture f = fixture_open("samplers/inputs.safetensors");
    const double *p = reinterpret_cast<const double *>(f["p"].bytes.data());
    const double *x = reinterpret_cast<const double *>(f["beta"].bytes.data());
    for (int64_t i = 0; i < f["p"].count(); i++) {
        INFO("p " << p[i]);
        CHECK(std::fabs(hd_beta_quantile(p[i], 0.6, 0.6) - x[i]) <= 1e-12 * std::fmax(x[i], 1e-3));
    }
    // The quantile of beta(1, 1) is the argument, of beta(2, 1) its square root.
    CHECK(std::fabs(hd_beta_quantile(0.3, 1, 1) - 0.3) < 1e-14);
    CHECK(std::fabs(hd_beta_quantile(0.3, 2, 1) - std::sqrt(0.3)) < 1e-14);
}

TEST_CASE("sampler parts: guidance and its rescaling agree with torch", "[samplers]")
{
    Fixture f = fixture_open("samplers/inputs.safetensors");
    const float *cond = f["push"].f32(), *uncond = cond + 32;
    std::vector<float> out(32);
    hd_guide(out.data(), uncond, cond, 7.5, 32);
    CHECK(relative_error(out.data(), f["guided"].f32(), 32) == 0);
    std::vector<float> plain = out;
    hd_guide_rescale(out.data(), cond, 0, 32);
    CHECK(out == plain);
    hd_guide_rescale(out.data(), cond, 0.7, 32);
    CHECK(relative_error(out.data(), f["rescaled"].f32(), 32) <= 1e-6);

    // Scale 1 is the conditioned prediction, in place too; a constant prediction has no deviation.
    std::vector<float> in_place(uncond, uncond + 32), flat(32, 2.0f);
    hd_guide(in_place.data(), in_place.data(), cond, 1, 32);
    CHECK(relative_error(in_place.data(), cond, 32) <= 1e-6);
    hd_guide_rescale(flat.data(), cond, 1, 32);
    CHECK(flat == std::vector<float>(32, 2.0f));
}

TEST_CASE("sampler parts: a prediction there and back is the output again", "[samplers]")
{
    auto name = GENERATE("ddim", "euler", "dpm++2m", "lcm");
    auto prediction = GENERATE("epsilon", "v_prediction", "sample");
    INFO(name << " " << prediction);
    Sampler s = create(name,
                       std::string(R"({"beta_schedule": "scaled_linear", "prediction_type": ")") +
                           prediction + "\"}",
                       2, 16);
    auto latent = normal_values(32, 1), output = normal_values(32, 2);
    std::vector<float> x0(32), back(32);
    for (float &v : latent)
        v *= hd_sampler_init_noise_sigma(s.get());
    hd_sampler_predict(s.get(), x0.data(), output.data(), latent.data());
    hd_sampler_unpredict(s.get(), back.data(), x0.data(), latent.data());
    CHECK(relative_error(back.data(), output.data(), 32) <= 1e-5);
    if (std::string(prediction) == "epsilon")
        for (size_t i = 0; i < 32; i++) // latent = alpha * x0 + sigma * epsilon
            CHECK(std::fabs(hd_sampler_alpha(s.get()) * x0[i] +
                            hd_sampler_sigma(s.get()) * output[i] - latent[i]) <=
                  1e-5f * hd_sampler_init_noise_sigma(s.get()) + 1e-4f);
}

TEST_CASE("sampler parts: a row does not see the others", "[samplers]")
{
    auto name = GENERATE("ddim", "ddpm", "lcm", "plms", "pndm", "lms", "euler", "euler-a", "heun",
                         "dpm++2m", "dpm++2m-sde-karras", "unipc");
    auto keys = GENERATE(R"({"beta_schedule": "scaled_linear"})", R"({"thresholding": true})",
                         R"({"prediction_type": "v_prediction"})");
    INFO(name << " " << keys);
    const int64_t n = 24;
    Sampler three = create(name, keys, 3, n), one = create(name, keys, 1, n);
    auto latents = normal_values(3 * n, 3, 2.0f), output = normal_values(3 * n, 4);
    std::vector<float> alone(latents.begin() + n, latents.begin() + 2 * n);
    std::vector<int64_t> seen(3), seen_alone(2);
    hd_noise noise{counted, &seen};
    // the lone row draws what row 1 draws
    auto as_row_1 = [](void *arg, int64_t, float *values, int64_t count) {
        counted(arg, 1, values, count);
    };
    hd_noise noise_alone{as_row_1, &seen_alone};
    while (!hd_sampler_done(three.get())) {
        REQUIRE_OK(hd_sampler_step(three.get(), output.data(), latents.data(), &noise));
        REQUIRE_OK(hd_sampler_step(one.get(), output.data() + n, alone.data(), &noise_alone));
        CHECK(std::equal(alone.begin(), alone.end(), latents.begin() + n));
    }
    CHECK(hd_sampler_done(one.get()));
    CHECK(seen[0] == seen[2]);
    CHECK(seen[1] == seen_alone[1]);
}

TEST_CASE("sampler parts: noise of a channels-last latent is torch's, transposed", "[samplers]")
{
    const int64_t channels = 4, places = 6;
    hd_rng *plain = nullptr, *used[2] = {};
    REQUIRE_OK(hd_rng_create(&plain, HD_RNG_CPU, 8));
    REQUIRE_OK(hd_rng_create(&used[0], HD_RNG_CPU, 7));
    REQUIRE_OK(hd_rng_create(&used[1], HD_RNG_CPU, 8));
    std::vector<float> first(24), last(24), scratch(24);
    hd_rng_normal(plain, first.data(), 24);
    hd_row_noise rows{used, channels, places, scratch.data()};
    hd_noise noise = hd_row_noise_source(&rows);
    noise.draw(noise.arg, 1, last.data(), 24);
    for (int64_t c = 0; c < channels; c++)
        for (int64_t p = 0; p < places; p++)
            CHECK(last[(size_t)(p * channels + c)] == first[(size_t)(c * places + p)]);
    hd_rng_free(plain);
    hd_rng_free(used[0]);
    hd_rng_free(used[1]);
}
