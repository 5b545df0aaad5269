"""Tiny Stable Diffusion checkpoints with random weights, written by diffusers itself."""

import json
import random

import diffusers
import torch
import transformers

BLOCKS = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "sample_size": 8,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
UNETS = {
    "sd1": {},
    "lcm": {"time_cond_proj_dim": 24},
    "sd2": {"attention_head_dim": (2, 4), "use_linear_projection": True},
    "sdxl": {
        "attention_head_dim": (2, 4), "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "transformer_layers_per_block": (1, 2), "projection_class_embeddings_input_dim": 80,
        "cross_attention_dim": 64,
    },
}  # fmt: skip
VAE = {
    "block_out_channels": (16, 16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "norm_num_groups": 8,
    "sample_size": 64,
}
TEXT = {
    "hidden_size": 32, "intermediate_size": 37, "num_attention_heads": 4, "num_hidden_layers": 3,
    "projection_dim": 32, "max_position_embeddings": 77,
}  # fmt: skip
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000, "steps_offset": 1, "clip_sample": False,
    "set_alpha_to_one": False, "timestep_spacing": "leading",
}  # fmt: skip
WORDS = (
    "a", "photo", "of", "the", "red", "blue", "cat", "dog", "house", "on", "hill", "an", "and"
)  # fmt: skip


def tokenizer(folder, pad="<|endoftext|>"):
    """Byte-level pairs over a few words, in CLIP's files."""
    letters = [chr(i) for i in range(33, 127)]
    vocabulary = letters + [f"{letter}</w>" for letter in letters]
    merges = []
    for word in WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[0]} {parts[1]}"
            parts = [parts[0] + parts[1], *parts[2:]]
            if merge not in merges:
                merges.append(merge)
                vocabulary.append(parts[0])
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    made = transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, model_max_length=77
    )
    made.save_pretrained(folder)
    return made


def randomised(module, seed):
    """Its weights moved at random, so that no layer is zero; what reads text or a picture most."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            heard = ("attn2", "cond_embedding", "cond_proj")
            size = 2.0 if any(part in name for part in heard) else 0.3
            parameter.add_(noise * (size / max(1, parameter[0].numel()) ** 0.5))
    return module.eval()


def text_encoder(kind, made, projected=False):
    """A CLIP text model for a tokenizer."""
    config = transformers.CLIPTextConfig(
        **TEXT, vocab_size=len(made), hidden_act="quick_gelu" if kind == "sd1" else "gelu",
        bos_token_id=made.bos_token_id, eos_token_id=made.eos_token_id,
        pad_token_id=made.pad_token_id,
    )  # fmt: skip
    model = transformers.CLIPTextModelWithProjection if projected else transformers.CLIPTextModel
    return randomised(model(config), 1 + projected)


def pipeline(kind, folder):
    """A tiny pipeline of one kind ("sd1", "sd2", "sdxl", "lcm"), saved into a folder."""
    random.seed(0)
    torch.manual_seed(0)
    made = tokenizer(folder / "made", pad="!" if kind == "sd2" else "<|endoftext|>")
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    parts = {
        "unet": randomised(diffusers.UNet2DConditionModel(**{**BLOCKS, **UNETS[kind]}), 3),
        "vae": randomised(diffusers.AutoencoderKL(**VAE), 4),
        "text_encoder": text_encoder(kind, made),
        "tokenizer": made,
        "scheduler": diffusers.DDIMScheduler(**SCHEDULER, prediction_type=prediction),
    }
    if kind == "sdxl":
        parts |= {"text_encoder_2": text_encoder(kind, made, True), "tokenizer_2": made}
        pipe = diffusers.StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        parts |= {"safety_checker": None, "feature_extractor": None}
        make = diffusers.StableDiffusionPipeline
        if kind == "lcm":
            parts["scheduler"] = diffusers.LCMScheduler(**SCHEDULER)
            make = diffusers.LatentConsistencyModelPipeline
        pipe = make(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.save_pretrained(folder / kind)
    return pipe, folder / kind
