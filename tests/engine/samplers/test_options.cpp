// Names, config files and options: what is understood, and what is refused in which words.
#include "engine/samplers/sampler.h"

#include <cmath>
#include <memory>

#include "support/alloc_fail.h"
#include "support/catch.h"
#include "support/fixture.h"

namespace
{

using Sampler = std::unique_ptr<hd_sampler, decltype(&hd_sampler_free)>;

struct Json {
    explicit Json(const std::string &text)
    {
        REQUIRE_OK(hd_json_parse(&doc, "scheduler_config.json", text.data(), text.size()));
    }
    ~Json()
    {
        hd_json_free(doc);
    }
    Json(const Json &) = delete;
    Json &operator=(const Json &) = delete;
    hd_json_doc *doc = nullptr;
};

hd_sampler_options options_of(const char *name, const Json *config, int64_t steps = 10)
{
    hd_sampler_options o{};
    o.name = name;
    o.config = config ? hd_json_root(config->doc) : nullptr;
    o.steps = steps;
    o.rows = 1;
    o.row_values = 8;
    return o;
}

hd_status try_create(const hd_sampler_options &options)
{
    hd_sampler *s = nullptr;
    hd_status status = hd_sampler_create(&s, &options);
    hd_sampler_free(s);
    return status;
}

Sampler create(const hd_sampler_options &options)
{
    hd_sampler *s = nullptr;
    REQUIRE_OK(hd_sampler_create(&s, &options));
    return Sampler(s, hd_sampler_free);
}

// What Stable Diffusion 1.5's folder holds.
const char *sd15 = R"({"_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0",
    "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
    "num_train_timesteps": 1000, "set_alpha_to_one": false, "skip_prk_steps": true,
    "steps_offset": 1, "trained_betas": null, "clip_sample": false})";

std::string with(const std::string &class_name, const std::string &keys)
{
    return R"({"_class_name": ")" + class_name + "\", " + keys + "}";
}

} // namespace

TEST_CASE("sampler options: the folder's own sampler, with its keys", "[samplers]")
{
    Json config(sd15);
    Sampler s = create(options_of(nullptr, &config, 25));
    CHECK(std::string(hd_sampler_name(s.get())) == "pndm");
    CHECK(std::string(hd_sampler_class_name(s.get())) == "PNDMScheduler");
    CHECK(hd_sampler_calls(s.get()) == 26);
    CHECK(hd_sampler_timestep(s.get()) == 961.0f);
}

TEST_CASE("sampler options: every name works on Stable Diffusion's config", "[samplers]")
{
    Json config(sd15);
    std::vector<float> latent(8, 0.5f), output(8, 0.1f);
    auto draw = [](void *, int64_t, float *values, int64_t count) {
        std::fill_n(values, count, 0.25f);
    };
    hd_noise noise{draw, nullptr};
    for (size_t i = 0; hd_sampler_name_at(i); i++) {
        std::string name = hd_sampler_name_at(i);
        INFO(name);
        if (name == "flow-euler") continue;
        Sampler s = create(options_of(name.c_str(), &config));
        CHECK(hd_sampler_name(s.get()) == name);
        while (!hd_sampler_done(s.get()))
            REQUIRE_OK(hd_sampler_step(s.get(), output.data(), latent.data(), &noise));
        CHECK(std::isfinite(latent[0]));
    }
}

TEST_CASE("sampler options: names as other programs spell them", "[samplers]")
{
    static const char *const same[][2] = {
        {"euler_a", "euler-a"},
        {"Euler a", "euler-a"},
        {"euler_ancestral", "euler-a"},
        {"dpmpp_2m", "dpm++2m"},
        {"DPM++ 2M Karras", "dpm++2m-karras"},
        {"dpmpp_2m_sde", "dpm++2m-sde"},
        {"dpm++_2m_sde_karras", "dpm++2m-sde-karras"},
        {"uni_pc", "unipc"},
        {"DDIM", "ddim"},
        {"HeunDiscreteScheduler", "heun"},
    };
    Json config(sd15);
    for (const auto &pair : same) {
        INFO(pair[0]);
        Sampler s = create(options_of(pair[0], &config));
        CHECK(std::string(hd_sampler_name(s.get())) == pair[1]);
    }
    CHECK_FAILS(try_create(options_of("eular", &config)), HD_ERR_ARGUMENT,
                "sampler: no \"eular\"; did you mean \"euler\"? There are pndm, plms, lms, ddim, ");
    CHECK_FAILS(try_create(options_of("restart-9000", &config)), HD_ERR_ARGUMENT,
                "sampler: no \"restart-9000\"; there are pndm, ");
}

TEST_CASE("sampler options: another sampler keeps the keys that it has", "[samplers]")
{
    // From diffusers: EulerDiscreteScheduler.from_config of the PNDM config above keeps betas and
    // steps_offset, and takes its own default for the spacing, which the file does not have.
    Json plain(sd15), spaced(with("DDIMScheduler", R"("timestep_spacing": "leading",
        "steps_offset": 1, "beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "prediction_type": "v_prediction", "clip_sample": false)"));
    Sampler s = create(options_of("euler", &plain));
    CHECK(hd_sampler_timestep(s.get()) == 999.0f);
    CHECK(std::fabs(hd_sampler_init_noise_sigma(s.get()) - 14.6146f) <= 1e-3f);
    s = create(options_of("euler", &spaced));
    CHECK(hd_sampler_timestep(s.get()) == 901.0f);
    s = create(options_of("plms", &spaced));
    CHECK(hd_sampler_calls(s.get()) == 11);
    s = create(options_of("PNDMScheduler", &spaced));
    CHECK(hd_sampler_calls(s.get()) == 19); // Runge-Kutta first, as diffusers' default is

    Json karras(R"({"use_karras_sigmas": true})"), odd(R"({"use_karas_sigmas": true})");
    hd_sampler_options o = options_of("euler", &plain);
    o.settings = hd_json_root(karras.doc);
    s = create(o);
    hd_sampler_scale_input(s.get(), std::vector<float>(8).data(), std::vector<float>(8).data());
    CHECK(hd_sampler_calls(s.get()) == 10);
    o.settings = hd_json_root(odd.doc);
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT,
                "use_karas_sigmas is no key of EulerDiscreteScheduler; did you mean "
                "\"use_karras_sigmas\"?");
}

TEST_CASE("sampler options: a name stands for its keys", "[samplers]")
{
    Json config(sd15), spelled(with("DPMSolverMultistepScheduler",
                                    R"("beta_schedule": "scaled_linear", "beta_start": 0.00085,
        "beta_end": 0.012, "steps_offset": 1, "use_karras_sigmas": true)"));
    Sampler named = create(options_of("dpm++2m-karras", &config)),
            plain = create(options_of("dpm++2m", &spelled)),
            own = create(options_of(nullptr, &spelled));
    std::vector<float> a(8, 1.0f), b(8, 1.0f), c(8, 1.0f), output(8, 0.3f);
    for (int i = 0; i < 10; i++) {
        CHECK(hd_sampler_timestep(named.get()) == hd_sampler_timestep(own.get()));
        REQUIRE_OK(hd_sampler_step(named.get(), output.data(), a.data(), nullptr));
        REQUIRE_OK(hd_sampler_step(own.get(), output.data(), b.data(), nullptr));
        REQUIRE_OK(hd_sampler_step(plain.get(), output.data(), c.data(), nullptr));
    }
    CHECK(a == b);
    CHECK(a != c); // "dpm++2m" is the plain one, whatever the file says
}

TEST_CASE("sampler options: a class or key that we lack is refused by name", "[samplers]")
{
    static const struct {
        const char *class_name, *keys, *message;
    } refused[] = {
        {"KDPM2DiscreteScheduler", R"("beta_start": 0.001)",
         "scheduler_config.json: _class_name is \"KDPM2DiscreteScheduler\", which is not one of "
         "ours; choose one with --sampler: pndm, plms, lms, ddim, ddim-inverse, ddpm, euler, "
         "euler-a, heun, dpm++2m, dpm++2m-karras, dpm++2m-sde, dpm++2m-sde-karras, unipc, lcm, "
         "flow-euler"},
        {"DDIMScheduler", R"("prediction_type": "flow_prediction")",
         "prediction_type is \"flow_prediction\"; DDIMScheduler takes epsilon, v_prediction, "
         "sample here"},
        {"EulerAncestralDiscreteScheduler", R"("prediction_type": "sample")",
         "prediction_type is \"sample\"; EulerAncestralDiscreteScheduler takes epsilon, "
         "v_prediction here"},
        {"DDPMScheduler", R"("variance_type": "learned_range")",
         "variance_type is \"learned_range\"; DDPMScheduler takes fixed_small, fixed_small_log, "
         "fixed_large here"},
        {"DPMSolverMultistepScheduler", R"("variance_type": "learned_range")",
         "variance_type is \"learned_range\"; DPMSolverMultistepScheduler takes only null here"},
        {"DDIMScheduler", R"("beta_schedule": "cubic")", "beta_schedule is \"cubic\""},
        {"DDIMScheduler", R"("clip_smaple": true)",
         "clip_smaple is no key of DDIMScheduler; did you mean \"clip_sample\"?"},
        {"DDIMScheduler", R"("timestep_spacing": null)", "timestep_spacing"},
        {"DDIMScheduler", R"("num_train_timesteps": 0)", "num_train_timesteps"},
        {"DDIMScheduler", R"("trained_betas": [0.1, 2])", "trained_betas[1]"},
        {"DDIMScheduler", R"("trained_betas": [0.1, 0.2], "num_train_timesteps": 3)",
         "num_train_timesteps is 3, but trained_betas has 2 entries"},
        {"DDIMInverseScheduler", R"("timestep_spacing": "linspace")",
         "timestep_spacing is \"linspace\"; DDIMInverseScheduler takes leading, trailing here"},
        {"UniPCMultistepScheduler", R"("solver_p": {})", "solver_p must be null"},
        {"UniPCMultistepScheduler", R"("solver_order": 4)", "solver_order"},
        {"UniPCMultistepScheduler", R"("lower_order_final": false)",
         "UniPCMultistepScheduler: lower_order_final false needs final_sigmas_type"},
        {"UniPCMultistepScheduler", R"("use_dynamic_shifting": true)",
         "use_dynamic_shifting is true; supported is false"},
        {"UniPCMultistepScheduler",
         R"("use_karras_sigmas": true, "final_sigmas_type": "sigma_min")", "not below the"},
        {"DPMSolverMultistepScheduler", R"("algorithm_type": "dpmsolver")",
         "final_sigmas_type \"zero\" needs algorithm_type"},
        {"DPMSolverMultistepScheduler", R"("prediction_type": "flow_prediction")",
         "use_flow_sigmas is false; true goes with prediction_type \"flow_prediction\""},
        {"EulerDiscreteScheduler", R"("use_karras_sigmas": true, "use_beta_sigmas": true)",
         "only one of use_karras_sigmas"},
        {"DDIMScheduler",
         R"("rescale_betas_zero_snr": true, "timestep_spacing": "trailing", "clip_sample": false)",
         "rescale_betas_zero_snr makes timestep 999 noise alone"},
        {"FlowMatchEulerDiscreteScheduler", R"("use_dynamic_shifting": true)",
         "use_dynamic_shifting needs the number of tokens"},
        {"LCMScheduler", R"("original_inference_steps": 4)",
         "10 steps, but the model was distilled with 4 (original_inference_steps)"},
    };
    for (const auto &r : refused) {
        Json config(with(r.class_name, r.keys));
        INFO(r.class_name << " " << r.keys);
        hd_status status = try_create(options_of(nullptr, &config));
        CHECK(status != HD_OK);
        CHECK(status != HD_ERR_INTERNAL);
        INFO(hd_message());
        CHECK(std::string(hd_message()).find(r.message) != std::string::npos);
    }
}

TEST_CASE("sampler options: options that do not fit are refused", "[samplers]")
{
    Json config(sd15), flow(with("FlowMatchEulerDiscreteScheduler", R"("shift": 3.0)"));
    hd_sampler_options o = options_of(nullptr, &config, 0);
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT, "sampler: 0 steps; 1 to 100000 are possible");
    o.steps = 1001;
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT, "1001 steps, but the model has 1000 timesteps");
    o.steps = 20;
    o.eta = 0.5;
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT, "eta is 0.5, but pndm has no eta");
    o.eta = 0;
    o.image_to_image = true;
    o.strength = 1.5;
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT, "strength is 1.5, must be more than 0, up to 1");
    o.strength = 0.04;
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT,
                "strength 0.04 of 20 steps leaves no step to run; use 0.05 or more");
    o.strength = 0.5;
    o.name = "ddim-inverse";
    CHECK_FAILS(try_create(o), HD_ERR_ARGUMENT, "ddim-inverse does not start from a picture");
    CHECK_FAILS(try_create(options_of("flow-euler", &config)), HD_ERR_ARGUMENT,
                "is no flow model (_class_name is \"PNDMScheduler\")");
    CHECK_FAILS(try_create(options_of("euler", &flow)), HD_ERR_ARGUMENT,
                "is a flow model (_class_name is \"FlowMatchEulerDiscreteScheduler\"), sampler "
                "euler cannot run it; use flow-euler");
    CHECK_FAILS(try_create(options_of(nullptr, nullptr)), HD_ERR_ARGUMENT, "--sampler: pndm");
    Json nameless("{}");
    CHECK_FAILS(try_create(options_of(nullptr, &nameless)), HD_ERR_ARGUMENT,
                "scheduler_config.json: no _class_name");

    Sampler s = create(options_of("euler-a", &config));
    std::vector<float> latent(8), output(8);
    CHECK_FAILS(hd_sampler_step(s.get(), output.data(), latent.data(), nullptr), HD_ERR_ARGUMENT,
                "euler-a draws noise at every step, but was given none");
}

TEST_CASE("sampler options: n steps are n steps, whatever numpy rounds to", "[samplers]")
{
    // numpy.arange(1000, 0, -1000 / 61) has 62 entries.
    for (const char *name : {"ddim", "euler", "dpm++2m"}) {
        Json config(with("DDIMScheduler", R"("timestep_spacing": "trailing")"));
        Sampler s = create(options_of(name, &config, 61));
        CHECK(hd_sampler_calls(s.get()) == 61);
    }
}

TEST_CASE("sampler options: a config as diffusers writes it, -Infinity and all", "[samplers]")
{
    hd_json_doc *doc = nullptr;
    std::string path = fixture_path("samplers/scheduler_config.json");
    REQUIRE_OK(hd_sampler_config_open(&doc, path.c_str()));
    hd_sampler_options o = options_of(nullptr, nullptr);
    o.config = hd_json_root(doc);
    Sampler s = create(o);
    CHECK(std::string(hd_sampler_class_name(s.get())) == "DPMSolverMultistepScheduler");
    hd_json_free(doc);
    CHECK_FAILS(hd_sampler_config_open(&doc, "no/such/file.json"), HD_ERR_IO, "no/such/file.json");
}

TEST_CASE("sampler options: no memory is an error at every allocation", "[samplers]")
{
    Json config(with("UniPCMultistepScheduler", R"("trained_betas": [0.1, 0.2, 0.3, 0.4],
        "disable_corrector": [1], "num_train_timesteps": 4)"));
    for (const char *name : {"unipc", "dpm++2m-karras", "euler", "heun", "pndm", "lms", "ddpm"}) {
        hd_sampler_options o = options_of(name, &config, 2);
        if (std::string(name) == "pndm") o.name = "plms";
        INFO(o.name);
        CHECK(fail_each_allocation([&] { return try_create(o); }) > 3);
    }
}
