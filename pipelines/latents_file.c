/* pipelines/latents_file.c: last latents into a safetensors file. */
#include "pipelines/latents_file.h"

#include <stdlib.h>

#include "engine/weights/safetensors_write.h"

hd_status hd_latents_file_begin(hd_latents_file *out, int64_t batch, const hd_picture_size *size)
{
    out->shape = hd_shape4(batch, size->channels, size->latent_height, size->latent_width);
    out->values = calloc((size_t)(batch * size->latent_values), sizeof *out->values);
    if (!out->values)
        return hd_fail(HD_ERR_NOMEM, "latents_out: no memory for %lld latents", (long long)batch);
    return HD_OK;
}

hd_status hd_latents_file_write(const hd_latents_file *latents, const char *path)
{
    hd_named_tensor tensor = {"latents", hd_tensor_of(latents->values, HD_F32, latents->shape)};
    return hd_safetensors_write(path, 1, &tensor, NULL);
}

void hd_latents_file_free(hd_latents_file *latents)
{
    free(latents->values);
    latents->values = NULL;
}
