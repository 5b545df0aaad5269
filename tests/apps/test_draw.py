"""The key of the decoder: its own, and none of the others' is changed by it."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import Generator, Geometry, Inputs, Sampler, Weights
from diffusion_jax.core import grids, network_io, process, schedules, targets
from diffusion_jax.core.sampling import STARTS, sample
from diffusion_jax.core.solvers import SOLVERS
from diffusion_jax.core.types import Model
from diffusion_jax.models.autoencoders.codec import IDENTITY

SHAPE = (2, 3, 5, 1)
PROCESS = process.Process(schedules.cosine(), process.vp)
LEVELS = grids.uniform_log_snr(PROCESS, 4)
NOISE = jax.random.normal(jax.random.key(8), SHAPE)
START = NOISE * STARTS["prior"](jax.tree.map(lambda leaf: leaf[0], LEVELS))


def model_of(codec):
    return Model(
        net=lambda params, x, time, cond, *, key=None: 0.3 * x,
        process=PROCESS,
        target=targets.x0(),
        scale_in=network_io.unit(),
        time_in=network_io.log_snr(),
        codec=codec,
        condition=lambda frozen, batch: {},
        null=lambda frozen, cond: cond,
    )


def drawn(key, codec):
    sampler, inputs = Sampler(SOLVERS["ddim"](eta=1.0), LEVELS), Inputs({}, None, NOISE, 1.0)
    generator = Generator(
        model_of(codec), None, lambda requests: ({}, None), Geometry(SHAPE[1:]), None, {}
    )
    return make_sampler(generator, lambda model, weights: sampler)(Weights({}, {}), key, inputs)


def test_a_decoder_that_draws_changes_nothing_before_it():
    key = jax.random.key(3)
    of_solver, of_codec = jax.random.split(key)
    denoise = lambda x, level: targets.denoiser(model_of(IDENTITY), {})(x, level, {})
    wanted = sample(of_solver, SOLVERS["ddim"](eta=1.0), denoise, START, LEVELS)
    np.testing.assert_array_equal(drawn(key, IDENTITY), wanted)
    noise = lambda frozen, x, key: x + jax.random.normal(key, x.shape)
    added = drawn(key, IDENTITY._replace(decode=noise)) - wanted
    again = drawn(key, IDENTITY._replace(decode=noise)) - wanted
    np.testing.assert_array_equal(added, again)
    for other in (key, of_solver, of_codec, jax.random.split(of_codec)[0]):
        assert np.abs(added - jax.random.normal(other, SHAPE)).max() > 1e-2
    assert jnp.std(added) > 0.5
