/* cli/progress.h: one line on a terminal that says how far a run is.
 *
 * Nothing is printed elsewhere than on a terminal. The line is drawn over in one write, at most ten
 * times a second, so that it does not flicker. */
#ifndef HD_CLI_PROGRESS_H
#define HD_CLI_PROGRESS_H

#include <stdio.h>

#include "include/heddle.h"

HD_BEGIN_DECLS

typedef struct hd_progress_bar {
    FILE *to; // NULL: silent
    double drawn_at;
    bool visible;
} hd_progress_bar;

/* Silent when `to` is no terminal (or a dumb one) or `quiet`. */
hd_progress_bar hd_progress_bar_begin(FILE *to, bool quiet);
void hd_progress_bar_update(hd_progress_bar *bar, const hd_progress *progress);
/* Removes the line, so that something else can be printed. */
void hd_progress_bar_clear(hd_progress_bar *bar);

/* The line for a terminal of that many columns into text, without control characters; shorter than
 * `columns`. Returns text. "sample  [######....]  12/25  1.21 s/step  0:16 left" */
char *hd_progress_line(char *text, size_t bytes, int columns, const hd_progress *progress);

HD_END_DECLS
#endif
