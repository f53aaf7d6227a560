/* engine/attention/run.c: reads a preset's processors and resolves, on the dry pass, which of them
 * act where. */
#include "engine/attention/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run_internal.h"

static const char *const engine_fields[] = {"use", "sites", "steps", "branches", NULL};

/* --- reading the preset
 * ------------------------------------------------------------------------------------------ */

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

static hd_status read_processor(run_processor *p, const hd_processor_list *list, int64_t steps)
{
    HD_TRY(hd_json_expect(p->node, HD_JSON_OBJECT));
    const hd_json *use = hd_json_get(p->node, "use");
    const char *name;
    if (!use)
        return hd_json_fail(p->node, HD_ERR_ARGUMENT, "has no \"use\": the name of the processor");
    HD_TRY(hd_json_to_string(use, &name));
    p->class = find_class(list, name);
    if (!p->class) return unknown_class(use, list, name);
    p->params = calloc(1, p->class->params_size ? p->class->params_size : 1);
    if (!p->params) return hd_fail(HD_ERR_NOMEM, "processors: no memory for %s", name);
    HD_TRY(hd_params_default(p->class->params, p->params));
    HD_TRY(hd_params_read(p->class->params, p->params, p->node, engine_fields));
    if (p->class->check) {
        hd_status status = p->class->check(p->params);
        if (status != HD_OK) {
            char why[1024];
            snprintf(why, sizeof why, "%s", hd_message());
            const char *file = hd_json_name(p->node); // the check may have named the place itself
            if (strncmp(why, file, strlen(file)) == 0 && why[strlen(file)] == ':') return status;
            return hd_json_fail(p->node, status, "(%s) %s", name, why);
        }
    }
    HD_TRY(read_sites(p));
    HD_TRY(read_branches(p));
    return read_steps(p, steps);
}

hd_status hd_attention_run_create(hd_attention_run **out, const hd_processor_list *list,
                                  const hd_json *processors, int64_t steps)
{
    hd_attention_run *run = calloc(1, sizeof *run);
    if (!run) return hd_fail(HD_ERR_NOMEM, "processors: no memory for the run");
    run->steps = steps;
    hd_status status = processors ? hd_json_expect(processors, HD_JSON_ARRAY) : HD_OK;
    int64_t count = processors && status == HD_OK ? hd_json_count(processors) : 0;
    if (count > 0) {
        run->processor = calloc((size_t)count, sizeof *run->processor);
        if (!run->processor)
            status = hd_fail(HD_ERR_NOMEM, "processors: no memory for %lld", (long long)count);
    }
    for (int64_t i = 0; i < count && status == HD_OK; i++) {
        run->processors = i + 1;
        run->processor[i].node = hd_json_at(processors, i);
        status = read_processor(&run->processor[i], list, steps);
    }
    if (status != HD_OK) {
        hd_attention_run_free(run);
        return status;
    }
    *out = run;
    return HD_OK;
}

static void free_site(run_site *site)
{
    if (!site) return;
    for (int64_t i = 0; i < site->links; i++) {
        for (run_state *s = site->link[i].states, *next; s; s = next) {
            next = s->next;
            free(s->bytes);
            free(s);
        }
    }
    free(site->link);
    free(site->text_kv.data);
    free(site);
}

void hd_attention_run_free(hd_attention_run *run)
{
    if (!run) return;
    for (int64_t i = 0; i < run->site_count; i++)
        free_site(run->site[i]);
    free(run->site);
    for (int64_t i = 0; i < run->processors; i++) {
        run_processor *p = &run->processor[i];
        if (p->class && p->params) hd_params_free(p->class->params, p->params);
        free(p->params);
        free(p->site);
        free(p->branch);
    }
    free(run->processor);
    free(run);
}

/* --- sites and their chains
 * --------------------------------------------------------------------------------------- */

run_site *hd_run_site_of(hd_attention_run *run, const hd_site *site)
{
    for (int64_t i = 0; i < run->site_count; i++) {
        run_site *s = run->site[i];
        if (s->site.network == site->network && s->site.kind == site->kind &&
            strcmp(s->site.path, site->path) == 0)
            return s;
    }
    return NULL;
}

hd_status hd_run_find_site(hd_attention_run *run, const hd_site *site, run_site **out)
{
    *out = hd_run_site_of(run, site);
    if (*out) return HD_OK;
    if (run->site_count == run->site_room) {
        int64_t room = run->site_room ? run->site_room * 2 : 64;
        run_site **grown = realloc(run->site, (size_t)room * sizeof *grown);
        if (!grown)
            return hd_fail(HD_ERR_NOMEM, "processors: no memory for %lld sites", (long long)room);
        run->site = grown;
        run->site_room = room;
    }
    run_site *fresh = calloc(1, sizeof *fresh);
    if (!fresh) return hd_fail(HD_ERR_NOMEM, "processors: no memory for a site");
    fresh->site = *site;
    run->site[run->site_count++] = fresh;
    *out = fresh;
    return HD_OK;
}

static bool selects_site(const run_processor *p, const hd_site *site)
{
    if (p->sites == 0) return site->network == HD_NETWORK_UNET || site->network == HD_NETWORK_DIT;
    for (int64_t i = 0; i < p->sites; i++)
        if (hd_site_matches(&p->site[i], site)) return true;
    return false;
}

static bool selects_row(const run_processor *p, const hd_row *row)
{
    if (p->branches == 0) return true;
    for (int64_t i = 0; i < p->branches; i++)
        if (hd_row_matches(p->branch[i], row)) return true;
    return false;
}

bool hd_run_active(const run_processor *p, const hd_forward *forward, bool *active)
{
    if (forward->step.index < p->first_step || forward->step.index >= p->end_step) return false;
    bool any = false;
    for (int64_t b = 0; b < forward->rows.count; b++)
        any |= active[b] = selects_row(p, &forward->rows.row[b]);
    return any;
}

static bool same_row(const hd_row *a, const hd_row *b)
{
    return a->picture == b->picture && strcmp(a->branch, b->branch) == 0 &&
           strcmp(a->role, b->role) == 0;
}

static hd_status add_states(run_link *link, const hd_rows *rows)
{
    if (link->prepared.state_bytes == 0) return HD_OK;
    for (int64_t b = 0; b < rows->count; b++) {
        run_state *s = link->states;
        while (s && !same_row(&s->row, &rows->row[b]))
            s = s->next;
        if (s) continue;
        s = calloc(1, sizeof *s);
        if (s) s->bytes = calloc(1, link->prepared.state_bytes);
        if (!s || !s->bytes) {
            free(s);
            return hd_fail(HD_ERR_NOMEM, "processors: no memory for the state of %s (%zu bytes)",
                           link->processor->class->name, link->prepared.state_bytes);
        }
        s->row = rows->row[b];
        s->next = link->states;
        link->states = s;
    }
    return HD_OK;
}

static hd_status prepare_link(run_link *link, const hd_attention_call *call)
{
    run_processor *p = link->processor;
    const hd_processor_class *class = p->class;
    char where[96], why[1024];
    hd_site_text(where, sizeof where, &call->site);
    if ((class->edits & HD_READS_X) && !hd_tensor_given(call->x))
        return hd_json_fail(p->node, HD_ERR_UNSUPPORTED,
                            "(%s) needs the layer's input, which %s does not hand out", class->name,
                            where);
    link->prepared = (hd_prepare_ctx){.params = p->params, .call = call};
    hd_status status = class->prepare ? class->prepare(&link->prepared) : HD_OK;
    link->prepared.call = NULL; // it dies with this call
    if (status != HD_OK) {
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(p->node, status, "(%s) cannot act at %s: %s", class->name, where, why);
    }
    if (link->prepared.passes < 0 || link->prepared.passes > HD_MAX_PASSES)
        return hd_json_fail(p->node, HD_ERR_INTERNAL, "(%s) asks for %d extra passes, at most %d",
                            class->name, link->prepared.passes, HD_MAX_PASSES);
    return HD_OK;
}

static hd_status make_links(hd_attention_run *run, const hd_attention_call *call, run_site *site)
{
    site->link = calloc((size_t)run->processors, sizeof *site->link);
    if (!site->link)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for the chain of %s", call->site.path);
    for (int64_t i = 0; i < run->processors; i++) {
        if (!selects_site(&run->processor[i], &call->site)) continue;
        run_link *link = &site->link[site->links++];
        link->processor = &run->processor[i];
        link->processor->met_site = true;
        HD_TRY(prepare_link(link, call));
    }
    return HD_OK;
}

hd_status hd_run_resolve(hd_attention_run *run, const hd_attention_call *call, run_site **out)
{
    run_site *site;
    HD_TRY(hd_run_find_site(run, &call->site, &site));
    if (!site->link) site->site = call->site; // the text's keys may have met it by its path alone
    if (!site->link && run->processors > 0) HD_TRY(make_links(run, call, site));
    const hd_rows *rows = &call->forward->rows;
    for (int64_t i = 0; i < site->links; i++) {
        run_link *link = &site->link[i];
        for (int64_t b = 0; b < rows->count; b++)
            if (selects_row(link->processor, &rows->row[b])) link->processor->met_row = true;
        HD_TRY(add_states(link, rows));
    }
    *out = site;
    return HD_OK;
}

hd_status hd_attention_run_finish(hd_attention_run *run)
{
    for (int64_t i = 0; i < run->processors; i++) {
        const run_processor *p = &run->processor[i];
        if (!p->met_site) {
            char list[900] = "";
            size_t used = 0;
            for (int64_t s = 0; s < run->site_count && used < sizeof list - 100; s++) {
                char text[96];
                used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", s ? ", " : "",
                                         hd_site_text(text, sizeof text, &run->site[s]->site));
            }
            return hd_json_fail(p->node, HD_ERR_ARGUMENT,
                                "(%s) matches no attention site of this model; it has: %s%s",
                                p->class->name, list, used >= sizeof list - 100 ? " ..." : "");
        }
        if (!p->met_row) {
            const hd_json *node = hd_json_get(p->node, "branches");
            return hd_json_fail(node ? node : p->node, HD_ERR_ARGUMENT,
                                "(%s) matches no row of this run", p->class->name);
        }
    }
    return HD_OK;
}

void hd_attention_run_restart(hd_attention_run *run)
{
    for (int64_t i = 0; i < run->site_count; i++)
        for (int64_t l = 0; l < run->site[i]->links; l++) {
            run_link *link = &run->site[i]->link[l];
            for (run_state *s = link->states; s; s = s->next)
                memset(s->bytes, 0, link->prepared.state_bytes);
        }
}

int64_t hd_attention_run_sites(const hd_attention_run *run)
{
    return run->site_count;
}

const hd_site *hd_attention_run_site(const hd_attention_run *run, int64_t index)
{
    return &run->site[index]->site;
}

char *hd_attention_run_chain_text(const hd_attention_run *run, int64_t index, char *text,
                                  size_t bytes)
{
    const run_site *site = run->site[index];
    size_t used = 0;
    if (bytes) text[0] = 0;
    for (int64_t i = 0; i < site->links && used < bytes; i++) {
        const run_processor *p = site->link[i].processor;
        used += (size_t)snprintf(text + used, bytes - used, "%s%s [%lld, %lld)", i ? ", " : "",
                                 p->class->name, (long long)p->first_step, (long long)p->end_step);
    }
    return text;
}

/* --- keys and values of the text
 * ------------------------------------------------------------------------------------ */

hd_status hd_attention_run_text_kv(const hd_exec *ex, hd_attention_run *run, const char *path,
                                   const hd_linear *linear, hd_tensor text, hd_tensor *out)
{
    hd_site key = {.network = HD_NETWORK_UNET, .kind = HD_SITE_CROSS};
    snprintf(key.path, sizeof key.path, "%s", path);
    run_site *site;
    HD_TRY(hd_run_find_site(run, &key, &site));
    HD_ENSURE(text.rank == 3);
    hd_shape shape = hd_shape3(text.dim[0], text.dim[1], hd_linear_out(linear));
    hd_tensor kv = site->text_kv;
    if (!kv.data || hd_shape_count(shape) > hd_tensor_count(kv)) {
        // the size is known on the dry pass: nothing is allocated between steps
        free(site->text_kv.data);
        site->text_kv = hd_tensor_of(NULL, hd_linear_compute(linear), shape);
        site->text_kv_ready = false;
        size_t bytes = (size_t)hd_tensor_bytes(site->text_kv);
        site->text_kv.data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
        if (!site->text_kv.data)
            return hd_fail(HD_ERR_NOMEM,
                           "attention: no memory for the text's keys at %s (%zu bytes)", path,
                           bytes);
    }
    *out = hd_tensor_of(site->text_kv.data, hd_linear_compute(linear), shape);
    if (site->text_kv_ready && !ex->recording) return HD_OK;
    HD_TRY(hd_linear_run(ex, linear, *out, text, hd_tensor_none()));
    site->text_kv_ready = !ex->recording;
    return HD_OK;
}

void hd_attention_run_forget_text(hd_attention_run *run)
{
    for (int64_t i = 0; i < run->site_count; i++)
        run->site[i]->text_kv_ready = false;
}
