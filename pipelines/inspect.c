/* pipelines/inspect.c: what a model folder or a safetensors file holds, as JSON. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "codecs/text_clip.h"
#include "codecs/vae_kl.h"
#include "engine/options/json_write.h"
#include "engine/weights/weights.h"
#include "heddle.h"
#include "pipelines/model_folder.h"
#include "unet/unet2d.h"

static void write_tensors(hd_json_writer *w, const hd_weights *weights)
{
    int64_t bytes = 0, parameters = 0, count = hd_weights_count(weights);
    hd_json_write_array(w, "tensors");
    for (int64_t i = 0; i < count; i++) {
        hd_weight_info info = hd_weights_info(weights, i);
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "name", info.name);
        hd_json_write_string(w, "file", info.file);
        hd_json_write_string(w, "type", hd_dtype_name(info.dtype));
        hd_json_write_array(w, "shape");
        for (int d = 0; d < info.shape.rank; d++)
            hd_json_write_int(w, NULL, info.shape.dim[d]);
        hd_json_write_end(w, ']');
        hd_json_write_int(w, "bytes", info.bytes);
        hd_json_write_end(w, '}');
        bytes += info.bytes;
        parameters += hd_shape_count(info.shape);
    }
    hd_json_write_end(w, ']');
    hd_json_write_int(w, "tensor_count", count);
    hd_json_write_int(w, "parameters", parameters);
    hd_json_write_int(w, "bytes", bytes);
}

// Does this program read the component? Its configuration and every tensor's name and shape.
static hd_status check_component(const char *name, const hd_json *config, const char *what,
                                 int64_t count, const hd_weight_info *infos)
{
    if (strcmp(name, "text_encoder") == 0) {
        hd_text_clip_config c;
        HD_TRY(hd_text_clip_config_read(&c, config));
        return hd_text_clip_check(&c, what, count, infos);
    }
    if (strcmp(name, "unet") == 0) {
        hd_unet2d_config c;
        HD_TRY(hd_unet2d_config_read(&c, config));
        return hd_unet2d_check(&c, what, count, infos);
    }
    hd_vae_kl_config c;
    HD_TRY(hd_vae_kl_config_read(&c, config));
    return hd_vae_kl_check(&c, what, count, infos);
}

static hd_status verdict(const char *name, const hd_json *config, hd_weights *weights)
{
    if (strcmp(name, "vae") == 0) HD_TRY(hd_weights_rename(weights, hd_vae_kl_rename));
    int64_t count = hd_weights_count(weights);
    hd_weight_info *infos = malloc(((size_t)count + 1) * sizeof *infos);
    if (!infos) return hd_fail(HD_ERR_NOMEM, "inspect: no memory");
    for (int64_t i = 0; i < count; i++)
        infos[i] = hd_weights_info(weights, i);
    hd_status status = check_component(name, config, hd_weights_path(weights), count, infos);
    free(infos);
    return status;
}

static hd_status write_component(hd_json_writer *w, const char *folder, const char *name,
                                 const char *stem)
{
    char path[PATH_MAX], config_path[PATH_MAX];
    hd_folder_join(path, folder, name);
    hd_json_doc *config = NULL;
    hd_weights *weights = NULL;
    hd_status status = hd_json_read(&config, hd_folder_join(config_path, path, "config.json"));
    if (status == HD_OK) status = hd_weights_open(&weights, path, stem);
    if (status == HD_OK) {
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "name", name);
        const hd_json *class = hd_json_get(hd_json_root(config), "_class_name");
        const char *text = NULL;
        if (!class) class = hd_json_at(hd_json_get(hd_json_root(config), "architectures"), 0);
        if (class && hd_json_kind(class) == HD_JSON_STRING)
            status = hd_json_to_string(class, &text);
        hd_json_write_string(w, "class", text);
        write_tensors(w, weights);
        // a component that cannot be run is still described: the reason stands beside it
        hd_status runs = verdict(name, hd_json_root(config), weights);
        hd_json_write_bool(w, "supported", runs == HD_OK);
        if (runs != HD_OK) hd_json_write_string(w, "problem", hd_message());
        hd_json_write_end(w, '}');
    }
    hd_json_free(config);
    hd_weights_free(weights);
    return status;
}

static hd_status write_scheduler(hd_json_writer *w, const char *folder)
{
    char path[PATH_MAX];
    struct stat st;
    if (stat(hd_folder_join(path, folder, "scheduler/scheduler_config.json"), &st) != 0)
        return HD_OK;
    hd_json_doc *doc;
    HD_TRY(hd_json_read(&doc, path));
    hd_json_write_node(w, "scheduler", hd_json_root(doc));
    hd_json_free(doc);
    return HD_OK;
}

static hd_status inspect_folder(hd_json_writer *w, const char *folder)
{
    HD_TRY(hd_model_folder_check(folder));
    hd_json_write_string(w, "kind", "Stable Diffusion model in diffusers' layout");
    hd_json_write_array(w, "components");
    HD_TRY(write_component(w, folder, "text_encoder", "model"));
    HD_TRY(write_component(w, folder, "unet", "diffusion_pytorch_model"));
    HD_TRY(write_component(w, folder, "vae", "diffusion_pytorch_model"));
    hd_json_write_end(w, ']');
    return write_scheduler(w, folder);
}

static hd_status inspect_file(hd_json_writer *w, const char *path, const char *kind)
{
    hd_weights *weights;
    HD_TRY(hd_weights_open(&weights, path, NULL));
    hd_json_write_string(w, "kind", kind);
    write_tensors(w, weights);
    hd_weights_free(weights);
    return HD_OK;
}

hd_status hd_model_inspect(const char *path, char **json)
{
    struct stat st;
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "path", path);
    // a component's own folder is a folder of weights
    char index[PATH_MAX], config[PATH_MAX];
    bool folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    bool part = folder && stat(hd_folder_join(index, path, "model_index.json"), &st) != 0 &&
                stat(hd_folder_join(config, path, "config.json"), &st) == 0;
    hd_status status = !folder ? inspect_file(&w, path, "safetensors file")
                       : part  ? inspect_file(&w, path, "weights of one component")
                               : inspect_folder(&w, path);
    hd_json_write_end(&w, '}');
    if (status != HD_OK) {
        hd_json_writer_free(&w);
        return status;
    }
    return hd_json_writer_take(&w, json);
}
