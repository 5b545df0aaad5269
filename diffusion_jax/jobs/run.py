"""A finished or running run: its config, its parameters, and what may be chosen anew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.core.types import Params
from diffusion_jax.spec import Config
from diffusion_jax.train.checkpoint import restore_params, steps
from diffusion_jax.train.workdir import differences, read_config

# What the parameters mean; sampling and evaluation may choose everything else anew.
FIXED = (
    "process",
    "model",
    "loss.learned_variance",
    "data.image_size",
    "data.channels",
    "data.num_classes",
)


class Run(NamedTuple):
    """A trained model: config, what its parameters mean, and the parameters (averaged, or not)."""

    config: Config
    experiment: build.Experiment
    params: Params
    step: int


def run_config(workdir: str | os.PathLike, overrides: dict[str, Any] | None = None) -> Config:
    """The config that a run was trained with, with fields replaced.

    Args:
        workdir: the run's folder.
        overrides: such as {"sampler.steps": 20}.

    Raises:
        ValueError: if there is no run, or a field is unknown or says what the parameters mean.
    """
    config: Config = ConfigDict(read_config(workdir))
    for field, value in (overrides or {}).items():
        if _is_fixed(field):
            held = read_config(workdir)
            raise ValueError(
                f"config.{field} says what the parameters of {workdir} mean, and cannot change "
                f"after training (it is {_at(held, field)!r} there)"
            )
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"config.{field} = {value!r} does not fit the config: {error}"
            ) from None
    return config


def open_run(config: Config, workdir: str | os.PathLike) -> Run:
    """The run in a folder, its parameters as ``config.sampler.params`` says ("ema" or "params").

    Raises:
        ValueError: if the folder holds no run, no good checkpoint, or a run of another model.
    """
    held = read_config(workdir)
    differing = [name for name in differences(held, plain(config)) if _is_fixed(name)]
    if differing:
        field = differing[0]
        raise ValueError(
            f"workdir {workdir} holds a run of another model: config.{field} is "
            f"{_at(held, field)!r} there and {_at(plain(config), field)!r} here; "
            "leave --config away to use the run's own"
        )
    experiment = build.experiment(config)
    loaded = restore_params(workdir, config.sampler.params)
    params = jax.tree.map(jnp.asarray, loaded)
    return Run(config, experiment, params, max(steps(workdir)))


def cache_compilations() -> None:
    """Keep compiled programs on disk, so that the next start skips the compiler.

    In $JAX_COMPILATION_CACHE_DIR, or ~/.cache/diffusion_jax.
    """
    if not jax.config.values["jax_compilation_cache_dir"]:
        folder = Path("~/.cache/diffusion_jax").expanduser()
        jax.config.update("jax_compilation_cache_dir", str(folder))


def plain(config: Config) -> dict[str, Any]:
    """The config as JSON keeps it: dicts, lists, numbers and strings."""
    return json.loads(json.dumps(config.to_dict()))


def _is_fixed(field: str) -> bool:
    return any(field == fixed or field.startswith(fixed + ".") for fixed in FIXED)


def _at(config: dict[str, Any], field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value.get(part, "absent") if isinstance(value, dict) else "absent"
    return value
