/* codecs/canvas_font.h: the strokes of printable ASCII for pictures without a font library.
 *
 * A glyph is drawn on 5 columns (0 to 4) and 9 rows (0 ascender, 6 base line, 8 descender): pairs
 * of digits are points x y, joined by lines; a space lifts the pen; a point alone is a dot. */
#ifndef HD_CODECS_CANVAS_FONT_H
#define HD_CODECS_CANVAS_FONT_H

/* The strokes of a character, "" for a space; an empty box for what there is no glyph of. */
const char *hd_canvas_glyph(char character);

#endif
