/* pipelines/generation.h: a run while it is made, for the files that make it: text_to_image.c (from
 * the preset to the result), prompts.c, network.c (rows), sampling.c (the loop), inversion.c.
 *
 * Latents stay in PyTorch's order [channel, row, column] between network calls, because that is the
 * order the noise is drawn in; the network gets channels last. */
#ifndef HD_PIPELINES_GENERATION_H
#define HD_PIPELINES_GENERATION_H

#include "engine/attention/beside_run.h"
#include "engine/attention/run.h"
#include "engine/rng.h"
#include "engine/samplers/sampler.h"
#include "pipelines/branches.h"
#include "pipelines/capture.h"
#include "pipelines/embeddings.h"
#include "pipelines/latents_file.h"
#include "pipelines/outputs.h"
#include "pipelines/start.h"
#include "pipelines/text_to_image.h"

HD_BEGIN_DECLS

/* The rows of one network call. */
typedef struct gen_rows {
    int64_t count;
    hd_row name[HD_MAX_ROWS];
    int branch[HD_MAX_ROWS];
    hd_role role[HD_MAX_ROWS];
    const float *latent[HD_MAX_ROWS]; // as the network wants to see it, but for the branch's view
    float timestep[HD_MAX_ROWS], guidance[HD_MAX_ROWS];
    // rows that are computed together with others until the fork
    bool forks;
    hd_fork fork;
    hd_row before[HD_MAX_ROWS];
    int64_t from[HD_MAX_ROWS];
} gen_rows;

/* What the pipeline keeps of a branch. */
typedef struct gen_branch {
    hd_start start;            // its init picture or given latents
    float *trajectory;         // [calls + 1, latent values]; NULL: none
    float *text[2];            // negative, prompt [tokens, channels]; may be another branch's
    hd_prompt_token *token[2]; // [tokens]
    int64_t slot;              // number of its latent: sampled ones first; -1: it shows another's
    hd_picture_size size;      // the run's, but for branches aside
    float *aside;              // their latents and inputs [2, group, latent values]
} gen_branch;

typedef struct generation {
    const hd_run_request *request;
    const hd_preset *preset;
    hd_model *model;
    hd_embeddings embeddings; // learned words, and the tokenizer that knows them
    hd_exec ex;
    hd_attention_run *attention;
    hd_attention_run *inverting; // without processors: the text of the pictures taken back to noise
    hd_attention_run *aside;     // likewise: branches of another size; NULL: there are none
    hd_beside_run *beside;
    hd_features *features;
    hd_branches branches;
    hd_branches_preset branches_preset;
    gen_branch branch[HD_MAX_BRANCHES];
    hd_picture_size size;   // of a picture and its latent
    int64_t calls;          // of the network
    int64_t group;          // pictures sampled together
    int64_t slots, sampled; // latents of a picture; how many of them the sampler steps
    float *text_values;     // [branches, 2, tokens, channels]
    float *own_text_values; // [texts that processors asked for, tokens, channels]
    hd_prompt_token *own_token[HD_MAX_TEXTS];
    int64_t text_tokens, text_channels;
    hd_sampler *sampler;
    hd_rng **rng;                  // [slots, group]
    float *latent, *input, *guess; // [slots, group, latent values]
    float *noise, *viewed;         // [latent values]
    float *x0[3];                  // [sampled, group, latent values] if any processor looks at x0
    hd_beside_branch *data;        // [group, branches]
    gen_rows rows;                 // of the call that is made
    gen_rows aside_rows;           // of a forward aside
    char fork_path[HD_SITE_PATH_BYTES]; // "": nothing forks
    hd_latents_file latents;            // collected for latents_out
    hd_capture *capture;                // NULL: nobody wants it
} generation;

/* For the hooks beside the call (sampling.c): a picture of the group whose first is `first`, at
 * this step. */
hd_beside_ctx gen_beside_of(const generation *g, int64_t first, int64_t picture, hd_step step);
/* The latent of branch `b` (or of the branch it shows) of one of the group's pictures. */
float *gen_latent(const generation *g, int b, int64_t picture);
void gen_tell(const generation *g, const char *stage, int64_t step, int64_t count,
              double step_seconds, double begin);

/* prompts.c: prompts of every branch as tokens; then through the text encoder. */
HD_CHECKED hd_status gen_tokenize(generation *g);
HD_CHECKED hd_status gen_encode_prompts(generation *g);
HD_CHECKED hd_status gen_encode_dry(generation *g, const hd_exec *dry);

/* network.c: the rows of a call (-1: every row that any call has) for `pictures` pictures, and the
 * call. A change of rows makes the run forget the keys of the text. */
HD_CHECKED hd_status gen_set_rows(generation *g, int64_t call);
/* Of the rows that processors tell apart late: where. After a dry pass with every row. */
void gen_find_fork(generation *g);
typedef struct gen_call {
    gen_rows *rows;
    hd_attention_run *attention;
    hd_features *features;
    hd_step step;
    const hd_picture_size *size; // NULL: the run's
} gen_call;
/* output [rows, latent values], in PyTorch's order. */
HD_CHECKED hd_status gen_call_network(generation *g, const hd_exec *ex, const gen_call *call,
                                      float *output);

/* aside.c: the pictures of all branches but main, and which of them have a size of their own; their
 * latents; their forwards before a call (-1 on the dry pass: every row that any call has). */
HD_CHECKED hd_status gen_open_pictures(generation *g);
HD_CHECKED hd_status gen_aside_room(generation *g);
HD_CHECKED hd_status gen_call_aside(generation *g, const hd_exec *ex, hd_step step, int64_t call);

/* sampling.c: one group of pictures from noise to latents. */
HD_CHECKED hd_status gen_begin_group(generation *g, int64_t first);
HD_CHECKED hd_status gen_sample_group(generation *g, int64_t first, int64_t done_before,
                                      double begin);

/* inversion.c: the trajectories of the branches that have one: measured, then computed or read, and
 * written where the preset says. */
HD_CHECKED hd_status gen_invert_check(generation *g);
HD_CHECKED hd_status gen_invert_dry(generation *g, const hd_exec *dry);
HD_CHECKED hd_status gen_invert(generation *g);

HD_END_DECLS
#endif
