/* codecs/png_write.c: RGB to PNG through libpng.
 *
 * Encoded in memory first: libpng leaves by longjmp, and a file is only begun when nothing but the
 * disk can fail any more. The setjmp rules are those of png_read.c. */
#include "codecs/png.h"

#include <png.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "base/output.h"

typedef struct writer {
    const hd_image *image;
    const hd_png_text *texts;
    int text_count;
    png_structp png;
    png_infop info;
    uint8_t *data; // what was encoded so far
    size_t bytes, room;
    hd_status status;
    bool no_memory; // an allocation of libpng's failed
} writer;

static void writer_error(png_structp png, png_const_charp text)
{
    writer *w = png_get_error_ptr(png);
    if (w->status == HD_OK && w->no_memory)
        w->status = hd_fail(HD_ERR_NOMEM, "PNG: no memory to write one");
    if (w->status == HD_OK) w->status = hd_fail(HD_ERR_ARGUMENT, "PNG: %s", text);
    png_longjmp(png, 1);
}

// A picture or text that libpng would change or leave out is not written at all. It may be called
// from within zlib, so it does not jump.
static void writer_warning(png_structp png, png_const_charp text)
{
    writer *w = png_get_error_ptr(png);
    if (w->status == HD_OK && !w->no_memory) w->status = hd_fail(HD_ERR_ARGUMENT, "PNG: %s", text);
}

static png_voidp writer_malloc(png_structp png, png_alloc_size_t bytes)
{
    writer *w = png_get_mem_ptr(png);
    void *memory = malloc(bytes);
    if (!memory) w->no_memory = true;
    return memory;
}

static void writer_free(png_structp png, png_voidp memory)
{
    (void)png;
    free(memory);
}

static void writer_append(png_structp png, png_bytep from, size_t count)
{
    writer *w = png_get_io_ptr(png);
    if (count > w->room - w->bytes) {
        size_t room = 2 * w->room > w->bytes + count ? 2 * w->room : w->bytes + count;
        uint8_t *data = realloc(w->data, room);
        if (!data) {
            w->status = hd_fail(HD_ERR_NOMEM, "PNG: no memory for a file of %dx%d pixels",
                                w->image->width, w->image->height);
            png_error(png, "memory");
        }
        w->data = data;
        w->room = room;
    }
    memcpy(w->data + w->bytes, from, count);
    w->bytes += count;
}

static void writer_flush(png_structp png)
{
    (void)png;
}

static bool is_ascii(const char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text >= 0x80) return false;
    return true;
}

static void set_text(writer *w, const hd_png_text *text)
{
    bool ascii = is_ascii(text->text);
    png_text item = {
        .compression = ascii ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE,
        .key = (char *)text->key,
        .text = (char *)text->text,
        .text_length = ascii ? strlen(text->text) : 0,
        .itxt_length = ascii ? 0 : strlen(text->text),
    };
    png_set_text(w->png, w->info, &item, 1);
}

static bool encode(writer *w)
{
    if (setjmp(png_jmpbuf(w->png))) return false;
    png_set_IHDR(w->png, w->info, (png_uint_32)w->image->width, (png_uint_32)w->image->height, 8,
                 PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT,
                 PNG_FILTER_TYPE_DEFAULT);
    png_set_filter(w->png, PNG_FILTER_TYPE_BASE, PNG_ALL_FILTERS);
    png_set_compression_level(w->png, 6);
    png_set_compression_strategy(w->png, Z_FILTERED);
    png_set_compression_mem_level(w->png, 8);
    png_set_compression_window_bits(w->png, 15);
    for (int i = 0; i < w->text_count; i++)
        set_text(w, &w->texts[i]);
    png_write_info(w->png, w->info);
    size_t stride = (size_t)w->image->width * 3;
    for (int y = 0; y < w->image->height; y++)
        png_write_row(w->png, w->image->rgb + (size_t)y * stride);
    png_write_end(w->png, NULL);
    return true;
}

hd_status hd_png_encode(void **out, size_t *out_bytes, const hd_image *image,
                        const hd_png_text *texts, int text_count)
{
    writer w = {.image = image, .texts = texts, .text_count = text_count};
    w.png = png_create_write_struct_2(PNG_LIBPNG_VER_STRING, &w, writer_error, writer_warning, &w,
                                      writer_malloc, writer_free);
    if (w.png) w.info = png_create_info_struct(w.png);
    if (!w.info) {
        png_destroy_write_struct(&w.png, NULL);
        return hd_fail(HD_ERR_NOMEM, "PNG: no memory to write one");
    }
    png_set_write_fn(w.png, &w, writer_append, writer_flush);
    bool done = encode(&w);
    png_destroy_write_struct(&w.png, &w.info);
    if (!done || w.status != HD_OK) {
        free(w.data);
        return w.status;
    }
    *out = w.data;
    *out_bytes = w.bytes;
    return HD_OK;
}

hd_status hd_png_write(const char *path, const hd_image *image, const hd_png_text *texts,
                       int text_count)
{
    void *data = NULL;
    size_t bytes = 0;
    hd_output *output = NULL;
    hd_status status = hd_png_encode(&data, &bytes, image, texts, text_count);
    if (status != HD_OK) return hd_note(status, "while writing %s", path);
    status = hd_output_open(&output, path);
    if (status == HD_OK) status = hd_output_write(output, data, bytes);
    free(data);
    if (status == HD_OK) return hd_output_commit(output);
    hd_output_discard(output);
    return status;
}
