/* engine/attention/planner/calibrate_plan.c: from what was measured to orders and masks. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "engine/attention/planner/calibrate_internal.h"

enum { HALVINGS = 48 }; // of [0, 1]: beyond the precision of a mass

void hd_calibration_score(double *score, const double *sparse, const double *uneven, int count,
                          double alpha)
{
    double dense = 0, unevenness = 0;
    for (int i = 0; i < count; i++) {
        dense += 1.0 - sparse[i];
        unevenness += uneven[i];
    }
    for (int i = 0; i < count; i++) {
        score[i] = dense > 0 ? alpha * (1.0 - sparse[i]) / dense : 0.0;
        if (unevenness > 0) score[i] += (1.0 - alpha) * uneven[i] / unevenness;
    }
}

/* A head's map under one mask: what a threshold keeps of it. */
typedef struct head_map {
    const hd_calibration_site *site;
    const float *mass; // sums over calls
    float calls;
    int64_t tile;
    bool force_last, seen; // not seen: no step of this mask was observed
} head_map;

static int64_t tile_length(const head_map *m, int64_t i)
{
    int64_t left = m->site->ranks - i * m->tile;
    return left < m->tile ? left : m->tile;
}

static bool keeps(const head_map *m, int64_t i, int64_t j, double theta)
{
    const int64_t tiles = m->site->tiles;
    if (!m->seen || (m->force_last && (i + 1 == tiles || j + 1 == tiles))) return true;
    return (double)(m->mass[i * tiles + j] / m->calls) >= theta;
}

// Share of the call's pairs that are executed, the text's with them.
static double density_at(const head_map *m, double theta)
{
    const double tokens = (double)m->site->tokens, ranks = (double)m->site->ranks;
    double pairs = tokens * tokens - ranks * ranks;
    for (int64_t i = 0; i < m->site->tiles; i++) {
        int64_t keys = 0;
        for (int64_t j = 0; j < m->site->tiles; j++)
            if (keeps(m, i, j, theta)) keys += tile_length(m, j);
        pairs += (double)keys * (double)tile_length(m, i);
    }
    return pairs / (tokens * tokens);
}

/* The decisions in the making. */
typedef struct decision {
    const hd_calibration *calibration;
    int *order;      // [maps of one mask]: index into a site's orders, site by site, head by head
    double *highest; // [masks][maps of one mask] threshold that leaves density_min
    int64_t *steps;  // [masks] that use it
    int64_t maps;    // heads of all sites
    int64_t seen;    // maps of all masks that were observed
} decision;

static head_map map_of(const decision *d, const hd_calibration_site *s, int64_t mask, int64_t head,
                       int64_t map)
{
    const hd_calibration_options *o = &d->calibration->options;
    return (head_map){.site = s,
                      .mass = hd_calibration_mass(s, mask, d->order[map], head),
                      .calls = (float)s->calls[mask],
                      .tile = o->tile,
                      .force_last = o->force_last,
                      .seen = s->calls[mask] > 0};
}

static void choose_orders(const decision *d)
{
    int64_t map = 0;
    for (int64_t i = 0; i < d->calibration->sites; i++) {
        const hd_calibration_site *s = d->calibration->site[i];
        double calls = 0;
        for (int64_t m = 0; m < d->calibration->options.masks; m++)
            calls += (double)s->calls[m];
        const double all = (calls > 0 ? calls : 1.0) * (double)(s->tiles * s->tiles);
        for (int64_t h = 0; h < s->site.heads; h++, map++) {
            double sparse[HD_AXIS_ORDERS] = {0}, uneven[HD_AXIS_ORDERS] = {0};
            double score[HD_AXIS_ORDERS];
            for (int o = 0; o < s->orders; o++)
                for (int64_t t = 0; t < s->tiles; t++) {
                    int64_t at = (o * s->site.heads + h) * s->tiles + t;
                    sparse[o] += s->sparse[at] / all;
                    uneven[o] += s->uneven[at] / all;
                }
            hd_calibration_score(score, sparse, uneven, s->orders,
                                 (double)d->calibration->options.alpha);
            d->order[map] = 0;
            for (int o = 1; o < s->orders; o++)
                if (score[o] < score[d->order[map]]) d->order[map] = o;
        }
    }
}

typedef double (*density_of)(const void *arg, double theta);

// The largest density that is not above `target`, or the least there is; as a threshold. With
// `reach` the smallest that is not below it instead.
static double halve(density_of density, const void *arg, double target, bool reach)
{
    double low = 0.0, high = 1.0 + 1e-3; // a row of tiles has mass 1 in all: nothing is above
    for (int i = 0; i < HALVINGS; i++) {
        double middle = 0.5 * (low + high), found = density(arg, middle);
        if (reach ? found >= target : found > target)
            low = middle;
        else
            high = middle;
    }
    return reach ? low : high;
}

static double one_density(const void *arg, double theta)
{
    return density_at(arg, theta);
}

static double smaller(double a, double b)
{
    return a < b ? a : b;
}

// Of everything that the observed steps execute, weighted by pairs and steps.
static double all_density(const void *arg, double theta)
{
    const decision *d = arg;
    const hd_calibration *c = d->calibration;
    double executed = 0, all = 0;
    for (int64_t m = 0; m < c->options.masks; m++) {
        int64_t map = 0;
        for (int64_t i = 0; i < c->sites; i++) {
            const hd_calibration_site *s = c->site[i];
            const double weight =
                (double)s->tokens * (double)s->tokens * (double)d->steps[m] * (s->calls[m] > 0);
            for (int64_t h = 0; h < s->site.heads; h++, map++) {
                if (weight <= 0) continue;
                head_map head = map_of(d, s, m, h, map);
                executed +=
                    weight * density_at(&head, smaller(theta, d->highest[m * d->maps + map]));
                all += weight;
            }
        }
    }
    return all > 0 ? executed / all : 1.0;
}

static void limit_heads(const decision *d)
{
    const hd_calibration *c = d->calibration;
    const double least = (double)c->options.density_min;
    for (int64_t m = 0; m < c->options.masks; m++) {
        int64_t map = 0;
        for (int64_t i = 0; i < c->sites; i++)
            for (int64_t h = 0; h < c->site[i]->site.heads; h++, map++) {
                head_map head = map_of(d, c->site[i], m, h, map);
                d->highest[m * d->maps + map] =
                    least > 0 ? halve(one_density, &head, least, true) : (double)INFINITY;
            }
    }
}

// Writes one head's bits; the mass of the map that they retain, over all queries of the call.
static double write_bits(const head_map *m, double theta, uint8_t *bits)
{
    double kept = 0, grid = 0;
    for (int64_t i = 0; i < m->site->tiles; i++)
        for (int64_t j = 0; j < m->site->tiles; j++) {
            const int64_t at = i * m->site->tiles + j;
            double mass =
                m->seen ? (double)(m->mass[at] / m->calls) * (double)tile_length(m, i) : 0.0;
            grid += mass;
            if (!keeps(m, i, j, theta)) continue;
            kept += mass;
            bits[at / 8] |= (uint8_t)(1u << (at % 8));
        }
    if (!m->seen) return 1.0;
    // what is not in the tiles is dense
    double retained = 1.0 - (grid - kept) / (double)m->site->tokens;
    return retained < 0 ? 0 : smaller(retained, 1.0);
}

static hd_status fill_site(decision *d, hd_plan_file *file, int64_t index, int64_t first_map,
                           hd_calibration_report *r)
{
    const hd_calibration_site *s = d->calibration->site[index];
    hd_plan_file_site *entry;
    HD_TRY(hd_plan_file_add(file, &s->site, s->grid.size, s->tokens - s->ranks, false, &entry));
    for (int64_t h = 0; h < s->site.heads; h++) {
        const int64_t map = first_map + h;
        entry->order[h] = (uint8_t)s->number[d->order[map]];
        r->orders[entry->order[h]]++;
        r->heads++;
        for (int64_t m = 0; m < file->masks; m++) {
            head_map head = map_of(d, s, m, h, map);
            double theta = smaller(r->theta, d->highest[m * d->maps + map]);
            double retained = write_bits(&head, theta, hd_plan_file_bits(entry, m, h));
            entry->retained[m * s->site.heads + h] = (float)retained;
            entry->density[m * s->site.heads + h] =
                (float)hd_plan_file_density(entry, file->tile, hd_plan_file_bits(entry, m, h));
            if (!head.seen) continue;
            d->seen++;
            r->retained += retained;
            r->retained_least = smaller(r->retained_least, retained);
        }
    }
    return HD_OK;
}

static hd_status decide(decision *d, hd_plan_file *file, hd_calibration_report *r)
{
    const hd_calibration *c = d->calibration;
    for (int64_t s = 0; s < c->options.steps; s++) {
        file->mask_of_step[s] = c->mask_of_step[s];
        d->steps[c->mask_of_step[s]]++;
    }
    choose_orders(d);
    limit_heads(d);
    r->retained_least = 1.0;
    r->theta = halve(all_density, d, (double)c->options.density, false);
    r->density = all_density(d, r->theta);
    for (int64_t i = 0, map = 0; i < c->sites; map += c->site[i++]->site.heads)
        HD_TRY(fill_site(d, file, i, map, r));
    r->retained = d->seen > 0 ? r->retained / (double)d->seen : 1.0;
    return HD_OK;
}

hd_status hd_calibration_finish(const hd_calibration *c, hd_plan_file **out,
                                hd_calibration_report *report)
{
    *report = (hd_calibration_report){0};
    if (c->sites == 0) return hd_fail(HD_ERR_ARGUMENT, "calibrate: no site was observed");
    decision d = {.calibration = c};
    for (int64_t i = 0; i < c->sites; i++)
        d.maps += c->site[i]->site.heads;
    hd_plan_file *file;
    HD_TRY(
        hd_plan_file_create(&file, c->options.tile, c->options.steps, c->options.masks, c->sites));
    file->model = c->options.model;
    file->target = c->options.density;
    d.order = calloc((size_t)d.maps, sizeof *d.order);
    d.highest = calloc((size_t)(d.maps * c->options.masks), sizeof *d.highest);
    d.steps = calloc((size_t)c->options.masks, sizeof *d.steps);
    hd_status status =
        d.order && d.highest && d.steps
            ? decide(&d, file, report)
            : hd_fail(HD_ERR_NOMEM, "calibrate: no memory for %lld heads", (long long)d.maps);
    free(d.order);
    free(d.highest);
    free(d.steps);
    if (status != HD_OK) {
        hd_plan_file_free(file);
        return status;
    }
    *out = file;
    return HD_OK;
}
