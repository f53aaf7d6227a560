/* engine/attention/resolve.c: which processors act at a site, and what they need there; decided on
 * the dry pass. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/call.h"
#include "engine/attention/run_internal.h"

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

// Does the preset's "branches" name it?
static bool names_row(const run_processor *p, const hd_row *row)
{
    if (p->branches == 0) return true;
    for (int64_t i = 0; i < p->branches; i++)
        if (hd_row_matches(p->branch[i], row)) return true;
    return false;
}

bool hd_run_selects_row(const run_processor *p, const hd_row *row)
{
    return names_row(p, row) && (!p->class->acts_on || p->class->acts_on(p->params, row));
}

bool hd_run_meet(const run_processor *a, const run_processor *b, const hd_rows *rows)
{
    if (a->first_step >= b->end_step || b->first_step >= a->end_step) return false;
    if (a->first_step == a->end_step || b->first_step == b->end_step) return false;
    for (int64_t i = 0; rows && i < rows->count; i++)
        if (hd_run_selects_row(a, &rows->row[i]) && hd_run_selects_row(b, &rows->row[i]))
            return true;
    return !rows;
}

bool hd_run_active(const run_processor *p, const hd_forward *forward, bool *active)
{
    if (forward->step.index < p->first_step || forward->step.index >= p->end_step) return false;
    bool any = false;
    for (int64_t b = 0; b < forward->rows.count; b++)
        any |= active[b] = hd_run_selects_row(p, &forward->rows.row[b]);
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

hd_status hd_run_refuse(const run_processor *p, const hd_site *site, hd_status status)
{
    char where[96], why[1024];
    hd_site_text(where, sizeof where, site);
    snprintf(why, sizeof why, "%s", hd_message());
    return hd_json_fail(p->node, status, "(%s) cannot act at %s: %s", p->class->name, where, why);
}

// The call as the processors of `site` that are prepared by now may leave it for `p`: with room for
// the keys they append. Static plans do without: hd_call_plans puts those keys behind them.
static hd_status shown_call(const run_site *site, const bool *prepared, const run_processor *p,
                            hd_attention_call *call)
{
    int64_t extra = 0;
    for (int64_t i = 0; i < site->links && !p->class->static_plan; i++)
        if (prepared[i] && hd_run_meet(site->link[i].processor, p, NULL))
            extra += site->link[i].prepared.extra_keys;
    return extra > 0 ? hd_call_append(call, extra) : HD_OK;
}

hd_status hd_call_append(hd_attention_call *call, int64_t keys)
{
    hd_token_layout *layout = &call->k_layout;
    if (layout->segments == HD_MAX_SEGMENTS)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "keys are to be appended, but those of the call have %d segments already",
                       HD_MAX_SEGMENTS);
    layout->segment[layout->segments++] =
        (hd_token_segment){HD_TOKENS_REFERENCE, call->k.dim[1], keys, 0, 0, 0};
    call->k.dim[1] += keys, call->v.dim[1] += keys;
    return HD_OK;
}

// Programs may bring classes of their own: what a prepare asks for is checked.
static hd_status check_prepared(const run_link *link)
{
    const run_processor *p = link->processor;
    const hd_prepare_ctx *c = &link->prepared;
    const bool segments = p->class->edits & HD_ADDS_SEGMENTS;
    if (c->passes < 0 || c->passes > HD_MAX_PASSES)
        return hd_json_fail(p->node, HD_ERR_INTERNAL, "(%s) asks for %d extra passes, at most %d",
                            p->class->name, c->passes, HD_MAX_PASSES);
    if (c->keeps < 0 || c->keeps > HD_MAX_KEEPS)
        return hd_json_fail(p->node, HD_ERR_INTERNAL, "(%s) asks to keep %d branches, at most %d",
                            p->class->name, c->keeps, HD_MAX_KEEPS);
    if (c->extra_keys < 0 || c->indicators < 0 || (c->indicators > 0 && !p->class->probe))
        return hd_json_fail(p->node, HD_ERR_INTERNAL,
                            "(%s) asks for %lld more keys and %lld indicators", p->class->name,
                            (long long)c->extra_keys, (long long)c->indicators);
    if (segments &&
        (c->query_labels < 1 || c->query_labels > 256 || c->key_labels < 1 || c->key_labels > 256))
        return hd_json_fail(p->node, HD_ERR_INTERNAL,
                            "(%s) asks for %lld and %lld segment labels, must be 1 to 256",
                            p->class->name, (long long)c->query_labels, (long long)c->key_labels);
    return HD_OK;
}

static hd_status prepare_link(const run_site *site, const bool *prepared, run_link *link,
                              const hd_attention_call *call)
{
    run_processor *p = link->processor;
    const hd_processor_class *class = p->class;
    hd_attention_call shown = *call;
    char where[96];
    hd_site_text(where, sizeof where, &call->site);
    if ((class->edits & HD_READS_X) && !hd_tensor_given(call->x))
        return hd_json_fail(p->node, HD_ERR_UNSUPPORTED,
                            "(%s) needs the layer's input, which %s does not hand out", class->name,
                            where);
    hd_status status = shown_call(site, prepared, p, &shown);
    link->prepared = (hd_prepare_ctx){.params = p->params,
                                      .call = &shown,
                                      .rest = p->plan.rest,
                                      .sites_given = p->sites > 0,
                                      .texts = hd_tensor_given(site->own_kv)};
    if (status == HD_OK && class->prepare) status = class->prepare(&link->prepared);
    link->prepared.call = NULL; // it dies here
    if (status != HD_OK) return hd_run_refuse(p, &call->site, status);
    return check_prepared(link);
}

// Those that have nothing to do at this site are no part of its chain.
static void drop_idle(run_site *site)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < site->links; i++) {
        run_link *link = &site->link[i];
        const hd_processor_class *class = link->processor->class;
        if (link->prepared.idle) {
            if (link->prepared.made && class->release) class->release(link->prepared.made);
            continue;
        }
        link->processor->met_site = true;
        site->link[kept++] = *link;
    }
    site->links = kept;
}

bool hd_run_has_call_hooks(const hd_processor_class *c)
{
    return c->prepare || c->pass || c->tokens || c->logits || c->probe || c->plan || c->map ||
           c->output;
}

static hd_status make_links(hd_attention_run *run, const hd_attention_call *call, run_site *site)
{
    site->link = calloc((size_t)run->processors, sizeof *site->link);
    if (!site->link)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for the chain of %s", call->site.path);
    for (int64_t i = 0; i < run->processors; i++) {
        run_processor *p = &run->processor[i];
        if (!hd_run_has_call_hooks(p->class) || !selects_site(p, &call->site)) continue;
        if (site->links == HD_MAX_LINKS)
            return hd_json_fail(p->node, HD_ERR_UNSUPPORTED,
                                "(%s) is one processor too many for one site; at most %d",
                                p->class->name, HD_MAX_LINKS);
        site->link[site->links++].processor = p;
    }
    bool prepared[HD_MAX_LINKS] = {false};
    for (int round = 0; round < 2; round++) // those that plan know what the others append
        for (int64_t i = 0; i < site->links; i++) {
            run_link *link = &site->link[i];
            if ((link->processor->class->plan != NULL) != (round == 1)) continue;
            HD_TRY(prepare_link(site, prepared, link, call));
            prepared[i] = !link->prepared.idle;
        }
    drop_idle(site);
    return HD_OK;
}

static hd_status make_active(hd_attention_run *run, int64_t links)
{
    if (links <= run->active_room) return HD_OK;
    call_link *grown = realloc(run->active, (size_t)links * sizeof *grown);
    if (!grown)
        return hd_fail(HD_ERR_NOMEM, "processors: no memory for calls of %lld processors",
                       (long long)links);
    run->active = grown;
    run->active_room = links;
    return HD_OK;
}

hd_status hd_run_resolve(hd_attention_run *run, const hd_attention_call *call, run_site **out)
{
    run_site *site;
    HD_TRY(hd_run_find_site(run, &call->site, &site));
    if (!site->link) site->site = call->site; // the text's keys may have met it by its path alone
    site->dtype = call->q.dtype;
    if (!site->link && run->processors > 0) HD_TRY(make_links(run, call, site));
    const hd_rows *rows = &call->forward->rows;
    HD_TRY(hd_run_check_chain(site, rows));
    HD_TRY(make_active(run, site->links));
    for (int64_t i = 0; i < site->links; i++) {
        run_link *link = &site->link[i];
        for (int64_t b = 0; b < rows->count; b++)
            if (names_row(link->processor, &rows->row[b])) link->processor->met_row = true;
        HD_TRY(add_states(link, rows));
    }
    *out = site;
    return HD_OK;
}
