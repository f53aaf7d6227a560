/* controls/perturbed_attention_query.c: queries that see less: their mean, or blurred on the grid
 * of the picture (Hong, "Smoothed Energy Guidance", arXiv 2408.00760, section 4). */
#include <math.h>
#include <string.h>

#include "controls/perturbed_attention.h"
#include "engine/attention/edit.h"

int64_t pag_taps(float sigma, int64_t tokens)
{
    const int64_t wide = (int64_t)fmin(ceil(6.0 * (double)sigma), 1e6);
    const int64_t taps = wide + 1 - wide % 2, most = tokens % 2 ? tokens : tokens + 1;
    if (tokens == 1) return 1;
    return taps < most ? taps : most;
}

void pag_weights(float sigma, int64_t taps, float *weight)
{
    double sum = 0;
    for (int64_t i = 0; i < taps; i++) {
        const double x = (double)(i - taps / 2) / (double)sigma;
        sum += exp(-0.5 * x * x);
    }
    for (int64_t i = 0; i < taps; i++) {
        const double x = (double)(i - taps / 2) / (double)sigma;
        weight[i] = (float)(exp(-0.5 * x * x) / sum);
    }
}

static int64_t reflected(int64_t i, int64_t count)
{
    if (i < 0) i = -i;
    return i < count ? i : 2 * (count - 1) - i;
}

// Along an axis of `count` places, `step` values apart, each of `width` values side by side.
static void blur_axis(float *to, const float *from, int64_t count, int64_t step, int64_t width,
                      const float *weight, int64_t taps)
{
    for (int64_t i = 0; i < count; i++) {
        float *y = to + i * step;
        memset(y, 0, (size_t)width * sizeof *y);
        for (int64_t t = 0; t < taps; t++) {
            const float *x = from + reflected(i + t - taps / 2, count) * step;
            for (int64_t c = 0; c < width; c++)
                y[c] += weight[t] * x[c];
        }
    }
}

void pag_blur(float *x, float *spare, int64_t height, int64_t width, int64_t channels, float sigma)
{
    const int64_t line = width * channels, across = pag_taps(sigma, width),
                  down = pag_taps(sigma, height);
    float *weight = spare + height * line;
    pag_weights(sigma, across, weight);
    for (int64_t i = 0; i < height; i++)
        blur_axis(spare + i * line, x + i * line, width, channels, channels, weight, across);
    pag_weights(sigma, down, weight);
    blur_axis(x, spare, height, line, line, weight, down);
}

static int64_t place(hd_tensor t, int64_t row, int64_t token, int64_t head)
{
    return row * t.stride[0] + token * t.stride[1] + head * t.stride[2];
}

void pag_mean_tokens(hd_tensor to, hd_tensor from, int64_t row, const pag_span *span, int spans)
{
    enum { STRETCH = 64 };
    int64_t count = 0;
    for (int s = 0; s < spans; s++)
        count += span[s].end - span[s].start;
    for (int64_t h = 0; h < from.dim[2]; h++)
        for (int64_t d = 0; d < from.dim[3]; d += STRETCH) {
            const int64_t n = from.dim[3] - d < STRETCH ? from.dim[3] - d : STRETCH;
            double sum[STRETCH] = {0};
            for (int s = 0; s < spans; s++)
                for (int64_t i = span[s].start; i < span[s].end; i++)
                    for (int64_t c = 0; c < n; c++)
                        sum[c] += (double)hd_edit_get(from, place(from, row, i, h) + d + c);
            for (int64_t c = 0; c < n; c++)
                hd_edit_put(to, place(to, row, 0, h) + d + c, (float)(sum[c] / (double)count));
        }
}

typedef struct blur_run {
    hd_tensor to, q;
    const hd_token_layout *layout;
    int64_t row;
    float sigma, *work;
} blur_run;

// Item: a head.
static hd_status blur_head(void *arg, int64_t item, int thread)
{
    const blur_run *r = arg;
    const int64_t tokens = r->q.dim[1], channels = r->q.dim[3];
    float *x = r->work + item * pag_blur_room(tokens, channels), *spare = x + tokens * channels;
    (void)thread;
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t d = 0; d < channels; d++)
            x[i * channels + d] = hd_edit_get(r->q, place(r->q, r->row, i, item) + d);
    for (int s = 0; s < r->layout->segments; s++) {
        const hd_token_segment *grid = &r->layout->segment[s];
        const int64_t frame = grid->height * grid->width;
        if (grid->kind != HD_TOKENS_GRID) continue;
        for (int64_t f = 0; f < grid->frames; f++)
            pag_blur(x + (grid->start + f * frame) * channels, spare, grid->height, grid->width,
                     channels, r->sigma);
    }
    for (int64_t i = 0; i < tokens; i++)
        for (int64_t d = 0; d < channels; d++)
            hd_edit_put(r->to, place(r->to, r->row, i, item) + d, x[i * channels + d]);
    return HD_OK;
}

hd_status pag_blur_queries(const hd_exec *ex, hd_tensor to, hd_tensor q,
                           const hd_token_layout *layout, int64_t row, float sigma, float *work)
{
    blur_run r = {to, q, layout, row, sigma, work};
    return hd_parallel_for(ex->pool, q.dim[2], blur_head, &r);
}
