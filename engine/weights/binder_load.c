/* engine/weights/binder_load.c: reading and packing what a binder declared.
 *
 * Packs are independent, so they are shared out over the pool in the order in which they lie in the
 * files: while one thread waits for bytes, another packs. At most a few are under way at once, each
 * with a staging buffer that holds the largest of them: that, not the number of threads, bounds the
 * memory on top of the packed weights. */
#include "engine/weights/binder.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "engine/weights/binder_packs.h"

enum { STAGES_MOST = 4, STAGE_ALIGN = 64 };

typedef struct load_item {
    const binder_pack *pack;
    const binder_wanted *wanted;
    int64_t index[2 * BINDER_PARTS_MOST]; // of its tensors in the weights
    hd_weight_info info[2 * BINDER_PARTS_MOST];
    int tensors;
    int64_t bytes; // in the files
} load_item;

typedef struct load {
    const hd_weights *weights;
    hd_exec ex; // for the makers of packed weights: each works on its own thread
    hd_dtype compute;
    load_item *item; // in file order
    int64_t count, bytes;

    pthread_mutex_t mutex;
    pthread_cond_t freed;
    char *stage[STAGES_MOST]; // those not in use
    int stages;

    int (*progress)(void *arg, int64_t done, int64_t all);
    void *progress_arg;
    int64_t done;
} load;

static int64_t align_up(int64_t bytes)
{
    return (bytes + STAGE_ALIGN - 1) / STAGE_ALIGN * STAGE_ALIGN;
}

// What an item needs of a staging buffer.
static int64_t staged_bytes(const load_item *item)
{
    int64_t bytes = 0;
    for (int i = 0; i < item->tensors; i++)
        bytes += align_up(item->info[i].bytes);
    return bytes;
}

static int compare_places(const void *a, const void *b)
{
    const hd_weight_info *x = ((const load_item *)a)->info, *y = ((const load_item *)b)->info;
    if (x->file_number != y->file_number) return x->file_number < y->file_number ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static hd_status find_items(load *l, const hd_binder *b)
{
    l->item = calloc((size_t)b->pack_count + 1, sizeof *l->item);
    if (!l->item)
        return hd_fail(HD_ERR_NOMEM, "%s: no memory to load it", hd_weights_path(l->weights));
    for (; l->count < b->pack_count; l->count++) {
        load_item *item = &l->item[l->count];
        item->pack = &b->packs[l->count];
        item->wanted = &b->wanted[item->pack->first];
        item->tensors = item->pack->parts + item->pack->biases;
        for (int i = 0; i < item->tensors; i++) {
            item->index[i] = hd_weights_find(l->weights, item->wanted[i].name);
            HD_ENSURE(item->index[i] >= 0);
            item->info[i] = hd_weights_info(l->weights, item->index[i]);
            item->bytes += item->info[i].bytes;
        }
        l->bytes += item->bytes;
    }
    qsort(l->item, (size_t)l->count, sizeof *l->item, compare_places);
    return HD_OK;
}

static hd_status create_stages(load *l, int threads)
{
    int64_t largest = STAGE_ALIGN;
    for (int64_t i = 0; i < l->count; i++)
        if (staged_bytes(&l->item[i]) > largest) largest = staged_bytes(&l->item[i]);
    int stages = threads < STAGES_MOST ? threads : STAGES_MOST;
    for (; l->stages < stages; l->stages++) {
        l->stage[l->stages] = aligned_alloc(STAGE_ALIGN, (size_t)largest);
        if (!l->stage[l->stages])
            return hd_fail(HD_ERR_NOMEM, "%s: no memory to load it (%lld bytes at a time)",
                           hd_weights_path(l->weights), (long long)largest);
    }
    return HD_OK;
}

static hd_status load_floats(const load *l, const load_item *item, char *stage)
{
    const hd_weight_info *info = &item->info[0];
    int64_t count = hd_shape_count(info->shape);
    float *floats = malloc((size_t)(count ? count : 1) * sizeof *floats);
    if (!floats) return hd_fail(HD_ERR_NOMEM, "%s: no memory for %s", info->file, info->name);
    bool direct = info->dtype == HD_F32;
    hd_status status = hd_weights_read(l->weights, item->index[0], direct ? (void *)floats : stage);
    if (status == HD_OK && !direct) status = hd_convert_to_f32(floats, stage, info->dtype, count);
    if (status != HD_OK) {
        free(floats);
        return status;
    }
    *item->pack->dst = floats;
    return HD_OK;
}

static hd_status load_matrices(const load *l, const load_item *item, char *stage)
{
    const binder_pack *pack = item->pack;
    hd_tensor weight[BINDER_PARTS_MOST], bias[BINDER_PARTS_MOST];
    for (int i = 0; i < item->tensors; i++) {
        HD_TRY(hd_weights_read(l->weights, item->index[i], stage));
        hd_tensor t = hd_tensor_of(stage, item->info[i].dtype, item->wanted[i].shape);
        if (i < pack->parts)
            weight[i] = t;
        else
            bias[i - pack->parts] = t;
        stage += align_up(item->info[i].bytes);
    }
    for (int i = pack->biases; i < pack->parts; i++)
        bias[i] = hd_tensor_none();
    hd_status status;
    if (pack->kind == BINDER_CONV) {
        hd_conv *conv = NULL;
        status = hd_conv_create(&conv, &l->ex, pack->spec, weight[0], bias[0], l->compute);
        *pack->dst = conv;
    } else {
        hd_linear *linear = NULL;
        status = hd_linear_create(&linear, &l->ex, pack->parts, weight, bias, l->compute);
        *pack->dst = linear;
    }
    return hd_note(status, "while packing %s of %s", item->info[0].name, item->info[0].file);
}

static char *take_stage(load *l)
{
    pthread_mutex_lock(&l->mutex);
    while (l->stages == 0)
        pthread_cond_wait(&l->freed, &l->mutex);
    char *stage = l->stage[--l->stages];
    pthread_mutex_unlock(&l->mutex);
    return stage;
}

// Gives the stage back, and tells how far it is when an item was loaded.
static hd_status return_stage(load *l, char *stage, int64_t bytes)
{
    pthread_mutex_lock(&l->mutex);
    l->stage[l->stages++] = stage;
    l->done += bytes;
    bool cancel = bytes && l->progress && l->progress(l->progress_arg, l->done, l->bytes) != 0;
    pthread_cond_signal(&l->freed);
    pthread_mutex_unlock(&l->mutex);
    return cancel
               ? hd_fail(HD_ERR_CANCELLED, "%s: loading was cancelled", hd_weights_path(l->weights))
               : HD_OK;
}

static hd_status load_work(void *arg, int64_t number, int thread)
{
    (void)thread;
    load *l = arg;
    const load_item *item = &l->item[number];
    char *stage = take_stage(l);
    hd_status status = item->pack->kind == BINDER_FLOATS ? load_floats(l, item, stage)
                                                         : load_matrices(l, item, stage);
    hd_status told = return_stage(l, stage, status == HD_OK ? item->bytes : 0);
    return status == HD_OK ? told : status;
}

static void free_loaded(const hd_binder *b)
{
    for (int64_t i = 0; i < b->pack_count; i++) {
        const binder_pack *pack = &b->packs[i];
        if (pack->kind == BINDER_LINEAR)
            hd_linear_free(*pack->dst);
        else if (pack->kind == BINDER_CONV)
            hd_conv_free(*pack->dst);
        else
            free(*pack->dst);
        *pack->dst = NULL;
    }
}

static hd_status check_weights(const hd_binder *b, const hd_weights *weights)
{
    int64_t count = hd_weights_count(weights);
    hd_weight_info *infos = malloc((size_t)(count + 1) * sizeof *infos);
    if (!infos) return hd_fail(HD_ERR_NOMEM, "%s: no memory to check it", hd_weights_path(weights));
    for (int64_t i = 0; i < count; i++)
        infos[i] = hd_weights_info(weights, i);
    hd_status status = hd_binder_check(b, hd_weights_path(weights), count, infos);
    free(infos);
    return status;
}

hd_status hd_binder_load(hd_binder *b, const hd_exec *ex, const hd_weights *weights,
                         hd_dtype compute, int (*progress)(void *arg, int64_t done, int64_t all),
                         void *progress_arg)
{
    HD_TRY(check_weights(b, weights));
    load l = {.weights = weights,
              .ex = *ex,
              .compute = compute,
              .progress = progress,
              .progress_arg = progress_arg};
    // Each thread makes its own packs: the pool and the arena are for one user at a time.
    l.ex.pool = NULL;
    l.ex.arena = NULL;
    pthread_mutex_init(&l.mutex, NULL);
    pthread_cond_init(&l.freed, NULL);
    hd_status status = find_items(&l, b);
    if (status == HD_OK) status = create_stages(&l, hd_pool_threads(ex->pool));
    if (status == HD_OK) status = hd_parallel_for(ex->pool, l.count, load_work, &l);
    if (status != HD_OK) free_loaded(b);
    while (l.stages > 0)
        free(l.stage[--l.stages]);
    free(l.item);
    pthread_cond_destroy(&l.freed);
    pthread_mutex_destroy(&l.mutex);
    return status;
}
