/* pipelines/preset_file.c: the JSON of a run out of a preset file, or out of a picture. */
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "codecs/png.h"
#include "engine/options/json_write.h"
#include "include/heddle.h"

#define PRESET_MAX_BYTES (64u << 20) // a preset, or a picture that carries one

// A picture may come from anywhere: it never says where to write.
static bool names_an_output(const char *key)
{
    static const char *const outputs[] = {"output",         "latents_out", "preview",
                                          "sheet",          "maps",        "masks",
                                          "save_inversion", "map_values",  "capture"};
    for (size_t i = 0; i < HD_COUNT(outputs); i++)
        if (strcmp(key, outputs[i]) == 0) return true;
    return false;
}

static hd_status without_outputs(char **json, const hd_json *root)
{
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    for (int64_t i = 0; i < hd_json_count(root); i++) {
        const hd_json *node = hd_json_at(root, i);
        if (!names_an_output(hd_json_key(node))) hd_json_write_node(&w, hd_json_key(node), node);
    }
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, json);
}

static hd_status json_of_picture(char **json, const hd_png *png, const char *path)
{
    const char *text = hd_png_find_text(png, "heddle");
    if (!text)
        return hd_fail(HD_ERR_FORMAT,
                       "%s: the picture does not say how it was made (no text \"heddle\"); it was "
                       "drawn by another program, or another one saved it since",
                       path);
    hd_json_doc *doc = NULL;
    HD_TRY(hd_json_parse(&doc, path, text, strlen(text)));
    hd_status status = without_outputs(json, hd_json_root(doc));
    hd_json_free(doc);
    return status;
}

hd_status hd_preset_read(const char *path, char **json)
{
    char *text = NULL;
    size_t bytes = 0;
    HD_TRY(hd_file_read(&text, &bytes, path, PRESET_MAX_BYTES));
    if (!hd_png_signature(text, bytes)) {
        if (strlen(text) < bytes) {
            free(text);
            return hd_fail(HD_ERR_FORMAT, "%s: neither JSON nor a PNG file", path);
        }
        *json = text;
        return HD_OK;
    }
    hd_png png = {0};
    hd_status status = hd_png_decode(&png, text, bytes, path);
    if (status == HD_OK) status = json_of_picture(json, &png, path);
    hd_png_free(&png);
    free(text);
    return status;
}
