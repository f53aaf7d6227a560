/* codecs/textual_inversion.h: learned words: a file with the vectors that a token stands for in a
 * CLIP text encoder (Gal et al., "An Image is Worth One Word", arXiv 2208.01618).
 *
 * Two layouts of .safetensors: diffusers' (one tensor, named as the token) and that of the
 * Stable Diffusion web UI (`emb_params`; the token is the file's name). One vector [channels] or
 * several [n, channels]: then the token stands for all of them, in order. */
#ifndef HD_CODECS_TEXTUAL_INVERSION_H
#define HD_CODECS_TEXTUAL_INVERSION_H

#include "base/status.h"
#include "engine/weights/tensor_file.h"

HD_BEGIN_DECLS

typedef struct hd_textual_inversion {
    char *token;
    float *vectors; // [count, channels]
    int64_t count;
} hd_textual_inversion;

/* token NULL: what the file calls it. channels: the text encoder's. HD_ERR_FORMAT for another
 * layout or width, naming file and tensor. Clear with hd_textual_inversion_clear. */
HD_CHECKED hd_status hd_textual_inversion_open(hd_textual_inversion *out, const char *path,
                                               const char *token, int64_t channels);
void hd_textual_inversion_clear(hd_textual_inversion *learned);

HD_END_DECLS
#endif
