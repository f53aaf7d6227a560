/* controls/prompt_to_prompt_words.c: step ranges and words of Prompt-to-Prompt's options, for the
 * prompts of this run. */
#include <stdlib.h>
#include <string.h>

#include "controls/prompt_to_prompt.h"

// Fractions of the run to calls; decimal fractions are a hair below whole numbers in binary.
static p2p_range calls_of(const double *fraction, int64_t calls)
{
    return (p2p_range){(int64_t)(fraction[0] * (double)calls + 1e-6),
                       (int64_t)(fraction[1] * (double)calls + 1e-6)};
}

// A number is the end of a range that begins with the run.
static hd_status read_range(p2p_range *out, const hd_json *node, int64_t calls)
{
    double part[2];
    int64_t count;
    HD_TRY(hd_json_to_doubles(node, 0.0, 1.0, 1, 2, part, &count));
    if (count == 1) part[1] = part[0], part[0] = 0.0;
    if (part[0] > part[1])
        return hd_json_fail(node, HD_ERR_ARGUMENT, "is [%g, %g], must not go backwards", part[0],
                            part[1]);
    *out = calls_of(part, calls);
    return HD_OK;
}

static hd_status find_words(const hd_prompt *prompt, const hd_json *node, const char *selector,
                            bool *columns)
{
    if (hd_prompt_find(prompt, selector, columns) == HD_OK) return HD_OK;
    char why[900];
    strncpy(why, hd_message(), sizeof why - 1);
    why[sizeof why - 1] = 0;
    return hd_json_fail(node, HD_ERR_ARGUMENT, "%s", why);
}

// A word or a list of words: the columns of them all.
static hd_status find_list(const hd_prompt *prompt, const hd_json *node, bool *columns,
                           bool *scratch)
{
    const bool list = hd_json_kind(node) == HD_JSON_ARRAY;
    for (int64_t i = 0; i < (list ? hd_json_count(node) : 1); i++) {
        const hd_json *item = list ? hd_json_at(node, i) : node;
        const char *word;
        HD_TRY(hd_json_to_string(item, &word));
        HD_TRY(find_words(prompt, item, word, scratch));
        for (int64_t j = 0; j < prompt->count; j++)
            columns[j] |= scratch[j];
    }
    return HD_OK;
}

// Names a map's key in messages: the node of the value.
static hd_status read_replace(const prompt_to_prompt *p, p2p_target *t, const hd_prompt *prompt,
                              int64_t calls, bool *scratch)
{
    const hd_json *node = p->cross_replace_steps;
    p2p_range all = calls_of((const double[2]){0.0, node ? 1.0 : 0.8}, calls);
    const bool map = node && hd_json_kind(node) == HD_JSON_OBJECT;
    if (node && !map) HD_TRY(read_range(&all, node, calls));
    const hd_json *rest = map ? hd_json_get(node, "default_") : NULL;
    if (rest) HD_TRY(read_range(&all, rest, calls));
    for (int64_t j = 0; j < p->columns; j++)
        t->replace[j] = all;
    for (int64_t i = 0; map && i < hd_json_count(node); i++) {
        const hd_json *item = hd_json_at(node, i);
        p2p_range range;
        if (item == rest) continue;
        HD_TRY(read_range(&range, item, calls));
        HD_TRY(find_words(prompt, item, hd_json_key(item), scratch));
        for (int64_t j = 0; j < p->columns; j++)
            if (scratch[j]) t->replace[j] = range;
    }
    return HD_OK;
}

static hd_status read_weights(const prompt_to_prompt *p, p2p_target *t, const hd_prompt *prompt,
                              bool *scratch)
{
    for (int64_t j = 0; j < p->columns; j++)
        t->weight[j] = 1.0f;
    if (!p->weights) return HD_OK;
    HD_TRY(hd_json_expect(p->weights, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(p->weights); i++) {
        const hd_json *item = hd_json_at(p->weights, i);
        double weight;
        HD_TRY(hd_json_to_double(item, -100.0, 100.0, &weight));
        HD_TRY(find_words(prompt, item, hd_json_key(item), scratch));
        for (int64_t j = 0; j < p->columns; j++)
            if (scratch[j]) t->weight[j] = (float)weight;
    }
    return HD_OK;
}

static const char *const blend_fields[] = {"source", "target", "subtract", "th",
                                           "start",  "pool",   "factor",   NULL};

static hd_status read_blend(prompt_to_prompt *p, int64_t calls)
{
    const hd_json *node = p->local_blend;
    p2p_blend *b = &p->blend;
    *b = (p2p_blend){.on = node != NULL, .threshold = {0.3f, 0.3f}, .pool = 3, .factor = 4};
    if (!node) return HD_OK;
    HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        const char *key = hd_json_key(hd_json_at(node, i));
        bool known = false;
        for (int k = 0; blend_fields[k]; k++)
            known |= strcmp(blend_fields[k], key) == 0;
        if (!known)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "has no \"%s\". It has: source, target, subtract, th, start, pool, "
                                "factor",
                                key);
    }
    double th[2], start = 0.0;
    int64_t count = 0;
    const hd_json *field = hd_json_get(node, "th");
    if (field) {
        HD_TRY(hd_json_to_doubles(field, 0.0, 1.0, 1, 2, th, &count));
        b->threshold[0] = (float)th[0];
        b->threshold[1] = (float)th[count - 1];
    }
    if ((field = hd_json_get(node, "start")) != NULL)
        HD_TRY(hd_json_to_double(field, 0.0, 1.0, &start));
    if ((field = hd_json_get(node, "pool")) != NULL) HD_TRY(hd_json_to_int(field, 1, 31, &b->pool));
    if (b->pool % 2 == 0)
        return hd_json_fail(field, HD_ERR_ARGUMENT, "is %lld, must be odd", (long long)b->pool);
    if ((field = hd_json_get(node, "factor")) != NULL)
        HD_TRY(hd_json_to_int(field, 1, 64, &b->factor));
    b->start = (int64_t)(start * (double)calls + 1e-6);
    if (!hd_json_get(node, "target"))
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "lacks \"target\": the words of the prompt that are to change");
    return HD_OK;
}

static hd_status make_terms(p2p_target *t)
{
    const hd_word_map *m = &t->map;
    for (int64_t i = 0; i < m->source * m->target; i++)
        t->terms += m->m[i] != 0.0f;
    t->term = calloc((size_t)t->terms + 1, sizeof *t->term);
    t->inherited = calloc((size_t)t->terms + 1, sizeof *t->inherited);
    t->own = calloc((size_t)m->target + 1, sizeof *t->own);
    if (!t->term || !t->inherited || !t->own)
        return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for the word map");
    for (int64_t i = 0, k = 0; i < m->source; i++)
        for (int64_t j = 0; j < m->target; j++)
            if (m->m[i * m->target + j] != 0.0f)
                t->term[k++] = (hd_edit_term){(int32_t)i, (int32_t)j, m->m[i * m->target + j]};
    return HD_OK;
}

static hd_status read_target(prompt_to_prompt *p, p2p_target *t, const hd_begin_ctx *ctx,
                             const hd_prompt *source, bool *scratch)
{
    const hd_prompt *prompt = hd_begin_prompt(ctx, t->branch, HD_ROLE_COND);
    const size_t columns = (size_t)p->columns;
    t->weight = calloc(columns, sizeof *t->weight);
    t->replace = calloc(columns, sizeof *t->replace);
    t->blend = calloc(columns, sizeof *t->blend);
    t->subtract = calloc(columns, sizeof *t->subtract);
    if (!t->weight || !t->replace || !t->blend || !t->subtract)
        return hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for %zu columns", columns);
    HD_TRY(hd_word_map_create(&t->map, p->mode, p->changed_words == P2P_OWN, p->compat_tail, source,
                              prompt));
    HD_TRY(make_terms(t));
    HD_TRY(read_replace(p, t, prompt, ctx->calls, scratch));
    HD_TRY(read_weights(p, t, prompt, scratch));
    if (!p->blend.on) return HD_OK;
    HD_TRY(find_list(prompt, hd_json_get(p->local_blend, "target"), t->blend, scratch));
    const hd_json *less = hd_json_get(p->local_blend, "subtract");
    return less ? find_list(prompt, less, t->subtract, scratch) : HD_OK;
}

hd_status p2p_read_words(prompt_to_prompt *p, const hd_begin_ctx *ctx)
{
    const hd_prompt *source = hd_begin_prompt(ctx, p->source, HD_ROLE_COND);
    p->columns = source->count;
    p->self_replace = calls_of((const double[2]){0.0, 0.4}, ctx->calls);
    if (p->self_replace_steps)
        HD_TRY(read_range(&p->self_replace, p->self_replace_steps, ctx->calls));
    p->weight_range_given = p->weight_steps != NULL;
    if (p->weight_steps) HD_TRY(read_range(&p->weight_range, p->weight_steps, ctx->calls));
    HD_TRY(read_blend(p, ctx->calls));
    bool *scratch = calloc((size_t)p->columns + 1, sizeof *scratch);
    p->source_blend = calloc((size_t)p->columns + 1, sizeof *p->source_blend);
    p->source_subtract = calloc((size_t)p->columns + 1, sizeof *p->source_subtract);
    hd_status status = HD_OK;
    if (!scratch || !p->source_blend || !p->source_subtract)
        status = hd_fail(HD_ERR_NOMEM, "prompt_to_prompt: no memory for %lld columns",
                         (long long)p->columns);
    const hd_json *words = p->blend.on ? hd_json_get(p->local_blend, "source") : NULL;
    if (status == HD_OK && words) status = find_list(source, words, p->source_blend, scratch);
    for (int64_t i = 0; i < p->targets && status == HD_OK; i++)
        status = read_target(p, &p->target[i], ctx, source, scratch);
    free(scratch);
    return status;
}

void p2p_clear_words(prompt_to_prompt *p)
{
    for (int64_t i = 0; i < p->targets; i++) {
        p2p_target *t = &p->target[i];
        hd_word_map_free(&t->map);
        free(t->term);
        free(t->inherited);
        free(t->own);
        free(t->weight);
        free(t->replace);
        free(t->blend);
        free(t->subtract);
        *t = (p2p_target){0};
    }
    free(p->source_blend);
    free(p->source_subtract);
    free(p->mask);
    p->source_blend = p->source_subtract = NULL;
    p->mask = NULL;
}
