/* benchmark/errors.h: how far one result is from another. */
#ifndef HD_BENCHMARK_ERRORS_H
#define HD_BENCHMARK_ERRORS_H

#include "base/tensor.h"
#include "codecs/image.h"

HD_BEGIN_DECLS

/* Of two contiguous tensors of one shape and type (f32 or bf16): sum |a - b| / sum |b| and the
 * cosine, in f64. NaN in, NaN out. */
void hd_bench_compare(hd_tensor a, hd_tensor b, double *rel_l1, double *cosine);

/* Mean of exp(a - b), and of min(1, .) as rounding may pass 1; entries where b is not finite are
 * left out. */
double hd_bench_retained_mass(const float *lse, const float *dense_lse, int64_t count);

/* Of two pictures of one size. PSNR in dB over all values, INFINITY for equal ones. SSIM as Wang et
 * al. 2004: per channel, Gaussian window of 11 x 11 with deviation 1.5, inside the picture only,
 * mean over places and channels; pictures smaller than 11 give NaN. */
double hd_bench_psnr(const hd_image *a, const hd_image *b);
HD_CHECKED hd_status hd_bench_ssim(double *out, const hd_image *a, const hd_image *b);

HD_END_DECLS
#endif
