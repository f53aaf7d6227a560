/* engine/attention/site.h: where in a network an attention call is, and the selectors that name
 * such places.
 *
 * A path is "down.1.attn.0", "mid.attn.0", "up.2.attn.1" (with ".D" behind it in a transformer of
 * several blocks) or "block.17". A selector is [unet:|dit:|text:|vae:] [path] [kind] [condition
 * ...] e.g. "up.*.attn.* self factor<=2", "block.** joint", "cross tokens>=1024". In a path * is
 * one component and ** the rest; a path without the transformer's depth means every depth; "mid"
 * is all of the middle. Without a prefix a selector means the denoiser. */
#ifndef HD_ENGINE_ATTENTION_SITE_H
#define HD_ENGINE_ATTENTION_SITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

typedef enum hd_site_kind {
    HD_SITE_SELF,
    HD_SITE_CROSS,
    HD_SITE_TEMPORAL,
    HD_SITE_JOINT,
} hd_site_kind;

typedef enum hd_network {
    HD_NETWORK_UNET,
    HD_NETWORK_DIT,
    HD_NETWORK_TEXT,
    HD_NETWORK_VAE,
} hd_network;

#define HD_SITE_PATH_BYTES 48

typedef struct hd_site {
    hd_network network;
    hd_site_kind kind;
    char path[HD_SITE_PATH_BYTES];
    int64_t factor; // below the latent, per axis: 1, 2, 4 ...
    int64_t heads;
    int64_t tokens; // queries
} hd_site;

extern const char *const hd_site_kinds[]; // by hd_site_kind, NULL-ended
extern const char *const hd_networks[];   // by hd_network, NULL-ended

typedef struct hd_site_selector {
    bool network_given;
    hd_network network;
    char path[HD_SITE_PATH_BYTES]; // "**": every path
    bool kind_given;
    hd_site_kind kind;
    int conditions;
    struct {
        char field; // 'f'actor, 't'okens, 'h'eads
        char op;    // '<', '>', 'l' (<=), 'g' (>=), '=', '!'
        int64_t value;
    } condition[4];
} hd_site_selector;

/* HD_ERR_ARGUMENT with the part of `text` that is not understood. */
HD_CHECKED hd_status hd_site_selector_parse(hd_site_selector *out, const char *text);
/* A selector's path against a path: see above. */
bool hd_path_matches(const char *pattern, const char *path);
bool hd_site_matches(const hd_site_selector *selector, const hd_site *site);
/* "unet:down.1.attn.0 self" into text; returns text. */
char *hd_site_text(char *text, size_t bytes, const hd_site *site);

HD_END_DECLS
#endif
