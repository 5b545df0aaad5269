"""From a config to the first stage of latent diffusion: how to train one, and how to use it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax.build.buckets import bucket_sizes
from diffusion_jax.build.training import training_data
from diffusion_jax.build.weights import averaged
from diffusion_jax.convert.tensors import read_safetensors
from diffusion_jax.convert.torch_pickle import read_state_dict
from diffusion_jax.convert.vgg import from_lpips
from diffusion_jax.core.types import Codec, Params, Recipe
from diffusion_jax.data.catalog import LATENTS
from diffusion_jax.data.sources import latents_scale
from diffusion_jax.models.autoencoders.autoencoder import AUTOENCODERS
from diffusion_jax.models.autoencoders.codec import IDENTITY, codec
from diffusion_jax.models.vision import efficientnet, vgg
from diffusion_jax.models.vision.discriminator import PatchDiscriminator
from diffusion_jax.recipes.autoencoder import (
    GAMES,
    PIXEL_LOSSES,
    Adversary,
    Coder,
    Perceptual,
    autoencoder,
)
from diffusion_jax.recipes.bottleneck import BOTTLENECKS
from diffusion_jax.spec import Config, build, parse
from diffusion_jax.train.workdir import read_config

MEASURED = "latents.json"


class AutoencoderExperiment(NamedTuple):
    """What a config of a first stage describes, before any data or parameter.

    Attributes:
        module: the autoencoder; it reads ``params["autoencoder"]``.
        recipe: how to train it.
        shape: of an image.
        entries: of its codebook; 0 without one.
        frozen: () -> parameters of the perceptual distance.
        data, sizes, start, training_only, save: as of ``build.experiment.Experiment``.
    """

    module: Any
    recipe: Recipe
    shape: tuple[int, ...]
    entries: int
    frozen: Callable[[], Params]
    data: Callable[[], Callable[[int], Any]]
    sizes: tuple[tuple[int, int], ...] = ()
    start: Callable[[], Params | None] = lambda: None
    training_only: Callable[[], Params] = dict
    save: Callable[[Params, Path, int], Path | None] = lambda params, folder, step: None


class FirstStage(NamedTuple):
    """A trained first stage for a diffusion model: ``Model.codec`` and ``Experiment.frozen``."""

    codec: Codec
    frozen: Callable[[], Params]


def experiment(config: Config) -> AutoencoderExperiment:
    """The autoencoder that ``config.model`` names, trained as ``config.first_stage`` says.

    Raises:
        ValueError: for a field that names nothing, or fields that contradict one another.
    """
    shape = (*config.data.image_size, config.data.channels)
    module, section = network(config), config.first_stage
    codebook = getattr(module, "entries", 0)
    fitting = BOTTLENECKS_OF[config.model.name]
    if parse(section.bottleneck, "first_stage.bottleneck")[0] not in fitting:
        names = " or ".join(f"'{name}()'" for name in fitting)
        raise ValueError(
            f"config.first_stage.bottleneck = {section.bottleneck!r} does not fit "
            f"config.model.name = {config.model.name!r}; take {names}"
        )
    width = codebook and (module.entry_channels or module.latent_channels)
    perceptual, read = None, dict
    if section.perceptual:
        spec = section.perceptual
        perceptual, read = build(PERCEPTUALS, spec, "first_stage.perceptual")
    adversary = None
    if section.adversary:
        adversary = build(ADVERSARIES, section.adversary, "first_stage.adversary")
    recipe = autoencoder(
        coder_of(module),
        build(PIXEL_LOSSES, section.pixel, "first_stage.pixel"),
        build(BOTTLENECKS, section.bottleneck, "first_stage.bottleneck",
              entries=codebook, width=width),
        perceptual,
        adversary,
    )  # fmt: skip
    sizes = bucket_sizes(config, tuple(config.data.image_size))
    data = lambda: training_data(config)
    return AutoencoderExperiment(module, recipe, shape, codebook, read, data, sizes)


def network(config: Config) -> Any:
    """The module that ``config.model.name`` names, with the arguments beside it."""
    fixed = lambda value: tuple(value) if isinstance(value, (list, tuple)) else value
    fields = {key: fixed(value) for key, value in config.model[config.model.name].items()}
    return AUTOENCODERS[config.model.name](**fields, out_channels=config.data.channels)


def coder_of(module: Any) -> Coder:
    """The module as functions of its parameters."""
    run = lambda params, x, method: module.apply({"params": params}, x, method=method)
    return Coder(
        partial(_init, module), partial(run, method="encode"), partial(run, method="decode")
    )


def _init(module: Any, key: jax.Array, pixels: jax.Array) -> Params:
    return jax.jit(module.init)(key, jnp.zeros((1, *pixels.shape[1:])))["params"]


def efficientnet_features(
    weight: float = 1.0, blocks: tuple = (0, 2, 4)
) -> tuple[Perceptual, Callable[[], Params]]:
    """EfficientNet-Lite0 feature distance, of packaged weights; not LPIPS, nor fitted to people.

    Args:
        weight: in the loss.
        blocks: see ``efficientnet.block_features``.
    """
    chosen = tuple(sorted(blocks))

    def read():
        params = efficientnet.fold(read_state_dict(efficientnet.packaged_weights()))
        used = ("_conv_stem", *(f"_blocks.{i}." for i in range(max(chosen) + 1)))
        return {"perceptual": {k: v for k, v in params.items() if k.startswith(used)}}

    features = lambda params, pixels: efficientnet.block_features(params, pixels, chosen)
    return Perceptual(features, lambda params: [], weight), read


def lpips(weights: str, weight: float = 1.0) -> tuple[Perceptual, Callable[[], Params]]:
    """LPIPS with VGG16 (Zhang et al. 2018).

    Args:
        weights: a .safetensors file, see ``convert.vgg.from_lpips``.
        weight: in the loss.
    """
    if not Path(weights).is_file():
        raise ValueError(
            f"config.first_stage.perceptual: weights = {weights!r} is no file; give LPIPS's VGG16 "
            "as .safetensors, or take 'efficientnet()'"
        )
    read = lambda: {"perceptual": from_lpips(read_safetensors(weights))}
    return Perceptual(vgg.features, vgg.heads, weight), read


def _patch_gan(
    game: str, weight: float = 0.5, start: int = 0, channels: int = 64, halvings: int = 3
) -> Adversary:
    module = PatchDiscriminator(channels, halvings)
    logits = lambda params, x: jnp.asarray(module.apply({"params": params}, x))
    return Adversary(partial(_init, module), logits, GAMES[game], weight, start)


class Measured(NamedTuple):
    """What ``latents.json`` holds: x0 is scale·(raw latent - shift).

    Attributes:
        scale, shift: a number or a list of one for each channel.
        step: of the checkpoint that was measured.
    """

    scale: Any
    shift: Any
    step: int


def open_autoencoder(workdir: str | os.PathLike, step: int = 0) -> tuple[Any, Params, int]:
    """(module, params, step) of a run, its parameters averaged; 0 for the newest step.

    Raises:
        ValueError: if the folder holds no run, or none of an autoencoder.
    """
    config: Any = ConfigDict(read_config(workdir))
    if config.model.name not in AUTOENCODERS:
        raise ValueError(
            f"{workdir} holds a run of config.model.name = {config.model.name!r}; give one of "
            f"{', '.join(sorted(AUTOENCODERS))}"
        )
    params, held = averaged(workdir, config.ema, step)
    return network(config), params["autoencoder"], held


def measured(workdir: str | os.PathLike) -> Measured:
    """The scale of a run's latents.

    Raises:
        ValueError: if it was not measured.
    """
    path = Path(workdir) / MEASURED
    if not path.exists():
        raise ValueError(
            f"{path} is missing, so the scale of its latents is unknown; run "
            f"`python scripts/encode_latents.py --workdir={workdir} --data=NAME`"
        )
    try:
        held = json.loads(path.read_text())
        return Measured(held["scale"], held["shift"], held["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error!r}); make it again by scripts/encode_latents.py"
        ) from None


def load_autoencoder(workdir: str | os.PathLike) -> tuple[Any, Params, Codec]:
    """A trained first stage: (module, params, codec with the measured scale).

    The parameters are of the checkpoint that was measured.

    Raises:
        ValueError: if there is no run, no such checkpoint, or no scale.
    """
    known = measured(workdir)
    module, params, _ = open_autoencoder(workdir, known.step)
    return module, params, codec(module, known.scale, known.shift)


def first_stage(config: Config) -> FirstStage:
    """What ``config.model.autoencoder``, a run's folder, means for a diffusion model; "" is pixels.

    Data sets of latents are encoded already, so ``encode`` then leaves them as they are.

    Returns:
        (codec, frozen): the codec reads ``frozen()["autoencoder"]``.

    Raises:
        ValueError: as ``load_autoencoder``, or if the latents are of another scale or step.
    """
    workdir = config.model.get("autoencoder", "")
    if not workdir:
        return FirstStage(IDENTITY, dict)
    known = measured(workdir)
    encoding = codec(network(ConfigDict(read_config(workdir))), known.scale, known.shift)
    if config.data.name.startswith(LATENTS):
        held = Measured(*latents_scale(config.data.name, config.data.dir or None))
        if held != known:
            raise ValueError(
                f"config.data.name = {config.data.name!r} was encoded with {held}, but "
                f"config.model.autoencoder = {workdir!r} has {known}; encode it again by "
                "scripts/encode_latents.py"
            )
        encoding = encoding._replace(encode=IDENTITY.encode)
    read = lambda: {"autoencoder": open_autoencoder(workdir, known.step)[1]}
    return FirstStage(encoding, read)


def code_shape(config: Config) -> tuple[int, ...]:
    """Of one latent, (h, w, z), for images of ``config.data.image_size``."""
    module = network(ConfigDict(read_config(config.model.autoencoder)))
    height, width = config.data.image_size
    channels = getattr(module, "entry_channels", 0) or module.latent_channels
    return (height // module.factor, width // module.factor, channels)


PERCEPTUALS: dict[str, Callable[..., tuple[Perceptual, Callable[[], Params]]]] = {
    "efficientnet": efficientnet_features,
    "lpips": lpips,
}
ADVERSARIES: dict[str, Callable[..., Adversary]] = {
    game: partial(_patch_gan, game) for game in GAMES
}
BOTTLENECKS_OF: Mapping[str, tuple[str, ...]] = {
    "autoencoder_kl": ("kl",),
    "autoencoder_vq": ("vq", "vq_ema"),
}
