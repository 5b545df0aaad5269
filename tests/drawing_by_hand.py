"""The one sampler with every value given by hand, for comparisons with other implementations."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.apps.draw import make_sampler
from diffusion_jax.apps.plan import Inputs, Sampler
from diffusion_jax.build.edits import equipped
from diffusion_jax.build.sampling import ENDS
from diffusion_jax.core.grids import GRIDS
from diffusion_jax.core.sampling import STARTS
from diffusion_jax.core.solvers import NAMED
from diffusion_jax.data import to_uint8
from diffusion_jax.spec import build


def author_sampler(generator, own, steps):
    """The ``Sampler`` of an author's settings ``own``, as in ``Generator.sampling``."""
    process, end = generator.model.process, ENDS[own["end"]]
    levels = build(GRIDS, own["grid"], "grid", process=process, n=steps)
    return Sampler(
        build(NAMED, own["solver"], "solver", process=process, steps=steps, levels=levels),
        levels,
        end=end.level(generator.model, levels),
        stepped=end.stepped,
        deviation=STARTS[own["start"]],
    )


def compiled(generator, sampler, edits=()):
    """(generator equipped by the edits, its sampler as a function to uint8 images)."""
    generator = equipped(generator, edits)
    draw = jax.jit(make_sampler(generator, lambda model, weights: sampler, edits))

    def images(rows, negative, noise, scale, arrays=(), weights=generator.weights):
        inputs = Inputs(rows, negative, jnp.asarray(noise), jnp.float32(scale), arrays)
        return np.asarray(to_uint8(draw(weights, jax.random.key(0), inputs)), np.float32)

    return generator, images
