"""A PyTorch pickle with learned tensors (.pt, .bin, .ckpt) as safetensors, beside it.

    python3 tools/pickle_to_safetensors.py cat.pt [cat.safetensors]

For textual-inversion embeddings (of diffusers and of the web UI) and for Custom Diffusion's or LoRA's keys and values. The
file is read with weights_only=True: nothing in it is run. Needs torch and safetensors.
"""
import pathlib
import sys

import torch
from safetensors.torch import save_file


def flat(state):
    if "string_to_param" in state:  # the web UI's embedding
        return {"emb_params": state["string_to_param"]["*"]}
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def main():
    source = pathlib.Path(sys.argv[1])
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".safetensors")
    tensors = flat(torch.load(source, map_location="cpu", weights_only=True))
    if not tensors:
        sys.exit(f"{source}: holds no tensors by name")
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, target)
    print(target, ", ".join(f"{name} {list(value.shape)}" for name, value in tensors.items()))


main()
