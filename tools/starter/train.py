"""Trains the starter model on two CPU cores, stage by stage; every stage goes on from where it stopped.

    python train.py STAGE --state DIR [--minutes M]

Stages in order: tokenizer, vae (autoencoder), latents (encodes scenes; run it again for more), decoder (the autoencoder's decoder alone,
latents stay as they are), image (UNet and text encoder together), sheet (draws sheet.png), export (writes DIR/starter-image).
"""
import argparse
import glob
import json
import math
import os
import random
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import networks
import papercut

SHEET = [
    "a red fish on a blue background", "a yellow duck under water", "a green tree on the grass", "a white ghost at night",
    "a purple butterfly in the sky", "a blue car left of a red house on the grass", "two orange cats in the snow",
    "three pink hearts on a white background", "a big yellow moon at night", "a small black key on the left on a yellow background",
    "a green cactus in the desert", "a white sailboat at the beach", "a brown guitar on a pink background",
    "a red rocket above a gray cloud on a black background", "a blue whale and a yellow star under water",
    "a red umbrella at the top on a gray background",
]


class State:
    """The folder of a training, with what every stage needs."""

    def __init__(self, args):
        self.args, self.rng, self.masks = args, random.Random(time.time_ns()), papercut.load_masks()
        os.makedirs(args.state, exist_ok=True)

    def path(self, name):
        return os.path.join(self.args.state, name)

    def scenes(self, count):
        return [papercut.sample(self.rng) for _ in range(count)]

    def pictures(self, scenes):
        return papercut.render(scenes, self.masks, networks.PICTURE) * 2 - 1

    def tokenizer(self):
        return networks.load_tokenizer(self.path("tokenizer"))

    def averaged(self, name, **modules):
        """Loads the averaged weights of a training into modules, for use."""
        state = torch.load(self.path(name + ".average.pt"))
        for part, module in modules.items():
            module.load_state_dict(state[part])
            module.eval().requires_grad_(False)

    def latent_std(self):
        with open(self.path("latent_std.json")) as file:
            return json.load(file)


class Training:
    """Optimiser, running average of the weights, save and resume."""

    def __init__(self, state, name, modules, rate, decay):
        self.state, self.name, self.rate, self.decay, self.step = state, name, state.args.rate or rate, decay, 0
        self.modules = torch.nn.ModuleDict(modules)
        self.parameters = list(self.modules.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.rate, weight_decay=0.01, betas=(0.9, 0.99), fused=True)
        self.average = [p.detach().clone() for p in self.parameters]
        if os.path.exists(self.file()):
            kept = torch.load(self.file())
            self.modules.load_state_dict(kept["modules"])
            self.optimizer.load_state_dict(kept["optimizer"])
            self.step, self.average = kept["step"], kept["average"]

    def file(self):
        return self.state.path(self.name + ".pt")

    def update(self, loss, factor):
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(1, (self.step + 1) / 200) * factor
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        torch._foreach_mul_(self.average, decay)
        torch._foreach_add_(self.average, [p.detach() for p in self.parameters], alpha=1 - decay)

    def averaged_state(self):
        live = [p.detach().clone() for p in self.parameters]
        for parameter, mean in zip(self.parameters, self.average):
            parameter.data.copy_(mean)
        state = {name: {k: t.clone() for k, t in module.state_dict().items()} for name, module in self.modules.items()}
        for parameter, value in zip(self.parameters, live):
            parameter.data.copy_(value)
        return state

    def save(self):
        kept = {"modules": self.modules.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step, "average": self.average}
        torch.save(kept, self.file() + ".new")
        os.replace(self.file() + ".new", self.file())
        average = self.state.path(self.name + ".average.pt")
        torch.save(self.averaged_state(), average + ".new")
        os.replace(average + ".new", average)

    def run(self, loss_of_batch, cooldown):
        """Trains for the asked minutes; the last `cooldown` share of them the rate falls to a thirtieth."""
        begin = saved = time.time()
        losses = []
        while (share := (time.time() - begin) / (self.state.args.minutes * 60)) < 1:
            loss = loss_of_batch()
            self.update(loss, 1.0 if share < 1 - cooldown else max(0.03, (1 - share) / cooldown))
            losses.append(loss.item())
            if self.step % 50 == 0:
                print(f"{self.name} {self.step} loss {sum(losses) / len(losses):.4f} {share:.0%}", flush=True)
                losses = []
            if time.time() - saved > 600:
                self.save()
                saved = time.time()
        self.save()


def psnr(a, b):
    """Of pictures in -1 .. 1, in dB."""
    return -10 * math.log10(((a.clamp(-1, 1) - b) ** 2).mean().item() / 4)


def save_sheet(pictures, path, columns):
    """pictures [n, 3, side, side] in -1 .. 1."""
    values = ((pictures / 2 + 0.5).clamp(0, 1) * 255).byte().permute(0, 2, 3, 1).numpy()
    rows = [np.concatenate(list(values[i:i + columns]), 1) for i in range(0, len(values), columns)]
    Image.fromarray(np.concatenate(rows, 0)).save(path)


def stage_tokenizer(state):
    networks.train_tokenizer((scene.caption for scene in state.scenes(30000)), state.path("tokenizer"))


def stage_vae(state):
    vae = networks.make_vae().to(memory_format=torch.channels_last)
    training = Training(state, "vae", {"vae": vae}, 1e-3, 0.995)

    def loss():
        x = state.pictures(state.scenes(state.args.batch or 4)).contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        z = posterior.mode()
        y = vae.decode(z + 0.05 * torch.randn_like(z)).sample
        keep_small = F.relu(z.abs() - 3).mean()
        return (y - x).abs().mean() + 0.5 * ((y - x) ** 2).mean() + 0.01 * keep_small + 1e-6 * posterior.kl().mean()

    training.run(loss, 0.5)
    report_autoencoder(state)


def stage_decoder(state):
    vae = networks.make_vae().to(memory_format=torch.channels_last)
    state.averaged("vae", vae=vae)
    parts = {"decoder": vae.decoder.requires_grad_(True), "post": vae.post_quant_conv.requires_grad_(True)}
    training = Training(state, "decoder", parts, 1.2e-3, 0.99)

    def loss():
        x = state.pictures(state.scenes(state.args.batch or 8)).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
        y = vae.decode(z + 0.05 * torch.randn_like(z)).sample
        edges = sum((y.diff(dim=axis) - x.diff(dim=axis)).abs().mean() for axis in (2, 3))
        return (y - x).abs().mean() + 0.5 * ((y - x) ** 2).mean() + 0.5 * edges

    training.run(loss, 0.6)
    state.averaged("decoder", decoder=vae.decoder, post=vae.post_quant_conv)
    torch.save({"vae": vae.state_dict()}, state.path("vae.average.pt"))
    report_autoencoder(state)


@torch.no_grad()
def report_autoencoder(state):
    vae = networks.make_vae()
    state.averaged("vae", vae=vae)
    x = state.pictures(state.scenes(16))
    y = vae.decode(vae.encode(x).latent_dist.mean).sample
    print(f"PSNR {psnr(y, x):.2f} dB")
    save_sheet(torch.stack([x, y], 1).flatten(0, 1), state.path("vae.png"), 8)


@torch.no_grad()
def stage_latents(state):
    vae, tokenizer = networks.make_vae().to(memory_format=torch.channels_last), state.tokenizer()
    state.averaged("vae", vae=vae)
    latents, captions, begin = [], [], time.time()
    while len(latents) * 32 < 40000 and time.time() - begin < state.args.minutes * 60:
        scenes = state.scenes(32)
        latents.append(vae.encode(state.pictures(scenes).contiguous(memory_format=torch.channels_last)).latent_dist.mean.half())
        captions.append(networks.token_ids(tokenizer, [scene.caption for scene in scenes]).short())
    latents = torch.cat(latents)
    with open(state.path("latent_std.json"), "w") as file:
        json.dump(latents[:4000].float().std().item(), file)
    torch.save({"latents": latents, "ids": torch.cat(captions)}, state.path(f"latents.{int(time.time())}.pt"))


def stage_image(state):
    tokenizer, alphas = state.tokenizer(), networks.alphas_cumprod()
    unet, text = networks.make_unet().to(memory_format=torch.channels_last), networks.make_text(tokenizer)
    training = Training(state, "image", {"unet": unet, "text": text}, 1e-3, 0.998)
    parts = [torch.load(name) for name in sorted(glob.glob(state.path("latents.*.pt")))]
    latents, ids = torch.cat([p["latents"] for p in parts]), torch.cat([p["ids"] for p in parts]).int()
    scale, empty, batch = 1 / state.latent_std(), networks.token_ids(tokenizer, [""])[0].int(), state.args.batch or 64
    order = iter(())

    def loss():
        nonlocal order
        picked = [i for _, i in zip(range(batch), order)]
        if len(picked) < batch:
            order = iter(torch.randperm(len(latents)).tolist())
            picked = [i for _, i in zip(range(batch), order)]
        x0 = latents[picked].float() * scale
        caption = torch.where(torch.rand(batch, 1) < 0.1, empty, ids[picked])
        t, noise = torch.randint(0, 1000, (batch,)), torch.randn_like(x0)
        a = alphas[t].view(-1, 1, 1, 1)
        noisy, velocity = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=state.args.bf16):
            out = unet(noisy.contiguous(memory_format=torch.channels_last), t, text(caption)[0]).sample
        return ((out.float() - velocity) ** 2).mean()

    training.run(loss, 0.3)


def trained(state):
    tokenizer = state.tokenizer()
    vae, text, unet = networks.make_vae(), networks.make_text(tokenizer), networks.make_unet()
    state.averaged("vae", vae=vae)
    state.averaged("image", unet=unet, text=text)
    return vae, text, unet, tokenizer


def stage_sheet(state):
    folder = state.path("starter-image")
    if not os.path.exists(folder):
        stage_export(state)
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pictures = pipe(SHEET, num_inference_steps=40, guidance_scale=4.0, generator=torch.Generator().manual_seed(0), output_type="pt").images
    save_sheet(pictures * 2 - 1, state.path("sheet.png"), 4)


def stage_export(state):
    vae, text, unet, tokenizer = trained(state)
    networks.save_pipeline(state.path("starter-image"), vae, text, unet, tokenizer, state.latent_std())


STAGES = {"tokenizer": stage_tokenizer, "vae": stage_vae, "latents": stage_latents, "decoder": stage_decoder, "image": stage_image,
          "sheet": stage_sheet, "export": stage_export}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--state", default="state", help="folder of the training")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--batch", type=int, default=0, help="0: the stage's own")
    parser.add_argument("--rate", type=float, default=0, help="learning rate; 0: the stage's own")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="mixed precision for the UNet")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    STAGES[args.stage](State(args))


main()
