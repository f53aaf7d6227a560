/* engine/weights/binder.c: what a network declared, and its check against a list of tensors.
 *
 * A declaration ("pack") wants one or several tensors: matrices first, then as many biases. Reading
 * and packing them is binder_load.c. */
#include "engine/weights/binder.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/weights/binder_packs.h"

hd_status hd_binder_create(hd_binder **out)
{
    hd_binder *b = calloc(1, sizeof *b);
    if (!b) return hd_fail(HD_ERR_NOMEM, "weights: no memory to declare a network");
    *out = b;
    return HD_OK;
}

void hd_binder_free(hd_binder *b)
{
    if (!b) return;
    for (int64_t i = 0; i < b->wanted_count; i++)
        free(b->wanted[i].name);
    for (int64_t i = 0; i < b->ignored_count; i++)
        free(b->ignored[i]);
    free(b->wanted);
    free(b->ignored);
    free(b->packs);
    free(b);
}

// The first failure is the one that hd_binder_load returns.
static void keep_failure(hd_binder *b, hd_status status)
{
    if (b->status != HD_OK) return;
    b->status = status;
    snprintf(b->message, sizeof b->message, "%s", hd_message());
}

// Makes room for one more of `bytes` bytes in *array.
static bool grow(hd_binder *b, void **array, int64_t count, int64_t *room, size_t bytes)
{
    if (count < *room) return true;
    int64_t more = *room ? 2 * *room : 64;
    void *grown = realloc(*array, (size_t)more * bytes);
    if (!grown) {
        keep_failure(b, hd_fail(HD_ERR_NOMEM, "weights: no memory to declare a network"));
        return false;
    }
    *array = grown;
    *room = more;
    return true;
}

static void want(hd_binder *b, hd_shape shape, const char *format, ...) HD_PRINTF(3, 4);
static void want(hd_binder *b, hd_shape shape, const char *format, ...)
{
    char name[512];
    va_list args;
    va_start(args, format);
    int length = vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (b->status != HD_OK) return;
    if (length < 0 || length >= (int)sizeof name) {
        keep_failure(b, hd_fail(HD_ERR_INTERNAL, "weights: the name %.60s... is too long", name));
        return;
    }
    if (!grow(b, (void **)&b->wanted, b->wanted_count, &b->wanted_room, sizeof *b->wanted)) return;
    char *copy = strdup(name);
    if (copy)
        b->wanted[b->wanted_count++] = (binder_wanted){copy, shape};
    else
        keep_failure(b, hd_fail(HD_ERR_NOMEM, "weights: no memory to declare a network"));
}

static void begin_pack(hd_binder *b, binder_pack pack)
{
    *pack.dst = NULL;
    pack.first = b->wanted_count;
    if (b->status != HD_OK ||
        !grow(b, (void **)&b->packs, b->pack_count, &b->pack_room, sizeof *b->packs))
        return;
    b->packs[b->pack_count++] = pack;
}

void hd_bind_linear(hd_binder *b, hd_linear **dst, const char *prefix, int64_t in, int64_t out,
                    bool bias)
{
    begin_pack(
        b, (binder_pack){.kind = BINDER_LINEAR, .dst = (void **)dst, .parts = 1, .biases = bias});
    want(b, hd_shape2(out, in), "%s.weight", prefix);
    if (bias) want(b, hd_shape1(out), "%s.bias", prefix);
}

void hd_bind_linears(hd_binder *b, hd_linear **dst, const char *prefix, int parts,
                     const char *const *part, int64_t in, const int64_t *out, bool bias)
{
    if (parts < 1 || parts > BINDER_PARTS_MOST) {
        keep_failure(b, hd_fail(HD_ERR_INTERNAL, "weights: %s has %d parts, must be 1 to %d",
                                prefix, parts, BINDER_PARTS_MOST));
        parts = 0;
    }
    begin_pack(b, (binder_pack){.kind = BINDER_LINEAR,
                                .dst = (void **)dst,
                                .parts = parts,
                                .biases = bias ? parts : 0});
    for (int i = 0; i < parts; i++)
        want(b, hd_shape2(out[i], in), "%s.%s.weight", prefix, part[i]);
    for (int i = 0; bias && i < parts; i++)
        want(b, hd_shape1(out[i]), "%s.%s.bias", prefix, part[i]);
}

void hd_bind_conv(hd_binder *b, hd_conv **dst, const char *prefix, int64_t in, int64_t out,
                  int64_t kernel, hd_conv_spec spec, bool bias)
{
    begin_pack(
        b, (binder_pack){
               .kind = BINDER_CONV, .dst = (void **)dst, .parts = 1, .biases = bias, .spec = spec});
    want(b, hd_shape4(out, in, kernel, kernel), "%s.weight", prefix);
    if (bias) want(b, hd_shape1(out), "%s.bias", prefix);
}

void hd_bind_vector(hd_binder *b, float **dst, const char *name, int64_t count)
{
    begin_pack(b, (binder_pack){.kind = BINDER_FLOATS, .dst = (void **)dst, .parts = 1});
    want(b, hd_shape1(count), "%s", name);
}

void hd_bind_norm(hd_binder *b, float **gamma, float **beta, const char *prefix, int64_t channels)
{
    begin_pack(b, (binder_pack){.kind = BINDER_FLOATS, .dst = (void **)gamma, .parts = 1});
    want(b, hd_shape1(channels), "%s.weight", prefix);
    begin_pack(b, (binder_pack){.kind = BINDER_FLOATS, .dst = (void **)beta, .parts = 1});
    want(b, hd_shape1(channels), "%s.bias", prefix);
}

void hd_bind_table(hd_binder *b, float **dst, const char *name, int64_t rows, int64_t cols)
{
    begin_pack(b, (binder_pack){.kind = BINDER_FLOATS, .dst = (void **)dst, .parts = 1});
    want(b, hd_shape2(rows, cols), "%s", name);
}

void hd_bind_ignore(hd_binder *b, const char *name)
{
    if (b->status != HD_OK ||
        !grow(b, (void **)&b->ignored, b->ignored_count, &b->ignored_room, sizeof *b->ignored))
        return;
    char *copy = strdup(name);
    if (copy)
        b->ignored[b->ignored_count++] = copy;
    else
        keep_failure(b, hd_fail(HD_ERR_NOMEM, "weights: no memory to declare a network"));
}

static bool ignored(const hd_binder *b, const char *name)
{
    size_t length = strlen(name);
    for (int64_t i = 0; i < b->ignored_count; i++) {
        const char *pattern = b->ignored[i];
        bool wild = pattern[0] == '*';
        size_t tail = strlen(pattern + wild);
        if (tail > length || (!wild && tail != length)) continue;
        if (strcmp(name + length - tail, pattern + wild) == 0) return true;
    }
    return false;
}

// One kind of problem: how many, and the first of them in words.
typedef struct problems {
    int64_t count;
    char text[520];
} problems;

enum { NAMED_MOST = 10 };

static void add_problem(problems *p, const char *format, ...) HD_PRINTF(2, 3);
static void add_problem(problems *p, const char *format, ...)
{
    char text[400];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    size_t used = strlen(p->text);
    bool fits = p->count < NAMED_MOST && used + strlen(text) + 2 < sizeof p->text - 8;
    if (fits)
        snprintf(p->text + used, sizeof p->text - used, "%s%s", used ? ", " : "", text);
    else if (used && p->text[used - 1] != '.')
        snprintf(p->text + used, sizeof p->text - used, " ...");
    p->count++;
}

static void append_problems(char *text, size_t bytes, const problems *p, const char *one,
                            const char *many)
{
    if (p->count == 0) return;
    size_t used = strlen(text);
    snprintf(text + used, bytes - used, "%s%lld %s: %s", used ? "; " : "", (long long)p->count,
             p->count == 1 ? one : many, p->text);
}

// Whether a stored shape is the wanted one: axes of 1 at the end of a matrix do not count.
static bool same_shape(hd_shape a, hd_shape b)
{
    while (a.rank > 2 && a.dim[a.rank - 1] == 1)
        a.rank--;
    while (b.rank > 2 && b.dim[b.rank - 1] == 1)
        b.rank--;
    if (a.rank != b.rank) return false;
    for (int i = 0; i < a.rank; i++)
        if (a.dim[i] != b.dim[i]) return false;
    return true;
}

typedef struct check {
    problems missing, unexpected, misshapen, mistyped;
} check;

static void check_pair(check *c, const binder_wanted *w, const hd_weight_info *info)
{
    char has[160], expects[160];
    if (!same_shape(info->shape, w->shape))
        add_problem(&c->misshapen, "%.150s is %s, expected %s", w->name,
                    hd_shape_text(has, sizeof has, info->shape),
                    hd_shape_text(expects, sizeof expects, w->shape));
    if (info->dtype != HD_F32 && info->dtype != HD_BF16 && info->dtype != HD_F16)
        add_problem(&c->mistyped, "%.150s is %s, expected f32, f16 or bf16", w->name,
                    hd_dtype_name(info->dtype));
}

static int compare_wanted(const void *a, const void *b)
{
    const binder_wanted *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int compare_infos(const void *a, const void *b)
{
    const hd_weight_info *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

// Both lists are sorted by name. A tensor may be wanted twice.
static void check_sorted(check *c, const hd_binder *b, const binder_wanted **wanted,
                         const hd_weight_info **info, int64_t count)
{
    char shape[160];
    int64_t i = 0, j = 0;
    bool used = false; // info[j] was wanted
    while (i < b->wanted_count || j < count) {
        int order = i == b->wanted_count ? 1
                    : j == count         ? -1
                                         : strcmp(wanted[i]->name, info[j]->name);
        if (order == 0) {
            check_pair(c, wanted[i++], info[j]);
            used = true;
        } else if (order < 0) {
            add_problem(&c->missing, "%.150s %s", wanted[i]->name,
                        hd_shape_text(shape, sizeof shape, wanted[i]->shape));
            i++;
        } else {
            if (!used && !ignored(b, info[j]->name))
                add_problem(&c->unexpected, "%.150s", info[j]->name);
            used = false;
            j++;
        }
    }
}

hd_status hd_binder_check(const hd_binder *b, const char *what, int64_t count,
                          const hd_weight_info *infos)
{
    if (b->status != HD_OK) return hd_fail(b->status, "%s", b->message);
    const binder_wanted **wanted = malloc((size_t)(b->wanted_count + 1) * sizeof *wanted);
    const hd_weight_info **info = malloc((size_t)(count + 1) * sizeof *info);
    check *c = calloc(1, sizeof *c);
    bool ready = wanted && info && c;
    char text[1700] = "";
    if (ready) {
        for (int64_t i = 0; i < b->wanted_count; i++)
            wanted[i] = &b->wanted[i];
        for (int64_t i = 0; i < count; i++)
            info[i] = &infos[i];
        qsort(wanted, (size_t)b->wanted_count, sizeof *wanted, compare_wanted);
        qsort(info, (size_t)count, sizeof *info, compare_infos);
        check_sorted(c, b, wanted, info, count);
        append_problems(text, sizeof text, &c->missing, "tensor is missing", "tensors are missing");
        append_problems(text, sizeof text, &c->unexpected, "is unexpected", "are unexpected");
        append_problems(text, sizeof text, &c->misshapen, "has another shape",
                        "have another shape");
        append_problems(text, sizeof text, &c->mistyped, "has another type", "have another type");
    }
    free(c);
    free(info);
    free(wanted);
    if (!ready) return hd_fail(HD_ERR_NOMEM, "%s: no memory to check its tensors", what);
    if (!text[0]) return HD_OK;
    return hd_fail(HD_ERR_FORMAT, "%s: the weights do not fit the model's config: %s", what, text);
}

int hd_binder_shapes(const hd_binder *b, int most, int64_t (*in_out)[2])
{
    int count = 0;
    for (int64_t p = 0; p < b->pack_count; p++) {
        const binder_pack *pack = &b->packs[p];
        if (pack->kind == BINDER_FLOATS) continue;
        const binder_wanted *w = &b->wanted[pack->first];
        int64_t in = w->shape.dim[1], out = 0;
        for (int i = 2; i < w->shape.rank; i++)
            in *= w->shape.dim[i];
        for (int i = 0; i < pack->parts; i++)
            out += w[i].shape.dim[0];
        int at = 0; // the largest first
        while (at < count && in_out[at][0] * in_out[at][1] > in * out)
            at++;
        bool known = false;
        for (int i = at; i < count && in_out[i][0] * in_out[i][1] == in * out; i++)
            known = known || in_out[i][0] == in;
        if (known || at == most) continue;
        if (count < most) count++;
        for (int i = count - 1; i > at; i--)
            memcpy(in_out[i], in_out[i - 1], sizeof *in_out);
        in_out[at][0] = in;
        in_out[at][1] = out;
    }
    return count;
}
