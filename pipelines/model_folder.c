/* pipelines/model_folder.c: model_index.json, file times, hashes of the small files. */
#include "pipelines/model_folder.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <xxhash.h>

#include "base/file.h"

static const char *const components[] = {"tokenizer", "text_encoder", "unet", "vae", "scheduler"};

char *hd_folder_join(char text[PATH_MAX], const char *folder, const char *name)
{
    size_t length = strlen(folder);
    snprintf(text, PATH_MAX, "%s%s%s", folder, length > 0 && folder[length - 1] == '/' ? "" : "/",
             name);
    return text;
}

static hd_status check_component(const hd_json *root, const char *name, const char *const *classes)
{
    const hd_json *node = hd_json_get(root, name);
    if (!node)
        return hd_json_fail(
            root, HD_ERR_UNSUPPORTED,
            "has no \"%s\"; a Stable Diffusion model has tokenizer, text_encoder, unet and vae",
            name);
    HD_TRY(hd_json_expect(node, HD_JSON_ARRAY));
    const char *class = NULL;
    const hd_json *second = hd_json_at(node, 1);
    if (!second || hd_json_kind(second) != HD_JSON_STRING)
        return hd_json_fail(node, HD_ERR_UNSUPPORTED, "names no class; expected [library, class]");
    HD_TRY(hd_json_to_string(second, &class));
    for (int i = 0; classes[i]; i++)
        if (strcmp(classes[i], class) == 0) return HD_OK;
    return hd_json_fail(node, HD_ERR_UNSUPPORTED,
                        "is of class %s, which Heddle does not have; it has %s", class, classes[0]);
}

static hd_status check_index(const hd_json *root)
{
    static const char *const pipelines[] = {"StableDiffusionPipeline",
                                            "StableDiffusionImg2ImgPipeline", NULL};
    static const char *const tokenizers[] = {"CLIPTokenizer", "CLIPTokenizerFast", NULL};
    static const char *const encoders[] = {"CLIPTextModel", "CLIPTextModelWithProjection", NULL};
    static const char *const unets[] = {"UNet2DConditionModel", NULL};
    static const char *const vaes[] = {"AutoencoderKL", NULL};
    HD_TRY(hd_json_expect(root, HD_JSON_OBJECT));
    const hd_json *node = hd_json_get(root, "_class_name");
    const char *class;
    if (!node)
        return hd_json_fail(root, HD_ERR_FORMAT,
                            "has no \"_class_name\"; is it a pipeline's model_index.json?");
    HD_TRY(hd_json_to_string(node, &class));
    if (strcmp(class, pipelines[0]) != 0 && strcmp(class, pipelines[1]) != 0)
        return hd_json_fail(node, HD_ERR_UNSUPPORTED,
                            "is %s; Heddle runs Stable Diffusion 1.x and 2.x (%s)", class,
                            pipelines[0]);
    HD_TRY(check_component(root, "tokenizer", tokenizers));
    HD_TRY(check_component(root, "text_encoder", encoders));
    HD_TRY(check_component(root, "unet", unets));
    return check_component(root, "vae", vaes);
}

hd_status hd_model_folder_check(const char *folder)
{
    char path[PATH_MAX];
    struct stat st;
    if (stat(folder, &st) != 0)
        return hd_fail(HD_ERR_IO,
                       "%s: there is no such model folder; -m takes a folder in diffusers' layout",
                       folder);
    if (!S_ISDIR(st.st_mode))
        return hd_fail(HD_ERR_FORMAT,
                       "%s is a file; -m takes a folder in diffusers' layout (single-file "
                       "checkpoints are not read)",
                       folder);
    if (stat(hd_folder_join(path, folder, "model_index.json"), &st) != 0)
        return hd_fail(HD_ERR_FORMAT,
                       "%s is no model: it has no model_index.json; -m takes the folder that holds "
                       "model_index.json, unet/, vae/, text_encoder/ and tokenizer/",
                       folder);
    hd_json_doc *doc;
    HD_TRY(hd_json_read(&doc, path));
    hd_status status = check_index(hd_json_root(doc));
    hd_json_free(doc);
    return status;
}

static bool is_small_file(const char *name)
{
    const char *dot = strrchr(name, '.');
    return dot && (strcmp(dot, ".json") == 0 || strcmp(dot, ".txt") == 0);
}

// Adds one component's files; the sum does not depend on the order readdir gives them in.
static hd_status each_file(const char *folder, const char *component, bool contents, uint64_t *sum)
{
    char where[PATH_MAX], path[PATH_MAX];
    DIR *dir = opendir(hd_folder_join(where, folder, component));
    if (!dir) return HD_OK; // its loader says what is missing
    hd_status status = HD_OK;
    for (struct dirent *entry; status == HD_OK && (entry = readdir(dir));) {
        if (entry->d_name[0] == '.') continue;
        uint64_t name =
            XXH64(entry->d_name, strlen(entry->d_name), XXH64(component, strlen(component), 0));
        hd_folder_join(path, where, entry->d_name);
        struct stat st;
        if (!contents && stat(path, &st) == 0) {
            int64_t fields[4] = {st.st_size, st.st_mtim.tv_sec, st.st_mtim.tv_nsec,
                                 (int64_t)st.st_ino};
            *sum += XXH64(fields, sizeof fields, name);
        } else if (contents && is_small_file(entry->d_name)) {
            char *text;
            size_t bytes;
            status = hd_file_read(&text, &bytes, path, (size_t)64 << 20);
            if (status != HD_OK) break;
            *sum += XXH64(text, bytes, name);
            free(text);
        }
    }
    closedir(dir);
    return status;
}

uint64_t hd_model_folder_stamp(const char *folder)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < HD_COUNT(components); i++)
        if (each_file(folder, components[i], false, &sum) != HD_OK) return 0;
    return sum;
}

hd_status hd_model_folder_hash(const char *folder, uint64_t *hash)
{
    *hash = 0;
    for (size_t i = 0; i < HD_COUNT(components); i++)
        HD_TRY(each_file(folder, components[i], true, hash));
    return HD_OK;
}
