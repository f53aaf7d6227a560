/* pipelines/prompts.c: the prompts of a run's branches: tokens, warnings, embeddings. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "pipelines/clock.h"
#include "pipelines/generation.h"

enum { NEGATIVE, PROMPT };

static bool negative_used(const hd_branch *b)
{
    return (b->roles & HD_ROLE_BIT(HD_ROLE_UNCOND)) != 0 ||
           (b->invert && b->inversion.guidance > 1.0f);
}

static const char *text_of(const hd_branch *b, int which)
{
    return which == NEGATIVE ? b->negative : b->prompt;
}

// What messages call it: "prompt", "negative prompt of source".
static void name_of(char *name, size_t bytes, const hd_branch *b, int branch, int which)
{
    const char *what = which == NEGATIVE ? "negative prompt" : "prompt";
    if (branch == 0)
        snprintf(name, bytes, "%s", what);
    else
        snprintf(name, bytes, "%s of %s", what, b->name);
}

// Has a branch before it the same text? Its embedding is the same too.
static float *same_text(const generation *g, int branch, int which)
{
    const hd_branch *b = &g->branches.item[branch];
    for (int i = 0; i < branch; i++) {
        const hd_branch *other = &g->branches.item[i];
        if (which == NEGATIVE && !negative_used(other)) continue;
        if (strcmp(text_of(other, which), text_of(b, which)) == 0) return g->branch[i].text[which];
    }
    return NULL;
}

// A text as tokens into *out, whose memory is *token. What does not fit is a warning, if `warn`.
static hd_status tokenize(generation *g, const char *text, const char *name, bool warn,
                          hd_prompt_token **token, hd_prompt *out)
{
    const hd_tokenizer *t = g->embeddings.tokenizer;
    int64_t length = g->text_tokens;
    hd_encoding info;
    int64_t *ids = calloc((size_t)length, sizeof *ids);
    hd_token *tokens = calloc((size_t)length, sizeof *tokens);
    *token = calloc((size_t)length, sizeof **token);
    hd_status status = ids && tokens && *token ? HD_OK : hd_fail(HD_ERR_NOMEM, "prompt: no memory");
    if (status == HD_OK)
        status = hd_note(hd_tokenizer_encode(t, text, strlen(text), length, ids, tokens, &info),
                         "in the %s", name);
    for (int64_t i = 0; status == HD_OK && i < length; i++)
        (*token)[i] =
            (hd_prompt_token){tokens[i].id, tokens[i].start, tokens[i].end, tokens[i].word};
    if (status == HD_OK && info.ignored > 0 && warn) {
        char ignored[1024], warning[1100];
        hd_tokenizer_warning(ignored, sizeof ignored, text, strlen(text), length, &info);
        snprintf(warning, sizeof warning, "%s: %s", name, ignored);
        hd_result_warn(g->request->result, g->request->callbacks, warning);
    }
    if (status == HD_OK) *out = (hd_prompt){text, length, info.count, *token};
    free(ids);
    free(tokens);
    return status;
}

hd_status gen_tokenize(generation *g)
{
    char name[64];
    for (int b = 0; b < g->branches.count; b++)
        for (int which = PROMPT; which >= NEGATIVE; which--) {
            hd_branch *is = &g->branches.item[b];
            if (which == NEGATIVE && !negative_used(is)) continue;
            name_of(name, sizeof name, is, b, which);
            HD_TRY(tokenize(g, text_of(is, which), name, !same_text(g, b, which),
                            &g->branch[b].token[which], &is->tokens[which]));
        }
    for (int i = 0; i < g->branches.texts; i++) {
        hd_text *is = &g->branches.text[i];
        snprintf(name, sizeof name, "text that processors[%d] asks for", is->processor);
        HD_TRY(tokenize(g, is->prompt, name, true, &g->own_token[i], &is->tokens));
    }
    return HD_OK;
}

static hd_status encode_row(generation *g, const hd_exec *ex, const int64_t *ids, int64_t skip,
                            float *out)
{
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor hidden = hd_tensor_of(out, HD_F32, hd_shape3(1, g->text_tokens, g->text_channels));
    if (ex->recording) hidden = hd_arena_tensor(ex->arena, HD_F32, hd_tensor_shape(hidden));
    hd_text_clip_inputs in = {.ids = ids,
                              .rows = 1,
                              .tokens = g->text_tokens,
                              .clip_skip = skip,
                              .learned = g->embeddings.vectors,
                              .learned_count = g->embeddings.count};
    hd_status status =
        hd_text_clip_forward(ex, g->model->text, NULL, hidden, hd_tensor_none(), &in);
    hd_arena_rewind(ex->arena, mark);
    return status;
}

hd_status gen_encode_dry(generation *g, const hd_exec *dry)
{
    int64_t *ids = calloc((size_t)g->text_tokens, sizeof *ids);
    if (!ids) return hd_fail(HD_ERR_NOMEM, "prompt: no memory");
    hd_status status = encode_row(g, dry, ids, g->preset->clip_skip, NULL);
    free(ids);
    return status;
}

// diffusers leaves layers out for the prompt only, not for the negative prompt.
static hd_status encode(generation *g, int branch, int which, int64_t *ids)
{
    gen_branch *have = &g->branch[branch];
    const float *same = same_text(g, branch, which);
    have->text[which] = g->text_values + (2 * branch + which) * g->text_tokens * g->text_channels;
    if (same) {
        have->text[which] = (float *)same;
        return HD_OK;
    }
    for (int64_t i = 0; i < g->text_tokens; i++)
        ids[i] = have->token[which][i].id;
    return encode_row(g, &g->ex, ids, which == PROMPT ? g->preset->clip_skip : 0,
                      have->text[which]);
}

hd_status gen_encode_prompts(generation *g)
{
    double begin = hd_seconds();
    int64_t *ids = calloc((size_t)g->text_tokens, sizeof *ids);
    if (!ids) return hd_fail(HD_ERR_NOMEM, "prompt: no memory");
    hd_status status = HD_OK;
    for (int b = 0; b < g->branches.count; b++)
        for (int which = NEGATIVE; which <= PROMPT && status == HD_OK; which++)
            if (which == PROMPT || negative_used(&g->branches.item[b]))
                status = encode(g, b, which, ids);
    for (int t = 0; t < g->branches.texts && status == HD_OK; t++) {
        for (int64_t i = 0; i < g->text_tokens; i++)
            ids[i] = g->own_token[t][i].id;
        status = encode_row(g, &g->ex, ids, g->branches.text[t].negative ? 0 : g->preset->clip_skip,
                            g->own_text_values + t * g->text_tokens * g->text_channels);
    }
    free(ids);
    hd_result_stage(g->request->result, "prompt", hd_seconds() - begin, 1);
    return status;
}
