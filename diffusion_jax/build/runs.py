"""A finished or running run: its config, its parameters, and what may be chosen anew."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from diffusion_jax.apps.plan import Generator
from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.few_step import distillation
from diffusion_jax.build.weights import averaged, is_release, settings
from diffusion_jax.core.types import Params
from diffusion_jax.spec import Config, plain
from diffusion_jax.spec import build as build_from
from diffusion_jax.train import snapshots
from diffusion_jax.train.checkpoint import restore_params_at
from diffusion_jax.train.workdir import CONFIG, NEUTRAL, differences, flat, read_config

# What the parameters mean; sampling and evaluation may choose everything else anew.
FIXED = (
    "process",
    "model",
    "text",
    "distill",
    "loss.learned_variance",
    "data.image_size",
    "data.channels",
    "data.num_classes",
)

# Relative error of a profile from which on its average is no longer the one wanted.
POOR = 0.1


# Sections with fields that are newer than some runs, which then take their defaults.
LATER = ("data", "sampler", "evaluate", "text", "mesh")


class Run(NamedTuple):
    """A trained model: config, what its parameters mean, and the parameters (averaged, or not).

    The experiment is what ``open_experiment`` makes; parameters are on the host.
    """

    config: Config
    experiment: Any
    params: Params
    step: int

    def generator(self) -> Generator:
        """The run as a ``Generator``, with its weights."""
        weights = self.experiment.weights(self.experiment.frozen(), self.params)
        name = f"sample_{self.step:07d}"
        return self.experiment.generator._replace(weights=weights, name=name, origin=self)


def run_config(workdir: str | os.PathLike, overrides: dict[str, Any] | None = None) -> Config:
    """The config that a run was trained with, with fields replaced.

    Args:
        workdir: the run's folder.
        overrides: such as {"sampler.steps": 20}.

    Raises:
        ValueError: if there is no run, or a field is unknown or says what the parameters mean.
    """
    config: Config = ConfigDict(settings(workdir))
    if "model" not in config:
        raise ValueError(
            f"{Path(workdir) / CONFIG} is not of a run, as it has no field 'model'; name a run's "
            "folder, or of a checkpoint the one with model_index.json"
        )
    for section in LATER if "process" in config else ():  # fields newer than the run
        if section not in config:
            config[section] = ConfigDict()
        for name, value in experiments.defaults()[section].items():
            if name not in config[section]:
                config[section][name] = value
    for field, value in (overrides or {}).items():
        if _is_fixed(field):
            held = read_config(workdir)
            raise ValueError(
                f"config.{field} says what the parameters of {workdir} mean, and cannot change "
                f"after training (it is {_at(held, field)!r} there)"
            )
        known = flat(config.to_dict())
        if field not in known:
            near = difflib.get_close_matches(field, known, 1)
            mend = f"did you mean {near[0]!r}?" if near else "configs/base.py has them all"
            raise ValueError(f"the config has no field {field!r}; {mend}")
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"config.{field} = {value!r} does not fit the config: {error}"
            ) from None
    return config


def open_run(config: Config, workdir: str | os.PathLike) -> Run:
    """The run in a folder, its parameters as ``config.sampler.params`` says (see ``PARAMS``).

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
    experiment = open_experiment(config)
    if is_release(workdir) and not config.sampler.params.startswith("ema"):
        raise ValueError(
            f"config.sampler.params = {config.sampler.params!r} needs checkpoints, and {workdir} "
            "is a release with its average alone; leave it at 'ema'"
        )
    context = {"workdir": workdir, "ema": held["ema"]}
    loaded, step = build_from(PARAMS, config.sampler.params, "sampler.params", **context)
    return Run(config, experiment, loaded, step)


def open_experiment(config: Config) -> Any:
    """What a run's config describes: a student of a teacher, or what ``experiment`` makes.

    Raises:
        ValueError: for a field that names nothing, or the config of a tuning.
    """
    if "tuning" in config:
        raise ValueError(
            f"config.tuning = {config.tuning!r}: this is the tuning of {config.checkpoint}, no run "
            "by itself; draw with it by --mode=sample, or name the folder checkpoint_... that "
            "'full()' leaves in it"
        )
    describe = distillation.experiment if config.get("distill") else experiments.experiment
    return describe(config)


def open_reference(section: Config, generator: Generator) -> Run | None:
    """The worse run that guides a model, ``config.sampler.reference``; None if none is named.

    Raises:
        ValueError: if the folder holds no run, or one of other shapes or classes.
    """
    if not section.reference:
        return None
    folder = section.reference
    config = run_config(folder, {"sampler.params": section.reference_params})
    theirs, ours = _data_of(open_experiment(config).generator), _data_of(generator)
    for field, here in ours.items():
        if here != theirs[field]:
            raise ValueError(
                f"config.sampler.reference = {folder!r} holds a run with {field} = "
                f"{theirs[field]!r}, and this one has {here!r}; name a run on the same data"
            )
    return open_run(config, folder)


def _data_of(generator: Generator) -> dict[str, Any]:
    """What two models share that guide one another; their networks may differ."""
    geometry = generator.geometry
    return {
        "data.image_size": geometry.size,
        "data.channels": geometry.channels,
        "data.num_classes": generator.classes,
        "shape of x": geometry.shape,
    }


def last(workdir: str | os.PathLike, step: int = 0) -> tuple[Params, int]:
    """The parameters of a checkpoint themselves, 0 for the newest, and its step."""
    return restore_params_at(workdir, "params", step or None)


def posthoc(
    workdir: str | os.PathLike, sigma_rel: float = 0.1, step: int = 0
) -> tuple[Params, int]:
    """The power-function average of any width, from the snapshots, and its step.

    Args:
        workdir: the run's folder.
        sigma_rel: width of its profile over the training time (``core.power_ema``).
        step: up to which it averages; 0 for the newest snapshot.
    """
    stored, combination = snapshots.plan(workdir, sigma_rel, step or None)
    end = step or stored[-1].step
    if combination.error > POOR:
        warnings.warn(
            f"posthoc(sigma_rel={sigma_rel}) is {combination.error:.0%} off as a profile; it needs "
            "more snapshots, or widths nearer to it in config.ema",
            stacklevel=2,
        )
    return snapshots.reconstruct(workdir, sigma_rel, end), end


def _is_fixed(field: str) -> bool:
    if field in NEUTRAL:
        return False
    return any(field == fixed or field.startswith(fixed + ".") for fixed in FIXED)


def _at(config: dict[str, Any], field: str) -> Any:
    value: Any = config
    for part in field.split("."):
        value = value.get(part, "absent") if isinstance(value, dict) else "absent"
    return value


# What config.sampler.params chooses from.
PARAMS: dict[str, Callable[..., tuple[Params, int]]] = {
    "ema": averaged,
    "params": last,
    "posthoc": posthoc,
}
