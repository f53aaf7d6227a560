/* engine/arena.h: memory for the activations of a step, handed out in order, taken back to a mark.
 *
 * Two kinds. A *measuring* arena owns no memory: it hands out addresses that must not be touched
 * and notes the high-water mark; the dry pass runs on it. A *real* one is created once at that
 * size. A tensor that does not fit has data == NULL, and the operator that meets it returns
 * HD_ERR_NOMEM: a block does not test each tensor. Marks nest: a block leaves the arena as it found
 * it. Debug builds fill what is handed out with NaN and what is rewound with a poison, and tell
 * AddressSanitizer. Used by one thread at a time. */
#ifndef HD_ENGINE_ARENA_H
#define HD_ENGINE_ARENA_H

#include "base/tensor.h"

HD_BEGIN_DECLS

typedef struct hd_arena hd_arena;

/* The caller owns *out. Real arenas are mapped with huge pages where the system allows.
 * hd_arena_free(NULL) does nothing. */
HD_CHECKED hd_status hd_arena_create(hd_arena **out, size_t bytes);
HD_CHECKED hd_status hd_arena_create_measuring(hd_arena **out);
void hd_arena_free(hd_arena *arena);

/* A contiguous tensor, 64-byte aligned, contents undefined. Borrowed: it lives until the arena is
 * rewound past it. */
hd_tensor hd_arena_tensor(hd_arena *arena, hd_dtype dtype, hd_shape shape);
/* Plain scratch, 64-byte aligned; NULL when it does not fit. */
void *hd_arena_bytes(hd_arena *arena, size_t bytes);
size_t hd_arena_mark(const hd_arena *arena);
void hd_arena_rewind(hd_arena *arena, size_t mark);
size_t hd_arena_peak_bytes(const hd_arena *arena); // since it was created
bool hd_arena_measuring(const hd_arena *arena);

HD_END_DECLS
#endif
