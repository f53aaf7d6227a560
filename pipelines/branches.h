/* pipelines/branches.h: the branches of a run as its preset gives them, and what is left open
 * filled in.
 *
 *     "branches": {"source": {"prompt": "a red fish", "init_image": "fish.png", "inversion": {}},
 *                  "content": "source"}
 *
 * A text instead of an object makes one branch another's name. The fields of `main` are the run's
 * own. */
#ifndef HD_PIPELINES_BRANCHES_H
#define HD_PIPELINES_BRANCHES_H

#include "engine/attention/branches.h"
#include "pipelines/preset.h"

HD_BEGIN_DECLS

/* The texts of a branch in the preset; owned. */
typedef struct hd_branch_fields {
    char *prompt, *negative, *init_image, *start;
    int64_t width, height;
    bool keep_size;
    uint64_t seed;
    bool seed_given;
    float guidance;
    bool guidance_given;
    bool save, save_given;
    bool follow, follow_given;
    const hd_json *inversion; // an object, or a text: the file to read it from
} hd_branch_fields;

typedef struct hd_branches_preset {
    int count;
    hd_branch_fields item[HD_MAX_BRANCHES];
} hd_branches_preset;

extern const hd_param hd_branch_params[];
extern const hd_param hd_inversion_params[];

/* main and the branches of the preset into *out, which must not move afterwards; their texts into
 * *own, to be freed with hd_branches_preset_free, on failure too. */
HD_CHECKED hd_status hd_branches_read(hd_branches *out, hd_branches_preset *own,
                                      const hd_preset *preset, const hd_json *root);
void hd_branches_preset_free(hd_branches_preset *own);

/* After the processors have asked: prompts, guidance, rows, starts that nobody gave; refuses what
 * does not fit together. no_guidance: the model takes none (it is distilled). */
HD_CHECKED hd_status hd_branches_complete(hd_branches *branches, const hd_json *root,
                                          bool no_guidance);

HD_END_DECLS
#endif
