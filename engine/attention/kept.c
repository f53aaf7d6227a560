/* engine/attention/kept.c: see kept.h. */
#include "engine/attention/kept.h"

#include <stdlib.h>
#include <string.h>

#include "engine/attention/edit.h"
#include "engine/attention/run_internal.h"

static bool row_is(const hd_row *row, const char *branch)
{
    if (strcmp(row->branch, branch) == 0) return true;
    for (int i = 0; row->also && row->also[i]; i++)
        if (strcmp(row->also[i], branch) == 0) return true;
    return false;
}

static run_kept *find_kept(const run_site *site, const hd_row *row)
{
    run_kept *kept = site->kept;
    while (kept &&
           (kept->row.picture != row->picture || strcmp(kept->row.branch, row->branch) != 0))
        kept = kept->next;
    return kept;
}

// The processor that asked for the keys of this row at this site, and for how many; NULL: nobody.
static const run_processor *asked_by(const run_site *site, const hd_row *row, int64_t *tokens)
{
    for (int64_t l = 0; l < site->links; l++) {
        const hd_prepare_ctx *asked = &site->link[l].prepared;
        for (int i = 0; i < asked->keeps; i++) {
            if (!row_is(row, asked->keep[i].branch)) continue;
            *tokens = asked->keep[i].tokens;
            return site->link[l].processor;
        }
    }
    return NULL;
}

static hd_status take(hd_tensor *out, hd_tensor like)
{
    *out = hd_tensor_of(NULL, like.dtype, hd_shape4(1, like.dim[1], like.dim[2], like.dim[3]));
    const size_t bytes = (size_t)hd_tensor_bytes(*out);
    out->data = aligned_alloc(64, (bytes + 63) & ~(size_t)63);
    return out->data
               ? HD_OK
               : hd_fail(HD_ERR_NOMEM, "attention: no memory for %zu bytes of kept keys", bytes);
}

static hd_status add_kept(run_site *site, const hd_row *row, const hd_attention_call *call)
{
    run_kept *kept = calloc(1, sizeof *kept);
    if (!kept) return hd_fail(HD_ERR_NOMEM, "attention: no memory for kept keys");
    kept->row = *row;
    kept->next = site->kept;
    site->kept = kept; // freed with the site
    HD_TRY(take(&kept->k, call->k));
    return take(&kept->v, call->v);
}

hd_status hd_attention_run_keep(void *arg, const hd_attention_seen *seen)
{
    const hd_attention_call *call = seen->call;
    run_site *site = hd_run_site_of(arg, &call->site);
    const hd_rows *rows = &call->forward->rows;
    for (int64_t b = 0; site && b < rows->count; b++) {
        int64_t tokens;
        const run_processor *p = asked_by(site, &rows->row[b], &tokens);
        if (!p) continue;
        run_kept *kept = find_kept(site, &rows->row[b]);
        if (seen->ex->recording) {
            if (tokens != call->k.dim[1])
                return hd_json_fail(p->node, HD_ERR_SHAPE,
                                    "(%s) expects %lld tokens of branch \"%s\" at %s, which has "
                                    "%lld",
                                    p->class->name, (long long)tokens, rows->row[b].branch,
                                    call->site.path, (long long)call->k.dim[1]);
            if (!kept) HD_TRY(add_kept(site, &rows->row[b], call));
            continue;
        }
        HD_ENSURE(kept && kept->k.dim[1] == call->k.dim[1]);
        hd_edit_copy(kept->k, 0, call->k, b, call->k.dim[1]);
        hd_edit_copy(kept->v, 0, call->v, b, call->v.dim[1]);
        kept->step = call->forward->step.index;
    }
    return HD_OK;
}

bool hd_kept_keys(const hd_hook_ctx *ctx, const char *branch, int64_t picture, hd_tensor *k,
                  hd_tensor *v)
{
    const run_site *site = hd_run_site_of(ctx->call->forward->run, &ctx->call->site);
    const run_kept *kept = site ? site->kept : NULL;
    while (kept && (kept->row.picture != picture || !row_is(&kept->row, branch)))
        kept = kept->next;
    if (!kept || kept->step != ctx->call->forward->step.index) return false;
    *k = kept->k, *v = kept->v;
    return true;
}
