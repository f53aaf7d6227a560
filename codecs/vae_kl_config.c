/* codecs/vae_kl_config.c: the config.json of an AutoencoderKL, key by key. */
#include "codecs/vae_kl.h"

#define VAE_MAX_CHANNELS 65536

static const hd_config_rule vae_kl_rules[] = {
    {"in_channels", HD_CONFIG_READ, NULL},
    {"out_channels", HD_CONFIG_READ, NULL},
    {"down_block_types", HD_CONFIG_READ, NULL},
    {"up_block_types", HD_CONFIG_READ, NULL},
    {"block_out_channels", HD_CONFIG_READ, NULL},
    {"layers_per_block", HD_CONFIG_READ, NULL},
    {"act_fn", HD_CONFIG_READ, NULL},
    {"latent_channels", HD_CONFIG_READ, NULL},
    {"norm_num_groups", HD_CONFIG_READ, NULL},
    {"sample_size", HD_CONFIG_READ, NULL},
    {"scaling_factor", HD_CONFIG_READ, NULL},
    {"shift_factor", HD_CONFIG_READ, NULL},
    {"use_quant_conv", HD_CONFIG_READ, NULL},
    {"use_post_quant_conv", HD_CONFIG_READ, NULL},
    {"mid_block_add_attention", HD_CONFIG_READ, NULL},
    // About the range of f16, which nothing here computes in.
    {"force_upcast", HD_CONFIG_INERT, NULL},
    {"latents_mean", HD_CONFIG_UNSET, "a normalisation per channel"},
    {"latents_std", HD_CONFIG_UNSET, "a normalisation per channel"},
    {NULL, HD_CONFIG_READ, NULL},
};

static hd_status vae_kl_read_types(const hd_vae_kl_config *c, const hd_json *root, const char *key,
                                   const char *only)
{
    const char *const names[] = {only, NULL};
    const hd_json *node = hd_json_get(root, key);
    int64_t count = 1;
    int type = 0;
    if (node) {
        HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
        count = hd_json_count(node);
    }
    if (count != c->levels)
        return hd_json_fail(root, HD_ERR_ARGUMENT,
                            "%s has %lld blocks, must have as many as block_out_channels: %d", key,
                            (long long)count, c->levels);
    for (int64_t i = 0; node && i < count; i++)
        HD_TRY(hd_config_choice(hd_json_at(node, i), names, &type));
    return HD_OK;
}

static hd_status vae_kl_read_levels(hd_vae_kl_config *c, const hd_json *root)
{
    const hd_json *node = hd_json_get(root, "block_out_channels");
    HD_TRY(hd_config_int(root, "norm_num_groups", 1, VAE_MAX_CHANNELS, 32, &c->groups));
    c->levels = 1;
    c->channels[0] = 64;
    if (node) {
        HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
        if (hd_json_count(node) < 1 || hd_json_count(node) > HD_VAE_MAX_LEVELS)
            return hd_json_fail(node, HD_ERR_UNSUPPORTED, "is a list of %lld; supported: 1 to %d",
                                (long long)hd_json_count(node), HD_VAE_MAX_LEVELS);
        c->levels = (int)hd_json_count(node);
    }
    for (int i = 0; i < c->levels; i++) {
        const hd_json *one = node ? hd_json_at(node, i) : root;
        if (node) HD_TRY(hd_json_to_int(one, 1, VAE_MAX_CHANNELS, &c->channels[i]));
        if (c->channels[i] % c->groups != 0)
            return hd_json_fail(one, HD_ERR_ARGUMENT,
                                "is %lld channels, must be a multiple of norm_num_groups (%lld)",
                                (long long)c->channels[i], (long long)c->groups);
    }
    HD_TRY(vae_kl_read_types(c, root, "down_block_types", "DownEncoderBlock2D"));
    return vae_kl_read_types(c, root, "up_block_types", "UpDecoderBlock2D");
}

static hd_status vae_kl_read_sample_size(hd_vae_kl_config *c, const hd_json *root)
{
    const hd_json *node = hd_json_get(root, "sample_size");
    c->sample_size = 32;
    if (node && hd_json_kind(node) == HD_JSON_ARRAY && hd_json_count(node) > 0)
        node = hd_json_at(node, 0);
    return node ? hd_json_to_int(node, 1, 1 << 20, &c->sample_size) : HD_OK;
}

static hd_status vae_kl_read_scale(hd_vae_kl_config *c, const hd_json *root)
{
    HD_TRY(hd_config_double(root, "scaling_factor", 1e-6, 1e6, 0.18215, &c->scaling_factor));
    if (!hd_config_given(root, "shift_factor")) return HD_OK;
    return hd_config_double(root, "shift_factor", -1e6, 1e6, 0, &c->shift_factor);
}

hd_status hd_vae_kl_config_read(hd_vae_kl_config *out, const hd_json *root)
{
    hd_vae_kl_config c = {0};
    HD_TRY(hd_config_check(root, vae_kl_rules));
    HD_TRY(hd_config_int(root, "in_channels", 1, VAE_MAX_CHANNELS, 3, &c.in_channels));
    HD_TRY(hd_config_int(root, "out_channels", 1, VAE_MAX_CHANNELS, 3, &c.out_channels));
    HD_TRY(hd_config_int(root, "latent_channels", 1, VAE_MAX_CHANNELS, 4, &c.latent_channels));
    HD_TRY(vae_kl_read_levels(&c, root));
    HD_TRY(hd_config_int(root, "layers_per_block", 1, 64, 1, &c.layers));
    HD_TRY(vae_kl_read_sample_size(&c, root));
    HD_TRY(hd_config_activation(root, "act_fn", HD_ACT_SILU, &c.act));
    HD_TRY(vae_kl_read_scale(&c, root));
    HD_TRY(hd_config_bool(root, "use_quant_conv", true, &c.quant_conv));
    HD_TRY(hd_config_bool(root, "use_post_quant_conv", true, &c.post_quant_conv));
    HD_TRY(hd_config_bool(root, "mid_block_add_attention", true, &c.mid_attention));
    *out = c;
    return HD_OK;
}

int64_t hd_vae_kl_factor(const hd_vae_kl_config *c)
{
    return (int64_t)1 << (c->levels - 1);
}
