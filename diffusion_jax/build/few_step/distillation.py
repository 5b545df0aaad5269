"""From a teacher's run to a student, by ``config.distill``.

The student has its teacher's data, process and network, which is told more numbers where the method
says so, and starts from its teacher's parameters, or those of another of its students
(``config.student``).  A run's config is whole (``with_teacher``), so that the student is sampled
and evaluated without its teacher.
"""

from __future__ import annotations

import json

from ml_collections import ConfigDict

from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.few_step.method import Method, Pair
from diffusion_jax.build.few_step.methods import METHODS
from diffusion_jax.build.weights import averaged, settings
from diffusion_jax.core.types import Params
from diffusion_jax.data.catalog import LATENTS
from diffusion_jax.spec import Config
from diffusion_jax.spec import build as build_from
from diffusion_jax.train.workdir import NEUTRAL, differences, flat, read_config

# What is the teacher's; a student's config has the rest.
INHERITED = ("data", "text", "process", "model", "loss")


def with_teacher(config: Config) -> Config:
    """A config of ``configs/distill/*.py`` with all that it takes over from ``config.teacher``.

    A config without that field is left as it is.

    Raises:
        ValueError: if that is no folder of a diffusion model's run.
    """
    if "teacher" not in config:
        return config
    if not config.teacher:
        raise ValueError(
            "config.teacher is empty; name the folder of a trained run: --config.teacher=runs/mnist"
        )
    held: Config = ConfigDict(settings(config.teacher))
    name = held.get("model", {}).get("name")
    if "process" not in held or name in experiments.EXPERIMENTS:
        raise ValueError(
            f"config.teacher = {config.teacher!r} holds no diffusion model (it is of model.name = "
            f"{name!r}); name a run such as configs/mnist.py makes"
        )
    if held.model[name].get("scalars"):
        raise ValueError(
            f"config.teacher = {config.teacher!r} was distilled by {held.distill!r}, and is told "
            f"{tuple(held.model[name].scalars)}; name a run that is told levels alone"
        )
    whole: Config = experiments.defaults().unlock()
    for section in INHERITED:
        if section in held:
            whole[section] = held[section]
    # A release names pictures; training reads their codes.
    if whole.model.get("autoencoder", "") and not whole.data.name.startswith(LATENTS):
        whole.data.name = LATENTS + whole.data.name
    for field in config:
        whole[field] = config[field]
    if not config.sampler.prompts:
        prompts = held.get("sampler", {}).get("prompts", ())
        whole.sampler = ConfigDict({**config.sampler, "prompts": prompts})
    how = method(config)
    if how.scalars:
        whole.model[name].scalars = how.scalars
    if how.groups:
        if config.optimizer.groups:
            raise ValueError(
                f"config.optimizer.groups = {config.optimizer.groups} is of what config.distill = "
                f"{config.distill!r} says; leave it empty and give that its ratio and factors"
            )
        whole.optimizer = ConfigDict({**config.optimizer, "groups": how.groups})
    return whole.lock()


def experiment(config: Config) -> experiments.Experiment:
    """A student, of a config that ``with_teacher`` made."""
    how, plain = method(config), experiments.diffusion_experiment(config)
    teacher = plain.model
    if how.scalars:
        theirs = config.copy_and_resolve_references().unlock()
        del theirs.model[config.model.name].scalars
        teacher = experiments.diffusion_experiment(theirs).model
    student = plain.model._replace(student=how.reads)
    pair = Pair(
        student, teacher, experiments.initialiser(config), config.loss.condition_dropout,
        config.model.name, experiments.network(config, plain.shape[-1]), plain.frozen,
        len(plain.shape) == 3 and not config.model.get("autoencoder", ""),
        config.data.num_classes,
    )  # fmt: skip

    def taught() -> Params:
        return {"teacher": _params(config.teacher), **how.frozen()}

    return plain._replace(
        generator=plain.generator._replace(model=student),
        recipe=how.recipe(pair),
        taught=taught,
        start=lambda: _start(config, how),
    )


def _start(config: Config, how: Method) -> Params:
    """The teacher's parameters for each network; those of ``config.student`` for what is trained.

    Raises:
        ValueError: if that is no run of the same network.
    """
    start = dict.fromkeys(how.copies, _params(config.teacher)["net"])
    if not config.get("student"):
        return start
    held, mine = settings(config.student), json.loads(config.to_json())
    if not held.get("model", {}).get(config.model.name, {}).get("scalars"):
        mine["model"][config.model.name].pop("scalars", None)  # which are learned anew
    of = lambda whole: {name: whole.get(name, {}) for name in ("process", "model")}
    if differing := [name for name in differences(of(held), of(mine)) if name not in NEUTRAL]:
        theirs, ours = (flat(of(whole)).get(differing[0]) for whole in (held, mine))
        raise ValueError(
            f"config.student = {config.student!r} has another network than config.teacher = "
            f"{config.teacher!r}: {differing[0]} is {theirs!r} there and {ours!r} here; name a run "
            "that was distilled from the same teacher"
        )
    return {**start, "net": _params(config.student)["net"]}


def method(config: Config) -> Method:
    """What ``config.distill`` names.

    Raises:
        ValueError: for a name or an argument that is none; the sentence names the field.
    """
    try:
        return build_from(METHODS, config.distill, "distill", total=config.train.steps)
    except ValueError as error:
        if "config.distill" in str(error):
            raise
        raise ValueError(f"config.distill = {config.distill!r}: {error}") from None


def _params(folder: str) -> Params:
    return averaged(folder, read_config(folder)["ema"])[0]
