/* pipelines/capture.h: queries, keys and values of chosen attention calls of a run, as they enter
 * the kernel, into a safetensors file; docs/command-line.md says how it is laid out.
 *
 * Life: create; watch the dry pass (memory for what will be kept is taken there); check; watch the
 * run; write; free. */
#ifndef HD_PIPELINES_CAPTURE_H
#define HD_PIPELINES_CAPTURE_H

#include "engine/attention/run.h"
#include "pipelines/preset.h"

HD_BEGIN_DECLS

typedef struct hd_capture hd_capture;

/* For preset->capture, capture_sites and capture_steps in a run of `calls` network calls. next: who
 * else looks on, NULL: nobody. The caller owns *out; hd_capture_free(NULL) does nothing. */
HD_CHECKED hd_status hd_capture_create(hd_capture **out, const hd_preset *preset,
                                       const hd_json *root, int64_t calls, hd_attention_watch next,
                                       void *next_user);
void hd_capture_free(hd_capture *capture);

/* An hd_attention_watch; user is the capture. */
hd_status hd_capture_watch(void *user, const hd_attention_seen *seen);

/* After the dry pass: HD_ERR_ARGUMENT if no site was selected. */
HD_CHECKED hd_status hd_capture_check(const hd_capture *capture, const hd_json *root);

/* What was kept, in one file that appears whole or not at all. */
HD_CHECKED hd_status hd_capture_write(const hd_capture *capture);

HD_END_DECLS
#endif
