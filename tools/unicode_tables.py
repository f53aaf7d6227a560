"""Writes codecs/unicode_tables.c: what the reference CLIP tokenizer knows of Unicode.

    python tools/unicode_tables.py            (needs: pip install tokenizers==0.23.3)

The tables are asked of Hugging Face's `tokenizers`, code point by code point, instead of read from a Unicode
database: its normaliser, its lower-casing and its regular expressions each come from another library with another
version of Unicode, and only asking gives the ids that models were trained with.
"""
import os
from tokenizers import Regex, normalizers

OUT = os.path.join(os.path.dirname(__file__), "..", "codecs", "unicode_tables.c")
POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
HANGUL = range(0xAC00, 0xD7A4)
NFC = normalizers.NFC().normalize_str
NFD = normalizers.NFD().normalize_str
LOWER = normalizers.Lowercase().normalize_str


def ranges(pairs):
    """(code point, value) in ascending order -> [first, last, value]."""
    out = []
    for c, v in pairs:
        if out and out[-1][1] == c - 1 and out[-1][2] == v:
            out[-1][1] = c
        else:
            out.append([c, c, v])
    return out


def classes():
    names = [("HD_UNICODE_SPACE", r"\s"), ("HD_UNICODE_LETTER", r"\p{L}"), ("HD_UNICODE_NUMBER", r"\p{N}")]
    erase = [(n, normalizers.Replace(Regex(r), "").normalize_str) for n, r in names]
    found = []
    for c in POINTS:
        for name, f in erase:
            if f(chr(c)) == "":
                found.append((c, name))
                break
    return ranges(found)


def lowers():
    """Runs of code points, `step` apart, that all move by `delta`. The one that becomes two is the caller's."""
    runs = []
    for c in POINTS:
        low = LOWER(chr(c))
        if low == chr(c) or len(low) > 1:
            assert len(low) == 1 or (c == 0x130 and low == "i\u0307"), hex(c)
            continue
        delta = ord(low) - c
        if runs and runs[-1][3] == delta:
            first, last, step, _ = runs[-1]
            gap = c - last
            if gap == step or (first == last and gap <= 2):
                runs[-1][1:3] = [c, gap]
                continue
        runs.append([c, c, 1, delta])
    return runs


def combining():
    """The combining class: NFD swaps two marks when the first has the higher one."""
    swaps = lambda a, b: a != b and NFD(chr(a) + chr(b)) == chr(b) + chr(a)
    # One mark of each class, from long before any Unicode version that matters here.
    probes = {1: 0x334, 7: 0x93C, 8: 0x3099, 9: 0x94D, 202: 0x321, 214: 0x1DCE, 216: 0x31B, 218: 0x302A, 220: 0x316,
              222: 0x59A, 224: 0x302E, 226: 0x1D16D, 228: 0x5AE, 230: 0x300, 232: 0x315, 233: 0x35C, 234: 0x35D,
              240: 0x345, 84: 0xC55, 91: 0xC56, 103: 0xE38, 107: 0xE48, 118: 0xEB8, 122: 0xEC8, 129: 0xF71,
              130: 0xF72, 132: 0xF74}
    probes.update({10 + i: 0x5B0 + i for i in range(10)} | {19: 0x5B9, 20: 0x5BB, 21: 0x5BC, 22: 0x5BD, 23: 0x5BF,
                  24: 0x5C1, 25: 0x5C2, 26: 0xFB1E, 27: 0x64B, 28: 0x64C, 29: 0x64D, 30: 0x64E, 31: 0x64F, 32: 0x650,
                  33: 0x651, 34: 0x652, 35: 0x670, 36: 0x711})
    order = sorted(probes)
    for low, high in zip(order, order[1:]):
        assert swaps(probes[high], probes[low]) and not swaps(probes[low], probes[high]), (low, high)
    found = []
    for c in POINTS:
        if NFD(chr(c)) != chr(c):
            continue  # decomposed before anybody asks for its class
        above = [v for v in order if swaps(probes[v], c)]  # classes higher than c's
        below = [v for v in order if swaps(c, probes[v])]
        if not above and not below:
            continue
        between = [v for v in order if v not in above and v not in below]
        assert len(between) == 1, hex(c)
        found.append((c, between[0]))
    return ranges(found)


def decompositions():
    """Every canonical decomposition as a pair (b = 0: a single character), and whether NFC undoes it."""
    out = []
    for c in POINTS:
        full = NFD(chr(c))
        if c in HANGUL or full == chr(c):
            continue
        if len(full) == 1:
            out.append((c, ord(full), 0, False))
            continue
        # The prefix recomposes to the first of the pair where that exists; where it does not, the full form of this
        # character is found by its own parts.
        head = NFC(full[:-1])
        if len(head) > 1:
            head = next(h for h in map(chr, POINTS) if NFD(h) == full[:-1])
        out.append((c, ord(head), ord(full[-1]), NFC(head + full[-1]) == chr(c)))
    return out


def rows(lines, per_line):
    return "\n".join("    " + " ".join(lines[i:i + per_line]) for i in range(0, len(lines), per_line))


def main():
    kinds, lows, marks, parts = classes(), lowers(), combining(), decompositions()
    pairs = sorted((a, b, i) for i, (_, a, b, joins) in enumerate(parts) if joins)
    assert len(parts) < 65536
    with open(OUT, "w") as f:
        f.write(f"""/* codecs/unicode_tables.c: classes, lower case, combining classes and canonical pairs, as the
 * reference CLIP tokenizer has them.
 *
 * Generated by tools/unicode_tables.py; do not edit. The data derives from the Unicode Character
 * Database (Unicode licence v3, https://www.unicode.org/license.txt). */
#include "codecs/unicode_tables.h"

// clang-format off
const hd_unicode_range hd_unicode_classes[{len(kinds)}] = {{
{rows([f"{{{a:#x}, {b:#x}, {v}}}," for a, b, v in kinds], 2)}
}};
const size_t hd_unicode_classes_count = {len(kinds)};

const hd_unicode_lower_run hd_unicode_lowers[{len(lows)}] = {{
{rows([f"{{{a:#x}, {b:#x}, {s}, {d}}}," for a, b, s, d in lows], 4)}
}};
const size_t hd_unicode_lowers_count = {len(lows)};

const hd_unicode_range hd_unicode_marks[{len(marks)}] = {{
{rows([f"{{{a:#x}, {b:#x}, {v}}}," for a, b, v in marks], 4)}
}};
const size_t hd_unicode_marks_count = {len(marks)};

const hd_unicode_pair hd_unicode_pairs[{len(parts)}] = {{
{rows([f"{{{c:#x}, {a:#x}, {b:#x}}}," for c, a, b, _ in parts], 4)}
}};
const size_t hd_unicode_pairs_count = {len(parts)};

const uint16_t hd_unicode_joins[{len(pairs)}] = {{
{rows([f"{i}," for _, _, i in pairs], 16)}
}};
const size_t hd_unicode_joins_count = {len(pairs)};
""")
    print(len(kinds), "class ranges,", len(lows), "lower runs,", len(marks), "mark ranges,", len(parts), "pairs,",
          len(pairs), "joins")


main()
