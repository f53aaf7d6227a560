/* codecs/png.h: pictures from and to PNG files, with the texts they carry. Needs libpng.
 *
 * Every legal PNG is read to 8-bit RGB as Pillow's convert("RGB") does it, since that is what the
 * pipelines we are compared with see: alpha and transparent colours are dropped (not blended), of
 * 16 bits the upper 8 are kept, gamma and colour profiles are ignored. One difference: Pillow turns
 * 16-bit grey above 255 into white, here it keeps its upper 8 bits like any other. */
#ifndef HD_CODECS_PNG_H
#define HD_CODECS_PNG_H

#include "codecs/image.h"

HD_BEGIN_DECLS

/* One text of a picture. key: 1 to 79 characters of printable ASCII; text: UTF-8. */
typedef struct hd_png_text {
    const char *key;
    const char *text;
} hd_png_text;

typedef struct hd_png {
    hd_image image;
    hd_png_text *texts; // owned; tEXt, zTXt and iTXt in the order of the file, all as UTF-8
    int text_count;
} hd_png;

/* Reads a whole file. HD_ERR_IO: cannot be read; HD_ERR_FORMAT: no PNG, damaged or cut short;
 * HD_ERR_ARGUMENT: larger than hd_image allows. Texts that are damaged, too long (4 MiB each) or
 * not Unicode are left out. *out is written on success only; freed by hd_png_free. */
HD_CHECKED hd_status hd_png_read(hd_png *out, const char *path);
/* The same from memory; `name` stands for the file in messages. */
HD_CHECKED hd_status hd_png_decode(hd_png *out, const void *data, size_t bytes, const char *name);
void hd_png_free(hd_png *png);

/* The first text under `key`, borrowed, or NULL. */
const char *hd_png_find_text(const hd_png *png, const char *key);
/* Whether these are the first bytes of a PNG; 8 tell. */
bool hd_png_signature(const void *data, size_t bytes);

/* Writes 8-bit RGB. The bytes depend on nothing but the arguments (and zlib's version): no time
 * stamp, fixed filters and effort. A text of plain ASCII becomes tEXt, any other iTXt, both before
 * the pixels. The file is complete or not written at all. */
HD_CHECKED hd_status hd_png_write(const char *path, const hd_image *image, const hd_png_text *texts,
                                  int text_count);
/* The same into memory; the caller frees *out with free. */
HD_CHECKED hd_status hd_png_encode(void **out, size_t *out_bytes, const hd_image *image,
                                   const hd_png_text *texts, int text_count);

HD_END_DECLS
#endif
