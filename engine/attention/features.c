/* engine/attention/features.c: see features.h. */
#include "engine/attention/features.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "engine/attention/run_internal.h"

#define PATH_BYTES 48

typedef struct wish {
    char path[PATH_BYTES];
    int processor;
    const hd_json *node;
    bool met;
} wish;

typedef struct tap {
    char path[PATH_BYTES];
    int64_t sites; // attention sites that the run had met before it
} tap;

struct hd_features {
    int64_t wishes, taps;
    wish *wish;
    tap *tap; // those the network has, as they are met
};

hd_status hd_features_create(hd_features **out)
{
    *out = calloc(1, sizeof **out);
    return *out ? HD_OK : hd_fail(HD_ERR_NOMEM, "features: no memory");
}

void hd_features_free(hd_features *f)
{
    if (!f) return;
    free(f->wish);
    free(f->tap);
    free(f);
}

hd_status hd_ask_feature(hd_branches_ctx *ctx, const char *path)
{
    hd_features *f = ctx->features;
    if (strlen(path) >= PATH_BYTES)
        return hd_json_fail(ctx->node, HD_ERR_ARGUMENT, "feature \"%.60s...\" is too long", path);
    wish *grown = realloc(f->wish, (size_t)(f->wishes + 1) * sizeof *grown);
    if (!grown) return hd_fail(HD_ERR_NOMEM, "features: no memory");
    f->wish = grown;
    f->wish[f->wishes] = (wish){.processor = ctx->processor, .node = ctx->node};
    strcpy(f->wish[f->wishes++].path, path);
    return HD_OK;
}

hd_status hd_features_finish(const hd_features *f)
{
    for (int64_t i = 0; i < f->wishes; i++) {
        if (f->wish[i].met) continue;
        char list[900] = "";
        size_t used = 0;
        for (int64_t t = 0; t < f->taps && used < sizeof list - PATH_BYTES; t++)
            used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", t ? ", " : "",
                                     f->tap[t].path);
        return hd_json_fail(f->wish[i].node, HD_ERR_ARGUMENT,
                            "wants the feature \"%s\", which this model does not have; it has: "
                            "%s%s",
                            f->wish[i].path, list, used >= sizeof list - PATH_BYTES ? " ..." : "");
    }
    return HD_OK;
}

const char *hd_features_asked(const hd_features *f, int64_t index, int *processor)
{
    if (!f || index < 0 || index >= f->wishes) return NULL;
    *processor = f->wish[index].processor;
    return f->wish[index].path;
}

int64_t hd_features_tap(const hd_features *f, int64_t index, const char **path)
{
    if (!f || index < 0 || index >= f->taps) return -1;
    *path = f->tap[index].path;
    return f->tap[index].sites;
}

static bool acts(const hd_forward *forward, const wish *w)
{
    const run_processor *p = &forward->run->processor[w->processor];
    return p->class->feature && forward->step.index >= p->first_step &&
           forward->step.index < p->end_step;
}

bool hd_feature_wanted(const hd_exec *ex, const hd_forward *forward, const char *path)
{
    if (!forward || !forward->features || !forward->run) return false;
    const hd_features *f = forward->features;
    for (int64_t i = 0; i < f->wishes; i++)
        if (hd_path_matches(f->wish[i].path, path) && (ex->recording || acts(forward, &f->wish[i])))
            return true;
    return ex->recording && f->wishes > 0;
}

static hd_status meet(hd_features *f, const hd_attention_run *run, const char *path)
{
    for (int64_t i = 0; i < f->wishes; i++)
        if (hd_path_matches(f->wish[i].path, path)) f->wish[i].met = true;
    for (int64_t t = 0; t < f->taps; t++)
        if (strcmp(f->tap[t].path, path) == 0) return HD_OK;
    void *grown = realloc(f->tap, (size_t)(f->taps + 1) * sizeof *f->tap);
    if (!grown) return hd_fail(HD_ERR_NOMEM, "features: no memory");
    f->tap = grown;
    f->tap[f->taps].sites = run->site_count;
    snprintf(f->tap[f->taps++].path, PATH_BYTES, "%s", path);
    return HD_OK;
}

hd_status hd_feature(const hd_exec *ex, const hd_forward *forward, const char *path, hd_tensor x)
{
    if (!forward || !forward->features || !forward->run) return HD_OK;
    hd_features *f = forward->features;
    if (ex->recording) return meet(f, forward->run, path);
    HD_ENSURE(x.dim[0] == forward->rows.count && x.dim[0] <= HD_MAX_ROWS);
    for (int64_t i = 0; i < f->wishes; i++) {
        const wish *w = &f->wish[i];
        bool active[HD_MAX_ROWS];
        if (!hd_path_matches(w->path, path) || !acts(forward, w)) continue;
        const run_processor *p = &forward->run->processor[w->processor];
        if (!hd_run_active(p, forward, active)) continue;
        hd_feature_ctx ctx = {.params = p->params,
                              .ex = ex,
                              .path = path,
                              .rows = &forward->rows,
                              .step = forward->step,
                              .active = active};
        HD_TRY(p->class->feature(&ctx, x));
    }
    return HD_OK;
}
