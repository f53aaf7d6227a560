/* controls/prompt_to_prompt_proximal.c: guidance whose small differences are cut off, so that what
 * the edit does not speak of stays.
 *
 * Han et al., "Improving Tuning-Free Real Image Editing with Proximal Guidance", arXiv 2306.05414:
 * the proximal operators of the l0 norm (hard) and the l1 norm (soft) on the difference of cond and
 * uncond, the threshold a quantile of its absolute values. Late in the run what was cut off is
 * drawn to the source's trajectory. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "controls/prompt_to_prompt.h"
#include "engine/samplers/guidance.h"

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

// The value below which `share` of the |d| lie, between its neighbours in rank.
static hd_status quantile(const float *d, int64_t count, double share, float *out)
{
    float *sorted = malloc((size_t)count * sizeof *sorted);
    if (!sorted) return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for a quantile");
    for (int64_t i = 0; i < count; i++)
        sorted[i] = fabsf(d[i]);
    qsort(sorted, (size_t)count, sizeof *sorted, ascending);
    const double at = share * (double)(count - 1);
    const int64_t low = (int64_t)at, high = low + 1 < count ? low + 1 : low;
    *out = sorted[low] + (float)(at - (double)low) * (sorted[high] - sorted[low]);
    free(sorted);
    return HD_OK;
}

float p2p_proximal(float d, float threshold, bool soft)
{
    const float size = fabsf(d);
    if (size <= threshold) return 0.0f;
    return soft ? copysignf(size - threshold, d) : d;
}

// Where neither the difference (in branch->guess) nor a neighbour's is kept, the latent goes back
// to the trajectory.
static void draw_back(const hd_beside_ctx *ctx, hd_beside_branch *branch, float threshold,
                      const float *way)
{
    const prompt_to_prompt *p = ctx->params;
    const int64_t h = ctx->height, w = ctx->width;
    for (int64_t c = 0; c < ctx->channels; c++)
        for (int64_t y = 0; y < h; y++)
            for (int64_t x = 0; x < w; x++) {
                bool kept = false;
                for (int64_t b = y > 0 ? y - 1 : 0; b <= y + 1 && b < h; b++)
                    for (int64_t a = x > 0 ? x - 1 : 0; a <= x + 1 && a < w; a++)
                        kept |= fabsf(branch->guess[(c * h + b) * w + a]) > threshold;
                const int64_t i = (c * h + y) * w + x;
                if (!kept) branch->latent[i] -= p->prox_recon_lr * (branch->latent[i] - way[i]);
            }
}

hd_status p2p_guide(const hd_beside_ctx *ctx)
{
    const prompt_to_prompt *p = ctx->params;
    if (p->prox == P2P_PROX_NONE || strcmp(ctx->branch, p->source) == 0) return HD_OK;
    hd_beside_branch *branch = hd_beside(ctx, ctx->branch);
    const float *cond = branch->prediction[HD_ROLE_COND];
    const float *uncond = branch->prediction[HD_ROLE_UNCOND];
    if (!uncond)
        return hd_fail(HD_ERR_ARGUMENT, "prox acts on the difference that guidance makes: give the "
                                        "run a guidance above 1");
    for (int64_t i = 0; i < ctx->values; i++)
        branch->guess[i] = cond[i] - uncond[i];
    float threshold = 0.0f;
    HD_TRY(quantile(branch->guess, ctx->values, (double)p->prox_quantile, &threshold));
    const hd_beside_branch *source = hd_beside(ctx, p->source);
    if (source->trajectory && ctx->step.timestep < (double)p->prox_recon_t)
        draw_back(ctx, branch, threshold, source->trajectory + ctx->step.index * ctx->values);
    for (int64_t i = 0; i < ctx->values; i++)
        branch->guess[i] = uncond[i] + branch->guidance * p2p_proximal(branch->guess[i], threshold,
                                                                       p->prox == P2P_PROX_SOFT);
    return HD_OK;
}
