/* codecs/png_read.c: PNG to RGB through libpng.
 *
 * libpng leaves by longjmp. Everything that must survive the jump lives in one `reader` whose
 * address does not change, and the function that calls setjmp has no variables of its own. */
#include "codecs/png.h"

#include <errno.h>
#include <png.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TEXT_MAX_BYTES  (4u << 20) // also what a compressed text may unfold to
#define TEXTS_MAX_COUNT 64
#define CHUNKS_MAX      128        // ancillary chunks that libpng keeps
#define PIECE_MAX_BYTES (8u << 20) // of libpng's memory: a chunk, a row, a text

typedef struct reader {
    const char *name; // in messages
    FILE *file;       // or, when NULL,
    const uint8_t *data;
    size_t bytes, used;
    png_structp png;
    png_infop info;
    hd_png *out;
    hd_status status; // what went wrong, HD_OK while nothing did
    bool no_memory;   // an allocation failed: libpng stops, or leaves out a chunk
} reader;

// Keeps the first failure: what libpng says afterwards is a consequence.
static void reader_error(png_structp png, png_const_charp text)
{
    reader *r = png_get_error_ptr(png);
    if (r->status == HD_OK && r->no_memory)
        r->status = hd_fail(HD_ERR_NOMEM, "%s: no memory to read it", r->name);
    if (r->status == HD_OK)
        r->status = hd_fail(HD_ERR_FORMAT, "%s: damaged PNG: %s", r->name, text);
    png_longjmp(png, 1);
}

// Warnings are about chunks that we do not need.
static void reader_warning(png_structp png, png_const_charp text)
{
    (void)png;
    (void)text;
}

// libpng reserves what the header of a chunk claims, its own limit being a mere warning.
static png_voidp reader_malloc(png_structp png, png_alloc_size_t bytes)
{
    reader *r = png_get_mem_ptr(png);
    if (bytes > PIECE_MAX_BYTES) return NULL;
    void *memory = malloc(bytes);
    if (!memory) r->no_memory = true;
    return memory;
}

static void reader_free(png_structp png, png_voidp memory)
{
    (void)png;
    free(memory);
}

static void reader_fetch(png_structp png, png_bytep to, size_t count)
{
    reader *r = png_get_io_ptr(png);
    size_t got = 0;
    if (r->file) {
        got = fread(to, 1, count, r->file);
        if (got < count && ferror(r->file)) {
            r->status = hd_fail(HD_ERR_IO, "%s: cannot be read: %s", r->name, strerror(errno));
            png_error(png, "read");
        }
    } else {
        got = r->bytes - r->used < count ? r->bytes - r->used : count;
        if (got > 0) memcpy(to, r->data + r->used, got);
    }
    r->used += got;
    if (got == count) return;
    r->status = hd_fail(HD_ERR_FORMAT,
                        "%s: the PNG is cut short, it ends after %zu bytes; fetch or save it again",
                        r->name, r->used);
    png_error(png, "read");
}

bool hd_png_signature(const void *data, size_t bytes)
{
    static const uint8_t signature[8] = {0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'};
    return bytes >= sizeof signature && memcmp(data, signature, sizeof signature) == 0;
}

// libpng would notice too, but a JPEG called .png is common and deserves its own words.
static void check_signature(reader *r)
{
    uint8_t head[8];
    reader_fetch(r->png, head, sizeof head);
    if (!hd_png_signature(head, sizeof head)) {
        r->status = hd_fail(HD_ERR_FORMAT, "%s: not a PNG file; convert it to PNG first", r->name);
        png_error(r->png, "signature");
    }
    png_set_sig_bytes(r->png, sizeof head);
}

static void set_limits(png_structp png)
{
    // The size is judged by hd_image_create, which can say what it was.
    png_set_user_limits(png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
    png_set_chunk_malloc_max(png, TEXT_MAX_BYTES);
    png_set_chunk_cache_max(png, CHUNKS_MAX);
}

// Every colour type to 8-bit RGB. Alpha is dropped, also that which transparent colours turn into.
static void set_transforms(png_structp png)
{
    png_set_expand(png);
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
}

static void read_pixels(reader *r)
{
    hd_image *image = &r->out->image;
    r->status = hd_image_create(image, png_get_image_width(r->png, r->info),
                                png_get_image_height(r->png, r->info), r->name);
    if (r->status != HD_OK) png_error(r->png, "size");
    set_transforms(r->png);
    int passes = png_set_interlace_handling(r->png);
    png_read_update_info(r->png, r->info);
    size_t stride = (size_t)image->width * 3;
    if (png_get_rowbytes(r->png, r->info) != stride) png_error(r->png, "unexpected row size");
    memset(image->rgb, 0, hd_image_bytes(image)); // an interlaced pass reads the row it fills
    for (int pass = 0; pass < passes; pass++)
        for (int y = 0; y < image->height; y++)
            png_read_row(r->png, image->rgb + (size_t)y * stride, NULL);
    png_read_end(r->png, r->info);
}

// False when a jump ended it; r->status says why.
static bool decode(reader *r)
{
    if (setjmp(png_jmpbuf(r->png))) return false;
    set_limits(r->png);
    check_signature(r);
    png_read_info(r->png, r->info);
    read_pixels(r);
    return true;
}

// Bytes of a well-formed character of 2 to 4 bytes at `s`, 0 when it is none. Overlong forms,
// surrogates and what lies beyond U+10FFFF are none.
static int utf8_sequence(const uint8_t *s)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    if (s[0] < 0xc2 || s[0] > 0xf4) return 0;
    int count = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    uint32_t code = s[0] & (0x7fu >> count);
    for (int i = 1; i < count; i++) {
        if ((s[i] & 0xc0) != 0x80) return 0; // the closing 0 too
        code = code << 6 | (s[i] & 0x3f);
    }
    bool surrogate = code >= 0xd800 && code < 0xe000;
    return code < least[count] || code > 0x10ffff || surrogate ? 0 : count;
}

static bool is_utf8(const char *text)
{
    for (const uint8_t *s = (const uint8_t *)text; *s;) {
        int count = *s < 0x80 ? 1 : utf8_sequence(s);
        if (count == 0) return false;
        s += count;
    }
    return true;
}

// tEXt and zTXt are Latin-1. The caller frees the copy; NULL without memory.
static char *latin1_to_utf8(const char *text)
{
    char *copy = malloc(2 * strlen(text) + 1);
    if (!copy) return NULL;
    char *to = copy;
    for (const uint8_t *s = (const uint8_t *)text; *s; s++) {
        if (*s < 0x80) {
            *to++ = (char)*s;
        } else {
            *to++ = (char)(0xc0 | *s >> 6);
            *to++ = (char)(0x80 | (*s & 0x3f));
        }
    }
    *to = 0;
    return copy;
}

static hd_status add_text(hd_png *out, const png_text *found)
{
    bool international = found->compression == PNG_ITXT_COMPRESSION_NONE ||
                         found->compression == PNG_ITXT_COMPRESSION_zTXt;
    const char *text = found->text ? found->text : "";
    if (strlen(text) > TEXT_MAX_BYTES || (international && !is_utf8(text))) return HD_OK;
    char *key = latin1_to_utf8(found->key);
    char *copy = international ? strdup(text) : latin1_to_utf8(text);
    if (!key || !copy) {
        free(key);
        free(copy);
        return hd_fail(HD_ERR_NOMEM, "no memory for the texts");
    }
    out->texts[out->text_count++] = (hd_png_text){.key = key, .text = copy};
    return HD_OK;
}

static hd_status take_texts(reader *r)
{
    png_textp found = NULL;
    int count = 0;
    png_get_text(r->png, r->info, &found, &count);
    if (count <= 0) return HD_OK;
    if (count > TEXTS_MAX_COUNT) count = TEXTS_MAX_COUNT;
    r->out->texts = calloc((size_t)count, sizeof *r->out->texts);
    if (!r->out->texts) return hd_fail(HD_ERR_NOMEM, "%s: no memory for the texts", r->name);
    for (int i = 0; i < count; i++) {
        hd_status status = add_text(r->out, &found[i]);
        if (status != HD_OK) return hd_note(status, "while reading %s", r->name);
    }
    return HD_OK;
}

static hd_status read_png(reader *r)
{
    r->png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, r, reader_error, reader_warning, r,
                                      reader_malloc, reader_free);
    if (r->png) r->info = png_create_info_struct(r->png);
    if (!r->info) {
        png_destroy_read_struct(&r->png, NULL, NULL);
        return hd_fail(HD_ERR_NOMEM, "%s: no memory to read a PNG", r->name);
    }
    png_set_read_fn(r->png, r, reader_fetch);
    hd_status status = decode(r) ? take_texts(r) : r->status;
    if (status == HD_OK && r->no_memory)
        status = hd_fail(HD_ERR_NOMEM, "%s: no memory to read its texts", r->name);
    png_destroy_read_struct(&r->png, &r->info, NULL);
    if (status != HD_OK) hd_png_free(r->out);
    return status;
}

hd_status hd_png_decode(hd_png *out, const void *data, size_t bytes, const char *name)
{
    hd_png png = {0};
    reader r = {.name = name, .data = data, .bytes = bytes, .out = &png};
    HD_TRY(read_png(&r));
    *out = png;
    return HD_OK;
}

hd_status hd_png_read(hd_png *out, const char *path)
{
    hd_png png = {0};
    reader r = {.name = path, .file = fopen(path, "rb"), .out = &png};
    if (!r.file) return hd_fail(HD_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    hd_status status = read_png(&r);
    fclose(r.file);
    if (status == HD_OK) *out = png;
    return status;
}

void hd_png_free(hd_png *png)
{
    hd_image_free(&png->image);
    for (int i = 0; i < png->text_count; i++) {
        free((char *)png->texts[i].key);
        free((char *)png->texts[i].text);
    }
    free(png->texts);
    *png = (hd_png){0};
}

const char *hd_png_find_text(const hd_png *png, const char *key)
{
    for (int i = 0; i < png->text_count; i++)
        if (strcmp(png->texts[i].key, key) == 0) return png->texts[i].text;
    return NULL;
}
