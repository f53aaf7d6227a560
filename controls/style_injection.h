/* controls/style_injection.h: what tests of StyleID's parts use. For controls/style_injection.c
 * alone. */
#ifndef HD_CONTROLS_STYLE_INJECTION_H
#define HD_CONTROLS_STYLE_INJECTION_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

/* out = content with the mean and deviation of style in every channel, as far as `strength` says: 0
 * not at all. All [channels, values]; out may be content. Deviations are those of a sample (n - 1).
 * Equal statistics change no bit; a constant content gets the mean. */
void style_adain(float *out, const float *content, const float *style, int64_t channels,
                 int64_t values, double strength);

HD_END_DECLS
#endif
