"""What of a model is trained, how samples are drawn during training, and what file it leaves.

Each entry of ``TUNINGS`` is one way: a few factors beside the weights (LoRA), all weights of the
denoiser, or the vectors of a new word (textual inversion).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from diffusion_jax.apps.plan import Generator, Weights
from diffusion_jax.convert.stable_diffusion import Checkpoint
from diffusion_jax.convert.textual_inversion import Word, write_word
from diffusion_jax.core.types import Params, Recipe
from diffusion_jax.data.tokenizers import Tokenizer
from diffusion_jax.recipes import lora
from diffusion_jax.recipes.textual_inversion import textual_inversion, with_vectors
from diffusion_jax.spec import Config, build
from diffusion_jax.train.workdir import read_config

LORA, WORD, WHOLE = "lora.safetensors", "word.safetensors", "checkpoint_"

# Of a tuning's config, what is drawn of it unless the settings say otherwise.
_DRAWN = ("negative_prompt", "labels", "n", "seed", "image_size", "batch_size")


# Of a tuning's config, how what was tuned is read unless the settings say otherwise.
_READ = ("tokenizers", "lora", "embeddings", "prediction_type", "variant", "clip_skip")


class Files(NamedTuple):
    """How what was tuned is written, in the names that its kind of model has.

    Attributes:
        lora: (path, factors by path of a kernel, alphas, metadata) -> None.
        whole: (folder, parameters of the denoiser, dtype) -> None; the folder appears whole.
    """

    lora: Callable[[Path, lora.Factors, dict[str, float], dict[str, str]], None]
    whole: Callable[[Path, Params, Any], None]


class Plan(NamedTuple):
    """One way to train a model that is there already.

    Attributes:
        words: (config, checkpoint, tokenizers) -> words that are added to them first; None for a
            plan without, which any model can follow.
        recipe: (recipe over all of the denoiser's weights, weights) -> what is trained.
        frozen: (all weights) -> what the loss reads and leaves alone.
        start: (all weights) -> what the trained parameters start from; None for ``recipe.init``'s.
        weights: (frozen, params) -> all weights, to draw with.
        save: (config, files, params as NumPy arrays, folder, step) -> the file or folder written.
        used: (settings of ``configs/sample.py``, folder) -> those that draw with what was saved.
    """

    words: Callable[[Config, Checkpoint, Sequence[Tokenizer]], Sequence[Word]] | None
    recipe: Callable[[Recipe, Weights], Recipe]
    frozen: Callable[[Weights], Params]
    start: Callable[[Weights], Params | None]
    weights: Callable[[Params, Params], Weights]
    save: Callable[[Config, Files, Params, Path, int], Path]
    used: Callable[[Config, Path], Config]


def plan(config: Config) -> Plan:
    """What ``config.tuning`` says.

    Raises:
        ValueError: for a name or an argument that is none.
    """
    return build(TUNINGS, config.tuning, "tuning")


def low_rank(rank: int = 8, alpha: float = 0.0, targets: str = lora.ATTENTION) -> Plan:
    """A LoRA (``recipes.lora``), left as lora.safetensors.

    Args:
        rank: of the factors.
        alpha: the change is alpha/rank times their product; 0 means the rank.
        targets: regex searched in the paths of the denoiser's kernels.
    """
    own = alpha or None

    def weights(frozen: Params, params: Params) -> Weights:
        return _weights(frozen, lora.merged(frozen["base"], params["lora"], 1.0, own))

    def save(config, files, params, folder, step):
        alphas = {} if own is None else dict.fromkeys(params["lora"], own)
        files.lora(folder / LORA, params["lora"], alphas, {"prompt": config.prompt})
        return folder / LORA

    return Plan(
        words=None,
        recipe=lambda whole, weights: lora.adapted(whole, rank, targets, own),
        frozen=_with_base,
        start=lambda weights: None,
        weights=weights,
        save=save,
        used=lambda config, folder: _with(config, "lora", (*config.lora, str(folder / LORA))),
    )


def full(dtype: str = "float32") -> Plan:
    """All weights of the denoiser, in float32; left as a folder of its kind: diffusers' layout of a
    checkpoint, a release of a run.

    Args:
        dtype: of what is left: float32, bfloat16 or float16.
    """
    if dtype not in ("float32", "bfloat16", "float16"):
        raise ValueError(
            f"config.tuning: full(dtype={dtype!r}); known are float32, bfloat16 and float16"
        )

    def save(config, files, params, folder, step):
        out = folder / f"{WHOLE}{step:07d}"
        if not out.exists():  # the same run and step: the same weights
            files.whole(out, params, jnp.dtype(dtype))
        return out

    def used(config: Config, folder: Path) -> Config:
        folders = sorted(folder.glob(f"{WHOLE}*"))
        if not folders:
            raise ValueError(
                f"{folder} holds no {WHOLE}: the tuning has not come to its end; start it again, "
                "and it goes on"
            )
        chosen = _with(config, "checkpoint", str(folders[-1]))
        chosen.sampler.params = "ema"  # what is left has but one set of parameters
        return chosen

    return Plan(
        words=None,
        recipe=lambda whole, weights: whole,
        frozen=lambda weights: weights.frozen,
        start=lambda weights: weights.params,
        weights=_weights,
        save=save,
        used=used,
    )


def word(name: str, start_from: str, vectors: int = 1) -> Plan:
    """A new word (textual inversion), left as word.safetensors.

    Args:
        name: such as "<cat-toy>".
        start_from: a word near to what is meant, one token.
        vectors: tokens that the new word stands for.
    """

    def words(config: Config, checkpoint: Checkpoint, tokenizers: Sequence[Tokenizer]):
        if not name.strip():
            raise ValueError(f"config.tuning = {config.tuning!r}: name a word, such as '<cat-toy>'")
        if vectors < 1:
            raise ValueError(f"config.tuning = {config.tuning!r}: vectors must be at least 1")
        if config.prompt and name not in config.prompt:
            raise ValueError(
                f"config.prompt = {config.prompt!r} lacks the word {name!r} that is taught; write "
                f"it in, such as 'a photo of {name}'"
            )
        rows = [_row(tokenizer, start_from) for tokenizer in tokenizers]
        tables = [part.params["token"]["embedding"] for part in checkpoint.text_encoders]
        near = [np.asarray(t[row], np.float32) for t, row in zip(tables, rows, strict=True)]
        return [Word(name, tuple(np.repeat(v[None], vectors, 0) for v in near))]

    def recipe(whole: Recipe, weights: Weights) -> Recipe:
        tables = [text["token"]["embedding"] for text in weights.frozen["text"]]
        return textual_inversion(whole, [np.asarray(t[-vectors:]) for t in tables])

    def weights(frozen: Params, params: Params) -> Weights:
        return _weights(with_vectors(frozen, params["vectors"]), frozen["base"])

    def save(config, files, params, folder, step):
        write_word(folder / WORD, name, params["vectors"])
        return folder / WORD

    return Plan(
        words=words,
        recipe=recipe,
        frozen=_with_base,
        start=lambda weights: None,
        weights=weights,
        save=save,
        used=lambda config, folder: _with(
            config, "embeddings", (*config.embeddings, f"{name}={folder / WORD}")
        ),
    )


def used(folder: Path, settings: Config, open_source: Callable[..., Any]) -> Generator:
    """What a tuning has left in its folder, as a ``Generator``, drawn with as its config says.

    Args:
        folder: of the tuning.
        settings: of ``configs/sample.py``.
        open_source: ``build.generator.open_source``.
    """
    config: Config = ConfigDict(read_config(folder))
    chosen = settings.copy_and_resolve_references().unlock()
    for name in _READ:
        chosen[name] = settings[name] or config.get(name, settings[name])
    chosen.checkpoint = config.checkpoint
    chosen.sampler.params = config.sampler.params  # of the run that was tuned
    chosen = plan(config).used(chosen, folder)
    generator = open_source(chosen.checkpoint, chosen)
    section = {k: v for k, v in config.sampler.items() if v not in ("", None)}
    prompts = tuple(config.prompts) or ((config.prompt,) if config.prompt else ())
    drawn = {name: config[name] for name in _DRAWN if config.get(name)}
    drawn |= {"prompts": prompts} if prompts else {}
    post = section.pop("post", ())
    if "solver" in section:  # which brings its own bounds on x0
        section["post"] = post
    return generator._replace(sampling={**generator.sampling, **section, **drawn})


def _row(tokenizer: Tokenizer, start_from: str) -> int:
    """The id of the one token of a word."""
    ids = tokenizer.raw([start_from])[0]
    if len(ids) != 1:
        raise ValueError(
            f"config.tuning: start_from = {start_from!r} is {len(ids)} tokens of this checkpoint; "
            "name a word that is one, such as 'cat'"
        )
    return ids[0]


def _with_base(weights: Weights) -> Params:
    return {"base": weights.params, **weights.frozen}


def _weights(frozen: Params, params: Params) -> Weights:
    return Weights(params, {name: part for name, part in frozen.items() if name != "base"})


def _with(config: Config, field: str, value: Any) -> Config:
    chosen = config.copy_and_resolve_references()
    chosen[field] = value
    return chosen


TUNINGS: dict[str, Callable[..., Plan]] = {"lora": low_rank, "full": full, "word": word}
