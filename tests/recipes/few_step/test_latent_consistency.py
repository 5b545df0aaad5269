"""Latent consistency: the flow of a guided Gaussian is its minimum, and it trains as a LoRA."""

import jax
import jax.numpy as jnp
import numpy as np
import toy
from numpy.testing import assert_allclose

from diffusion_jax.core import flow_maps, losses, oracles, process, schedules, targets
from diffusion_jax.core.process import Process
from diffusion_jax.core.types import Prediction, Solver
from diffusion_jax.recipes import lora
from diffusion_jax.recipes.few_step import teachers
from diffusion_jax.recipes.few_step.latent_consistency import latent_consistency


def test_latent_consistency_of_a_guided_gaussian_has_its_flow_as_minimum(x64):
    """A teacher of two Gaussians as classes; its guided score is that of another Gaussian."""
    here, row = Process(schedules.linear(), process.vp), targets.v()
    # One variance for both conditions, so guidance moves the mean: m_null + w·(m - m_null).
    mean = lambda label: jnp.where(label[:, None] == 99, 0.1, 0.5) * jnp.ones((1, 2))

    def gaussian(x, level, m):
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        v = 0.2 * alpha**2 + sigma**2
        z = x - alpha * m
        return Prediction(m + 0.2 * alpha * z / v, sigma * z / v)

    def shifted(cond):
        null, label = jnp.full_like(cond["label"], 99), cond["label"]
        w = cond["guidance_scale"][:, None]
        return mean(null) + w * (mean(label) - mean(null))

    def flow(x, now, nxt, m):
        v_now, v_nxt = (jnp.sqrt(0.2 * a.alpha**2 + a.sigma**2)[:, None] for a in (now, nxt))
        return nxt.alpha[:, None] * m + v_nxt / v_now * (x - now.alpha[:, None] * m)

    def teach(params, x, time, cond, key=None):
        assert set(cond) == {"label"}
        level = here.at(time)
        return targets.express(row, *gaussian(x, level, mean(cond["label"]))[:2], level)

    first = here.at(jnp.float64(1 / 1000))

    def truth(x, level, cond):
        """The network's x0, such that the boundary makes the flow to the table's first level."""
        skip, out = (c[:, None] for c in flow_maps.latent_consistency()(level))
        anchor = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, level.t.shape), first)
        f = flow(x, level, anchor, shifted(cond))
        alpha = level.alpha[:, None]
        x0 = (f - skip * x / alpha) / jnp.where(out > 0, out, 1.0)
        return Prediction(x0, (x - alpha * x0) / level.sigma[:, None])

    def student(params, x, time, cond, key=None):
        level = here.at(time)
        out = targets.express(row, *truth(x, level, cond)[:2], level)
        return out + params["net"] * jnp.cos(x)

    model = lambda net: toy.model_of(net, here, row, lambda level: level.t, labels=True)

    def step(key, denoise, x, now, nxt, state):
        """Exact for any Gaussian of this variance, whose mean the teacher's prediction shows."""
        x0 = denoise(x, now).x0
        alpha, v = now.alpha[:, None], (0.2 * now.alpha**2 + now.sigma**2)[:, None]
        m = (x0 - 0.2 * alpha * x / v) / (1 - 0.2 * alpha**2 / v)
        return flow(x, now, nxt, m), state

    recipe = latent_consistency(
        model(student),
        teachers.guided(model(teach)),
        lambda *a: {},
        distance=losses.squared(),
        solver=Solver(lambda x: (), step),
    )
    batch = {"image": jax.random.normal(jax.random.key(0), (128, 2)), "label": jnp.zeros(128, int)}
    frozen = {"teacher": {"net": {}}}
    loss = lambda theta: recipe.loss(
        {"net": theta}, toy.context(0, {"net": jnp.float64(0)}, frozen), batch, jax.random.key(1)
    )[0]
    toy.assert_truth_is_the_minimum(loss)


def test_latent_consistency_trains_as_a_lora():
    def net(params, x, time, cond, key=None):
        return x @ params["net"]["attention"]["kernel"] * cond["guidance_scale"][:, None]

    here = Process(schedules.linear(), process.vp)
    model = toy.model_of(net, here, targets.v(), labels=True)
    data = oracles.mixture([1.0], [[0.4, -0.2]], [[[0.3, 0.1], [0.1, 0.2]]])
    base = {"net": {"attention": {"kernel": jnp.eye(2)}}}
    teacher = lambda frozen, cond: lambda x, level: oracles.predict(data, x, level)
    whole = latent_consistency(model, teacher, lambda *a: base["net"])
    adapted = lora.adapted(whole, 1, r"kernel$")
    batch = {"image": jax.random.normal(jax.random.key(0), (8, 2)), "label": jnp.zeros(8, int)}
    params = adapted.init(jax.random.key(0), batch)
    context, key = toy.context(0, params, {"base": base}), jax.random.key(1)
    loss = jax.jit(jax.value_and_grad(lambda p: adapted.loss(p, context, batch, key)[0]))
    value, gradient = loss(params)
    plain = jax.jit(lambda: whole.loss(base, toy.context(0, base), batch, key)[0])
    assert_allclose(value, plain(), rtol=1e-5)
    up = gradient["lora"]["net/attention/kernel"]["up"]
    assert np.isfinite(up).all() and np.abs(up).max() > 0
