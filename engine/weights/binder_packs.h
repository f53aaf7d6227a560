/* engine/weights/binder_packs.h: what a binder holds, between its declarations (binder.c) and the
 * loading of them (binder_load.c). */
#ifndef HD_ENGINE_WEIGHTS_BINDER_PACKS_H
#define HD_ENGINE_WEIGHTS_BINDER_PACKS_H

#include "engine/weights/binder.h"

HD_BEGIN_DECLS

enum { BINDER_PARTS_MOST = 8 };

typedef enum binder_kind {
    BINDER_LINEAR, // hd_linear **
    BINDER_CONV,   // hd_conv **
    BINDER_FLOATS, // float **
} binder_kind;

/* A tensor that a file must have. */
typedef struct binder_wanted {
    char *name;
    hd_shape shape;
} binder_wanted;

/* What is made of wanted[first ..]: `parts` matrices or one table, then `biases` vectors. */
typedef struct binder_pack {
    binder_kind kind;
    void **dst;
    int64_t first;
    int parts, biases;
    hd_conv_spec spec;
} binder_pack;

struct hd_binder {
    binder_wanted *wanted;
    binder_pack *packs;
    char **ignored;
    int64_t wanted_count, wanted_room, pack_count, pack_room, ignored_count, ignored_room;
    hd_status status; // of the declarations
    char message[300];
};

HD_END_DECLS
#endif
