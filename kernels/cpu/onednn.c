/* kernels/cpu/onednn.c: packing and running through oneDNN's C API, 2.6 and 3.x.
 *
 * The two generations differ in how they describe memory (a struct by value, an opaque handle) and
 * how a primitive is described; the first part of the file levels that out. */
#include "kernels/cpu/onednn.h"

#include <dlfcn.h>
#include <dnnl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#if DNNL_CPU_RUNTIME != DNNL_RUNTIME_OMP && DNNL_CPU_RUNTIME != DNNL_RUNTIME_SEQ
#error                                                                                             \
    "Heddle runs oneDNN on its own threads: use a oneDNN built with OpenMP or SEQ, not TBB or SYCL"
#endif

#if DNNL_VERSION_MAJOR >= 3
#define DESC(desc) (desc)
#else
#define DESC(desc) (&(desc))
#endif

#define PANELS_MAX 64 // of one filter; then the oldest is dropped
#define HUGE_PAGE  ((size_t)2 << 20)

static dnnl_data_type_t dnn_type(hd_dtype dtype)
{
    return dtype == HD_BF16 ? dnnl_bf16 : dnnl_f32;
}

static hd_status dnn_check(dnnl_status_t status, const char *what)
{
    if (status == dnnl_success) return HD_OK;
    if (status == dnnl_out_of_memory) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory: %s", what);
    if (status == dnnl_unimplemented)
        return hd_fail(HD_ERR_UNSUPPORTED, "oneDNN cannot %s on this machine", what);
    return hd_fail(HD_ERR_INTERNAL, "oneDNN: could not %s (status %d)", what, (int)status);
}
#define DNN_TRY(call, what) HD_TRY(dnn_check((call), (what)))

static void desc_free(dnnl_memory_desc_t *desc)
{
#if DNNL_VERSION_MAJOR >= 3
    if (*desc) dnnl_memory_desc_destroy(*desc);
#endif
    memset(desc, 0, sizeof *desc);
}

// Strides in elements; NULL: the implementation chooses.
static dnnl_status_t desc_make(dnnl_memory_desc_t *desc, int rank, const int64_t *dims,
                               hd_dtype dtype, const int64_t *strides)
{
    dnnl_dims_t d, s;
    for (int i = 0; i < rank; i++) {
        d[i] = dims[i];
        if (strides) s[i] = strides[i];
    }
#if DNNL_VERSION_MAJOR >= 3
    if (strides) return dnnl_memory_desc_create_with_strides(desc, rank, d, dnn_type(dtype), s);
    return dnnl_memory_desc_create_with_tag(desc, rank, d, dnn_type(dtype), dnnl_format_tag_any);
#else
    if (strides) return dnnl_memory_desc_init_by_strides(desc, rank, d, dnn_type(dtype), s);
    return dnnl_memory_desc_init_by_tag(desc, rank, d, dnn_type(dtype), dnnl_format_tag_any);
#endif
}

static dnnl_status_t desc_bytes(dnnl_memory_desc_t *desc, size_t bytes)
{
    dnnl_dims_t d = {bytes > 0 ? (dnnl_dim_t)bytes : 1};
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(desc, 1, d, dnnl_u8, dnnl_a);
#else
    return dnnl_memory_desc_init_by_tag(desc, 1, d, dnnl_u8, dnnl_a);
#endif
}

// The caller owns *out.
static dnnl_status_t desc_query(dnnl_memory_desc_t *out, const_dnnl_primitive_desc_t pd,
                                dnnl_query_t what)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(out, dnnl_primitive_desc_query_md(pd, what, 0));
#else
    *out = *dnnl_primitive_desc_query_md(pd, what, 0);
    return dnnl_success;
#endif
}

static size_t scratch_query(const_dnnl_primitive_desc_t pd)
{
    return dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0));
}

static dnnl_status_t matmul_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                                 dnnl_primitive_attr_t attr, dnnl_memory_desc_t x,
                                 dnnl_memory_desc_t w, dnnl_memory_desc_t y)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_matmul_primitive_desc_create(pd, engine, x, w, NULL, y, attr);
#else
    dnnl_matmul_desc_t desc;
    dnnl_status_t status = dnnl_matmul_desc_init(&desc, &x, &w, NULL, &y);
    return status ? status : dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL);
#endif
}

static dnnl_status_t conv_desc(dnnl_primitive_desc_t *pd, dnnl_engine_t engine,
                               dnnl_primitive_attr_t attr, dnnl_memory_desc_t x,
                               dnnl_memory_desc_t w, dnnl_memory_desc_t y, int64_t stride)
{
    dnnl_dims_t step = {stride, stride}, none = {0, 0};
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_convolution_forward_primitive_desc_create(pd, engine, dnnl_forward_inference,
                                                          dnnl_convolution_direct, x, w, NULL, y,
                                                          step, none, none, none, attr);
#else
    dnnl_convolution_desc_t desc;
    dnnl_status_t status = dnnl_convolution_forward_desc_init(
        &desc, dnnl_forward_inference, dnnl_convolution_direct, &x, &w, NULL, &y, step, none, none);
    return status ? status : dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL);
#endif
}

typedef void omp_set_threads(int);
typedef int omp_get_threads(void);

// Memory objects of one thread: a handle is set before each run.
typedef struct dnn_slot {
    dnnl_memory_t x, y, scratch, w; // w: for plain weights
} dnn_slot;

// The primitive of one panel shape for blocks of one size.
typedef struct dnn_op {
    dnnl_primitive_t primitive;
    dnnl_memory_desc_t x, y, w, pad;
    size_t scratch_bytes;
    dnn_slot *slot; // [slots]
    int slots;
    char name[64];
    bool own_weights;      // the implementation wanted another order than the packed one
    dnnl_memory_t *weight; // [blocks], only with own_weights
    void *weight_data;
} dnn_op;

struct hd_dnn_panel {
    hd_dnn *dnn;
    hd_dnn_input input;
    dnn_op whole, last; // last: of the smaller last block, where there is one
};

struct hd_dnn {
    hd_dnn_filter filter;
    int64_t blocks, last_out;
    dnnl_engine_t engine;
    dnnl_primitive_attr_t attr;
    dnnl_stream_t *stream; // [threads]
    int threads;
    omp_set_threads *set_threads; // NULL: a sequential oneDNN
    omp_get_threads *get_threads;
    dnnl_memory_desc_t whole, last; // how a packed block lies in memory
    size_t whole_bytes;
    void *data;
    size_t bytes;
    dnnl_memory_t *weight; // [blocks]
    hd_dnn_panel **panel;
    int panels;
};

// oneDNN asks the calling thread's OpenMP setting how many threads to use. Returns what to restore.
static int one_thread(const hd_dnn *dnn)
{
    if (!dnn->set_threads || !dnn->get_threads) return 1;
    int before = dnn->get_threads();
    if (before != 1) dnn->set_threads(1);
    return before;
}

static void restore_threads(const hd_dnn *dnn, int before)
{
    if (before != 1) dnn->set_threads(before);
}

static void op_clear(dnn_op *op, int64_t blocks)
{
    for (int i = 0; i < op->slots; i++) {
        if (op->slot[i].x) dnnl_memory_destroy(op->slot[i].x);
        if (op->slot[i].y) dnnl_memory_destroy(op->slot[i].y);
        if (op->slot[i].scratch) dnnl_memory_destroy(op->slot[i].scratch);
        if (op->slot[i].w) dnnl_memory_destroy(op->slot[i].w);
    }
    free(op->slot);
    for (int64_t b = 0; op->weight && b < blocks; b++)
        if (op->weight[b]) dnnl_memory_destroy(op->weight[b]);
    free(op->weight);
    free(op->weight_data);
    if (op->primitive) dnnl_primitive_destroy(op->primitive);
    desc_free(&op->x);
    desc_free(&op->y);
    desc_free(&op->w);
    desc_free(&op->pad);
}

static void panel_free(hd_dnn_panel *panel)
{
    if (!panel) return;
    op_clear(&panel->whole, panel->dnn->blocks);
    op_clear(&panel->last, panel->dnn->blocks);
    free(panel);
}

void hd_dnn_free(hd_dnn *dnn)
{
    if (!dnn) return;
    for (int i = 0; i < dnn->panels; i++)
        panel_free(dnn->panel[i]);
    free(dnn->panel);
    for (int64_t b = 0; dnn->weight && b < dnn->blocks; b++)
        if (dnn->weight[b]) dnnl_memory_destroy(dnn->weight[b]);
    free(dnn->weight);
    free(dnn->data);
    desc_free(&dnn->whole);
    desc_free(&dnn->last);
    for (int i = 0; i < dnn->threads; i++)
        if (dnn->stream[i]) dnnl_stream_destroy(dnn->stream[i]);
    free(dnn->stream);
    if (dnn->attr) dnnl_primitive_attr_destroy(dnn->attr);
    if (dnn->engine) dnnl_engine_destroy(dnn->engine);
    free(dnn);
}

static void find_openmp(hd_dnn *dnn)
{
    // oneDNN brings the OpenMP that it was built with; a sequential one brings none
    *(void **)&dnn->set_threads = dlsym(RTLD_DEFAULT, "omp_set_num_threads");
    *(void **)&dnn->get_threads = dlsym(RTLD_DEFAULT, "omp_get_max_threads");
}

static bool is_matmul(const hd_dnn *dnn)
{
    return dnn->filter.kh == 0;
}

// Outputs of a block of one of the two sizes.
static int64_t size_of(const hd_dnn *dnn, bool last)
{
    return last ? dnn->last_out : dnn->filter.block;
}

static int64_t first_of(const hd_dnn *dnn, bool last)
{
    return last ? dnn->blocks - 1 : 0;
}

static int64_t end_of(const hd_dnn *dnn, bool last)
{
    return last || dnn->last_out == dnn->filter.block ? dnn->blocks : dnn->blocks - 1;
}

// How the weights of a block lie in a model's file; with strides NULL, in any order.
static dnnl_status_t weight_desc(const hd_dnn *dnn, dnnl_memory_desc_t *desc, int64_t out,
                                 bool plain)
{
    const hd_dnn_filter *f = &dnn->filter;
    if (f->plain) {
        int64_t dims[2] = {f->in, out}, strides[2] = {out, 1};
        return desc_make(desc, 2, dims, f->compute, strides);
    }
    if (is_matmul(dnn)) {
        int64_t dims[2] = {f->in, out}, strides[2] = {1, f->in};
        return desc_make(desc, 2, dims, f->compute, plain ? strides : NULL);
    }
    int64_t dims[4] = {out, f->in, f->kh, f->kw};
    int64_t strides[4] = {f->in * f->kh * f->kw, f->kh * f->kw, f->kw, 1};
    return desc_make(desc, 4, dims, f->compute, plain ? strides : NULL);
}

static dnnl_status_t op_describe(const hd_dnn *dnn, dnn_op *op, hd_dnn_input in, int64_t out)
{
    const hd_dnn_filter *f = &dnn->filter;
    dnnl_status_t status;
    if (is_matmul(dnn)) {
        int64_t x[2] = {in.w, f->in}, x_strides[2] = {in.x_stride, 1};
        int64_t y[2] = {in.w, out}, y_strides[2] = {out, 1};
        status = desc_make(&op->x, 2, x, f->compute, x_strides);
        return status ? status : desc_make(&op->y, 2, y, HD_F32, y_strides);
    }
    int64_t oh = (in.h - f->kh) / f->stride + 1, ow = (in.w - f->kw) / f->stride + 1;
    int64_t x[4] = {1, f->in, in.h, in.w};
    int64_t x_strides[4] = {in.h * in.w * f->in, 1, in.w * f->in, f->in};
    int64_t y[4] = {1, out, oh, ow}, y_strides[4] = {oh * ow * out, 1, ow * out, out};
    status = desc_make(&op->x, 4, x, f->compute, x_strides);
    return status ? status : desc_make(&op->y, 4, y, HD_F32, y_strides);
}

static dnnl_status_t op_primitive_desc(const hd_dnn *dnn, const dnn_op *op, dnnl_memory_desc_t w,
                                       dnnl_primitive_desc_t *pd, const char **name)
{
    dnnl_status_t status =
        is_matmul(dnn) ? matmul_desc(pd, dnn->engine, dnn->attr, op->x, w, op->y)
                       : conv_desc(pd, dnn->engine, dnn->attr, op->x, w, op->y, dnn->filter.stride);
    if (status) return status;
    return dnnl_primitive_desc_query(*pd, dnnl_query_impl_info_str, 0, name);
}

// The plain loops of oneDNN, there so that nothing is refused: orders of magnitude slower.
static bool is_slow(const char *name)
{
    return strncmp(name, "ref", 3) == 0;
}

// The primitive that takes the weights as they are packed, or, where only another order has a fast
// one, the primitive for that order. `packed` NULL: the weights are not packed yet.
// On success op->name and op->own_weights tell what was chosen.
static dnnl_status_t op_choose(const hd_dnn *dnn, dnn_op *op, const dnnl_memory_desc_t *packed,
                               int64_t out, dnnl_primitive_desc_t *pd)
{
    const char *name = "";
    dnnl_status_t status = dnnl_unimplemented;
    if (packed) status = op_primitive_desc(dnn, op, *packed, pd, &name);
    snprintf(op->name, sizeof op->name, "%s", name);
    if (status == dnnl_success && !is_slow(name)) return status;
    dnnl_memory_desc_t any;
    dnnl_primitive_desc_t other = NULL;
    memset(&any, 0, sizeof any);
    dnnl_status_t second = weight_desc(dnn, &any, out, false);
    if (second == dnnl_success) second = op_primitive_desc(dnn, op, any, &other, &name);
    desc_free(&any);
    if (second != dnnl_success || (status == dnnl_success && is_slow(name))) {
        if (other) dnnl_primitive_desc_destroy(other);
        return status == dnnl_success ? status : second;
    }
    if (status == dnnl_success) dnnl_primitive_desc_destroy(*pd);
    *pd = other;
    snprintf(op->name, sizeof op->name, "%s", name);
    op->own_weights = packed != NULL;
    return dnnl_success;
}

static hd_status reorder(const hd_dnn *dnn, dnnl_memory_t to, dnnl_memory_desc_t *to_desc,
                         dnnl_memory_t from, dnnl_memory_desc_t *from_desc)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t primitive = NULL;
    dnnl_stream_t stream = NULL;
    dnnl_status_t status = dnnl_reorder_primitive_desc_create(&pd, DESC(*from_desc), dnn->engine,
                                                              DESC(*to_desc), dnn->engine, NULL);
    if (!status) status = dnnl_primitive_create(&primitive, pd);
    if (!status) status = dnnl_stream_create(&stream, dnn->engine, dnnl_stream_in_order);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, from}, {DNNL_ARG_TO, to}};
    if (!status) status = dnnl_primitive_execute(primitive, stream, 2, args);
    if (!status) status = dnnl_stream_wait(stream);
    if (stream) dnnl_stream_destroy(stream);
    if (primitive) dnnl_primitive_destroy(primitive);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return dnn_check(status, "pack weights");
}

// Copies of the packed blocks in the order that this primitive asks for.
static hd_status op_repack(hd_dnn *dnn, dnn_op *op, bool last)
{
    size_t each = (dnnl_memory_desc_get_size(DESC(op->w)) + 63) & ~(size_t)63;
    int64_t first = first_of(dnn, last), end = end_of(dnn, last);
    op->weight = calloc((size_t)dnn->blocks, sizeof *op->weight);
    op->weight_data = aligned_alloc(64, each * (size_t)(end - first));
    if (!op->weight || !op->weight_data)
        return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for packed weights");
    for (int64_t b = first; b < end; b++) {
        void *to = (char *)op->weight_data + each * (size_t)(b - first);
        DNN_TRY(dnnl_memory_create(&op->weight[b], DESC(op->w), dnn->engine, to), "take memory");
        HD_TRY(
            reorder(dnn, op->weight[b], &op->w, dnn->weight[b], last ? &dnn->last : &dnn->whole));
    }
    return HD_OK;
}

static hd_status op_create(hd_dnn *dnn, dnn_op *op, hd_dnn_input input, bool last)
{
    int64_t out = size_of(dnn, last);
    DNN_TRY(op_describe(dnn, op, input, out), "describe a panel");
    dnnl_primitive_desc_t pd = NULL;
    DNN_TRY(op_choose(dnn, op, last ? &dnn->last : &dnn->whole, out, &pd), "compute a panel");
    dnnl_status_t status = desc_query(&op->w, pd, dnnl_query_weights_md);
    op->scratch_bytes = scratch_query(pd);
    if (!status) status = dnnl_primitive_create(&op->primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    if (!status) status = desc_bytes(&op->pad, op->scratch_bytes);
    DNN_TRY(status, "make a primitive");
    return op->own_weights ? op_repack(dnn, op, last) : HD_OK;
}

static hd_status op_slots(const hd_dnn *dnn, dnn_op *op, int threads)
{
    if (threads <= op->slots || !op->primitive) return HD_OK;
    dnn_slot *slot = realloc(op->slot, (size_t)threads * sizeof *slot);
    if (!slot) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for %d threads", threads);
    op->slot = slot;
    for (; op->slots < threads; op->slots++) {
        dnn_slot *s = &slot[op->slots];
        *s = (dnn_slot){0};
        dnnl_status_t status =
            dnnl_memory_create(&s->x, DESC(op->x), dnn->engine, DNNL_MEMORY_NONE);
        if (!status) status = dnnl_memory_create(&s->y, DESC(op->y), dnn->engine, DNNL_MEMORY_NONE);
        if (!status)
            status = dnnl_memory_create(&s->scratch, DESC(op->pad), dnn->engine, DNNL_MEMORY_NONE);
        if (!status && dnn->filter.plain)
            status = dnnl_memory_create(&s->w, DESC(op->w), dnn->engine, DNNL_MEMORY_NONE);
        if (status) op->slots++; // so that what was made is freed
        DNN_TRY(status, "describe memory");
    }
    return HD_OK;
}

static hd_status dnn_streams(hd_dnn *dnn, int threads)
{
    if (threads <= dnn->threads) return HD_OK;
    dnnl_stream_t *stream = realloc(dnn->stream, (size_t)threads * sizeof *stream);
    if (!stream) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for %d threads", threads);
    dnn->stream = stream;
    for (; dnn->threads < threads; dnn->threads++)
        DNN_TRY(dnnl_stream_create(&stream[dnn->threads], dnn->engine, dnnl_stream_in_order),
                "make a stream");
    return HD_OK;
}

// The order in which a block of this size is packed: what the implementation likes best for a panel
// of usual size. The shape of the outputs decides it, hardly ever that of the panel.
static hd_status dnn_layout(hd_dnn *dnn, dnnl_memory_desc_t *layout, int64_t out)
{
    const hd_dnn_filter *f = &dnn->filter;
    hd_dnn_input typical = {.h = 1, .w = 128, .x_stride = f->in};
    if (!is_matmul(dnn)) {
        typical.h = 3 * f->stride + f->kh;
        typical.w = 63 * f->stride + f->kw;
    }
    dnn_op op;
    memset(&op, 0, sizeof op);
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t status = op_describe(dnn, &op, typical, out);
    if (!status) status = op_choose(dnn, &op, NULL, out, &pd);
    if (!status) status = desc_query(layout, pd, dnnl_query_weights_md);
    if (pd) dnnl_primitive_desc_destroy(pd);
    op_clear(&op, dnn->blocks);
    if (status == dnnl_unimplemented && f->compute == HD_BF16)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "oneDNN computes nothing in bf16 on this machine; use --precision f32");
    return dnn_check(status, is_matmul(dnn) ? "multiply matrices" : "convolve");
}

// Whole huge pages inside the weights are asked for as such; what is left over stays small pages.
static void *weights_alloc(size_t bytes)
{
    bool huge = bytes >= HUGE_PAGE;
    size_t align = huge ? HUGE_PAGE : 64;
    void *data = NULL;
    if (posix_memalign(&data, align, bytes) != 0) return NULL;
#ifdef MADV_HUGEPAGE
    if (huge) (void)madvise(data, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE); // only faster
#endif
    return data;
}

static hd_status dnn_memory(hd_dnn *dnn)
{
    if (dnn->filter.plain) return HD_OK;
    size_t whole = (dnnl_memory_desc_get_size(DESC(dnn->whole)) + 63) & ~(size_t)63;
    size_t last = (dnnl_memory_desc_get_size(DESC(dnn->last)) + 63) & ~(size_t)63;
    dnn->whole_bytes = whole;
    dnn->bytes = whole * (size_t)(dnn->blocks - 1) + last;
    dnn->data = weights_alloc(dnn->bytes);
    dnn->weight = calloc((size_t)dnn->blocks, sizeof *dnn->weight);
    if (!dnn->data || !dnn->weight)
        return hd_fail(HD_ERR_NOMEM, "no memory for %.1f MiB of packed weights",
                       (double)dnn->bytes / 0x1p20);
    return HD_OK;
}

static hd_status dnn_open(hd_dnn *dnn)
{
    DNN_TRY(dnnl_engine_create(&dnn->engine, dnnl_cpu, 0), "start");
    DNN_TRY(dnnl_primitive_attr_create(&dnn->attr), "start");
    DNN_TRY(dnnl_primitive_attr_set_scratchpad_mode(dnn->attr, dnnl_scratchpad_mode_user),
            "take scratch memory");
    DNN_TRY(dnnl_primitive_attr_set_fpmath_mode(dnn->attr, dnnl_fpmath_mode_strict),
            "compute strictly");
    HD_TRY(dnn_layout(dnn, &dnn->whole, dnn->filter.block));
    HD_TRY(dnn_layout(dnn, &dnn->last, dnn->last_out));
    HD_TRY(dnn_memory(dnn));
    for (int64_t b = 0; dnn->weight && b < dnn->blocks; b++) {
        dnnl_memory_desc_t desc = b == dnn->blocks - 1 ? dnn->last : dnn->whole;
        void *at = (char *)dnn->data + dnn->whole_bytes * (size_t)b;
        DNN_TRY(dnnl_memory_create(&dnn->weight[b], DESC(desc), dnn->engine, at),
                "describe memory");
    }
    return HD_OK;
}

hd_status hd_dnn_create(hd_dnn **out, hd_dnn_filter filter)
{
    HD_ENSURE(filter.in > 0 && filter.out > 0 && filter.block > 0);
    hd_dnn *dnn = calloc(1, sizeof *dnn);
    if (!dnn) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory");
    if (filter.plain || filter.block > filter.out) filter.block = filter.out;
    dnn->filter = filter;
    dnn->blocks = (filter.out + filter.block - 1) / filter.block;
    dnn->last_out = filter.out - (dnn->blocks - 1) * filter.block;
    find_openmp(dnn);
    int before = one_thread(dnn);
    hd_status status = dnn_open(dnn);
    restore_threads(dnn, before);
    if (status != HD_OK) {
        hd_dnn_free(dnn);
        return status;
    }
    *out = dnn;
    return HD_OK;
}

int64_t hd_dnn_blocks(const hd_dnn *dnn)
{
    return dnn->blocks;
}

int64_t hd_dnn_block_out(const hd_dnn *dnn, int64_t block)
{
    return size_of(dnn, block == dnn->blocks - 1);
}

int64_t hd_dnn_bytes(const hd_dnn *dnn)
{
    return (int64_t)dnn->bytes;
}

hd_status hd_dnn_pack(hd_dnn *dnn, int64_t block, const void *plain)
{
    bool last = block == dnn->blocks - 1;
    dnnl_memory_desc_t desc;
    dnnl_memory_t from = NULL;
    memset(&desc, 0, sizeof desc);
    int before = one_thread(dnn);
    dnnl_status_t made = weight_desc(dnn, &desc, size_of(dnn, last), true);
    if (!made) made = dnnl_memory_create(&from, DESC(desc), dnn->engine, (void *)(uintptr_t)plain);
    hd_status status = dnn_check(made, "describe memory");
    if (status == HD_OK)
        status = reorder(dnn, dnn->weight[block], last ? &dnn->last : &dnn->whole, from, &desc);
    if (from) dnnl_memory_destroy(from);
    desc_free(&desc);
    restore_threads(dnn, before);
    return status;
}

// Strides and inner blocks of a blocked layout of rank 4; false: it is of another kind.
static bool blocked_of(const dnnl_memory_desc_t *desc, dnnl_dim_t *strides, int *inner,
                       dnnl_dim_t *sizes, dnnl_dim_t *axes)
{
#if DNNL_VERSION_MAJOR >= 3
    dnnl_format_kind_t kind;
    const dnnl_dims_t *s, *b, *i;
    if (dnnl_memory_desc_query(*desc, dnnl_query_format_kind, &kind) || kind != dnnl_blocked ||
        dnnl_memory_desc_query(*desc, dnnl_query_strides, &s) ||
        dnnl_memory_desc_query(*desc, dnnl_query_inner_nblks_s32, inner) ||
        dnnl_memory_desc_query(*desc, dnnl_query_inner_blks, &b) ||
        dnnl_memory_desc_query(*desc, dnnl_query_inner_idxs, &i))
        return false;
    memcpy(strides, *s, 4 * sizeof *strides);
    memcpy(sizes, *b, (size_t)*inner * sizeof *sizes);
    memcpy(axes, *i, (size_t)*inner * sizeof *axes);
#else
    if (desc->format_kind != dnnl_blocked) return false;
    const dnnl_blocking_desc_t *b = &desc->format_desc.blocking;
    *inner = b->inner_nblks;
    memcpy(strides, b->strides, 4 * sizeof *strides);
    memcpy(sizes, b->inner_blks, sizeof b->inner_blks);
    memcpy(axes, b->inner_idxs, sizeof b->inner_idxs);
#endif
    return true;
}

bool hd_dnn_packed_block(const hd_dnn *dnn, int64_t block, hd_dnn_packed *out)
{
    const hd_dnn_filter *f = &dnn->filter;
    dnnl_dim_t strides[DNNL_MAX_NDIMS], sizes[DNNL_MAX_NDIMS], axes[DNNL_MAX_NDIMS];
    int inner = 0;
    bool last = block == dnn->blocks - 1;
    if (is_matmul(dnn) ||
        !blocked_of(last ? &dnn->last : &dnn->whole, strides, &inner, sizes, axes))
        return false;
    out->data = (const char *)dnn->data + dnn->whole_bytes * (size_t)block;
    out->pair = f->compute == HD_BF16 ? 2 : 1;
    int64_t width = size_of(dnn, last);
    bool order = inner == out->pair && sizes[0] == width && axes[0] == 0;
    if (out->pair == 2) order = order && sizes[1] == 2 && axes[1] == 1;
    return order && f->in % out->pair == 0 && strides[1] == width * out->pair &&
           strides[3] == width * f->in && strides[2] == strides[3] * f->kw;
}

static hd_status panel_make(hd_dnn *dnn, hd_dnn_input input)
{
    if (!dnn->panel) dnn->panel = calloc(PANELS_MAX, sizeof *dnn->panel);
    hd_dnn_panel *panel = calloc(1, sizeof *panel);
    if (!dnn->panel || !panel) {
        free(panel);
        return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for a panel");
    }
    panel->dnn = dnn;
    panel->input = input;
    hd_status status = HD_OK;
    if (end_of(dnn, false) > 0) status = op_create(dnn, &panel->whole, input, false);
    if (status == HD_OK && dnn->last_out != dnn->filter.block)
        status = op_create(dnn, &panel->last, input, true);
    if (status != HD_OK) {
        panel_free(panel);
        return status;
    }
    if (dnn->panels == PANELS_MAX) {
        panel_free(dnn->panel[0]);
        memmove(dnn->panel, dnn->panel + 1, (PANELS_MAX - 1) * sizeof *dnn->panel);
        dnn->panels--;
    }
    dnn->panel[dnn->panels++] = panel;
    return HD_OK;
}

static hd_dnn_panel *panel_find(const hd_dnn *dnn, hd_dnn_input input)
{
    for (int i = 0; i < dnn->panels; i++) {
        hd_dnn_input have = dnn->panel[i]->input;
        if (have.h == input.h && have.w == input.w && have.x_stride == input.x_stride)
            return dnn->panel[i];
    }
    return NULL;
}

hd_status hd_dnn_panel_get(hd_dnn *dnn, int threads, hd_dnn_input input, hd_dnn_panel **out)
{
    hd_dnn_panel *panel = panel_find(dnn, input);
    hd_status status = HD_OK;
    if (!panel) {
        int before = one_thread(dnn);
        status = panel_make(dnn, input);
        restore_threads(dnn, before);
        panel = panel_find(dnn, input);
    }
    if (status == HD_OK) status = dnn_streams(dnn, threads);
    if (status == HD_OK) status = op_slots(dnn, &panel->whole, threads);
    if (status == HD_OK) status = op_slots(dnn, &panel->last, threads);
    if (status == HD_OK) *out = panel;
    return status;
}

size_t hd_dnn_panel_scratch_bytes(const hd_dnn_panel *panel)
{
    size_t whole = panel->whole.scratch_bytes, last = panel->last.scratch_bytes;
    return whole > last ? whole : last;
}

const char *hd_dnn_panel_name(const hd_dnn_panel *panel)
{
    return panel->whole.primitive ? panel->whole.name : panel->last.name;
}

static hd_status op_run(const hd_dnn *dnn, const dnn_op *op, int thread, float *y, const void *x,
                        dnnl_memory_t weights, void *scratch)
{
    dnn_slot *slot = &op->slot[thread];
    int before = one_thread(dnn);
    dnnl_status_t status = dnnl_memory_set_data_handle(slot->x, (void *)(uintptr_t)x);
    if (!status) status = dnnl_memory_set_data_handle(slot->y, y);
    if (!status) status = dnnl_memory_set_data_handle(slot->scratch, scratch);
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, slot->x},
                              {DNNL_ARG_WEIGHTS, weights},
                              {DNNL_ARG_DST, slot->y},
                              {DNNL_ARG_SCRATCHPAD, slot->scratch}};
    if (!status) status = dnnl_primitive_execute(op->primitive, dnn->stream[thread], 4, args);
    restore_threads(dnn, before);
    return dnn_check(status, "run a panel");
}

hd_status hd_dnn_panel_run(hd_dnn_panel *panel, int thread, int64_t block, float *y, const void *x,
                           void *scratch)
{
    const hd_dnn *dnn = panel->dnn;
    bool last = block == dnn->blocks - 1 && dnn->last_out != dnn->filter.block;
    const dnn_op *op = last ? &panel->last : &panel->whole;
    dnnl_memory_t weights = op->own_weights ? op->weight[block] : dnn->weight[block];
    return op_run(dnn, op, thread, y, x, weights, scratch);
}

hd_status hd_dnn_panel_run_plain(hd_dnn_panel *panel, int thread, float *y, const void *x,
                                 const void *weights, void *scratch)
{
    dnnl_memory_t w = panel->whole.slot[thread].w;
    HD_TRY(dnn_check(dnnl_memory_set_data_handle(w, (void *)(uintptr_t)weights), "take weights"));
    return op_run(panel->dnn, &panel->whole, thread, y, x, w, scratch);
}

// Matrices of one matmul of oneDNN's own, and what runs it.
typedef struct yardstick {
    dnn_op op;
    void *data[3]; // x, weights, y
    dnnl_memory_t memory[3];
} yardstick;

static hd_status yardstick_memory(const hd_dnn *dnn, yardstick *m)
{
    dnnl_memory_desc_t desc[3] = {m->op.x, m->op.w, m->op.y};
    for (int i = 0; i < 3; i++) {
        size_t bytes = dnnl_memory_desc_get_size(DESC(desc[i]));
        m->data[i] = weights_alloc(bytes);
        if (!m->data[i]) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for a matmul");
        memset(m->data[i], 0x3c, bytes); // small numbers in both types
        DNN_TRY(dnnl_memory_create(&m->memory[i], DESC(desc[i]), dnn->engine, m->data[i]),
                "describe memory");
    }
    return HD_OK;
}

static hd_status yardstick_run(hd_dnn *dnn, yardstick *m, int repeats, double *best)
{
    void *scratch = weights_alloc(m->op.scratch_bytes + 64);
    if (!scratch) return hd_fail(HD_ERR_NOMEM, "oneDNN: no memory for a matmul");
    hd_status status =
        dnn_check(dnnl_memory_set_data_handle(m->op.slot[0].scratch, scratch), "take scratch");
    dnnl_exec_arg_t args[] = {{DNNL_ARG_SRC, m->memory[0]},
                              {DNNL_ARG_WEIGHTS, m->memory[1]},
                              {DNNL_ARG_DST, m->memory[2]},
                              {DNNL_ARG_SCRATCHPAD, m->op.slot[0].scratch}};
    *best = 1e30;
    for (int i = 0; i < repeats && status == HD_OK; i++) {
        struct timespec from, to;
        clock_gettime(CLOCK_MONOTONIC, &from);
        status =
            dnn_check(dnnl_primitive_execute(m->op.primitive, dnn->stream[0], 4, args), "multiply");
        clock_gettime(CLOCK_MONOTONIC, &to);
        double took =
            (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
        if (took < *best) *best = took;
    }
    free(scratch);
    return status;
}

static hd_status yardstick_make(hd_dnn *dnn, yardstick *m, int64_t rows, int64_t n)
{
    int64_t k = dnn->filter.in, y[2] = {rows, n}, y_strides[2] = {n, 1};
    int64_t x[2] = {rows, k}, x_strides[2] = {k, 1};
    DNN_TRY(desc_make(&m->op.x, 2, x, dnn->filter.compute, x_strides), "describe a matmul");
    DNN_TRY(desc_make(&m->op.y, 2, y, dnn->filter.compute, y_strides), "describe a matmul");
    dnnl_primitive_desc_t pd = NULL;
    DNN_TRY(op_choose(dnn, &m->op, NULL, n, &pd), "multiply matrices");
    dnnl_status_t status = desc_query(&m->op.w, pd, dnnl_query_weights_md);
    m->op.scratch_bytes = scratch_query(pd);
    if (!status) status = dnnl_primitive_create(&m->op.primitive, pd);
    dnnl_primitive_desc_destroy(pd);
    if (!status) status = desc_bytes(&m->op.pad, m->op.scratch_bytes);
    DNN_TRY(status, "make a primitive");
    HD_TRY(op_slots(dnn, &m->op, 1));
    HD_TRY(dnn_streams(dnn, 1));
    return yardstick_memory(dnn, m);
}

hd_status hd_dnn_matmul_seconds(double *out, hd_dtype dtype, int threads, int64_t m, int64_t k,
                                int64_t n, int repeats)
{
    hd_dnn *dnn = NULL;
    HD_TRY(hd_dnn_create(&dnn, (hd_dnn_filter){.in = k, .out = n, .block = n, .compute = dtype}));
    yardstick stick;
    memset(&stick, 0, sizeof stick);
    int before = dnn->get_threads ? dnn->get_threads() : 1;
    if (dnn->set_threads) dnn->set_threads(threads);
    hd_status status = yardstick_make(dnn, &stick, m, n);
    if (status == HD_OK) status = yardstick_run(dnn, &stick, repeats, out);
    if (dnn->set_threads) dnn->set_threads(before);
    for (int i = 0; i < 3; i++) {
        if (stick.memory[i]) dnnl_memory_destroy(stick.memory[i]);
        free(stick.data[i]);
    }
    op_clear(&stick.op, 0);
    hd_dnn_free(dnn);
    return status;
}

const char *hd_dnn_version(char text[32])
{
    const dnnl_version_t *v = dnnl_version();
    snprintf(text, 32, "%d.%d.%d", v->major, v->minor, v->patch);
    return text;
}
