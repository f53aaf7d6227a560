"""A learned word for the starter model, made of words it knows: presets/customize/plum.safetensors.

    python3 tools/learned_colours.py

Textual inversion finds such vectors by training; for an example they are put together: the token <plum> is two vectors, the
mean of the embeddings of "purple" and "pink" and that of "apple". Needs numpy and safetensors. In the layout of diffusers.
"""
import json
import pathlib

import numpy as np
from safetensors.numpy import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parents[1]
STARTER = ROOT / "models" / "starter-image"


def main():
    vocabulary = json.loads((STARTER / "tokenizer" / "vocab.json").read_text())
    weights = load_file(STARTER / "text_encoder" / "model.safetensors")
    table = next(value for name, value in weights.items() if name.endswith("token_embedding.weight")).astype(np.float32)
    vector = lambda word: table[vocabulary[word + "</w>"]]
    plum = np.stack([(vector("purple") + vector("pink")) / 2, vector("apple")])
    save_file({"<plum>": plum}, ROOT / "presets" / "customize" / "plum.safetensors")


main()
