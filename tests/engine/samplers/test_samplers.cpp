// Every sampler, call by call, against diffusers: timesteps, where the noise starts, and latents,
// with the made-up network of tools/fixtures/samplers.py.
#include "engine/samplers/sampler.h"

#include <cmath>
#include <memory>

#include "support/catch.h"
#include "support/fixture.h"

namespace
{

constexpr int64_t VALUES = 32;

using Doc = std::unique_ptr<hd_json_doc, decltype(&hd_json_free)>;
using Sampler = std::unique_ptr<hd_sampler, decltype(&hd_sampler_free)>;

Doc open_json(const std::string &path)
{
    hd_json_doc *doc = nullptr;
    INFO(hd_message());
    REQUIRE(hd_json_read(&doc, fixture_path(path).c_str()) == HD_OK);
    return Doc(doc, hd_json_free);
}

double number(const hd_json *object, const char *key, double otherwise)
{
    const hd_json *node = hd_json_get(object, key);
    double value = otherwise;
    if (node) REQUIRE(hd_json_to_double(node, -1e9, 1e9, &value) == HD_OK);
    return value;
}

struct Table {
    const float *noise;
    int64_t draws;
};

void next_noise(void *arg, int64_t row, float *values, int64_t count)
{
    Table *table = static_cast<Table *>(arg);
    REQUIRE(row == 0);
    REQUIRE(count == VALUES);
    std::copy_n(table->noise + VALUES * table->draws++, VALUES, values);
}

struct Case {
    hd_sampler_options options{};
    std::vector<float> sigmas;
};

Case case_of(const hd_json *node)
{
    Case c;
    c.options.config = hd_json_get(node, "config");
    c.options.steps = (int64_t)number(node, "steps", 0);
    c.options.strength = number(node, "strength", 0);
    c.options.image_to_image = c.options.strength > 0;
    c.options.eta = number(node, "eta", 0);
    c.options.image_tokens = (int64_t)number(node, "image_tokens", 0);
    const hd_json *sigmas = hd_json_get(node, "sigmas");
    for (int64_t i = 0; sigmas && i < hd_json_count(sigmas); i++) {
        double value;
        REQUIRE(hd_json_to_double(hd_json_at(sigmas, i), 0, 1, &value) == HD_OK);
        c.sigmas.push_back((float)value);
    }
    c.options.rows = 1;
    c.options.row_values = VALUES;
    return c;
}

double largest(const float *latent)
{
    double top = 0;
    for (int64_t i = 0; i < VALUES; i++)
        top = std::max(top, std::fabs((double)latent[i]));
    return top;
}

// Terminal SNR zero in sigma space starts at 4096 times the noise. The first step leaves a latent a
// thousand times smaller, made of the rounding of the large one, and torch's f32 square roots are
// not correctly rounded; so these runs are measured against the largest latent so far.
bool starts_huge(const hd_sampler *s)
{
    return hd_sampler_init_noise_sigma(s) > 1000.0f;
}

// The worst relative error over the calls of a run.
double run_case(hd_sampler *s, const hd_json *node, Fixture &answers, const std::string &name,
                Fixture &inputs)
{
    int64_t calls = hd_sampler_calls(s);
    REQUIRE(calls == answers[name + ".timesteps"].count());
    double init = (double)answers[name + ".init"].f32()[0];
    CHECK(std::fabs((double)hd_sampler_init_noise_sigma(s) - init) <= 2e-7 * init);

    const float *expected = answers[name + ".latents"].f32();
    std::vector<float> latent(VALUES), input(VALUES), output(VALUES);
    if (hd_json_get(node, "strength"))
        hd_sampler_add_noise(s, latent.data(), inputs["clean"].f32(), inputs["added"].f32());
    else
        for (int64_t i = 0; i < VALUES; i++)
            latent[(size_t)i] = inputs["latent"].f32()[i] * hd_sampler_init_noise_sigma(s);
    double worst = relative_error(latent.data(), expected, VALUES);

    double peak = largest(expected);
    Table table{inputs["noise"].f32(), 0};
    hd_noise noise{next_noise, &table};
    for (int64_t call = 0; call < calls; call++) {
        CHECK(hd_sampler_call(s) == call);
        CHECK(std::fabs(hd_sampler_timestep(s) - answers[name + ".timesteps"].f32()[call]) <=
              2e-5f * std::fabs(hd_sampler_timestep(s)));
        hd_sampler_scale_input(s, input.data(), latent.data());
        for (int64_t i = 0; i < VALUES; i++)
            output[(size_t)i] = 0.3f * input[(size_t)i] + inputs["push"].f32()[VALUES * call + i];
        INFO(hd_message());
        REQUIRE(hd_sampler_step(s, output.data(), latent.data(), &noise) == HD_OK);
        expected += VALUES;
        double error = relative_error(latent.data(), expected, VALUES);
        peak = std::max(peak, largest(expected));
        if (starts_huge(s)) error *= largest(expected) / peak;
        worst = std::max(worst, error);
    }
    CHECK(hd_sampler_done(s));
    return worst;
}

} // namespace

TEST_CASE("samplers: every call of every case agrees with diffusers", "[samplers]")
{
    auto file = GENERATE("ddim", "ddim-inverse", "ddpm", "lcm", "pndm", "lms", "euler", "euler-a",
                         "heun", "dpm-multistep", "unipc", "flow-euler");
    std::string path = std::string("samplers/") + file;
    Fixture answers = fixture_open(path + ".safetensors");
    Fixture inputs = fixture_open("samplers/inputs.safetensors");
    Doc doc = open_json(path + ".json");
    const hd_json *cases = hd_json_root(doc.get());
    REQUIRE(hd_json_count(cases) > 0);
    double worst = 0;
    for (int64_t i = 0; i < hd_json_count(cases); i++) {
        const hd_json *node = hd_json_at(cases, i);
        INFO(file << " case " << i << " (line " << i + 2 << ")");
        Case c = case_of(node);
        c.options.sigmas = c.sigmas.empty() ? nullptr : c.sigmas.data();
        hd_sampler *raw = nullptr;
        hd_status status = hd_sampler_create(&raw, &c.options);
        INFO(hd_message());
        REQUIRE(status == HD_OK);
        Sampler s(raw, hd_sampler_free);
        double error = run_case(s.get(), node, answers, std::to_string(i), inputs);
        CHECK(error <= 1e-5);
        worst = std::max(worst, error);

        // A second run repeats the first.
        hd_sampler_restart(s.get());
        CHECK(run_case(s.get(), node, answers, std::to_string(i), inputs) == error);
    }
    if (getenv("HD_TEST_FIGURES")) printf("%-14s worst %.2e\n", file, worst);
}
