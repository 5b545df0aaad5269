"""The parts of a folder's checkpoint against one another, by their configs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusion_jax.convert.config_fields import checked
from diffusion_jax.convert.config_tables import CLIP_TEXT, UNET, VAE

UNET_FILE, VAE_FILE = "unet/config.json", "vae/config.json"


def check_parts(configs: Mapping[str, Mapping[str, Any]], two: bool) -> None:
    """Check each field of the parts' configs, and that the parts fit together.

    Args:
        configs: entries of the config.json of "unet", "vae", "text_encoder_0" ...
        two: whether there are SDXL's two text encoders.

    Raises:
        ValueError: naming file, field and value, and what can be had.
    """
    unet = checked(configs["unet"], UNET, UNET_FILE)
    vae = checked(configs["vae"], VAE, VAE_FILE)
    texts = [
        checked(configs[f"text_encoder_{i}"], CLIP_TEXT, f"text_encoder{suffix}/config.json")
        for i, suffix in enumerate(("", "_2")[: 1 + two])
    ]
    _check_unet(unet, two)
    _check_vae(unet, vae, two)
    _check_texts(unet, texts, two)


def _check_unet(unet: Mapping[str, Any], two: bool) -> None:
    adds = "text_time" if two else None
    if unet["addition_embed_type"] != adds:
        kind = "SDXL" if two else "SD 1 and 2"
        raise ValueError(
            f"{UNET_FILE}: addition_embed_type={unet['addition_embed_type']!r} is not of {kind}, "
            f"which model_index.json names and where it is {adds!r}: take a folder of one model."
        )
    if unet["num_class_embeds"] is not None:
        raise ValueError(
            f"{UNET_FILE}: num_class_embeds={unet['num_class_embeds']} asks for a class beside the "
            "prompt, which no pipeline that is read here gives: take another checkpoint."
        )
    levels = len(unet["block_out_channels"])
    for field in ("down_block_types", "up_block_types"):
        if len(unet[field]) != levels:
            raise ValueError(
                f"{UNET_FILE}: {field} has {len(unet[field])} levels, and block_out_channels "
                f"{levels}: fetch it again."
            )
    _check_groups(UNET_FILE, unet)


def _check_vae(unet: Mapping[str, Any], vae: Mapping[str, Any], two: bool) -> None:
    if vae["shift_factor"]:
        raise ValueError(
            f"{VAE_FILE}: shift_factor={vae['shift_factor']} cannot be followed: diffusers' "
            "pipelines of Stable Diffusion pass it over; set it to null."
        )
    statistics = [vae["latents_mean"], vae["latents_std"]]
    for field, held in zip(("latents_mean", "latents_std"), statistics, strict=True):
        if held is not None and (not two or None in statistics):
            raise ValueError(
                f"{VAE_FILE}: {field}={held} cannot be followed: diffusers reads latents_mean and "
                "latents_std in SDXL's pipelines, both of them; set it to null."
            )
        if held is not None and len(held) != vae["latent_channels"]:
            raise ValueError(
                f"{VAE_FILE}: {field} has {len(held)} numbers for latent_channels="
                f"{vae['latent_channels']}: fetch it again."
            )
    if vae["latent_channels"] != unet["out_channels"]:
        raise ValueError(
            f"{VAE_FILE}: latent_channels={vae['latent_channels']}, and the U-Net's out_channels="
            f"{unet['out_channels']}: they are of two models."
        )
    _check_groups(VAE_FILE, vae)


def _check_texts(unet: Mapping[str, Any], texts: list[dict[str, Any]], two: bool) -> None:
    width = sum(text["hidden_size"] for text in texts)
    if width != unet["cross_attention_dim"]:
        raise ValueError(
            f"{UNET_FILE}: cross_attention_dim={unet['cross_attention_dim']}, and the text "
            f"encoders' hidden_size make {width}: they are of two models."
        )
    for i, text in enumerate(texts):
        if text["hidden_size"] % text["num_attention_heads"]:
            raise ValueError(
                f"text_encoder{'_2' if i else ''}/config.json: hidden_size={text['hidden_size']} "
                f"is no multiple of num_attention_heads={text['num_attention_heads']}."
            )
    if not two:
        return
    pooled = texts[1]["projection_dim"] or 0
    total, each = (
        unet[f"{k}"] or 0
        for k in ("projection_class_embeddings_input_dim", "addition_time_embed_dim")
    )
    if total != pooled + 6 * each:
        raise ValueError(
            f"{UNET_FILE}: projection_class_embeddings_input_dim={total} is not "
            f"text_encoder_2's projection_dim={pooled} and 6 times addition_time_embed_dim={each}: "
            "they are of two models."
        )


def _check_groups(file: str, config: Mapping[str, Any]) -> None:
    groups = config["norm_num_groups"]
    if odd := [n for n in config["block_out_channels"] if n % groups]:
        raise ValueError(
            f"{file}: norm_num_groups={groups} does not divide block_out_channels' {odd[0]}: "
            "fetch it again."
        )
