/* controls/attention_masks_show.c: from what was summed up to heat maps and masks of a picture. */
#include <stdlib.h>
#include <string.h>

#include "controls/attention_masks.h"

/* --- means --- */

// One channel of one head of a site, on the latent's size, into `out`.
static void site_map(const attention_masks *p, masks_sums *s, int64_t head, int64_t channel,
                     float *small, float *out)
{
    const int64_t tokens = s->height * s->width;
    const float *sum = masks_sums_values(s) + head * tokens * p->channels + channel;
    const float parts = (float)(s->calls * s->summed_heads);
    for (int64_t i = 0; i < tokens; i++)
        small[i] = sum[i * p->channels] / parts;
    masks_bicubic(out, p->latent_height, p->latent_width, small, s->height, s->width);
}

typedef struct gathering {
    const hd_beside_ctx *ctx;
    const attention_masks *p;
    int64_t places;
    float *small, *large; // [places]
} gathering;

// The mean over the sites of one factor (0: of all) and their heads.
static bool mean_of_sites(const gathering *g, int64_t factor, int64_t channel, float *out)
{
    const attention_masks *p = g->p;
    const hd_site *site;
    int64_t parts = 0;
    memset(out, 0, (size_t)g->places * sizeof *out);
    for (int64_t i = 0; (site = hd_beside_site(g->ctx, i)) != NULL; i++) {
        if (site->kind == HD_SITE_SELF || (factor && site->factor != factor)) continue;
        masks_sums *s = hd_beside_site_state(g->ctx, i, p->name, HD_ROLE_COND);
        for (int64_t h = 0; s && s->calls > 0 && h < s->heads; h++, parts++) {
            site_map(p, s, h, channel, g->small, g->large);
            for (int64_t k = 0; k < g->places; k++)
                out[k] += g->large[k];
        }
    }
    for (int64_t k = 0; parts && k < g->places; k++)
        out[k] /= (float)parts;
    return parts > 0;
}

// DiffuMask: every resolution counts the same, on its own scale.
static void mean_of_resolutions(const gathering *g, int64_t channel, float *scratch, float *out)
{
    int64_t parts = 0;
    float least, most;
    memset(out, 0, (size_t)g->places * sizeof *out);
    for (int64_t f = 0; f < g->p->factors; f++) {
        if (!mean_of_sites(g, g->p->factor[f], channel, scratch)) continue;
        masks_range(scratch, g->places, &least, &most);
        for (int64_t k = 0; k < g->places && most > 0; k++)
            out[k] += scratch[k] / most;
        parts++;
    }
    for (int64_t k = 0; parts && k < g->places; k++)
        out[k] /= (float)parts;
}

static void spread_map(const hd_beside_ctx *ctx, int64_t channel, float *small, float *out)
{
    const attention_masks *p = ctx->params;
    const masks_spread *s = ctx->state;
    const int64_t grid = p->self_height * p->self_width;
    const float *sum = (const float *)(s + 1) + (p->channels + channel) * grid;
    for (int64_t i = 0; i < grid; i++)
        small[i] = s->spread ? sum[i] / (float)s->spread : 0.0f;
    masks_bicubic(out, p->latent_height, p->latent_width, small, p->self_height, p->self_width);
}

hd_status masks_gather(const hd_beside_ctx *ctx, float *maps)
{
    const attention_masks *p = ctx->params;
    const int64_t places = p->latent_height * p->latent_width;
    float *room = malloc(3 * (size_t)places * sizeof *room);
    if (!room) return hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for the maps");
    const gathering g = {ctx, p, places, room, room + places};
    for (int64_t c = 0; c < p->channels; c++) {
        float *out = maps + c * places;
        if (p->self_power > 0)
            spread_map(ctx, c, room, out);
        else if (p->recipe == MASKS_DIFFUMASK)
            mean_of_resolutions(&g, c, room + 2 * places, out);
        else
            (void)mean_of_sites(&g, 0, c, out);
    }
    free(room);
    return HD_OK;
}

void masks_join_words(const attention_masks *p, const float *maps, int64_t places, float *word)
{
    const float *all = maps + (p->channels - MASKS_EXTRA + MASKS_ALL_WORDS) * places;
    const int64_t entries = p->count + (p->background_word >= 0 ? 1 : 0);
    for (int64_t w = 0; w < entries; w++)
        for (int64_t k = 0; k < places; k++) {
            float most = 0;
            for (int64_t c = 0; c < p->word[w].channels; c++) {
                const float value = maps[(p->word[w].first + c) * places + k];
                if (value > most) most = value;
            }
            word[w * places + k] = p->normalize == MASKS_COMPETE ? most / (all[k] + 1e-6f) : most;
        }
}

/* --- one picture --- */

// The maps of a picture while they are made. Entries: words, background word.
typedef struct showing {
    const attention_masks *p;
    const hd_show_ctx *ctx;
    int64_t places, pixels;
    float *maps;  // [channels, places]
    float *word;  // [entries, places]
    float *large; // [words + 1, pixels]
} showing;

// A branch that shows another's latent sees it through its view: back to where it belongs.
static void undo_view(const showing *s, float *map, float *scratch)
{
    const hd_branches *branches = s->ctx->beside->branches;
    const int32_t *source = branches->item[hd_branches_find(branches, s->p->name)].view.source;
    if (!source) return;
    memcpy(scratch, map, (size_t)s->places * sizeof *map);
    for (int64_t k = 0; k < s->places; k++)
        map[source[k]] = scratch[k];
}

static void enlarge(const showing *s, const float *map, float *out)
{
    const hd_shown_list *list = s->ctx->list;
    const attention_masks *p = s->p;
    if (p->recipe == MASKS_P2P)
        masks_nearest(out, list->height, list->width, map, p->latent_height, p->latent_width);
    else
        masks_bicubic(out, list->height, list->width, map, p->latent_height, p->latent_width);
}

// To 0 .. 1 between `least` and `most`, as the option says.
static void normalize(const showing *s, float *x, float least, float most)
{
    switch (s->p->normalize) {
    case MASKS_BY_MAX:
        masks_scale(x, s->pixels, 0.0f, most);
        break;
    case MASKS_MINMAX:
        masks_scale(x, s->pixels, least, most);
        break;
    case MASKS_NONE:
    case MASKS_COMPETE:
        break;
    }
    for (int64_t i = 0; i < s->pixels; i++)
        x[i] = x[i] < 0 ? 0.0f : x[i] > 1 ? 1.0f : x[i];
}

static void heat_of(const showing *s, hd_shown *shown, int64_t w)
{
    float least, most, other_least, other_most;
    masks_range(s->large + w * s->pixels, s->pixels, &least, &most);
    for (int64_t i = 0; s->p->shared_scale && i < s->p->count; i++) {
        masks_range(s->large + i * s->pixels, s->pixels, &other_least, &other_most);
        if (other_least < least) least = other_least;
        if (other_most > most) most = other_most;
    }
    memcpy(shown->heat, s->large + w * s->pixels, (size_t)s->pixels * sizeof *shown->heat);
    normalize(s, shown->heat, least, most);
}

static hd_status finish_mask(const showing *s, hd_shown *shown)
{
    const int64_t least = (int64_t)((double)s->p->min_area * (double)s->pixels + 0.5);
    if (least > 1 &&
        !masks_drop_small(shown->mask, s->ctx->list->height, s->ctx->list->width, least))
        return hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for a mask");
    return HD_OK;
}

// The places above a threshold, on the word's own scale.
static hd_status mask_of(const showing *s, hd_shown *shown, int64_t w)
{
    float *own = s->large + s->p->count * s->pixels, least, most;
    memcpy(own, s->large + w * s->pixels, (size_t)s->pixels * sizeof *own);
    masks_range(own, s->pixels, &least, &most);
    normalize(s, own, least, most);
    if (s->p->refine == MASKS_GUIDED &&
        !masks_guided(own, s->ctx->list->rgb, s->ctx->list->height, s->ctx->list->width))
        return hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for a mask");
    const float threshold = masks_threshold(own, s->pixels, s->p->rule, s->p->share);
    for (int64_t i = 0; i < s->pixels && most > least; i++)
        shown->mask[i] = own[i] > threshold;
    return finish_mask(s, shown);
}

// AttenCraft: words and background share the picture out among them.
static hd_status share_out(const showing *s, int64_t first)
{
    const attention_masks *p = s->p;
    const int entries = (int)p->count + 1;
    float value[256], least, most;
    float *background = s->large + p->count * s->pixels;
    if (entries > 256) return hd_fail(HD_ERR_UNSUPPORTED, "more than 255 words");
    if (!p->complement) {
        const float *map = p->background_word >= 0
                               ? s->word + p->background_word * s->places
                               : s->maps + (p->channels - MASKS_EXTRA + MASKS_BEGIN) * s->places;
        enlarge(s, map, background);
    }
    for (int w = 0; w < entries - (p->complement ? 1 : 0); w++) {
        masks_range(s->large + w * s->pixels, s->pixels, &least, &most);
        masks_scale(s->large + w * s->pixels, s->pixels, least, most);
    }
    for (int64_t i = 0; i < s->pixels; i++) {
        float highest = 0;
        int at = 0;
        for (int w = 0; w < entries; w++) {
            value[w] = p->complement && w == p->count ? 1 - highest : s->large[w * s->pixels + i];
            if (w < p->count && value[w] > highest) highest = value[w];
            if (value[w] > value[at]) at = w;
        }
        const int class = masks_class(value, entries, p->margin);
        const int owner = class >= 0 || !p->fill ? class : at;
        if (owner >= 0 && owner < p->count) s->ctx->list->item[first + owner].mask[i] = 1;
    }
    for (int64_t w = 0; w < p->count; w++)
        HD_TRY(finish_mask(s, &s->ctx->list->item[first + w]));
    return HD_OK;
}

static hd_status show_words(const showing *s)
{
    const attention_masks *p = s->p;
    hd_shown_list *list = s->ctx->list;
    const int64_t first = list->count;
    float least;
    for (int64_t w = 0; w < p->count; w++) {
        hd_shown *shown;
        HD_TRY(hd_shown_add(list, p->word[w].name, p->name, &shown));
        memcpy(shown->value, s->word + w * s->places, (size_t)s->places * sizeof(float));
        masks_range(shown->value, s->places, &least, &shown->most);
        enlarge(s, shown->value, s->large + w * s->pixels);
    }
    for (int64_t w = 0; w < p->count; w++) {
        heat_of(s, &list->item[first + w], w);
        if (p->recipe != MASKS_ATTENCRAFT) HD_TRY(mask_of(s, &list->item[first + w], w));
    }
    return p->recipe == MASKS_ATTENCRAFT ? share_out(s, first) : HD_OK;
}

static hd_status make_maps(const showing *s, float *scratch)
{
    const attention_masks *p = s->p;
    HD_TRY(masks_gather(s->ctx->beside, s->maps));
    for (int64_t c = 0; c < p->channels; c++)
        undo_view(s, s->maps + c * s->places, scratch);
    masks_join_words(p, s->maps, s->places, s->word);
    for (int64_t w = 0; p->refine == MASKS_POOL && w < p->count; w++) {
        memcpy(scratch, s->word + w * s->places, (size_t)s->places * sizeof *scratch);
        masks_pool(s->word + w * s->places, scratch, p->latent_height, p->latent_width);
    }
    return show_words(s);
}

hd_status masks_show(const hd_show_ctx *ctx)
{
    const attention_masks *p = ctx->beside->params;
    if (strcmp(ctx->beside->branch, p->name) != 0) return HD_OK;
    showing s = {
        p,    ctx, p->latent_height * p->latent_width, ctx->list->height * ctx->list->width, NULL,
        NULL, NULL};
    const size_t words = (size_t)(p->count + 1);
    s.maps = malloc((size_t)(p->channels * s.places) * sizeof(float));
    s.word = malloc(words * (size_t)s.places * sizeof(float));
    s.large = malloc(words * (size_t)s.pixels * sizeof(float));
    float *scratch = malloc((size_t)s.places * sizeof(float));
    hd_status status = HD_OK;
    if (!s.maps || !s.word || !s.large || !scratch)
        status = hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for the maps");
    if (status == HD_OK) status = make_maps(&s, scratch);
    free(scratch);
    free(s.maps);
    free(s.word);
    free(s.large);
    return status;
}
