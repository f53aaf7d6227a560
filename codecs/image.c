/* codecs/image.c: memory of a picture, and the sizes it may have. */
#include "codecs/image.h"

#include <inttypes.h>
#include <stdlib.h>

hd_status hd_image_create(hd_image *out, int64_t width, int64_t height, const char *what)
{
    if (width < 1 || height < 1 || width > HD_IMAGE_MAX_SIDE || height > HD_IMAGE_MAX_SIDE ||
        width * height > HD_IMAGE_MAX_PIXELS)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s: the picture is %" PRId64 "x%" PRId64
                       ", may have up to %d pixels on a side and %lld in all; make it smaller",
                       what, width, height, HD_IMAGE_MAX_SIDE, HD_IMAGE_MAX_PIXELS);
    uint8_t *rgb = malloc((size_t)width * (size_t)height * 3);
    if (!rgb)
        return hd_fail(HD_ERR_NOMEM, "%s: no memory for a picture of %" PRId64 "x%" PRId64, what,
                       width, height);
    *out = (hd_image){.width = (int)width, .height = (int)height, .rgb = rgb};
    return HD_OK;
}

void hd_image_free(hd_image *image)
{
    free(image->rgb);
    *image = (hd_image){0};
}
