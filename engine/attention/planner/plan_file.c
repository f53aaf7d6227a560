/* engine/attention/planner/plan_file.c: plan files in memory: sizes, lookup, density, and the
 * reader, which trusts no byte before it has been checked. The writer is plan_file_write.c. */
#include "engine/attention/planner/plan_file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "base/file.h"
#include "engine/attention/planner/plan_file_layout.h"

hd_status hd_plan_file_create(hd_plan_file **out, int64_t tile, int64_t steps, int64_t masks,
                              int64_t most_sites)
{
    hd_plan_file *file = calloc(1, sizeof *file);
    if (file) {
        file->mask_of_step = calloc((size_t)steps, sizeof *file->mask_of_step);
        file->site = calloc((size_t)most_sites, sizeof *file->site);
    }
    if (!file || !file->mask_of_step || !file->site) {
        hd_plan_file_free(file);
        return hd_fail(HD_ERR_NOMEM, "plan file: no memory for %lld sites", (long long)most_sites);
    }
    file->tile = tile;
    file->steps = steps;
    file->masks = masks;
    file->room = most_sites;
    *out = file;
    return HD_OK;
}

void hd_plan_file_free(hd_plan_file *file)
{
    if (!file) return;
    for (int64_t i = 0; i < file->sites; i++) {
        free(file->site[i].order);
        free(file->site[i].density);
        free(file->site[i].retained);
        free(file->site[i].bits);
    }
    free(file->site);
    free(file->mask_of_step);
    free(file);
}

// Bytes of what follows a site's fixed fields; what the limits of its fields allow fits 64 bits.
static int64_t site_bytes(const hd_plan_file *file, const hd_plan_file_site *s)
{
    int64_t maps = file->masks * s->site.heads;
    return s->site.heads + maps * (2 * (int64_t)sizeof(float) + s->bitmap_bytes);
}

static hd_status allocate_site(const hd_plan_file *file, hd_plan_file_site *s)
{
    size_t maps = (size_t)(file->masks * s->site.heads);
    s->order = calloc((size_t)s->site.heads, 1);
    s->density = calloc(maps, sizeof *s->density);
    s->retained = calloc(maps, sizeof *s->retained);
    s->bits = calloc(maps, (size_t)s->bitmap_bytes);
    if (s->order && s->density && s->retained && s->bits) return HD_OK;
    return hd_fail(HD_ERR_NOMEM, "plan file: no memory for the tiles of %s", s->site.path);
}

typedef struct field_limit {
    const char *name;
    int64_t value, least, most;
} field_limit;

static hd_status check_limits(const char *name, const field_limit *limit, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (limit[i].value < limit[i].least || limit[i].value > limit[i].most)
            return hd_fail(HD_ERR_FORMAT,
                           "%s: %s is %lld, must be %lld to %lld; make it again with heddle "
                           "calibrate",
                           name, limit[i].name, (long long)limit[i].value,
                           (long long)limit[i].least, (long long)limit[i].most);
    return HD_OK;
}

// Ranges of a site's fields, and the sizes that follow from them.
static hd_status measure_site(const char *name, const hd_plan_file *file, hd_plan_file_site *s)
{
    const field_limit limits[] = {
        {"heads", s->site.heads, 1, PLAN_MOST_HEADS}, {"frames", s->grid[0], 1, PLAN_MOST_AXIS},
        {"height", s->grid[1], 1, PLAN_MOST_AXIS},    {"width", s->grid[2], 1, PLAN_MOST_AXIS},
        {"text", s->text, 0, PLAN_MOST_TOKENS},
    };
    HD_TRY(check_limits(name, limits, HD_COUNT(limits)));
    int64_t tokens = s->grid[0] * s->grid[1] * s->grid[2];
    s->tiles = (tokens + (s->text_first ? s->text : 0) + file->tile - 1) / file->tile;
    s->site.tokens = tokens + s->text;
    const field_limit sums[] = {
        {"tokens of the grid and the text", s->site.tokens, 1, PLAN_MOST_TOKENS},
        {"tiles per side", s->tiles, 1, PLAN_MOST_TILES}};
    HD_TRY(check_limits(name, sums, HD_COUNT(sums)));
    s->bitmap_bytes = (s->tiles * s->tiles + 7) / 8;
    return HD_OK;
}

hd_status hd_plan_file_add(hd_plan_file *file, const hd_site *site, const int64_t grid[3],
                           int64_t text, bool text_first, hd_plan_file_site **out)
{
    HD_ENSURE(file->sites < file->room);
    hd_plan_file_site *s = &file->site[file->sites];
    *s = (hd_plan_file_site){.site = *site, .text = text, .text_first = text_first};
    memcpy(s->grid, grid, sizeof s->grid);
    hd_status status = measure_site(site->path, file, s);
    if (status != HD_OK) return status == HD_ERR_FORMAT ? HD_ERR_ARGUMENT : status;
    file->sites++; // so that a half-made one is freed too
    *out = s;
    return allocate_site(file, s);
}

const hd_plan_file_site *hd_plan_file_find(const hd_plan_file *file, const hd_site *site,
                                           const int64_t grid[3], int64_t text,
                                           const hd_plan_file_site **same_place)
{
    *same_place = NULL;
    for (int64_t i = 0; i < file->sites; i++) {
        const hd_plan_file_site *s = &file->site[i];
        if (s->site.network != site->network || s->site.kind != site->kind ||
            strcmp(s->site.path, site->path) != 0)
            continue;
        *same_place = s;
        if (memcmp(s->grid, grid, sizeof s->grid) == 0 && s->text == text) return s;
    }
    return NULL;
}

int64_t hd_plan_file_mask(const hd_plan_file *file, int64_t index, int64_t count)
{
    int64_t step = index * file->steps / count;
    return file->mask_of_step[step < file->steps ? step : file->steps - 1];
}

double hd_plan_file_density(const hd_plan_file_site *s, int64_t tile, const uint8_t *bits)
{
    const double all = (double)s->site.tokens;
    const int64_t ranks = s->text_first ? s->site.tokens : s->site.tokens - s->text;
    double pairs = all * all - (double)ranks * (double)ranks; // the dense tail's
    int64_t last = ranks - (s->tiles - 1) * tile;             // length of the last tile
    for (int64_t i = 0; i < s->tiles; i++) {
        int64_t keys = 0;
        for (int64_t j = 0; j < s->tiles; j++)
            if (hd_plan_bit(bits, i * s->tiles + j)) keys += j + 1 < s->tiles ? tile : last;
        pairs += (double)keys * (double)(i + 1 < s->tiles ? tile : last);
    }
    return pairs / (all * all);
}

/* --- reading */

/* What is left of the bytes; whoever takes from it has asked whether there is enough. */
typedef struct plan_reader {
    const char *name;
    const uint8_t *at;
    int64_t left;
} plan_reader;

static uint64_t take(plan_reader *r, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)r->at[i] << (8 * i);
    r->at += bytes;
    r->left -= bytes;
    return value;
}

static float take_float(plan_reader *r)
{
    uint32_t bits = (uint32_t)take(r, 4);
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void take_bytes(plan_reader *r, void *into, int64_t bytes)
{
    memcpy(into, r->at, (size_t)bytes);
    r->at += bytes;
    r->left -= bytes;
}

static hd_status expect_bytes(const plan_reader *r, int64_t bytes, const char *what)
{
    if (r->left >= bytes) return HD_OK;
    return hd_fail(HD_ERR_FORMAT,
                   "%s: %s takes %lld bytes, %lld are left; make it again with heddle calibrate",
                   r->name, what, (long long)bytes, (long long)r->left);
}

static hd_status check_path(const char *name, const char path[HD_SITE_PATH_BYTES])
{
    size_t length = 0;
    while (length < HD_SITE_PATH_BYTES && path[length] > 0x20 && path[length] < 0x7f)
        length++;
    bool ended = length > 0 && length < HD_SITE_PATH_BYTES;
    for (size_t i = length; i < HD_SITE_PATH_BYTES; i++)
        ended = ended && path[i] == 0;
    if (ended) return HD_OK;
    return hd_fail(HD_ERR_FORMAT,
                   "%s: a site's path is not 1 to %d letters with zeros behind; make it again "
                   "with heddle calibrate",
                   name, HD_SITE_PATH_BYTES - 1);
}

static hd_status take_site_fields(plan_reader *r, hd_plan_file_site *s)
{
    take_bytes(r, s->site.path, HD_SITE_PATH_BYTES);
    HD_TRY(check_path(r->name, s->site.path));
    int64_t network = (int64_t)take(r, 4), kind = (int64_t)take(r, 4);
    s->site.heads = (int64_t)take(r, 4);
    for (int i = 0; i < 3; i++)
        s->grid[i] = (int64_t)take(r, 4);
    s->text = (int64_t)take(r, 4);
    int64_t text_first = (int64_t)take(r, 4);
    const field_limit limits[] = {{"network", network, 0, HD_NETWORK_VAE},
                                  {"kind", kind, 0, HD_SITE_JOINT},
                                  {"text first", text_first, 0, 1}};
    HD_TRY(check_limits(r->name, limits, HD_COUNT(limits)));
    s->site.network = (hd_network)network;
    s->site.kind = (hd_site_kind)kind;
    s->text_first = text_first == 1;
    return HD_OK;
}

static hd_status check_share(const plan_reader *r, const char *what, float found)
{
    // NaN is neither; -0 would not be written again
    if (found >= 0.0f && found <= 1.0f && !signbit(found)) return HD_OK;
    return hd_fail(HD_ERR_FORMAT,
                   "%s: %s is %g, must be 0 to 1; make it again with heddle "
                   "calibrate",
                   r->name, what, (double)found);
}

static hd_status take_maps(plan_reader *r, const hd_plan_file *file, hd_plan_file_site *s)
{
    int64_t maps = file->masks * s->site.heads;
    for (int64_t i = 0; i < maps; i++)
        HD_TRY(check_share(r, "a density", s->density[i] = take_float(r)));
    for (int64_t i = 0; i < maps; i++)
        HD_TRY(check_share(r, "a retained mass", s->retained[i] = take_float(r)));
    take_bytes(r, s->bits, maps * s->bitmap_bytes);
    int64_t spare = s->bitmap_bytes * 8 - s->tiles * s->tiles;
    for (int64_t i = 0; i < maps; i++) {
        const uint8_t *bits = s->bits + i * s->bitmap_bytes;
        if (bits[s->bitmap_bytes - 1] >> (8 - spare))
            return hd_fail(HD_ERR_FORMAT,
                           "%s: %s: head %lld has a tile beyond the last; make it again with "
                           "heddle calibrate",
                           r->name, s->site.path, (long long)(i % s->site.heads));
        double density = hd_plan_file_density(s, file->tile, bits);
        if ((float)density != s->density[i])
            return hd_fail(HD_ERR_FORMAT,
                           "%s: %s: head %lld has density %g, its tiles make %g; make it again "
                           "with heddle calibrate",
                           r->name, s->site.path, (long long)(i % s->site.heads),
                           (double)s->density[i], density);
    }
    return HD_OK;
}

static hd_status take_site(plan_reader *r, hd_plan_file *file)
{
    hd_plan_file_site *s = &file->site[file->sites];
    HD_TRY(expect_bytes(r, PLAN_SITE_BYTES, "a site"));
    HD_TRY(take_site_fields(r, s));
    HD_TRY(measure_site(r->name, file, s));
    HD_TRY(expect_bytes(r, site_bytes(file, s), s->site.path));
    const hd_plan_file_site *same;
    if (hd_plan_file_find(file, &s->site, s->grid, s->text, &same))
        return hd_fail(HD_ERR_FORMAT, "%s: %s is there twice; make it again with heddle calibrate",
                       r->name, s->site.path);
    file->sites++; // from here on the file frees it
    HD_TRY(allocate_site(file, s));
    take_bytes(r, s->order, s->site.heads);
    for (int64_t h = 0; h < s->site.heads; h++) {
        const field_limit order = {"an order", s->order[h], 0, HD_PLAN_FILE_ORDERS - 1};
        HD_TRY(check_limits(r->name, &order, 1));
    }
    return take_maps(r, file, s);
}

// Is it a whole plan file of our version? Leaves the reader behind these fields, before "model".
static hd_status check_envelope(plan_reader *r, int64_t bytes, int64_t *tile)
{
    if (bytes < PLAN_HEADER_BYTES || memcmp(r->at, hd_plan_magic, sizeof hd_plan_magic) != 0)
        return hd_fail(HD_ERR_FORMAT, "%s: is no plan file; heddle calibrate makes one", r->name);
    const uint8_t *begin = r->at;
    plan_reader end = {r->name, begin + bytes - PLAN_SUM_BYTES, PLAN_SUM_BYTES};
    r->at += sizeof hd_plan_magic;
    r->left -= (int64_t)sizeof hd_plan_magic;
    int64_t version = (int64_t)take(r, 4);
    if (version != PLAN_VERSION)
        return hd_fail(HD_ERR_UNSUPPORTED,
                       "%s: is of version %lld, this program reads %d; make it again with heddle "
                       "calibrate",
                       r->name, (long long)version, PLAN_VERSION);
    *tile = (int64_t)take(r, 4);
    uint64_t said = take(r, 8);
    if (said != (uint64_t)bytes)
        return hd_fail(HD_ERR_FORMAT,
                       "%s: says it has %llu bytes, it has %lld; is it cut (an unfinished copy)?",
                       r->name, (unsigned long long)said, (long long)bytes);
    if (take(&end, 8) != XXH64(begin, (size_t)(bytes - PLAN_SUM_BYTES), 0))
        return hd_fail(HD_ERR_FORMAT,
                       "%s: is damaged: its checksum is not that of its contents; copy it again, "
                       "or make it again with heddle calibrate",
                       r->name);
    r->left -= PLAN_SUM_BYTES;
    return HD_OK;
}

static hd_status take_table(plan_reader *r, hd_plan_file *file)
{
    for (int64_t i = 0; i < file->steps; i++) {
        const field_limit mask = {"the mask number of a step", (int64_t)take(r, 2), 0,
                                  file->masks - 1};
        HD_TRY(check_limits(r->name, &mask, 1));
        file->mask_of_step[i] = (uint16_t)mask.value;
    }
    return HD_OK;
}

hd_status hd_plan_file_parse(hd_plan_file **out, const char *name, const void *bytes, size_t count)
{
    plan_reader r = {name, bytes, (int64_t)count};
    int64_t tile = 0;
    HD_TRY(check_envelope(&r, (int64_t)count, &tile));
    uint64_t model = take(&r, 8);
    int64_t steps = (int64_t)take(&r, 4), masks = (int64_t)take(&r, 4),
            sites = (int64_t)take(&r, 4);
    const field_limit limits[] = {{"tile", tile, 1, PLAN_MOST_TILE},
                                  {"steps", steps, 1, PLAN_MOST_STEPS},
                                  {"masks", masks, 1, steps},
                                  {"sites", sites, 1, PLAN_MOST_SITES}};
    HD_TRY(check_limits(name, limits, HD_COUNT(limits)));
    float target = take_float(&r);
    HD_TRY(check_share(&r, "the target density", target));
    HD_TRY(expect_bytes(&r, 2 * steps, "the table of steps"));
    HD_TRY(expect_bytes(&r, 2 * steps + sites * PLAN_SITE_BYTES, "the list of sites"));
    hd_plan_file *file;
    HD_TRY(hd_plan_file_create(&file, tile, steps, masks, sites));
    file->model = model;
    file->target = target;
    hd_status status = take_table(&r, file);
    for (int64_t i = 0; i < sites && status == HD_OK; i++)
        status = take_site(&r, file);
    if (status == HD_OK && r.left != 0)
        status = hd_fail(HD_ERR_FORMAT,
                         "%s: %lld bytes behind the last site belong to none; make it again with "
                         "heddle calibrate",
                         name, (long long)r.left);
    if (status != HD_OK) {
        hd_plan_file_free(file);
        return status;
    }
    *out = file;
    return HD_OK;
}

hd_status hd_plan_file_open(hd_plan_file **out, const char *path)
{
    char *bytes;
    size_t count;
    HD_TRY(hd_file_read(&bytes, &count, path, PLAN_MOST_BYTES));
    hd_status status = hd_plan_file_parse(out, path, bytes, count);
    free(bytes);
    return status;
}
