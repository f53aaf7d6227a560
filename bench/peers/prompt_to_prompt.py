"""A Prompt-to-Prompt edit by diffusers: an attention processor that forms every map and edits those of the target's row.

    python bench/peers/prompt_to_prompt.py FOLDER [--size 512] [--steps 3] [--type f32,bf16] [--plain]

Two pictures with guidance, four rows: the source and the target, whose words pair off one to one; cross-attention maps are replaced at every
site, self-attention maps where a map has at most 32 x 32 queries, as in the method's own release. --plain: the same rows without edit, by
PyTorch's fused attention. Two threads; a line of JSON with the least seconds of a step and the peak memory.
"""
import argparse
import json
import resource
import time

import torch
from diffusers import UNet2DConditionModel


class Replace:
    """Rows: source and target without text, source and target with it."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **unused):
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))
        key = attn.head_to_batch_dim(attn.to_k(text))
        value = attn.head_to_batch_dim(attn.to_v(text))
        maps = attn.get_attention_scores(query, key, attention_mask)
        rows = hidden_states.shape[0]
        by_row = maps.reshape(rows, -1, *maps.shape[1:])
        if encoder_hidden_states is not None or by_row.shape[2] <= 32 * 32:
            by_row[3] = by_row[2]
        out = attn.batch_to_head_dim(torch.bmm(maps, value))
        return attn.to_out[1](attn.to_out[0](out))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--type", default="f32,bf16")
    parser.add_argument("--plain", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(2)
    for name in args.type.split(","):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
        net = UNet2DConditionModel.from_pretrained(args.folder, subfolder="unet", torch_dtype=dtype).eval()
        net.to(memory_format=torch.channels_last)
        if not args.plain:
            net.set_attn_processor(Replace())
        text = torch.randn(4, 77, net.config.cross_attention_dim, dtype=dtype)
        sample = torch.randn(4, 4, args.size // 8, args.size // 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        seconds = []
        with torch.inference_mode():
            for _ in range(args.steps):
                begin = time.perf_counter()
                net(sample, torch.tensor(500.0), text, return_dict=False)
                seconds.append(time.perf_counter() - begin)
        print(json.dumps({"what": "4 rows, plain" if args.plain else "4 rows, prompt-to-prompt", "peer": "diffusers", "type": name,
                          "min_s": round(min(seconds), 3), "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}), flush=True)


main()
