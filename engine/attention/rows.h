/* engine/attention/rows.h: who the rows of a batch are, what their tokens mean, and which step it
 * is.
 *
 * Each row is "branch/role". Branches: main, source, target.k, reference.k, style, content, view.i;
 * roles: cond, uncond, perturbed, noref. A pipeline names the rows; a processor addresses them by
 * name, never by index. */
#ifndef HD_ENGINE_ATTENTION_ROWS_H
#define HD_ENGINE_ATTENTION_ROWS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/status.h"

HD_BEGIN_DECLS

#define HD_MAX_ROWS 256

typedef struct hd_row {
    char branch[24];         // "main", "target.1" ...
    char role[12];           // "cond", "uncond", "perturbed", "noref"
    int64_t picture;         // which of the pictures that are sampled together, from 0
    const char *const *also; // other names of the branch, NULL-ended; NULL: none. Borrowed
} hd_row;

typedef struct hd_rows {
    int64_t count;
    const hd_row *row; // borrowed
} hd_rows;

/* Does `selector` name the row? "cond" is main's row of that role; "source" every role of that
 * branch; "source/uncond" one row; "*" all. */
bool hd_row_matches(const char *selector, const hd_row *row);
/* The row of that branch (by any of its names), role and picture; -1: there is none in this call.
 */
int64_t hd_rows_find(const hd_rows *rows, const char *branch, const char *role, int64_t picture);
/* HD_ERR_ARGUMENT unless `name` is a branch: main, source, target.N, reference.N, style, content,
 * view.N; "target" alone is one too. */
HD_CHECKED hd_status hd_branch_name_check(const char *name);
/* HD_ERR_ARGUMENT unless `selector` has one of the forms above. */
HD_CHECKED hd_status hd_row_selector_check(const char *selector);

typedef enum hd_token_kind {
    HD_TOKENS_ALL,
    HD_TOKENS_GRID, // the picture's or video's own tokens
    HD_TOKENS_TEXT,
    HD_TOKENS_REFERENCE, // appended by a processor
    HD_TOKENS_PADDING,
} hd_token_kind;

extern const char *const hd_token_kinds[]; // by hd_token_kind, NULL-ended

typedef struct hd_token_segment {
    hd_token_kind kind;
    int64_t start, count;
    int64_t frames, height,
        width; // of a grid: count = frames * height * width, last axis fastest; else 0
} hd_token_segment;

#define HD_MAX_SEGMENTS 8

typedef struct hd_token_layout {
    int segments;
    hd_token_segment segment[HD_MAX_SEGMENTS]; // ascending, covering all tokens
} hd_token_layout;

hd_token_layout hd_layout_grid(int64_t frames, int64_t height, int64_t width);
hd_token_layout hd_layout_text(int64_t tokens);

typedef enum hd_phase {
    HD_PHASE_SAMPLING,
    HD_PHASE_INVERSION,
} hd_phase;

typedef struct hd_step {
    int64_t index, count;
    double timestep, sigma;
    hd_phase phase;
    // Of a video made block by block: the frame that the call's grid begins with, and how many
    // there will be (-1: no end); frames 0: it is not.
    int64_t frame, frames;
} hd_step;

HD_END_DECLS
#endif
