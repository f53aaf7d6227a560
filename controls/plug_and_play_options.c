/* controls/plug_and_play_options.c: the options of Plug-and-Play and what their lists and ranges
 * say. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/plug_and_play.h"

static const char *const pnp_inversions[] = {"direct", "ddim", NULL};
static const char *const pnp_schedules[] = {"const", "linear", "exp", NULL};
static const char *const pnp_qk_modes[] = {"replace", "append", NULL};

// Of Stable Diffusion 1.x and 2.x: decoder blocks 4 to 11 of the authors' numbering.
static const char *const default_sites[] = {"up.1.attn.1 self", "up.1.attn.2 self",
                                            "up.2.attn.* self", "up.3.attn.* self"};
static const char *const default_tap = "up.1.resnet.1";

const hd_param pnp_params[] = {
    HD_PARAM_JSON(plug_and_play, feature_sites,
                  .help = "residual blocks whose second convolution is the source's (default "
                          "[\"up.1.resnet.1\"]); []: none"),
    HD_PARAM_JSON(plug_and_play, attn_sites,
                  .help = "layers whose queries and keys are the source's (default "
                          "[\"up.1.attn.1 self\", \"up.1.attn.2 self\", \"up.2.attn.* self\", "
                          "\"up.3.attn.* self\"])"),
    HD_PARAM_JSON(plug_and_play, feature_steps,
                  .help = "part of the run in which features are injected: 0.8 (default) or "
                          "[0, 0.8]"),
    HD_PARAM_JSON(plug_and_play, attn_steps,
                  .help = "the same for queries and keys: 0.5 (default) or [0, 0.5]"),
    HD_PARAM_FLOAT(plug_and_play, strength_feature, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "share of the source's feature"),
    HD_PARAM_FLOAT(plug_and_play, strength_qk, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "share of the source's queries and keys"),
    HD_PARAM_ENUM(plug_and_play, qk_mode, .names = pnp_qk_modes,
                  .help = "the source's queries and keys instead of the own ones, or its keys and "
                          "values beside the own ones"),
    HD_PARAM_BOOL(plug_and_play, feature_adain,
                  .help = "each channel of an injected feature keeps the own mean and deviation"),
    HD_PARAM_STRING(plug_and_play, source_prompt, .def_text = "",
                    .help = "the source's prompt, where branches.source gives none"),
    HD_PARAM_STRING(plug_and_play, source_image, .help = "a real picture, likewise"),
    HD_PARAM_ENUM(plug_and_play, inversion, .names = pnp_inversions, .help = "of a real picture"),
    HD_PARAM_INT(plug_and_play, inversion_steps, .def = 999, .min = 0, .max = 1000,
                 .help = "0: the run's"),
    HD_PARAM_INT(plug_and_play, fixed_point, .def = 0, .min = 0, .max = 10,
                 .help = "repeats of each inversion step"),
    HD_PARAM_STRING(plug_and_play, inversion_file, .help = "a saved inversion"),
    HD_PARAM_STRING(plug_and_play, negative, .def_text = "",
                    .help = "prompt that is mixed into the unconditional prediction"),
    HD_PARAM_FLOAT(plug_and_play, negative_alpha, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "share that stays with the run's own \"negative\""),
    HD_PARAM_ENUM(plug_and_play, negative_schedule, .names = pnp_schedules,
                  .help = "how that share falls along the run"),
    HD_PARAM_STRING(plug_and_play, mask,
                    .help = "only what is white in this PNG takes the source's structure"),
    HD_PARAM_BOOL(plug_and_play, mask_keys, .help = "keys, too, only where the mask is white"),
    HD_PARAM_END,
};

// A number is the end of a range that begins with the run.
static hd_status read_part(double part[2], const hd_json *node, double end)
{
    part[0] = 0.0;
    part[1] = end;
    if (!node) return HD_OK;
    if (hd_json_kind(node) != HD_JSON_ARRAY) return hd_json_to_double(node, 0.0, 1.0, &part[1]);
    if (hd_json_count(node) != 2)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "has %lld numbers, must be [from, to] as fractions of the run",
                            (long long)hd_json_count(node));
    for (int i = 0; i < 2; i++)
        HD_TRY(hd_json_to_double(hd_json_at(node, i), 0.0, 1.0, &part[i]));
    if (part[0] > part[1])
        return hd_json_fail(node, HD_ERR_ARGUMENT, "is [%g, %g], must not go backwards", part[0],
                            part[1]);
    return HD_OK;
}

static hd_status read_site(plug_and_play *p, const hd_json *item, const char *text)
{
    hd_site_selector *s = &p->site[p->sites];
    if (hd_site_selector_parse(s, text) != HD_OK) {
        char why[512];
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(item, HD_ERR_ARGUMENT, "%s", why);
    }
    if (s->kind_given && s->kind == HD_SITE_CROSS)
        return hd_json_fail(item, HD_ERR_ARGUMENT,
                            "is \"%s\": words are the target's own; name self, temporal or joint "
                            "attention",
                            text);
    p->sites++;
    return HD_OK;
}

static hd_status read_sites(plug_and_play *p)
{
    const hd_json *list = p->attn_sites;
    if (list) HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    const int64_t count = list ? hd_json_count(list) : (int64_t)HD_COUNT(default_sites);
    if (count == 0)
        return hd_json_fail(list, HD_ERR_ARGUMENT,
                            "is empty; \"attn_steps\": 0 turns queries and keys off");
    p->site = calloc((size_t)count, sizeof *p->site);
    if (!p->site) return hd_fail(HD_ERR_NOMEM, "plug_and_play: no memory for its sites");
    for (int64_t i = 0; i < count; i++) {
        const char *text = list ? NULL : default_sites[i];
        if (list) HD_TRY(hd_json_to_string(hd_json_at(list, i), &text));
        HD_TRY(read_site(p, list ? hd_json_at(list, i) : NULL, text));
    }
    return HD_OK;
}

// "up.1.resnet.1" is its second convolution; another tap of the block may be named whole.
static hd_status read_tap(plug_and_play *p, const hd_json *item, const char *text)
{
    const char *end = strrchr(text, '.');
    const bool whole = end && (strcmp(end, ".conv2") == 0 || strcmp(end, ".out") == 0);
    char *tap = p->tap[p->taps++];
    const int used = snprintf(tap, HD_SITE_PATH_BYTES, "%s%s", text, whole ? "" : ".conv2");
    if (used < HD_SITE_PATH_BYTES) return HD_OK;
    return hd_json_fail(item, HD_ERR_ARGUMENT, "is \"%.40s...\", which is too long", text);
}

static hd_status read_taps(plug_and_play *p)
{
    const hd_json *list = p->feature_sites;
    if (list) HD_TRY(hd_json_expect(list, HD_JSON_ARRAY));
    const int64_t count = list ? hd_json_count(list) : 1;
    p->tap = calloc((size_t)count + 1, sizeof *p->tap);
    if (!p->tap) return hd_fail(HD_ERR_NOMEM, "plug_and_play: no memory for its features");
    for (int64_t i = 0; i < count; i++) {
        const char *text = default_tap;
        if (list) HD_TRY(hd_json_to_string(hd_json_at(list, i), &text));
        HD_TRY(read_tap(p, list ? hd_json_at(list, i) : NULL, text));
    }
    return HD_OK;
}

hd_status pnp_check(void *params)
{
    plug_and_play *p = params;
    HD_TRY(read_part(p->feature_part, p->feature_steps, 0.8));
    HD_TRY(read_part(p->attn_part, p->attn_steps, 0.5));
    HD_TRY(read_sites(p));
    HD_TRY(read_taps(p));
    if (p->qk_mode == PNP_APPEND && p->strength_qk != 0.0f && p->strength_qk != 1.0f)
        return hd_fail(HD_ERR_ARGUMENT,
                       "strength_qk is %g, must be 0 or 1 where keys are appended: a part of a key "
                       "is another key",
                       (double)p->strength_qk);
    if (p->mask_keys && !p->mask)
        return hd_fail(HD_ERR_ARGUMENT, "mask_keys is for a mask: give \"mask\"");
    if (p->inversion_file && p->inversion_steps != 999)
        return hd_fail(
            HD_ERR_ARGUMENT,
            "inversion_steps is for an inversion that is made; inversion_file holds one");
    p->mixes_negative = p->negative_alpha < 1.0f || p->negative_schedule != PNP_CONST;
    return HD_OK;
}

void pnp_clear(void *params)
{
    plug_and_play *p = params;
    free(p->site);
    free(p->tap);
    free(p->free_mask);
}
