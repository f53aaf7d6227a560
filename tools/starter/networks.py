"""The networks of the starter model: Stable Diffusion's parts at a size that two CPU cores can train."""
import json
import os

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PICTURE = 64  # pixels a side
FACTOR = 4    # of the autoencoder
LATENT_CHANNELS = 4
TOKENS = 32
BETAS = {"beta_start": 0.00085, "beta_end": 0.012}


def make_vae():
    return AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
                         block_out_channels=(24, 48, 96), layers_per_block=1, latent_channels=LATENT_CHANNELS, norm_num_groups=8,
                         sample_size=PICTURE)


def make_text(tokenizer):
    end = tokenizer.eos_token_id
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(tokenizer), hidden_size=192, intermediate_size=768, num_hidden_layers=3,
                                        num_attention_heads=3, max_position_embeddings=TOKENS, projection_dim=192,
                                        bos_token_id=tokenizer.bos_token_id, eos_token_id=end, pad_token_id=end, hidden_act="quick_gelu"))


def make_unet():
    return UNet2DConditionModel(sample_size=PICTURE // FACTOR, in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, layers_per_block=1,
                                block_out_channels=(64, 128, 192), cross_attention_dim=192, attention_head_dim=4, norm_num_groups=16,
                                down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
                                up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))


def alphas_cumprod():
    betas = torch.linspace(BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5, 1000) ** 2
    return torch.cumprod(1 - betas, 0)


def train_tokenizer(captions, folder):
    """CLIP's byte-pair encoding, learnt from captions."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    words = Regex(r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""")
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(words, "removed", invert=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(captions, trainers.BpeTrainer(vocab_size=1000, initial_alphabet=alphabet, end_of_word_suffix="</w>",
                                                                show_progress=False))
    merges = [m if isinstance(m, str) else " ".join(m) for m in json.loads(tokenizer.to_str())["model"]["merges"]]
    pieces = alphabet + [b + "</w>" for b in alphabet] + [m.replace(" ", "", 1) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, "vocab.json"), "w") as file:
        json.dump(vocabulary, file, ensure_ascii=False)
    with open(os.path.join(folder, "merges.txt"), "w") as file:
        file.write("#version: 0.2\n" + "\n".join(merges) + "\n")


def load_tokenizer(folder):
    return CLIPTokenizer(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"), model_max_length=TOKENS)


def token_ids(tokenizer, texts):
    return tokenizer(texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids


def save_pipeline(folder, vae, text, unet, tokenizer, latent_std):
    """A folder in diffusers' layout, float16."""
    vae.register_to_config(scaling_factor=1 / latent_std)
    scheduler = DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1, **BETAS)
    StableDiffusionPipeline(vae=vae.half(), text_encoder=text.half(), tokenizer=tokenizer, unet=unet.half(), scheduler=scheduler,
                            safety_checker=None, feature_extractor=None,
                            requires_safety_checker=False).save_pretrained(folder, safe_serialization=True)
