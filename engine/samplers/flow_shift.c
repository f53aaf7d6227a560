/* engine/samplers/flow_shift.c: moving the levels of a flow model towards noise: by a constant, by
 * the size of the picture (Esser et al., "Scaling Rectified Flow Transformers", section 5.3.2), or
 * so that they end at a given level. */
#include "engine/samplers/schedule.h"

hd_status hd_flow_mu(const hd_sampler *s, double *mu)
{
    const hd_sampler_config *c = &s->config;
    if (s->options.image_tokens < 1)
        return hd_sampler_refuse(s, "use_dynamic_shifting needs the number of tokens of a picture");
    double slope =
        (c->max_shift - c->base_shift) / (double)(c->max_image_seq_len - c->base_image_seq_len);
    *mu = (double)s->options.image_tokens * slope +
          (c->base_shift - slope * (double)c->base_image_seq_len);
    return HD_OK;
}

double hd_flow_shift(const hd_sampler *s, double shift, double mu, double sigma)
{
    const hd_sampler_config *c = &s->config;
    if (!c->use_dynamic_shifting) return shift * sigma / (1 + (shift - 1) * sigma);
    double m = c->time_shift_type == HD_SHIFT_LINEAR ? mu : exp(mu);
    return m / (m + (1 / sigma - 1));
}

void hd_flow_stretch(const hd_sampler *s, double *sigmas)
{
    double terminal = s->config.shift_terminal;
    if (isnan(terminal) || terminal == 0) return;
    int64_t n = s->options.steps;
    double scale = (1 - sigmas[n - 1]) / (1 - terminal);
    for (int64_t i = 0; i < n; i++)
        sigmas[i] = 1 - (1 - sigmas[i]) / scale;
}
