/* pipelines/chain.c: see chain.h. */
#include "pipelines/chain.h"

#include "engine/options/json_write.h"

static void write_branches(hd_json_writer *w, const generation *g)
{
    hd_json_write_array(w, "branches");
    for (int b = 0; b < g->branches.count; b++) {
        const hd_branch *is = &g->branches.item[b];
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "name", is->name);
        if (is->also[0]) {
            hd_json_write_array(w, "also");
            for (int i = 0; is->also[i]; i++)
                hd_json_write_string(w, NULL, is->also[i]);
            hd_json_write_end(w, ']');
        }
        hd_json_write_array(w, "rows");
        for (int role = 0; role < HD_ROLES; role++)
            if (hd_branch_has_row(is, (hd_role)role, -1))
                hd_json_write_string(w, NULL, hd_role_names[role]);
        hd_json_write_end(w, ']');
        if (is->start >= 0) hd_json_write_string(w, "start", g->branches.item[is->start].name);
        if (is->latent != b)
            hd_json_write_string(w, "latent_of", g->branches.item[is->latent].name);
        if (is->invert) hd_json_write_bool(w, "inverted", true);
        if (is->follow) hd_json_write_bool(w, "follows", true);
        if (is->guidance_by >= 0) hd_json_write_int(w, "guidance_by", is->guidance_by);
        hd_json_write_bool(w, "saved", is->save);
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

static void write_processors(hd_json_writer *w, const generation *g)
{
    const char *name;
    char hooks[96];
    int64_t first, end;
    hd_json_write_array(w, "processors");
    for (int64_t i = 0;
         hd_beside_run_describe(g->beside, i, &name, &first, &end, hooks, sizeof hooks); i++) {
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "use", name);
        hd_json_write_int(w, "first_step", first);
        hd_json_write_int(w, "end_step", end);
        hd_json_write_string(w, "beside", hooks);
        hd_json_write_array(w, "features");
        const char *path;
        int asked;
        for (int64_t f = 0; (path = hd_features_asked(g->features, f, &asked)); f++)
            if (asked == i) hd_json_write_string(w, NULL, path);
        hd_json_write_end(w, ']');
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

static void write_ranges(hd_json_writer *w, const generation *g, int64_t site)
{
    char names[1024], kernel[512];
    int64_t first, end;
    hd_json_write_array(w, "ranges");
    for (int64_t i = 0; hd_attention_run_range(g->attention, site, i, &first, &end, names,
                                               sizeof names, kernel, sizeof kernel);
         i++) {
        hd_json_write_object(w, NULL);
        hd_json_write_int(w, "first_step", first);
        hd_json_write_int(w, "end_step", end);
        hd_json_write_string(w, "processors", names);
        hd_json_write_string(w, "kernel", kernel);
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

static void write_sites(hd_json_writer *w, const generation *g)
{
    hd_json_write_array(w, "sites");
    for (int64_t i = 0; i < hd_attention_run_sites(g->attention); i++) {
        const hd_site *site = hd_attention_run_site(g->attention, i);
        char text[96];
        hd_json_write_object(w, NULL);
        hd_json_write_string(w, "site", hd_site_text(text, sizeof text, site));
        hd_json_write_int(w, "tokens", site->tokens);
        hd_json_write_int(w, "heads", site->heads);
        write_ranges(w, g, i);
        hd_json_write_end(w, '}');
    }
    hd_json_write_end(w, ']');
}

hd_status hd_chain_write(char **json, const generation *g)
{
    hd_json_writer w = {0};
    hd_json_write_object(&w, NULL);
    hd_json_write_string(&w, "model", g->preset->model);
    hd_json_write_string(&w, "sampler", hd_sampler_name(g->sampler));
    hd_json_write_int(&w, "calls", g->calls);
    hd_json_write_int(&w, "rows", g->rows.count / g->group);
    hd_json_write_string(&w, "fork", g->fork_path[0] ? g->fork_path : NULL);
    write_branches(&w, g);
    write_processors(&w, g);
    write_sites(&w, g);
    hd_json_write_end(&w, '}');
    return hd_json_writer_take(&w, json);
}
