"""Players on points in the plane: each recipe from a trained teacher's weights to one step."""

import functools

import jax
import jax.numpy as jnp
import pytest
import toy
from numpy.testing import assert_array_equal

from diffusion_jax.build.few_step.several_networks import FROZEN, make_critic
from diffusion_jax.core import grids, proposals, schedules, targets, weighting
from diffusion_jax.core.process import vp
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.models.adapter import LAYERS, features_from_module
from diffusion_jax.recipes.diffusion import TERMS, diffusion
from diffusion_jax.recipes.few_step import (
    adversarial,
    critics,
    latent_adversarial,
    players,
    reflow,
    students,
    teachers,
)
from diffusion_jax.recipes.few_step.distribution_matching import distribution_matching
from diffusion_jax.recipes.few_step.improved_distribution_matching import (
    improved_distribution_matching,
)
from diffusion_jax.recipes.few_step.score_identity import score_identity

pytestmark = [pytest.mark.optimized, pytest.mark.whole]  # its students are trained

HERE = toy.process_of(schedules.cosine(), vp)
NET, INIT = toy.mlp()
MODEL = toy.v_model(NET, HERE)
TEACHER = teachers.unguided(MODEL)
ONE = grids.trailing(HERE, 1)


@functools.cache
def _teacher():
    term = TERMS["regression"](weight=weighting.simple())
    recipe = diffusion(MODEL, INIT, proposals.stratified(), [term], 0.0)
    return toy.train(recipe, 1000, rate=4e-3)


def _groups(ratio, *others):
    return (("net", 1.0, ratio), *((name, 1.0, 1) for name in others))


def _features(chosen):
    module = toy.mlp_module()
    names = getattr(LAYERS["mlp"](module), chosen)
    return critics.network_features(MODEL, features_from_module(module, names))


def _against(seen, shown, critic):
    start, heads = players.noised_data(ONE), critics.initialiser(critic, shown)
    made = adversarial.adversarial(
        MODEL, INIT, TEACHER, start, critic, seen, heads, ratio=2, distillation_weight=0.1
    )
    return made, (("net", 0.5, 2), ("discriminator", 1.0, 1))


def _dmd():
    coupling = reflow.pairs_from_teacher(TEACHER, SOLVERS["dpmpp_2m"](), grids.trailing(HERE, 8))
    noise = HERE.at(1.0)
    made = distribution_matching(MODEL, INIT, TEACHER, coupling, noise, ratio=2, pair_share=0.25)
    return made, _groups(2, "fake")


def _dmd2():
    start, critic = (
        players.backward_simulation(MODEL, ONE),
        make_critic("non_saturating", 0.01, width=32),
    )
    made = improved_distribution_matching(
        MODEL, INIT, TEACHER, start, critic, _features("middle"), ratio=5
    )
    return made, _groups(5, "fake", "discriminator")


def _sid(ratio=5, calls=1):
    start = players.backward_simulation(MODEL, grids.trailing(HERE, calls))
    made = score_identity(MODEL, INIT, TEACHER, start, ratio)
    return made, _groups(ratio, "fake")


def _add():
    waves, _ = FROZEN["waves"]()
    seen = lambda frozen, key, x0, cond: waves({}, x0)
    shown = lambda net, x, level, cond: waves({}, x)
    return _against(seen, shown, make_critic("hinge", 1.0, 0.1, width=64))


def _ladd():
    features, draw = _features("all"), latent_adversarial.logit_normal(-2.0)
    seen = latent_adversarial.teacher_features(MODEL, features, draw)
    return _against(seen, features, make_critic("hinge", 1.0, 0.1, width=64))


RECIPES = {"dmd": _dmd, "dmd2": _dmd2, "sid": _sid, "add": _add, "ladd": _ladd}


@functools.cache
def _train(name, steps, **options):
    recipe, groups = RECIPES[name](**options)
    teacher = _teacher()
    copies = {key: teacher["net"] for key, _, _ in groups if key != "discriminator"}
    return toy.train(
        recipe, steps, {"teacher": teacher}, start_from=copies, groups=groups, rate=3e-3
    )


def _distance(params, levels):
    student = students.plain(MODEL, {"net": params["net"]}, {}, None)
    return toy.distance(toy.draw(student, SOLVERS["jump"](HERE, 1.0), levels))


@pytest.mark.parametrize("name", RECIPES)
def test_one_step_draws_the_points(name):
    params = _train(name, 1200)
    far, mean = _distance(params, ONE), toy.distance_of_the_mean()
    print(name, far, mean)
    assert far < 0.1 and far < 0.25 * mean


def test_a_two_step_student_learns_its_second_level():
    """A one-step student is trained at t = 1 alone, and not at a second level."""
    two = grids.trailing(HERE, 2)
    alone = _distance(_train("sid", 1200), two)
    both = _distance(_train("sid", 1200, calls=2), two)
    print(alone, both)
    assert both < 0.1 and both < 0.5 * alone


def test_the_fake_score_tracks_a_student_between_its_updates():
    """The teacher's one-step samples are one blob, which differs from its data."""
    params = _train("sid", 150, ratio=1000)
    jax.tree.map(assert_array_equal, params["net"], _teacher()["net"])

    @jax.jit
    def error(net):
        x, level = players.backward_simulation(MODEL, ONE)(
            jax.random.key(1), params, {}, jnp.zeros((4096, 2))
        )
        made = targets.denoiser(MODEL, params)(x, level, {}).x0
        return players.denoising_loss(
            MODEL, net, jax.random.key(2), made, {}, players.uniform_levels()
        ), players.spread(made)

    (before, spread), (after, _) = error(_teacher()["net"]), error(params["fake"])
    print(before, after, spread)
    assert spread < 0.1 and after < 0.5 * before
