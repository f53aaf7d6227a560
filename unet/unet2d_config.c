/* unet/unet2d_config.c: the config.json of a UNet2DConditionModel, key by key. */
#include <string.h>

#include "unet/unet2d.h"

#define UNET_MAX_CHANNELS 65536
#define UNET_MAX_DEPTH    64

static const hd_config_rule unet2d_rules[] = {
    {"sample_size", HD_CONFIG_READ, NULL},
    {"in_channels", HD_CONFIG_READ, NULL},
    {"out_channels", HD_CONFIG_READ, NULL},
    {"center_input_sample", HD_CONFIG_READ, NULL},
    {"flip_sin_to_cos", HD_CONFIG_READ, NULL},
    {"freq_shift", HD_CONFIG_READ, NULL},
    {"down_block_types", HD_CONFIG_READ, NULL},
    {"mid_block_type", HD_CONFIG_READ, NULL},
    {"up_block_types", HD_CONFIG_READ, NULL},
    {"only_cross_attention", HD_CONFIG_READ, NULL},
    {"block_out_channels", HD_CONFIG_READ, NULL},
    {"layers_per_block", HD_CONFIG_READ, NULL},
    {"downsample_padding", HD_CONFIG_READ, NULL},
    {"mid_block_scale_factor", HD_CONFIG_READ, NULL},
    {"act_fn", HD_CONFIG_READ, NULL},
    {"norm_num_groups", HD_CONFIG_READ, NULL},
    {"norm_eps", HD_CONFIG_READ, NULL},
    {"cross_attention_dim", HD_CONFIG_READ, NULL},
    {"transformer_layers_per_block", HD_CONFIG_READ, NULL},
    {"reverse_transformer_layers_per_block", HD_CONFIG_READ, NULL},
    {"attention_head_dim", HD_CONFIG_READ, NULL},
    {"num_attention_heads", HD_CONFIG_READ, NULL},
    {"resnet_time_scale_shift", HD_CONFIG_READ, NULL},
    {"time_embedding_type", HD_CONFIG_READ, NULL},
    {"time_embedding_dim", HD_CONFIG_READ, NULL},
    {"time_embedding_act_fn", HD_CONFIG_READ, NULL},
    {"timestep_post_act", HD_CONFIG_READ, NULL},
    {"time_cond_proj_dim", HD_CONFIG_READ, NULL},
    {"conv_in_kernel", HD_CONFIG_READ, NULL},
    {"conv_out_kernel", HD_CONFIG_READ, NULL},
    {"attention_type", HD_CONFIG_READ, NULL},
    // 1x1 convolutions and linear layers are one operator here.
    {"use_linear_projection", HD_CONFIG_INERT, NULL},
    // Scores are accumulated in f32 in every mode.
    {"upcast_attention", HD_CONFIG_INERT, NULL},
    {"dropout", HD_CONFIG_INERT, NULL},
    // The block types below do not look at these.
    {"mid_block_only_cross_attention", HD_CONFIG_INERT, NULL},
    {"resnet_skip_time_act", HD_CONFIG_INERT, NULL},
    {"resnet_out_scale_factor", HD_CONFIG_INERT, NULL},
    {"cross_attention_norm", HD_CONFIG_INERT, NULL},
    // Without addition_embed_type and class_embed_type these have no meaning.
    {"addition_embed_type_num_heads", HD_CONFIG_INERT, NULL},
    {"addition_time_embed_dim", HD_CONFIG_INERT, NULL},
    {"projection_class_embeddings_input_dim", HD_CONFIG_INERT, NULL},
    {"dual_cross_attention", HD_CONFIG_UNSET, "two text encoders per block"},
    {"class_embed_type", HD_CONFIG_UNSET, "conditioning on a class"},
    {"num_class_embeds", HD_CONFIG_UNSET, "conditioning on a class"},
    {"class_embeddings_concat", HD_CONFIG_UNSET, "conditioning on a class"},
    {"addition_embed_type", HD_CONFIG_UNSET, "an additional embedding, as in Stable Diffusion XL"},
    {"encoder_hid_dim", HD_CONFIG_UNSET, "a projection of the text"},
    {"encoder_hid_dim_type", HD_CONFIG_UNSET, "a projection of the text"},
    {NULL, HD_CONFIG_READ, NULL},
};

static hd_status unet2d_read_sample_size(hd_unet2d_config *c, const hd_json *root)
{
    const hd_json *node = hd_config_given(root, "sample_size");
    if (!node) return HD_OK;
    if (hd_json_kind(node) != HD_JSON_ARRAY) {
        HD_TRY(hd_json_to_int(node, 1, 1 << 20, &c->sample_height));
        c->sample_width = c->sample_height;
        return HD_OK;
    }
    if (hd_json_count(node) != 2)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "is a list of %lld, must be [height, width]",
                            (long long)hd_json_count(node));
    HD_TRY(hd_json_to_int(hd_json_at(node, 0), 1, 1 << 20, &c->sample_height));
    return hd_json_to_int(hd_json_at(node, 1), 1, 1 << 20, &c->sample_width);
}

// Types of the blocks in one direction; names may begin with "UNetRes", as those of old files do.
static hd_status unet2d_read_blocks(hd_unet2d_config *c, const hd_json *root, const char *key,
                                    bool up, const char *const *names, const char *const *otherwise)
{
    const hd_json *node = hd_json_get(root, key);
    int64_t count = 4;
    if (node) {
        HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
        count = hd_json_count(node);
    }
    if (!up && (count < 1 || count > HD_UNET_MAX_LEVELS))
        return hd_json_fail(root, HD_ERR_UNSUPPORTED, "%s has %lld blocks; supported: 1 to %d", key,
                            (long long)count, HD_UNET_MAX_LEVELS);
    if (up && count != c->levels)
        return hd_json_fail(root, HD_ERR_ARGUMENT,
                            "%s has %lld blocks, must have as many as down_block_types: %d", key,
                            (long long)count, c->levels);
    c->levels = (int)count;
    for (int i = 0; i < c->levels; i++) {
        int type = 0;
        if (node) {
            HD_TRY(hd_config_choice(hd_json_at(node, i), names, &type));
        } else {
            while (strcmp(names[type], otherwise[i]) != 0)
                type++;
        }
        hd_unet2d_level *level = &c->level[up ? c->levels - 1 - i : i];
        *(up ? &level->up_attention : &level->down_attention) = type % 2 == 0;
    }
    return HD_OK;
}

static hd_status unet2d_read_types(hd_unet2d_config *c, const hd_json *root)
{
    // Even indices have attention.
    static const char *const down[] = {"CrossAttnDownBlock2D", "DownBlock2D",
                                       "UNetResCrossAttnDownBlock2D", "UNetResDownBlock2D", NULL};
    static const char *const up[] = {"CrossAttnUpBlock2D", "UpBlock2D", "UNetResCrossAttnUpBlock2D",
                                     "UNetResUpBlock2D", NULL};
    static const char *const mid[] = {"UNetMidBlock2D", "UNetMidBlock2DCrossAttn", NULL};
    const char *const down_default[] = {down[0], down[0], down[0], down[1]};
    const char *const up_default[] = {up[1], up[0], up[0], up[0]};
    HD_TRY(unet2d_read_blocks(c, root, "down_block_types", false, down, down_default));
    HD_TRY(unet2d_read_blocks(c, root, "up_block_types", true, up, up_default));
    const hd_json *node = hd_json_get(root, "mid_block_type");
    c->mid = HD_UNET_MID_CROSS_ATTN;
    if (!node) return HD_OK;
    c->mid = HD_UNET_MID_NONE;
    if (hd_json_kind(node) == HD_JSON_NULL) return HD_OK;
    int type = 0;
    HD_TRY(hd_config_choice(node, mid, &type));
    c->mid = type == 0 ? HD_UNET_MID_RESNET : HD_UNET_MID_CROSS_ATTN;
    return HD_OK;
}

static hd_status unet2d_read_channels(hd_unet2d_config *c, const hd_json *root)
{
    static const int64_t usual[] = {320, 640, 1280, 1280};
    const hd_json *node = hd_json_get(root, "block_out_channels");
    HD_TRY(hd_config_int(root, "norm_num_groups", 1, UNET_MAX_CHANNELS, 32, &c->groups));
    if (node) HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    if ((node ? hd_json_count(node) : 4) != c->levels)
        return hd_json_fail(node ? node : root, HD_ERR_ARGUMENT,
                            "has %lld channel counts, must have one for each of the %d blocks",
                            (long long)(node ? hd_json_count(node) : 4), c->levels);
    for (int i = 0; i < c->levels; i++) {
        int64_t *channels = &c->level[i].channels;
        *channels = i < 4 ? usual[i] : 0;
        if (node) HD_TRY(hd_json_to_int(hd_json_at(node, i), 1, UNET_MAX_CHANNELS, channels));
        if (*channels % c->groups != 0)
            return hd_json_fail(node ? hd_json_at(node, i) : root, HD_ERR_ARGUMENT,
                                "is %lld channels, must be a multiple of norm_num_groups (%lld)",
                                (long long)*channels, (long long)c->groups);
    }
    return HD_OK;
}

// Files say attention_head_dim and mean the number of heads: a misnomer that every model of this
// family carries, and that num_attention_heads overrides.
static hd_status unet2d_read_heads(hd_unet2d_config *c, const hd_json *root)
{
    const char *key =
        hd_config_given(root, "num_attention_heads") ? "num_attention_heads" : "attention_head_dim";
    int64_t heads[HD_UNET_MAX_LEVELS];
    HD_TRY(hd_config_int_per_level(root, key, 1, UNET_MAX_CHANNELS, 8, c->levels, heads));
    for (int i = 0; i < c->levels; i++) {
        c->level[i].heads = heads[i];
        if (heads[i] > c->level[i].channels)
            return hd_json_fail(hd_json_get(root, key), HD_ERR_ARGUMENT,
                                "is %lld heads for the %lld channels of block %d; a head needs one",
                                (long long)heads[i], (long long)c->level[i].channels, i);
    }
    return HD_OK;
}

static hd_status unet2d_read_text(hd_unet2d_config *c, const hd_json *root)
{
    int64_t width[HD_UNET_MAX_LEVELS];
    HD_TRY(hd_config_int_per_level(root, "cross_attention_dim", 1, UNET_MAX_CHANNELS, 1280,
                                   c->levels, width));
    for (int i = 0; i < c->levels; i++) {
        bool last = i == c->levels - 1 && c->mid == HD_UNET_MID_CROSS_ATTN;
        if (!c->level[i].down_attention && !c->level[i].up_attention && !last) continue;
        if (c->text_channels == 0) c->text_channels = width[i];
        if (c->text_channels != width[i])
            return hd_json_fail(hd_json_get(root, "cross_attention_dim"), HD_ERR_UNSUPPORTED,
                                "has %lld and %lld; supported: one width, for all blocks see the "
                                "same text",
                                (long long)c->text_channels, (long long)width[i]);
    }
    return HD_OK;
}

// One block's depths: a number, or a list with at least one value for each of its layers.
static hd_status unet2d_read_depth(const hd_json *node, int64_t layers, int64_t *depth)
{
    bool list = hd_json_kind(node) == HD_JSON_ARRAY;
    if (list && hd_json_count(node) < layers)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "is a list of %lld, must have a value for each of the %lld layers",
                            (long long)hd_json_count(node), (long long)layers);
    for (int64_t i = 0; i < layers; i++)
        HD_TRY(hd_json_to_int(list ? hd_json_at(node, i) : node, 1, UNET_MAX_DEPTH, &depth[i]));
    return HD_OK;
}

static hd_status unet2d_read_depths(hd_unet2d_config *c, const hd_json *root)
{
    const hd_json *all = hd_json_get(root, "transformer_layers_per_block");
    const hd_json *back = hd_config_given(root, "reverse_transformer_layers_per_block");
    bool list = all && hd_json_kind(all) == HD_JSON_ARRAY;
    if (list && hd_json_count(all) != c->levels)
        return hd_json_fail(all, HD_ERR_ARGUMENT, "is a list of %lld, must have %d values",
                            (long long)hd_json_count(all), c->levels);
    if (back) HD_TRY(hd_json_expect(back, HD_JSON_ARRAY));
    if (back && hd_json_count(back) != c->levels)
        return hd_json_fail(back, HD_ERR_ARGUMENT, "is a list of %lld, must have %d values",
                            (long long)hd_json_count(back), c->levels);
    c->mid_depth = 1;
    for (int i = 0; i < c->levels; i++) {
        hd_unet2d_level *level = &c->level[i];
        for (int64_t j = 0; j <= level->layers; j++)
            level->down_depth[j] = level->up_depth[j] = 1;
        if (!all) continue;
        const hd_json *down = list ? hd_json_at(all, i) : all;
        const hd_json *up = back ? hd_json_at(back, c->levels - 1 - i) : down;
        if (!back && hd_json_kind(down) == HD_JSON_ARRAY)
            return hd_json_fail(down, HD_ERR_ARGUMENT,
                                "is a list: that needs reverse_transformer_layers_per_block too");
        HD_TRY(unet2d_read_depth(down, level->layers, level->down_depth));
        HD_TRY(unet2d_read_depth(up, level->layers + 1, level->up_depth));
        c->mid_depth = level->down_depth[0];
    }
    return HD_OK;
}

static hd_status unet2d_read_time(hd_unet2d_config *c, const hd_json *root)
{
    static const char *const kinds[] = {"positional", NULL};
    static const char *const shifts[] = {"default", "scale_shift", NULL};
    static const char *const attentions[] = {"default", NULL};
    int index = 0;
    c->time_channels = 4 * c->level[0].channels;
    if (hd_config_given(root, "time_embedding_dim"))
        HD_TRY(
            hd_config_int(root, "time_embedding_dim", 1, UNET_MAX_CHANNELS, 0, &c->time_channels));
    if (hd_config_given(root, "time_cond_proj_dim"))
        HD_TRY(hd_config_int(root, "time_cond_proj_dim", 4, UNET_MAX_CHANNELS, 0,
                             &c->guidance_channels));
    if (hd_json_get(root, "time_embedding_type"))
        HD_TRY(hd_config_choice(hd_json_get(root, "time_embedding_type"), kinds, &index));
    if (hd_json_get(root, "attention_type"))
        HD_TRY(hd_config_choice(hd_json_get(root, "attention_type"), attentions, &index));
    index = 0;
    if (hd_json_get(root, "resnet_time_scale_shift"))
        HD_TRY(hd_config_choice(hd_json_get(root, "resnet_time_scale_shift"), shifts, &index));
    c->scale_shift = index == 1;
    HD_TRY(hd_config_bool(root, "flip_sin_to_cos", true, &c->flip_sin_to_cos));
    HD_TRY(hd_config_double(root, "freq_shift", -1e6, 1e6, 0, &c->freq_shift));
    HD_TRY(hd_config_activation(root, "time_embedding_act_fn", HD_ACT_NONE, &c->time_act));
    return hd_config_activation(root, "timestep_post_act", HD_ACT_NONE, &c->time_post_act);
}

static hd_status unet2d_read_kernel(const hd_json *root, const char *key, int64_t *kernel)
{
    HD_TRY(hd_config_int(root, key, 1, 31, 3, kernel));
    if (*kernel % 2 == 1) return HD_OK;
    return hd_json_fail(hd_json_get(root, key), HD_ERR_UNSUPPORTED,
                        "is %lld; supported: odd sizes, which keep the size of the picture",
                        (long long)*kernel);
}

static hd_status unet2d_read_layers(hd_unet2d_config *c, const hd_json *root)
{
    int64_t layers[HD_UNET_MAX_LEVELS];
    bool only[HD_UNET_MAX_LEVELS];
    HD_TRY(hd_config_int_per_level(root, "layers_per_block", 1, HD_UNET_MAX_LAYERS - 1, 2,
                                   c->levels, layers));
    HD_TRY(hd_config_bool_per_level(root, "only_cross_attention", false, c->levels, only));
    for (int i = 0; i < c->levels; i++) {
        c->level[i].layers = layers[i];
        c->level[i].only_cross_attention = only[i];
    }
    return HD_OK;
}

// What stands for itself.
static hd_status unet2d_read_scalars(hd_unet2d_config *c, const hd_json *root)
{
    HD_TRY(hd_config_int(root, "in_channels", 1, UNET_MAX_CHANNELS, 4, &c->in_channels));
    HD_TRY(hd_config_int(root, "out_channels", 1, UNET_MAX_CHANNELS, 4, &c->out_channels));
    HD_TRY(unet2d_read_kernel(root, "conv_in_kernel", &c->conv_in_kernel));
    HD_TRY(unet2d_read_kernel(root, "conv_out_kernel", &c->conv_out_kernel));
    HD_TRY(hd_config_int(root, "downsample_padding", 0, 1, 1, &c->downsample_padding));
    HD_TRY(hd_config_double(root, "norm_eps", 0, 1, 1e-5, &c->eps));
    HD_TRY(hd_config_double(root, "mid_block_scale_factor", 1e-6, 1e6, 1, &c->mid_scale));
    HD_TRY(hd_config_bool(root, "center_input_sample", false, &c->center_input));
    return hd_config_activation(root, "act_fn", HD_ACT_SILU, &c->act);
}

hd_status hd_unet2d_config_read(hd_unet2d_config *out, const hd_json *root)
{
    hd_unet2d_config c = {0};
    HD_TRY(hd_config_check(root, unet2d_rules));
    HD_TRY(unet2d_read_sample_size(&c, root));
    HD_TRY(unet2d_read_types(&c, root));
    HD_TRY(unet2d_read_layers(&c, root));
    HD_TRY(unet2d_read_channels(&c, root));
    HD_TRY(unet2d_read_heads(&c, root));
    HD_TRY(unet2d_read_text(&c, root));
    HD_TRY(unet2d_read_depths(&c, root));
    HD_TRY(unet2d_read_time(&c, root));
    HD_TRY(unet2d_read_scalars(&c, root));
    *out = c;
    return HD_OK;
}
