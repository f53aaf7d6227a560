/* engine/attention/run.c: what lives as long as a run: its processors, their sites and states, the
 * keys and values of its text. */
#include "engine/attention/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run_internal.h"

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
        status = hd_run_read_processor(&run->processor[i], list, steps);
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
        run_link *link = &site->link[i];
        for (run_state *s = link->states, *next; s; s = next) {
            next = s->next;
            free(s->bytes);
            free(s);
        }
        if (link->prepared.made && link->processor->class->release)
            link->processor->class->release(link->prepared.made);
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
    for (int64_t i = 0; i < run->processors; i++)
        hd_run_clear_processor(&run->processor[i]);
    free(run->processor);
    free(run->active);
    free(run);
}

static hd_status show_sites(const hd_attention_run *run, const run_processor *p)
{
    const hd_site **met = calloc((size_t)run->site_count + 1, sizeof *met);
    if (!met)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for %lld sites",
                       (long long)run->site_count);
    hd_sites_ctx ctx = {p->params, p->node, 0, met};
    for (int64_t s = 0; s < run->site_count; s++)
        for (int64_t i = 0; i < run->site[s]->links; i++)
            if (run->site[s]->link[i].processor == p) met[ctx.count++] = &run->site[s]->site;
    hd_status status = p->class->sites(&ctx);
    free(met);
    return status;
}

hd_status hd_attention_run_finish(hd_attention_run *run)
{
    for (int64_t i = 0; i < run->processors; i++) {
        const run_processor *p = &run->processor[i];
        const hd_json *sites = hd_json_get(p->node, "sites");
        if (!hd_run_has_call_hooks(p->class) && sites)
            return hd_json_fail(sites, HD_ERR_ARGUMENT,
                                "names sites, but %s acts beside attention only; leave it out",
                                p->class->name);
        if (!hd_run_has_call_hooks(p->class)) continue;
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
        if (p->class->sites) HD_TRY(show_sites(run, p));
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

void hd_attention_run_watch(hd_attention_run *run, hd_attention_watch watch, void *user)
{
    run->watch = watch;
    run->watch_user = user;
}

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
