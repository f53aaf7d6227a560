/* engine/attention/chain.c: which processors of a site go together, and what runs there, in words.
 *
 * What is decided once per site: how one processor's edits sit with what another assumes. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "engine/attention/run_internal.h"

// What stands in the way of two processors of one site: `b` is the one that is refused.
static hd_status refuse_pair(const hd_site *site, const run_processor *b, const run_processor *a,
                             const char *why)
{
    char where[96], path[300];
    return hd_json_fail(b->node, HD_ERR_UNSUPPORTED,
                        "(%s) cannot act at %s together with %s (%s): %s", b->class->name,
                        hd_site_text(where, sizeof where, site),
                        hd_json_path(a->node, path, sizeof path), a->class->name, why);
}

// What needs the tokens in their places; NULL: nothing does.
static const char *needs_places(const run_link *link, bool after)
{
    const run_processor *p = link->processor;
    const hd_processor_class *class = p->class;
    const unsigned edits = HD_EDITS_Q | HD_EDITS_K | HD_EDITS_V | HD_MOVES_TOKENS;
    const unsigned forms = HD_ADDS_COLUMN_BIAS | HD_ADDS_SEGMENTS | HD_ADDS_BIAS | HD_ADDS_MASK;
    if (class->map) return "it reads the map by the places of its tokens";
    if (link->prepared.indicators > 0) return "it probes keys by their places";
    if (class->edits & forms) return "it addresses tokens by their places";
    if (class->plan && p->plan.on_edit != HD_ON_EDIT_DENSE)
        return "its plan needs the tokens in their places; \"on_edit\": \"dense\" leaves it out "
               "there";
    if (class->edits & HD_MOVES_TOKENS) return "only one processor can move the tokens";
    if (after && class->tokens && (class->edits & edits))
        return "it edits tokens by their places; let it stand before the other";
    return NULL;
}

static hd_status check_movers(const run_site *site, int64_t i, int64_t j, const hd_rows *rows)
{
    const run_processor *a = site->link[i].processor, *b = site->link[j].processor;
    if (!(a->class->edits & HD_MOVES_TOKENS)) return HD_OK;
    if (!hd_run_meet(a, b, b->class->map ? NULL : rows)) return HD_OK; // a map is the whole call's
    char text[300];
    const char *why = needs_places(&site->link[j], j > i);
    if (!why) return HD_OK;
    snprintf(text, sizeof text, "the other merges or moves tokens, and %s", why);
    return refuse_pair(&site->site, b, a, text);
}

static hd_status check_edited_plan(const run_site *site, const run_processor *editor,
                                   const run_processor *planner, const hd_rows *rows)
{
    if (!planner->class->static_plan || planner->plan.on_edit == HD_ON_EDIT_DENSE) return HD_OK;
    if (!(editor->class->edits & (HD_EDITS_K | HD_EDITS_V)) || !hd_run_meet(editor, planner, rows))
        return HD_OK;
    return refuse_pair(&site->site, planner, editor,
                       "its plan is made from shapes alone and the other replaces keys or values; "
                       "\"on_edit\": \"dense\" leaves the plan out there");
}

// The kernel has one score for a proxy, whoever looks.
static hd_status check_proxies(const run_site *site, const run_processor *editor,
                               const run_processor *planner)
{
    const unsigned own = editor->class->edits & (HD_ADDS_BIAS | HD_ADDS_SEGMENTS);
    if (planner->plan.rest != HD_REST_PROXY || !own || !hd_run_meet(editor, planner, NULL))
        return HD_OK;
    return refuse_pair(&site->site, planner, editor,
                       "its proxies have one score for all the keys they stand for, and the other "
                       "changes scores pair by pair; use \"rest\": \"drop\", or part them by sites "
                       "or steps");
}

static hd_status check_twins(const run_site *site, const run_processor *a, const run_processor *b,
                             const hd_rows *rows)
{
    if (!hd_run_meet(a, b, rows)) return HD_OK;
    if (a->class->plan && b->class->plan)
        return refuse_pair(&site->site, b, a,
                           "a row can have one plan; part them by sites, steps or branches");
    if (a->class->edits & b->class->edits & HD_ADDS_SEGMENTS)
        return refuse_pair(&site->site, b, a,
                           "a row can have one set of segments; part them by sites, steps or "
                           "branches");
    return HD_OK;
}

hd_status hd_run_check_chain(const run_site *site, const hd_rows *rows)
{
    for (int64_t i = 0; i < site->links; i++)
        for (int64_t j = 0; j < site->links; j++) {
            const run_processor *a = site->link[i].processor, *b = site->link[j].processor;
            if (i == j) continue;
            if (i < j) HD_TRY(check_twins(site, a, b, rows));
            HD_TRY(check_movers(site, i, j, rows));
            if (b->class->plan) HD_TRY(check_edited_plan(site, a, b, rows));
            if (b->class->plan) HD_TRY(check_proxies(site, a, b));
            // the map's kernel serves the whole call
            if (a->class->map && b->class->plan && hd_run_meet(a, b, NULL))
                return refuse_pair(&site->site, b, a,
                                   "the other needs the whole map, in the run's own numbers: no "
                                   "plan, no int8");
        }
    return HD_OK;
}

typedef struct chain_text {
    char *text;
    size_t bytes, used;
} chain_text;

static void HD_PRINTF(2, 3) say(chain_text *t, const char *format, ...)
{
    if (t->used >= t->bytes) return;
    va_list args;
    va_start(args, format);
    int more = vsnprintf(t->text + t->used, t->bytes - t->used, format, args);
    va_end(args);
    t->used += more > 0 ? (size_t)more : 0;
}

static void say_steps(chain_text *t, const run_processor *p)
{
    say(t, "%s [%lld, %lld)", p->class->name, (long long)p->first_step, (long long)p->end_step);
}

static void say_note(chain_text *t, const run_link *link)
{
    if (link->prepared.note[0]) say(t, " (%s)", link->prepared.note);
}

// "plan of gna [4, 25), " for each processor that chooses a kernel; is there one at every step, for
// every row?
static bool say_chosen(chain_text *t, const hd_attention_run *run, const run_site *site)
{
    bool always = false;
    const char *gap = "";
    for (int64_t i = 0; i < site->links; i++) {
        const run_processor *p = site->link[i].processor;
        if (!p->class->map && !p->class->plan) continue;
        if (p->first_step == p->end_step) continue;
        say(t, "%s%s of ", gap, p->class->map ? "explicit map" : "plan");
        say_steps(t, p);
        if (p->plan.rest == HD_REST_PROXY) say(t, " with proxies");
        if (p->plan.qk == HD_NUMBER_INT8) say(t, " int8 qk");
        if (p->plan.pv == HD_NUMBER_INT8) say(t, " int8 pv");
        always |= p->branches == 0 && p->first_step == 0 && p->end_step == run->steps;
        gap = ", ";
    }
    if (gap[0] && !always) say(t, ", else ");
    return always;
}

char *hd_attention_run_chain_text(const hd_attention_run *run, int64_t index, char *text,
                                  size_t bytes)
{
    const run_site *site = run->site[index];
    chain_text t = {text, bytes, 0};
    if (bytes) text[0] = 0;
    for (int64_t i = 0; i < site->links; i++) {
        if (i) say(&t, ", ");
        say_steps(&t, site->link[i].processor);
        say_note(&t, &site->link[i]);
    }
    if (site->links) say(&t, ": ");
    if (!say_chosen(&t, run, site)) say(&t, "streaming %s", hd_dtype_name(site->dtype));
    return text;
}

// The first step behind `step` at which a processor begins or ends; the run's end past the last.
static int64_t next_change(const hd_attention_run *run, const run_site *site, int64_t step)
{
    int64_t next = run->steps;
    for (int64_t i = 0; i < site->links; i++) {
        const run_processor *p = site->link[i].processor;
        if (p->first_step == p->end_step) continue;
        if (p->first_step > step && p->first_step < next) next = p->first_step;
        if (p->end_step > step && p->end_step < next) next = p->end_step;
    }
    return next;
}

static void say_kernel(chain_text *t, const run_site *site, int64_t step)
{
    bool always = false;
    const char *gap = "";
    for (int64_t i = 0; i < site->links; i++) {
        const run_processor *p = site->link[i].processor;
        if (step < p->first_step || step >= p->end_step) continue;
        if (!p->class->map && !p->class->plan) continue;
        say(t, "%s%s of %s", gap, p->class->map ? "explicit map" : "plan", p->class->name);
        if (p->plan.rest == HD_REST_PROXY) say(t, " with proxies");
        if (p->plan.qk == HD_NUMBER_INT8) say(t, " int8 qk");
        if (p->plan.pv == HD_NUMBER_INT8) say(t, " int8 pv");
        always |= p->branches == 0;
        gap = ", ";
    }
    if (!always) say(t, "%sstreaming %s", gap[0] ? ", else " : "", hd_dtype_name(site->dtype));
}

bool hd_attention_run_range(const hd_attention_run *run, int64_t index, int64_t number,
                            int64_t *first, int64_t *end, char *names, size_t names_bytes,
                            char *kernel, size_t kernel_bytes)
{
    const run_site *site = run->site[index];
    *first = 0;
    for (; number > 0 && *first < run->steps; number--)
        *first = next_change(run, site, *first);
    if (*first >= run->steps) return false;
    *end = next_change(run, site, *first);
    chain_text said = {names, names_bytes, 0}, by = {kernel, kernel_bytes, 0};
    names[0] = kernel[0] = 0;
    for (int64_t i = 0; i < site->links; i++) {
        const run_processor *p = site->link[i].processor;
        if (*first < p->first_step || *first >= p->end_step) continue;
        say(&said, "%s%s", said.used ? ", " : "", p->class->name);
        say_note(&said, &site->link[i]);
    }
    say_kernel(&by, site, *first);
    return true;
}
