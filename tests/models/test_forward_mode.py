"""Forward mode along (x, time) through whole networks, whatever is chosen of them: finite
differences of the plain float32 network are the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_unet import quick

from diffusion_jax.models.adapter import init_params, net_from_module
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.transformers.mmdit import MMDiT
from diffusion_jax.models.unet.text_unet import TextUNet
from diffusion_jax.models.unet.unet import UNet

RNG = np.random.default_rng(0)
draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
SHAPE = (2, 4, 4, 3)
X, TIME, DX, DT = draw(*SHAPE), jnp.array([3.0, 700.0]), draw(*SHAPE), jnp.array([2.0, -3.0])
TEXT, LABEL = {"context": draw(2, 5, 6)}, {"label": jnp.array([0, 2])}
NETS = {
    "unet": (
        UNet(channels=8, channel_mults=(1,), num_res_blocks=1, attention_levels=(0,), head_dim=4,
             num_classes=3, out_channels=3),
        LABEL,
    ),
    "text_unet": (
        TextUNet(channels=8, channel_mults=(1,), num_res_blocks=1, depths=1, mid_depth=0, heads=2,
                 groups=4, out_channels=3),
        TEXT,
    ),
    "dit": (DiT(width=16, depth=2, heads=2, out_channels=3, num_classes=3), LABEL),
    "mmdit": (
        MMDiT(width=16, depth=2, heads=2, out_channels=3, pooled_features=5, max_side=4, grid=4,
              second_attention=(0,), qk_norm="rms"),
        TEXT | {"pooled": draw(2, 5)},
    ),
}  # fmt: skip
# What is chosen -> error of the derivative, relative to its largest number.
CHOICES = {
    "plain": ({}, 5e-3),
    "chunked, dots kept": ({"attention": "chunked", "remat": "dots"}, 5e-3),
    "bfloat16, all computed again": ({"dtype": "bfloat16", "remat": "full"}, 3e-2),
}


@pytest.fixture(scope="module", params=NETS)
def case(request):
    """The network, cond, parameters without zeros, and the slope by central differences."""
    module, cond = NETS[request.param]
    shapes = jax.eval_shape(lambda: init_params(module, jax.random.key(0), SHAPE, cond))
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda a: rng.normal(0, 0.3, a.shape).astype(np.float32), shapes)
    run = quick(net_from_module(module))
    at = lambda e, dx=1.0: np.asarray(run(params, X + e * dx * DX, TIME + e * DT, cond), float)
    # Richardson's rule: the error is of the fourth order in the step.
    central = lambda h, dx=1.0: (at(h, dx) - at(-h, dx)) / (2 * h)
    slope = (4 * central(4e-3) - central(8e-3)) / 3
    in_time = np.abs(central(8e-3, 0.0)).max() / np.abs(slope).max()
    assert in_time > 0.05, in_time  # time has its share, so that it cannot be left out
    return module, cond, params, slope


@pytest.mark.parametrize("choice", CHOICES)
def test_the_slope_of_a_whole_network(case, choice):
    module, cond, params, slope = case
    fields, tolerance = CHOICES[choice]
    net = net_from_module(module.clone(**fields))
    along = quick(lambda x, t: jax.jvp(lambda x, t: net(params, x, t, cond), (x, t), (DX, DT))[1])
    error = np.abs(along(X, TIME) - slope).max() / np.abs(slope).max()
    print(f"{error:.1e}")
    assert error < tolerance
