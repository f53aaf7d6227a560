/* tests/support/prompt.h: prompts as a tokenizer would hand them over, without one. */
#ifndef HD_TESTS_SUPPORT_PROMPT_H
#define HD_TESTS_SUPPORT_PROMPT_H

#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "engine/attention/words.h"

/* A prompt of words between spaces; "neo+classical" is one word in two pieces. Ids: same piece,
 * same id. */
struct Prompt {
    std::string text;
    std::vector<hd_prompt_token> tokens;
    hd_prompt p{};

    explicit Prompt(const std::string &words, size_t columns = 77)
    {
        static std::map<std::string, int64_t> ids;
        tokens.push_back({49406, 0, 0, -1});
        std::istringstream in(words);
        std::string word;
        for (int64_t n = 0; in >> word; n++) {
            if (n) text += ' ';
            std::istringstream pieces(word);
            std::string piece;
            while (std::getline(pieces, piece, '+')) {
                int64_t id = ids.emplace(piece, (int64_t)ids.size() + 1).first->second;
                auto start = (int64_t)text.size();
                text += piece;
                tokens.push_back({id, start, (int64_t)text.size(), n});
            }
        }
        tokens.push_back({49407, 0, 0, -1});
        p.used = (int64_t)tokens.size();
        tokens.resize(columns, hd_prompt_token{49407, 0, 0, -1});
        p.count = (int64_t)columns;
        p.text = text.c_str();
        p.token = tokens.data();
    }
    Prompt(const Prompt &) = delete;
};

#endif
