/* controls/attention_masks_words.c: which words are looked at, where, and what becomes of their
 * maps, from the options and the recipe's own figures. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/attention_masks.h"

/* --- options --- */

static hd_status read_threshold(attention_masks *p)
{
    static const float shares[] = {[MASKS_DAAM] = 0.4f,
                                   [MASKS_P2P] = 0.3f,
                                   [MASKS_DIFFUMASK] = 0.0f,
                                   [MASKS_ATTENCRAFT] = 0.5f};
    const hd_json *node = p->threshold;
    p->rule = p->recipe == MASKS_DIFFUMASK ? MASKS_SEARCH : MASKS_FIXED;
    p->share = shares[p->recipe];
    if (!node) return HD_OK;
    double share = 0;
    if (hd_json_kind(node) == HD_JSON_OBJECT) {
        const hd_json *area = hd_json_get(node, "area");
        if (!area || hd_json_count(node) != 1)
            return hd_json_fail(node, HD_ERR_ARGUMENT, "must be {\"area\": SHARE}");
        HD_TRY(hd_json_to_double(area, 0.0, 1.0, &share));
        p->rule = MASKS_AREA;
    } else if (hd_json_kind(node) == HD_JSON_STRING) {
        const char *word;
        HD_TRY(hd_json_to_string(node, &word));
        if (strcmp(word, "otsu") != 0 && strcmp(word, "search") != 0)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "is \"%s\", must be a number from 0 to 1, \"otsu\", \"search\" or "
                                "{\"area\": SHARE}",
                                word);
        p->rule = word[0] == 'o' ? MASKS_OTSU : MASKS_SEARCH;
    } else {
        HD_TRY(hd_json_to_double(node, 0.0, 1.0, &share));
        p->rule = MASKS_FIXED;
    }
    p->share = (float)share;
    return HD_OK;
}

static hd_status read_places(attention_masks *p)
{
    const int64_t most = p->recipe == MASKS_DAAM || p->recipe == MASKS_DIFFUMASK ? 1 : 4;
    p->factors = 0;
    for (int64_t factor = most; factor <= 4; factor *= 2)
        p->factor[p->factors++] = factor;
    if (p->resolutions)
        HD_TRY(
            hd_json_to_ints(p->resolutions, 1, 64, 1, MASKS_MOST_FACTORS, p->factor, &p->factors));
    p->blocks_given = 0;
    const hd_json *node = p->blocks;
    if (!node) return HD_OK;
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    if (hd_json_count(node) < 1 || hd_json_count(node) > MASKS_MOST_BLOCKS)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "must hold 1 to %d blocks", MASKS_MOST_BLOCKS);
    for (int64_t i = 0; i < hd_json_count(node); i++)
        HD_TRY(hd_json_to_string(hd_json_at(node, i), &p->block[p->blocks_given++]));
    return HD_OK;
}

static void recipe_defaults(attention_masks *p)
{
    static const masks_pieces pieces[] = {MASKS_MEAN, MASKS_SUM, MASKS_MEAN, MASKS_MAX};
    static const masks_normalize normalize[] = {MASKS_MINMAX, MASKS_BY_MAX, MASKS_BY_MAX,
                                                MASKS_MINMAX};
    if (!p->pieces_given) p->pieces = pieces[p->recipe];
    if (!p->normalize_given) p->normalize = normalize[p->recipe];
    if (!p->power_given) p->self_power = p->recipe == MASKS_ATTENCRAFT ? MASKS_MOST_POWER : 0;
}

/* --- words --- */

static bool is_letter(char c)
{
    return (unsigned char)c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
           (c >= 'A' && c <= 'Z');
}

// The words of the prompt as selectors, as they stand in it: "cat", "cat#2". Into word [used].
static int64_t list_words(const hd_prompt *prompt, masks_word *word)
{
    int64_t count = 0;
    for (int64_t j = 0; j < prompt->used; j++) {
        const int64_t number = prompt->token[j].word;
        if (number < 0 || (j > 0 && prompt->token[j - 1].word == number)) continue;
        int64_t start = prompt->token[j].start, end = prompt->token[j].end;
        for (int64_t k = j; k < prompt->used && prompt->token[k].word == number; k++)
            end = prompt->token[k].end;
        while (start < end && !is_letter(prompt->text[start]))
            start++;
        while (end > start && !is_letter(prompt->text[end - 1]))
            end--;
        if (start == end) continue;
        char *name = word[count].name;
        snprintf(name, sizeof word->name - 4, "%.*s", (int)(end - start), prompt->text + start);
        int64_t before = 0;
        for (int64_t i = 0; i < count; i++) {
            const size_t bytes = strcspn(word[i].name, "#");
            before += strlen(name) == bytes && strncmp(word[i].name, name, bytes) == 0;
        }
        const size_t used = strlen(name);
        if (before) snprintf(name + used, sizeof word->name - used, "#%d", (int)before + 1);
        count++;
    }
    return count;
}

static hd_status name_words(attention_masks *p, const hd_begin_ctx *ctx, const hd_prompt *prompt)
{
    const hd_json *node = p->words;
    const int64_t most = prompt->used + (node ? hd_json_count(node) : 0) + 2;
    p->word = calloc((size_t)most, sizeof *p->word);
    if (!p->word) return hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for words");
    if (!node) {
        p->count = list_words(prompt, p->word);
        if (p->count == 0)
            return hd_json_fail(ctx->node, HD_ERR_ARGUMENT,
                                "(attention_masks) the prompt \"%s\" "
                                "of branch \"%s\" has no words",
                                prompt->text, p->name);
    } else {
        HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
        if (hd_json_count(node) == 0)
            return hd_json_fail(node, HD_ERR_ARGUMENT, "is empty; leave it out for all words");
        for (int64_t i = 0; i < hd_json_count(node); i++) {
            const char *text;
            HD_TRY(hd_json_to_string(hd_json_at(node, i), &text));
            snprintf(p->word[p->count++].name, sizeof p->word->name, "%s", text);
        }
    }
    p->complement = strcmp(p->background, "complement") == 0;
    p->background_word = -1;
    if (p->complement || strcmp(p->background, "bos") == 0) return HD_OK;
    p->background_word = p->count;
    snprintf(p->word[p->count].name, sizeof p->word->name, "%s", p->background);
    return HD_OK;
}

static int64_t entries(const attention_masks *p)
{
    return p->count + (p->background_word >= 0 ? 1 : 0);
}

// found [entries, columns]: the columns of each word.
static hd_status find_columns(attention_masks *p, const hd_begin_ctx *ctx, const hd_prompt *prompt,
                              bool *found)
{
    for (int64_t i = 0; i < entries(p); i++) {
        const hd_json *node = i == p->background_word ? hd_json_get(ctx->node, "background")
                              : p->words              ? hd_json_at(p->words, i)
                                                      : ctx->node;
        const char *selector = i == p->background_word ? p->background : p->word[i].name;
        if (p->words && i < p->count) HD_TRY(hd_json_to_string(node, &selector));
        if (hd_prompt_find(prompt, selector, found + i * prompt->count) != HD_OK) {
            char why[900];
            snprintf(why, sizeof why, "%s", hd_message());
            return hd_json_fail(node, HD_ERR_ARGUMENT, "%s", why);
        }
        int64_t pieces = 0;
        for (int64_t j = 0; j < prompt->count; j++)
            pieces += found[i * prompt->count + j];
        p->word[i].first = p->channels;
        p->word[i].channels = p->pieces == MASKS_MAX ? pieces : 1;
        p->channels += p->word[i].channels;
    }
    p->channels += MASKS_EXTRA;
    return HD_OK;
}

static void fill_word(attention_masks *p, const masks_word *word, const bool *found)
{
    int64_t pieces = 0, next = word->first;
    for (int64_t j = 0; j < p->columns; j++)
        pieces += found[j];
    for (int64_t j = 0; j < p->columns; j++) {
        if (!found[j]) continue;
        p->indicator[j * p->channels + next] =
            p->pieces == MASKS_MEAN ? 1.0f / (float)pieces : 1.0f;
        if (p->pieces == MASKS_MAX) next++;
    }
}

static void fill_extra(attention_masks *p, const hd_prompt *prompt)
{
    bool begun = false;
    for (int64_t j = 0; j < p->columns; j++) {
        const bool word = prompt->token[j].word >= 0;
        begun = begun || word || j > 0;
        const int64_t extra = word ? MASKS_ALL_WORDS : begun ? MASKS_REST : MASKS_BEGIN;
        p->indicator[j * p->channels + p->channels - MASKS_EXTRA + extra] = 1.0f;
    }
}

static hd_status read_words(attention_masks *p, const hd_begin_ctx *ctx, const hd_prompt *prompt)
{
    HD_TRY(name_words(p, ctx, prompt));
    p->columns = prompt->count;
    bool *found = calloc((size_t)(entries(p) * p->columns), sizeof *found);
    if (!found) return hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for words");
    hd_status status = find_columns(p, ctx, prompt, found);
    if (status == HD_OK) {
        p->indicator = calloc((size_t)(p->columns * p->channels), sizeof *p->indicator);
        if (!p->indicator) status = hd_fail(HD_ERR_NOMEM, "attention_masks: no memory for words");
    }
    for (int64_t i = 0; status == HD_OK && i < entries(p); i++)
        fill_word(p, &p->word[i], found + i * p->columns);
    if (status == HD_OK) fill_extra(p, prompt);
    free(found);
    return status;
}

void masks_clear(void *params)
{
    attention_masks *p = params;
    free(p->indicator);
    free(p->word);
    p->indicator = NULL;
    p->word = NULL;
}

hd_status masks_read_options(attention_masks *p, const hd_begin_ctx *ctx)
{
    const int number = hd_branches_find(ctx->branches, p->branch);
    const hd_json *named = hd_json_get(ctx->node, "branch");
    if (number < 0 || !hd_branch_has_row(&ctx->branches->item[number], HD_ROLE_COND, -1))
        return hd_json_fail(named ? named : ctx->node, HD_ERR_ARGUMENT,
                            "(attention_masks) branch \"%s\" %s; \"branch\" names one that reads a "
                            "prompt",
                            p->branch, number < 0 ? "does not exist" : "has no row \"cond\"");
    snprintf(p->name, sizeof p->name, "%s", ctx->branches->item[number].name);
    recipe_defaults(p);
    HD_TRY(read_threshold(p));
    HD_TRY(read_places(p));
    HD_TRY(read_words(p, ctx, hd_begin_prompt(ctx, p->name, HD_ROLE_COND)));
    p->latent_height = ctx->height, p->latent_width = ctx->width;
    p->self_height = (ctx->height + p->self_factor - 1) / p->self_factor;
    p->self_width = (ctx->width + p->self_factor - 1) / p->self_factor;
    if (p->self_power > 0)
        *ctx->state_bytes = sizeof(masks_spread) + (size_t)masks_spread_values(p) * sizeof(float);
    return HD_OK;
}
