/* cli/defaults.c: model, seed and name of the picture, where a run leaves them open. */
#include "cli/defaults.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/settings.h"
#include "engine/options/json_write.h"
#include "pipelines/outputs.h"

static hd_status put_text(char **json, const char *name, const char *field, const char *text)
{
    char *value = NULL;
    hd_json_writer w = {0};
    hd_json_write_string(&w, NULL, text);
    HD_TRY(hd_json_writer_take(&w, &value));
    hd_status status = hd_setting_put(json, name, field, value);
    free(value);
    return status;
}

bool hd_is_folder(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

bool hd_beside_program(char path[PATH_MAX], const char *folder)
{
    static const char *const places[] = {"/../share/heddle/", "/../../"};
    char program[PATH_MAX], candidate[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length <= 0) return false;
    program[length] = 0;
    char *slash = strrchr(program, '/');
    if (slash) *slash = 0;
    for (size_t i = 0; i < HD_COUNT(places); i++) {
        int written = snprintf(candidate, sizeof candidate, "%s%s%s", program, places[i], folder);
        if (written < (int)sizeof candidate && hd_is_folder(candidate) && realpath(candidate, path))
            return true;
    }
    return false;
}

static hd_status put_model(char **json, const char *name)
{
    char path[PATH_MAX];
    const char *chosen = getenv("HEDDLE_MODEL");
    if (chosen && chosen[0]) return put_text(json, name, "model", chosen);
    if (hd_is_folder("models/starter-image"))
        return put_text(json, name, "model", "models/starter-image");
    if (hd_beside_program(path, "models/starter-image")) return put_text(json, name, "model", path);
    return hd_fail(HD_ERR_ARGUMENT, "no model is named, and the starter model is not beside the "
                                    "program; name a model's folder with --model DIR");
}

static hd_status put_seed(char **json, const char *name)
{
    uint32_t seed = 0;
    char text[24];
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed)
        return hd_fail(HD_ERR_IO, "no random seed from the system: %s; give one with --seed",
                       strerror(errno));
    snprintf(text, sizeof text, "%" PRIu32, seed);
    return hd_setting_put(json, name, "seed", text);
}

// Whether none of the names that a batch would write is taken.
static hd_status name_is_free(const char *path, int64_t batch, bool *is_free)
{
    struct stat info;
    *is_free = true;
    for (int64_t i = 0; i < batch && *is_free; i++) {
        char *one = hd_output_name(path, i, batch);
        if (!one) return hd_fail(HD_ERR_NOMEM, "no memory for a file name");
        *is_free = lstat(one, &info) != 0;
        free(one);
    }
    return HD_OK;
}

static hd_status put_output(char **json, const char *name, uint64_t seed, int64_t batch)
{
    char path[64];
    bool is_free = false;
    snprintf(path, sizeof path, "heddle-%" PRIu64 ".png", seed);
    HD_TRY(name_is_free(path, batch, &is_free));
    for (int k = 2; !is_free; k++) {
        snprintf(path, sizeof path, "heddle-%" PRIu64 "_%d.png", seed, k);
        HD_TRY(name_is_free(path, batch, &is_free));
    }
    return put_text(json, name, "output", path);
}

// What the name of the picture is made of. A damaged value is the run's to refuse.
static void read_numbers(const hd_json *root, uint64_t *seed, int64_t *batch)
{
    const hd_json *seed_node = hd_json_get(root, "seed"), *batch_node = hd_json_get(root, "batch");
    *batch = 1;
    if (seed_node && hd_json_to_u64(seed_node, seed) != HD_OK) *seed = 0;
    if (batch_node && hd_json_to_int(batch_node, 1, 4096, batch) != HD_OK) *batch = 1;
}

static bool has(const hd_json *root, const char *field)
{
    return hd_json_get(root, field) != NULL;
}

hd_status hd_defaults_put_sources(char **json, const char *name)
{
    hd_json_doc *doc = NULL;
    HD_TRY(hd_json_parse(&doc, name, *json, strlen(*json)));
    const hd_json *root = hd_json_root(doc);
    hd_status status = hd_json_expect(root, HD_JSON_OBJECT);
    const bool model = has(root, "model");
    if (status == HD_OK && !has(root, "seed")) status = put_seed(json, name);
    hd_json_free(doc);
    return status == HD_OK && !model ? put_model(json, name) : status;
}

hd_status hd_defaults_put(char **json, const char *name)
{
    hd_json_doc *doc = NULL;
    uint64_t seed = 0;
    int64_t batch = 1;
    HD_TRY(hd_defaults_put_sources(json, name));
    HD_TRY(hd_json_parse(&doc, name, *json, strlen(*json)));
    const bool output = has(hd_json_root(doc), "output");
    read_numbers(hd_json_root(doc), &seed, &batch);
    hd_json_free(doc);
    return output ? HD_OK : put_output(json, name, seed, batch);
}
