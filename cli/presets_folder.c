/* cli/presets_folder.c: see presets_folder.h. */
#include "cli/presets_folder.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/defaults.h"
#include "engine/options/json.h"
#include "include/heddle.h"

static hd_status find_folder(char path[PATH_MAX], const char *folder)
{
    const char *chosen = folder ? folder : getenv("HEDDLE_PRESETS");
    if (chosen && chosen[0]) {
        snprintf(path, PATH_MAX, "%s", chosen);
        if (hd_is_folder(path)) return HD_OK;
        return hd_fail(HD_ERR_ARGUMENT, "%s: there is no such folder of presets", path);
    }
    snprintf(path, PATH_MAX, "presets");
    if (hd_is_folder(path) || hd_beside_program(path, "presets")) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT, "there are no presets beside the program; name their folder "
                                    "with --presets-dir DIR or $HEDDLE_PRESETS");
}

static hd_status add(hd_preset_names *names, int *room, const char *folder, const char *group,
                     const char *file)
{
    const size_t bytes = strlen(file);
    if (bytes <= 5 || strcmp(file + bytes - 5, ".json") != 0) return HD_OK;
    if (names->count == *room) {
        const int more = *room ? 2 * *room : 32;
        hd_preset_name *grown = realloc(names->item, (size_t)more * sizeof *grown);
        if (!grown) return hd_fail(HD_ERR_NOMEM, "presets: no memory for %d names", more);
        names->item = grown;
        *room = more;
    }
    hd_preset_name *one = &names->item[names->count++];
    snprintf(one->name, sizeof one->name, "%s/%.*s", group, (int)bytes - 5, file);
    snprintf(one->path, sizeof one->path, "%s/%s/%s", folder, group, file);
    return HD_OK;
}

static hd_status list_group(hd_preset_names *names, int *room, const char *folder,
                            const char *group)
{
    char path[PATH_MAX + NAME_MAX + 2];
    snprintf(path, sizeof path, "%s/%s", folder, group);
    if (group[0] == '.' || !hd_is_folder(path)) return HD_OK;
    DIR *files = opendir(path);
    if (!files) return hd_fail(HD_ERR_IO, "%s: %s", path, strerror(errno));
    hd_status status = HD_OK;
    for (struct dirent *file; status == HD_OK && (file = readdir(files)) != NULL;)
        status = add(names, room, folder, group, file->d_name);
    closedir(files);
    return status;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const hd_preset_name *)a)->name, ((const hd_preset_name *)b)->name);
}

hd_status hd_preset_names_list(hd_preset_names *out, const char *folder)
{
    char path[PATH_MAX];
    int room = 0;
    *out = (hd_preset_names){0};
    HD_TRY(find_folder(path, folder));
    DIR *groups = opendir(path);
    if (!groups) return hd_fail(HD_ERR_IO, "%s: %s", path, strerror(errno));
    hd_status status = HD_OK;
    for (struct dirent *group; status == HD_OK && (group = readdir(groups)) != NULL;)
        status = list_group(out, &room, path, group->d_name);
    closedir(groups);
    if (out->count) qsort(out->item, (size_t)out->count, sizeof *out->item, by_name);
    return status;
}

void hd_preset_names_free(hd_preset_names *names)
{
    free(names->item);
    *names = (hd_preset_names){0};
}

static const char *last_part(const char *name)
{
    const char *slash = strrchr(name, '/');
    return slash ? slash + 1 : name;
}

static hd_status no_such(const hd_preset_names *names, const char *name)
{
    const char **all = calloc((size_t)names->count * 2 + 1, sizeof *all);
    const char *near = NULL;
    for (int i = 0; all && i < names->count; i++) {
        all[2 * i] = names->item[i].name;
        all[2 * i + 1] = last_part(names->item[i].name);
    }
    if (all) near = hd_nearest_name(name, all, (size_t)names->count * 2);
    (void)hd_fail(HD_ERR_ARGUMENT,
                  "no preset is called \"%.200s\"%s%s%s (heddle presets lists them)", name,
                  near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
    free(all);
    return HD_ERR_ARGUMENT;
}

hd_status hd_preset_names_find(const hd_preset_names *names, const char *name,
                               const hd_preset_name **out)
{
    const hd_preset_name *found = NULL;
    for (int i = 0; i < names->count; i++) {
        const hd_preset_name *one = &names->item[i];
        const bool whole = strcmp(one->name, name) == 0;
        if (!whole && strcmp(last_part(one->name), name) != 0) continue;
        if (found && !whole)
            return hd_fail(HD_ERR_ARGUMENT, "\"%s\" may be %s or %s", name, found->name, one->name);
        found = one;
        if (whole) break;
    }
    if (!found) return no_such(names, name);
    *out = found;
    return HD_OK;
}

// Does it look like a name of a preset, and not like a file?
static bool may_be_name(const char *word)
{
    return word[0] != '/' && word[0] != '.' && !strchr(word, '.');
}

hd_status hd_presets_read(char **json, const char *word)
{
    if (!may_be_name(word) || access(word, F_OK) == 0) return hd_preset_read(word, json);
    hd_preset_names names;
    const hd_preset_name *found = NULL;
    hd_status status = hd_preset_names_list(&names, NULL);
    if (status == HD_OK) status = hd_preset_names_find(&names, word, &found);
    if (status == HD_OK)
        status = hd_preset_read(found->path, json);
    else
        status = hd_note(status, "%s is no file", word);
    hd_preset_names_free(&names);
    return status;
}
