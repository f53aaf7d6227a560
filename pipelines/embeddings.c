/* pipelines/embeddings.c: see embeddings.h. */
#include "pipelines/embeddings.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "codecs/textual_inversion.h"

typedef struct embedding_fields {
    char *file, *token;
} embedding_fields;

static const hd_param embedding_params[] = {
    HD_PARAM_STRING(embedding_fields, file, .required = true,
                    .help = "safetensors file with the vectors"),
    HD_PARAM_STRING(embedding_fields, token, .help = "what stands for them in a prompt"),
    HD_PARAM_END,
};

// A failure of the file or the token, with the place in the preset.
static hd_status place(const hd_json *node, hd_status status)
{
    if (status == HD_OK) return status;
    char why[1024];
    snprintf(why, sizeof why, "%s", hd_message());
    return hd_json_fail(node, status, "%s", why);
}

static hd_status open_entry(hd_textual_inversion *out, const hd_json *node, int64_t channels)
{
    embedding_fields fields = {0};
    hd_status status = hd_params_default(embedding_params, &fields);
    const char *file = NULL;
    if (status == HD_OK && hd_json_kind(node) == HD_JSON_STRING)
        status = hd_json_to_string(node, &file);
    else if (status == HD_OK)
        status = hd_params_read(embedding_params, &fields, node, NULL);
    if (status == HD_OK)
        status = place(node, hd_textual_inversion_open(out, file ? file : fields.file, fields.token,
                                                       channels));
    hd_params_free(embedding_params, &fields);
    return status;
}

static hd_status join(hd_embeddings *out, const hd_textual_inversion *learned, int64_t count,
                      const hd_json *node, const hd_model *model)
{
    const hd_text_clip_config *text = hd_text_clip_configuration(model->text);
    hd_tokenizer_word *word = calloc((size_t)count, sizeof *word);
    for (int64_t i = 0; i < count; i++)
        out->count += learned[i].count;
    out->vectors = malloc((size_t)(out->count * text->channels) * sizeof *out->vectors);
    if (!word || !out->vectors) {
        free(word);
        return hd_fail(HD_ERR_NOMEM, "embeddings: no memory for %lld vectors",
                       (long long)out->count);
    }
    int64_t at = 0, failed = 0;
    for (int64_t i = 0; i < count; i++) {
        word[i] = (hd_tokenizer_word){learned[i].token, text->vocabulary + at, learned[i].count};
        memcpy(out->vectors + at * text->channels, learned[i].vectors,
               (size_t)(learned[i].count * text->channels) * sizeof *out->vectors);
        at += learned[i].count;
    }
    hd_status status = hd_tokenizer_extend(&out->own, model->tokenizer, count, word, &failed);
    const hd_json *where =
        hd_json_kind(node) == HD_JSON_ARRAY && failed < count ? hd_json_at(node, failed) : node;
    free(word);
    HD_TRY(place(where, status));
    out->tokenizer = out->own;
    return HD_OK;
}

hd_status hd_embeddings_read(hd_embeddings *out, const hd_json *node, const hd_model *model)
{
    *out = (hd_embeddings){.tokenizer = model->tokenizer};
    const bool list = node && hd_json_kind(node) == HD_JSON_ARRAY;
    const int64_t count = !node ? 0 : list ? hd_json_count(node) : 1;
    if (count == 0) return HD_OK;
    hd_textual_inversion *learned = calloc((size_t)count, sizeof *learned);
    if (!learned) return hd_fail(HD_ERR_NOMEM, "embeddings: no memory for %lld", (long long)count);
    const int64_t channels = hd_text_clip_configuration(model->text)->channels;
    hd_status status = HD_OK;
    for (int64_t i = 0; i < count && status == HD_OK; i++)
        status = open_entry(&learned[i], list ? hd_json_at(node, i) : node, channels);
    if (status == HD_OK) status = join(out, learned, count, node, model);
    for (int64_t i = 0; i < count; i++)
        hd_textual_inversion_clear(&learned[i]);
    free(learned);
    return status;
}

void hd_embeddings_free(hd_embeddings *embeddings)
{
    hd_tokenizer_free(embeddings->own);
    free(embeddings->vectors);
    *embeddings = (hd_embeddings){0};
}
