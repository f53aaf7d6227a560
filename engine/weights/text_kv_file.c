/* engine/weights/text_kv_file.c: see text_kv_file.h. */
#include "engine/weights/text_kv_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hd_text_kv_file {
    hd_safetensors *file;
    bool *used; // [tensors]
};

typedef struct kv_module {
    char dotted[160], flat[160]; // "down_blocks.0. ... .attn2", and with _ for .
} kv_module;

static bool is_kv(const char *name)
{
    const char *attention = strstr(name, "attn2");
    return attention && (strstr(attention, "to_k") || strstr(attention, "to_v"));
}

hd_status hd_text_kv_file_open(hd_text_kv_file **out, const char *path, bool kv_only)
{
    hd_text_kv_file *f = calloc(1, sizeof *f);
    if (!f) return hd_fail(HD_ERR_NOMEM, "%s: no memory to open it", path);
    hd_status status = hd_tensor_file_open(&f->file, path);
    const int64_t count = status == HD_OK ? hd_safetensors_count(f->file) : 0;
    if (status == HD_OK) {
        f->used = calloc((size_t)count + 1, sizeof *f->used);
        if (!f->used) status = hd_fail(HD_ERR_NOMEM, "%s: no memory to open it", path);
    }
    int64_t found = 0;
    for (int64_t i = 0; i < count && status == HD_OK; i++) {
        const char *name = hd_safetensors_at(f->file, i)->name;
        found += is_kv(name);
        f->used[i] = !is_kv(name);
        if (!is_kv(name) && !kv_only)
            status = hd_fail(HD_ERR_UNSUPPORTED,
                             "%s: %s is neither key nor value of a cross attention", path, name);
    }
    if (status == HD_OK && found == 0)
        status = hd_fail(HD_ERR_FORMAT,
                         "%s: holds no keys and values of cross attentions (..attn2..to_k_"
                         "custom_diffusion.weight, ..attn2.to_k.lora_A.weight)",
                         path);
    if (status != HD_OK) {
        hd_text_kv_file_free(f);
        return status;
    }
    *out = f;
    return HD_OK;
}

void hd_text_kv_file_free(hd_text_kv_file *file)
{
    if (!file) return;
    hd_safetensors_free(file->file);
    free(file->used);
    free(file);
}

const char *hd_text_kv_file_unused(const hd_text_kv_file *f)
{
    for (int64_t i = 0; i < hd_safetensors_count(f->file); i++)
        if (!f->used[i]) return hd_safetensors_at(f->file, i)->name;
    return NULL;
}

// "down.0.attn.1" or "down.0.attn.1.2" as diffusers calls it.
static bool module_of(kv_module *m, const char *site)
{
    const bool mid = strncmp(site, "mid.", 4) == 0, up = strncmp(site, "up.", 3) == 0;
    const char *rest = strstr(site, "attn.");
    long long block = 0, number = 0, depth = 0;
    if (!rest || (!mid && sscanf(site, up ? "up.%lld." : "down.%lld.", &block) != 1)) return false;
    if (sscanf(rest, "attn.%lld.%lld", &number, &depth) < 1) return false;
    int n = 0;
    if (mid)
        n = snprintf(m->dotted, sizeof m->dotted, "mid_block");
    else
        n = snprintf(m->dotted, sizeof m->dotted, "%s_blocks.%lld", up ? "up" : "down", block);
    snprintf(m->dotted + n, sizeof m->dotted - (size_t)n,
             ".attentions.%lld.transformer_blocks.%lld.attn2", number, depth);
    strcpy(m->flat, m->dotted);
    for (char *c = m->flat; *c; c++)
        if (*c == '.') *c = '_';
    return true;
}

// An ending with the part's letter for its *.
static void put_part(char *tail, size_t bytes, const char *ending, char part)
{
    snprintf(tail, bytes, "%s", ending);
    *strchr(tail, '*') = part;
}

// The tensor of the module under any of the names; NULL: the file has none. * is k or v.
static const hd_safetensors_entry *find(hd_text_kv_file *f, const kv_module *m, char part,
                                        const char *const *ending)
{
    for (int64_t i = 0; i < hd_safetensors_count(f->file); i++) {
        const hd_safetensors_entry *e = hd_safetensors_at(f->file, i);
        for (const char *const *way = ending; *way; way++) {
            char tail[80], name[280];
            put_part(tail, sizeof tail, *way, part);
            const bool flat = tail[0] == '_';
            snprintf(name, sizeof name, "%s%s%s", flat ? "lora_unet_" : "",
                     flat ? m->flat : m->dotted, tail);
            const char *have = strncmp(e->name, "unet.", 5) == 0 ? e->name + 5 : e->name;
            if (strcmp(have, name) != 0) continue;
            f->used[i] = true;
            return e;
        }
    }
    return NULL;
}

static const char *const whole_names[] = {".processor.to_*_custom_diffusion.weight",
                                          ".to_*_custom_diffusion.weight", NULL};
static const char *const down_names[] = {".to_*.lora_A.weight", ".to_*.lora.down.weight",
                                         ".processor.to_*_lora.down.weight",
                                         "_to_*.lora_down.weight", NULL};
static const char *const up_names[] = {".to_*.lora_B.weight", ".to_*.lora.up.weight",
                                       ".processor.to_*_lora.up.weight", "_to_*.lora_up.weight",
                                       NULL};
static const char *const alpha_names[] = {".to_*.alpha", ".processor.to_*_lora.alpha",
                                          "_to_*.alpha", NULL};

static hd_status expect(const hd_text_kv_file *f, const hd_safetensors_entry *e, int64_t rows,
                        int64_t columns, const char *site)
{
    const hd_shape s = e->shape;
    if (s.rank == 2 && (rows == 0 || s.dim[0] == rows) && (columns == 0 || s.dim[1] == columns))
        return HD_OK;
    char shape[100], wanted[2][24];
    snprintf(wanted[0], sizeof wanted[0], rows ? "%lld" : "rank", (long long)rows);
    snprintf(wanted[1], sizeof wanted[1], columns ? "%lld" : "rank", (long long)columns);
    return hd_fail(HD_ERR_SHAPE,
                   "%s: %s is %s, the model's cross attention %s takes [%s, %s]; it was learned "
                   "for another model",
                   hd_safetensors_path(f->file), e->name,
                   hd_tensor_file_shape(shape, sizeof shape, s), site, wanted[0], wanted[1]);
}

// alpha / rank, 1 where the file has no alpha.
static hd_status scale_of(hd_text_kv_file *f, const kv_module *m, char part, int64_t rank,
                          float *scale)
{
    const hd_safetensors_entry *alpha = find(f, m, part, alpha_names);
    float *value = NULL;
    *scale = 1.0f;
    if (!alpha) return HD_OK;
    if (hd_shape_count(alpha->shape) != 1)
        return hd_fail(HD_ERR_FORMAT, "%s: %s must be one number", hd_safetensors_path(f->file),
                       alpha->name);
    HD_TRY(hd_tensor_file_floats(&value, f->file, alpha));
    *scale = value[0] / (float)rank;
    free(value);
    return HD_OK;
}

// matrix [out, in] += scale up [out, rank] down [rank, in]
static void multiply(float *matrix, const float *up, const float *down, float scale, int64_t out,
                     int64_t rank, int64_t in)
{
    for (int64_t o = 0; o < out; o++)
        for (int64_t r = 0; r < rank; r++)
            for (int64_t i = 0; i < in; i++)
                matrix[o * in + i] += scale * up[o * rank + r] * down[r * in + i];
}

// The change of one matrix into *matrix [out, in].
static hd_status low_rank(hd_text_kv_file *f, const kv_module *m, char part, int64_t in,
                          int64_t out, const char *site, float **matrix)
{
    const hd_safetensors_entry *down = find(f, m, part, down_names);
    const hd_safetensors_entry *up = find(f, m, part, up_names);
    float *a = NULL, *b = NULL, scale;
    if (!down && !up) return HD_OK;
    if (!down || !up)
        return hd_fail(HD_ERR_FORMAT, "%s: %s lacks its other half", hd_safetensors_path(f->file),
                       down ? down->name : up->name);
    HD_TRY(expect(f, down, 0, in, site));
    HD_TRY(expect(f, up, out, down->shape.dim[0], site));
    HD_TRY(scale_of(f, m, part, down->shape.dim[0], &scale));
    hd_status status = hd_tensor_file_floats(&a, f->file, down);
    if (status == HD_OK) status = hd_tensor_file_floats(&b, f->file, up);
    if (status == HD_OK) {
        *matrix = calloc((size_t)(out * in), sizeof **matrix);
        if (!*matrix)
            status =
                hd_fail(HD_ERR_NOMEM, "%s: no memory for %s", hd_safetensors_path(f->file), site);
        else
            multiply(*matrix, b, a, scale, out, down->shape.dim[0], in);
    }
    free(a);
    free(b);
    return status;
}

// Both matrices [out, in] of a site; NULL: the file has none.
static hd_status read_site(hd_text_kv_file *f, const char *site, int64_t in, int64_t out,
                           float *matrix[2], bool *adds)
{
    kv_module m;
    static const char part[2] = {'k', 'v'};
    if (!module_of(&m, site)) return HD_OK;
    const hd_safetensors_entry *whole[2];
    for (int i = 0; i < 2; i++)
        whole[i] = find(f, &m, part[i], whole_names);
    if ((whole[0] != NULL) != (whole[1] != NULL))
        return hd_fail(HD_ERR_FORMAT, "%s: has %s without the %s", hd_safetensors_path(f->file),
                       whole[0] ? whole[0]->name : whole[1]->name, whole[0] ? "values" : "keys");
    *adds = !whole[0];
    for (int i = 0; i < 2; i++) {
        if (!whole[i]) {
            HD_TRY(low_rank(f, &m, part[i], in, out, site, &matrix[i]));
            continue;
        }
        HD_TRY(expect(f, whole[i], out, in, site));
        HD_TRY(hd_tensor_file_floats(&matrix[i], f->file, whole[i]));
    }
    return HD_OK;
}

hd_status hd_text_kv_file_linear(hd_text_kv_file *f, const hd_exec *ex, const char *site,
                                 int64_t in, int64_t out, hd_dtype compute, hd_linear **linear,
                                 bool *adds)
{
    float *matrix[2] = {NULL, NULL};
    const int64_t half = out / 2;
    *linear = NULL;
    hd_status status = read_site(f, site, in, half, matrix, adds);
    const bool any = matrix[0] || matrix[1];
    for (int i = 0; i < 2 && any && status == HD_OK; i++) {
        if (matrix[i]) continue; // a low-rank change of the other alone
        matrix[i] = calloc((size_t)(half * in), sizeof *matrix[i]);
        if (!matrix[i])
            status =
                hd_fail(HD_ERR_NOMEM, "%s: no memory for %s", hd_safetensors_path(f->file), site);
    }
    if (any && status == HD_OK) {
        const hd_tensor weight[2] = {hd_tensor_of(matrix[0], HD_F32, hd_shape2(half, in)),
                                     hd_tensor_of(matrix[1], HD_F32, hd_shape2(half, in))};
        status = hd_linear_create(linear, ex, 2, weight, NULL, compute);
    }
    free(matrix[0]);
    free(matrix[1]);
    return status;
}
