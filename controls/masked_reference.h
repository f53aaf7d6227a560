/* controls/masked_reference.h: what the files of masked reference attention share. For
 * controls/masked_reference*.c and their tests alone. */
#ifndef HD_CONTROLS_MASKED_REFERENCE_H
#define HD_CONTROLS_MASKED_REFERENCE_H

#include "controls/reference.h"

HD_BEGIN_DECLS

#define MASKED_MOST_BOXES  256
#define MASKED_MOST_FRAMES 16

typedef enum masked_mode {
    MASKED_KV,        // keys of a reference, seen inside the boxes
    MASKED_REF_FRAME, // keys of some frames, seen by all
    MASKED_ADAPTER,   // an attention with weights of its own
} masked_mode;

typedef enum masked_resize {
    MASKED_NEAREST, // is the first pixel of a place inside?
    MASKED_AREA,    // how much of the place is
} masked_resize;

/* left .. right, top .. bottom in pixels; the ends are outside. */
typedef struct masked_box {
    int64_t frame;
    double left, top, right, bottom;
} masked_box;

typedef struct masked_reference {
    // options
    masked_mode mode;
    char *image, *caption, *ref_mask;
    const hd_json *boxes, *ref_frames;
    float lambda_mask, ref_weight;
    masked_resize mask_resize;
    int64_t frame_group;
    enum { MASKED_SAME_STEP, MASKED_CLEAN } ref_noise;
    // made of them
    int64_t box_count;
    masked_box box[MASKED_MOST_BOXES];
    bool keyed; // boxes of key frames: those between are interpolated
    int64_t frame_count, frame[MASKED_MOST_FRAMES];
    bool has_picture;          // the reference's latent is set at each step
    reference_picture picture; // of kv
    int64_t height, width, factor;
} masked_reference;

/* Reads p->boxes; then, with the run's size in pixels known, checks that they lie inside. */
HD_CHECKED hd_status masked_read_boxes(masked_reference *p);
HD_CHECKED hd_status masked_check_boxes(const masked_reference *p);

/* The box of frame `frame`. */
masked_box masked_box_at(const masked_reference *p, int64_t frame);
/* How much of each place of a grid lies inside the boxes: out [frames, h, w], 0 .. 1. A first frame
 * stands for itself, each other one for frame_group frames of the video, unless there are as many
 * boxes as frames. HD_ERR_ARGUMENT for a number of boxes that fits neither. */
HD_CHECKED hd_status masked_inside(const masked_reference *p, float *out, int64_t frames, int64_t h,
                                   int64_t w);
/* What a place inside by this share weighs: 1 inside, lambda outside. */
static inline float masked_weight(float lambda, float inside)
{
    return inside + lambda * (1.0f - inside);
}

HD_END_DECLS
#endif
