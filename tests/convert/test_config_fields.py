"""Every field of every config: in a table, with the library's default, and in the documentation."""

import inspect
import os
import pathlib
import re

import numpy as np
import pytest

from diffusion_jax.convert.config_fields import Equivalent, Followed, Only, checked, defaults
from diffusion_jax.convert.config_tables import (
    CLIP_TEXT,
    CONTROLNET,
    SD,
    SDXL,
    TABLES,
    UNET,
    VAE,
    VQ,
)
from diffusion_jax.convert.families import FAMILIES
from diffusion_jax.convert.parts import check_parts
from diffusion_jax.convert.sd_autoencoder import scale_of

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "checkpoints.md"


def test_the_documentation_has_the_tables():
    text = DOCS.read_text("utf-8").split("## Fields of the other configs")[1].split("\n## ")[0]
    cells = [line.split("|")[1:4] for line in text.splitlines() if line.startswith("|")][2:]
    told, file = {}, ""
    for first, verdict, fields in cells:
        file = first.strip() or file
        told[file, verdict.strip()] = fields
    assert {file for file, _ in told} == set(TABLES)
    for file, fields in TABLES.items():
        kinds = {"followed": Followed, "these values alone": Only, "no difference here": Equivalent}
        for verdict, kind in kinds.items():
            said = re.sub(r" \((`[^)]*`( or )?)+\)", "", told[file, verdict])
            names = re.findall(r"`(\w+)`", said)
            assert names == [n for n, f in fields.items() if isinstance(f, kind)], (file, verdict)
        for name, field in fields.items():
            if isinstance(field, Only):
                values = " or ".join(f"`{value}`" for value in field.values)
                assert f"`{name}` ({values})" in told[file, "these values alone"]


def test_a_field_is_followed_restricted_or_refused():
    found = checked({"norm_eps": 1e-3, "upcast_attention": "x", "_note": 3, "odd": None}, UNET)
    assert found["norm_eps"] == 1e-3 and found["norm_num_groups"] == 32
    assert checked({"scaling_factor": 1}, VAE)["latent_channels"] == 4
    for config, fields, words in (
        (
            {"act_fn": "gelu"},
            UNET,
            r"f: act_fn='gelu' cannot be converted: only \('silu', 'swish'\)",
        ),
        ({"odd": 3}, UNET, "f: odd=3 is no field that is known"),
        ({"flip_sin_to_cos": 1}, UNET, "flip_sin_to_cos=1 .* must be true or false"),
        ({"mid_block_scale_factor": True}, UNET, "mid_block_scale_factor=True cannot"),
        ({"layers_per_block": 10**9}, UNET, "a whole number from 1 to 64, or a list of them"),
        ({"block_out_channels": []}, UNET, r"block_out_channels=\(\) .* a list"),
        ({"norm_eps": float("nan")}, UNET, "norm_eps=nan cannot be converted: it must be a number"),
        ({"scaling_factor": 0}, VAE, "scaling_factor=0 .* a number above 0"),
        ({"eos_token_id": [1]}, CLIP_TEXT, "eos_token_id"),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, SD, r"vae=\('diffusers', 'AutoencoderTiny'\)"),
        ({"unet": [None, None]}, SD, "unet="),
        ({"requires_aesthetics_score": True}, SDXL, "requires_aesthetics_score=True"),
    ):
        with pytest.raises(ValueError, match=words):
            checked(config, fields, "f")


def family(name):
    made = FAMILIES[name]
    texts = {f"text_encoder_{i}": dict(t) for i, t in enumerate(made.text_encoders)}
    return {"unet": dict(made.unet), "vae": dict(made.vae), **texts}


def test_the_published_configs_fit_together_and_others_do_not():
    for name in FAMILIES:
        check_parts(family(name), name == "sdxl")
    for name, part, change, words in (
        ("sd1", "vae", {"shift_factor": 0.1}, "vae/config.json: shift_factor=0.1"),
        ("sd1", "vae", {"latents_mean": [0.0] * 4, "latents_std": [1.0] * 4}, "latents_mean="),
        ("sdxl", "vae", {"latents_mean": [0.0] * 4}, "both of them"),
        ("sdxl", "vae", {"latents_mean": [0.0] * 3, "latents_std": [1.0] * 3}, "has 3 numbers"),
        ("sd1", "vae", {"latent_channels": 16}, "latent_channels=16.*out_channels=4"),
        ("sd2", "unet", {"cross_attention_dim": 768}, "cross_attention_dim=768.*make 1024"),
        ("sd1", "unet", {"addition_embed_type": "text_time"}, "is not of SD 1 and 2"),
        ("sdxl", "unet", {"addition_embed_type": None}, "is not of SDXL"),
        ("sd1", "unet", {"num_class_embeds": 10}, "num_class_embeds=10"),
        ("sdxl", "text_encoder_1", {"projection_dim": 512}, "projection_dim=512"),
        ("sd1", "unet", {"norm_num_groups": 30}, "norm_num_groups=30 does not divide"),
        ("sd1", "text_encoder_0", {"num_attention_heads": 7}, "is no multiple"),
        ("sd1", "unet", {"down_block_types": ["DownBlock2D"]}, "has 1 levels"),
    ):
        configs = family(name)
        configs[part] |= change
        with pytest.raises(ValueError, match=words):
            check_parts(configs, name == "sdxl")


def test_latents_of_an_autoencoder():
    assert scale_of({}) == (0.18215, 0.0)  # as old files of SD 1 have it
    scale, shift = scale_of({"scaling_factor": 0.5, "latents_mean": [1, 2], "latents_std": [2, 4]})
    z = np.array([3.0, -5.0], np.float32)
    # SDXL's pipeline: z = latent·std/scaling + mean.
    np.testing.assert_allclose((scale * (z - shift)) * np.array([2, 4]) / 0.5 + [1, 2], z)


@pytest.mark.parity
def test_all_fields_of_the_libraries_are_in_the_tables():
    if os.environ.get("REQUIRE_PARITY") != "1":
        pytest.importorskip("diffusers")
        pytest.importorskip("transformers")
    import diffusers
    import transformers

    classes = {
        diffusers.UNet2DConditionModel: UNET, diffusers.ControlNetModel: CONTROLNET,
        diffusers.AutoencoderKL: VAE, diffusers.VQModel: VQ, transformers.CLIPTextConfig: CLIP_TEXT,
    }  # fmt: skip
    for of, fields in classes.items():
        theirs = {
            name: parameter.default
            for name, parameter in inspect.signature(of.__init__).parameters.items()
            if name != "self"
        }
        assert set(theirs) <= set(fields), (of, set(theirs) - set(fields))
        for name, default in defaults(fields).items():
            if name in theirs:
                assert default == theirs[name], (of, name)
    for name, fields in (
        ("StableDiffusionPipeline", SD),
        ("StableDiffusionImg2ImgPipeline", SD),
        ("LatentConsistencyModelPipeline", SD),
        ("StableDiffusionXLPipeline", SDXL),
        ("StableDiffusionXLImg2ImgPipeline", SDXL),
    ):
        made = getattr(diffusers, name)
        assert set(inspect.signature(made.__init__).parameters) - {"self"} <= set(fields)
