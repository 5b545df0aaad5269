"""Methods that train several networks in one step, as a config names them.

The ratio of a method is how many steps there are to one of its student: it is both where the
recipe spends the student's loss and how often its optimiser moves (``Method.groups``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from diffusion_jax.build.few_step.method import (
    Method,
    Pair,
    at_least_1,
    distance_of,
    shown_of,
    teacher_of,
)
from diffusion_jax.build.first_stage import efficientnet_features
from diffusion_jax.core import grids
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Cond, Params, Recipe
from diffusion_jax.models.adapter import LAYERS, Layers, features_from_module
from diffusion_jax.models.text.bert import mean_pool
from diffusion_jax.models.vision.discriminator import FeatureHeads
from diffusion_jax.recipes.autoencoder import GAMES
from diffusion_jax.recipes.few_step import adversarial as against
from diffusion_jax.recipes.few_step import critics, latent_adversarial, players, students
from diffusion_jax.recipes.few_step import distribution_matching as matching
from diffusion_jax.recipes.few_step import improved_distribution_matching as improved
from diffusion_jax.recipes.few_step import reflow as straight
from diffusion_jax.recipes.few_step import score_identity as identity
from diffusion_jax.recipes.few_step.players import DISCRIMINATOR, FAKE, NET

GRID = grids.trailing
"""What students are trained at the levels of, and have to be sampled with."""


def distribution_matching(
    ratio: int = 5, scale: float = 1.0, steps: int = 16, share: float = 0.25,
    regression: float = 0.25, fake: float = 1.0, distance: str = "",
) -> Method:  # fmt: skip
    """DMD (``recipes.distribution_matching``): one call, and pairs by ``steps`` of the teacher.

    Args:
        ratio: steps to one of the student.
        scale: of the teacher's guidance, in its score and its pairs.
        steps: of DPM-Solver++(2M) to a pair, a call of the teacher each.
        share: of the batch that pairs are made of.
        regression: λ.
        fake: factor of the fake score's learning rate.
        distance: d of the pairs, of ``losses.DISTANCES``; none is the square.
    """
    at_least_1("distribution_matching", ratio=ratio, steps=steps)
    own = distance_of(distance)

    def recipe(pair: Pair) -> Recipe:
        teacher, process = teacher_of(pair, scale), pair.student.process
        coupling = straight.solved(teacher, SOLVERS["dpmpp_2m"](), GRID(process, steps))
        noise = jax.tree.map(lambda leaf: leaf[0], GRID(process, 1))
        return matching.distribution_matching(
            pair.student, pair.init, teacher, coupling, noise, ratio, regression, share, own,
            shown=shown_of(pair),
        )  # fmt: skip

    return _of_scores(recipe, ratio, fake)


def improved_distribution_matching(
    ratio: int = 5, steps: int = 1, scale: float = 1.0, weight: float = 0.01, telling: float = 0.01,
    fake: float = 1.0,
) -> Method:  # fmt: skip
    """DMD2 (``recipes.improved_distribution_matching``), a student of ``steps`` calls.

    Args:
        ratio: steps to one of the student.
        steps: of the sampler.
        scale: of the teacher's guidance.
        weight: of the adversarial term in the student's loss.
        telling: of the discriminator's in the fake score's.
        fake: factor of the learning rate of the fake score and the discriminator.
    """
    at_least_1("improved_distribution_matching", ratio=ratio, steps=steps)

    def recipe(pair: Pair) -> Recipe:
        start = players.simulated(pair.student, GRID(pair.student.process, steps))
        critic, features = critic_of("non_saturating", weight), _features(pair, _middle)
        return improved.improved_distribution_matching(
            pair.student,
            pair.init,
            teacher_of(pair, scale),
            start,
            critic,
            features,
            ratio,
            telling,
            shown=shown_of(pair),
        )

    return _of_scores(recipe, ratio, fake, (DISCRIMINATOR,))


def score_identity(
    ratio: int = 5, steps: int = 1, scale: float = 1.0, a: float = 1.2, fake: float = 1.0
) -> Method:
    """SiD (``recipes.score_identity``), a student of ``steps`` calls; 1 is the paper's."""
    at_least_1("score_identity", ratio=ratio, steps=steps)

    def recipe(pair: Pair) -> Recipe:
        start = players.simulated(pair.student, GRID(pair.student.process, steps))
        return identity.score_identity(
            pair.student, pair.init, teacher_of(pair, scale), start, ratio, a,
            shown=shown_of(pair),
        )  # fmt: skip

    return _of_scores(recipe, ratio, fake)


def _of_scores(
    recipe: Callable[[Pair], Recipe], ratio: int, fake: float, more: tuple[str, ...] = ()
) -> Method:
    others = tuple((name, fake, 1) for name in (FAKE, *more))
    return Method(recipe, students.plain, groups=((NET, 1.0, ratio), *others), copies=(NET, FAKE))


def adversarial(
    steps: int = 1, scale: float = 1.0, distillation: float = 2.5, features: str = "efficientnet",
    weight: float = 1.0, r1: float = 1.0, ratio: int = 2, discriminator: float = 2.0,
    high: float = 0.98, noise: float = 0.0,
) -> Method:  # fmt: skip
    """ADD (``recipes.adversarial``), a student of ``steps`` calls.

    Args:
        steps: of the sampler; the paper's students learn 4 and are sampled by 1 to 4.
        scale: of the teacher's guidance.
        distillation: λ; the paper's 2.5.
        features: of ``FROZEN``.
        weight: of the adversarial term in the student's loss.
        r1: of the penalty on the discriminator.
        ratio: steps to one of the student.
        discriminator: factor of the discriminator's learning rate.
        high: latest time of the distillation term.
        noise: deviation, on the pixels that the discriminator sees (in [-1, 1]).
    """
    at_least_1("adversarial", ratio=ratio, steps=steps)
    distilled = players.between(high=high)
    if features not in FROZEN:
        raise ValueError(
            f"config.distill: adversarial(features={features!r}); known are {', '.join(FROZEN)}"
        )
    of_data, read = FROZEN[features]()

    def recipe(pair: Pair) -> Recipe:
        critic = critic_of("hinge", weight, r1, told=about(pair.classes))
        seen = against.of_pixels(pair.student, of_data, noise)
        key = jax.random.key(0)  # for shapes alone
        # Its heads are as wide as the features, of which the parameters tell the shapes.
        shown = lambda net, x, level, cond: seen({**pair.frozen(), **read()}, key, x, cond)
        return against.adversarial(
            pair.student, pair.init, teacher_of(pair, scale), _of_data(pair, steps), critic, seen,
            critics.initialiser(critic, shown), ratio, distillation, distilled, shown_of(pair),
        )  # fmt: skip

    return Method(recipe, students.plain, frozen=read, groups=_of_two(ratio, discriminator))


def latent_adversarial_distillation(
    steps: int = 1, scale: float = 1.0, distillation: float = 2.5, mean: float = -0.5,
    std: float = 1.0, weight: float = 1.0, r1: float = 1.0, ratio: int = 2,
    discriminator: float = 2.0, high: float = 0.98,
) -> Method:  # fmt: skip
    """LADD (``recipes.latent_adversarial``); arguments as of ``adversarial``, and (m, s) of it."""
    at_least_1("latent_adversarial", ratio=ratio, steps=steps)
    distilled = players.between(high=high)

    def recipe(pair: Pair) -> Recipe:
        critic, features = critic_of("hinge", weight, r1), _features(pair, _all)
        draw = latent_adversarial.logit_normal(mean, std)
        seen = latent_adversarial.of_teacher(pair.teacher, features, draw)
        return against.adversarial(
            pair.student, pair.init, teacher_of(pair, scale), _of_data(pair, steps), critic, seen,
            critics.initialiser(critic, features), ratio, distillation, distilled, shown_of(pair),
        )  # fmt: skip

    return Method(recipe, students.plain, groups=_of_two(ratio, discriminator))


def _of_two(ratio: int, discriminator: float) -> tuple[tuple[str, float, int], ...]:
    return ((NET, 1.0, ratio), (DISCRIMINATOR, discriminator, 1))


def _of_data(pair: Pair, steps: int) -> players.Start:
    return players.noised_data(GRID(pair.student.process, steps))


Told = Callable[[Cond], jax.Array | None]
"""cond -> what heads are told of it, [b, d]."""


def about(classes: int) -> Told:
    """The class, or the whole of a text, as a vector; None of no condition."""

    def told(cond: Cond) -> jax.Array | None:
        if "label" in cond:
            return jax.nn.one_hot(cond["label"], classes)
        if "pooled" in cond:
            return cond["pooled"]
        return mean_pool(cond["context"], cond["context_mask"]) if "context" in cond else None

    return told


def critic_of(
    game: str, weight: float, r1: float = 0.0, width: int = 128, told: Told = lambda cond: None
) -> critics.Critic:
    """Heads on features, which play a game of ``GAMES``; see ``critics.Critic``."""
    module = FeatureHeads(width)

    def init(key: jax.Array, features: list, cond: Cond) -> Params:
        zeros = [jnp.zeros((1, *one.shape[1:])) for one in features]
        return module.init(key, zeros, jax.tree.map(lambda leaf: leaf[:1], told(cond)))["params"]

    def logits(params: Params, features: list, cond: Cond) -> jax.Array:
        return jnp.asarray(module.apply({"params": params}, features, told(cond)))

    return critics.Critic(init, logits, GAMES[game], weight, r1)


def _features(pair: Pair, chosen: Callable[[Layers], tuple[str, ...]]) -> critics.Features:
    names = chosen(LAYERS[pair.name](pair.network))
    return critics.of_network(pair.teacher, features_from_module(pair.network, names))


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
"""What ADD looks at data with: (parameters, pixels) -> arrays, and () -> {"perceptual": ...}."""
