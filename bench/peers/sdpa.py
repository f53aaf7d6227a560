"""PyTorch's scaled_dot_product_attention on the shapes of bench/bench_sdpa.c, f32 and bf16.

Needs torch. python bench/peers/sdpa.py [threads [length]]
"""

import sys
import time

import torch

HEADS, REPEATS = 8, 7


def measure(dtype, length, dim):
    q, k, v = (torch.randn(1, length, HEADS, dim).to(dtype).transpose(1, 2) for _ in range(3))
    best = float("inf")
    for _ in range(REPEATS):
        start = time.perf_counter()
        torch.nn.functional.scaled_dot_product_attention(q, k, v)
        best = min(best, time.perf_counter() - start)
    flop = 4 * length * length * dim * HEADS
    name = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
    print(f"{length:5} {HEADS:4} {dim:4}  {name:5} {best * 1e3:8.2f} ms {flop / best * 1e-9:8.1f} GFLOP/s")


def main():
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    length = int(sys.argv[2]) if len(sys.argv) > 2 else 4096
    print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads")
    with torch.inference_mode():
        for dim in (40, 64, 80, 128, 160):
            for dtype in (torch.float32, torch.bfloat16):
                measure(dtype, length, dim)


main()
