"""Near neighbours of an image: its noise turned a little towards other noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from diffusion_jax.apps.plan import Drawing, Edit, Generator, Request
from diffusion_jax.core import seeds
from diffusion_jax.core.types import like


def slerp(a: Array, b: Array, amount: Array) -> Array:
    """From a to b on the great circle between them, example by example.

    Linear interpolation would shrink the norm, by sqrt(1 - 2t(1 - t)) for independent noise: a
    wrong noise level.

    Args:
        a, b: [n, ...].
        amount: [n], 0 for a and 1 for b; at 0 the result is a, to the bit.
    """
    axes = tuple(range(1, a.ndim))
    inner = lambda x, y: jnp.sum(x * y, axes, keepdims=True)
    cosine = inner(a, b) / jnp.sqrt(inner(a, a) * inner(b, b))
    # Of equal noise there is no circle: at this angle it is a line already.
    angle = jnp.maximum(jnp.arccos(jnp.clip(cosine, -1.0, 1.0)), 1e-3)
    t, sine = like(amount, a), jnp.maximum(jnp.sin(angle), 1e-6)
    turned = jnp.sin((1 - t) * angle) / sine * a + jnp.sin(t * angle) / sine * b
    return jnp.where(t == 0, a, turned)


def variation(amount: float, seed: int = 0) -> Edit:
    """Turn the starting noise of each image towards noise of another seed.

    Args:
        amount: 0 for the image itself, 1 for an unrelated one; 0.1 to 0.4 are near neighbours.
        seed: of the other noise, 0 to 2**64 - 1.

    Raises:
        ValueError: for an amount outside of [0, 1], or a seed that is none.
    """
    if not 0 <= amount <= 1:
        raise ValueError(f"config.edits: variation(amount={amount}) is not in [0, 1]; try 0.2")

    if not 0 <= seed < seeds.COUNT:
        raise ValueError(
            f"config.edits: variation(seed={seed}) must be 0 to {seeds.COUNT - 1}, as any seed"
        )

    def arrays(generator: Generator, request: Request):
        shape = generator.geometry.latent_shape(request.size or generator.geometry.size)
        key = seeds.folded(seeds.key(seed), request.seed)
        return np.asarray(jax.random.normal(key, shape)), np.float32(amount)

    def apply(drawing: Drawing, arrays) -> Drawing:
        return drawing._replace(noise=slerp(drawing.noise, *arrays))

    return Edit(arrays, apply)
