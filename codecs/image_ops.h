/* codecs/image_ops.h: pictures to the numbers a model works on and back, and other sizes.
 *
 * Roundings are those of diffusers' VaeImageProcessor and Pillow, so that a picture that goes in or
 * comes out is the same to the last bit. */
#ifndef HD_CODECS_IMAGE_OPS_H
#define HD_CODECS_IMAGE_OPS_H

#include "codecs/image.h"

HD_BEGIN_DECLS

/* x [height, width, 3] = 2 * (rgb / 255) - 1, all in f32. */
void hd_image_to_f32(float *x, const hd_image *image);

/* rgb = round(255 * clamp(x / 2 + 0.5, 0, 1)), halves to even; NaN becomes 0. x [height, width, 3],
 * image of that size. */
void hd_image_from_f32(hd_image *image, const float *x);

/* `in` at another size, Lanczos over three lobes as Pillow computes it: fixed point, along the rows
 * first (Pillow 13 begins with the columns when a picture gets wider and less high). The caller
 * frees *out, which is written on success only. */
HD_CHECKED hd_status hd_image_resize(hd_image *out, const hd_image *in, int width, int height);

/* Every pixel as a square of factor x factor, factor >= 1: small pictures for the eye. */
HD_CHECKED hd_status hd_image_enlarge(hd_image *out, const hd_image *in, int factor);

HD_END_DECLS
#endif
