/* pipelines/result.h: the pictures of a run and its report, while they are being filled. The public
 * half is in heddle.h. */
#ifndef HD_PIPELINES_RESULT_H
#define HD_PIPELINES_RESULT_H

#include "heddle.h"

HD_BEGIN_DECLS

#define HD_RESULT_MAX_STAGES   16
#define HD_RESULT_MAX_WARNINGS 32

struct hd_result {
    int count, room;
    hd_picture *picture;
    hd_report report;
    hd_stage stage[HD_RESULT_MAX_STAGES];
    const char *warning[HD_RESULT_MAX_WARNINGS];
    char branch[16][24]; // names that pictures point at
    int branch_count;
    char *texts[8]; // strings of the report that it owns
    int text_count;
    char **files; // of the report; owned
    int file_room;
};

/* Room for so many pictures at first; it grows. */
HD_CHECKED hd_status hd_result_create(hd_result **out, int pictures);
/* A copy of `text` that lives as long as the result; NULL when there is no memory or text is NULL.
 */
const char *hd_result_keep(hd_result *result, const char *text);
/* Adds seconds and steps to the stage of that name. `name` is a constant. */
void hd_result_stage(hd_result *result, const char *name, double seconds, int steps);
/* Tells the callback and remembers it. */
void hd_result_warn(hd_result *result, const hd_callbacks *callbacks, const char *text);
/* `name` as a text that lives as long as the result; "" when there are too many. */
const char *hd_result_branch(hd_result *result, const char *name);
/* Another file was written. */
HD_CHECKED hd_status hd_result_wrote(hd_result *result, const char *path);
/* Takes the four owned pieces (path may be NULL) whether it succeeds or not. */
HD_CHECKED hd_status hd_result_add(hd_result *result, hd_picture picture);

HD_END_DECLS
#endif
