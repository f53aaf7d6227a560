"""One guided step (two rows) of a model's UNet and the decoding of one picture, by PyTorch (diffusers) and OpenVINO.

    python bench/peers/model.py FOLDER [--size 512] [--runs 3] [--only torch,openvino] [--types f32,bf16]

Two threads, one warm-up, the minimum and median of the runs in seconds; a line of JSON per figure.
"""
import argparse
import json
import resource
import statistics
import time

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="torch,openvino")
    parser.add_argument("--types", default="f32,bf16")
    parser.add_argument("--parts", default="step,decode")
    return parser.parse_args()


def timed(what, peer, dtype, runs, call):
    call()
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    print(json.dumps({"what": what, "peer": peer, "type": dtype, "min_s": round(min(seconds), 3), "median_s": round(statistics.median(seconds), 3),
                      "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}), flush=True)


class Unet(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, sample, timestep, text):
        return self.net(sample, timestep, text, return_dict=False)[0]


class Decoder(torch.nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, latent):
        return self.net.decode(latent, return_dict=False)[0]


def parts(args):
    latent = args.size // 8
    if "step" in args.parts:
        net = UNet2DConditionModel.from_pretrained(args.folder, subfolder="unet", torch_dtype=torch.float32).eval()
        text = torch.randn(2, 77, net.config.cross_attention_dim)
        yield "step", Unet(net), (torch.randn(2, 4, latent, latent), torch.tensor(500.0), text)
        del net
    if "decode" in args.parts:
        net = AutoencoderKL.from_pretrained(args.folder, subfolder="vae", torch_dtype=torch.float32).eval()
        yield "decode", Decoder(net), (torch.randn(1, 4, latent, latent),)


def run_torch(what, module, inputs, args):
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        if name not in args.types:
            continue
        net = module.to(dtype=dtype, memory_format=torch.channels_last)
        given = [x.to(dtype).contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x.to(dtype) if x.dim() == 3 else x for x in inputs]
        timed(what, "pytorch " + torch.__version__.split("+")[0], name, args.runs, lambda: net(*given))
    module.to(dtype=torch.float32)


def run_openvino(what, module, inputs, args):
    import openvino as ov

    model = ov.convert_model(module.eval(), example_input=inputs, input=[list(x.shape) for x in inputs])
    for name in ("f32", "bf16"):
        if name not in args.types:
            continue
        core = ov.Core()
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": name, "INFERENCE_NUM_THREADS": args.threads,
                                                     "PERFORMANCE_HINT": "LATENCY"})
        request = compiled.create_infer_request()
        given = {i: x.numpy() for i, x in enumerate(inputs)}
        timed(what, "openvino " + ov.__version__.split("-")[0], name, args.runs, lambda: request.infer(given))


@torch.no_grad()
def main():
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    for what, module, inputs in parts(args):
        if "torch" in args.only:
            run_torch(what, module, inputs, args)
        if "openvino" in args.only:
            run_openvino(what, module, inputs, args)


main()
