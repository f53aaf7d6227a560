#include "support/network.h"

#include <algorithm>
#include <sstream>

NameList::NameList(const std::string &text,
                   const std::function<std::string(const std::string &)> &rename)
{
    std::stringstream lines(text);
    std::string line;
    while (std::getline(lines, line)) {
        std::stringstream words(line);
        std::string name;
        hd_shape shape{};
        words >> name;
        while (words >> shape.dim[shape.rank])
            shape.rank++;
        shape.dim[shape.rank] = 0;
        names.push_back(rename ? rename(name) : name);
        shapes.push_back(shape);
    }
}

std::vector<hd_weight_info> NameList::infos() const
{
    std::vector<hd_weight_info> out;
    for (size_t i = 0; i < names.size(); i++)
        out.push_back({names[i].c_str(), "names.txt", HD_F32, shapes[i],
                       hd_shape_count(shapes[i]) * 4, 0, 0});
    std::sort(out.begin(), out.end(), [](const hd_weight_info &a, const hd_weight_info &b) {
        return std::string(a.name) < b.name;
    });
    return out;
}
