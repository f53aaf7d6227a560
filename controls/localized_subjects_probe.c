/* controls/localized_subjects_probe.c: the regions of subjects, read from the attention while the
 * picture is drawn.
 *
 * As AttenCraft's reader (Shentu et al., arXiv 2405.17965): the subjects' columns of the cross
 * attention at one call, enlarged, squared, brought to 0 .. 1; then x <- S x a few times, S the
 * mean self attention, here one product at each of the calls that follow, with x as an indicator
 * channel, so that no map is made; a place belongs to the subject whose map is above all others by
 * a margin. S keeps rows that sum to 1 (theirs is brought to 0 .. 1 and overflows half precision).
 */
#include <string.h>

#include "controls/attention_masks.h"
#include "controls/localized_subjects.h"

typedef struct reader {
    int64_t sites; // summed so far at this call
    bool done;
} reader;

static int64_t ceil_div(int64_t a, int64_t b)
{
    return (a + b - 1) / b;
}

static int64_t cross_places(const localized *p)
{
    return ceil_div(p->height, p->read.cross_factor) * ceil_div(p->width, p->read.cross_factor);
}

void localized_region_size(const localized *p, int64_t *h, int64_t *w)
{
    *h = ceil_div(p->height, p->read.self_factor), *w = ceil_div(p->width, p->read.self_factor);
}

static int64_t self_places(const localized *p)
{
    int64_t h, w;
    localized_region_size(p, &h, &w);
    return h * w;
}

static int64_t most_places(const localized *p)
{
    return cross_places(p) > self_places(p) ? cross_places(p) : self_places(p);
}

size_t localized_state_bytes(const localized *p)
{
    const int64_t floats = p->count * (self_places(p) + most_places(p));
    return sizeof(reader) + (size_t)floats * sizeof(float);
}

// The maps as they are now [count, self places], and behind them the sum of this call's.
static float *maps_of(void *state)
{
    return (float *)((char *)state + sizeof(reader));
}

static float *sum_of(const localized *p, void *state)
{
    return maps_of(state) + p->count * self_places(p);
}

const float *localized_regions(const localized *p, const void *state)
{
    const reader *r = state;
    return p->localize == LOCALIZED_PROBE && r && r->done ? maps_of((void *)state) : NULL;
}

bool localized_reads(const localized *p, const hd_site *site, int64_t step)
{
    const localized_probe *r = &p->read;
    if (p->localize != LOCALIZED_PROBE) return false;
    if (site->kind == HD_SITE_CROSS)
        return site->factor == r->cross_factor && site->tokens == cross_places(p) &&
               (step < 0 || step == r->step);
    return site->kind == HD_SITE_SELF && site->factor == r->self_factor && r->power > 0 &&
           site->tokens == self_places(p) &&
           (step < 0 || (step > r->step && step <= r->step + r->power));
}

// The row whose attention is read.
static bool is_read(const hd_hook_ctx *ctx, int64_t row)
{
    const hd_row *r = &ctx->call->forward->rows.row[row];
    return ctx->active[row] && ctx->picture_state[row] && strcmp(r->branch, "main") == 0 &&
           strcmp(r->role, hd_role_names[HD_ROLE_COND]) == 0;
}

hd_status localized_probe_hook(const hd_hook_ctx *ctx, hd_tensor indicator)
{
    const localized *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    const int64_t step = call->forward->step.index;
    if (!localized_reads(p, &call->site, step)) return HD_OK;
    const bool words = call->site.kind == HD_SITE_CROSS;
    const uint8_t *group = p->group[step < p->plain_calls];
    const int64_t columns = words ? p->columns : self_places(p);
    for (int64_t row = 0; row < indicator.dim[0]; row++) {
        float *to = (float *)indicator.data + row * indicator.stride[0];
        if (!is_read(ctx, row)) continue;
        const float *maps = maps_of(ctx->picture_state[row]);
        for (int64_t j = 0; j < columns; j++)
            for (int64_t i = 0; i < p->count; i++)
                to[j * indicator.stride[1] + i] =
                    words ? (float)(group[j] == i + 1) : maps[i * columns + j];
    }
    return HD_OK;
}

hd_status localized_output(const hd_hook_ctx *ctx, hd_attention_output *output)
{
    const localized *p = ctx->params;
    const hd_attention_call *call = ctx->call;
    if (!localized_reads(p, &call->site, call->forward->step.index)) return HD_OK;
    const hd_tensor seen = output->probed;
    for (int64_t row = 0; row < seen.dim[0]; row++) {
        if (!is_read(ctx, row)) continue;
        reader *r = ctx->picture_state[row];
        float *sum = sum_of(p, r);
        for (int64_t h = 0; h < seen.dim[1]; h++)
            for (int64_t t = 0; t < seen.dim[2]; t++)
                for (int64_t i = 0; i < p->count; i++)
                    sum[i * seen.dim[2] + t] +=
                        ((const float *)seen.data)[row * seen.stride[0] + h * seen.stride[1] +
                                                   t * seen.stride[2] + i] /
                        (float)seen.dim[1];
        r->sites++;
    }
    return HD_OK;
}

static void normalise(float *x, int64_t count)
{
    float least, most;
    masks_range(x, count, &least, &most);
    masks_scale(x, count, least, most);
}

void localized_decide(float *maps, int64_t count, int64_t places, float margin)
{
    for (int64_t i = 0; i < count; i++)
        normalise(maps + i * places, places);
    for (int64_t t = 0; t < places; t++) {
        float value[LOCALIZED_MOST_SUBJECTS];
        for (int64_t i = 0; i < count; i++)
            value[i] = maps[i * places + t];
        const int winner = masks_class(value, (int)count, margin);
        for (int64_t i = 0; i < count; i++)
            maps[i * places + t] = i == winner ? 1.0f : 0.0f;
    }
}

// The words' maps of the cross attention as the maps that are to be spread.
static void take_words(const localized *p, void *state)
{
    int64_t h, w;
    const int64_t places = self_places(p), f = p->read.cross_factor;
    localized_region_size(p, &h, &w);
    for (int64_t i = 0; i < p->count; i++) {
        float *map = maps_of(state) + i * places;
        masks_bicubic(map, h, w, sum_of(p, state) + i * cross_places(p), ceil_div(p->height, f),
                      ceil_div(p->width, f));
        for (int64_t t = 0; t < places; t++)
            map[t] *= map[t];
        normalise(map, places);
    }
}

// Refused before anything has run: the reader needs a site of each kind.
static hd_status check_sites(const hd_beside_ctx *ctx)
{
    const localized *p = ctx->params;
    const hd_site *site;
    bool cross = false, self = p->read.power == 0;
    for (int64_t i = 0; (site = hd_beside_site(ctx, i)) != NULL; i++) {
        if (!localized_reads(p, site, -1)) continue;
        cross |= site->kind == HD_SITE_CROSS;
        self |= site->kind == HD_SITE_SELF;
    }
    if (cross && self) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT,
                   "probe.%s is %lld, but no %s attention that it acts at is so "
                   "far below the latent",
                   cross ? "self_factor" : "cross_factor",
                   (long long)(cross ? p->read.self_factor : p->read.cross_factor),
                   cross ? "self" : "cross");
}

hd_status localized_latent(const hd_beside_ctx *ctx)
{
    const localized *p = ctx->params;
    const localized_probe *read = &p->read;
    if (p->localize != LOCALIZED_PROBE) return HD_OK;
    if (ctx->when == HD_LATENT_START) return check_sites(ctx);
    const int64_t step = ctx->step.index;
    if (ctx->when != HD_LATENT_AFTER_STEP || step < read->step || step > read->step + read->power)
        return HD_OK;
    reader *r = ctx->state;
    const int64_t places = self_places(p);
    float *sum = sum_of(p, r);
    for (int64_t i = 0; i < p->count * most_places(p) && r->sites > 0; i++)
        sum[i] /= (float)r->sites;
    if (step == read->step)
        take_words(p, r);
    else
        memcpy(maps_of(r), sum, (size_t)(p->count * places) * sizeof *sum);
    memset(sum, 0, (size_t)(p->count * most_places(p)) * sizeof *sum);
    r->sites = 0;
    if (step < read->step + read->power) return HD_OK;
    localized_decide(maps_of(r), p->count, places, read->margin);
    r->done = true;
    return HD_OK;
}
