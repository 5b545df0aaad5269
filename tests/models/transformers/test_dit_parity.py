"""Our DiT against diffusers' with the same random weights."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert.dit import ROWS, dit_shapes, from_diffusers_dit, to_diffusers_dit
from diffusion_jax.convert.fitting import tensor_shapes
from diffusion_jax.models.adapter import net_from_module

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

TINY = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 3, "out_channels": 6,
    "num_layers": 3, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 5,
}  # fmt: skip


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(**TINY).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        first = theirs.transformer_blocks[0].norm1.emb.state_dict()
        for block in theirs.transformer_blocks:  # published weights have one embedding
            block.norm1.emb.load_state_dict(first)
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return theirs, state


def test_same_output_from_the_same_weights(both):
    theirs, state = both
    module, params = from_diffusers_dit(state, theirs.config)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    time, label = np.array([3.0, 871.0], np.float32), np.array([2, 5])
    with torch.no_grad():
        want = theirs(
            torch.tensor(x).permute(0, 3, 1, 2), timestep=torch.tensor(time).long(),
            class_labels=torch.tensor(label),
        ).sample.permute(0, 2, 3, 1).numpy()  # fmt: skip
    ours = jax.jit(net_from_module(module))(params, x, time, {"label": label})
    np.testing.assert_allclose(ours, want, atol=1e-5 * np.abs(want).max(), rtol=1e-4)


def test_its_tensors_come_back(both):
    theirs, state = both
    _, params = from_diffusers_dit(state, theirs.config)
    again = to_diffusers_dit(params, theirs.config)
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], state[name]) for name in state)


def test_layers_that_embed_on_their_own_are_refused(both):
    theirs, state = both
    name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match="is not that of layer 0"):
        from_diffusers_dit({**state, name: state[name] + 1}, theirs.config)


def test_the_full_size_has_the_same_tensors():
    config = {"out_channels": 8, "sample_size": 32}
    with torch.device("meta"):
        theirs = diffusers.DiTTransformer2DModel(**config)
    want = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    ours = tensor_shapes(dit_shapes(config), ROWS)
    assert ours.items() <= want.items()
    assert all(".norm1.emb." in name for name in want.keys() - ours.keys())  # the copies
    count = sum(np.prod(shape) for shape in ours.values())
    assert abs(count / 675e6 - 1) < 0.001  # Peebles & Xie 2023, table 1
