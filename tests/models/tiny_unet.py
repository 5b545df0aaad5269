"""A U-Net small enough to compile in a test, with parameters and inputs for it."""

import jax
import jax.numpy as jnp
import numpy as np

from diffusion_jax.models.adapter import init_params
from diffusion_jax.models.unet.unet import UNet

TINY = UNet(
    channels=8,
    channel_mults=(1, 2),
    num_res_blocks=1,
    attention_levels=(1,),
    head_dim=8,
    num_classes=3,
    out_channels=2,
)
SHAPE = (2, 4, 6, 2)
LABEL = {"label": jnp.array([0, 2])}


def quick(f):
    """Jit at the lowest effort of the compiler: these nets run once."""
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def abstract_params(unet, shape=SHAPE, cond=None):
    return jax.eval_shape(lambda key: init_params(unet, key, shape, cond), jax.random.key(0))


def random_params(unet):
    """Parameters with nothing at zero, so that every path of the net counts."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32)
    return jax.tree.map(draw, abstract_params(unet))


def inputs(seed=1):
    x = np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)
    return jnp.asarray(x), jnp.array([3.0, 700.0])
