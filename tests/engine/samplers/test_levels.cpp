// Levels of noise by call and by timestep, and the noise that an output stands for.
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "engine/samplers/sampler.h"
#include "support/catch.h"

namespace
{
struct Sampler {
    hd_sampler *s = nullptr;
    hd_json_doc *doc = nullptr;
    Sampler(const char *name, const char *config, int64_t steps)
    {
        REQUIRE_OK(hd_json_parse(&doc, "scheduler_config.json", config, strlen(config)));
        hd_sampler_options options = {};
        options.name = name;
        options.config = hd_json_root(doc);
        options.steps = steps;
        options.rows = 1;
        options.row_values = 2;
        REQUIRE_OK(hd_sampler_create(&s, &options));
    }
    ~Sampler()
    {
        hd_sampler_free(s);
        hd_json_free(doc);
    }
    Sampler(const Sampler &) = delete;
    Sampler &operator=(const Sampler &) = delete;
};

const char *const sd =
    "{\"_class_name\": \"DDIMScheduler\", \"beta_start\": 0.00085, \"beta_end\": "
    "0.012, \"beta_schedule\": \"scaled_linear\", \"steps_offset\": 1, "
    "\"set_alpha_to_one\": false, \"clip_sample\": false";
} // namespace

TEST_CASE("levels: a call's level is its timestep's, and Stable Diffusion's are the known ones",
          "[samplers][levels]")
{
    Sampler ddim("ddim", (std::string(sd) + "}").c_str(), 50);
    hd_noise_level top = hd_sampler_level(ddim.s, 0), last = hd_sampler_level(ddim.s, 49),
                   end = hd_sampler_level(ddim.s, 50);
    CHECK(top.timestep == 981.0f);
    CHECK(std::fabs(top.alpha * top.alpha - 0.005775500f) < 1e-7f);
    CHECK(last.timestep == 1.0f);
    CHECK(std::fabs(last.alpha * last.alpha - 0.998296028f) < 1e-6f);
    CHECK(std::fabs(end.alpha * end.alpha - 0.99915f) < 1e-6f); // set_alpha_to_one is false
    CHECK(std::fabs(end.sigma * end.sigma - 0.00085f) < 1e-6f);
    for (const char *name : {"ddim", "euler", "dpm++2m"}) {
        CAPTURE(name);
        Sampler s(name, (std::string(sd) + "}").c_str(), 20);
        for (int64_t call = 0; call < hd_sampler_calls(s.s); call++) {
            hd_noise_level a = hd_sampler_level(s.s, call), b;
            if (a.timestep != std::floor(a.timestep)) continue;
            REQUIRE_OK(hd_sampler_level_at(s.s, (double)a.timestep, &b));
            CHECK(std::fabs(a.alpha - b.alpha) < 1e-4f);
            CHECK(std::fabs(a.sigma - b.sigma) < 1e-4f * std::fmax(1.0f, a.sigma));
            CHECK(std::fabs(a.divisor - b.divisor) < 1e-4f * a.divisor);
        }
    }
    hd_noise_level beyond, edge;
    REQUIRE_OK(hd_sampler_level_at(ddim.s, 5000, &beyond));
    REQUIRE_OK(hd_sampler_level_at(ddim.s, 999, &edge));
    CHECK(beyond.alpha == edge.alpha);
    Sampler flow("flow-euler", "{\"_class_name\": \"FlowMatchEulerDiscreteScheduler\"}", 4);
    for (int64_t call = 0; call < hd_sampler_calls(flow.s); call++) {
        hd_noise_level a = hd_sampler_level(flow.s, call), b;
        REQUIRE_OK(hd_sampler_level_at(flow.s, (double)a.timestep, &b));
        CHECK(std::fabs(a.alpha - b.alpha) < 1e-6f);
        CHECK(std::fabs(a.sigma - b.sigma) < 1e-6f);
        CHECK(a.divisor == b.divisor);
    }
    REQUIRE_OK(hd_sampler_level_at(flow.s, 5000, &beyond));
    CHECK(beyond.timestep == 1000);
    CHECK(beyond.alpha == 0);
}

TEST_CASE("levels: picture and noise give back the latent, whatever the network predicts",
          "[samplers][levels]")
{
    for (const char *name : {"ddim", "euler"})
        for (const char *type : {"epsilon", "v_prediction"}) {
            CAPTURE(name, type);
            Sampler s(name, (std::string(sd) + ", \"prediction_type\": \"" + type + "\"}").c_str(),
                      10);
            hd_noise_level level = hd_sampler_level(s.s, 0);
            float latent[2] = {0.7f, -1.3f}, output[2] = {0.4f, -0.2f}, noise[2], x0[2];
            hd_sampler_predict(s.s, x0, output, latent);
            hd_sampler_noise(s.s, level, noise, output, latent, 2);
            for (int i = 0; i < 2; i++)
                CHECK(std::fabs(level.alpha * x0[i] + level.sigma * noise[i] - latent[i]) < 2e-5f);
        }
}
