/* engine/attention/beside.h: what a processor may do beside the attention call: ask for branches
 * and rows, prepare itself once they are known, and read or change latents between steps, the
 * predicted clean latent, the combination of predictions, and features of the network.
 *
 * Everything is addressed by names of branches and roles. Latents, predictions and guesses are f32
 * [channels, height, width] of one picture: these hooks are called picture by picture. A hook that
 * is limited by the preset's "steps" is not called outside of them. */
#ifndef HD_ENGINE_ATTENTION_BESIDE_H
#define HD_ENGINE_ATTENTION_BESIDE_H

#include "base/exec.h"
#include "base/tensor.h"
#include "engine/attention/attention.h"
#include "engine/attention/branches.h"
#include "engine/attention/shown.h"

HD_BEGIN_DECLS

struct hd_sampler;

/* --- before step 0 --- */

/* What the `branches` hook is handed: called once, before anything is made. */
typedef struct hd_branches_ctx {
    void *params;                     // may be filled further; freed by the class's `clear`
    const hd_json *node;              // the processor in the preset, for messages
    int64_t calls;                    // of the network in this run
    const struct hd_sampler *sampler; // of the run: the levels of its calls are known
    int64_t first_step, end_step;     // the calls that "steps" selects
    int64_t channels, height, width;  // of a latent
    float guidance;                   // the run's
    hd_branches *branches;
    hd_features *features;
    int processor;      // its number
    size_t state_bytes; // asked for: kept for each picture, zero when it begins. Call hooks find it
                        // in hd_hook_ctx.picture_state
} hd_branches_ctx;

/* Zero in a field: no wish. Texts are borrowed until the run ends. */
typedef struct hd_branch_ask {
    const char *branch; // "source", "target.1", also another name for one
    unsigned roles;     // HD_ROLE_BIT(...): rows it needs; with HD_ROLES_ASKED no others. 0: cond,
                        // and uncond where the branch is guided
    int64_t first_step, end_step; // of those rows; 0, 0: every step
    const bool *at; // [calls]: which of these steps; NULL: all. Borrowed until the run ends
    bool no_fork;   // compute those rows whole, even while they equal cond
    const char *prompt, *negative, *init_image; // where the preset gives none; NULL: main's
    const hd_json *image_node; // where that init_image stands in the preset; NULL: the processor
    bool same_grid;    // its places are the run's: a picture of another size is refused unless the
                       // preset says with "fit" how it is brought to the run's
    float guidance;    // of its sampling, where the preset gives none
    const char *start; // begins as that branch does; NULL: as main unless it has a picture
    const char *latent_of; // its rows show that branch's latent: it has none of its own
    hd_latent_view view;   // borrowed until the run ends
    bool not_sampled;      // the latent hook sets its latent before each call
    int64_t width, height; // pixels of its picture, where the preset gives none; 0: the run's
    bool keep_size;        // its picture is not fitted to the run's size
    bool invert;           // its picture is taken back to noise
    hd_inversion inversion;
    bool follow;
} hd_branch_ask;

HD_CHECKED hd_status hd_ask_branch(hd_branches_ctx *ctx, const hd_branch_ask *ask);
/* A text for the processor alone (prompt, negative, own_weights are given): *number is then its
 * number for hd_begin_text and hd_hook_text. */
HD_CHECKED hd_status hd_ask_text(hd_branches_ctx *ctx, const hd_text *text, int *number);
/* The guidance hook makes this branch's guess itself. One processor per branch. */
HD_CHECKED hd_status hd_ask_guidance(hd_branches_ctx *ctx, const char *branch);
/* The feature hook is called at the taps that `path` matches ("up.1.resnet.1.conv2"; * is one
 * component). A path that matches none is refused before step 0. */
HD_CHECKED hd_status hd_ask_feature(hd_branches_ctx *ctx, const char *path);

/* What the `begin` hook is handed: once, before step 0, when branches and prompts are known. */
typedef struct hd_begin_ctx {
    void *params;
    const hd_json *node;
    int64_t calls, first_step, end_step;
    int64_t channels, height, width;
    int64_t factor; // pixels of a place of the latent, per axis
    const hd_branches *branches;
    hd_status (*read_mask)(void *arg, const hd_json *node, const char *path, int branch,
                           float *mask);
    void *read_mask_arg;
    size_t *state_bytes; // as asked for in the `branches` hook; may be raised, now that the prompts
                         // are known
} hd_begin_ctx;

/* The prompt (role cond) or negative prompt (role uncond) of a branch; NULL: no such branch. */
const hd_prompt *hd_begin_prompt(const hd_begin_ctx *ctx, const char *branch, hd_role role);
/* The prompt that hd_ask_text numbered. */
const hd_prompt *hd_begin_text(const hd_begin_ctx *ctx, int number);
/* A PNG of the run's size as mask [height, width] of the latent: mean brightness 0 .. 1 of the
 * pixels over each place. Another size is refused with the path of `node`. */
HD_CHECKED hd_status hd_begin_mask(const hd_begin_ctx *ctx, const hd_json *node, const char *path,
                                   float *mask);
/* The same of a branch's size: [latent_height, latent_width] of the branch. */
HD_CHECKED hd_status hd_begin_branch_mask(const hd_begin_ctx *ctx, const hd_json *node,
                                          const char *path, const char *branch, float *mask);

/* --- between calls of the network --- */

typedef enum hd_latent_when {
    HD_LATENT_START,       // first latents are there, nothing has run; called whatever "steps" says
    HD_LATENT_BEFORE_CALL, // trajectories have been followed
    HD_LATENT_AFTER_STEP,  // the sampler has gone on
} hd_latent_when;

/* A branch of one picture. What does not exist at that moment is NULL. */
typedef struct hd_beside_branch {
    int64_t height, width, values; // of its latent
    float *latent;                 // of the branch whose latent its rows show
    float timestep;          // latent hook before a call: what the network is told for its rows
    const float *clean;      // its picture's latent: it has an init_image
    const float *trajectory; // [calls + 1, values]: the latent before each call, then the last
    const float *prediction[HD_ROLES]; // guidance hook: the network's output of its rows
    float *guess;                      // guidance hook: the combination; to be written or changed
    float *x0;                         // x0 hook: the clean latent it stands for; to be changed
    float guidance;                    // its scale
} hd_beside_branch;

typedef struct hd_beside_ctx {
    const void *params;
    const hd_exec *ex;
    hd_step step;        // of the call that was made or is to be made
    hd_latent_when when; // latent hook
    const char *branch;  // guidance and x0 hooks: the branch in question; else NULL
    int64_t picture;     // of those sampled together, from 0
    uint64_t seed;       // of this picture
    int64_t channels, height, width, values;
    void *state; // state_bytes of this picture
    const struct hd_sampler *sampler;
    const hd_branches *branches;
    hd_beside_branch *data; // by number; use hd_beside
    hd_attention_run *run;
    int processor;
} hd_beside_ctx;

/* The branch of that name (or other name); NULL: there is none. */
hd_beside_branch *hd_beside(const hd_beside_ctx *ctx, const char *branch);

/* The attention sites this processor acts at, and the state that its call hooks keep there for a
 * row of this picture; NULL past the end, or where there is no such row. */
const hd_site *hd_beside_site(const hd_beside_ctx *ctx, int64_t index);
void *hd_beside_site_state(const hd_beside_ctx *ctx, int64_t index, const char *branch,
                           hd_role role);

/* --- when a picture is done --- */

/* What the `show` hook is handed, once per branch of each picture: latents are the last ones. It
 * adds to `list` what it has to show of this branch. */
typedef struct hd_show_ctx {
    const hd_beside_ctx *beside; // branch: the one in question
    hd_shown_list *list;         // rgb: its picture
} hd_show_ctx;

/* --- inside the network --- */

typedef struct hd_feature_ctx {
    const void *params;
    const hd_exec *ex;
    const char *path; // of the tap
    const hd_rows *rows;
    hd_step step;
    const bool *active; // [B]: the rows that the preset's "branches" selects
} hd_feature_ctx;

HD_END_DECLS
#endif
