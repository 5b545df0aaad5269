"""From a teacher's run to a student, by ``config.distill``.

The student has its teacher's data, process and network, with further scalar conditions where the
method needs them, and starts from its teacher's parameters, or from those of another student
(``config.student``).  A student's config is complete (``with_teacher``), so that it is sampled and
evaluated without its teacher.
"""

from __future__ import annotations

from ml_collections import ConfigDict

from diffusion_jax.build import experiment as experiments
from diffusion_jax.build.few_step.method import Method, Setup
from diffusion_jax.build.few_step.methods import METHODS
from diffusion_jax.build.weights import averaged, settings
from diffusion_jax.core.types import Params
from diffusion_jax.data.catalog import LATENTS
from diffusion_jax.spec import Config, plain
from diffusion_jax.spec import build as build_from
from diffusion_jax.train.workdir import NEUTRAL, differences, flat, read_config

# Sections of the teacher's config that a student inherits.
INHERITED = ("data", "text", "process", "model", "loss")


def with_teacher(config: Config) -> Config:
    """A config of ``configs/distill/*.py``, completed from the config of ``config.teacher``.

    A config without that field is left as it is.

    Raises:
        ValueError: if ``config.teacher`` is not the folder of a diffusion model's run.
    """
    if "teacher" not in config:
        return config
    if not config.teacher:
        raise ValueError(
            "config.teacher is empty; name the folder of a trained run: --config.teacher=runs/mnist"
        )
    teacher_config: Config = ConfigDict(settings(config.teacher))
    name = teacher_config.get("model", {}).get("name")
    if "process" not in teacher_config or name in experiments.EXPERIMENTS:
        raise ValueError(
            f"config.teacher = {config.teacher!r} holds no diffusion model (its model.name is "
            f"{name!r}); name a run such as that of configs/mnist.py"
        )
    if teacher_config.model[name].get("scalars"):
        raise ValueError(
            f"config.teacher = {config.teacher!r} was distilled by {teacher_config.distill!r} "
            f"and is conditioned on {tuple(teacher_config.model[name].scalars)}; name a run "
            "that is conditioned on noise levels alone"
        )
    student_config: Config = experiments.defaults().unlock()
    for section in INHERITED:
        if section in teacher_config:
            student_config[section] = teacher_config[section]
    # A release names the data set of pictures; training reads their latents.
    if student_config.model.get("autoencoder", "") and not student_config.data.name.startswith(
        LATENTS
    ):
        student_config.data.name = LATENTS + student_config.data.name
    for field in config:
        student_config[field] = config[field]
    if not config.sampler.prompts:
        prompts = teacher_config.get("sampler", {}).get("prompts", ())
        student_config.sampler = ConfigDict({**config.sampler, "prompts": prompts})
    method = read_method(config)
    if method.scalars:
        student_config.model[name].scalars = method.scalars
    if method.groups:
        if config.optimizer.groups:
            raise ValueError(
                f"config.optimizer.groups = {config.optimizer.groups} is set by config.distill = "
                f"{config.distill!r}; leave it empty and give that its ratio and factors"
            )
        student_config.optimizer = ConfigDict({**config.optimizer, "groups": method.groups})
    return student_config.lock()


def experiment(config: Config) -> experiments.Experiment:
    """A student's experiment; ``config`` as completed by ``with_teacher``."""
    method, diffusion = read_method(config), experiments.diffusion_experiment(config)
    teacher = diffusion.model
    if method.scalars:
        teacher_config = config.copy_and_resolve_references().unlock()
        del teacher_config.model[config.model.name].scalars
        teacher = experiments.diffusion_experiment(teacher_config).model
    student = diffusion.model._replace(student=method.student)
    setup = Setup(
        student, teacher, experiments.initialiser(config), config.loss.condition_dropout,
        config.model.name, experiments.network(config, diffusion.shape[-1]), diffusion.frozen,
        len(diffusion.shape) == 3 and not config.model.get("autoencoder", ""),
        config.data.num_classes,
    )  # fmt: skip

    def training_only() -> Params:
        return {"teacher": _params(config.teacher), **method.frozen()}

    return diffusion._replace(
        generator=diffusion.generator._replace(model=student),
        recipe=method.recipe(setup),
        training_only=training_only,
        start=lambda: _start(config, method),
    )


def _start(config: Config, method: Method) -> Params:
    """Parameters to start from: the teacher's, or ``config.student``'s for the student's network.

    Raises:
        ValueError: if ``config.student`` is not a run of the same network.
    """
    start = dict.fromkeys(method.copies, _params(config.teacher)["net"])
    if not config.get("student"):
        return start
    student_config, this_config = settings(config.student), plain(config)
    if not student_config.get("model", {}).get(config.model.name, {}).get("scalars"):
        this_config["model"][config.model.name].pop("scalars", None)  # their embeddings start anew
    of = lambda whole: {name: whole.get(name, {}) for name in ("process", "model")}
    if differing := [
        name for name in differences(of(student_config), of(this_config)) if name not in NEUTRAL
    ]:
        theirs, ours = (
            flat(of(whole)).get(differing[0]) for whole in (student_config, this_config)
        )
        raise ValueError(
            f"config.student = {config.student!r} has another network than config.teacher = "
            f"{config.teacher!r}: {differing[0]} is {theirs!r} there and {ours!r} here; name a run "
            "that was distilled from the same teacher"
        )
    return {**start, "net": _params(config.student)["net"]}


def read_method(config: Config) -> Method:
    """The method that ``config.distill`` names.

    Raises:
        ValueError: for an unknown name or argument; the message names the field.
    """
    try:
        return build_from(METHODS, config.distill, "distill", total=config.train.steps)
    except ValueError as error:
        if "config.distill" in str(error):
            raise
        raise ValueError(f"config.distill = {config.distill!r}: {error}") from None


def _params(folder: str) -> Params:
    return averaged(folder, read_config(folder)["ema"])[0]
