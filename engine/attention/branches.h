/* engine/attention/branches.h: the branches of a run: pictures that are sampled side by side or
 * looked at on the way, and the rows of a network call that belong to each.
 *
 * `main` is the run's own picture and always there. Others are named by the preset ("branches") or
 * asked for by a processor (hd_ask_branch in engine/attention/beside.h). What the preset says wins
 * over what a processor asks; two processors that ask for different things are refused.
 *
 * Rows of a call: branch by branch (main first, then the preset's in its order, then those that
 * were asked for), in a branch role by role (uncond, cond, perturbed, noref), in a role picture by
 * picture. Nobody but the pipeline counts on that: rows are found by name (hd_rows_find). */
#ifndef HD_ENGINE_ATTENTION_BRANCHES_H
#define HD_ENGINE_ATTENTION_BRANCHES_H

#include "engine/attention/rows.h"
#include "engine/attention/words.h"
#include "engine/options/json.h"

HD_BEGIN_DECLS

typedef enum hd_role {
    HD_ROLE_UNCOND,
    HD_ROLE_COND,
    HD_ROLE_PERTURBED, // as cond, but for what a processor does to it
    HD_ROLE_NOREF,     // as cond, without reference columns
} hd_role;
#define HD_ROLES       4
#define HD_ROLE_BIT(r) (1u << (r))
#define HD_ROLES_ASKED (1u << 30) // no rows but those that are asked for

#define HD_MAX_BRANCHES 16
#define HD_MAX_ALIASES  16

extern const char *const hd_role_names[]; // by hd_role, NULL-ended

/* How the latent of a branch is shown to the network: out[c][p] = sign[p] * latent[c][source[p]].
 */
typedef struct hd_latent_view {
    const int32_t *source; // [height * width] of the latent; NULL: as it is
    const float *sign;     // likewise; NULL: 1
} hd_latent_view;

typedef enum hd_pairing {
    HD_PAIRING_NEXT_LEVEL, // the network sees the latent of a level with the next level's timestep
                           // (DDIM inversion of Prompt-to-Prompt, Plug-and-Play, diffusers)
    HD_PAIRING_SAME_LEVEL, // with its own; the picture counts as the first level (StyleID)
} hd_pairing;

/* How a picture is taken back to noise. */
typedef struct hd_inversion {
    int64_t steps; // 0: the run's
    float guidance;
    int64_t fixed_point; // repeats of each step with the noise at its own result
    hd_pairing pairing;
    const char *file; // the trajectory is read from it; NULL: computed
} hd_inversion;

typedef struct hd_branch {
    char name[24];
    const char *also[HD_MAX_ALIASES + 1]; // its other names, NULL-ended
    const hd_json *node;                  // in the preset, for messages; NULL: a processor's wish
    const char *prompt, *negative;
    const char *init_image;
    const hd_json *image_node; // where init_image stands, for messages; NULL: at `node`
    bool same_grid;            // places of its picture are the run's: brought to the run's size
                               // only where the preset says how ("fit")
    bool seed_given;
    uint64_t seed;
    bool guidance_given;
    float guidance;
    bool save_given, save; // is its picture written?
    bool invert;           // its picture is taken back to noise first
    hd_inversion inversion;
    bool follow_given, follow; // its latent is set to that trajectory at every step
    bool not_sampled;          // a processor sets its latent; its prediction is not used
    bool start_given;
    int start;             // branch whose start (noise, picture, trajectory) it takes; -1: own
    int latent;            // branch whose latent its rows show; its own number: it has one
    int64_t width, height; // pixels, 0: the run's; where its picture keeps its size, the picture's
    bool keep_size;
    bool aside; // its size is not the run's: a forward of its own, see engine/attention/kept.h
    int64_t latent_width, latent_height; // there from hd_processor_class.begin on
    hd_latent_view view;
    unsigned roles, asked_roles; // bits; roles 0: those every branch has
    int64_t first_step[HD_ROLES], end_step[HD_ROLES];
    const bool *at[HD_ROLES]; // [calls] of those, the ones that have the row; NULL: all of them
    bool fork[HD_ROLES];      // may be computed together with cond until something tells them apart
    int guidance_by;          // number of the processor that makes its guess; -1: none
    hd_prompt tokens[2];      // negative, prompt: there from hd_processor_class.begin on
} hd_branch;

/* A prompt that no row shows: a processor takes its keys and values at the cross attentions. */
typedef struct hd_text {
    const char *prompt; // borrowed until the run ends
    bool negative;      // encoded as negative prompts are: clip_skip leaves it alone
    bool own_weights;   // projected by the processor's weights (hd_processor_class.text_weights)
    int processor;      // who asked for it
    hd_prompt tokens;   // there from hd_processor_class.begin on
} hd_text;

#define HD_MAX_TEXTS 32

typedef struct hd_branches {
    int count; // item[0] is main
    hd_branch item[HD_MAX_BRANCHES];
    int texts;
    hd_text text[HD_MAX_TEXTS];
    int aliases;
    struct {
        char name[24];
        int branch;
    } alias[HD_MAX_ALIASES];
} hd_branches;

/* main alone, and "target" and "target.0" as other names for it, until somebody makes them. */
void hd_branches_init(hd_branches *branches);
/* The record may not move once it has branches.
 *
 * The number of the branch of that name or other name; -1: none. */
int hd_branches_find(const hd_branches *branches, const char *name);
/* A new branch. HD_ERR_ARGUMENT for a name that is none (hd_branch_name_check) or taken; `node` is
 * for messages. */
HD_CHECKED hd_status hd_branches_add(hd_branches *branches, const char *name, const hd_json *node,
                                     hd_branch **out);
/* `name` becomes another name for branch `of`. */
HD_CHECKED hd_status hd_branches_alias(hd_branches *branches, const char *name, int of,
                                       const hd_json *node);

/* Does the branch have this row at this step? */
bool hd_branch_has_row(const hd_branch *branch, hd_role role, int64_t step);

/* The names of the rows of a call of the network at the run's size at `step` for `pictures`
 * pictures into row [HD_MAX_ROWS] (step -1: all that any step has); returns how many. branch_of and
 * role_of [HD_MAX_ROWS] may be NULL. */
int64_t hd_branches_rows(const hd_branches *branches, int64_t step, int64_t pictures, hd_row *row,
                         int *branch_of, hd_role *role_of);

HD_END_DECLS
#endif
