/* controls/alignit.c: a customised concept without its side effects: only the concept's own words
 * take the customised keys and values, all others keep those of the untouched model.
 *
 * { "prompt": "a cat playing badminton", "embeddings": [{"file": "cat.safetensors", "token":
 * "<v>"}], "processors": [ { "use": "alignit", "concept_words": "<v> cat", "class_words": "cat",
 *                     "kv": "custom_diffusion.safetensors" } ] }
 *
 * Agarwal, Karanam, Srinivasan, "AlignIT", arXiv 2406.18893. The prompt says the class word; a
 * prompt of the concept alone ("a photo of <v> cat") goes through the text encoder and the
 * customised projections, and at every cross attention of the rows that read the prompt its keys
 * and values take the class word's place. Where the concept has more pieces than the class word,
 * the surplus is written over the end of the padding, so that no column of the prompt moves. eta 0
 * changes no bit. "scope": "prompt" is the customised model as it is, for comparison: every column
 * of main. */
#include "controls/alignit.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/all.h"
#include "engine/attention/edit.h"

static const char *const alignit_aligns[] = {"insert", "last", "mean", NULL};
static const char *const alignit_unets[] = {"custom", "base", NULL};
static const char *const alignit_scopes[] = {"concept", "prompt", NULL};

static const hd_param alignit_params[] = {
    HD_PARAM_JSON(alignit, concept_words,
                  .help = "the concept as it was learned: \"<v> cat\"; several: a list"),
    HD_PARAM_JSON(alignit, class_words,
                  .help = "what stands for it in the prompt; the concept's last word when not "
                          "given"),
    HD_PARAM_STRING(alignit, dummy_template, .def_text = "a photo of {concept}",
                    .help = "the concept's own prompt"),
    HD_PARAM_STRING(alignit, kv,
                    .help = "safetensors file with keys and values: Custom Diffusion or LoRA"),
    HD_PARAM_ENUM(alignit, unet, .names = alignit_unets,
                  .help = "base: what the file changes beside keys and values is left out"),
    HD_PARAM_ENUM(alignit, scope, .names = alignit_scopes,
                  .help = "prompt: every word takes them, as without AlignIT"),
    HD_PARAM_ENUM(alignit, align, .names = alignit_aligns,
                  .help = "a concept of another number of pieces: all of them, the last, their "
                          "mean"),
    HD_PARAM_FLOAT(alignit, eta_k, .def = 1.0, .min = 0.0, .max = 1.0, .help = "share of the keys"),
    HD_PARAM_FLOAT(alignit, eta_v, .def = 1.0, .min = 0.0, .max = 1.0,
                   .help = "share of the values"),
    HD_PARAM_BOOL(alignit, norm_cap, .help = "its keys grow no longer than the class word's"),
    HD_PARAM_END,
};

/* --- before step 0 --- */

// A text, or an entry of a list, by number; NULL past the end.
static const hd_json *item_of(const hd_json *node, int64_t index)
{
    if (!node) return NULL;
    if (hd_json_kind(node) == HD_JSON_ARRAY) return hd_json_at(node, index);
    return index == 0 ? node : NULL;
}

static hd_status no_memory(void)
{
    return hd_fail(HD_ERR_NOMEM, "alignit: no memory for the concepts");
}

static hd_status read_concept(alignit *p, const hd_json *words, const hd_json *class_words)
{
    alignit_concept *c = &p->concept[p->concepts];
    const char *text, *class_text = NULL;
    HD_TRY(hd_json_to_string(words, &text));
    if (class_words) HD_TRY(hd_json_to_string(class_words, &class_text));
    const char *space = strrchr(text, ' ');
    const char *hole = strstr(p->dummy_template, "{concept}");
    p->concepts++;
    c->words = strdup(text);
    c->class_words = strdup(class_text ? class_text : space ? space + 1 : text);
    const size_t bytes = strlen(p->dummy_template) + strlen(text) + 1;
    c->prompt = malloc(bytes);
    if (!c->words || !c->class_words || !c->prompt) return no_memory();
    snprintf(c->prompt, bytes, "%.*s%s%s", (int)(hole - p->dummy_template), p->dummy_template, text,
             hole + strlen("{concept}"));
    return HD_OK;
}

static hd_status read_concepts(alignit *p, const hd_branches_ctx *ctx)
{
    if (!p->concept_words)
        return hd_fail(HD_ERR_ARGUMENT, "lacks \"concept_words\": the words of the concept, like "
                                        "\"<v> cat\"");
    if (!strstr(p->dummy_template, "{concept}"))
        return hd_json_fail(hd_json_get(ctx->node, "dummy_template"), HD_ERR_ARGUMENT,
                            "is \"%s\", must hold {concept}", p->dummy_template);
    for (int64_t i = 0; item_of(p->concept_words, i); i++) {
        if (i == ALIGNIT_MOST_CONCEPTS)
            return hd_json_fail(p->concept_words, HD_ERR_ARGUMENT, "has more than %d concepts",
                                ALIGNIT_MOST_CONCEPTS);
        HD_TRY(read_concept(p, item_of(p->concept_words, i), item_of(p->class_words, i)));
    }
    if (p->concepts == 0 || item_of(p->class_words, p->concepts))
        return hd_json_fail(p->class_words && p->concepts ? p->class_words : p->concept_words,
                            HD_ERR_ARGUMENT, "must name as many as \"%s\"",
                            p->concepts ? "concept_words" : "class_words");
    return HD_OK;
}

static hd_status open_kv(alignit *p, const hd_branches_ctx *ctx)
{
    if (!p->kv) return HD_OK;
    hd_status status = hd_text_kv_file_open(&p->file, p->kv, p->unet == ALIGNIT_BASE);
    if (status == HD_OK) return HD_OK;
    char why[900];
    snprintf(why, sizeof why, "%s%s", hd_message(),
             status == HD_ERR_UNSUPPORTED && p->unet == ALIGNIT_CUSTOM
                 ? "; \"unet\": \"base\" takes its keys and values alone"
                 : "");
    return hd_json_fail(hd_json_get(ctx->node, "kv"), status, "%s", why);
}

static hd_status alignit_branches(hd_branches_ctx *ctx)
{
    alignit *p = ctx->params;
    const hd_branch *main_branch = &ctx->branches->item[0];
    const bool own = p->kv != NULL;
    HD_TRY(open_kv(p, ctx));
    if (p->scope == ALIGNIT_PROMPT) {
        const hd_text negative = {
            .prompt = main_branch->negative, .negative = true, .own_weights = own};
        const hd_text prompt = {.prompt = main_branch->prompt, .own_weights = own};
        HD_TRY(hd_ask_text(ctx, &negative, &p->whole[HD_ROLE_UNCOND]));
        return hd_ask_text(ctx, &prompt, &p->whole[HD_ROLE_COND]);
    }
    HD_TRY(read_concepts(p, ctx));
    for (int64_t i = 0; i < p->concepts; i++) {
        const hd_text dummy = {.prompt = p->concept[i].prompt, .own_weights = own};
        HD_TRY(hd_ask_text(ctx, &dummy, &p->concept[i].text));
    }
    return HD_OK;
}

int64_t alignit_pair(alignit_place *place, int64_t most, alignit_align align, int64_t column,
                     int64_t count, int64_t from, int64_t pieces)
{
    int64_t places = 0;
    for (int64_t i = 0; i < count && places < most; i++) {
        // the last pieces meet; a concept of fewer gives its first to all that are left over
        const int64_t piece = i + pieces - count;
        place[places++] =
            align == ALIGNIT_MEAN
                ? (alignit_place){column + i, column + i, from, pieces}
                : (alignit_place){column + i, column + i, from + (piece > 0 ? piece : 0), 1};
    }
    for (int64_t i = 0; align == ALIGNIT_INSERT && i < pieces - count && places < most; i++)
        place[places++] = (alignit_place){-1, column, from + i, 1};
    return places;
}

static hd_status put_places(alignit *p, alignit_branch *b, const hd_prompt *prompt, int concept,
                            int64_t column, int64_t count, const bool *own, int64_t columns)
{
    int64_t from = 0, pieces = 0;
    while (from < columns && !own[from])
        from++;
    while (from + pieces < columns && own[from + pieces])
        pieces++;
    alignit_place *place = b->place + b->places;
    const int64_t room = (int64_t)HD_COUNT(b->place) - b->places;
    const int64_t more = alignit_pair(place, room, p->align, column, count, from, pieces);
    int64_t padding = more - count;
    if (more == room)
        return hd_fail(HD_ERR_ARGUMENT, "the concepts take more than %zu tokens of the prompt",
                       HD_COUNT(b->place) - 1);
    if (padding > 0) HD_TRY(hd_prompt_claim(prompt, column, padding, &padding));
    for (int64_t i = 0; i < more; i++) {
        if (i >= count) place[i].column = padding + i - count;
        for (int64_t j = 0; j < b->places; j++)
            if (b->place[j].column == place[i].column)
                return hd_fail(HD_ERR_ARGUMENT,
                               "the concepts \"%s\" and \"%s\" stand for the same word of \"%s\"",
                               p->concept[b->concept_of[j]].words, p->concept[concept].words,
                               prompt->text);
    }
    for (int64_t i = 0; i < more; i++)
    b->concept_of[b->places++] = concept;
    return HD_OK;
}

// Every occurrence of the class words is a run of columns.
static hd_status put_runs(alignit *p, alignit_branch *b, const hd_prompt *prompt, int concept,
                          bool *columns, bool *own, const hd_prompt *dummy)
{
    for (int64_t j = 0, n; j < prompt->used; j += n) {
        n = 1;
        if (!columns[j]) continue;
        while (j + n < prompt->used && columns[j + n])
            n++;
        HD_TRY(put_places(p, b, prompt, concept, j, n, own, dummy->count));
    }
    return HD_OK;
}

static hd_status read_branch(alignit *p, const hd_begin_ctx *ctx, const hd_branch *branch,
                             bool *columns, bool *own)
{
    alignit_branch *b = &p->branch[p->branches];
    const hd_prompt *prompt = &branch->tokens[1];
    snprintf(b->branch, sizeof b->branch, "%s", branch->name);
    for (int i = 0; i < p->concepts; i++) {
        const hd_prompt *dummy = hd_begin_text(ctx, p->concept[i].text);
        HD_TRY(hd_prompt_find(dummy, p->concept[i].words, own));
        hd_status status = hd_prompt_find(prompt, p->concept[i].class_words, columns);
        // a branch beside main may speak of something else
        if (status != HD_OK && p->branches > 0) continue;
        if (status != HD_OK) {
            char why[900];
            snprintf(why, sizeof why, "%s", hd_message());
            const hd_json *node = item_of(p->class_words, i);
            return hd_json_fail(node ? node : item_of(p->concept_words, i), status, "%s", why);
        }
        HD_TRY(put_runs(p, b, prompt, i, columns, own, dummy));
    }
    p->branches++;
    return HD_OK;
}

static hd_status alignit_begin(const hd_begin_ctx *ctx)
{
    alignit *p = ctx->params;
    if (p->scope == ALIGNIT_PROMPT || (p->eta_k == 0.0f && p->eta_v == 0.0f)) return HD_OK;
    const size_t columns = (size_t)ctx->branches->item[0].tokens[1].count;
    bool *mark = calloc(2 * columns, sizeof *mark);
    if (!mark) return no_memory();
    hd_status status = HD_OK;
    for (int i = 0; i < ctx->branches->count && status == HD_OK; i++)
        status = read_branch(p, ctx, &ctx->branches->item[i], mark, mark + columns);
    free(mark);
    return status;
}

static hd_status alignit_text_weights(void *params, hd_text_weights *w)
{
    alignit *p = params;
    if (!p->file) return HD_OK;
    return hd_text_kv_file_linear(p->file, w->ex, w->path, w->in, w->out, w->compute, &w->linear,
                                  &w->adds);
}

// Every cross attention has asked by then.
static hd_status alignit_latent(const hd_beside_ctx *ctx)
{
    const alignit *p = ctx->params;
    const char *name = p->file ? hd_text_kv_file_unused(p->file) : NULL;
    if (ctx->when != HD_LATENT_START || !name) return HD_OK;
    return hd_fail(HD_ERR_FORMAT, "%s: %s belongs to no cross attention of this model", p->kv,
                   name);
}

static void alignit_clear(void *params)
{
    alignit *p = params;
    for (int64_t i = 0; i < p->concepts; i++) {
        free(p->concept[i].words);
        free(p->concept[i].class_words);
        free(p->concept[i].prompt);
    }
    p->concepts = 0;
    hd_text_kv_file_free(p->file);
    p->file = NULL;
}

/* --- inside a call --- */

static hd_status alignit_prepare(hd_prepare_ctx *ctx)
{
    const hd_site_kind kind = ctx->call->site.kind;
    ctx->idle = kind == HD_SITE_SELF || kind == HD_SITE_TEMPORAL;
    if (ctx->idle) return HD_OK;
    if (kind == HD_SITE_JOINT)
        return hd_fail(HD_ERR_UNSUPPORTED, "a joint attention's text changes in every block: its "
                                           "keys cannot come from another prompt's");
    if (!ctx->texts)
        return hd_fail(HD_ERR_UNSUPPORTED, "the network keeps no keys of its text here");
    ctx->scratch_bytes = (size_t)(ctx->call->k.dim[2] * ctx->call->k.dim[3]) * sizeof(float);
    return HD_OK;
}

// The sum of squares of one column.
static double square_of(hd_tensor t, int64_t row, int64_t column)
{
    double sum = 0.0;
    for (int64_t h = 0; h < t.dim[2]; h++)
        for (int64_t d = 0; d < t.dim[3]; d++) {
            const double x = (double)hd_edit_get(t, row * t.stride[0] + column * t.stride[1] +
                                                        h * t.stride[2] + d);
            sum += x * x;
        }
    return sum;
}

void alignit_infuse(hd_tensor to, int64_t row, hd_tensor own, const alignit_place *place, float eta,
                    bool cap, float *vector)
{
    const int64_t heads = to.dim[2], size = to.dim[3];
    double length = 0.0;
    for (int64_t i = 0; i < heads * size; i++) {
        const int64_t at = i / size * own.stride[2] + i % size;
        double sum = 0.0;
        for (int64_t j = place->from; j < place->from + place->count; j++)
            sum += (double)hd_edit_get(own, j * own.stride[1] + at);
        vector[i] = (float)(sum / (double)place->count);
        length += (double)vector[i] * (double)vector[i];
    }
    const double most = cap ? square_of(to, row, place->class_column) : length;
    const float scale = length > most ? (float)sqrt(most / length) : 1.0f;
    for (int64_t i = 0; i < heads * size; i++) {
        const int64_t at =
            row * to.stride[0] + place->column * to.stride[1] + i / size * to.stride[2] + i % size;
        const float have = hd_edit_get(to, at), wanted = vector[i] * scale;
        hd_edit_put(to, at, eta == 1.0f ? wanted : have + eta * (wanted - have));
    }
}

static void infuse_row(const hd_hook_ctx *ctx, hd_tokens *tokens, int64_t row)
{
    const alignit *p = ctx->params;
    const alignit_branch *b = NULL;
    for (int64_t i = 0; i < p->branches; i++)
        if (strcmp(p->branch[i].branch, ctx->call->forward->rows.row[row].branch) == 0)
            b = &p->branch[i];
    // what caps a column may be a place itself: columns of the padding come first
    for (int64_t i = b ? b->places - 1 : -1; i >= 0; i--) {
        hd_tensor k, v;
        hd_hook_text(ctx, p->concept[b->concept_of[i]].text, &k, &v);
        alignit_infuse(tokens->k, row, k, &b->place[i], p->eta_k, p->norm_cap, ctx->scratch);
        alignit_infuse(tokens->v, row, v, &b->place[i], p->eta_v, false, ctx->scratch);
    }
}

static hd_status alignit_tokens(const hd_hook_ctx *ctx, hd_tokens *tokens)
{
    const alignit *p = ctx->params;
    const hd_rows *rows = &ctx->call->forward->rows;
    for (int64_t row = 0; row < rows->count; row++) {
        const hd_row *r = &rows->row[row];
        const bool uncond = strcmp(r->role, hd_role_names[HD_ROLE_UNCOND]) == 0;
        if (!ctx->active[row]) continue;
        if (p->scope == ALIGNIT_CONCEPT) {
            if (!uncond) infuse_row(ctx, tokens, row);
            continue;
        }
        if (strcmp(r->branch, "main") != 0) continue;
        hd_tensor k, v;
        hd_hook_text(ctx, p->whole[uncond ? HD_ROLE_UNCOND : HD_ROLE_COND], &k, &v);
        hd_edit_mix(tokens->k, row, k, 0, k.dim[1], p->eta_k, NULL);
        hd_edit_mix(tokens->v, row, v, 0, v.dim[1], p->eta_v, NULL);
    }
    return HD_OK;
}

const hd_processor_class hd_alignit = {
    .name = "alignit",
    .summary = "A learned concept for its own words alone (AlignIT); Custom Diffusion, LoRA.",
    .params = alignit_params,
    .params_size = sizeof(alignit),
    .edits = HD_EDITS_K | HD_EDITS_V,
    .clear = alignit_clear,
    .branches = alignit_branches,
    .begin = alignit_begin,
    .text_weights = alignit_text_weights,
    .latent = alignit_latent,
    .prepare = alignit_prepare,
    .tokens = alignit_tokens,
    .rows_alike = true,
};
