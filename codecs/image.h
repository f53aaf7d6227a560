/* codecs/image.h: a picture in memory as the outside world knows it: 8 bits of red, green, blue.
 *
 * Needs nothing. rgb is [height, width, 3], rows top to bottom, without gaps. */
#ifndef HD_CODECS_IMAGE_H
#define HD_CODECS_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

/* Pictures beyond these are refused: a file of a few hundred bytes can claim any size. */
#define HD_IMAGE_MAX_SIDE   16384
#define HD_IMAGE_MAX_PIXELS (64ll << 20)

typedef struct hd_image {
    int width, height;
    uint8_t *rgb; // owned
} hd_image;

/* Contents undefined. `what` opens the message: HD_ERR_ARGUMENT for a size beyond the limits above
 * (or below 1), HD_ERR_NOMEM. *out is written on success only; freed by hd_image_free. */
HD_CHECKED hd_status hd_image_create(hd_image *out, int64_t width, int64_t height,
                                     const char *what);
/* Leaves an empty image, which may be freed again. */
void hd_image_free(hd_image *image);

static inline size_t hd_image_bytes(const hd_image *image)
{
    return (size_t)image->width * (size_t)image->height * 3;
}

HD_END_DECLS
#endif
