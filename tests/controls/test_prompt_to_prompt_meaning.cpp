// Does Prompt-to-Prompt do what its user asked for? Eight prompts, four seeds each, on the starter
// model, in 12 steps; the cases that CI runs take one prompt and two seeds of them, the hidden ones
// ("[meaning]") all. Thresholds lie midway between what was measured with the processor and without
// it.
//
// The prompts give a place, but where the starter draws its object depends on the seed as much as
// on the words (in 15 of 32 pictures it is in the named half): places are taken from the pictures.
#include <algorithm>
#include <array>
#include <map>

#include "pipelines/runner.h"

namespace
{

constexpr int side = 64, cell = 4, across = side / cell; // pixels, pixels of a latent's place
using Mask = std::vector<uint8_t>;                       // [side, side]
using Picture = std::vector<uint8_t>;

struct Colour {
    double r, g, b;
};

// As the starter was taught them.
Colour colour_named(const std::string &name)
{
    static const std::map<std::string, Colour> known = {
        {"red", {214, 48, 49}},    {"orange", {238, 133, 34}}, {"yellow", {247, 209, 60}},
        {"green", {56, 158, 79}},  {"blue", {52, 101, 217}},   {"purple", {131, 66, 184}},
        {"pink", {240, 138, 184}}, {"white", {246, 244, 240}}, {"black", {28, 28, 34}}};
    return known.at(name);
}

double distance(const Picture &p, size_t i, Colour c)
{
    return std::sqrt((p[3 * i] - c.r) * (p[3 * i] - c.r) +
                     (p[3 * i + 1] - c.g) * (p[3 * i + 1] - c.g) +
                     (p[3 * i + 2] - c.b) * (p[3 * i + 2] - c.b));
}

double mean_distance(const Picture &p, const Mask &where, Colour c)
{
    double sum = 0, count = 0;
    for (size_t i = 0; i < where.size(); i++)
        if (where[i]) sum += distance(p, i, c), count++;
    REQUIRE(count > 0);
    return sum / count;
}

// What is unlike the plain background, whose colour most pixels have.
Mask object_of(const Picture &p)
{
    double middle[3];
    for (size_t c = 0; c < 3; c++) {
        std::vector<uint8_t> values;
        for (size_t i = c; i < p.size(); i += 3)
            values.push_back(p[i]);
        std::nth_element(values.begin(), values.begin() + (ptrdiff_t)values.size() / 2,
                         values.end());
        middle[c] = values[values.size() / 2];
    }
    Mask mask(side * side);
    for (size_t i = 0; i < mask.size(); i++)
        mask[i] = distance(p, i, {middle[0], middle[1], middle[2]}) > 70;
    return mask;
}

// What both share of what either has.
double overlap(const Mask &a, const Mask &b)
{
    double both = 0, either = 0;
    for (size_t i = 0; i < a.size(); i++)
        both += a[i] && b[i], either += a[i] || b[i];
    return either > 0 ? both / either : 0;
}

double psnr_outside(const Picture &a, const Picture &b, const Mask &inside)
{
    std::vector<uint8_t> x, y;
    for (size_t i = 0; i < inside.size(); i++)
        for (size_t c = 0; c < 3 && !inside[i]; c++)
            x.push_back(a[3 * i + c]), y.push_back(b[3 * i + c]);
    REQUIRE(x.size() > 0);
    return psnr(x.data(), y.data(), x.size());
}

// Pictures of main, a seed each, and their latents.
struct Drawn {
    std::vector<Picture> picture;
    std::vector<float> latent; // [seeds, 4, across, across]
};

class Draw
{
  public:
    explicit Draw(int count) : seeds(count)
    {
    }
    Drawn operator()(const std::string &prompt, const std::string &more = "")
    {
        const std::string file = folder.path("latents.safetensors");
        auto result = context.run("{" + starter() +
                                  ", \"steps\": 12, \"guidance\": 5, \"sampler\": \"ddim\", "
                                  "\"precision\": \"f32\", \"seed\": 0, \"batch\": " +
                                  std::to_string(seeds) +
                                  ", "
                                  "\"latents_out\": \"" +
                                  file + "\", \"prompt\": \"" + prompt + "\"" + more + "}");
        Drawn d;
        for (int i = 0; i < hd_result_count(result.get()); i++)
            d.picture.push_back(pixels(result.get(), i));
        Fixture f = fixture_open(std::filesystem::relative(file, fixture_path("")).string());
        const FixtureTensor &t = f.at("latents");
        d.latent.assign(t.f32(), t.f32() + t.count());
        return d;
    }

    const int seeds;

  private:
    Context context;
    Folder folder;
};

// The blend's mask, which is where the latents differ in the end, widened by 8 pixels.
Mask widened(const Drawn &a, const Drawn &b, size_t seed)
{
    Mask mask(side * side);
    const size_t places = across * across;
    for (size_t i = 0; i < 4 * places; i++) {
        const size_t at = seed * 4 * places + i;
        if (a.latent[at] == b.latent[at]) continue;
        const int y = (int)(i % places) / across * cell, x = (int)(i % places) % across * cell;
        for (int v = std::max(0, y - 8); v < std::min(side, y + cell + 8); v++)
            for (int u = std::max(0, x - 8); u < std::min(side, x + cell + 8); u++)
                mask[(size_t)(v * side + u)] = 1;
    }
    return mask;
}

struct Words {
    const char *object, *was, *is, *rest;
};

const Words swaps[] = {
    {"fish", "red", "blue", "on the left on a green background"},
    {"star", "yellow", "white", "on the right on a blue background"},
    {"tree", "green", "orange", "on the left on a white background"},
    {"car", "blue", "black", "on the right on a yellow background"},
    {"heart", "red", "purple", "on the left on a white background"},
    {"moon", "white", "yellow", "on the right on a purple background"},
    {"cat", "orange", "blue", "on the left on a green background"},
    {"balloon", "pink", "red", "on the right on a blue background"},
};

std::string sentence(const std::string &colour, const Words &w)
{
    return (colour == "orange" ? "an " : "a ") + colour + " " + w.object + " " + w.rest;
}

// Means over the pictures: with the processor, and without it (the new prompt, the same seed).
struct Swapped {
    double outside[2] = {}, least_outside = 99, shared[2] = {}, colour[2] = {};
    double count = 0;
};

void swap(Draw &draw, const Words &w, Swapped &sum)
{
    const std::string from = sentence(w.was, w), to = sentence(w.is, w);
    const Drawn source = draw(from), off = draw(to),
                on = draw(to, ", \"branches\": {\"source\": {\"prompt\": \"" + from +
                                  R"("}}, "processors": [{"use": "prompt_to_prompt",
                    "self_min_factor": 2, "local_blend": {"source": ")" +
                                  w.object + R"(", "target": ")" + w.object +
                                  R"(", "factor": 1, "th": 0.5}}])");
    for (size_t i = 0; i < on.picture.size(); i++) {
        const Picture &was = source.picture[i];
        const Mask inside = widened(source, on, i), object = object_of(was);
        const double outside = psnr_outside(was, on.picture[i], inside);
        sum.outside[0] += outside;
        sum.least_outside = std::min(sum.least_outside, outside);
        sum.outside[1] += psnr_outside(was, off.picture[i], inside);
        sum.shared[0] += overlap(object, object_of(on.picture[i]));
        sum.shared[1] += overlap(object, object_of(off.picture[i]));
        sum.colour[0] += mean_distance(on.picture[i], object, colour_named(w.is));
        sum.colour[1] += mean_distance(was, object, colour_named(w.is)); // nothing was edited
        sum.count++;
    }
}

// Measured over all: outside 41.4 dB (least 32.8) against 29.9; overlap 0.82 against 0.32; the
// colour 77 from the word's, 197 before.
void check_swapped(Swapped s)
{
    for (double *mean : {s.outside, s.shared, s.colour})
        mean[0] /= s.count, mean[1] /= s.count;
    CAPTURE(s.outside[0], s.outside[1], s.least_outside, s.shared[0], s.shared[1], s.colour[0],
            s.colour[1]);
    CHECK(s.least_outside >= 30.0);
    CHECK((s.outside[0] >= 35.7 && s.outside[1] < 35.7));
    CHECK((s.shared[0] >= 0.57 && s.shared[1] < 0.57));
    CHECK((s.colour[0] <= 137.0 && s.colour[1] > 137.0));
}

// Words whose colour the starter can be moved in: of red, blue, black, white, orange, pink, purple
// it can; of green and yellow it moves by less than one part in 255.
const Words coloured[] = {
    {"fish", "red", "", "on the left on a green background"},
    {"fish", "blue", "", "on the right on a yellow background"},
    {"car", "black", "", "on the right on a yellow background"},
    {"moon", "white", "", "on the right on a purple background"},
    {"cat", "orange", "", "on the left on a green background"},
    {"balloon", "pink", "", "on the right on a blue background"},
    {"heart", "purple", "", "on the left on a white background"},
    {"whale", "blue", "", "on the left on an orange background"},
};

using Moved = std::array<double, 4>; // at the weights -1, 0, 1, 2

// Mean distance of the object's colour from the word's, over four seeds.
Moved weigh(Draw &draw, const Words &w)
{
    const std::string prompt = sentence(w.was, w);
    const Drawn plain = draw(prompt);
    Moved mean{};
    for (size_t k = 0; k < 4; k++) {
        const std::string weight = std::to_string((int)k - 1);
        const Drawn d = draw(prompt, ", \"branches\": {\"source\": {}}, \"processors\": [{\"use\": "
                                     "\"prompt_to_prompt\", \"mode\": \"none\", "
                                     "\"self_min_factor\": 2, \"self_replace_steps\": 0.4, "
                                     "\"weight_steps\": [0, 1], \"weights\": {\"" +
                                         std::string(w.was) + "\": " + weight + "}}]");
        for (size_t i = 0; i < d.picture.size(); i++)
            mean[k] +=
                mean_distance(d.picture[i], object_of(plain.picture[i]), colour_named(w.was)) /
                draw.seeds;
        if (k == 2) CHECK(d.latent == plain.latent); // a weight of 1 is none
    }
    return mean;
}

} // namespace

TEST_CASE("prompt_to_prompt: an object's words are replaced and the background stays",
          "[pipeline][controls][prompt_to_prompt]")
{
    Draw draw(2);
    Swapped sum;
    swap(draw, swaps[0], sum);
    check_swapped(sum);
}

TEST_CASE("prompt_to_prompt: objects' words are replaced and backgrounds stay: all", "[.meaning]")
{
    Draw draw(4);
    Swapped sum;
    for (const Words &w : swaps)
        swap(draw, w, sum);
    check_swapped(sum);
}

// Measured over all: the way from -1 to 2 is 21.9; without weights it is 0, so half is asked for.
TEST_CASE("prompt_to_prompt: a colour word's weight moves the colour",
          "[pipeline][controls][prompt_to_prompt]")
{
    Draw draw(2);
    Moved m = weigh(draw, coloured[2]);
    CAPTURE(m[0], m[1], m[2], m[3]);
    CHECK((m[0] > m[1] && m[1] > m[2] && m[2] > m[3]));
    CHECK(m[0] - m[3] >= 11.0);
}

TEST_CASE("prompt_to_prompt: a colour word's weight moves the colour: all", "[.meaning]")
{
    Draw draw(4);
    double way = 0;
    for (const Words &w : coloured) {
        Moved m = weigh(draw, w);
        CAPTURE(w.object, w.was, m[0], m[1], m[2], m[3]);
        CHECK((m[0] > m[1] && m[1] > m[2] && m[2] > m[3]));
        way += (m[0] - m[3]) / (double)std::size(coloured);
    }
    CAPTURE(way);
    CHECK(way >= 11.0);
}
