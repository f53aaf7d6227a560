/* pipelines/model_key.c: the hash of what a network is, whatever its weights are. */
#include "pipelines/model_key.h"

#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "engine/options/json_write.h"

// Each field on its own, added up: the order in the file does not count.
static hd_status hash_config(uint64_t *sum, const hd_json *config)
{
    for (int64_t i = 0; i < hd_json_count(config); i++) {
        const hd_json *field = hd_json_at(config, i);
        const char *name = hd_json_key(field);
        if (!name || name[0] == '_') continue;
        hd_json_writer w = {0};
        char *text;
        hd_json_write_node(&w, NULL, field);
        HD_TRY(hd_json_writer_take(&w, &text));
        *sum += XXH64(text, strlen(text), XXH64(name, strlen(name), 0));
        free(text);
    }
    return HD_OK;
}

hd_status hd_model_key(uint64_t *key, const hd_json *config, const hd_weights *weights)
{
    uint64_t sum = 0;
    HD_TRY(hash_config(&sum, config));
    for (int64_t i = 0; i < hd_weights_count(weights); i++) {
        hd_weight_info info = hd_weights_info(weights, i); // sorted by name
        sum = XXH64(info.name, strlen(info.name), sum);
        for (int d = 0; d < info.shape.rank; d++) {
            uint64_t length = (uint64_t)info.shape.dim[d];
            unsigned char bytes[8];
            for (int b = 0; b < 8; b++)
                bytes[b] = (unsigned char)(length >> (8 * b));
            sum = XXH64(bytes, sizeof bytes, sum);
        }
    }
    *key = sum;
    return HD_OK;
}
