/* sparse/kv_cache.h: turning keys that were turned already: rotary positions (Su et al., RoFormer,
 * 2021), of which only differences count. */
#ifndef HD_SPARSE_KV_CACHE_H
#define HD_SPARSE_KV_CACHE_H

#include <stdbool.h>

#include "base/dtype.h"

HD_BEGIN_DECLS

typedef struct hd_rope {
    int64_t first, channels; // of a head; channels is even
    double base;             // pair j turns by base^(-2 j / channels) per position
    bool interleaved;        // a pair is two neighbours; else channels / 2 apart
} hd_rope;

/* Turns `vectors` vectors [dim] f32 or bf16 without gaps on by `positions`. Angles are f64. */
void hd_rope_turn(const hd_rope *rope, void *x, hd_dtype dtype, int64_t vectors, int64_t dim,
                  double positions);

HD_END_DECLS
#endif
