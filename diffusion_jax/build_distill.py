"""From a teacher's run to a student: every method of few steps, by ``config.distill``.

The student has its teacher's data, process and network, which is told more numbers where the method
says so, and starts from its teacher's parameters.  A run's config is whole (``with_teacher``), so
that the student is sampled and evaluated without its teacher.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array
from ml_collections import ConfigDict

from diffusion_jax import build
from diffusion_jax.build_weights import averaged
from diffusion_jax.core import flow_maps, proposals
from diffusion_jax.core.targets import denoiser
from diffusion_jax.core.types import Cond, Jump, Model, Params, Recipe
from diffusion_jax.recipes import consistency as one_function
from diffusion_jax.recipes import continuous_consistency as continuous
from diffusion_jax.recipes import guidance_distillation as of_guidance
from diffusion_jax.recipes import progressive as halving
from diffusion_jax.recipes import teachers
from diffusion_jax.recipes.latent_consistency import latent_consistency as latent
from diffusion_jax.spec import Config
from diffusion_jax.spec import build as build_from
from diffusion_jax.train.workdir import read_config

# What is the teacher's; a student's config has the rest.
INHERITED = ("data", "text", "process", "model", "loss")


class Pair(NamedTuple):
    """What a recipe is made of.

    Attributes:
        student, teacher: what their parameters mean.
        init: (key, x, cond) -> the student's network's parameters.
        dropout: share of examples whose condition is emptied.
    """

    student: Model
    teacher: Model
    init: Callable[..., Params]
    dropout: float


Reading = Callable[[Model, Params, Cond, Array | None], Jump]
"""(model, params, cond, guidance scale or None) -> the student as a map between levels."""


class Method(NamedTuple):
    """One way to distill.

    Attributes:
        recipe: how a student is trained.
        reads: how it is sampled.
        scalars: what its network is told beside level and condition.
        frozen: () -> what the loss reads beside the teacher.
    """

    recipe: Callable[[Pair], Recipe]
    reads: Reading
    scalars: tuple[str, ...] = ()
    frozen: Callable[[], Params] = dict


def with_teacher(config: Config) -> Config:
    """A config of ``configs/distill_*.py`` with all that it takes over from ``config.teacher``.

    Raises:
        ValueError: if that is no folder of a diffusion model's run.
    """
    if not config.teacher:
        raise ValueError(
            "config.teacher is empty; name the folder of a trained run: --config.teacher=runs/mnist"
        )
    held: Config = ConfigDict(read_config(config.teacher))
    name = held.get("model", {}).get("name")
    if "process" not in held or name in build.EXPERIMENTS:
        raise ValueError(
            f"config.teacher = {config.teacher!r} holds no diffusion model (it is of model.name = "
            f"{name!r}); name a run such as configs/mnist.py makes"
        )
    if held.model[name].get("scalars"):
        raise ValueError(
            f"config.teacher = {config.teacher!r} was distilled by {held.distill!r}, and is told "
            f"{tuple(held.model[name].scalars)}; name a run that is told levels alone"
        )
    if name in NOT_TOLD and (told := method(config).scalars):
        raise ValueError(
            f"config.distill = {config.distill!r} tells its network {told}, which config.model.name"
            f" = {name!r} of {config.teacher!r} cannot be told; take a method of "
            "one level, such as 'easy()'"
        )
    whole: Config = build.defaults().unlock()
    for section in INHERITED:
        if section in held:
            whole[section] = held[section]
    for field in config:
        whole[field] = config[field]
    if scalars := method(config).scalars:
        whole.model[name].scalars = scalars
    return whole.lock()


def experiment(config: Config) -> build.Experiment:
    """A student, of a config that ``with_teacher`` made."""
    how, plain = method(config), build.diffusion_experiment(config)
    teacher = plain.model
    if how.scalars:
        theirs = config.copy_and_resolve_references().unlock()
        del theirs.model[config.model.name].scalars
        teacher = build.diffusion_experiment(theirs).model
    student = plain.model._replace(student=how.reads)
    pair = Pair(student, teacher, build.initialiser(config), config.loss.condition_dropout)

    def taught() -> Params:
        return {"teacher": _params(config.teacher), **how.frozen()}

    return plain._replace(
        model=student,
        recipe=how.recipe(pair),
        taught=taught,
        start=lambda: {"net": _params(config.teacher)["net"]},
    )


def method(config: Config) -> Method:
    """What ``config.distill`` names."""
    return build_from(METHODS, config.distill, "distill", total=config.train.steps)


def _params(folder: str) -> Params:
    return averaged(folder, read_config(folder)["ema"])[0]


def _teacher(pair: Pair, scale: float) -> teachers.Teacher:
    """Under classifier-free guidance, unless the scale is 1."""
    if scale == 1:
        return teachers.plain(pair.teacher)
    return teachers.guided(pair.teacher, scale=jnp.float32(scale))


def _of_one_level(
    setting: Callable[[Pair], one_function.Setting],
) -> Method:
    def recipe(pair: Pair) -> Recipe:
        made = setting(pair)
        return one_function.consistency(
            pair.student, pair.init, made, condition_dropout=pair.dropout
        )

    return Method(recipe, _consistency)


def _plain(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser, which knows its guidance already."""
    del scale
    return flow_maps.to_clean(lambda x, level: denoiser(model, params)(x, level, cond))


def _consistency(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """f of one level, x itself where that is clean."""
    del scale
    f = flow_maps.bounded(denoiser(model, params), flow_maps.free())
    return flow_maps.to_clean(lambda x, level: f(x, level, cond))


def _told(cond: Cond, scale: Array | None) -> Cond:
    b = next(iter(cond.values())).shape[0] if cond else 1
    return {**cond, teachers.SCALE: jnp.full((b,), 1.0 if scale is None else scale, jnp.float32)}


def _latent_consistency(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """As ``_consistency``, told the scale, with LCM's boundary."""
    f = flow_maps.bounded(denoiser(model, params), flow_maps.latent_consistency())
    return flow_maps.to_clean(lambda x, level: f(x, level, _told(cond, scale)))


def _guided(model: Model, params: Params, cond: Cond, scale: Array | None) -> Jump:
    """A denoiser that is told the scale."""
    return _plain(model, params, _told(cond, scale), None)


def consistency_distillation(levels: int = 18, solver: str = "heun", scale: float = 1.0) -> Method:
    """Consistency distillation (``consistency.distillation``) of a teacher under guidance."""
    _at_least_1("consistency_distillation", levels=levels)
    if solver not in FOLLOWED:
        raise ValueError(
            f"config.distill: consistency_distillation(solver={solver!r}); known are "
            f"{', '.join(FOLLOWED)}"
        )
    made = lambda pair: one_function.distillation(_teacher(pair, scale), solver, levels)
    return _of_one_level(made)


def consistency_training(total: int, first: int = 2, last: int = 150) -> Method:
    """Consistency training (``consistency.training``)."""
    return _of_one_level(lambda pair: one_function.training(total, first, last))


def improved_consistency(
    total: int, first: int = 10, last: int = 1280, mean: float = -1.1, std: float = 2.0
) -> Method:
    """Improved consistency training (``consistency.improved``)."""
    made = lambda pair: one_function.improved(total, first, last, None, mean, std)
    return _of_one_level(made)


def easy(
    total: int,
    stages: int = 8,
    q: float = 2.0,
    k: float = 8.0,
    mean: float = -1.1,
    std: float = 2.0,
) -> Method:
    """Easy consistency tuning (``consistency.easy``), its stages of equal length."""
    _at_least_1("easy", stages=stages)
    stage = -(-total // stages)
    made = lambda pair: one_function.easy(stage, q, k, 1.0, mean, std)
    return _of_one_level(made)


def latent_consistency(levels: int = 50, low: float = 1.0, high: float = 5.0) -> Method:
    """Latent consistency (``recipes.latent_consistency``), told scales from low to high."""

    def recipe(pair: Pair) -> Recipe:
        tell = teachers.scales(low, high)
        teacher = teachers.guided(pair.teacher)
        return latent(pair.student, teacher, pair.init, levels, tell)

    return Method(recipe, _latent_consistency, (teachers.SCALE,))


def continuous_distillation(
    mean: float = -0.8, std: float = 1.6, sigma_data: float = 0.5, warm_up: int = 0,
    scale: float = 1.0, total: int = 0,
) -> Method:  # fmt: skip
    """sCD (``recipes.continuous_consistency``); warm_up = 0 is a fifth of the training."""
    velocity = lambda pair: continuous.of_teacher(_teacher(pair, scale))
    return _continuous(velocity, mean, std, sigma_data, warm_up or total // 5)


def continuous_training(
    mean: float = -1.0, std: float = 1.4, sigma_data: float = 0.5, warm_up: int = 0, total: int = 0
) -> Method:
    """sCT (``recipes.continuous_consistency``); warm_up = 0 is a fifth of the training."""
    of_data = lambda pair: continuous.of_data()
    return _continuous(of_data, mean, std, sigma_data, warm_up or total // 5)


def _continuous(velocity, mean: float, std: float, sigma_data: float, warm_up: int) -> Method:
    def recipe(pair: Pair) -> Recipe:
        return continuous.continuous_consistency(
            pair.student, pair.init, velocity(pair), proposals.log_normal(mean, std), sigma_data,
            warm_up, condition_dropout=pair.dropout,
        )  # fmt: skip

    return Method(recipe, _consistency)


def guidance(low: float = 1.0, high: float = 5.0) -> Method:
    """Guidance alone (``recipes.guidance_distillation``), told scales from low to high."""

    def recipe(pair: Pair) -> Recipe:
        teacher, tell = teachers.guided(pair.teacher), teachers.scales(low, high)
        made = of_guidance.guidance_distillation
        return made(pair.student, teacher, pair.init, proposals.uniform(), tell=tell)

    return Method(recipe, _guided, (teachers.SCALE,))


def progressive(steps: int, scale: float = 1.0) -> Method:
    """One stage of progressive distillation: ``steps`` of the student for twice as many.

    The next stage is a run of its own, whose teacher is this one's student.
    """
    _at_least_1("progressive", steps=steps)
    recipe = lambda pair: halving.progressive(
        pair.student, _teacher(pair, scale), pair.init, condition_dropout=pair.dropout
    )
    return Method(recipe, _plain, frozen=lambda: {halving.STEPS: jnp.int32(steps)})


def _at_least_1(name: str, **given: int) -> None:
    for field, value in given.items():
        if value < 1:
            raise ValueError(f"config.distill: {name}({field}={value}) must be 1 or more")


# Solvers of one step without memory, which a teacher is followed by.
FOLLOWED = ("ddim", "heun")

# Networks without ``scalars``.
NOT_TOLD = ("dit", "mmdit", "text_unet")

METHODS: dict[str, Callable[..., Method]] = {
    "consistency_distillation": consistency_distillation,
    "consistency_training": consistency_training,
    "improved_consistency": improved_consistency,
    "easy": easy,
    "latent_consistency": latent_consistency,
    "continuous_distillation": continuous_distillation,
    "continuous_training": continuous_training,
    "guidance": guidance,
    "progressive": progressive,
}
