/* engine/attention/beside.c: what a hook beside the call may ask and look up. */
#include "engine/attention/beside.h"

#include <stdio.h>
#include <string.h>

#include "engine/attention/run_internal.h"

static hd_status two_wishes(const hd_branches_ctx *ctx, const char *branch, const char *what)
{
    return hd_json_fail(ctx->node, HD_ERR_ARGUMENT,
                        "wants another %s for branch \"%s\" than a processor before it", what,
                        branch);
}

// The branch that a wish is about: made if nobody has named it yet.
static hd_status asked_branch(hd_branches_ctx *ctx, const char *name, hd_branch **out)
{
    int number = hd_branches_find(ctx->branches, name);
    if (number < 0) return hd_branches_add(ctx->branches, name, ctx->node, out);
    *out = &ctx->branches->item[number];
    return HD_OK;
}

static hd_status other_branch(const hd_branches_ctx *ctx, const char *name, int *number)
{
    *number = hd_branches_find(ctx->branches, name);
    if (*number >= 0) return HD_OK;
    return hd_json_fail(ctx->node, HD_ERR_ARGUMENT,
                        "needs branch \"%s\"; give it one in \"branches\"", name);
}

static hd_status ask_text(const hd_branches_ctx *ctx, const hd_branch *b, const char **have,
                          const char *wish, const char *what)
{
    if (!wish || (b->node && *have)) return HD_OK;
    if (*have && strcmp(*have, wish) != 0) return two_wishes(ctx, b->name, what);
    *have = wish;
    return HD_OK;
}

static void ask_roles(hd_branch *b, const hd_branch_ask *ask)
{
    b->roles |= ask->roles;
    for (int r = 0; r < HD_ROLES; r++) {
        if (!(ask->roles & HD_ROLE_BIT(r))) continue;
        bool first = b->first_step[r] == 0 && b->end_step[r] == INT64_MAX;
        int64_t end = ask->end_step > 0 ? ask->end_step : INT64_MAX;
        // the steps of two wishes are joined to one range that holds both
        bool fresh = first && !(b->asked_roles & HD_ROLE_BIT(r));
        if (fresh || ask->first_step < b->first_step[r]) b->first_step[r] = ask->first_step;
        if (fresh || end > b->end_step[r]) b->end_step[r] = end;
        b->at[r] = fresh || b->at[r] == ask->at ? ask->at : NULL;
        b->asked_roles |= HD_ROLE_BIT(r);
        b->fork[r] = b->fork[r] && !ask->no_fork;
    }
}

static hd_status ask_latent(hd_branches_ctx *ctx, hd_branch *b, const hd_branch_ask *ask)
{
    int self = (int)(b - ctx->branches->item), other = -1;
    if (ask->start && !b->start_given) {
        HD_TRY(other_branch(ctx, ask->start, &other));
        if (b->start >= 0 && b->start != other) return two_wishes(ctx, b->name, "start");
        if (other != self) b->start = other;
    }
    if (ask->latent_of) {
        HD_TRY(other_branch(ctx, ask->latent_of, &other));
        if (b->latent != self && b->latent != other) return two_wishes(ctx, b->name, "latent");
        if (ctx->branches->item[other].latent != other)
            return hd_json_fail(ctx->node, HD_ERR_ARGUMENT,
                                "branch \"%s\" cannot show the latent of \"%s\", which has none of "
                                "its own",
                                b->name, ask->latent_of);
        b->latent = other;
    }
    if (ask->view.source || ask->view.sign) b->view = ask->view;
    b->not_sampled = b->not_sampled || ask->not_sampled;
    b->keep_size = b->keep_size || ask->keep_size;
    if (!b->width) b->width = ask->width;
    if (!b->height) b->height = ask->height;
    if (ask->invert && !b->invert) {
        b->invert = true;
        b->inversion = ask->inversion;
        if (!b->follow_given) b->follow = ask->follow;
        b->follow_given = true; // the wish is whole: an inversion that is not followed
    }
    if (ask->follow && !b->follow_given) b->follow = true;
    return HD_OK;
}

hd_status hd_ask_branch(hd_branches_ctx *ctx, const hd_branch_ask *ask)
{
    hd_branch *b;
    HD_TRY(asked_branch(ctx, ask->branch, &b));
    HD_TRY(ask_text(ctx, b, &b->prompt, ask->prompt, "prompt"));
    HD_TRY(ask_text(ctx, b, &b->negative, ask->negative, "negative prompt"));
    HD_TRY(ask_text(ctx, b, &b->init_image, ask->init_image, "picture"));
    if (ask->init_image && b->init_image == ask->init_image)
        b->image_node = ask->image_node ? ask->image_node : ctx->node;
    b->same_grid = b->same_grid || ask->same_grid;
    if (ask->guidance > 0 && !b->guidance_given && b != ctx->branches->item) {
        b->guidance = ask->guidance;
        b->guidance_given = true;
    }
    ask_roles(b, ask);
    return ask_latent(ctx, b, ask);
}

hd_status hd_ask_text(hd_branches_ctx *ctx, const hd_text *text, int *number)
{
    hd_branches *b = ctx->branches;
    if (b->texts == HD_MAX_TEXTS)
        return hd_json_fail(ctx->node, HD_ERR_ARGUMENT, "needs a text more than the %d of a run",
                            HD_MAX_TEXTS);
    *number = b->texts;
    b->text[b->texts] = *text;
    b->text[b->texts++].processor = ctx->processor;
    return HD_OK;
}

hd_status hd_ask_guidance(hd_branches_ctx *ctx, const char *branch)
{
    int number;
    HD_TRY(other_branch(ctx, branch, &number));
    hd_branch *b = &ctx->branches->item[number];
    if (b->guidance_by >= 0 && b->guidance_by != ctx->processor)
        return hd_json_fail(ctx->node, HD_ERR_UNSUPPORTED,
                            "replaces the guidance of branch \"%s\", which processors[%d] replaces "
                            "already; only one can",
                            b->name, b->guidance_by);
    b->guidance_by = ctx->processor;
    return HD_OK;
}

const hd_prompt *hd_begin_prompt(const hd_begin_ctx *ctx, const char *branch, hd_role role)
{
    int number = hd_branches_find(ctx->branches, branch);
    if (number < 0) return NULL;
    return &ctx->branches->item[number].tokens[role == HD_ROLE_UNCOND ? 0 : 1];
}

const hd_prompt *hd_begin_text(const hd_begin_ctx *ctx, int number)
{
    return &ctx->branches->text[number].tokens;
}

hd_status hd_begin_mask(const hd_begin_ctx *ctx, const hd_json *node, const char *path, float *mask)
{
    return ctx->read_mask(ctx->read_mask_arg, node, path, 0, mask);
}

hd_status hd_begin_branch_mask(const hd_begin_ctx *ctx, const hd_json *node, const char *path,
                               const char *branch, float *mask)
{
    const int number = hd_branches_find(ctx->branches, branch);
    HD_ENSURE(number >= 0);
    return ctx->read_mask(ctx->read_mask_arg, node, path, number, mask);
}

hd_beside_branch *hd_beside(const hd_beside_ctx *ctx, const char *branch)
{
    int number = hd_branches_find(ctx->branches, branch);
    return number < 0 ? NULL : &ctx->data[number];
}

// The link of processor `ctx->processor` at the index-th of its sites.
static const run_link *link_at(const hd_beside_ctx *ctx, int64_t index, const run_site **at)
{
    const run_processor *p = &ctx->run->processor[ctx->processor];
    for (int64_t s = 0; s < ctx->run->site_count; s++) {
        const run_site *site = ctx->run->site[s];
        for (int64_t l = 0; l < site->links; l++) {
            if (site->link[l].processor != p || index-- > 0) continue;
            *at = site;
            return &site->link[l];
        }
    }
    return NULL;
}

const hd_site *hd_beside_site(const hd_beside_ctx *ctx, int64_t index)
{
    const run_site *at = NULL;
    return link_at(ctx, index, &at) ? &at->site : NULL;
}

void *hd_beside_site_state(const hd_beside_ctx *ctx, int64_t index, const char *branch,
                           hd_role role)
{
    const run_site *at = NULL;
    const run_link *link = link_at(ctx, index, &at);
    int number = hd_branches_find(ctx->branches, branch);
    if (!link || number < 0) return NULL;
    for (const run_state *s = link->states; s; s = s->next)
        if (s->row.picture == ctx->picture &&
            strcmp(s->row.branch, ctx->branches->item[number].name) == 0 &&
            strcmp(s->row.role, hd_role_names[role]) == 0)
            return s->bytes;
    return NULL;
}
