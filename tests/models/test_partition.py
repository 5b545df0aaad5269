"""Split rules of a tensor axis: pairs of layers, one by its outputs, the next by its inputs."""

import re

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from diffusion_jax.models.adapter import init_params
from diffusion_jax.models.partition import PARTITIONS
from diffusion_jax.models.transformers.dit import DiT
from diffusion_jax.models.unet.control import ControlNet
from diffusion_jax.models.unet.text_unet import TextUNet

FIELDS = {"channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1, "depths": (1, 0), "heads": 2}
TEXT = {"context": jnp.zeros((1, 5, 3))}
HINT = {"hint": jnp.zeros((1, 8, 8, 3))}


def split_of(name, module, cond):
    """Path -> dimension that the tensor axis splits; each parameter fits one rule at most."""
    make = lambda key: init_params(module, key, (1, 4, 4, 2), cond)
    split = {}
    shapes = flatten_dict(jax.eval_shape(make, jax.random.key(0)), sep="/")
    for path, leaf in shapes.items():
        fits = [axes for pattern, axes in PARTITIONS[name] if re.search(pattern, path)]
        assert len(fits) <= 1 and all(len(axes) == leaf.ndim for axes in fits), path
        if fits:
            split[path] = fits[0].index("tensor")
    return split


@pytest.mark.parametrize(
    ("name", "module", "cond"),
    [
        ("text_unet", TextUNet(**FIELDS, groups=4, out_channels=2), TEXT),
        ("controlnet", ControlNet(**FIELDS, groups=4, hint_widths=(4, 6)), TEXT | HINT),
    ],
)
def test_unets_split_attention_mlps_and_pairs_of_convolutions(name, module, cond):
    split = split_of(name, module, cond)
    layer = "mid/transformer/layer_0"
    assert [split[f"{layer}/cross_attention/{n}/kernel"] for n in ("key", "out")] == [1, 0]
    assert [split[f"{layer}/self_attention/{n}/kernel"] for n in ("value", "out")] == [1, 0]
    assert [split[f"{layer}/mlp/{n}/kernel"] for n in ("in", "out")] == [1, 0]
    assert [split[f"mid/res_1/conv_{i}/kernel"] for i in (0, 1)] == [3, 2]
    assert [split[f"down_0/block_0/res/conv_{i}/kernel"] for i in (0, 1)] == [3, 2]
    assert not [path for path in split if "proj" in path or "zero" in path]


def test_a_transformer_splits_attention_and_mlps_alone():
    split = split_of("dit", DiT(width=8, depth=1, heads=2, out_channels=2), {})
    inner, outer = ("query", "key", "value"), ("out",)
    assert split == {
        **{f"layer_0/attention/{n}/kernel": 1 for n in inner},
        **{f"layer_0/attention/{n}/kernel": 0 for n in outer},
        "layer_0/mlp/in/kernel": 1,
        "layer_0/mlp/out/kernel": 0,
    }
