/* engine/attention/read.c: a processor of a preset, from JSON: its class, its own fields and the
 * engine's. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/run_internal.h"

static const char *const rest_names[] = {"drop", "proxy", NULL};
static const char *const number_names[] = {"bf16", "int8", NULL};
static const char *const on_edit_names[] = {"refuse", "dense", NULL};

const hd_param hd_plan_params[] = {
    HD_PARAM_ENUM(hd_plan_options, rest, .names = rest_names,
                  .help = "keys that are not visited: left out, or one mean key per tile"),
    HD_PARAM_ENUM(hd_plan_options, qk, .names = number_names,
                  .help = "numbers of queries times keys; bf16: the run's own type"),
    HD_PARAM_ENUM(hd_plan_options, pv, .names = number_names,
                  .help = "numbers of weights times values; bf16: the run's own type"),
    HD_PARAM_ENUM(
        hd_plan_options, on_edit, .names = on_edit_names,
        .help =
            "where another processor replaces the keys of a fixed plan; appended ones go with it"),
    HD_PARAM_END,
};

static const hd_processor_class *find_class(const hd_processor_list *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->item[i]->name, name) == 0) return list->item[i];
    return NULL;
}

static hd_status unknown_class(const hd_json *node, const hd_processor_list *list, const char *name)
{
    const char *names[64];
    char all[1024] = "";
    size_t count = 0, used = 0;
    for (; count < list->count && count < HD_COUNT(names); count++) {
        names[count] = list->item[count]->name;
        if (used < sizeof all)
            used += (size_t)snprintf(all + used, sizeof all - used, "%s%s", count ? ", " : "",
                                     names[count]);
    }
    const char *near = hd_nearest_name(name, names, count);
    return hd_json_fail(node, HD_ERR_ARGUMENT, "\"%s\" is no processor%s%s%s; there are: %s", name,
                        near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "", all);
}

static hd_status read_sites(run_processor *p)
{
    const hd_json *sites = hd_json_get(p->node, "sites");
    if (!sites) return HD_OK;
    HD_TRY(hd_json_expect(sites, HD_JSON_ARRAY));
    int64_t count = hd_json_count(sites);
    if (count == 0)
        return hd_json_fail(sites, HD_ERR_ARGUMENT, "is empty; leave it out to mean every site");
    p->site = calloc((size_t)count, sizeof *p->site);
    if (!p->site)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for %lld site selectors",
                       (long long)count);
    p->sites = count;
    for (int64_t i = 0; i < count; i++) {
        const char *text;
        HD_TRY(hd_json_to_string(hd_json_at(sites, i), &text));
        hd_status status = hd_site_selector_parse(&p->site[i], text);
        if (status != HD_OK) {
            char why[512];
            snprintf(why, sizeof why, "%s", hd_message());
            return hd_json_fail(hd_json_at(sites, i), status, "%s", why);
        }
    }
    return HD_OK;
}

static hd_status read_branches(run_processor *p)
{
    const hd_json *branches = hd_json_get(p->node, "branches");
    if (!branches) return HD_OK;
    HD_TRY(hd_json_expect(branches, HD_JSON_ARRAY));
    int64_t count = hd_json_count(branches);
    if (count == 0)
        return hd_json_fail(branches, HD_ERR_ARGUMENT, "is empty; leave it out to mean every row");
    p->branch = calloc((size_t)count, sizeof *p->branch);
    if (!p->branch)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for %lld row selectors",
                       (long long)count);
    p->branches = count;
    for (int64_t i = 0; i < count; i++) {
        HD_TRY(hd_json_to_string(hd_json_at(branches, i), &p->branch[i]));
        hd_status status = hd_row_selector_check(p->branch[i]);
        if (status != HD_OK) {
            char why[512];
            snprintf(why, sizeof why, "%s", hd_message());
            return hd_json_fail(hd_json_at(branches, i), status, "%s", why);
        }
    }
    return HD_OK;
}

static hd_status read_steps(run_processor *p, int64_t steps)
{
    double range[2] = {0.0, 1.0};
    const hd_json *node = hd_json_get(p->node, "steps");
    if (node) {
        HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
        if (hd_json_count(node) != 2)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "has %lld numbers, must be [from, to] as fractions of the run",
                                (long long)hd_json_count(node));
        for (int i = 0; i < 2; i++)
            HD_TRY(hd_json_to_double(hd_json_at(node, i), 0.0, 1.0, &range[i]));
        if (range[0] > range[1])
            return hd_json_fail(node, HD_ERR_ARGUMENT, "is [%g, %g], must not go backwards",
                                range[0], range[1]);
    }
    // the fractions of decimal steps are a hair below whole numbers in binary: 0.7 * 10
    p->first_step = (int64_t)(range[0] * (double)steps + 1e-6);
    p->end_step = (int64_t)(range[1] * (double)steps + 1e-6);
    return HD_OK;
}

static hd_status check_params(run_processor *p, const char *name)
{
    hd_status status = p->class->check ? p->class->check(p->params) : HD_OK;
    if (status == HD_OK) return HD_OK;
    char why[1024];
    snprintf(why, sizeof why, "%s", hd_message());
    const char *file = hd_json_name(p->node); // the check may have named the place itself
    if (strncmp(why, file, strlen(file)) == 0 && why[strlen(file)] == ':') return status;
    return hd_json_fail(p->node, status, "(%s) %s", name, why);
}

// Its own fields, and those of the engine that come with a plan.
static hd_status read_params(run_processor *p, const char *name)
{
    static const char *const fields[] = {"use", "sites", "steps",   "branches", "rest",
                                         "qk",  "pv",    "on_edit", NULL};
    static const char *const fields_without_plan[] = {"use", "sites", "steps", "branches", NULL};
    const hd_processor_class *class = p->class;
    p->params = calloc(1, class->params_size ? class->params_size : 1);
    if (!p->params) return hd_fail(HD_ERR_NOMEM, "processors: no memory for %s", name);
    HD_TRY(hd_params_default(class->params, p->params));
    HD_TRY(hd_params_read(class->params, p->params, p->node,
                          class->plan ? fields : fields_without_plan));
    HD_TRY(hd_params_default(hd_plan_params, &p->plan));
    p->plan.rest = class->rest;
    if (class->plan) HD_TRY(hd_params_read_known(hd_plan_params, &p->plan, p->node));
    return check_params(p, name);
}

hd_status hd_run_read_processor(run_processor *p, const hd_processor_list *list, int64_t steps)
{
    HD_TRY(hd_json_expect(p->node, HD_JSON_OBJECT));
    const hd_json *use = hd_json_get(p->node, "use");
    const char *name;
    if (!use)
        return hd_json_fail(p->node, HD_ERR_ARGUMENT, "has no \"use\": the name of the processor");
    HD_TRY(hd_json_to_string(use, &name));
    p->class = find_class(list, name);
    if (!p->class) return unknown_class(use, list, name);
    HD_TRY(read_params(p, name));
    HD_TRY(read_sites(p));
    HD_TRY(read_branches(p));
    return read_steps(p, steps);
}

void hd_run_clear_processor(run_processor *p)
{
    if (p->class && p->params) {
        if (p->class->clear) p->class->clear(p->params);
        hd_params_free(p->class->params, p->params);
    }
    free(p->params);
    free(p->site);
    free(p->branch);
    free(p->picture_state);
}
