/* pipelines/maps.h: what processors have to show of a picture, drawn and written where the preset's
 * "maps", "masks" and "map_values" say. */
#ifndef HD_PIPELINES_MAPS_H
#define HD_PIPELINES_MAPS_H

#include "pipelines/generation.h"

HD_BEGIN_DECLS

bool gen_maps_wanted(const hd_preset *preset);
/* Refused where no processor shows any. */
HD_CHECKED hd_status gen_check_maps(const generation *g);
/* images: by number of the branch; those that have a latent of their own are there. index: of the
 * picture in the batch, one of the group that was sampled last. */
HD_CHECKED hd_status gen_write_maps(generation *g, const hd_resolved *made, int64_t index,
                                    const hd_image images[HD_MAX_BRANCHES]);

HD_END_DECLS
#endif
