"""Methods that train several networks in one step, by their names in a config.

The student is updated in one of ``ratio`` steps: only there the recipe computes its loss, and its
optimiser group moves (``Method.groups``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build.few_step.method import (
    Method,
    Setup,
    check_at_least_1,
    loss_clip,
    make_distance,
    make_teacher,
)
from diffusion_jax.build.first_stage import efficientnet_features
from diffusion_jax.core import grids
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Cond, Params, Recipe
from diffusion_jax.models.adapter import LAYERS, Layers, features_from_module
from diffusion_jax.models.text.bert import mean_pool
from diffusion_jax.models.vision.discriminator import FeatureHeads
from diffusion_jax.recipes.autoencoder import GAMES
from diffusion_jax.recipes.few_step import (
    adversarial,
    critics,
    distribution_matching,
    improved_distribution_matching,
    latent_adversarial,
    players,
    reflow,
    score_identity,
    students,
)
from diffusion_jax.recipes.few_step.players import DISCRIMINATOR, FAKE, NET

GRID = grids.trailing
"""The grid whose levels students are trained at, and have to be sampled with."""


def distribution_matching_method(
    ratio: int = 5, scale: float = 1.0, steps: int = 16, share: float = 0.25,
    regression: float = 0.25, fake: float = 1.0, distance: str = "",
) -> Method:  # fmt: skip
    """DMD (``few_step.distribution_matching``): a one-step student, and pairs of ``steps`` steps.

    Args:
        ratio: training steps to one update of the student.
        scale: the teacher's guidance, in its score and its pairs.
        steps: DPM-Solver++(2M) steps of the teacher for a pair, one network evaluation each.
        share: share of the batch for which pairs are generated.
        regression: λ.
        fake: factor of the fake score's learning rate.
        distance: d of the pairs, of ``losses.DISTANCES``; "" is the squared distance.
    """
    check_at_least_1("distribution_matching", ratio=ratio, steps=steps)
    loss_distance = make_distance(distance)

    def recipe(setup: Setup) -> Recipe:
        teacher, process = make_teacher(setup, scale), setup.student.process
        coupling = reflow.pairs_from_teacher(teacher, SOLVERS["dpmpp_2m"](), GRID(process, steps))
        noise = jax.tree.map(lambda leaf: leaf[0], GRID(process, 1))
        return distribution_matching.distribution_matching(
            setup.student, setup.init, teacher, coupling, noise, ratio, regression, share,
            loss_distance, clip=loss_clip(setup),
        )  # fmt: skip

    return _score_method(recipe, ratio, fake)


def improved_distribution_matching_method(
    ratio: int = 5, steps: int = 1, scale: float = 1.0, weight: float = 0.01, telling: float = 0.01,
    fake: float = 1.0,
) -> Method:  # fmt: skip
    """DMD2 (``few_step.improved_distribution_matching``), a student of ``steps`` steps.

    Args:
        ratio: training steps to one update of the student.
        steps: the sampler's steps.
        scale: the teacher's guidance.
        weight: weight of the adversarial term in the student's loss.
        telling: weight of the discriminator's loss beside the fake score's.
        fake: factor of the learning rate of the fake score and the discriminator.
    """
    check_at_least_1("improved_distribution_matching", ratio=ratio, steps=steps)

    def recipe(setup: Setup) -> Recipe:
        student_input = players.backward_simulation(
            setup.student, GRID(setup.student.process, steps)
        )
        critic, features = make_critic("non_saturating", weight), _features(setup, _middle)
        return improved_distribution_matching.improved_distribution_matching(
            setup.student,
            setup.init,
            make_teacher(setup, scale),
            student_input,
            critic,
            features,
            ratio,
            telling,
            clip=loss_clip(setup),
        )

    return _score_method(recipe, ratio, fake, (DISCRIMINATOR,))


def score_identity_method(
    ratio: int = 5, steps: int = 1, scale: float = 1.0, a: float = 1.2, fake: float = 1.0
) -> Method:
    """SiD (``few_step.score_identity``), a student of ``steps`` steps; 1 is the paper's."""
    check_at_least_1("score_identity", ratio=ratio, steps=steps)

    def recipe(setup: Setup) -> Recipe:
        student_input = players.backward_simulation(
            setup.student, GRID(setup.student.process, steps)
        )
        return score_identity.score_identity(
            setup.student, setup.init, make_teacher(setup, scale), student_input, ratio, a,
            clip=loss_clip(setup),
        )  # fmt: skip

    return _score_method(recipe, ratio, fake)


def _score_method(
    recipe: Callable[[Setup], Recipe], ratio: int, fake: float, more: tuple[str, ...] = ()
) -> Method:
    others = tuple((name, fake, 1) for name in (FAKE, *more))
    return Method(recipe, students.plain, groups=((NET, 1.0, ratio), *others), copies=(NET, FAKE))


def adversarial_method(
    steps: int = 1, scale: float = 1.0, distillation: float = 2.5, features: str = "efficientnet",
    weight: float = 1.0, r1: float = 1.0, ratio: int = 2, discriminator: float = 2.0,
    high: float = 0.98, noise: float = 0.0,
) -> Method:  # fmt: skip
    """ADD (``few_step.adversarial``), a student of ``steps`` steps.

    Args:
        steps: the sampler's steps; the paper's students learn 4 and are sampled in 1 to 4.
        scale: the teacher's guidance.
        distillation: λ; the paper's 2.5.
        features: a name of ``FROZEN``.
        weight: weight of the adversarial term in the student's loss.
        r1: weight of the discriminator's gradient penalty.
        ratio: training steps to one update of the student.
        discriminator: factor of the discriminator's learning rate.
        high: latest time of the distillation term.
        noise: standard deviation of noise on the discriminator's pixels (in [-1, 1]).
    """
    check_at_least_1("adversarial", ratio=ratio, steps=steps)
    draw_levels = players.uniform_levels(high=high)
    if features not in FROZEN:
        raise ValueError(
            f"config.distill: adversarial(features={features!r}); known are {', '.join(FROZEN)}"
        )
    data_features, read_frozen = FROZEN[features]()

    def recipe(setup: Setup) -> Recipe:
        critic = make_critic("hinge", weight, r1, head_cond=class_or_text_embedding(setup.classes))
        clean_features = adversarial.pixel_features(setup.student, data_features, noise)
        key = jax.random.key(0)  # for shapes alone
        # The shapes of the features, which the widths of the heads depend on.
        shapes = lambda net, x, level, cond: clean_features(
            {**setup.frozen(), **read_frozen()}, key, x, cond
        )
        return adversarial.adversarial(
            setup.student, setup.init, make_teacher(setup, scale), _noised_data(setup, steps),
            critic, clean_features, critics.initialiser(critic, shapes), ratio,
            distillation, draw_levels, loss_clip(setup),
        )  # fmt: skip

    return Method(
        recipe, students.plain, frozen=read_frozen, groups=_optimizer_groups(ratio, discriminator)
    )


def latent_adversarial_method(
    steps: int = 1, scale: float = 1.0, distillation: float = 2.5, mean: float = -0.5,
    std: float = 1.0, weight: float = 1.0, r1: float = 1.0, ratio: int = 2,
    discriminator: float = 2.0, high: float = 0.98,
) -> Method:  # fmt: skip
    """LADD (``few_step.latent_adversarial``); arguments as in ``adversarial``; mean, std: m, s."""
    check_at_least_1("latent_adversarial", ratio=ratio, steps=steps)
    draw_levels = players.uniform_levels(high=high)

    def recipe(setup: Setup) -> Recipe:
        critic, features = make_critic("hinge", weight, r1), _features(setup, _all)
        draw_feature_levels = latent_adversarial.logit_normal(mean, std)
        clean_features = latent_adversarial.teacher_features(
            setup.teacher, features, draw_feature_levels
        )
        return adversarial.adversarial(
            setup.student, setup.init, make_teacher(setup, scale), _noised_data(setup, steps),
            critic, clean_features, critics.initialiser(critic, features), ratio,
            distillation, draw_levels, loss_clip(setup),
        )  # fmt: skip

    return Method(recipe, students.plain, groups=_optimizer_groups(ratio, discriminator))


def _optimizer_groups(ratio: int, discriminator: float) -> tuple[tuple[str, float, int], ...]:
    return ((NET, 1.0, ratio), (DISCRIMINATOR, discriminator, 1))


def _noised_data(setup: Setup, steps: int) -> players.StudentInput:
    return players.noised_data(GRID(setup.student.process, steps))


HeadCond = Callable[[Cond], jax.Array | None]
"""cond -> the vector that discriminator heads are conditioned on, [b, d], or None."""


def class_or_text_embedding(classes: int) -> HeadCond:
    """The class as one-hot, or the pooled embedding of a text; None without a condition."""

    def embedding(cond: Cond) -> jax.Array | None:
        if "label" in cond:
            return jax.nn.one_hot(cond["label"], classes)
        if "pooled" in cond:
            return cond["pooled"]
        return mean_pool(cond["context"], cond["context_mask"]) if "context" in cond else None

    return embedding


def make_critic(
    game: str,
    weight: float,
    r1: float = 0.0,
    width: int = 128,
    head_cond: HeadCond = lambda cond: None,
) -> critics.Critic:
    """Heads on features, with the losses of ``GAMES[game]``; see ``critics.Critic``."""
    module = FeatureHeads(width)

    def init(key: jax.Array, features: list, cond: Cond) -> Params:
        zeros = [jnp.zeros((1, *one.shape[1:])) for one in features]
        return module.init(key, zeros, jax.tree.map(lambda leaf: leaf[:1], head_cond(cond)))[
            "params"
        ]

    def logits(params: Params, features: list, cond: Cond) -> jax.Array:
        return jnp.asarray(module.apply({"params": params}, features, head_cond(cond)))

    return critics.Critic(init, logits, GAMES[game], weight, r1)


def _features(setup: Setup, chosen: Callable[[Layers], tuple[str, ...]]) -> critics.Features:
    names = chosen(LAYERS[setup.name](setup.network))
    return critics.network_features(setup.teacher, features_from_module(setup.network, names))


def _middle(layers: Layers) -> tuple[str, ...]:
    return layers.middle


def _all(layers: Layers) -> tuple[str, ...]:
    return layers.all


def _efficientnet() -> tuple[Any, Callable[[], Params]]:
    perceptual, read = efficientnet_features()
    return perceptual.features, read


def _waves() -> tuple[Any, Callable[[], Params]]:
    """Sines and cosines of points in the plane at three frequencies."""
    of = lambda x: [f(k * x) for k in (1.0, 2.0, 4.0) for f in (jnp.sin, jnp.cos)]
    return lambda params, x: [jnp.concatenate(of(x), axis=-1)], lambda: {"perceptual": {}}


FROZEN: dict[str, Callable[[], tuple[Any, Callable[[], Params]]]] = {
    "efficientnet": _efficientnet,
    "waves": _waves,
}
"""Frozen features for ADD: (parameters, pixels) -> arrays, and () -> {"perceptual": ...}."""
