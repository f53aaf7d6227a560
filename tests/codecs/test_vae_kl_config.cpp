// The configuration of an autoencoder: what is read, and what is refused by key.
#include "codecs/vae_kl.h"
#include "support/catch.h"
#include "support/fixture.h"
#include "support/network.h"

static hd_status read_text(const std::string &text, hd_vae_kl_config *c)
{
    Json json("vae/config.json", text);
    return hd_vae_kl_config_read(c, json.root());
}

TEST_CASE("vae_kl config: published and other configurations", "[vae]")
{
    hd_vae_kl_config c{};
    REQUIRE_OK(read_text(fixture_text("names/sd15_vae.json"), &c));
    CHECK(hd_vae_kl_factor(&c) == 8);
    CHECK(c.channels[3] == 512);
    CHECK(c.layers == 2);
    CHECK(c.scaling_factor == 0.18215);
    CHECK(c.shift_factor == 0);
    CHECK(c.quant_conv);
    CHECK(c.mid_attention);
    REQUIRE_OK(read_text(fixture_text("vae/bare/config.json"), &c));
    CHECK(hd_vae_kl_factor(&c) == 2);
    CHECK(c.latent_channels == 8);
    CHECK_FALSE(c.quant_conv);
    CHECK_FALSE(c.post_quant_conv);
    CHECK_FALSE(c.mid_attention);
    CHECK(c.act == HD_ACT_GELU);
    CHECK(c.scaling_factor == 1.5);
    CHECK(c.shift_factor == 0.25);
    REQUIRE_OK(read_text(R"({"latents_mean": null, "force_upcast": true, "shift_factor": null,
        "_name_or_path": "x"})",
                         &c));
    CHECK(c.levels == 1);
}

TEST_CASE("vae_kl config: what is not supported is refused by key", "[vae]")
{
    struct Refusal {
        const char *text, *message;
        hd_status status;
    };
    const Refusal refusals[] = {
        {R"({"latents_mean": [0.1, 0.2]})", "latents_mean is a list of 2", HD_ERR_UNSUPPORTED},
        {R"({"latents_std": [0.1]})", "latents_std is a list of 1", HD_ERR_UNSUPPORTED},
        {R"({"act_fn": "mish"})", "act_fn is \"mish\"", HD_ERR_UNSUPPORTED},
        {R"({"up_block_types": ["AttnUpDecoderBlock2D"]})",
         "up_block_types[0] is \"AttnUpDecoderBlock2D\"; supported: UpDecoderBlock2D",
         HD_ERR_UNSUPPORTED},
        {R"({"block_out_channels": [32, 64]})", "as many as block_out_channels: 2",
         HD_ERR_ARGUMENT},
        {R"({"block_out_channels": [48]})", "must be a multiple of norm_num_groups (32)",
         HD_ERR_ARGUMENT},
        {R"({"latent_channels": 0})", "latent_channels", HD_ERR_ARGUMENT},
        {R"({"scaling_factors": 0.2})", "did you mean \"scaling_factor\"?", HD_ERR_UNSUPPORTED},
    };
    for (const Refusal &r : refusals) {
        INFO(r.text);
        hd_vae_kl_config c{};
        CHECK_FAILS(read_text(r.text, &c), r.status, r.message);
        CHECK(std::string(hd_message()).find("vae/config.json") != std::string::npos);
    }
}
