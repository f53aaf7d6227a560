/* codecs/canvas.c: the same few shapes for two outputs: SVG text, and pixels whose coverage is
 * taken from their distance to the shape. */
#include "codecs/canvas.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/output.h"
#include "codecs/canvas_font.h"
#include "codecs/png.h"

struct hd_canvas {
    FILE *svg; // into text; NULL: a picture
    char *text;
    size_t bytes;
    hd_image image;
};

hd_status hd_canvas_create(hd_canvas **out, int width, int height, bool svg)
{
    hd_canvas *c = calloc(1, sizeof *c);
    if (!c) return hd_fail(HD_ERR_NOMEM, "plot: no memory");
    hd_status status = HD_OK;
    if (svg) {
        c->svg = open_memstream(&c->text, &c->bytes);
        if (!c->svg) status = hd_fail(HD_ERR_NOMEM, "plot: no memory");
    } else {
        status = hd_image_create(&c->image, width, height, "plot");
    }
    if (status != HD_OK) {
        hd_canvas_free(c);
        return status;
    }
    if (svg)
        fprintf(c->svg,
                "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
                "viewBox=\"0 0 %d %d\" font-family=\"sans-serif\">\n"
                "<rect width=\"%d\" height=\"%d\" fill=\"#ffffff\"/>\n",
                width, height, width, height, width, height);
    else
        memset(c->image.rgb, 255, hd_image_bytes(&c->image));
    *out = c;
    return HD_OK;
}

void hd_canvas_free(hd_canvas *c)
{
    if (!c) return;
    if (c->svg) fclose(c->svg);
    free(c->text);
    hd_image_free(&c->image);
    free(c);
}

/* --- pixels */

static void mix(hd_image *image, int x, int y, double coverage, hd_color color)
{
    if (coverage <= 0) return;
    if (coverage > 1) coverage = 1;
    uint8_t *p = image->rgb + ((size_t)y * (size_t)image->width + (size_t)x) * 3;
    const double part[3] = {color.r, color.g, color.b};
    for (int i = 0; i < 3; i++)
        p[i] = (uint8_t)lrint(p[i] + coverage * (part[i] - p[i]));
}

static int limit(double value, int last)
{
    return value < 0 ? 0 : value > last ? last : (int)value;
}

// A line with round ends, `width` wide; a disc is one without length.
static void stroke(hd_image *image, double x0, double y0, double x1, double y1, double width,
                   hd_color color)
{
    const double reach = width / 2 + 1, dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy;
    const int left = limit(fmin(x0, x1) - reach, image->width - 1),
              right = limit(fmax(x0, x1) + reach, image->width - 1),
              top = limit(fmin(y0, y1) - reach, image->height - 1),
              bottom = limit(fmax(y0, y1) + reach, image->height - 1);
    for (int y = top; y <= bottom; y++)
        for (int x = left; x <= right; x++) {
            const double px = x + 0.5 - x0, py = y + 0.5 - y0;
            const double along = length > 0 ? fmin(1, fmax(0, (px * dx + py * dy) / length)) : 0;
            const double distance = hypot(px - along * dx, py - along * dy);
            mix(image, x, y, width / 2 + 0.5 - distance, color);
        }
}

static void draw_glyph(hd_image *image, const char *strokes, double x, double y, double unit,
                       hd_color color)
{
    const double width = unit * 0.95;
    for (; *strokes; strokes++) {
        if (*strokes == ' ') continue;
        double from_x = x + (strokes[0] - '0') * unit, from_y = y + (strokes[1] - '6') * unit;
        strokes += 2;
        if (*strokes == ' ' || !*strokes)
            stroke(image, from_x, from_y, from_x, from_y, width, color);
        while (*strokes && *strokes != ' ') {
            const double to_x = x + (strokes[0] - '0') * unit, to_y = y + (strokes[1] - '6') * unit;
            stroke(image, from_x, from_y, to_x, to_y, width, color);
            from_x = to_x, from_y = to_y;
            strokes += 2;
        }
        strokes--;
    }
}

/* --- both */

void hd_canvas_line(hd_canvas *c, double x0, double y0, double x1, double y1, double width,
                    hd_color color)
{
    if (!c->svg) {
        stroke(&c->image, x0, y0, x1, y1, width, color);
        return;
    }
    fprintf(c->svg,
            "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#%02x%02x%02x\" "
            "stroke-width=\"%.1f\" stroke-linecap=\"round\"/>\n",
            x0, y0, x1, y1, color.r, color.g, color.b, width);
}

void hd_canvas_disc(hd_canvas *c, double x, double y, double radius, hd_color color)
{
    if (!c->svg) {
        stroke(&c->image, x, y, x, y, 2 * radius, color);
        return;
    }
    fprintf(c->svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%.1f\" fill=\"#%02x%02x%02x\"/>\n", x, y,
            radius, color.r, color.g, color.b);
}

static void svg_text(FILE *to, const char *text)
{
    for (; *text; text++) {
        if (*text == '&')
            fputs("&amp;", to);
        else if (*text == '<')
            fputs("&lt;", to);
        else if (*text == '>')
            fputs("&gt;", to);
        else if ((unsigned char)*text >= ' ')
            fputc(*text, to);
    }
}

void hd_canvas_text(hd_canvas *c, double x, double y, double size, hd_text_anchor anchor,
                    hd_color color, const char *text)
{
    static const char *const anchors[] = {"start", "middle", "end"};
    if (c->svg) {
        fprintf(c->svg,
                "<text x=\"%.1f\" y=\"%.1f\" font-size=\"%.1f\" text-anchor=\"%s\" "
                "fill=\"#%02x%02x%02x\">",
                x, y, size, anchors[anchor], color.r, color.g, color.b);
        svg_text(c->svg, text);
        fputs("</text>\n", c->svg);
        return;
    }
    const double unit = size / 9, step = 6 * unit;
    const double width = step * (double)strlen(text) - 2 * unit;
    x -= anchor == HD_TEXT_MIDDLE ? width / 2 : anchor == HD_TEXT_RIGHT ? width : 0;
    for (; *text; text++, x += step)
        draw_glyph(&c->image, hd_canvas_glyph(*text), x, y, unit, color);
}

void hd_canvas_picture(hd_canvas *c, int x, int y, int factor, const hd_image *picture)
{
    for (int row = 0; !c->svg && row < picture->height * factor; row++)
        for (int column = 0; column < picture->width * factor; column++) {
            if (y + row >= c->image.height || x + column >= c->image.width) continue;
            memcpy(c->image.rgb +
                       3 * ((size_t)(y + row) * (size_t)c->image.width + (size_t)(x + column)),
                   picture->rgb + 3 * ((size_t)(row / factor) * (size_t)picture->width +
                                       (size_t)(column / factor)),
                   3);
        }
}

const hd_image *hd_canvas_image(const hd_canvas *c)
{
    return c->svg ? NULL : &c->image;
}

static hd_status write_svg(hd_canvas *c, const char *path)
{
    fputs("</svg>\n", c->svg);
    const int closed = fclose(c->svg);
    c->svg = NULL;
    if (closed != 0) return hd_fail(HD_ERR_NOMEM, "plot: no memory for %s", path);
    hd_output *file;
    HD_TRY(hd_output_open(&file, path));
    hd_status status = hd_output_write(file, c->text, c->bytes);
    if (status == HD_OK) return hd_output_commit(file);
    hd_output_discard(file);
    return status;
}

hd_status hd_canvas_write(hd_canvas *c, const char *path)
{
    return c->svg ? write_svg(c, path) : hd_png_write(path, &c->image, NULL, 0);
}
