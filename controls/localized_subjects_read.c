/* controls/localized_subjects_read.c: options of localized_subjects, their words in the prompts,
 * their regions in the picture. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "controls/localized_subjects.h"

static const char *const subject_fields[] = {"words", "plain", "region", "reference"};

static hd_status check_fields(const hd_json *node, const char *const *known, size_t count,
                              const char *list)
{
    HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        const char *key = hd_json_key(hd_json_at(node, i));
        bool found = false;
        for (size_t k = 0; k < count; k++)
            found |= strcmp(key, known[k]) == 0;
        if (found) continue;
        const char *near = hd_nearest_name(key, known, count);
        return hd_json_fail(node, HD_ERR_ARGUMENT, "has no \"%s\"%s%s%s; it has: %s", key,
                            near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "",
                            list);
    }
    return HD_OK;
}

static hd_status read_subject(localized_subject *s, const hd_json *node)
{
    const hd_json *words = hd_json_get(node, "words"), *plain = hd_json_get(node, "plain");
    const hd_json *reference = hd_json_get(node, "reference");
    HD_TRY(check_fields(node, subject_fields, HD_COUNT(subject_fields),
                        "words, plain, region, reference"));
    if (!words)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "lacks \"words\": what the prompt calls the subject");
    *s = (localized_subject){.node = node, .region = hd_json_get(node, "region"), .reference = -1};
    HD_TRY(hd_json_to_string(words, &s->words));
    if (plain) HD_TRY(hd_json_to_string(plain, &s->plain));
    if (reference) HD_TRY(hd_json_to_int(reference, 0, 63, &s->reference));
    return HD_OK;
}

static hd_status read_subjects(localized *p)
{
    HD_TRY(hd_json_expect(p->subjects, HD_JSON_ARRAY));
    const int64_t count = hd_json_count(p->subjects);
    if (count < 1 || count > LOCALIZED_MOST_SUBJECTS)
        return hd_json_fail(p->subjects, HD_ERR_ARGUMENT, "has %lld subjects, must be 1 to %d",
                            (long long)count, LOCALIZED_MOST_SUBJECTS);
    for (p->count = 0; p->count < count; p->count++)
        HD_TRY(read_subject(&p->subject[p->count], hd_json_at(p->subjects, p->count)));
    return HD_OK;
}

// What the preset says of regions must fit how they are to be found.
static hd_status check_regions(localized *p)
{
    int64_t given = 0;
    for (int64_t i = 0; i < p->count; i++)
        given += p->subject[i].region != NULL;
    if (p->localize == LOCALIZED_GIVEN && given == 0) p->localize = LOCALIZED_OFF;
    if (p->localize == LOCALIZED_PROBE && p->count < 2)
        return hd_json_fail(p->subjects, HD_ERR_ARGUMENT,
                            "has one subject; \"probe\" tells two or more apart");
    for (int64_t i = 0; i < p->count && p->localize != LOCALIZED_OFF; i++) {
        const hd_json *region = p->subject[i].region;
        if (p->localize == LOCALIZED_PROBE && region)
            return hd_json_fail(region, HD_ERR_ARGUMENT,
                                "is given, but \"probe\" reads regions "
                                "from the attention; leave it out");
        if (p->localize == LOCALIZED_PROBE) continue;
        if (!region)
            return hd_json_fail(p->subject[i].node, HD_ERR_ARGUMENT,
                                "lacks \"region\": [left, top, right, bottom] from 0 to 1, or a "
                                "PNG");
        const bool mask = hd_json_kind(region) == HD_JSON_STRING;
        if (mask ? p->localize == LOCALIZED_BOXES : p->localize == LOCALIZED_MASKS)
            return hd_json_fail(region, HD_ERR_ARGUMENT, "is a %s, but \"localize\" is \"%s\"",
                                mask ? "PNG" : "box", mask ? "boxes" : "masks");
    }
    return HD_OK;
}

static hd_status read_range(localized *p, const hd_branches_ctx *ctx)
{
    double part[2] = {0.0, 0.8};
    int64_t count = 2;
    if (p->localize_steps)
        HD_TRY(hd_json_to_doubles(p->localize_steps, 0.0, 1.0, 2, 2, part, &count));
    if (part[0] > part[1])
        return hd_json_fail(p->localize_steps, HD_ERR_ARGUMENT,
                            "is [%g, %g], must not go backwards", part[0], part[1]);
    p->first = (int64_t)(part[0] * (double)ctx->calls + 1e-6);
    p->end = (int64_t)(part[1] * (double)ctx->calls + 1e-6);
    return HD_OK;
}

static hd_status read_probe(localized *p, const hd_branches_ctx *ctx)
{
    static const char *const fields[] = {"step", "cross_factor", "self_factor", "power", "margin"};
    double step = 0.25, margin = 0.1;
    const hd_json *node = p->probe, *field;
    localized_probe *r = &p->read;
    *r = (localized_probe){.cross_factor = 4, .self_factor = 2, .power = 4};
    if (node)
        HD_TRY(check_fields(node, fields, HD_COUNT(fields),
                            "step, cross_factor, self_factor, power, margin"));
    if ((field = hd_json_get(node, "step")) != NULL) HD_TRY(hd_json_to_double(field, 0, 1, &step));
    if ((field = hd_json_get(node, "margin")) != NULL)
        HD_TRY(hd_json_to_double(field, 0, 1, &margin));
    if ((field = hd_json_get(node, "cross_factor")) != NULL)
        HD_TRY(hd_json_to_int(field, 1, 64, &r->cross_factor));
    if ((field = hd_json_get(node, "self_factor")) != NULL)
        HD_TRY(hd_json_to_int(field, 1, 64, &r->self_factor));
    if ((field = hd_json_get(node, "power")) != NULL)
        HD_TRY(hd_json_to_int(field, 0, 16, &r->power));
    r->margin = (float)margin;
    r->step = (int64_t)(step * (double)ctx->calls + 1e-6);
    if (p->localize != LOCALIZED_PROBE) return HD_OK;
    const int64_t last = r->step + r->power;
    if (last + 1 >= ctx->calls || r->step < ctx->first_step || last >= ctx->end_step)
        return hd_json_fail(node ? node : ctx->node, HD_ERR_ARGUMENT,
                            "reads calls %lld to %lld, of which the run of %lld does not leave "
                            "one to act in; take more steps, an earlier one or less power",
                            (long long)r->step, (long long)last, (long long)ctx->calls);
    return HD_OK;
}

// The prompt with `plain` for `words`, everywhere; the old text is freed.
static hd_status put_plain(char **text, const localized_subject *s)
{
    const size_t words = strlen(s->words), plain = strlen(s->plain);
    char *from = *text, *found;
    if (words == 0 || !strstr(from, s->words))
        return hd_json_fail(hd_json_get(s->node, "words"), HD_ERR_ARGUMENT,
                            "is \"%s\", which the prompt does not say like that", s->words);
    char *to = calloc(strlen(from) * (plain + 1) + 1, 1), *at = to;
    if (!to) return hd_fail(HD_ERR_NOMEM, "localized_subjects: no memory for the prompt");
    while ((found = strstr(from, s->words)) != NULL) {
        memcpy(at, from, (size_t)(found - from));
        at += found - from;
        memcpy(at, s->plain, plain);
        at += plain;
        from = found + words;
    }
    strcpy(at, from);
    free(*text);
    *text = to;
    return HD_OK;
}

static hd_status read_delay(localized *p, const hd_branches_ctx *ctx)
{
    const hd_json *given = hd_json_get(ctx->node, "alpha");
    double alpha = 0.7; // a float would not do: the rounding of 1 - alpha decides
    bool any = false;
    if (given) HD_TRY(hd_json_to_double(given, 0.0, 1.0, &alpha));
    for (int64_t i = 0; i < p->count; i++)
        any |= p->subject[i].plain != NULL;
    if (!any && given)
        return hd_json_fail(given, HD_ERR_ARGUMENT,
                            "delays the subjects' words, but no subject "
                            "has \"plain\" ones for the first steps");
    if (!any) return HD_OK;
    p->plain_calls = localized_plain_calls(alpha, ctx->calls, p->compat_inclusive);
    p->plain_prompt = strdup(ctx->branches->item[0].prompt);
    if (!p->plain_prompt)
        return hd_fail(HD_ERR_NOMEM, "localized_subjects: no memory for the prompt");
    for (int64_t i = 0; i < p->count; i++)
        if (p->subject[i].plain) HD_TRY(put_plain(&p->plain_prompt, &p->subject[i]));
    return HD_OK;
}

hd_status localized_read_options(localized *p, const hd_branches_ctx *ctx)
{
    p->calls = ctx->calls, p->height = ctx->height, p->width = ctx->width;
    HD_TRY(read_subjects(p));
    HD_TRY(check_regions(p));
    HD_TRY(read_range(p, ctx));
    HD_TRY(read_probe(p, ctx));
    return read_delay(p, ctx);
}

static hd_status mark_subject(localized *p, const hd_prompt *prompt, uint8_t *group, int64_t number,
                              bool plain, bool *columns)
{
    const localized_subject *s = &p->subject[number];
    const char *words = plain && s->plain ? s->plain : s->words;
    hd_status status = hd_prompt_find(prompt, words, columns);
    const hd_json *node = hd_json_get(s->node, plain && s->plain ? "plain" : "words");
    char why[900];
    snprintf(why, sizeof why, "%s", status == HD_OK ? "" : hd_message());
    if (status != HD_OK) return hd_json_fail(node, status, "%s", why);
    for (int64_t j = 0; j < prompt->count; j++) {
        if (!columns[j]) continue;
        if (group[j])
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "\"%s\" shares a word with \"%s\"; \"%s#2\" means the second",
                                words, p->subject[group[j] - 1].words, words);
        group[j] = (uint8_t)(number + 1);
    }
    return HD_OK;
}

static hd_status mark_prompt(localized *p, const hd_prompt *prompt, int which)
{
    p->columns = prompt->count;
    bool *columns = calloc((size_t)prompt->count, sizeof *columns);
    uint8_t *group = p->group[which] = calloc((size_t)prompt->count, sizeof *group);
    hd_status status = columns && group
                           ? HD_OK
                           : hd_fail(HD_ERR_NOMEM, "localized_subjects: no memory for the words");
    for (int64_t i = 0; i < p->count && status == HD_OK; i++)
        status = mark_subject(p, prompt, group, i, which == 1, columns);
    free(columns);
    for (int64_t j = prompt->used - 1; j < prompt->count && status == HD_OK; j++)
        if (p->mask_eos == LOCALIZED_EOS_FIRST && !group[j]) group[j] = 1;
    return status;
}

hd_status localized_read_words(localized *p, const hd_begin_ctx *ctx)
{
    HD_TRY(mark_prompt(p, hd_begin_prompt(ctx, "main", HD_ROLE_COND), 0));
    return p->plain_prompt ? mark_prompt(p, hd_begin_text(ctx, p->plain_text), 1) : HD_OK;
}

// How much of the cell from i to i + 1 lies between a and b.
static float cover(int64_t i, double a, double b)
{
    const double low = a > (double)i ? a : (double)i, high = b < (double)i + 1 ? b : (double)i + 1;
    return high > low ? (float)(high - low) : 0.0f;
}

static hd_status read_box(const hd_json *node, float *map, int64_t height, int64_t width)
{
    double box[4];
    int64_t count;
    HD_TRY(hd_json_to_doubles(node, 0.0, 1.0, 4, 4, box, &count));
    if (box[0] >= box[2] || box[1] >= box[3])
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "is [%g, %g, %g, %g], must be left, top, right, bottom", box[0], box[1],
                            box[2], box[3]);
    const double w = (double)width, h = (double)height;
    for (int64_t y = 0; y < height; y++)
        for (int64_t x = 0; x < width; x++)
            map[y * width + x] =
                cover(x, box[0] * w, box[2] * w) * cover(y, box[1] * h, box[3] * h);
    return HD_OK;
}

hd_status localized_read_regions(localized *p, const hd_begin_ctx *ctx)
{
    for (int64_t i = 0; i < p->count; i++) {
        localized_subject *s = &p->subject[i];
        const char *path;
        if (!s->region || p->localize == LOCALIZED_OFF) continue;
        s->map = calloc((size_t)(ctx->height * ctx->width), sizeof *s->map);
        if (!s->map) return hd_fail(HD_ERR_NOMEM, "localized_subjects: no memory for a region");
        if (hd_json_kind(s->region) != HD_JSON_STRING) {
            HD_TRY(read_box(s->region, s->map, ctx->height, ctx->width));
            continue;
        }
        HD_TRY(hd_json_to_string(s->region, &path));
        HD_TRY(hd_begin_mask(ctx, s->region, path, s->map));
    }
    return HD_OK;
}
