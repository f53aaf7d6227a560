/* unet/blocks/time_embedding.c: see time_embedding.h. */
#include "unet/blocks/time_embedding.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/arena.h"
#include "engine/ops/elementwise.h"

static void time_layer_declare(struct hd_time_layer *layer, hd_binder *b, const char *name,
                               int64_t in, int64_t out, bool bias)
{
    char full[96];
    layer->in = in;
    layer->out = out;
    snprintf(full, sizeof full, "time_embedding.%s.weight", name);
    hd_bind_table(b, &layer->weight, full, out, in);
    snprintf(full, sizeof full, "time_embedding.%s.bias", name);
    if (bias) hd_bind_vector(b, &layer->bias, full, out);
}

void hd_time_embedding_declare(hd_time_embedding *t, hd_binder *b,
                               const hd_time_embedding_spec *spec)
{
    t->spec = *spec;
    time_layer_declare(&t->first, b, "linear_1", spec->in, spec->out, true);
    time_layer_declare(&t->second, b, "linear_2", spec->out, spec->out, true);
    if (spec->guidance > 0)
        time_layer_declare(&t->guidance, b, "cond_proj", spec->guidance, spec->in, false);
}

static hd_status time_layer_pack(struct hd_time_layer *layer, const hd_exec *ex)
{
    if (!layer->weight) return HD_OK;
    hd_tensor weight = hd_tensor_of(layer->weight, HD_F32, hd_shape2(layer->out, layer->in));
    hd_tensor bias =
        layer->bias ? hd_tensor_of(layer->bias, HD_F32, hd_shape1(layer->out)) : hd_tensor_none();
    HD_TRY(hd_linear_create(&layer->linear, ex, 1, &weight, &bias, HD_F32));
    free(layer->weight);
    free(layer->bias);
    layer->weight = layer->bias = NULL;
    return HD_OK;
}

hd_status hd_time_embedding_pack(hd_time_embedding *t, const hd_exec *ex)
{
    HD_TRY(time_layer_pack(&t->first, ex));
    HD_TRY(time_layer_pack(&t->second, ex));
    return time_layer_pack(&t->guidance, ex);
}

static void time_layer_free(struct hd_time_layer *layer)
{
    free(layer->weight);
    free(layer->bias);
    hd_linear_free(layer->linear);
}

void hd_time_embedding_free(hd_time_embedding *t)
{
    time_layer_free(&t->first);
    time_layer_free(&t->second);
    time_layer_free(&t->guidance);
    *t = (hd_time_embedding){0};
}

// The guidance scale w as its own sinusoids, of 1000 (w - 1), added to the timestep's.
static hd_status time_add_guidance(const hd_exec *ex, const hd_time_embedding *t, hd_tensor wave,
                                   const float *guidance)
{
    int64_t rows = wave.dim[0];
    float *scaled = hd_arena_bytes(ex->arena, (size_t)rows * sizeof *scaled);
    hd_tensor own = hd_arena_tensor(ex->arena, HD_F32, hd_shape2(rows, t->spec.guidance));
    if (!scaled) return hd_fail(HD_ERR_NOMEM, "time embedding: no memory for the guidance scales");
    if (!ex->recording)
        for (int64_t i = 0; i < rows; i++)
            scaled[i] = (guidance[i] - 1.0f) * 1000.0f;
    HD_TRY(hd_timestep_embedding(ex, own, scaled, rows, false, 1.0f, 10000.0f));
    return hd_linear_run(ex, t->guidance.linear, wave, own, wave);
}

hd_status hd_time_embedding_run(const hd_exec *ex, const hd_time_embedding *t, hd_tensor out,
                                const float *timestep, const float *guidance)
{
    const hd_time_embedding_spec *s = &t->spec;
    HD_TRY(hd_expect_rank("time embedding", out, 2));
    int64_t rows = out.dim[0];
    size_t mark = hd_arena_mark(ex->arena);
    hd_tensor wave = hd_arena_tensor(ex->arena, HD_F32, hd_shape2(rows, s->in));
    hd_tensor hidden = hd_arena_tensor(ex->arena, HD_F32, hd_shape2(rows, s->out));
    HD_TRY(hd_timestep_embedding(ex, wave, timestep, rows, s->flip_sin_to_cos, s->freq_shift,
                                 10000.0f));
    if (guidance && s->guidance > 0) HD_TRY(time_add_guidance(ex, t, wave, guidance));
    HD_TRY(hd_linear_run(ex, t->first.linear, hidden, wave, hd_tensor_none()));
    HD_TRY(hd_activate(ex, hidden, hidden, s->act));
    HD_TRY(hd_linear_run(ex, t->second.linear, out, hidden, hd_tensor_none()));
    if (s->post_act != HD_ACT_NONE) HD_TRY(hd_activate(ex, out, out, s->post_act));
    hd_arena_rewind(ex->arena, mark);
    return HD_OK;
}
