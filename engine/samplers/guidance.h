/* engine/samplers/guidance.h: one prediction from several: classifier-free guidance (Ho and
 * Salimans, 2022) and its rescaling (Lin et al., "Common Diffusion Noise Schedules and Sample Steps
 * are Flawed", section 3.4). One row at a time; a row's result depends on nothing else. */
#ifndef HD_ENGINE_SAMPLERS_GUIDANCE_H
#define HD_ENGINE_SAMPLERS_GUIDANCE_H

#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* out = uncond + scale * (cond - uncond), all [count]; out may be either input. */
void hd_guide(float *out, const float *uncond, const float *cond, double scale, int64_t count);

/* Brings the standard deviation of a guided prediction [count] back to that of cond [count], as far
 * as `amount` says: 0 not at all, 1 all the way. In place. */
void hd_guide_rescale(float *guided, const float *cond, double amount, int64_t count);

HD_END_DECLS
#endif
