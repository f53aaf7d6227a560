/* controls/self_subject.h: what the files of self-subject attention share. For
 * controls/self_subject*.c and their tests alone. */
#ifndef HD_CONTROLS_SELF_SUBJECT_H
#define HD_CONTROLS_SELF_SUBJECT_H

#include "controls/reference.h"

HD_BEGIN_DECLS

#define SUBJECT_MOST_REFERENCES 4

typedef enum subject_guidance {
    SUBJECT_BLEND,      // the mean of the two rules, each step
    SUBJECT_INTERLEAVE, // one of them, drawn
    SUBJECT_SCHEDULE,   // one of them, in turn
    SUBJECT_NONE,       // the run's own
} subject_guidance;

typedef struct subject_reference {
    const hd_json *node;
    const char *image, *mask_path, *caption;
    float weight;
    bool keep_size;
    reference_picture picture;
    char branch[24];          // its rows as the conditioned row sees them
    char opposite_branch[24]; // as the unconditioned one does: the same unless the levels differ
    bool has_picture;         // its latent is set at each step; else it is sampled beside
} subject_reference;

typedef struct self_subject {
    // options
    const hd_json *references, *delta_t_uncond, *style_fidelity;
    reference_resize mask_resize;
    int64_t delta_t;
    enum { SUBJECT_FIXED, SUBJECT_FRESH } ref_noise;
    float guidance_reference, guidance_text, p_reference;
    subject_guidance guidance_mode;
    uint64_t guidance_seed;
    enum { SUBJECT_OFFSET_W, SUBJECT_OFFSET_T, SUBJECT_SAME } ref_pos;
    // made of them
    int64_t count;
    subject_reference reference[SUBJECT_MOST_REFERENCES];
    bool uncond_sees; // the unconditioned rows see references at t + opposite
    double opposite;
    float fidelity; // share of their attention without references
    // [calls]: steps that guide by the reference, by the text; both: blend
    bool *by_reference, *by_text;
    bool *uncond_rows; // [calls] by_text, and the steps in which this processor does not act
} self_subject;

/* Step `step` of the processor's own: does it guide by the reference, by the text? */
void subject_rules(const self_subject *p, int64_t step, bool *by_reference, bool *by_text);
/* guess [values] from the predictions with and without reference, and without the text; NULL where
 * the step does without. */
void subject_guide(const self_subject *p, bool by_reference, bool by_text, const float *cond,
                   const float *noref, const float *uncond, float *guess, int64_t values);

/* Hooks, see controls/self_subject.c. */
HD_CHECKED hd_status subject_ask(hd_branches_ctx *ctx);
HD_CHECKED hd_status subject_guidance_hook(const hd_beside_ctx *ctx);

HD_END_DECLS
#endif
