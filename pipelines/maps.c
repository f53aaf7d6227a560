/* pipelines/maps.c: heat maps over the picture with their names below, masks, and the maps
 * themselves. */
#include "pipelines/maps.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/canvas.h"
#include "codecs/png.h"
#include "engine/weights/safetensors_write.h"

bool gen_maps_wanted(const hd_preset *p)
{
    return p->maps || p->masks || p->map_values;
}

hd_status gen_check_maps(const generation *g)
{
    const hd_preset *p = g->preset;
    if (!gen_maps_wanted(p) || hd_beside_run_shows(g->beside)) return HD_OK;
    const char *field = p->maps ? "maps" : p->masks ? "masks" : "map_values";
    const hd_json *node = hd_json_get(g->request->root, field);
    return hd_json_fail(node ? node : g->request->root, HD_ERR_ARGUMENT,
                        "is asked for, but no processor shows any map; add {\"use\": "
                        "\"attention_masks\"} to the processors");
}

/* --- names --- */

// "-source-fish", "-fish-2": what tells the maps of a picture apart, for files and tensors.
static void suffix_of(const hd_shown_list *list, int64_t index, char *out, size_t bytes)
{
    const hd_shown *s = &list->item[index];
    const bool main = strcmp(s->branch, "main") == 0;
    int same = 0;
    for (int64_t i = 0; i < index; i++)
        same += strcmp(list->item[i].name, s->name) == 0 &&
                strcmp(list->item[i].branch, s->branch) == 0;
    snprintf(out, bytes, "%s%s-%s", main ? "" : "-", main ? "" : s->branch, s->name);
    const size_t used = strlen(out);
    if (same && used < bytes) snprintf(out + used, bytes - used, "-again%d", same);
    for (char *c = out; *c; c++) {
        const bool plain = (*c >= '0' && *c <= '9') || (*c >= 'a' && *c <= 'z') ||
                           (*c >= 'A' && *c <= 'Z') || (unsigned char)*c >= 0x80 || *c == '.';
        if (!plain) *c = '-';
    }
}

/* --- the grid of heat maps --- */

enum { CELL_LEAST = 192, SHEET_MOST = 1600, GAP = 8, LABEL = 24, TEXT = 13 };

// Blue over green to red, as heat is drawn everywhere.
static hd_color heat_color(float heat)
{
    const float at = 4.0f * heat;
    const float part[3] = {1.5f - fabsf(at - 3.0f), 1.5f - fabsf(at - 2.0f),
                           1.5f - fabsf(at - 1.0f)};
    uint8_t byte[3];
    for (int i = 0; i < 3; i++)
        byte[i] = (uint8_t)lrintf(255.0f * (part[i] < 0 ? 0 : part[i] > 1 ? 1 : part[i]));
    return (hd_color){byte[0], byte[1], byte[2]};
}

static void heat_over(hd_image *image, const hd_shown *s)
{
    const int64_t pixels = (int64_t)image->width * image->height;
    for (int64_t i = 0; i < pixels; i++) {
        const float heat = s->heat[i];
        const hd_color color = heat_color(heat);
        const float part[3] = {color.r, color.g, color.b};
        // below the heat the picture is grey, so that its colours are not taken for heat
        const uint8_t *rgb = s->rgb + 3 * i;
        const float grey = 0.3f * (float)rgb[0] + 0.59f * (float)rgb[1] + 0.11f * (float)rgb[2];
        for (int c = 0; c < 3; c++)
            image->rgb[3 * i + c] = (uint8_t)lrintf((1 - heat) * grey + heat * part[c]);
    }
}

typedef struct grid {
    hd_canvas *canvas;
    int columns, cells, width, height, factor;
} grid;

static void draw_cell(grid *g, const hd_image *image, const char *label)
{
    const hd_color black = {0, 0, 0};
    const int column = g->cells % g->columns, row = g->cells / g->columns;
    const int x = GAP + column * (g->width + GAP), y = GAP + row * (g->height + LABEL + GAP);
    const size_t most = (size_t)(g->width * 9 / (6 * TEXT));
    char text[96];
    snprintf(text, sizeof text, "%.*s", (int)(most < sizeof text ? most : sizeof text - 1), label);
    hd_canvas_picture(g->canvas, x, y, g->factor, image);
    hd_canvas_text(g->canvas, x + g->width / 2.0, y + g->height + LABEL - 8, TEXT, HD_TEXT_MIDDLE,
                   black, text);
    g->cells++;
}

static hd_status draw_maps(grid *g, const hd_shown_list *list)
{
    hd_image image;
    HD_TRY(hd_image_create(&image, list->width, list->height, "maps"));
    for (int64_t i = 0; i < list->count; i++) {
        const hd_shown *s = &list->item[i];
        char label[96];
        if (i == 0 || strcmp(list->item[i - 1].branch, s->branch) != 0) {
            memcpy(image.rgb, s->rgb, hd_image_bytes(&image));
            draw_cell(g, &image, s->branch);
        }
        heat_over(&image, s);
        snprintf(label, sizeof label, "%s %.3g", s->name, (double)s->most);
        draw_cell(g, &image, label);
    }
    hd_image_free(&image);
    return HD_OK;
}

static hd_status make_grid(grid *g, const hd_shown_list *list)
{
    const int side = (int)(list->width < list->height ? list->width : list->height);
    int64_t cells = list->count;
    for (int64_t i = 0; i < list->count; i++)
        cells += i == 0 || strcmp(list->item[i - 1].branch, list->item[i].branch) != 0;
    g->factor = (CELL_LEAST + side - 1) / side;
    g->width = (int)list->width * g->factor, g->height = (int)list->height * g->factor;
    g->columns = (SHEET_MOST - GAP) / (g->width + GAP);
    if (g->columns < 1) g->columns = 1;
    if (g->columns > cells) g->columns = (int)cells;
    const int rows = (int)((cells + g->columns - 1) / g->columns);
    return hd_canvas_create(&g->canvas, GAP + g->columns * (g->width + GAP),
                            GAP + rows * (g->height + LABEL + GAP), false);
}

static hd_status write_grid(const generation *g, int64_t index, const hd_shown_list *list,
                            const char *json)
{
    const hd_preset *p = g->preset;
    grid sheet = {0};
    hd_status status = make_grid(&sheet, list);
    if (status == HD_OK) status = draw_maps(&sheet, list);
    char *path = hd_output_name(p->maps, index, p->batch);
    const hd_png_text texts[] = {{"heddle", json}};
    if (status == HD_OK && !path) status = hd_fail(HD_ERR_NOMEM, "maps: no memory for a name");
    if (status == HD_OK) status = hd_png_write(path, hd_canvas_image(sheet.canvas), texts, 1);
    if (status == HD_OK) status = hd_result_wrote(g->request->result, path);
    free(path);
    hd_canvas_free(sheet.canvas);
    return status;
}

/* --- masks and values --- */

static hd_status write_mask(const generation *g, int64_t index, const hd_shown_list *list,
                            int64_t number, hd_image *image)
{
    const hd_preset *p = g->preset;
    char suffix[128];
    suffix_of(list, number, suffix, sizeof suffix);
    char *name = hd_output_name(p->masks, index, p->batch);
    char *path = name ? hd_output_suffixed(name, suffix) : NULL;
    free(name);
    if (!path) return hd_fail(HD_ERR_NOMEM, "masks: no memory for a name");
    for (size_t i = 0; i < hd_image_bytes(image); i++)
        image->rgb[i] = list->item[number].mask[i / 3] ? 255 : 0;
    hd_status status = hd_png_write(path, image, NULL, 0);
    if (status == HD_OK) status = hd_result_wrote(g->request->result, path);
    free(path);
    return status;
}

static hd_status write_masks(const generation *g, int64_t index, const hd_shown_list *list)
{
    hd_image image;
    HD_TRY(hd_image_create(&image, list->width, list->height, "masks"));
    hd_status status = HD_OK;
    for (int64_t i = 0; status == HD_OK && i < list->count; i++)
        status = write_mask(g, index, list, i, &image);
    hd_image_free(&image);
    return status;
}

static hd_status write_values(const generation *g, int64_t index, const hd_shown_list *list,
                              const char *json)
{
    const hd_preset *p = g->preset;
    const char *const metadata[] = {"heddle", json, NULL};
    hd_named_tensor *tensor = calloc((size_t)list->count, sizeof *tensor);
    char(*names)[128] = calloc((size_t)list->count, sizeof *names);
    char *path = hd_output_name(p->map_values, index, p->batch);
    hd_status status = HD_OK;
    if (!tensor || !names || !path) status = hd_fail(HD_ERR_NOMEM, "map_values: no memory");
    for (int64_t i = 0; status == HD_OK && i < list->count; i++) {
        suffix_of(list, i, names[i], sizeof names[i]);
        tensor[i] = (hd_named_tensor){
            names[i] + 1, hd_tensor_of(list->item[i].value, HD_F32,
                                       hd_shape2(list->latent_height, list->latent_width))};
    }
    if (status == HD_OK) status = hd_safetensors_write(path, list->count, tensor, metadata);
    if (status == HD_OK) status = hd_result_wrote(g->request->result, path);
    free(path);
    free(names);
    free(tensor);
    return status;
}

/* --- the picture --- */

static hd_status collect(generation *g, int64_t index, const hd_image images[HD_MAX_BRANCHES],
                         hd_shown_list *list)
{
    const int64_t first = index - index % g->group;
    const hd_step step = {.index = g->calls, .count = g->calls};
    for (int b = 0; b < g->branches.count; b++) {
        const hd_image *image = &images[g->branches.item[b].latent];
        if (!image->rgb) continue;
        hd_beside_ctx ctx = gen_beside_of(g, first, index - first, step);
        ctx.branch = g->branches.item[b].name;
        list->rgb = image->rgb;
        HD_TRY(hd_beside_run_show(g->beside, &ctx, list));
    }
    return HD_OK;
}

hd_status gen_write_maps(generation *g, const hd_resolved *made, int64_t index,
                         const hd_image images[HD_MAX_BRANCHES])
{
    const hd_preset *p = g->preset;
    hd_shown_list list = {.height = g->size.height,
                          .width = g->size.width,
                          .latent_height = g->size.latent_height,
                          .latent_width = g->size.latent_width};
    char *json = NULL;
    hd_status status = collect(g, index, images, &list);
    if (status == HD_OK) status = hd_metadata_json(&json, p, made);
    if (status == HD_OK && list.count == 0)
        status = hd_fail(HD_ERR_ARGUMENT, "maps: there is no picture that maps could lie over");
    if (status == HD_OK && p->maps) status = write_grid(g, index, &list, json);
    if (status == HD_OK && p->masks) status = write_masks(g, index, &list);
    if (status == HD_OK && p->map_values) status = write_values(g, index, &list, json);
    free(json);
    hd_shown_free(&list);
    return status;
}
