/* engine/attention/rows.c: names of rows and kinds of tokens. */
#include "engine/attention/rows.h"

#include <ctype.h>
#include <string.h>

const char *const hd_token_kinds[] = {"all", "grid", "text", "reference", "padding", NULL};

static const char *const roles[] = {"cond", "uncond", "perturbed", "noref"};

static bool is_role(const char *word)
{
    for (size_t i = 0; i < HD_COUNT(roles); i++)
        if (strcmp(word, roles[i]) == 0) return true;
    return false;
}

static bool is_branch(const char *word, size_t length)
{
    static const struct {
        const char *name;
        bool numbered;
    } branches[] = {{"main", false},  {"source", false},  {"target", true}, {"reference", true},
                    {"style", false}, {"content", false}, {"view", true}};
    for (size_t i = 0; i < HD_COUNT(branches); i++) {
        size_t n = strlen(branches[i].name);
        if (length < n || memcmp(word, branches[i].name, n) != 0) continue;
        if (length == n) return true; // "target" alone: every target
        if (!branches[i].numbered || word[n] != '.' || length == n + 1) continue;
        bool digits = true;
        for (size_t j = n + 1; j < length; j++)
            digits = digits && isdigit((unsigned char)word[j]);
        if (digits) return true;
    }
    return false;
}

// "target" names "target.0", "target.1" ...; "target.1" only itself.
static bool branch_matches(const char *word, size_t length, const char *branch)
{
    if (strncmp(word, branch, length) != 0) return false;
    return branch[length] == 0 || branch[length] == '.';
}

static bool row_of_branch(const char *word, size_t length, const hd_row *row)
{
    if (branch_matches(word, length, row->branch)) return true;
    for (const char *const *name = row->also; name && *name; name++)
        if (branch_matches(word, length, *name)) return true;
    return false;
}

bool hd_row_matches(const char *selector, const hd_row *row)
{
    if (strcmp(selector, "*") == 0) return true;
    const char *slash = strchr(selector, '/');
    if (slash)
        return row_of_branch(selector, (size_t)(slash - selector), row) &&
               strcmp(slash + 1, row->role) == 0;
    if (is_role(selector))
        return strcmp(row->branch, "main") == 0 && strcmp(selector, row->role) == 0;
    return row_of_branch(selector, strlen(selector), row);
}

static bool row_named(const hd_row *row, const char *branch)
{
    if (strcmp(row->branch, branch) == 0) return true;
    for (const char *const *name = row->also; name && *name; name++)
        if (strcmp(*name, branch) == 0) return true;
    return false;
}

int64_t hd_rows_find(const hd_rows *rows, const char *branch, const char *role, int64_t picture)
{
    for (int64_t b = 0; b < rows->count; b++) {
        const hd_row *row = &rows->row[b];
        if (row->picture == picture && strcmp(row->role, role) == 0 && row_named(row, branch))
            return b;
    }
    return -1;
}

hd_status hd_branch_name_check(const char *name)
{
    if (strlen(name) < sizeof((hd_row *)NULL)->branch && is_branch(name, strlen(name)))
        return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT,
                   "\"%.40s\" names no branch; there are main, source, target.N, reference.N, "
                   "style, content, view.N",
                   name);
}

hd_status hd_row_selector_check(const char *selector)
{
    if (strcmp(selector, "*") == 0) return HD_OK;
    const char *slash = strchr(selector, '/');
    bool good = slash ? is_branch(selector, (size_t)(slash - selector)) && is_role(slash + 1)
                      : is_role(selector) || is_branch(selector, strlen(selector));
    if (good) return HD_OK;
    return hd_fail(HD_ERR_ARGUMENT,
                   "\"%s\" names no row; a row is a role (cond, uncond, perturbed, noref), a "
                   "branch (main, source, "
                   "target.N, reference.N, style, content, view.N), branch/role, or \"*\"",
                   selector);
}

hd_token_layout hd_layout_grid(int64_t frames, int64_t height, int64_t width)
{
    hd_token_layout layout = {.segments = 1};
    layout.segment[0] =
        (hd_token_segment){HD_TOKENS_GRID, 0, frames * height * width, frames, height, width};
    return layout;
}

hd_token_layout hd_layout_text(int64_t tokens)
{
    hd_token_layout layout = {.segments = 1};
    layout.segment[0] = (hd_token_segment){HD_TOKENS_TEXT, 0, tokens, 0, 0, 0};
    return layout;
}
