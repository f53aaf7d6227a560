"""Writes the silhouettes of the paper-cut scenes: atlas.npz with `names` and `alpha` [shapes, side, side] u8.

    apt-get install fonts-noto-color-emoji unicode-cldr-core && pip install fonttools pillow numpy
    python make_atlas.py /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf /usr/share/unicode/cldr/common/annotations/en.xml

The outlines are those of Noto Color Emoji (SIL Open Font License 1.1); names are Unicode CLDR's (Unicode licence).
"""
import io
import os
import sys
import xml.etree.ElementTree as ET

import numpy as np
from fontTools.ttLib import TTFont
from PIL import Image

SIDE = 72
STRIKE = 140  # pixels of a bitmap in the font, with its margin
HERE = os.path.dirname(os.path.abspath(__file__))

# CLDR's name of the sprite, where it is not the word a caption uses
CLDR_NAMES = {
    "moon": "crescent moon", "tree": "deciduous tree", "fish": "tropical fish", "heart": "red heart", "car": "automobile",
    "umbrella": "umbrella with rain drops", "whale": "spouting whale", "apple": "red apple", "cat": "cat face", "rabbit": "rabbit face",
    "leaf": "maple leaf",
}


def sprites(font_path, cldr_path, shapes):
    """shape -> [SIDE, SIDE] alpha."""
    wanted = {CLDR_NAMES.get(shape, shape): shape for shape in shapes}
    font = TTFont(font_path)
    bitmaps = font["CBDT"].strikeData[0]
    spoken = {a.get("cp").replace("\ufe0f", ""): a.text for a in ET.parse(cldr_path).getroot().iter("annotation") if a.get("type") == "tts"}
    found = {}
    for code, glyph in font.getBestCmap().items():
        shape = wanted.get(spoken.get(chr(code)))
        if shape is None or glyph not in bitmaps or shape in found:
            continue
        image = Image.open(io.BytesIO(bitmaps[glyph].imageData)).convert("RGBA")
        padded = Image.new("RGBA", (STRIKE, STRIKE))
        padded.paste(image, ((STRIKE - image.width) // 2, (STRIKE - image.height) // 2))
        found[shape] = np.asarray(padded.resize((SIDE, SIDE), Image.LANCZOS))[..., 3]
    return found


def main(font_path, cldr_path):
    from papercut import SHAPES

    found = sprites(font_path, cldr_path, SHAPES)
    missing = [shape for shape in SHAPES if shape not in found]
    if missing:
        sys.exit("not in the font: " + ", ".join(missing))
    np.savez_compressed(os.path.join(HERE, "atlas.npz"), names=np.array(SHAPES), alpha=np.stack([found[shape] for shape in SHAPES]))


if __name__ == "__main__":
    main(*sys.argv[1:3])
