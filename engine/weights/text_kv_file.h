/* engine/weights/text_kv_file.h: keys and values of the cross attentions that were learned beside a
 * model: whole matrices (Custom Diffusion, Kumari et al., arXiv 2212.04488) or low-rank changes
 * (LoRA, Hu et al., arXiv 2106.09685).
 *
 * Tensors are found by the names of diffusers' modules ("down_blocks.0.attentions.1.
 * transformer_blocks.0.attn2", with or without "unet." before it): ".processor.
 * to_k_custom_diffusion.weight"; ".to_k.lora_A.weight" and ".to_k.lora_B.weight" with
 * ".to_k.alpha"; the older ".processor.to_k_lora.down.weight"; and the scripts'
 * "lora_unet_..._to_k.lora_down. weight". */
#ifndef HD_ENGINE_WEIGHTS_TEXT_KV_FILE_H
#define HD_ENGINE_WEIGHTS_TEXT_KV_FILE_H

#include "engine/ops/linear.h"
#include "engine/weights/tensor_file.h"

HD_BEGIN_DECLS

typedef struct hd_text_kv_file hd_text_kv_file;

/* HD_ERR_UNSUPPORTED for a file that also changes something else (queries, self attention, the text
 * encoder), unless kv_only: then that is left alone. The caller owns *out; free(NULL) does nothing.
 */
HD_CHECKED hd_status hd_text_kv_file_open(hd_text_kv_file **out, const char *path, bool kv_only);
void hd_text_kv_file_free(hd_text_kv_file *file);

/* *linear [in -> out]: keys, then values, of the cross attention at `site` ("down.0.attn.1"); the
 * caller owns it; NULL: the file has nothing for it. *adds: to what the model's own give. */
HD_CHECKED hd_status hd_text_kv_file_linear(hd_text_kv_file *file, const hd_exec *ex,
                                            const char *site, int64_t in, int64_t out,
                                            hd_dtype compute, hd_linear **linear, bool *adds);
/* Once every site has asked: a tensor that none took; NULL: there is none. */
const char *hd_text_kv_file_unused(const hd_text_kv_file *file);

HD_END_DECLS
#endif
