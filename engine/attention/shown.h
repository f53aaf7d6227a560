/* engine/attention/shown.h: what processors have to show of a finished picture: maps over its
 * pixels, each with a name. A processor fills the list in its `show` hook (hd_processor_class); the
 * pipeline draws and writes it. */
#ifndef HD_ENGINE_ATTENTION_SHOWN_H
#define HD_ENGINE_ATTENTION_SHOWN_H

#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* One map. */
typedef struct hd_shown {
    char name[64];      // "fish", "fish#2"
    char branch[24];    // whose picture it lies over
    const uint8_t *rgb; // [height, width, 3] that picture; borrowed
    float most;         // its highest value as measured
    float *value;       // [latent height, width], as measured
    float *heat;        // [height, width] of the picture, 0 .. 1
    uint8_t *mask;      // [height, width] of the picture, 0 or 1
} hd_shown;

typedef struct hd_shown_list {
    int64_t height, width;               // of the picture
    int64_t latent_height, latent_width; // of value
    const uint8_t *rgb;                  // the picture in question, while hooks are called
    int64_t count, room;
    hd_shown *item;
} hd_shown_list;

/* A new entry, its maps zero. The list owns it; *out is borrowed until the next one is added. */
HD_CHECKED hd_status hd_shown_add(hd_shown_list *list, const char *name, const char *branch,
                                  hd_shown **out);
void hd_shown_free(hd_shown_list *list); // what it holds

HD_END_DECLS
#endif
