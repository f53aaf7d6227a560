/* pipelines/text_to_image.c: a run from its preset to its result: what is prepared and measured
 * before step 0, then prompts, pictures and inversions, then group after group of pictures. */
#include "pipelines/text_to_image.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arena.h"
#include "pipelines/chain.h"
#include "pipelines/clock.h"
#include "pipelines/generation.h"
#include "pipelines/maps.h"

// Rows of a network call are grouped until they have this many latent positions: small pictures
// share the reading of the weights, large ones keep memory at one picture's.
#define GROUP_POSITIONS 4096

void gen_tell(const generation *g, const char *stage, int64_t step, int64_t count,
              double step_seconds, double begin)
{
    const hd_callbacks *c = g->request->callbacks;
    if (!c || !c->progress) return;
    hd_progress progress = {stage, (int)step, (int)count, step_seconds, hd_seconds() - begin};
    c->progress(c->user, &progress);
}

/* --- pictures --- */

static hd_status decode_branch(generation *g, int b, int64_t picture, hd_image *image)
{
    double decode = hd_seconds();
    HD_TRY(hd_exec_check(&g->ex));
    HD_TRY(hd_decode_picture(&g->ex, g->model->vae, &g->size, g->preset->vae_tiling,
                             gen_latent(g, b, picture), image));
    hd_result_stage(g->request->result, "decode", hd_seconds() - decode, 1);
    return HD_OK;
}

static bool own_picture(const generation *g, int b)
{
    return g->branch[b].slot >= 0 && g->branch[b].slot < g->sampled;
}

// The pictures of every branch that is sampled, those that are wanted, by number of the branch.
static hd_status decode_all(generation *g, int64_t picture, hd_image images[HD_MAX_BRANCHES])
{
    for (int b = 0; b < g->branches.count; b++)
        if (own_picture(g, b) &&
            (g->branches.item[b].save || g->preset->sheet || gen_maps_wanted(g->preset)))
            HD_TRY(decode_branch(g, b, picture, &images[b]));
    return HD_OK;
}

static hd_status write_all(generation *g, int64_t index, hd_image images[HD_MAX_BRANCHES])
{
    const hd_run_request *r = g->request;
    hd_resolved made = {.seed = g->preset->seed + (uint64_t)index,
                        .width = g->size.width,
                        .height = g->size.height,
                        .sampler = hd_sampler_name(g->sampler),
                        .precision = hd_dtype_name(g->model->compute),
                        .model_hash = g->model->hash,
                        .init_image_hash = g->branch[0].start.picture_given
                                               ? g->branch[0].start.picture_hash
                                               : NULL,
                        .branch = "main"};
    if (g->preset->sheet) {
        hd_image row[HD_MAX_BRANCHES];
        const char *names[HD_MAX_BRANCHES];
        int count = 0;
        for (int b = 0; b < g->branches.count; b++)
            if (images[b].rgb) names[count] = g->branches.item[b].name, row[count++] = images[b];
        HD_TRY(hd_write_sheet(g->preset, &made, index, row, names, count));
    }
    if (gen_maps_wanted(g->preset)) HD_TRY(gen_write_maps(g, &made, index, images));
    for (int b = 0; b < g->branches.count; b++) {
        if (!g->branches.item[b].save || !images[b].rgb) continue;
        made.branch = g->branches.item[b].name;
        HD_TRY(hd_finish_picture(r->result, g->preset, &made, index, &images[b]));
    }
    return HD_OK;
}

static hd_status finish_group(generation *g, int64_t first)
{
    double begin = hd_seconds();
    for (int64_t i = 0; i < g->group && first + i < g->preset->batch; i++) {
        double picture_begin = hd_seconds();
        if (g->latents.values)
            memcpy(g->latents.values + (first + i) * g->size.latent_values, gen_latent(g, 0, i),
                   (size_t)g->size.latent_values * sizeof(float));
        hd_image images[HD_MAX_BRANCHES] = {0};
        hd_status status = decode_all(g, i, images);
        if (status == HD_OK) status = write_all(g, first + i, images);
        for (int b = 0; b < g->branches.count; b++)
            hd_image_free(&images[b]);
        HD_TRY(status);
        gen_tell(g, "decode", first + i + 1, g->preset->batch, hd_seconds() - picture_begin, begin);
    }
    return HD_OK;
}

/* --- before step 0 --- */

static hd_status make_sampler(generation *g, int64_t rows, int64_t row_values)
{
    const hd_preset *p = g->preset;
    const hd_picture_size *z = &g->size;
    if (!g->model->scheduler && !p->sampler)
        return hd_fail(HD_ERR_ARGUMENT,
                       "%s has no scheduler/scheduler_config.json; name a sampler with --sampler",
                       p->model);
    hd_sampler_options options = {
        .name = p->sampler,
        .config = g->model->scheduler ? hd_json_root(g->model->scheduler) : NULL,
        .steps = p->steps,
        .image_to_image = g->branch[0].start.picture_given && !g->branches.item[0].invert,
        .strength = (double)p->strength,
        .image_tokens = z->latent_height * z->latent_width,
        .rows = rows,
        .row_values = row_values};
    hd_sampler_free(g->sampler);
    g->sampler = NULL;
    return hd_sampler_create(&g->sampler, &options);
}

// Where a method takes places of one picture for those of another, nobody brings a picture of
// another size to the run's unasked.
static hd_status check_grid(const generation *g, int b)
{
    const hd_branch *is = &g->branches.item[b];
    const hd_start *s = &g->branch[b].start;
    const hd_json *at = is->image_node
                            ? is->image_node
                            : hd_json_get(is->node ? is->node : g->request->root, "init_image");
    if (!is->same_grid || !s->picture_given || g->preset->fit_given) return HD_OK;
    if (s->file_width == g->size.width && s->file_height == g->size.height) return HD_OK;
    return hd_json_fail(at ? at : is->node, HD_ERR_ARGUMENT,
                        "%s is %d x %d, the run %" PRId64 " x %" PRId64
                        ", and branch \"%s\" gives places of the picture; say with \"fit\" "
                        "(stretch, crop, pad) how it is brought there",
                        is->init_image, s->file_width, s->file_height, g->size.width,
                        g->size.height, is->name);
}

// Who is there: the preset's branches, then what processors ask for.
static hd_status make_branches(generation *g)
{
    const hd_run_request *r = g->request;
    const hd_picture_size *z = &g->size;
    HD_TRY(hd_beside_run_create(&g->beside, g->attention));
    HD_TRY(hd_features_create(&g->features));
    hd_branches_ctx ctx = {.calls = g->calls,
                           .sampler = g->sampler,
                           .channels = z->channels,
                           .height = z->latent_height,
                           .width = z->latent_width,
                           .guidance = g->preset->guidance,
                           .branches = &g->branches,
                           .features = g->features};
    HD_TRY(hd_beside_run_ask(g->beside, &ctx));
    bool no_guidance = hd_unet2d_configuration(g->model->unet)->guidance_channels > 0;
    HD_TRY(hd_branches_complete(&g->branches, r->root, no_guidance));
    HD_TRY(gen_open_pictures(g));
    for (int pass = 0; pass < 2; pass++)
        for (int b = 0; b < g->branches.count; b++) {
            const hd_branch *is = &g->branches.item[b];
            if (pass == 0) g->branch[b].slot = -1;
            if (is->latent == b && !is->aside && is->not_sampled == (pass == 1))
                g->branch[b].slot = g->slots++;
            if (pass == 0) g->sampled = g->slots;
        }
    for (int b = 0; b < g->branches.count; b++)
        HD_TRY(check_grid(g, b));
    return HD_OK;
}

// Pictures sampled together.
static hd_status choose_group(generation *g)
{
    const hd_preset *p = g->preset;
    int64_t rows = 0;
    for (int b = 0; b < g->branches.count; b++)
        for (int role = 0; role < HD_ROLES; role++)
            rows += hd_branch_has_row(&g->branches.item[b], (hd_role)role, -1);
    int64_t positions = g->size.latent_height * g->size.latent_width * g->slots;
    g->group = GROUP_POSITIONS / positions;
    if (g->group < 1) g->group = 1;
    if (g->group > p->batch) g->group = p->batch;
    int64_t most = rows > 2 ? HD_MAX_ROWS / rows : HD_MAX_ROWS / 2;
    if (g->group > most) g->group = most;
    int64_t groups = (p->batch + g->group - 1) / g->group;
    g->group =
        (p->batch + groups - 1) / groups; // of equal size: the last one has few places to spare
    return HD_OK;
}

// Of the texts that processors asked for.
static hd_status make_texts(generation *g)
{
    const int64_t texts = g->branches.texts;
    if (texts == 0) return HD_OK;
    const hd_shape shape = hd_shape3(texts, g->text_tokens, g->text_channels);
    g->own_text_values = calloc((size_t)hd_shape_count(shape), sizeof(float));
    if (!g->own_text_values)
        return hd_fail(HD_ERR_NOMEM, "prompt: no memory for %" PRId64 " more", texts);
    hd_attention_run_set_texts(g->attention, &g->branches,
                               hd_tensor_of(g->own_text_values, HD_F32, shape));
    return HD_OK;
}

static hd_status make_buffers(generation *g)
{
    size_t one = (size_t)g->size.latent_values, all = (size_t)(g->slots * g->group) * one;
    g->latent = calloc(all, sizeof(float));
    g->input = calloc(all, sizeof(float));
    g->guess = calloc(all, sizeof(float));
    g->noise = calloc(one, sizeof(float));
    g->viewed = calloc(one, sizeof(float));
    g->data = calloc((size_t)(g->group * g->branches.count), sizeof *g->data);
    g->rng = calloc((size_t)(g->slots * g->group), sizeof *g->rng);
    g->text_values =
        calloc((size_t)(2 * g->branches.count * g->text_tokens * g->text_channels), sizeof(float));
    if (!g->latent || !g->input || !g->guess || !g->noise || !g->viewed || !g->data || !g->rng ||
        !g->text_values)
        return hd_fail(HD_ERR_NOMEM, "sampler: no memory for the latents of %" PRId64 " pictures",
                       g->group);
    HD_TRY(make_texts(g));
    HD_TRY(gen_aside_room(g));
    bool x0 = false;
    for (int64_t step = 0; step < g->calls; step++)
        x0 = x0 || hd_beside_run_wants_x0(g->beside, step);
    for (int i = 0; x0 && i < 3; i++) {
        g->x0[i] = calloc(all, sizeof(float));
        if (!g->x0[i]) return hd_fail(HD_ERR_NOMEM, "sampler: no memory for clean latents");
    }
    return HD_OK;
}

// The network with every row that any call has.
static hd_status measure_network(generation *g, const hd_exec *dry)
{
    HD_TRY(gen_set_rows(g, -1));
    size_t mark = hd_arena_mark(dry->arena);
    void *output =
        hd_arena_bytes(dry->arena, (size_t)(g->rows.count * g->size.latent_values) * sizeof(float));
    gen_call call = {&g->rows, g->attention, g->features, {.count = g->calls}, &g->size};
    hd_status status = gen_call_network(g, dry, &call, output);
    hd_arena_rewind(dry->arena, mark);
    return status == HD_OK ? gen_call_aside(g, dry, call.step, -1) : status;
}

static hd_status measure_all(generation *g, hd_exec *dry)
{
    HD_TRY(gen_encode_dry(g, dry));
    HD_TRY(measure_network(g, dry));
    HD_TRY(hd_attention_run_finish(g->attention));
    HD_TRY(hd_features_finish(g->features));
    gen_find_fork(g);
    if (g->fork_path[0]) {
        hd_arena_free(dry->arena); // the first pass has found where the rows part: less is needed
        dry->arena = NULL;
        HD_TRY(hd_arena_create_measuring(&dry->arena));
        HD_TRY(gen_encode_dry(g, dry));
        HD_TRY(measure_network(g, dry));
    }
    HD_TRY(hd_decode_picture(dry, g->model->vae, &g->size, g->preset->vae_tiling, g->latent, NULL));
    for (int b = 0; b < g->branches.count; b++)
        if (g->branch[b].start.picture_given)
            HD_TRY(hd_start_encode(&g->branch[b].start, dry, g->model->vae, &g->branch[b].size,
                                   g->preset->vae_tiling));
    return gen_invert_dry(g, dry);
}

// The dry pass: the same code on a recording executor finds shapes that do not fit, resolves the
// processors, prepares the primitives and measures the memory.
static hd_status measure(generation *g, size_t *bytes)
{
    hd_exec dry = g->ex;
    dry.recording = true;
    dry.cancelled = NULL;
    HD_TRY(hd_arena_create_measuring(&dry.arena));
    hd_status status = measure_all(g, &dry);
    *bytes = dry.arena ? hd_arena_peak_bytes(dry.arena) : 0;
    hd_arena_free(dry.arena);
    return status;
}

static hd_status read_mask(void *arg, const hd_json *node, const char *path, int branch,
                           float *mask)
{
    return hd_start_mask(mask, node, path, &((generation *)arg)->branch[branch].size);
}

// Processors prepare themselves, now that branches and prompts are known.
static hd_status begin_processors(generation *g)
{
    hd_begin_ctx ctx = {.calls = g->calls,
                        .channels = g->size.channels,
                        .height = g->size.latent_height,
                        .width = g->size.latent_width,
                        .factor = g->size.width / g->size.latent_width,
                        .branches = &g->branches,
                        .read_mask = read_mask,
                        .read_mask_arg = g};
    HD_TRY(hd_beside_run_begin(g->beside, &ctx));
    return hd_beside_run_room(g->beside, g->group);
}

static hd_status prepare(generation *g)
{
    const hd_run_request *r = g->request;
    const hd_preset *p = g->preset;
    HD_TRY(hd_embeddings_read(&g->embeddings, p->embeddings, g->model));
    HD_TRY(hd_branches_read(&g->branches, &g->branches_preset, p, r->root));
    HD_TRY(hd_start_open(&g->branch[0].start, p, r->root, g->model, &g->size));
    int64_t layers = hd_text_clip_configuration(g->model->text)->layers;
    if (p->clip_skip > layers)
        return hd_json_fail(hd_json_get(r->root, "clip_skip"), HD_ERR_ARGUMENT,
                            "is %" PRId64 ", must be 0 to %" PRId64 " for this model", p->clip_skip,
                            layers);
    g->text_tokens = hd_tokenizer_length(g->model->tokenizer);
    g->text_channels = hd_text_clip_configuration(g->model->text)->channels;
    HD_TRY(make_sampler(g, 1, 1)); // how many calls there are, before who takes part in them
    g->calls = hd_sampler_calls(g->sampler);
    HD_TRY(hd_attention_run_create(&g->attention, r->processors, p->processors, g->calls));
    HD_TRY(hd_attention_run_create(&g->inverting, r->processors, NULL, g->calls));
    HD_TRY(make_branches(g));
    HD_TRY(choose_group(g));
    HD_TRY(make_sampler(g, g->sampled * g->group, g->size.latent_values));
    HD_TRY(make_buffers(g));
    hd_attention_run_watch(g->attention, r->watch, r->watch_user);
    if (p->capture) {
        HD_TRY(hd_capture_create(&g->capture, p, r->root, g->calls, r->watch, r->watch_user));
        hd_attention_run_watch(g->attention, hd_capture_watch, g->capture);
    }
    HD_TRY(gen_tokenize(g));
    HD_TRY(begin_processors(g));
    HD_TRY(gen_invert_check(g));
    HD_TRY(gen_check_maps(g));
    if (p->latents_out) HD_TRY(hd_latents_file_begin(&g->latents, p->batch, &g->size));
    size_t bytes;
    HD_TRY(measure(g, &bytes));
    if (g->capture) HD_TRY(hd_capture_check(g->capture, r->root));
    r->result->report.arena_bytes = bytes;
    r->result->report.sampler = hd_result_keep(r->result, hd_sampler_name(g->sampler));
    if (r->chain) return HD_OK;
    return hd_arena_create(&g->ex.arena, bytes);
}

static void clear(generation *g)
{
    for (int64_t i = 0; g->rng && i < g->slots * g->group; i++)
        hd_rng_free(g->rng[i]);
    free(g->rng);
    free(g->latent);
    free(g->input);
    free(g->guess);
    free(g->noise);
    free(g->viewed);
    free(g->data);
    free(g->text_values);
    free(g->own_text_values);
    for (int i = 0; i < HD_MAX_TEXTS; i++)
        free(g->own_token[i]);
    for (int i = 0; i < 3; i++)
        free(g->x0[i]);
    for (int b = 0; b < HD_MAX_BRANCHES; b++) {
        hd_start_free(&g->branch[b].start);
        free(g->branch[b].trajectory);
        free(g->branch[b].aside);
        free(g->branch[b].token[0]);
        free(g->branch[b].token[1]);
    }
    hd_latents_file_free(&g->latents);
    hd_capture_free(g->capture);
    hd_sampler_free(g->sampler);
    hd_features_free(g->features);
    hd_beside_run_free(g->beside);
    hd_attention_run_free(g->aside);
    hd_attention_run_free(g->inverting);
    hd_attention_run_free(g->attention);
    hd_branches_preset_free(&g->branches_preset);
    hd_embeddings_free(&g->embeddings);
    hd_arena_free(g->ex.arena);
}

/* --- the run --- */

static hd_status encode_pictures(generation *g)
{
    for (int b = 0; b < g->branches.count; b++) {
        if (!g->branch[b].start.picture_given) continue;
        double begin = hd_seconds();
        gen_tell(g, "encode", 0, 1, 0, begin);
        HD_TRY(hd_start_encode(&g->branch[b].start, &g->ex, g->model->vae, &g->branch[b].size,
                               g->preset->vae_tiling));
        hd_result_stage(g->request->result, "encode", hd_seconds() - begin, 1);
    }
    return HD_OK;
}

static hd_status run_all(generation *g)
{
    const hd_run_request *r = g->request;
    HD_TRY(prepare(g));
    if (r->chain) return hd_chain_write(r->chain, g);
    gen_tell(g, "prompt", 0, 1, 0, hd_seconds());
    HD_TRY(gen_encode_prompts(g));
    HD_TRY(encode_pictures(g));
    HD_TRY(gen_invert(g));
    int64_t groups = (g->preset->batch + g->group - 1) / g->group;
    double begin = hd_seconds();
    gen_tell(g, "sample", 0, groups * g->calls, 0, begin);
    for (int64_t first = 0, n = 0; first < g->preset->batch; first += g->group, n++) {
        double sample = hd_seconds();
        HD_TRY(gen_begin_group(g, first));
        HD_TRY(gen_sample_group(g, first, n * g->calls, begin));
        hd_result_stage(r->result, "sample", hd_seconds() - sample, (int)g->calls);
        HD_TRY(finish_group(g, first));
    }
    if (g->capture) {
        HD_TRY(hd_capture_write(g->capture));
        r->result->report.capture_path = hd_result_keep(r->result, g->preset->capture);
    }
    if (!g->preset->latents_out) return HD_OK;
    HD_TRY(hd_latents_file_write(&g->latents, g->preset->latents_out));
    r->result->report.latents_path = hd_result_keep(r->result, g->preset->latents_out);
    return HD_OK;
}

hd_status hd_text_to_image(const hd_run_request *request)
{
    generation *g = calloc(1, sizeof *g);
    if (!g) return hd_fail(HD_ERR_NOMEM, "run: no memory");
    g->request = request;
    g->preset = request->preset;
    g->model = request->model;
    g->ex = *request->ex;
    g->ex.arena = NULL;
    hd_status status = run_all(g);
    clear(g);
    free(g);
    return status;
}
