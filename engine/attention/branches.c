/* engine/attention/branches.c: see branches.h. */
#include "engine/attention/branches.h"

#include <stdio.h>
#include <string.h>

const char *const hd_role_names[] = {"uncond", "cond", "perturbed", "noref", NULL};

static int find_name(const hd_branches *b, const char *name)
{
    for (int i = 0; i < b->count; i++)
        if (strcmp(b->item[i].name, name) == 0) return i;
    return -1;
}

static int find_alias(const hd_branches *b, const char *name)
{
    for (int i = 0; i < b->aliases; i++)
        if (strcmp(b->alias[i].name, name) == 0) return i;
    return -1;
}

int hd_branches_find(const hd_branches *b, const char *name)
{
    int i = find_name(b, name);
    if (i >= 0) return i;
    i = find_alias(b, name);
    return i < 0 ? -1 : b->alias[i].branch;
}

static void list_aliases(hd_branches *b)
{
    for (int i = 0; i < b->count; i++) {
        int n = 0;
        for (int a = 0; a < b->aliases; a++)
            if (b->alias[a].branch == i) b->item[i].also[n++] = b->alias[a].name;
        b->item[i].also[n] = NULL;
    }
}

static void put_alias(hd_branches *b, const char *name, int of)
{
    snprintf(b->alias[b->aliases].name, sizeof b->alias[0].name, "%s", name);
    b->alias[b->aliases++].branch = of;
    list_aliases(b);
}

static void put_branch(hd_branches *b, const char *name)
{
    hd_branch *fresh = &b->item[b->count];
    *fresh = (hd_branch){.start = -1, .latent = b->count, .guidance_by = -1};
    snprintf(fresh->name, sizeof fresh->name, "%s", name);
    for (int r = 0; r < HD_ROLES; r++) {
        fresh->fork[r] = true;
        fresh->end_step[r] = INT64_MAX;
    }
    b->count++;
}

void hd_branches_init(hd_branches *b)
{
    *b = (hd_branches){0};
    put_branch(b, "main");
    put_alias(b, "target", 0);
    put_alias(b, "target.0", 0);
}

// "target" and "target.0" are one branch.
static bool first_target(const char *name)
{
    return strcmp(name, "target") == 0 || strcmp(name, "target.0") == 0;
}

static hd_status check_new(hd_branches *b, const char *name, const hd_json *node)
{
    hd_status status = hd_branch_name_check(name);
    if (status != HD_OK) {
        char why[256];
        snprintf(why, sizeof why, "%s", hd_message());
        return hd_json_fail(node, status, "%s", why);
    }
    int alias = find_alias(b, name);
    bool taken = find_name(b, name) >= 0 ||
                 (alias >= 0 && !(first_target(name) && b->alias[alias].branch == 0));
    if (taken) return hd_json_fail(node, HD_ERR_ARGUMENT, "branch \"%s\" is there twice", name);
    // until now these two were main's
    for (int a = b->aliases - 1; a >= 0 && first_target(name); a--)
        if (first_target(b->alias[a].name)) b->alias[a] = b->alias[--b->aliases];
    return HD_OK;
}

hd_status hd_branches_add(hd_branches *b, const char *name, const hd_json *node, hd_branch **out)
{
    HD_TRY(check_new(b, name, node));
    if (b->count == HD_MAX_BRANCHES)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "makes more than %d branches", HD_MAX_BRANCHES);
    put_branch(b, first_target(name) ? "target.0" : name);
    if (first_target(name) && b->aliases < HD_MAX_ALIASES)
        put_alias(b, "target", b->count - 1);
    else
        list_aliases(b);
    *out = &b->item[b->count - 1];
    return HD_OK;
}

hd_status hd_branches_alias(hd_branches *b, const char *name, int of, const hd_json *node)
{
    HD_TRY(check_new(b, name, node));
    if (b->aliases == HD_MAX_ALIASES)
        return hd_json_fail(node, HD_ERR_ARGUMENT, "makes more than %d other names",
                            HD_MAX_ALIASES);
    put_alias(b, name, of);
    return HD_OK;
}

bool hd_branch_has_row(const hd_branch *branch, hd_role role, int64_t step)
{
    if (!(branch->roles & HD_ROLE_BIT(role))) return false;
    if (step < 0) return true;
    if (branch->at[role] && !branch->at[role][step]) return false;
    return step >= branch->first_step[role] && step < branch->end_step[role];
}

int64_t hd_branches_rows(const hd_branches *b, int64_t step, int64_t pictures, hd_row *row,
                         int *branch_of, hd_role *role_of)
{
    int64_t n = 0;
    for (int i = 0; i < b->count; i++)
        for (int role = 0; role < HD_ROLES; role++) {
            if (b->item[i].aside || !hd_branch_has_row(&b->item[i], (hd_role)role, step)) continue;
            for (int64_t p = 0; p < pictures && n < HD_MAX_ROWS; p++, n++) {
                row[n] = (hd_row){.picture = p, .also = b->item[i].also};
                snprintf(row[n].branch, sizeof row[n].branch, "%s", b->item[i].name);
                snprintf(row[n].role, sizeof row[n].role, "%s", hd_role_names[role]);
                if (branch_of) branch_of[n] = i;
                if (role_of) role_of[n] = (hd_role)role;
            }
        }
    return n;
}
