/* tests/fuzz/fuzz_png.c: any bytes are a picture or an error, and a picture that was read can be
 * written and read again unchanged. Sizes are as hostile files may claim them. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/png.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

// Texts that libpng writes; others (an empty key, odd characters in it) it refuses, which is fine.
static void round_trip(const hd_png *png)
{
    void *file = NULL;
    size_t file_bytes = 0;
    if (hd_png_encode(&file, &file_bytes, &png->image, png->texts, png->text_count) != HD_OK)
        return;
    hd_png again = {0};
    if (hd_png_decode(&again, file, file_bytes, "again") != HD_OK) abort();
    if (again.image.width != png->image.width || again.image.height != png->image.height) abort();
    if (memcmp(again.image.rgb, png->image.rgb, hd_image_bytes(&png->image)) != 0) abort();
    hd_png_free(&again);
    free(file);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    hd_png png = {0};
    if (hd_png_decode(&png, data, bytes, "fuzz") != HD_OK) return 0;
    if (hd_image_bytes(&png.image) < (1u << 16)) round_trip(&png);
    hd_png_free(&png);
    return 0;
}
