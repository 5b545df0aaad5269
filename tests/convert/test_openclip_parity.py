"""OpenCLIP's text transformer, as single files of SD 2 and SDXL hold it, against ours."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert import openclip
from diffusion_jax.convert.text_encoders import from_transformers
from diffusion_jax.models.text.clip import READS

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import torch
else:
    torch = pytest.importorskip("torch")

WIDTH, LAYERS, LENGTH = 128, 3, 12


def _block():
    """The parts of a layer, under OpenCLIP's names; two heads, each 64 wide."""
    mlp = torch.nn.ModuleDict(
        {"c_fc": torch.nn.Linear(WIDTH, 200), "c_proj": torch.nn.Linear(200, WIDTH)}
    )
    parts = {
        "ln_1": torch.nn.LayerNorm(WIDTH),
        "attn": torch.nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        "ln_2": torch.nn.LayerNorm(WIDTH),
        "mlp": mlp,
    }
    return torch.nn.ModuleDict(parts)


def _network():
    torch.manual_seed(0)
    net = torch.nn.Module()
    net.token_embedding = torch.nn.Embedding(60, WIDTH)
    net.positional_embedding = torch.nn.Parameter(torch.zeros(LENGTH, WIDTH))
    net.transformer = torch.nn.ModuleDict(
        {"resblocks": torch.nn.ModuleList(_block() for _ in range(LAYERS))}
    )
    net.ln_final = torch.nn.LayerNorm(WIDTH)
    net.text_projection = torch.nn.Parameter(torch.zeros(WIDTH, 40))
    net.logit_scale = torch.nn.Parameter(torch.ones([]))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net


def _forward(net, ids):
    """Penultimate states, last states after the norm, pooled."""
    x = net.token_embedding(ids) + net.positional_embedding[: ids.shape[1]]
    above = torch.full((ids.shape[1],) * 2, -torch.inf).triu(1)
    before = x
    for block in net.transformer["resblocks"]:
        before = x
        h = block["ln_1"](x)
        x = x + block["attn"](h, h, h, need_weights=False, attn_mask=above)[0]
        h = torch.nn.functional.gelu(block["mlp"]["c_fc"](block["ln_2"](x)))
        x = x + block["mlp"]["c_proj"](h)
    last = net.ln_final(x)
    pooled = last[torch.arange(len(ids)), ids.argmax(-1)] @ net.text_projection
    return before, net.ln_final(before), last, pooled


def test_same_states_from_the_same_weights():
    net = _network()
    prefix = "conditioner.embedders.1.model."
    single = {prefix + name: x.numpy() for name, x in net.state_dict().items()}
    theirs = openclip.under(single, prefix)
    config = {**openclip.config_of(theirs), "eos_token_id": 59}
    module, params = from_transformers(openclip.to_transformers(theirs), config)

    ids = np.random.default_rng(0).integers(1, 59, (3, LENGTH))
    ids[[0, 1, 2], [3, 7, 11]] = 59
    with torch.no_grad():
        expected = _forward(net, torch.tensor(ids))
    fast = {"xla_backend_optimization_level": 0}
    apply = jax.jit(lambda ids: module.apply({"params": params}, ids), compiler_options=fast)
    states = apply(ids.astype(np.int32))
    ours = (
        READS["penultimate"](states),
        READS["penultimate_normed"](states),
        READS["last"](states),
        states.pooled,
    )
    for a, b in zip(ours, expected, strict=True):
        error = np.abs(np.asarray(a) - b.numpy()).max() / np.abs(b.numpy()).max()
        print(f"relative error {error:.1e}")
        assert b.std() > 0.1 and error < 1e-4
