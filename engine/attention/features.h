/* engine/attention/features.h: named taps in a network: a residual block's second convolution
 * ("up.1.resnet.1.conv2", before the sum with what goes around it), a residual block's result
 * ("up.1.resnet.1.out").
 *
 * A network shows each tap on the dry pass, so that a processor that asked for one which does not
 * exist is refused before step 0; afterwards it shows those that hd_feature_wanted. */
#ifndef HD_ENGINE_ATTENTION_FEATURES_H
#define HD_ENGINE_ATTENTION_FEATURES_H

#include "engine/attention/attention.h"

HD_BEGIN_DECLS

/* The caller owns *out; hd_features_free(NULL) does nothing. The taps that processors want are
 * added by hd_ask_feature. */
HD_CHECKED hd_status hd_features_create(hd_features **out);
void hd_features_free(hd_features *features);
/* After the dry pass: HD_ERR_ARGUMENT for a path that matched no tap. */
HD_CHECKED hd_status hd_features_finish(const hd_features *features);
/* The paths that were asked for, in order, with the processor's number; NULL past the end. */
const char *hd_features_asked(const hd_features *features, int64_t index, int *processor);

/* The taps in the order in which the dry pass met them: how many attention sites it had met before;
 * -1 past the end. */
int64_t hd_features_tap(const hd_features *features, int64_t index, const char **path);

/* Has this tap to be shown? On the dry pass: is it ever. forward may be NULL. */
bool hd_feature_wanted(const hd_exec *ex, const hd_forward *forward, const char *path);
/* x [B, H, W, C] may be changed by the processors that asked for it. */
HD_CHECKED hd_status hd_feature(const hd_exec *ex, const hd_forward *forward, const char *path,
                                hd_tensor x);

HD_END_DECLS
#endif
