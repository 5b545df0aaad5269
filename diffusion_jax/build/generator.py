"""What draws, from whatever holds it: a run, a release, a student, a checkpoint folder or file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build.checkpoint import finetune, tuning
from diffusion_jax.build.checkpoint.open import open_checkpoint
from diffusion_jax.build.checkpoint.own import with_loras
from diffusion_jax.build.first_stage import AutoencoderExperiment
from diffusion_jax.build.runs import Run, open_experiment, open_run, run_config
from diffusion_jax.convert.stable_diffusion import INDEX
from diffusion_jax.spec import Config
from diffusion_jax.train.workdir import CONFIG, read_config


def open_source(source: str, settings: Config, config: Config | None = None) -> Generator | Run:
    """Read what is to be drawn from, once.

    Args:
        source: a folder, a file, or the name of a repository that the Hugging Face hub's cache on
            this machine holds, such as "stabilityai/sdxl-turbo".
        settings: of ``configs/sample.py``: how to read it, such as the LoRAs to merge.
        config: of a run, in place of what its folder says.

    Returns:
        A ``Generator`` with its weights on the host; of a first stage, which draws nothing by
        itself, its run.

    Raises:
        FileNotFoundError: naming what a checkpoint lacks.
        ValueError: for what holds no model, or a setting that it does not know.
    """
    if not source:
        raise ValueError(
            "config.checkpoint is empty; name a run's folder, a Stable Diffusion folder or a "
            ".safetensors file"
        )
    path = _cached(source) or Path(source)
    for kind in SOURCES:
        if kind.holds(path):
            return kind.open(path, settings, config)
    raise ValueError(
        f"there is no checkpoint at {path}, neither {INDEX} nor a .safetensors file, and it holds "
        f"no run: {CONFIG} is missing; train there first"
    )


def _cached(source: str) -> Path | None:
    """The snapshot of a repository that the hub's cache holds; nothing is fetched."""
    if Path(source).exists() or source.count("/") != 1:
        return None
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    repository = hub / f"models--{source.replace('/', '--')}"
    head = repository / "refs" / "main"
    return repository / "snapshots" / head.read_text().strip() if head.is_file() else None


class Source(NamedTuple):
    """A kind of what can be drawn from.

    Attributes:
        holds: whether a path is of this kind.
        open: (path, settings, config or None) -> the generator.
    """

    holds: Callable[[Path], bool]
    open: Callable[[Path, Config, Config | None], Generator | Run]


def describe(config: Config) -> Any:
    """The experiment that a config of training describes: from nothing, a student, or a tuning.

    Raises:
        ValueError: for a field that names nothing, or fields that contradict one another.
    """
    if "tuning" in config:
        return finetune.experiment(config, open_source)
    return open_experiment(config)


def abstract_generator(config: Config) -> Generator:
    """What a config would draw with: of a training, untrained weights as shapes."""
    if "train" not in config:
        source: Any = open_source(config.checkpoint, config)
        return source
    experiment, shape = describe(config), jax.ShapeDtypeStruct
    one = {"image": shape((1, *experiment.shape), jnp.float32), **experiment.conditioning.example}
    key = jax.eval_shape(lambda: jax.random.key(0))
    params = jax.eval_shape(experiment.recipe.init, key, one)
    weights = jax.eval_shape(lambda p: experiment.weights(experiment.frozen(), p), params)
    return experiment.generator._replace(weights=weights)


def _run(path: Path, settings: Config, config: Config | None) -> Generator | Run:
    if settings.get("embeddings"):
        raise ValueError(
            f"config.embeddings = {tuple(settings.embeddings)} are words of a Stable Diffusion "
            f"checkpoint, and {path} is a run of its own; leave them away"
        )
    if settings.get("clip_skip"):
        raise ValueError(
            f"config.clip_skip = {settings.clip_skip} is of a Stable Diffusion checkpoint's text "
            f"encoders, and {path} is a run of its own; leave it away"
        )
    chosen: Config = config or run_config(path, {"sampler.params": settings.sampler.params})
    if config is None:
        chosen.data.dir = settings.data.dir or chosen.data.dir
        chosen.mesh = settings.mesh
    run = open_run(chosen, path)
    if isinstance(run.experiment, AutoencoderExperiment):
        return run
    generator = run.generator()
    return generator._replace(weights=with_loras(generator.weights, settings.lora))


def _tuned(path: Path, settings: Config, config: Config | None) -> Generator | Run:
    return tuning.used(path, settings, open_source)


def _is_run(path: Path) -> bool:
    return (path / CONFIG).is_file() and not (path / INDEX).is_file()


def _is_tuned(path: Path) -> bool:
    return _is_run(path) and "tuning" in read_config(path)


def _is_checkpoint(path: Path) -> bool:
    return path.is_file() or (path / INDEX).is_file()


# The more special kinds first.
SOURCES = (
    Source(_is_checkpoint, lambda path, settings, config: open_checkpoint(str(path), settings)),
    Source(_is_tuned, _tuned),
    Source(_is_run, _run),
)
