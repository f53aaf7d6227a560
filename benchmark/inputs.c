/* benchmark/inputs.c: draws random inputs and the structured field; reads captured ones. */
#include "benchmark/inputs.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/weights/safetensors.h"

enum { WAVES = 32, PART = 256, SAMPLES = 256, MOST_DIM = 512 };

/* --- numbers that depend on their place only */

static uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* A stream of nearly normal numbers: sums of eight uniforms of 16 bits, at most 4.9 deviations. */
typedef struct stream {
    uint64_t state;
} stream;

static stream stream_at(uint64_t seed, uint64_t what, uint64_t head, uint64_t place)
{
    return (stream){mix(mix(mix(seed ^ mix(what)) + head) + place)};
}

static float next_normal(stream *s)
{
    uint64_t a = mix(s->state++), b = mix(s->state++);
    int64_t sum = 0;
    for (int i = 0; i < 64; i += 16)
        sum += (int64_t)(a >> i & 0xffff) + (int64_t)(b >> i & 0xffff);
    return (float)(sum - 4 * 0xffff) * (1.0f / (65536.0f * 0.8164966f));
}

/* --- memory */

static hd_status make_tensors(hd_bench_inputs *out, hd_shape shape, hd_dtype dtype)
{
    hd_tensor *part[3] = {&out->q, &out->k, &out->v};
    for (int i = 0; i < 3; i++) {
        *part[i] = hd_tensor_of(NULL, dtype, shape);
        size_t bytes = ((size_t)hd_tensor_bytes(*part[i]) + 63) & ~(size_t)63;
        part[i]->data = aligned_alloc(64, bytes ? bytes : 64);
        if (part[i]->data) continue;
        char text[200];
        return hd_fail(HD_ERR_NOMEM, "bench: no memory for q, k, v %s; try --heads 1 or --scale",
                       hd_tensor_text(text, sizeof text, *part[i]));
    }
    return HD_OK;
}

void hd_bench_inputs_free(hd_bench_inputs *inputs)
{
    free(inputs->q.data);
    free(inputs->k.data);
    free(inputs->v.data);
    *inputs = (hd_bench_inputs){0};
}

// values [dim] to token `token` of a head of row 0.
static void put(hd_tensor t, int64_t token, int64_t head, const float *values)
{
    const int64_t dim = t.dim[3], at = (token * t.dim[2] + head) * dim;
    if (t.dtype == HD_F32)
        memcpy((float *)t.data + at, values, (size_t)dim * sizeof *values);
    else
        hd_convert_f32_to_bf16((hd_bf16 *)t.data + at, values, dim);
}

/* --- the field */

/* What all tokens of a head share. */
typedef struct field_head {
    float *wave[3]; // per axis [extent][WAVES][2]: cos and sin
    float *content; // [2 WAVES][D]: what u is made of
    float *value;   // [2 WAVES][D]: what w is made of
} field_head;

typedef struct field {
    hd_bench_inputs *out;
    const hd_bench_shape *shape;
    hd_token_layout layout;
    int64_t tokens, parts, dim;
    uint64_t seed;
    bool random;
    float gain;
    field_head *head; // [heads], with their tables in `memory`
    float *memory;
    float *turn[3]; // rotations per axis [extent][pairs][2]
    int64_t pairs[3];
} field;

// Wave lengths as shares of the axes, time first: heads take turns.
static const double lengths[4][3] = {
    {0.15, 0.15, 0.15}, {0.6, 0.08, 0.08}, {0.08, 0.3, 0.3}, {0.6, 0.4, 0.4}};

static void make_head(const field *f, int64_t h)
{
    field_head *head = &f->head[h];
    stream s = stream_at(f->seed, 1, (uint64_t)h, 0);
    for (int a = 0; a < 3; a++) {
        const int64_t extent = f->shape->grid[a];
        const double length = fmax(lengths[h % 4][a] * (double)extent, 1.0);
        for (int m = 0; m < WAVES; m++) {
            const double turn = (double)next_normal(&s) / length;
            for (int64_t x = 0; x < extent; x++) {
                head->wave[a][(x * WAVES + m) * 2] = (float)cos(turn * (double)x);
                head->wave[a][(x * WAVES + m) * 2 + 1] = (float)sin(turn * (double)x);
            }
        }
    }
    const float unit = 1.0f / sqrtf((float)WAVES);
    for (int64_t i = 0; i < 2 * WAVES * f->dim; i++)
        head->content[i] = next_normal(&s) * unit;
    for (int64_t i = 0; i < 2 * WAVES * f->dim; i++)
        head->value[i] = next_normal(&s) * unit;
}

static void make_turns(const field *f)
{
    for (int a = 0; a < 3; a++)
        for (int64_t x = 0; x < f->shape->grid[a]; x++)
            for (int64_t i = 0; i < f->pairs[a]; i++) {
                double angle = (double)x * pow(10000.0, -(double)i / (double)f->pairs[a]);
                f->turn[a][(x * f->pairs[a] + i) * 2] = (float)cos(angle);
                f->turn[a][(x * f->pairs[a] + i) * 2 + 1] = (float)sin(angle);
            }
}

// The shared tables in one block.
static hd_status make_field(field *f)
{
    const hd_bench_shape *s = f->shape;
    const int64_t extents = s->grid[0] + s->grid[1] + s->grid[2], pairs = f->dim / 2;
    f->pairs[0] = s->grid[0] > 1 ? pairs - 2 * (pairs / 3) : 0;
    f->pairs[2] = (pairs - f->pairs[0]) / 2;
    f->pairs[1] = pairs - f->pairs[0] - f->pairs[2];
    const int64_t per_head = 2 * WAVES * (extents + 2 * f->dim);
    f->head = calloc((size_t)s->heads, sizeof *f->head);
    f->memory = malloc((size_t)(s->heads * per_head + 2 * extents * pairs) * sizeof *f->memory);
    if (!f->head || !f->memory) return hd_fail(HD_ERR_NOMEM, "bench: no memory for the field");
    float *at = f->memory;
    for (int a = 0; a < 3; a++) {
        f->turn[a] = at;
        at += 2 * s->grid[a] * f->pairs[a];
    }
    for (int64_t h = 0; h < s->heads; h++) {
        for (int a = 0; a < 3; a++) {
            f->head[h].wave[a] = at;
            at += 2 * WAVES * s->grid[a];
        }
        f->head[h].content = at;
        f->head[h].value = at + 2 * WAVES * f->dim;
        at += 4 * WAVES * f->dim;
        make_head(f, h);
    }
    make_turns(f);
    return HD_OK;
}

// cos and sin of every wave at a place of the grid.
static void waves_at(const field_head *head, const int64_t x[3], float basis[2 * WAVES])
{
    for (int m = 0; m < WAVES; m++) {
        float re = 1, im = 0;
        for (int a = 0; a < 3; a++) {
            const float *w = &head->wave[a][(x[a] * WAVES + m) * 2];
            const float turned = re * w[0] - im * w[1];
            im = re * w[1] + im * w[0];
            re = turned;
        }
        basis[2 * m] = re;
        basis[2 * m + 1] = im;
    }
}

static void add_waves(float *sum, const float *coefficients, const float basis[2 * WAVES],
                      int64_t dim)
{
    memset(sum, 0, (size_t)dim * sizeof *sum);
    for (int m = 0; m < 2 * WAVES; m++)
        for (int64_t d = 0; d < dim; d++)
            sum[d] += basis[m] * coefficients[m * dim + d];
}

// To the length `norm`.
static void normalise(float *x, int64_t dim, float norm)
{
    float sum = 0;
    for (int64_t d = 0; d < dim; d++)
        sum += x[d] * x[d];
    const float factor = sum > 0 ? norm / sqrtf(sum) : 0;
    for (int64_t d = 0; d < dim; d++)
        x[d] *= factor;
}

static void rotate(const field *f, const int64_t x[3], float *values)
{
    for (int a = 0; a < 3; a++)
        for (int64_t i = 0; i < f->pairs[a]; i++, values += 2) {
            const float *t = &f->turn[a][(x[a] * f->pairs[a] + i) * 2];
            const float turned = values[0] * t[0] - values[1] * t[1];
            values[1] = values[0] * t[1] + values[1] * t[0];
            values[0] = turned;
        }
}

static void noise(float *into, const float *base, float deviation, float factor, stream s,
                  int64_t dim)
{
    for (int64_t d = 0; d < dim; d++)
        into[d] = ((base ? base[d] : 0.0f) + deviation * next_normal(&s)) * factor;
}

static void grid_token(const field *f, int64_t head, int64_t token, int64_t place)
{
    const int64_t dim = f->dim, *grid = f->shape->grid;
    const int64_t x[3] = {place / (grid[1] * grid[2]), place / grid[2] % grid[1], place % grid[2]};
    const float root = sqrtf((float)dim); // of a score's scale D^-1/2: what is left is the gain
    float basis[2 * WAVES], smooth[MOST_DIM], values[MOST_DIM];
    const uint64_t h = (uint64_t)head, p = (uint64_t)place;
    waves_at(&f->head[head], x, basis);
    add_waves(smooth, f->head[head].content, basis, dim);
    noise(values, smooth, 0.5f, 1, stream_at(f->seed, 2, h, p), dim);
    normalise(values, dim, f->gain);
    rotate(f, x, values);
    put(f->out->q, token, head, values);
    noise(values, smooth, 0.5f, 1, stream_at(f->seed, 3, h, p), dim);
    normalise(values, dim, root);
    rotate(f, x, values);
    put(f->out->k, token, head, values);
    add_waves(smooth, f->head[head].value, basis, dim);
    noise(values, smooth, 1, 0.70710678f, stream_at(f->seed, 4, h, p), dim);
    put(f->out->v, token, head, values);
}

static void random_token(const field *f, int64_t head, int64_t token, bool normed)
{
    float values[MOST_DIM];
    hd_tensor part[3] = {f->out->q, f->out->k, f->out->v};
    const float norm[2] = {f->gain, sqrtf((float)f->dim)};
    for (int i = 0; i < 3; i++) {
        noise(values, NULL, 1, 1,
              stream_at(f->seed, (uint64_t)(5 + i), (uint64_t)head, (uint64_t)token), f->dim);
        if (normed && i < 2) normalise(values, f->dim, norm[i]);
        put(part[i], token, head, values);
    }
}

// Item: some tokens of one head.
static hd_status draw_part(void *arg, int64_t item, int thread)
{
    const field *f = arg;
    (void)thread;
    const int64_t head = item / f->parts, first = item % f->parts * PART;
    const int64_t end = first + PART < f->tokens ? first + PART : f->tokens;
    const int64_t grid = hd_bench_shape_grid_tokens(f->shape);
    const int64_t start = f->shape->text_first ? f->shape->text : 0;
    for (int64_t t = first; t < end; t++) {
        if (f->random || t < start || t >= start + grid)
            random_token(f, head, t, !f->random);
        else
            grid_token(f, head, t, t - start);
    }
    return HD_OK;
}

static hd_status draw(field *f, const hd_exec *ex, hd_dtype dtype)
{
    const hd_bench_shape *s = f->shape;
    f->dim = s->head_dim;
    f->tokens = hd_bench_shape_tokens(s);
    f->parts = (f->tokens + PART - 1) / PART;
    if (f->dim > MOST_DIM)
        return hd_fail(HD_ERR_ARGUMENT, "bench: heads of %lld channels, at most %d can be drawn",
                       (long long)f->dim, MOST_DIM);
    *f->out = (hd_bench_inputs){0};
    hd_status status = make_tensors(f->out, hd_shape4(1, f->tokens, s->heads, f->dim), dtype);
    if (status == HD_OK && !f->random) status = make_field(f);
    if (status == HD_OK) status = hd_parallel_for(ex->pool, s->heads * f->parts, draw_part, f);
    free(f->head);
    free(f->memory);
    if (status != HD_OK) hd_bench_inputs_free(f->out);
    return status;
}

hd_status hd_bench_inputs_random(hd_bench_inputs *out, const hd_exec *ex,
                                 const hd_bench_shape *shape, hd_dtype dtype, uint64_t seed)
{
    field f = {.out = out, .shape = shape, .seed = seed, .random = true};
    HD_TRY(draw(&f, ex, dtype));
    snprintf(out->text, sizeof out->text, "random, seed %llu", (unsigned long long)seed);
    return HD_OK;
}

hd_status hd_bench_inputs_field(hd_bench_inputs *out, const hd_exec *ex,
                                const hd_bench_shape *shape, hd_dtype dtype, double gain,
                                uint64_t seed)
{
    field f = {.out = out, .shape = shape, .seed = seed, .gain = (float)gain};
    HD_TRY(draw(&f, ex, dtype));
    snprintf(out->text, sizeof out->text, "structured field, gain %g, seed %llu", gain,
             (unsigned long long)seed);
    return HD_OK;
}

/* --- captured */

static const hd_safetensors_entry *find_tensor(const hd_safetensors *file, const char *name)
{
    for (int64_t i = 0; i < hd_safetensors_count(file); i++)
        if (strcmp(hd_safetensors_at(file, i)->name, name) == 0) return hd_safetensors_at(file, i);
    return NULL;
}

// A tensor of any float type, converted on the way.
static hd_status read_tensor(const hd_safetensors *file, const hd_safetensors_entry *e,
                             hd_tensor into)
{
    enum { CHUNK = 1 << 16 };
    const int64_t count = hd_tensor_count(into), size = (int64_t)hd_dtype_size(e->dtype);
    if (e->dtype == into.dtype) return hd_safetensors_read(file, e, 0, into.data, e->bytes);
    char *raw = malloc((size_t)(CHUNK * size));
    float *values = malloc(CHUNK * sizeof *values);
    hd_status status = raw && values ? HD_OK : hd_fail(HD_ERR_NOMEM, "bench: no memory to read");
    for (int64_t i = 0; i < count && status == HD_OK; i += CHUNK) {
        const int64_t part = count - i < CHUNK ? count - i : CHUNK;
        char *to = (char *)into.data + i * (int64_t)hd_dtype_size(into.dtype);
        status = hd_safetensors_read(file, e, i * size, raw, part * size);
        if (status == HD_OK) status = hd_convert_to_f32(values, raw, e->dtype, part);
        if (status == HD_OK) status = hd_convert_from_f32(to, into.dtype, values, part);
    }
    free(raw);
    free(values);
    return status;
}

// q, k and v are there, of one shape [B, L, H, D] and of a float type.
static hd_status check_tensors(const hd_safetensors *file, const hd_safetensors_entry *entry[3])
{
    static const char *const names[3] = {"q", "k", "v"};
    for (int i = 0; i < 3; i++) {
        entry[i] = find_tensor(file, names[i]);
        const char *path = hd_safetensors_path(file);
        if (!entry[i])
            return hd_fail(HD_ERR_FORMAT,
                           "%s: has no tensor %s; q, k and v [B, L, H, D] are wanted", path,
                           names[i]);
        char found[160], first[160];
        const hd_dtype type = entry[i]->dtype;
        if (entry[i]->shape.rank != 4 || (type != HD_F32 && type != HD_BF16 && type != HD_F16))
            return hd_fail(HD_ERR_FORMAT, "%s: %s is %s %s, expected [B, L, H, D] f32, bf16 or f16",
                           path, names[i], hd_shape_text(found, sizeof found, entry[i]->shape),
                           hd_dtype_name(type));
        if (memcmp(&entry[i]->shape.dim, &entry[0]->shape.dim, 4 * sizeof(int64_t)) != 0)
            return hd_fail(HD_ERR_FORMAT, "%s: %s is %s, q is %s; self-attention is wanted", path,
                           names[i], hd_shape_text(found, sizeof found, entry[i]->shape),
                           hd_shape_text(first, sizeof first, entry[0]->shape));
    }
    return HD_OK;
}

// "F,H,W" and the grid's first token, where the file says them.
static hd_status read_grid(const hd_safetensors *file, hd_bench_shape *shape, int64_t tokens)
{
    char *grid = NULL, *start = NULL;
    HD_TRY(hd_safetensors_metadata(file, "grid", &grid));
    hd_status status = hd_safetensors_metadata(file, "grid_start", &start);
    long long n[3], first = 0;
    if (status == HD_OK && grid) {
        if (sscanf(grid, "%lld,%lld,%lld", &n[0], &n[1], &n[2]) != 3 || n[0] < 1 || n[1] < 1 ||
            n[2] < 1 || (start && sscanf(start, "%lld", &first) != 1) || first < 0)
            status =
                hd_fail(HD_ERR_FORMAT, "%s: its metadata \"grid\" is \"%.60s\", expected F,H,W",
                        hd_safetensors_path(file), grid);
        for (int a = 0; a < 3 && status == HD_OK; a++)
            shape->grid[a] = shape->base[a] = n[a];
        shape->scale = 1;
        shape->text = tokens - hd_bench_shape_grid_tokens(shape);
        shape->text_first = first > 0;
        shape->name[0] = 0;
    }
    free(grid);
    free(start);
    return status;
}

static hd_status read_file(hd_bench_inputs *out, hd_bench_shape *shape, hd_dtype dtype,
                           const hd_safetensors *file)
{
    const hd_safetensors_entry *entry[3];
    HD_TRY(check_tensors(file, entry));
    const int64_t *dim = entry[0]->shape.dim;
    HD_TRY(read_grid(file, shape, dim[1]));
    if (hd_bench_shape_tokens(shape) != dim[1] || shape->text < 0)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s: has %lld tokens; %lldx%lldx%lld + %lld text are %lld: give --grid and "
                       "--text that fit",
                       hd_safetensors_path(file), (long long)dim[1], (long long)shape->grid[0],
                       (long long)shape->grid[1], (long long)shape->grid[2], (long long)shape->text,
                       (long long)hd_bench_shape_tokens(shape));
    shape->heads = dim[2];
    shape->head_dim = dim[3];
    HD_TRY(make_tensors(out, entry[0]->shape, dtype));
    HD_TRY(read_tensor(file, entry[0], out->q));
    HD_TRY(read_tensor(file, entry[1], out->k));
    return read_tensor(file, entry[2], out->v);
}

hd_status hd_bench_inputs_file(hd_bench_inputs *out, hd_bench_shape *shape, hd_dtype dtype,
                               const char *path)
{
    hd_safetensors *file;
    *out = (hd_bench_inputs){0};
    HD_TRY(hd_safetensors_open(&file, path));
    hd_status status = read_file(out, shape, dtype, file);
    hd_safetensors_free(file);
    if (status != HD_OK) hd_bench_inputs_free(out);
    if (status == HD_OK) snprintf(out->text, sizeof out->text, "captured in %.180s", path);
    return status;
}

/* --- over how many keys attention is spread */

typedef struct spread {
    const hd_bench_inputs *inputs;
    float scale;
    double entropy[SAMPLES];
} spread;

static void load(hd_tensor t, int64_t token, int64_t head, float *values)
{
    const int64_t dim = t.dim[3], at = (token * t.dim[2] + head) * dim;
    for (int64_t d = 0; d < dim; d++)
        values[d] = t.dtype == HD_F32 ? ((const float *)t.data)[at + d]
                                      : hd_bf16_to_f32(((const hd_bf16 *)t.data)[at + d]);
}

static float dot(const float *a, const float *b, int64_t count)
{
    float lane[8] = {0};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int l = 0; l < 8; l++)
            lane[l] += a[i + l] * b[i + l];
    for (; i < count; i++)
        lane[0] += a[i] * b[i];
    return ((lane[0] + lane[1]) + (lane[2] + lane[3])) +
           ((lane[4] + lane[5]) + (lane[6] + lane[7]));
}

// Item: one query. The entropy of softmax(s) is log Z - sum p s.
static hd_status spread_item(void *arg, int64_t item, int thread)
{
    spread *w = arg;
    (void)thread;
    const hd_tensor q = w->inputs->q, k = w->inputs->k;
    const int64_t tokens = q.dim[1], dim = q.dim[3];
    const int64_t head = item % q.dim[2], token = item * tokens / SAMPLES;
    float *query = malloc((size_t)(2 * dim) * sizeof *query), *key = query + dim;
    if (!query) return hd_fail(HD_ERR_NOMEM, "bench: no memory");
    load(q, token, head, query);
    double top = -INFINITY, sum = 0, weighted = 0;
    for (int64_t j = 0; j < tokens; j++) {
        load(k, j, head, key);
        const double s = (double)(w->scale * dot(query, key, dim));
        if (s > top) {
            const double shrink = exp(top - s);
            sum *= shrink, weighted *= shrink;
            top = s;
        }
        const double p = exp(s - top);
        sum += p, weighted += p * s;
    }
    w->entropy[item] = log(sum) + top - weighted / sum;
    free(query);
    return HD_OK;
}

hd_status hd_bench_effective_keys(double *out, const hd_exec *ex, const hd_bench_inputs *inputs,
                                  double scale)
{
    spread w = {.inputs = inputs, .scale = (float)scale};
    HD_TRY(hd_parallel_for(ex->pool, SAMPLES, spread_item, &w));
    double mean = 0;
    for (int i = 0; i < SAMPLES; i++)
        mean += w.entropy[i] / SAMPLES;
    *out = exp(mean);
    return HD_OK;
}
