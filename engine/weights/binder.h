/* engine/weights/binder.h: a network's parameters, declared by name and shape, bound to a file and
 * packed.
 *
 * A network declares every parameter it has, with where its packed form goes. hd_binder_load then
 * compares the declarations with the files, reports every missing, unexpected and misshapen tensor
 * at once, and only then packs. */
#ifndef HD_ENGINE_WEIGHTS_BINDER_H
#define HD_ENGINE_WEIGHTS_BINDER_H

#include "engine/ops/conv.h"
#include "engine/ops/linear.h"
#include "engine/weights/weights.h"

HD_BEGIN_DECLS

typedef struct hd_binder hd_binder;

HD_CHECKED hd_status hd_binder_create(hd_binder **out);
void hd_binder_free(hd_binder *binder); // not what was loaded: that belongs to the network

/* Names are `prefix` + ".weight" / ".bias"; prefixes are printf texts made by the caller. *dst is
 * set to NULL, and by a successful hd_binder_load to what is then the network's to free. An error
 * inside is kept and returned by hd_binder_load, so that a declaration reads as one line. A matrix
 * may be stored as [out, in] or [out, in, 1, 1], a 1x1 convolution likewise. */
void hd_bind_linear(hd_binder *b, hd_linear **dst, const char *prefix, int64_t in, int64_t out,
                    bool bias);
/* Several matrices on one input stacked into one (to_q, to_k, to_v): names prefix + "." + part[i].
 */
void hd_bind_linears(hd_binder *b, hd_linear **dst, const char *prefix, int parts,
                     const char *const *part, int64_t in, const int64_t *out, bool bias);
void hd_bind_conv(hd_binder *b, hd_conv **dst, const char *prefix, int64_t in, int64_t out,
                  int64_t kernel, hd_conv_spec spec, bool bias);
/* A vector kept as f32: *dst is malloc'd [count]. `name` is the full tensor name. */
void hd_bind_vector(hd_binder *b, float **dst, const char *name, int64_t count);
/* weight and bias vectors of a norm. */
void hd_bind_norm(hd_binder *b, float **gamma, float **beta, const char *prefix, int64_t channels);
/* A table kept as f32 [rows, cols], malloc'd: embeddings. */
void hd_bind_table(hd_binder *b, float **dst, const char *name, int64_t rows, int64_t cols);
/* A tensor the file may hold and we do not need ("*.position_ids"; one leading * is a wildcard). */
void hd_bind_ignore(hd_binder *b, const char *name);

/* Checks everything, then packs in `compute`, on ex->pool; a binder is loaded once. HD_ERR_FORMAT
 * with all that is missing, unexpected, or of another shape or type. After a failure every *dst is
 * NULL. progress may be NULL: called with bytes done and in all, by one thread at a time, not
 * always the caller's; nonzero return cancels. */
HD_CHECKED hd_status hd_binder_load(hd_binder *b, const hd_exec *ex, const hd_weights *weights,
                                    hd_dtype compute,
                                    int (*progress)(void *arg, int64_t done, int64_t all),
                                    void *progress_arg);
/* The checks alone, against names and shapes (tests bind the real models' name lists without their
 * weights). */
HD_CHECKED hd_status hd_binder_check(const hd_binder *b, const char *what, int64_t count,
                                     const hd_weight_info *infos);
/* The largest few distinct matrix shapes declared, for choosing the compute type: fills up to
 * `most` [in, out] pairs. */
int hd_binder_shapes(const hd_binder *b, int most, int64_t (*in_out)[2]);

HD_END_DECLS
#endif
