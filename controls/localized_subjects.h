/* controls/localized_subjects.h: what the files of localized_subjects share. For
 * controls/localized_subjects*.c and its tests alone. */
#ifndef HD_CONTROLS_LOCALIZED_SUBJECTS_H
#define HD_CONTROLS_LOCALIZED_SUBJECTS_H

#include "engine/attention/processor.h"

HD_BEGIN_DECLS

#define LOCALIZED_MOST_SUBJECTS 6
#define LOCALIZED_MOST_LABELS   200 // different values of the regions at a site

typedef enum localized_how {
    LOCALIZED_GIVEN, // by the subjects' regions, of either kind; off where there are none
    LOCALIZED_OFF,
    LOCALIZED_BOXES,
    LOCALIZED_MASKS,
    LOCALIZED_PROBE, // regions are read from the attention
} localized_how;

typedef struct localized_subject {
    const hd_json *node, *region;
    const char *words, *plain; // plain: what the prompt says of it in the first calls; NULL: words
    int64_t reference;         // number of the appended keys that are its own; -1: none
    float *map;                // [latent height, width] 0 .. 1; NULL: none
} localized_subject;

typedef struct localized_probe {
    int64_t step, cross_factor, self_factor, power;
    float margin;
} localized_probe;

typedef struct localized {
    // options
    const hd_json *subjects, *localize_steps, *probe;
    float alpha;
    bool compat_inclusive, bidirectional;
    localized_how localize;
    float outside, gain_inside;
    enum { LOCALIZED_EOS_OFF, LOCALIZED_EOS_FIRST } mask_eos;
    // made before step 0
    int64_t count;
    localized_subject subject[LOCALIZED_MOST_SUBJECTS];
    int64_t calls, height, width; // of the latent
    int64_t plain_calls;          // calls with the text-only prompt
    int64_t first, end;           // calls in which regions act
    char *plain_prompt;
    int plain_text;
    uint8_t *group[2]; // [columns] of the prompt, of the text-only prompt: 0, or subject + 1
    int64_t columns;
    localized_probe read;
} localized;

/* How many of `calls` have the text-only condition: round((1 - alpha) calls); as in the published
 * pipeline those i with i <= (1 - alpha) calls. */
int64_t localized_plain_calls(double alpha, int64_t calls, bool inclusive);
/* What is added to the scores of a subject's columns where its region is `value`. */
float localized_bias(const localized *p, float value);
/* Places with the same values of `count` maps [count, places] get one label: value [most, count],
 * as they are, or rounded to as many steps as leave no more than `most`. Returns the labels. */
int64_t localized_label(uint8_t *label, float *value, int64_t most, const float *maps,
                        int64_t count, int64_t places);
bool localized_reads(const localized *p, const hd_site *site, int64_t step);

/* localized_subjects_read.c: options, words, regions. */
HD_CHECKED hd_status localized_read_options(localized *p, const hd_branches_ctx *ctx);
HD_CHECKED hd_status localized_read_words(localized *p, const hd_begin_ctx *ctx);
HD_CHECKED hd_status localized_read_regions(localized *p, const hd_begin_ctx *ctx);

/* localized_subjects_probe.c: regions out of the attention; the state of a picture. */
size_t localized_state_bytes(const localized *p);
const float *localized_regions(const localized *p, const void *state); // NULL: not yet
void localized_region_size(const localized *p, int64_t *h, int64_t *w);
HD_CHECKED hd_status localized_probe_hook(const hd_hook_ctx *ctx, hd_tensor indicator);
HD_CHECKED hd_status localized_output(const hd_hook_ctx *ctx, hd_attention_output *output);
HD_CHECKED hd_status localized_latent(const hd_beside_ctx *ctx);
/* maps [count, places] to 0 .. 1 each, then 1 where a map is above all others by more than the
 * margin, 0 elsewhere. */
void localized_decide(float *maps, int64_t count, int64_t places, float margin);

HD_END_DECLS
#endif
