"""PyTorch beside `heddle bench attention`: dense scaled_dot_product_attention, and compiled FlexAttention on the CPU,
dense and with the mask of a strided window (the rule of "gna"; Hassani et al., Generalized Neighborhood Attention).

Needs torch and a C++ compiler. The table has the columns of heddle bench: ms min and median, ratio to PyTorch's own
fastest dense, relative L1 error to it in f32.

    python bench/peers/attention_plan.py --grid 128,128 --window 64,64 --stride 8,8 --heads 2 --head-dim 64
"""

import argparse
import time

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention


def numbers(text):
    return [int(n) for n in text.split(",")]


def window_starts(length, window, stride):
    """Of every coordinate of an axis the first one it sees: the group's middle decides, pushed back at the borders."""
    starts = []
    for i in range(length):
        lead = min(i // stride * stride + stride // 2, length - 1)
        starts.append(min(max(lead - window // 2, 0), length - window))
    return starts


def tile_order(grid, tile):
    """Tokens tile by tile, so that blocks of the mask are compact in the grid."""
    tokens = torch.arange(torch.Size(grid).numel()).reshape(grid)
    pieces = [tokens]
    for axis, size in enumerate(tile):
        pieces = [part for piece in pieces for part in piece.split(size, dim=axis)]
    return torch.cat([piece.reshape(-1) for piece in pieces])


def window_mask(grid, window, stride, order):
    coordinate = torch.stack(torch.meshgrid(*[torch.arange(n) for n in grid], indexing="ij")).reshape(len(grid), -1)
    starts = [torch.tensor(window_starts(*axis)) for axis in zip(grid, window, stride)]
    first = torch.stack([start[x] for start, x in zip(starts, coordinate)])[:, order].contiguous()
    place = coordinate[:, order].contiguous()

    def sees(batch, head, query, key):
        seen = (place[0][key] >= first[0][query]) & (place[0][key] < first[0][query] + window[0])
        for axis in range(1, len(grid)):
            at = place[axis][key] - first[axis][query]
            seen = seen & (at >= 0) & (at < window[axis])
        return seen

    return sees


def measure(call, repeats):
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        out = call()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds), out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=numbers, default=[128, 128])
    parser.add_argument("--window", type=numbers)
    parser.add_argument("--stride", type=numbers)
    parser.add_argument("--tile", type=numbers, help="of the tokens' order; default 8,16 or 2,8,8")
    parser.add_argument("--heads", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    o = parser.parse_args()
    o.grid = [n for n in o.grid if n > 1]
    window = o.window or [n // 2 for n in o.grid]
    stride = o.stride or [1] * len(o.grid)
    tile = o.tile or ([8, 16] if len(o.grid) == 2 else [2, 8, 8])
    torch.set_num_threads(o.threads)
    torch.manual_seed(1)
    tokens = torch.Size(o.grid).numel()
    q, k, v = (torch.randn(1, o.heads, tokens, o.head_dim) for _ in range(3))
    sdpa = torch.nn.functional.scaled_dot_product_attention
    flex = torch.compile(flex_attention)
    order = tile_order(o.grid, tile)
    mask = create_block_mask(window_mask(o.grid, window, stride, order), None, None, tokens, tokens, device="cpu")
    share = torch.tensor(window).prod().item() / tokens
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads: {'x'.join(map(str, o.grid))}, {o.heads} heads of {o.head_dim}")
    print(f"window {window}, stride {stride}: ideal {1 / share:.2f}, density of its blocks {1 - mask.sparsity() / 100:.3f}")
    rows = []
    with torch.inference_mode():
        for dtype in (torch.bfloat16, torch.float32):
            a = [t.to(dtype) for t in (q, k, v)]
            b = [t[:, :, order].contiguous() for t in a]
            name = str(dtype).removeprefix("torch.")
            for what, call in (
                ("sdpa", lambda a=a: sdpa(*a)),
                ("flex, dense", lambda a=a: flex(*a)),
                ("flex, window", lambda b=b: flex(*b, block_mask=mask)),
            ):
                try:
                    rows.append((f"{what}, {name}", *measure(call, o.repeat)))
                except Exception as error:  # a build of PyTorch without that path: said, not hidden
                    print(f"{what}, {name}: {str(error).splitlines()[0][:160]}")
    exact = sdpa(q, k, v)
    dense = min(seconds[0] for name, seconds, _ in rows if not name.startswith("flex, window"))
    print(f"{'':24} {'ms min':>10} {'median':>10} {'ratio':>7} {'rel L1':>8}")
    for name, seconds, out in rows:
        result = torch.empty_like(exact)
        if name.startswith("flex, window"):
            result[:, :, order] = out.float()
        else:
            result = out.float()
        error = (result - exact).abs().sum() / exact.abs().sum()
        print(f"{name:24} {seconds[0] * 1e3:10.2f} {seconds[len(seconds) // 2] * 1e3:10.2f} {dense / seconds[0]:7.2f} {error:8.4f}")


if __name__ == "__main__":
    main()
