// Orders of a token grid: published and hand-made examples, every token once, boxes where the
// cut says, inverses, and the calls whose tokens are no grid.
#include <algorithm>
#include <random>

#include "engine/attention/planner/orders.h"
#include "support/catch.h"

namespace
{

using Order = std::vector<int32_t>;

struct Windows {
    Order order, bound;
    Windows(hd_grid grid, std::vector<hd_cut> cut)
        : order((size_t)hd_grid_tokens(&grid)), bound((size_t)hd_order_boxes(&grid, cut.data()) + 1)
    {
        hd_order_windows(order.data(), bound.data(), &grid, cut.data());
    }
};

Order axes(hd_grid grid, int which)
{
    Order order((size_t)hd_grid_tokens(&grid));
    hd_order_axes(order.data(), &grid, which);
    return order;
}

bool permutation(Order order, int64_t first)
{
    std::sort(order.begin(), order.end());
    for (size_t i = 0; i < order.size(); i++)
        if (order[i] != first + (int64_t)i) return false;
    return true;
}

hd_attention_call call_of(hd_token_layout q, hd_token_layout k)
{
    hd_attention_call call{};
    call.q_layout = q;
    call.k_layout = k;
    for (int i = 0; i < q.segments; i++)
        call.q.dim[1] += q.segment[i].count;
    for (int i = 0; i < k.segments; i++)
        call.k.dim[1] += k.segment[i].count;
    return call;
}

} // namespace

TEST_CASE("orders: windows of a grid, row-major in and among them", "[orders]")
{
    CHECK(Windows({{1, 4, 4}, 0}, {{1, 0, 1}, {2, 0, 1}, {2, 0, 1}}).order ==
          Order{0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15});
    CHECK(Windows({{1, 1, 8}, 0}, {{1, 0, 1}, {1, 0, 1}, {2, 0, 2}}).order ==
          Order{0, 2, 4, 6, 1, 3, 5, 7});
    Windows dilated({{1, 1, 7}, 0}, {{1, 0, 1}, {1, 0, 1}, {2, 0, 2}});
    CHECK(dilated.order == Order{0, 2, 4, 6, 1, 3, 5});
    CHECK(dilated.bound == Order{0, 2, 4, 6, 7});
    Windows ragged({{1, 3, 5}, 0}, {{1, 0, 0}, {2, 0, 0}, {4, 0, 0}});
    CHECK(ragged.order == Order{0, 1, 2, 3, 5, 6, 7, 8, 4, 9, 10, 11, 12, 13, 14});
    CHECK(ragged.bound == Order{0, 8, 10, 14, 15});
    Windows behind_text({{1, 2, 2}, 7}, {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}});
    CHECK(behind_text.order == Order{7, 8, 9, 10});
}

TEST_CASE("orders: a shifted cut has a short first piece", "[orders]")
{
    Windows line({{1, 1, 7}, 0}, {{1, 0, 0}, {1, 0, 0}, {4, 2, 0}});
    CHECK(line.bound == Order{0, 2, 6, 7});
    Windows square({{1, 4, 4}, 0}, {{1, 0, 0}, {2, 1, 0}, {2, 1, 0}});
    CHECK(square.bound == Order{0, 1, 3, 4, 6, 10, 12, 13, 15, 16});
    CHECK(square.order == Order{0, 1, 2, 3, 4, 8, 5, 6, 9, 10, 7, 11, 12, 13, 14, 15});
    hd_cut longer{8, 4, 0};
    CHECK(hd_cut_pieces(longer, 3) == 1);
    CHECK(hd_cut_piece(longer, 3, 0).count == 3);
}

TEST_CASE("orders: the six axis orders", "[orders]")
{
    const hd_grid grid{{2, 3, 4}, 0};
    const Order first[] = {{0, 1, 2, 3, 4, 5, 6, 7},     {0, 4, 8, 1, 5, 9, 2, 6},
                           {0, 12, 1, 13, 2, 14, 3, 15}, {0, 1, 2, 3, 12, 13, 14, 15},
                           {0, 12, 4, 16, 8, 20, 1, 13}, {0, 4, 8, 12, 16, 20, 1, 5}};
    const int64_t lands[] = {14, 18, 5, 6, 13, 15}; // token 14 = (1, 0, 2)
    for (int o = 0; o < HD_AXIS_ORDERS; o++) {
        CAPTURE(hd_axis_orders[o]);
        Order order = axes(grid, o), inverse(order.size()), round(order.size());
        CHECK(Order(order.begin(), order.begin() + 8) == first[o]);
        hd_order_invert(inverse.data(), order.data(), (int64_t)order.size());
        CHECK(inverse[14] == lands[o]);
        hd_order_invert(round.data(), inverse.data(), (int64_t)order.size());
        CHECK(round == order);
    }
    CHECK(axes({{1, 2, 3}, 0}, 2) == axes({{1, 2, 3}, 0}, 0)); // a picture: HW
    CHECK(axes({{1, 2, 3}, 0}, 4) == Order{0, 3, 1, 4, 2, 5}); // and WH
}

TEST_CASE("orders: random grids: each token once, boxes as cut", "[orders]")
{
    uint32_t seed = GENERATE(1u, 2u, 3u);
    CAPTURE(seed);
    std::mt19937 random(seed);
    auto up_to = [&](int64_t most) { return 1 + (int64_t)(random() % (uint64_t)most); };
    for (int trial = 0; trial < 100; trial++) {
        hd_grid grid{{up_to(6), up_to(9), up_to(11)}, (int64_t)(random() % 3)};
        std::vector<hd_cut> cut(3);
        for (hd_cut &c : cut) {
            c.extent = up_to(7);
            c.shift = (int64_t)(random() % (uint64_t)c.extent);
            c.dilation = (int64_t)(random() % 4);
        }
        Windows w(grid, cut);
        REQUIRE(permutation(w.order, grid.token));
        int64_t longest = 0;
        for (size_t box = 0; box + 1 < w.bound.size(); box++) {
            REQUIRE(w.bound[box] < w.bound[box + 1]);
            longest = std::max<int64_t>(longest, w.bound[box + 1] - w.bound[box]);
            std::vector<std::vector<int64_t>> name; // of each token: group and piece on each axis
            for (int32_t r = w.bound[box]; r < w.bound[box + 1]; r++) {
                int64_t t = w.order[(size_t)r] - grid.token;
                int64_t x[3] = {t / (grid.size[1] * grid.size[2]), t / grid.size[2] % grid.size[1],
                                t % grid.size[2]};
                std::vector<int64_t> at;
                for (int i = 0; i < 3; i++) {
                    int64_t d = std::max<int64_t>(cut[(size_t)i].dilation, 1);
                    at.push_back(x[i] % d);
                    at.push_back(hd_cut_piece_of(cut[(size_t)i], x[i] / d));
                }
                name.push_back(at);
            }
            REQUIRE(std::count(name.begin(), name.end(), name[0]) == (int64_t)name.size());
        }
        REQUIRE(longest == hd_order_longest_box(&grid, cut.data()));
    }
}

TEST_CASE("orders: tokens beside the grid go behind it", "[orders]")
{
    hd_grid grid{{1, 1, 3}, 2};
    Order order(8);
    hd_order_axes(order.data(), &grid, 0);
    hd_order_tail(order.data(), &grid, 8);
    CHECK(order == Order{2, 3, 4, 0, 1, 5, 6, 7});
}

TEST_CASE("orders: the grid of a call", "[orders]")
{
    hd_token_layout text = hd_layout_text(5), square = hd_layout_grid(1, 4, 4);
    hd_token_layout joint = hd_layout_text(5);
    joint.segments = 2;
    joint.segment[1] = {HD_TOKENS_GRID, 5, 12, 2, 2, 3};
    hd_grid grid{};
    hd_attention_call good = call_of(joint, joint);
    REQUIRE_OK(hd_grid_of_call(&grid, &good));
    CHECK(grid.token == 5);
    CHECK(hd_grid_tokens(&grid) == 12);
    hd_attention_call cross = call_of(square, text), other = call_of(square, joint);
    CHECK_FAILS(hd_grid_of_call(&grid, &cross), HD_ERR_UNSUPPORTED, "its keys are not one grid");
    CHECK_FAILS(hd_grid_of_call(&grid, &other), HD_ERR_UNSUPPORTED, "for self attention");
    hd_attention_call moved = call_of(joint, joint);
    moved.k_layout.segment[1].start = 6;
    CHECK_FAILS(hd_grid_of_call(&grid, &moved), HD_ERR_UNSUPPORTED, "query 5 and at key 6");
}
