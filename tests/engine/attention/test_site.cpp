// Site selectors and row names: what they match, what they refuse.
#include <cstring>

#include "engine/attention/rows.h"
#include "engine/attention/site.h"
#include "support/catch.h"

static hd_site site(const char *path, hd_site_kind kind = HD_SITE_SELF, int64_t factor = 1,
                    int64_t tokens = 4096, hd_network network = HD_NETWORK_UNET)
{
    hd_site s = {network, kind, {}, factor, 8, tokens};
    strcpy(s.path, path);
    return s;
}

static bool matches(const char *text, const hd_site &s)
{
    hd_site_selector selector;
    REQUIRE_OK(hd_site_selector_parse(&selector, text));
    return hd_site_matches(&selector, &s);
}

TEST_CASE("site: paths, stars and the depth of a transformer", "[attention]")
{
    CHECK(matches("down.1.attn.0", site("down.1.attn.0")));
    CHECK_FALSE(matches("down.1.attn.0", site("down.1.attn.1")));
    CHECK_FALSE(matches("down.1.attn.1", site("down.1.attn.10")));
    CHECK(matches("down.1.attn.0", site("down.1.attn.0.3")));
    CHECK_FALSE(matches("down.1.attn.0.2", site("down.1.attn.0.3")));
    CHECK_FALSE(matches("down.1.attn.0.2", site("down.1.attn.0")));
    CHECK(matches("up.*.attn.*", site("up.2.attn.1")));
    CHECK_FALSE(matches("up.*.attn.*", site("down.2.attn.1")));
    CHECK(matches("up.**", site("up.2.attn.1.4")));
    CHECK(matches("**", site("mid.attn.0")));
    CHECK_FALSE(matches("up", site("up.2.attn.1")));
    CHECK(matches("mid self", site("mid.attn.0.3")));
    CHECK_FALSE(matches("mid self", site("up.2.attn.1")));
    CHECK(matches("block.** joint", site("block.17", HD_SITE_JOINT, 1, 64, HD_NETWORK_DIT)));
}

TEST_CASE("site: networks, kinds and conditions", "[attention]")
{
    CHECK_FALSE(matches("**", site("block.1", HD_SITE_SELF, 1, 77, HD_NETWORK_TEXT)));
    CHECK(matches("text:block.*", site("block.1", HD_SITE_SELF, 1, 77, HD_NETWORK_TEXT)));
    CHECK(matches("vae:", site("mid.attn.0", HD_SITE_SELF, 8, 4096, HD_NETWORK_VAE)));
    CHECK_FALSE(matches("cross", site("up.2.attn.1", HD_SITE_SELF)));
    CHECK(matches("cross", site("up.2.attn.1", HD_SITE_CROSS)));
    CHECK(matches("up.*.attn.* self factor<=2", site("up.2.attn.1", HD_SITE_SELF, 2)));
    CHECK_FALSE(matches("up.*.attn.* self factor<2", site("up.2.attn.1", HD_SITE_SELF, 2)));
    CHECK(matches("tokens>=4096 heads==8", site("up.2.attn.1")));
    CHECK_FALSE(matches("tokens>4096", site("up.2.attn.1")));
    CHECK_FALSE(matches("heads!=8", site("up.2.attn.1")));
}

TEST_CASE("site: what is not understood is named", "[attention]")
{
    hd_site_selector s;
    CHECK_FAILS(hd_site_selector_parse(&s, ""), HD_ERR_ARGUMENT, "is empty");
    CHECK_FAILS(hd_site_selector_parse(&s, "upp.1"), HD_ERR_ARGUMENT, "\"upp.1\" is no path");
    CHECK_FAILS(hd_site_selector_parse(&s, "unett:up.1"), HD_ERR_ARGUMENT,
                "\"unett\" is no network");
    CHECK_FAILS(hd_site_selector_parse(&s, "up.** self factor<=x"), HD_ERR_ARGUMENT,
                "\"factor<=x\" must end in");
    CHECK_FAILS(hd_site_selector_parse(&s, "up.** factor<1 factor<2 factor<3 factor<4 factor<5"),
                HD_ERR_ARGUMENT, "more than 4 conditions");
    CHECK_FAILS(hd_site_selector_parse(&s, std::string(300, 'u').c_str()), HD_ERR_ARGUMENT,
                "longer than");
}

static hd_row row(const char *branch, const char *role)
{
    hd_row r = {};
    strcpy(r.branch, branch);
    strcpy(r.role, role);
    return r;
}

TEST_CASE("rows: roles mean main, branches mean every role", "[attention]")
{
    hd_row main_cond = row("main", "cond"), source = row("source", "uncond"),
           target = row("target.1", "cond");
    CHECK(hd_row_matches("cond", &main_cond));
    CHECK_FALSE(hd_row_matches("cond", &target));
    CHECK(hd_row_matches("main/cond", &main_cond));
    CHECK(hd_row_matches("source", &source));
    CHECK_FALSE(hd_row_matches("source/cond", &source));
    CHECK(hd_row_matches("target", &target));
    CHECK(hd_row_matches("target.1/cond", &target));
    CHECK_FALSE(hd_row_matches("target.11", &target));
    CHECK(hd_row_matches("*", &source));
    REQUIRE_OK(hd_row_selector_check("target.12/uncond"));
    REQUIRE_OK(hd_row_selector_check("view.0"));
    CHECK_FAILS(hd_row_selector_check("targets"), HD_ERR_ARGUMENT, "\"targets\" names no row");
    CHECK_FAILS(hd_row_selector_check("source.1"), HD_ERR_ARGUMENT, "names no row");
    CHECK_FAILS(hd_row_selector_check("main/conditional"), HD_ERR_ARGUMENT, "names no row");
    CHECK_FAILS(hd_row_selector_check("target.x"), HD_ERR_ARGUMENT, "names no row");
}
