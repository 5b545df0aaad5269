"""Our MMDiT against diffusers' with the same random weights, and the published sizes."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert.fitting import differences, tensor_shapes
from diffusion_jax.convert.mmdit import (
    from_diffusers_mmdit,
    mmdit_config,
    mmdit_shapes,
    rows,
    to_diffusers_mmdit,
)
from diffusion_jax.models.adapter import net_from_module
from diffusion_jax.models.transformers.dit import positions

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

SD3 = {
    "sample_size": 12, "in_channels": 3, "out_channels": 3, "num_layers": 3,
    "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 10,
    "caption_projection_dim": 16, "pooled_projection_dim": 7, "pos_embed_max_size": 9,
}  # fmt: skip
SD35 = {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}
SD3_MEDIUM = {
    "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
    "pos_embed_max_size": 192,
}  # fmt: skip
SD35_MEDIUM = {
    **SD3_MEDIUM, "pos_embed_max_size": 384, "qk_norm": "rms_norm",
    "dual_attention_layers": tuple(range(13)),
}  # fmt: skip


@pytest.fixture(scope="module", params=[SD3, SD35], ids=["sd3", "sd3.5"])
def both(request):
    """(config, their model with nothing at zero, its tensors)."""
    torch.manual_seed(0)
    theirs = diffusers.SD3Transformer2DModel(**request.param).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        theirs.pos_embed.pos_embed.add_(0.1)  # the file's positions count, not a formula's
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    return request.param, theirs, state


def test_same_output_from_the_same_weights(both):
    _, theirs, state = both
    module, params = from_diffusers_mmdit(state, theirs.config)
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, time = draw(2, 8, 14, 3), np.array([3.0, 777.0], np.float32)
    cond = {"context": draw(2, 5, 10), "pooled": draw(2, 7)}
    with torch.no_grad():
        want = theirs(
            torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(cond["context"]),
            torch.tensor(cond["pooled"]), torch.tensor(time),
        ).sample.permute(0, 2, 3, 1).numpy()  # fmt: skip
    ours = np.asarray(jax.jit(net_from_module(module))(params, x, time, cond))
    print(f"relative error {np.abs(ours - want).max() / np.abs(want).max():.1e}")
    assert want.std() > 0.1
    np.testing.assert_allclose(ours, want, atol=1e-5 * np.abs(want).max(), rtol=1e-4)


def test_its_tensors_come_back(both):
    config, _, state = both
    _, params = from_diffusers_mmdit(state, config)
    again = to_diffusers_mmdit(params, config)
    assert again.keys() == state.keys()
    for name, array in again.items():
        assert array.dtype == state[name].dtype and array.shape == state[name].shape
        assert array.tobytes() == state[name].tobytes(), name


def test_tensors_that_do_not_fit_are_named(both):
    config, _, state = both
    name = "transformer_blocks.1.norm1_context.linear.bias"
    wrong = {**state, name: state[name][:-1], "pos_embed.more": state[name]}
    del wrong["context_embedder.weight"]
    with pytest.raises(ValueError) as error:
        from_diffusers_mmdit(wrong, config)
    for words in ("missing context_embedder.weight", "extra pos_embed.more", f"misshapen {name}"):
        assert words in str(error.value)


def test_the_computed_positions_are_those_that_a_new_model_stores():
    theirs = diffusers.SD3Transformer2DModel(**{**SD3, "num_layers": 1})
    fields = mmdit_config(SD3)
    side, step = fields["max_side"], fields["grid"] / fields["max_side"]
    want = theirs.pos_embed.pos_embed[0].numpy().reshape(side, side, -1)
    ours = positions(4, 5, fields["width"], (2, 3), step)  # a part of it
    np.testing.assert_allclose(ours, want[2:6, 3:8].reshape(20, -1), atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("caption_projection_dim", 15, "caption_projection_dim=15 cannot be .* = 16 can"),
        ("qk_norm", "layer_norm", r"qk_norm='layer_norm' cannot .* \(None, 'rms_norm'\)"),
        ("sample_size", 13, "sample_size=13 cannot be converted: only multiples of patch_size=2"),
    ],
)
def test_a_config_that_cannot_be_converted_is_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        mmdit_config({**SD3, field: value})


@pytest.mark.parametrize("config", [SD3_MEDIUM, SD35_MEDIUM], ids=["sd3", "sd3.5"])
def test_the_full_size_has_the_same_tensors(config):
    with torch.device("meta"):
        theirs = diffusers.SD3Transformer2DModel(**config)
    want = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    ours = mmdit_shapes(config)
    assert not differences(want, tensor_shapes(ours, rows(config)))
    del ours["positions/table"]  # no parameter there
    count = sum(int(np.prod(shape)) for shape in ours.values())
    print(f"{count:,} parameters")
    assert count == sum(parameter.numel() for parameter in theirs.parameters())
