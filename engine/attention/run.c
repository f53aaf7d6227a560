/* engine/attention/run.c: what lives as long as a run: its processors, their sites and states, the
 * keys and values of its text. */
#include "engine/attention/run.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run_internal.h"
#include "engine/ops/elementwise.h"

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

static void free_site(run_site *site, int64_t processors)
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
    for (run_kept *kept = site->kept, *next; kept; kept = next) {
        next = kept->next;
        free(kept->k.data);
        free(kept->v.data);
        free(kept);
    }
    free(site->link);
    free(site->text_kv.data);
    free(site->own_kv.data);
    for (int64_t i = 0; site->text_weights && i < processors; i++)
        hd_linear_free(site->text_weights[i].linear);
    free(site->text_weights);
    free(site);
}

void hd_attention_run_free(hd_attention_run *run)
{
    if (!run) return;
    for (int64_t i = 0; i < run->site_count; i++)
        free_site(run->site[i], run->processors);
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

// Room for keys or values that are kept: known on the dry pass, nothing is allocated between steps.
static hd_status keep_room(hd_tensor *kept, hd_dtype compute, hd_shape shape, const char *path)
{
    free(kept->data);
    *kept = hd_tensor_of(NULL, compute, shape);
    size_t bytes = (size_t)hd_tensor_bytes(*kept);
    kept->data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    if (kept->data) return HD_OK;
    return hd_fail(HD_ERR_NOMEM, "attention: no memory for the text's keys at %s (%zu bytes)", path,
                   bytes);
}

// The weights that the processors of the run's own texts bring for this site.
static hd_status find_weights(const hd_exec *ex, hd_attention_run *run, run_site *site,
                              const char *path, const hd_linear *linear)
{
    if (!site->text_weights)
        site->text_weights = calloc((size_t)run->processors, sizeof *site->text_weights);
    if (!site->text_weights) return hd_fail(HD_ERR_NOMEM, "attention: no memory for %s", path);
    for (int i = 0; i < run->texts->texts; i++) {
        const hd_text *text = &run->texts->text[i];
        const run_processor *p = &run->processor[text->processor];
        run_text_weights *own = &site->text_weights[text->processor];
        if (!text->own_weights || own->asked || !p->class->text_weights) continue;
        hd_text_weights w = {.ex = ex,
                             .path = path,
                             .in = hd_linear_in(linear),
                             .out = hd_linear_out(linear),
                             .compute = hd_linear_compute(linear)};
        HD_TRY(hd_run_place(p, p->class->text_weights(p->params, &w)));
        *own = (run_text_weights){true, w.adds, w.linear};
    }
    return HD_OK;
}

static hd_status project_own(const hd_exec *ex, const hd_attention_run *run, const run_site *site,
                             const hd_linear *linear)
{
    hd_tensor text =
        hd_arena_tensor(ex->arena, hd_linear_compute(linear), hd_tensor_shape(run->text));
    HD_TRY(hd_copy(ex, text, run->text));
    for (int i = 0; i < run->texts->texts; i++) {
        const hd_text *is = &run->texts->text[i];
        const run_text_weights *own = &site->text_weights[is->processor];
        const hd_linear *mine = is->own_weights ? own->linear : NULL;
        hd_tensor in = hd_tensor_slice(text, 0, i, 1), out = hd_tensor_slice(site->own_kv, 0, i, 1);
        if (!mine || own->adds) HD_TRY(hd_linear_run(ex, linear, out, in, hd_tensor_none()));
        if (mine) HD_TRY(hd_linear_run(ex, mine, out, in, own->adds ? out : hd_tensor_none()));
    }
    return HD_OK;
}

static hd_status make_own_kv(const hd_exec *ex, hd_attention_run *run, run_site *site,
                             const char *path, const hd_linear *linear)
{
    if (!run->texts || run->texts->texts == 0) return HD_OK;
    if (site->own_kv_ready && !ex->recording) return HD_OK;
    const hd_shape shape = hd_shape3(run->text.dim[0], run->text.dim[1], hd_linear_out(linear));
    if (!site->own_kv.data)
        HD_TRY(keep_room(&site->own_kv, hd_linear_compute(linear), shape, path));
    HD_TRY(find_weights(ex, run, site, path, linear));
    size_t mark = hd_arena_mark(ex->arena);
    hd_status status = project_own(ex, run, site, linear);
    hd_arena_rewind(ex->arena, mark);
    site->own_kv_ready = status == HD_OK && !ex->recording;
    return status;
}

void hd_attention_run_set_texts(hd_attention_run *run, const hd_branches *branches,
                                hd_tensor values)
{
    run->texts = branches;
    run->text = values;
}

hd_status hd_attention_run_text_kv(const hd_exec *ex, hd_attention_run *run, const char *path,
                                   const hd_linear *linear, hd_tensor text, hd_tensor *out)
{
    hd_site key = {.network = HD_NETWORK_UNET, .kind = HD_SITE_CROSS};
    snprintf(key.path, sizeof key.path, "%s", path);
    run_site *site;
    HD_TRY(hd_run_find_site(run, &key, &site));
    HD_TRY(make_own_kv(ex, run, site, path, linear));
    HD_ENSURE(text.rank == 3);
    hd_shape shape = hd_shape3(text.dim[0], text.dim[1], hd_linear_out(linear));
    hd_tensor kv = site->text_kv;
    if (!kv.data || hd_shape_count(shape) > hd_tensor_count(kv)) {
        site->text_kv_ready = false;
        HD_TRY(keep_room(&site->text_kv, hd_linear_compute(linear), shape, path));
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
