/* pipelines/branches.c: see branches.h. */
#include "pipelines/branches.h"

#include <stddef.h>
#include <string.h>

const hd_param hd_branch_params[] = {
    HD_PARAM_STRING(hd_branch_fields, prompt, .help = "what it shows; the run's when not given"),
    HD_PARAM_STRING(hd_branch_fields, negative, .help = "what it should not show; likewise"),
    HD_PARAM_STRING(hd_branch_fields, init_image, .help = "PNG that it is about"),
    HD_PARAM_INT(hd_branch_fields, width, .def = 0, .min = 0, .max = 32768,
                 .help = "pixels of a reference picture of another size; 0: the run's"),
    HD_PARAM_INT(hd_branch_fields, height, .def = 0, .min = 0, .max = 32768, .help = "likewise"),
    HD_PARAM_BOOL(hd_branch_fields, keep_size,
                  .help = "a reference picture is not fitted to the run's size"),
    HD_PARAM_STRING(hd_branch_fields, start,
                    .help = "branch whose first latent it begins with; main when not given"),
    HD_PARAM_U64(hd_branch_fields, seed, .given_flag = true,
                 .given_offset = offsetof(hd_branch_fields, seed_given),
                 .help = "noise of its own; picture i of a batch has seed + i"),
    HD_PARAM_FLOAT(hd_branch_fields, guidance, .def = 0, .min = 0, .max = 1000, .given_flag = true,
                   .given_offset = offsetof(hd_branch_fields, guidance_given),
                   .help = "the run's when not given"),
    HD_PARAM_BOOL(hd_branch_fields, save, .given_flag = true,
                  .given_offset = offsetof(hd_branch_fields, save_given),
                  .help = "write its picture; main and targets when not given"),
    HD_PARAM_BOOL(hd_branch_fields, follow, .given_flag = true,
                  .given_offset = offsetof(hd_branch_fields, follow_given),
                  .help = "set its latent to its inversion's at every step; "
                          "yes when it has one and is not main"),
    HD_PARAM_JSON(hd_branch_fields, inversion,
                  .help = "take init_image back to noise: an object, or a file that holds it"),
    HD_PARAM_END,
};

typedef struct inversion_fields {
    int64_t steps;
    float guidance;
    int64_t fixed_point;
    hd_pairing pairing;
} inversion_fields;

static const char *const pairings[] = {"next_level", "same_level", NULL};

const hd_param hd_inversion_params[] = {
    HD_PARAM_INT(inversion_fields, steps, .def = 0, .min = 0, .max = 1000,
                 .help = "0: those of the run; more must hold the run's timesteps"),
    HD_PARAM_FLOAT(inversion_fields, guidance, .def = 1, .min = 0, .max = 1000,
                   .help = "classifier-free guidance; 1 and less: none"),
    HD_PARAM_INT(inversion_fields, fixed_point, .def = 0, .min = 0, .max = 20,
                 .help = "repeats of each step with the noise seen at its own result"),
    HD_PARAM_ENUM(inversion_fields, pairing, .def_text = "next_level", .names = pairings,
                  .help = "timestep the network is told: the next level's, or the latent's own"),
    HD_PARAM_END,
};

static hd_status read_inversion(hd_branch *b, const hd_json *node)
{
    inversion_fields f = {0};
    if (!node) return HD_OK;
    HD_TRY(hd_params_default(hd_inversion_params, &f));
    b->invert = true;
    if (hd_json_kind(node) == HD_JSON_STRING)
        HD_TRY(hd_json_to_string(node, &b->inversion.file));
    else {
        HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
        HD_TRY(hd_params_read(hd_inversion_params, &f, node, NULL));
    }
    b->inversion.steps = f.steps;
    b->inversion.guidance = f.guidance;
    b->inversion.fixed_point = f.fixed_point;
    b->inversion.pairing = f.pairing;
    return HD_OK;
}

static void read_main(hd_branch *main_branch, const hd_preset *p)
{
    main_branch->prompt = p->prompt;
    main_branch->negative = p->negative[0] ? p->negative : NULL; // none: a processor may have one
    main_branch->init_image = p->init_image;
    main_branch->seed_given = true;
    main_branch->seed = p->seed;
    main_branch->guidance = p->guidance;
}

static hd_status read_fields(hd_branch *b, hd_branch_fields *f, const hd_json *node)
{
    HD_TRY(hd_json_expect(node, HD_JSON_OBJECT));
    HD_TRY(hd_params_default(hd_branch_params, f));
    HD_TRY(hd_params_read(hd_branch_params, f, node, NULL));
    b->node = node;
    b->prompt = f->prompt;
    b->negative = f->negative;
    b->init_image = f->init_image;
    b->width = f->width;
    b->height = f->height;
    b->keep_size = f->keep_size;
    b->seed_given = f->seed_given;
    b->seed = f->seed;
    b->guidance_given = f->guidance_given;
    b->guidance = f->guidance;
    b->save_given = f->save_given;
    b->save = f->save;
    b->follow_given = f->follow_given;
    b->follow = f->follow;
    return read_inversion(b, f->inversion);
}

// Starts and other names may name branches that stand behind them.
static hd_status read_links(hd_branches *out, const hd_branches_preset *own, const hd_json *node)
{
    for (int64_t i = 0; i < hd_json_count(node); i++) {
        const hd_json *item = hd_json_at(node, i);
        const char *of;
        if (hd_json_kind(item) != HD_JSON_STRING) continue;
        HD_TRY(hd_json_to_string(item, &of));
        int number = hd_branches_find(out, of);
        if (number < 0)
            return hd_json_fail(item, HD_ERR_ARGUMENT, "is \"%s\", which is no branch of this run",
                                of);
        HD_TRY(hd_branches_alias(out, hd_json_key(item), number, item));
    }
    for (int i = 1; i < out->count; i++) {
        const char *start = own->item[i].start;
        if (!start) continue;
        out->item[i].start = hd_branches_find(out, start);
        out->item[i].start_given = true;
        if (out->item[i].start < 0)
            return hd_json_fail(hd_json_get(out->item[i].node, "start"), HD_ERR_ARGUMENT,
                                "is \"%s\", which is no branch of this run", start);
    }
    return HD_OK;
}

hd_status hd_branches_read(hd_branches *out, hd_branches_preset *own, const hd_preset *p,
                           const hd_json *root)
{
    hd_branches_init(out);
    read_main(&out->item[0], p);
    own->count = 1;
    HD_TRY(read_inversion(&out->item[0], hd_json_get(root, "inversion")));
    const hd_json *node = p->branches;
    for (int64_t i = 0; node && i < hd_json_count(node); i++) {
        const hd_json *item = hd_json_at(node, i);
        hd_branch *b;
        if (strcmp(hd_json_key(item), "main") == 0)
            return hd_json_fail(item, HD_ERR_ARGUMENT,
                                "is the run itself: its prompt and the rest stand outside of "
                                "\"branches\"");
        if (hd_json_kind(item) == HD_JSON_STRING) continue;
        HD_TRY(hd_branches_add(out, hd_json_key(item), item, &b));
        own->count = out->count;
        HD_TRY(read_fields(b, &own->item[out->count - 1], item));
    }
    return node ? read_links(out, own, node) : HD_OK;
}

void hd_branches_preset_free(hd_branches_preset *own)
{
    for (int i = 0; i < own->count; i++)
        hd_params_free(hd_branch_params, &own->item[i]);
    own->count = 0;
}

// Where a branch begins, past those that begin as another does.
static hd_status resolve_start(hd_branches *bs, int number, const hd_json *root)
{
    int at = number;
    for (int hops = 0; bs->item[at].start >= 0; hops++) {
        if (hops > bs->count)
            return hd_json_fail(bs->item[number].node ? bs->item[number].node : root,
                                HD_ERR_ARGUMENT, "branch \"%s\" begins with itself, in a circle",
                                bs->item[number].name);
        at = bs->item[at].start;
    }
    bs->item[number].start = at == number ? -1 : at;
    return HD_OK;
}

static void complete_rows(hd_branch *b, bool no_guidance)
{
    bool guided = b->guidance > 1.0f && !no_guidance && !b->follow && !b->not_sampled;
    if (b->roles & HD_ROLES_ASKED) {
        b->roles &= ~HD_ROLES_ASKED;
        return;
    }
    unsigned own = HD_ROLE_BIT(HD_ROLE_COND) | (guided ? HD_ROLE_BIT(HD_ROLE_UNCOND) : 0);
    for (int r = 0; r < HD_ROLES; r++) {
        if (!(own & HD_ROLE_BIT(r))) continue;
        b->first_step[r] = 0;
        b->end_step[r] = INT64_MAX;
        b->at[r] = NULL;
    }
    b->roles |= own;
}

static hd_status complete_branch(hd_branches *bs, int number, const hd_json *root, bool no_guidance)
{
    hd_branch *b = &bs->item[number], *first = &bs->item[0];
    const hd_json *node = b->node ? b->node : root;
    bool own_latent = b->latent == number;
    if (!b->prompt) b->prompt = first->prompt;
    if (!b->negative) b->negative = first->negative ? first->negative : "";
    if (!b->guidance_given) b->guidance = first->guidance;
    if (b->invert && !b->init_image && !b->inversion.file)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "branch \"%s\" has an inversion but no init_image to take back to "
                            "noise",
                            b->name);
    if (!b->follow_given && number > 0 && b->invert) b->follow = true;
    if (b->follow && !b->invert)
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "branch \"%s\" follows an inversion but has none", b->name);
    bool target = strncmp(b->name, "target", 6) == 0;
    if (!b->save_given) b->save = own_latent && !b->not_sampled && (number == 0 || target);
    if (b->save && (!own_latent || b->not_sampled))
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "branch \"%s\" is to be saved, but it is not sampled", b->name);
    bool own_start = b->init_image || b->seed_given || b->invert;
    if (number > 0 && b->start < 0 && !own_start) b->start = 0;
    complete_rows(b, no_guidance);
    if (own_latent && !b->not_sampled && b->guidance_by < 0 &&
        !(b->roles & HD_ROLE_BIT(HD_ROLE_COND)))
        return hd_json_fail(node, HD_ERR_ARGUMENT,
                            "branch \"%s\" has no row \"cond\" and no processor makes its guess",
                            b->name);
    return HD_OK;
}

hd_status hd_branches_complete(hd_branches *bs, const hd_json *root, bool no_guidance)
{
    for (int i = 0; i < bs->count; i++)
        HD_TRY(complete_branch(bs, i, root, no_guidance));
    for (int i = 0; i < bs->count; i++)
        HD_TRY(resolve_start(bs, i, root));
    return HD_OK;
}
