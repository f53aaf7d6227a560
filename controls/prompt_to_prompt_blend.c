/* controls/prompt_to_prompt_blend.c: local blend: outside of the words' place the target's latent
 * is the source's.
 *
 * The place: the words' maps of source and target, summed over the steps so far at the sites of one
 * factor, widened by a maximum over their neighbours, brought to the latent's size and divided by
 * their largest value, above a threshold. Hertz et al., arXiv 2208.01626, and the authors' code. */
#include <stdlib.h>
#include <string.h>

#include "controls/prompt_to_prompt.h"

bool p2p_blends_words(const prompt_to_prompt *p)
{
    return p->blend.on && !(p->mask && p->mask_op == P2P_MASK_ONLY);
}

bool p2p_blend_reads(const prompt_to_prompt *p, const hd_site *site)
{
    return p->blend.on && site->kind == HD_SITE_CROSS && site->factor == p->blend.factor &&
           strncmp(site->path, "mid", 3) != 0;
}

hd_status p2p_blend_sites(const hd_sites_ctx *ctx)
{
    const prompt_to_prompt *p = ctx->params;
    if (!p2p_blends_words(p)) return HD_OK;
    for (int64_t i = 0; i < ctx->count; i++)
        if (p2p_blend_reads(p, ctx->site[i])) return HD_OK;
    const hd_json *blend = hd_json_get(ctx->node, "local_blend");
    const hd_json *factor = hd_json_get(blend, "factor");
    return hd_json_fail(factor ? factor : blend, HD_ERR_ARGUMENT,
                        "%s %lld: no cross attention of the down and up blocks where this "
                        "processor acts is so far below the latent",
                        factor ? "is" : "lacks \"factor\", which is then",
                        (long long)p->blend.factor);
}

// Sums the maps of one branch over the sites into map [tokens]; false where there are none.
static bool word_map_of(const hd_beside_ctx *ctx, const char *branch, int word, float *map,
                        int64_t tokens)
{
    const prompt_to_prompt *p = ctx->params;
    bool any = false;
    memset(map, 0, (size_t)tokens * sizeof *map);
    const hd_site *site;
    for (int64_t i = 0; (site = hd_beside_site(ctx, i)) != NULL; i++) {
        if (!p2p_blend_reads(p, site) || site->tokens != tokens) continue;
        const float *state = hd_beside_site_state(ctx, i, branch, HD_ROLE_COND);
        for (int64_t t = 0; state && t < tokens; t++)
            map[t] += state[t * P2P_INDICATORS + word];
        any |= state != NULL;
    }
    return any;
}

void p2p_pool_max(float *out, const float *in, int64_t h, int64_t w, int64_t pool)
{
    const int64_t reach = pool / 2;
    for (int64_t y = 0; y < h; y++)
        for (int64_t x = 0; x < w; x++) {
            float most = in[y * w + x];
            for (int64_t b = y - reach; b <= y + reach; b++)
                for (int64_t a = x - reach; a <= x + reach; a++)
                    if (b >= 0 && b < h && a >= 0 && a < w && in[b * w + a] > most)
                        most = in[b * w + a];
            out[y * w + x] = most;
        }
}

void p2p_add_to_mask(uint8_t *mask, int64_t height, int64_t width, const float *map, int64_t h,
                     int64_t w, float threshold, bool take_away)
{
    float most = 0.0f;
    for (int64_t i = 0; i < h * w; i++)
        if (map[i] > most) most = map[i];
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++) {
            const float value = map[y * h / height * w + x * w / width];
            const bool above = most > 0.0f && value / most > threshold;
            uint8_t *m = &mask[y * width + x];
            *m = take_away ? *m && !above : *m || above;
        }
}

// The latent's size at the blend's factor, from one of its sites.
static bool map_size(const hd_beside_ctx *ctx, int64_t *h, int64_t *w)
{
    const prompt_to_prompt *p = ctx->params;
    const int64_t f = p->blend.factor;
    *h = (ctx->height + f - 1) / f, *w = (ctx->width + f - 1) / f;
    const hd_site *site;
    for (int64_t i = 0; (site = hd_beside_site(ctx, i)) != NULL; i++)
        if (p2p_blend_reads(p, site) && site->tokens == *h * *w) return true;
    return false;
}

static hd_status words_mask(const hd_beside_ctx *ctx, const char *target, uint8_t *mask)
{
    const prompt_to_prompt *p = ctx->params;
    int64_t h, w;
    HD_ENSURE(map_size(ctx, &h, &w));
    float *map = malloc((size_t)(2 * h * w) * sizeof *map);
    if (!map) return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for the word maps");
    const char *const branch[2] = {p->source, target};
    for (int b = 0; b < 2; b++) {
        if (!word_map_of(ctx, branch[b], 0, map, h * w)) continue;
        p2p_pool_max(map + h * w, map, h, w, p->blend.pool);
        p2p_add_to_mask(mask, ctx->height, ctx->width, map + h * w, h, w, p->blend.threshold[0],
                        false);
    }
    for (int b = 0; b < 2; b++)
        if (word_map_of(ctx, branch[b], 1, map, h * w))
            p2p_add_to_mask(mask, ctx->height, ctx->width, map, h, w, p->blend.threshold[1], true);
    free(map);
    return HD_OK;
}

// A select, not a sum of products: where the mask is 1 the target keeps its bits.
static hd_status blend_target(const hd_beside_ctx *ctx, const char *target, uint8_t *mask)
{
    const prompt_to_prompt *p = ctx->params;
    hd_beside_branch *source = hd_beside(ctx, p->source), *edited = hd_beside(ctx, target);
    const int64_t places = ctx->height * ctx->width;
    memset(mask, 0, (size_t)places);
    const bool words = p2p_blends_words(p);
    if (words) HD_TRY(words_mask(ctx, target, mask));
    for (int64_t i = 0; p->mask && i < places; i++) {
        const bool user = p->mask[i] > 0.5f;
        mask[i] = !words ? user : p->mask_op == P2P_MASK_AND ? mask[i] && user : mask[i] || user;
    }
    for (int64_t c = 0; c < ctx->channels; c++)
        for (int64_t i = 0; i < places; i++)
            if (!mask[i]) edited->latent[c * places + i] = source->latent[c * places + i];
    return HD_OK;
}

hd_status p2p_blend_latents(const hd_beside_ctx *ctx)
{
    const prompt_to_prompt *p = ctx->params;
    if (ctx->when != HD_LATENT_AFTER_STEP || (!p->blend.on && !p->mask)) return HD_OK;
    if (ctx->step.index < p->blend.start) return HD_OK;
    uint8_t *mask = malloc((size_t)(ctx->height * ctx->width));
    if (!mask) return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for the mask");
    hd_status status = HD_OK;
    for (int64_t i = 0; i < p->targets && status == HD_OK; i++)
        status = blend_target(ctx, p->target[i].branch, mask);
    free(mask);
    return status;
}
