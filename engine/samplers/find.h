/* engine/samplers/find.h: which sampler a name or a model's folder means; for this folder. */
#ifndef HD_ENGINE_SAMPLERS_FIND_H
#define HD_ENGINE_SAMPLERS_FIND_H

#include "engine/samplers/class.h"

HD_BEGIN_DECLS

/* *named: `name` is one of our names (its settings apply), not a class. */
HD_CHECKED hd_status hd_sampler_find(const char *name, const hd_json *config,
                                     const hd_sampler_entry **out, bool *named);

HD_END_DECLS
#endif
