/* codecs/canvas.h: lines, discs and short texts, drawn as SVG or into a picture. */
#ifndef HD_CODECS_CANVAS_H
#define HD_CODECS_CANVAS_H

#include "codecs/image.h"

HD_BEGIN_DECLS

typedef struct hd_canvas hd_canvas;

typedef enum hd_text_anchor { HD_TEXT_LEFT, HD_TEXT_MIDDLE, HD_TEXT_RIGHT } hd_text_anchor;

typedef struct hd_color {
    uint8_t r, g, b;
} hd_color;

/* White, in pixels, origin at the top left. svg: SVG, else a picture. The caller owns *out;
 * hd_canvas_free(NULL) does nothing. */
HD_CHECKED hd_status hd_canvas_create(hd_canvas **out, int width, int height, bool svg);
void hd_canvas_free(hd_canvas *canvas);

void hd_canvas_line(hd_canvas *c, double x0, double y0, double x1, double y1, double width,
                    hd_color color);
void hd_canvas_disc(hd_canvas *c, double x, double y, double radius, hd_color color);
/* ASCII, `size` pixels high from the ascender to the descender; y is the base line. */
void hd_canvas_text(hd_canvas *c, double x, double y, double size, hd_text_anchor anchor,
                    hd_color color, const char *text);

/* An RGB picture [height, width, 3], each of its pixels a square of factor x factor; what sticks
 * out is left out. Not in SVG. */
void hd_canvas_picture(hd_canvas *c, int x, int y, int factor, const hd_image *picture);

/* What was drawn so far; NULL: it is SVG. Borrowed. */
const hd_image *hd_canvas_image(const hd_canvas *canvas);
/* As what it was made: SVG or PNG. */
HD_CHECKED hd_status hd_canvas_write(hd_canvas *canvas, const char *path);

HD_END_DECLS
#endif
