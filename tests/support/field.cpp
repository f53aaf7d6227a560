#include "support/field.h"

#include <cmath>
#include <random>

namespace
{

using Field = std::vector<std::vector<double>>; // [tokens][channels]

struct Grid {
    int64_t frames, height, width;
    int64_t tokens() const
    {
        return frames * height * width;
    }
};

// Four plane waves per channel; `waves`: their typical number across 32 tokens.
Field smooth(const Grid &g, int64_t channels, double waves, std::mt19937_64 &rng)
{
    const double pi = 3.14159265358979323846;
    std::normal_distribution<double> normal;
    std::uniform_real_distribution<double> phase(0.0, 2 * pi);
    Field f((size_t)g.tokens(), std::vector<double>((size_t)channels));
    for (int64_t c = 0; c < channels; c++)
        for (int wave = 0; wave < 4; wave++) {
            const double a = normal(rng) / std::sqrt(2.0), at = phase(rng);
            const double step[3] = {waves * normal(rng), waves * normal(rng), waves * normal(rng)};
            for (int64_t t = 0; t < g.tokens(); t++) {
                double x = step[0] * (double)(t / (g.height * g.width)) +
                           step[1] * (double)(t / g.width % g.height) +
                           step[2] * (double)(t % g.width);
                f[(size_t)t][(size_t)c] += a * std::cos(2 * pi * x / 32 + at);
            }
        }
    return f;
}

// 0.7 of one field and 0.3 of another, of length sqrt(channels) each token.
Field mixed(const Field &a, const Field &b)
{
    Field f = a;
    for (size_t t = 0; t < f.size(); t++) {
        double square = 0;
        for (size_t c = 0; c < f[t].size(); c++) {
            f[t][c] = 0.7 * a[t][c] + 0.3 * b[t][c];
            square += f[t][c] * f[t][c];
        }
        for (double &x : f[t])
            x /= std::sqrt(square / (double)f[t].size());
    }
    return f;
}

// Each axis of more than one token has a part of the channels, turned in pairs.
void turn(Field &f, const Grid &g)
{
    const int64_t axes = g.frames > 1 ? 3 : 2;
    const size_t part = f[0].size() / (size_t)axes, pairs = part / 2;
    for (int64_t t = 0; t < g.tokens(); t++) {
        const int64_t place[3] = {t % g.width, t / g.width % g.height, t / (g.height * g.width)};
        for (size_t axis = 0; axis < (size_t)axes; axis++)
            for (size_t i = 0; i < pairs; i++) {
                double angle = (double)place[axis] * std::pow(100.0, -(double)i / (double)pairs);
                double &a = f[(size_t)t][axis * part + i];
                double &b = f[(size_t)t][axis * part + pairs + i];
                const double x = a * std::cos(angle) - b * std::sin(angle);
                b = a * std::sin(angle) + b * std::cos(angle);
                a = x;
            }
    }
}

void put(Values &to, int64_t row, int64_t head, const Field &f, double factor)
{
    std::vector<double> flat;
    for (const auto &token : f)
        for (double x : token)
            flat.push_back(x * factor);
    PlanInput::put(to, row, head, flat);
}

} // namespace

void fill_field(PlanInput &in, uint64_t seed, double sharpness)
{
    std::mt19937_64 rng(seed);
    const hd_token_segment &s = in.call.q_layout.segment[0];
    const Grid g{s.frames, s.height, s.width};
    for (int64_t b = 0; b < in.rows; b++)
        for (int64_t h = 0; h < in.heads; h++) {
            const Field common = smooth(g, in.dim, 1.5, rng);
            Field q = mixed(common, smooth(g, in.dim, 1.5, rng));
            Field k = mixed(common, smooth(g, in.dim, 1.5, rng));
            turn(q, g);
            turn(k, g);
            put(in.q, b, h, q, sharpness);
            put(in.k, b, h, k, 1.0);
            put(in.v, b, h, smooth(g, in.dim, 3.0, rng), 1.0);
        }
}

double effective_keys(const std::vector<std::vector<double>> &map)
{
    double mean = 0;
    for (const auto &row : map) {
        double entropy = 0;
        for (double p : row)
            entropy -= p > 0 ? p * std::log(p) : 0;
        mean += std::exp(entropy) / (double)map.size();
    }
    return mean;
}
