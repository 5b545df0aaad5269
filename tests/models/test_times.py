"""Networks that read one time for each example refuse a time for each part of it, by their name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffusion_jax.models import MODELS
from diffusion_jax.models.embeddings import TIME_FEATURES
from diffusion_jax.models.unet.control import ControlNet

TEXT = {"context": jnp.zeros((2, 5, 3))}
NETS = {
    "UNet": (MODELS["unet"](channels=8, channel_mults=(1,), num_res_blocks=1), {}, (4, 6, 3)),
    "TextUNet": (
        MODELS["text_unet"](channels=8, channel_mults=(1,), depths=0, heads=2),
        TEXT,
        (4, 6, 4),
    ),
    "ControlNet": (
        ControlNet(channels=8, channel_mults=(1,), depths=0, heads=2, hint_widths=(4, 6)),
        TEXT | {"hint": jnp.zeros((2, 8, 12, 3))},
        (4, 6, 4),
    ),
    "MMDiT": (MODELS["mmdit"](width=8, depth=1, heads=2, pooled_features=0), TEXT, (4, 6, 16)),
    "MLP": (MODELS["mlp"](width=8, depth=1, out_channels=4), {}, (4,)),
}


def test_every_network_is_here_or_reads_a_time_for_each_token():
    names = {type(net).__name__ for net, _, _ in NETS.values()}
    assert {net.__name__ for net in MODELS.values()} - names == {"DiT"}


@pytest.mark.parametrize("name", NETS)
def test_a_time_for_each_part_is_refused(name):
    net, cond, shape = NETS[name]
    make = lambda time: jax.eval_shape(
        lambda: net.init(jax.random.key(0), jnp.zeros((2, *shape)), time, cond)
    )
    make(jnp.zeros(2))
    for rest in ((shape[0],), shape[:2], (1,)):
        with pytest.raises(ValueError, match=rf"^{name} reads one time for each example, \[b\]"):
            make(jnp.zeros((2, *rest)))


@pytest.mark.parametrize("name", TIME_FEATURES)
def test_features_of_a_time_for_each_token_are_those_of_each_time(name):
    times = np.random.default_rng(0).uniform(0, 1, (2, 3)).astype(np.float32)
    features = jax.jit(TIME_FEATURES[name], static_argnums=1)
    for dim in (6, 7):
        each = features(times.reshape(-1), dim).reshape(2, 3, dim)
        np.testing.assert_allclose(features(times, dim), each, atol=1e-6)
