/* pipelines/capture.c: selected calls, copied as they pass. */
#include "pipelines/capture.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/site.h"
#include "engine/ops/elementwise.h"
#include "engine/options/json_write.h"
#include "engine/weights/safetensors_write.h"

enum { CAPTURE_SITES = 16, CAPTURE_STEPS = 64 };

/* One call that is kept. */
typedef struct captured {
    hd_site site;
    int64_t step;
    bool filled;
    void *memory[3];
    size_t bytes[3];
    hd_tensor part[3]; // q, k, v
    char prefix[24];   // of its tensors: "", "1." ...
    hd_token_layout queries;
    char *description; // JSON object
} captured;

struct hd_capture {
    const char *path;
    hd_site_selector site[CAPTURE_SITES];
    int sites;
    int64_t step[CAPTURE_STEPS];
    int steps;
    int64_t count, room;
    captured *call;
    hd_attention_watch next;
    void *next_user;
};

static hd_status read_sites(hd_capture *c, const char *text, const hd_json *node)
{
    for (const char *at = text; c->sites == 0 || *at;) {
        char one[160];
        const size_t length = strcspn(at, ";");
        if (length >= sizeof one || c->sites == CAPTURE_SITES)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "has more than %d selectors, or a very long one", CAPTURE_SITES);
        snprintf(one, sizeof one, "%.*s", (int)length, at);
        hd_status status = hd_site_selector_parse(&c->site[c->sites++], one);
        if (status != HD_OK) {
            char why[600];
            snprintf(why, sizeof why, "%s", hd_message());
            return hd_json_fail(node, status, "%s", why);
        }
        at += length + (at[length] == ';');
    }
    return HD_OK;
}

static hd_status read_steps(hd_capture *c, const char *text, const hd_json *node, int64_t calls)
{
    if (!text || !text[0]) {
        c->step[c->steps++] = calls / 2;
        return HD_OK;
    }
    for (const char *at = text; *at;) {
        char *end;
        const long long step = strtoll(at, &end, 10);
        const bool fine = end != at && step >= 0 && step < calls && (*end == ',' || !*end);
        if (!fine || c->steps == CAPTURE_STEPS)
            return hd_json_fail(node, HD_ERR_ARGUMENT,
                                "is \"%.80s\", must be up to %d numbers from 0 to %" PRId64
                                " with commas between them",
                                text, CAPTURE_STEPS, calls - 1);
        c->step[c->steps++] = step;
        at = end + (*end == ',');
    }
    return HD_OK;
}

hd_status hd_capture_create(hd_capture **out, const hd_preset *preset, const hd_json *root,
                            int64_t calls, hd_attention_watch next, void *next_user)
{
    hd_capture *c = calloc(1, sizeof *c);
    if (!c) return hd_fail(HD_ERR_NOMEM, "capture: no memory");
    c->path = preset->capture;
    c->next = next;
    c->next_user = next_user;
    hd_status status = read_sites(c, preset->capture_sites, hd_json_get(root, "capture_sites"));
    if (status == HD_OK)
        status = read_steps(c, preset->capture_steps, hd_json_get(root, "capture_steps"), calls);
    if (status != HD_OK) {
        hd_capture_free(c);
        return status;
    }
    *out = c;
    return HD_OK;
}

void hd_capture_free(hd_capture *c)
{
    if (!c) return;
    for (int64_t i = 0; i < c->count; i++) {
        for (int p = 0; p < 3; p++)
            free(c->call[i].memory[p]);
        free(c->call[i].description);
    }
    free(c->call);
    free(c);
}

static captured *find(const hd_capture *c, const hd_site *site, int64_t step)
{
    for (int64_t i = 0; i < c->count; i++)
        if (c->call[i].step == step && c->call[i].site.network == site->network &&
            c->call[i].site.kind == site->kind && strcmp(c->call[i].site.path, site->path) == 0)
            return &c->call[i];
    return NULL;
}

static hd_status add(hd_capture *c, const hd_site *site, int64_t step, captured **out)
{
    if (c->count == c->room) {
        const int64_t room = c->room ? 2 * c->room : 16;
        captured *grown = realloc(c->call, (size_t)room * sizeof *grown);
        if (!grown) return hd_fail(HD_ERR_NOMEM, "capture: no memory for a list of calls");
        c->call = grown;
        c->room = room;
    }
    captured *call = &c->call[c->count];
    *call = (captured){.site = *site, .step = step};
    if (c->count > 0) snprintf(call->prefix, sizeof call->prefix, "%" PRId64 ".", c->count);
    c->count++;
    *out = call;
    return HD_OK;
}

// Memory for a call, on the dry pass: it may come twice, and the largest counts.
static hd_status reserve(hd_capture *c, const hd_attention_call *seen, int64_t step)
{
    const hd_tensor part[3] = {seen->q, seen->k, seen->v};
    captured *call = find(c, &seen->site, step);
    if (!call) HD_TRY(add(c, &seen->site, step, &call));
    for (int p = 0; p < 3; p++) {
        const size_t bytes = (size_t)hd_tensor_bytes(part[p]);
        if (bytes <= call->bytes[p]) continue;
        free(call->memory[p]);
        call->memory[p] = malloc(bytes);
        call->bytes[p] = call->memory[p] ? bytes : 0;
        if (!call->memory[p])
            return hd_fail(HD_ERR_NOMEM,
                           "capture: no memory for the attention of %s (%zu bytes); select fewer "
                           "sites or steps",
                           seen->site.path, bytes);
    }
    return HD_OK;
}

static void write_layout(hd_json_writer *w, const char *key, const hd_token_layout *layout)
{
    hd_json_write_array(w, key);
    for (int s = 0; s < layout->segments; s++) {
        const hd_token_segment *g = &layout->segment[s];
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "kind", hd_token_kinds[g->kind]);
        hd_json_write_int(w, "start", g->start);
        hd_json_write_int(w, "count", g->count);
        if (g->width > 0) {
            hd_json_write_array(w, "grid");
            hd_json_write_int(w, NULL, g->frames);
            hd_json_write_int(w, NULL, g->height);
            hd_json_write_int(w, NULL, g->width);
            hd_json_write_end(w, ']');
        }
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

static void write_lengths(hd_json_writer *w, const char *key, const int64_t *length, int64_t rows)
{
    hd_json_write_array(w, key);
    for (int64_t b = 0; b < rows; b++)
        hd_json_write_int(w, NULL, length[b]);
    hd_json_write_end(w, ']');
}

static hd_status describe(captured *call, const hd_attention_seen *seen)
{
    const hd_attention_call *c = seen->call;
    const hd_forward *f = c->forward;
    hd_json_writer w = {0};
    char text[96];
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "prefix", call->prefix);
    hd_json_write_string(&w, "site", hd_site_text(text, sizeof text, &c->site));
    hd_json_write_int(&w, "factor", c->site.factor);
    hd_json_write_int(&w, "step", f->step.index);
    hd_json_write_int(&w, "steps", f->step.count);
    hd_json_write_double(&w, "timestep", f->step.timestep);
    hd_json_write_double(&w, "sigma", f->step.sigma);
    hd_json_write_float(&w, "scale", c->scale);
    hd_json_write_bool(&w, "causal", c->causal);
    hd_json_write_array(&w, "rows");
    for (int64_t b = 0; b < f->rows.count; b++) {
        snprintf(text, sizeof text, "%s/%s", f->rows.row[b].branch, f->rows.row[b].role);
        hd_json_write_string(&w, NULL, text);
    }
    hd_json_write_end(&w, ']');
    write_layout(&w, "queries", &c->q_layout);
    write_layout(&w, "keys", &c->k_layout);
    write_lengths(&w, "query_len", seen->query_len, f->rows.count);
    write_lengths(&w, "key_len", seen->key_len, f->rows.count);
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, &call->description);
}

static hd_status keep(captured *call, const hd_attention_seen *seen)
{
    const hd_tensor part[3] = {seen->call->q, seen->call->k, seen->call->v};
    for (int p = 0; p < 3; p++) {
        HD_ENSURE((size_t)hd_tensor_bytes(part[p]) <= call->bytes[p]);
        call->part[p] = hd_tensor_of(call->memory[p], part[p].dtype, hd_tensor_shape(part[p]));
        HD_TRY(hd_copy(seen->ex, call->part[p], part[p]));
    }
    call->filled = true;
    call->queries = seen->call->q_layout;
    return describe(call, seen);
}

static bool selected(const hd_capture *c, const hd_site *site)
{
    for (int i = 0; i < c->sites; i++)
        if (hd_site_matches(&c->site[i], site)) return true;
    return false;
}

hd_status hd_capture_watch(void *user, const hd_attention_seen *seen)
{
    hd_capture *c = user;
    const hd_attention_call *call = seen->call;
    if (c->next) HD_TRY(c->next(c->next_user, seen));
    if (seen->ex->recording) {
        for (int i = 0; i < c->steps && selected(c, &call->site); i++)
            HD_TRY(reserve(c, call, c->step[i]));
        return HD_OK;
    }
    captured *mine = find(c, &call->site, call->forward->step.index);
    return mine && !mine->filled ? keep(mine, seen) : HD_OK; // of the first pictures
}

hd_status hd_capture_check(const hd_capture *c, const hd_json *root)
{
    const hd_json *sites = hd_json_get(root, "capture_sites");
    if (c->count > 0) return HD_OK;
    return hd_json_fail(sites ? sites : root, HD_ERR_ARGUMENT,
                        "selects no attention site of this model for capture");
}

// The grid of queries of the first call, as benchmarks read it: "F,H,W" and its first token.
static bool grid_text(const captured *call, char grid[80], char start[24])
{
    for (int i = 0; i < call->queries.segments; i++) {
        const hd_token_segment *g = &call->queries.segment[i];
        if (g->width == 0) continue;
        snprintf(grid, 80, "%" PRId64 ",%" PRId64 ",%" PRId64, g->frames, g->height, g->width);
        snprintf(start, 24, "%" PRId64, g->start);
        return true;
    }
    return false;
}

// Room for what hd_safetensors_write takes.
typedef struct capture_lists {
    hd_named_tensor *tensor; // [3 count]
    char (*name)[32];        // of the tensors
    char (*key)[32];         // [count] of the descriptions
    const char **metadata;   // key, value ... NULL
} capture_lists;

static void fill_lists(const hd_capture *c, capture_lists *l)
{
    static const char parts[3] = {'q', 'k', 'v'};
    int64_t m = 0;
    while (l->metadata[m])
        m++;
    for (int64_t i = 0; i < c->count; i++) {
        const captured *call = &c->call[i];
        for (int p = 0; p < 3; p++) {
            snprintf(l->name[3 * i + p], sizeof *l->name, "%s%c", call->prefix, parts[p]);
            l->tensor[3 * i + p] = (hd_named_tensor){l->name[3 * i + p], call->part[p]};
        }
        snprintf(l->key[i], sizeof *l->key, "call.%" PRId64, i);
        l->metadata[m++] = l->key[i];
        l->metadata[m++] = call->description;
    }
}

hd_status hd_capture_write(const hd_capture *c)
{
    char grid[80], start[24];
    const size_t count = (size_t)c->count;
    for (int64_t i = 0; i < c->count; i++) // every selected call comes in every run
        HD_ENSURE(c->call[i].filled);
    capture_lists l = {calloc(3 * count, sizeof *l.tensor), calloc(3 * count, sizeof *l.name),
                       calloc(count, sizeof *l.key), calloc(2 * count + 5, sizeof *l.metadata)};
    hd_status status = HD_OK;
    if (!l.tensor || !l.name || !l.key || !l.metadata)
        status = hd_fail(HD_ERR_NOMEM, "capture: no memory for a list of calls");
    if (status == HD_OK && grid_text(&c->call[0], grid, start)) {
        l.metadata[0] = "grid", l.metadata[1] = grid;
        l.metadata[2] = "grid_start", l.metadata[3] = start;
    }
    if (status == HD_OK) {
        fill_lists(c, &l);
        status = hd_safetensors_write(c->path, 3 * c->count, l.tensor, l.metadata);
    }
    free(l.tensor);
    free(l.name);
    free(l.key);
    free((void *)l.metadata);
    return status;
}
