/* engine/attention/planner/plan_file.h: static plans on disk: which tiles of each site's attention
 * are computed, per head and per group of steps, and in which order of the grid's axes.
 *
 * Made by `heddle calibrate`, read by the processor `paro`. Little endian, no padding:
 *
 *   header     magic "HDPLAN" 1a 0a, u32 version 1, u32 tile, u64 bytes of the file, u64 model key,
 *              u32 steps, u32 masks, u32 sites, f32 target density, u16 mask number of every step
 *   each site  path [48], u32 network, kind, heads, frames, height, width, text tokens, text first;
 *              u8 order [heads]; f32 density [masks, heads]; f32 retained [masks, heads];
 *              bits [masks, heads, tiles, tiles], each head's rounded up to bytes, low bit first
 *   end        u64 XXH64 of everything before
 *
 * Nothing of a file is used before it has been checked: sizes against the file's own, numbers
 * against their ranges, densities against the bits, everything against the checksum. */
#ifndef HD_ENGINE_ATTENTION_PLANNER_PLAN_FILE_H
#define HD_ENGINE_ATTENTION_PLANNER_PLAN_FILE_H

#include "engine/attention/site.h"

HD_BEGIN_DECLS

#define HD_PLAN_FILE_ORDERS 6 // of the axes of F x H x W, numbered as in engine/.../orders.h

typedef struct hd_plan_file_site {
    hd_site site; // network, kind, path, heads; tokens: grid and text
    int64_t grid[3];
    int64_t text;    // tokens beside the grid's
    bool text_first; // tiles are cut from the text's first token on; else from the grid's, and
                     // the text is in no tile
    int64_t tiles;   // per side
    int64_t bitmap_bytes;
    uint8_t *order;            // [heads]
    float *density, *retained; // [masks, heads]
    uint8_t *bits;             // [masks, heads, bitmap_bytes]
} hd_plan_file_site;

typedef struct hd_plan_file {
    uint64_t model; // of configuration and tensor shapes: hd_forward.model_key
    int64_t tile, steps, masks, sites, room;
    float target; // the density that was asked for; the masks' own may be larger (forced tiles)
    uint16_t *mask_of_step; // [steps]
    hd_plan_file_site *site;
} hd_plan_file;

/* An empty one with every step's mask 0 and no site; `most_sites` is room. The caller owns *out. */
HD_CHECKED hd_status hd_plan_file_create(hd_plan_file **out, int64_t tile, int64_t steps,
                                         int64_t masks, int64_t most_sites);
/* A site without any tile, orders 0; *out is borrowed from the file. HD_ERR_ARGUMENT when a size is
 * beyond what a file may hold. */
HD_CHECKED hd_status hd_plan_file_add(hd_plan_file *file, const hd_site *site,
                                      const int64_t grid[3], int64_t text, bool text_first,
                                      hd_plan_file_site **out);
void hd_plan_file_free(hd_plan_file *file); // NULL does nothing

/* HD_ERR_FORMAT with name, field, what was found and expected. The caller owns *out. */
HD_CHECKED hd_status hd_plan_file_parse(hd_plan_file **out, const char *name, const void *bytes,
                                        size_t count);
HD_CHECKED hd_status hd_plan_file_open(hd_plan_file **out, const char *path);
/* The file appears whole or not at all. Densities are those of the bits (written here). */
HD_CHECKED hd_status hd_plan_file_write(hd_plan_file *file, const char *path);

/* The entry of that place and grid; NULL if there is none. *same_place: one for another grid. */
const hd_plan_file_site *hd_plan_file_find(const hd_plan_file *file, const hd_site *site,
                                           const int64_t grid[3], int64_t text,
                                           const hd_plan_file_site **same_place);
/* The mask of step `index` of `count`: the table stretched over the run. */
int64_t hd_plan_file_mask(const hd_plan_file *file, int64_t index, int64_t count);

/* Where a head's bits of a mask are: bit query_tile * tiles + key_tile. */
static inline uint8_t *hd_plan_file_bits(const hd_plan_file_site *site, int64_t mask, int64_t head)
{
    return site->bits + (mask * site->site.heads + head) * site->bitmap_bytes;
}

static inline bool hd_plan_bit(const uint8_t *bits, int64_t at)
{
    return bits[at / 8] >> (at % 8) & 1;
}

/* Query-key pairs of the kept tiles, and of what is dense beside them, over those of all. */
double hd_plan_file_density(const hd_plan_file_site *site, int64_t tile, const uint8_t *bits);

HD_END_DECLS
#endif
