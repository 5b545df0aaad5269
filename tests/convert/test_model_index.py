"""What a written folder says that it holds, and which of a tokenizer's files are copied."""

import inspect
from types import SimpleNamespace

from diffusion_jax.convert import checkpoint_folder
from diffusion_jax.convert.checkpoint_folder import model_index
from diffusion_jax.convert.families import configs
from diffusion_jax.convert.folders import write_weights


def checkpoint(texts, **fields):
    configs = {f"text_encoder_{i}": text for i, text in enumerate(texts)}
    given = {"scheduler": {}, "index": {}, **fields}
    return SimpleNamespace(configs=configs, text_encoders=(None,) * len(texts), **given)


def test_one_text_encoder_is_stable_diffusion():
    assert model_index(checkpoint([{}])) == {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.32.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }


def test_two_are_xl_and_what_was_read_wins():
    texts = [
        {"architectures": ["CLIPTextModel"]},
        {"architectures": ["CLIPTextModelWithProjection"]},
    ]
    index = {"_class_name": "Own", "feature_extractor": ["transformers", "X"], "force": True}
    told = model_index(checkpoint(texts, scheduler={"_class_name": "Euler"}, index=index))
    assert told == {
        "_class_name": "Own",
        "_diffusers_version": "0.32.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "Euler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "feature_extractor": [None, None],  # which is never read
        "force": True,
    }
    assert model_index(checkpoint(texts))["_class_name"] == "StableDiffusionXLPipeline"


def test_a_tokenizers_files_are_copied_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    (source / "sub.json").mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", "spiece.model", "weights.bin"):
        (source / name).write_text(name)
    checkpoint_folder._copy(source, tmp_path / "copy")
    copied = {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()}
    assert copied == {name: name for name in ("vocab.json", "merges.txt", "spiece.model")}


CLIP = {"attention_dropout": 0.0, "layer_norm_eps": 1e-5, "max_position_embeddings": 77,
        "vocab_size": 49408, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1,
        "model_type": "clip_text_model"}  # fmt: skip


def test_the_families_have_the_numbers_of_their_published_configs():
    """config.json of stable-diffusion-v1-5, stable-diffusion-2-1 and stable-diffusion-xl-base."""
    one, two, xl = (configs(name) for name in ("sd1", "sd2", "sdxl"))
    scheduler = {
        "_class_name": "PNDMScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    }  # fmt: skip
    assert one.scheduler == scheduler
    assert two.scheduler == {
        **scheduler, "_class_name": "DDIMScheduler", "prediction_type": "v_prediction",
    }  # fmt: skip
    assert xl.scheduler == {**scheduler, "_class_name": "EulerDiscreteScheduler"}
    unet = {
        "_class_name": "UNet2DConditionModel", "act_fn": "silu", "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False,
        "cross_attention_dim": 768, "downsample_padding": 1, "flip_sin_to_cos": True,
        "freq_shift": 0, "in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1,
        "norm_eps": 1e-5, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    }  # fmt: skip
    assert one.unet == unet
    assert two.unet == {
        **unet, "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024,
        "sample_size": 96, "upcast_attention": True, "use_linear_projection": True,
    }  # fmt: skip
    assert xl.unet == {
        **unet, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "attention_head_dim": [5, 10, 20], "block_out_channels": [320, 640, 1280],
        "cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816,
        "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
        "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"], "sample_size": 128,
        "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True,
    }  # fmt: skip
    vae = {
        "_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3,
        "block_out_channels": [128, 256, 512, 512], "latent_channels": 4, "layers_per_block": 2,
        "norm_num_groups": 32, "sample_size": 512, "scaling_factor": 0.18215,
        "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    }  # fmt: skip
    assert one.vae == vae and two.vae == {**vae, "sample_size": 768}
    assert xl.vae == {**vae, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025}
    large = {
        **CLIP, "architectures": ["CLIPTextModel"], "hidden_act": "quick_gelu",
        "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
        "num_hidden_layers": 12, "projection_dim": 768,
    }  # fmt: skip
    assert one.text_encoders == (large,) and xl.text_encoders[0] == large
    assert two.text_encoders == ({
        **large, "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
        "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512,
    },)  # fmt: skip
    assert xl.text_encoders[1:] == ({
        **large, "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu",
        "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
        "num_hidden_layers": 32, "projection_dim": 1280,
    },)  # fmt: skip


def test_files_are_split_at_ten_gigabytes():
    limit = inspect.signature(write_weights).parameters["most_bytes"].default
    assert limit == checkpoint_folder.LARGEST_FILE == 10_000_000_000
