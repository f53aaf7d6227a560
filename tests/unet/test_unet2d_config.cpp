// The configuration of a UNet: what is read, and what is refused by key.
#include "support/catch.h"
#include "support/fixture.h"
#include "support/network.h"
#include "unet/unet2d.h"

static hd_status read_text(const std::string &text, hd_unet2d_config *c)
{
    Json json("unet/config.json", text);
    return hd_unet2d_config_read(c, json.root());
}

TEST_CASE("unet2d config: published configurations", "[unet]")
{
    hd_unet2d_config c{};
    REQUIRE_OK(read_text(fixture_text("names/sd15_unet.json"), &c));
    CHECK(c.levels == 4);
    CHECK(c.level[3].channels == 1280);
    CHECK(c.level[0].heads == 8);
    CHECK(c.level[2].down_attention);
    CHECK_FALSE(c.level[3].down_attention);
    CHECK_FALSE(c.level[3].up_attention);
    CHECK(c.level[0].up_attention);
    CHECK(c.text_channels == 768);
    CHECK(c.time_channels == 1280);
    CHECK(c.sample_height == 64);
    CHECK(c.mid == HD_UNET_MID_CROSS_ATTN);
    REQUIRE_OK(read_text(fixture_text("names/sd21_unet.json"), &c));
    CHECK(c.level[0].heads == 5);
    CHECK(c.level[3].heads == 20);
    CHECK(c.text_channels == 1024);
    CHECK(c.sample_width == 96);
}

TEST_CASE("unet2d config: an empty object is diffusers' default", "[unet]")
{
    hd_unet2d_config c{}, published{};
    REQUIRE_OK(read_text("{}", &c));
    REQUIRE_OK(read_text(fixture_text("names/sd15_unet.json"), &published));
    CHECK(c.levels == 4);
    CHECK(c.text_channels == 1280);
    for (int i = 0; i < 4; i++) {
        CHECK(c.level[i].channels == published.level[i].channels);
        CHECK(c.level[i].layers == 2);
        CHECK(c.level[i].heads == 8);
        CHECK(c.level[i].down_attention == published.level[i].down_attention);
        CHECK(c.level[i].up_attention == published.level[i].up_attention);
    }
}

TEST_CASE("unet2d config: lists per level and per layer", "[unet]")
{
    hd_unet2d_config c{};
    REQUIRE_OK(read_text(fixture_text("unet/time/config.json"), &c));
    CHECK(c.level[0].heads == 3);
    CHECK(c.level[0].down_depth[0] == 2);
    CHECK(c.level[0].up_depth[0] == 1);
    CHECK(c.level[0].up_depth[1] == 2);
    CHECK(c.guidance_channels == 10);
    CHECK(c.time_channels == 48);
    REQUIRE_OK(read_text(fixture_text("unet/channels/config.json"), &c));
    CHECK(c.level[0].layers == 1);
    CHECK(c.level[1].layers == 2);
    CHECK(c.mid == HD_UNET_MID_NONE);
    CHECK(c.out_channels == 8);
    REQUIRE_OK(read_text(R"({"sample_size": [48, 32]})", &c));
    CHECK(c.sample_height == 48);
    CHECK(c.sample_width == 32);
    REQUIRE_OK(read_text(R"({"num_attention_heads": 4, "attention_head_dim": 64})", &c));
    CHECK(c.level[0].heads == 4);
}

TEST_CASE("unet2d config: what changes nothing is accepted", "[unet]")
{
    hd_unet2d_config c{};
    REQUIRE_OK(read_text(R"({"_class_name": "UNet2DConditionModel", "_anything": 3,
        "from_the_future": null, "another": false, "dropout": 0.1, "use_linear_projection": true,
        "addition_embed_type_num_heads": 64, "upcast_attention": true})",
                         &c));
}

TEST_CASE("unet2d config: what is not supported is refused by key", "[unet]")
{
    struct Refusal {
        const char *text, *message;
        hd_status status;
    };
    const Refusal refusals[] = {
        {R"({"dual_cross_attention": true})", "dual_cross_attention is true", HD_ERR_UNSUPPORTED},
        {R"({"class_embed_type": "projection"})", "class_embed_type is \"projection\"",
         HD_ERR_UNSUPPORTED},
        {R"({"num_class_embeds": 1000})", "num_class_embeds is 1000", HD_ERR_UNSUPPORTED},
        {R"({"addition_embed_type": "text_time"})", "addition_embed_type is \"text_time\"",
         HD_ERR_UNSUPPORTED},
        {R"({"encoder_hid_dim": 768})", "encoder_hid_dim is 768", HD_ERR_UNSUPPORTED},
        {R"({"act_fn": "mish"})", "act_fn is \"mish\"; supported: silu, swish, gelu, relu",
         HD_ERR_UNSUPPORTED},
        {R"({"time_embedding_type": "fourier"})",
         "time_embedding_type is \"fourier\"; supported: positional", HD_ERR_UNSUPPORTED},
        {R"({"attention_type": "gated"})", "attention_type is \"gated\"; supported: default",
         HD_ERR_UNSUPPORTED},
        {R"({"resnet_time_scale_shift": "spatial"})",
         "resnet_time_scale_shift is \"spatial\"; supported: default, scale_shift",
         HD_ERR_UNSUPPORTED},
        {R"({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"})",
         "mid_block_type is \"UNetMidBlock2DSimpleCrossAttn\"", HD_ERR_UNSUPPORTED},
        {R"({"down_block_types": ["AttnDownBlock2D", "DownBlock2D", "DownBlock2D",
            "DownBlock2D"]})",
         "down_block_types[0] is \"AttnDownBlock2D\"; supported: CrossAttnDownBlock2D",
         HD_ERR_UNSUPPORTED},
        {R"({"up_block_types": ["UpBlock2D"]})", "as many as down_block_types: 4", HD_ERR_ARGUMENT},
        {R"({"block_out_channels": [32, 64]})", "block_out_channels has 2 channel counts",
         HD_ERR_ARGUMENT},
        {R"({"block_out_channels": [32, 64, 100, 128]})",
         "block_out_channels[2] is 100 channels, must be a multiple of norm_num_groups (32)",
         HD_ERR_ARGUMENT},
        {R"({"attention_head_dim": [5, 10]})",
         "attention_head_dim is a list of 2, must have one value for each of the 4 blocks",
         HD_ERR_ARGUMENT},
        {R"({"attention_head_dim": 640})", "attention_head_dim is 640 heads for the 320 channels",
         HD_ERR_ARGUMENT},
        {R"({"cross_attention_dim": [768, 1024, 768, 768]})",
         "cross_attention_dim has 768 and 1024", HD_ERR_UNSUPPORTED},
        {R"({"conv_in_kernel": 4})", "conv_in_kernel is 4; supported: odd sizes",
         HD_ERR_UNSUPPORTED},
        {R"({"transformer_layers_per_block": [[1, 1], [1, 1], [1, 1], [1, 1]]})",
         "reverse_transformer_layers_per_block", HD_ERR_ARGUMENT},
        {R"({"norm_num_groups": null})", "norm_num_groups", HD_ERR_ARGUMENT},
        {R"({"sample_size": [1, 2, 3]})", "sample_size is a list of 3, must be [height, width]",
         HD_ERR_ARGUMENT},
        {R"({"norm_num_group": 32})", "did you mean \"norm_num_groups\"?", HD_ERR_UNSUPPORTED},
        {R"([])", "unet/config.json", HD_ERR_ARGUMENT},
    };
    for (const Refusal &r : refusals) {
        INFO(r.text);
        hd_unet2d_config c{};
        CHECK_FAILS(read_text(r.text, &c), r.status, r.message);
        CHECK(std::string(hd_message()).find("unet/config.json") != std::string::npos);
    }
}
