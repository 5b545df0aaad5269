"""Our autoencoders against diffusers' with the same random weights."""

import os

import jax
import numpy as np
import pytest

from diffusion_jax.convert.sd_autoencoder import (
    from_diffusers_autoencoder,
    module_of,
    parameter_shapes,
    scale_of,
    to_diffusers_autoencoder,
)
from diffusion_jax.core.encodings import ENCODINGS
from diffusion_jax.models.autoencoders.codec import codec

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

TINY = {
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "layers_per_block": 2,
    "norm_num_groups": 4,
}
KL = {
    "stable diffusion": {},
    "without quant layers, 16 channels": {
        "use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 16,
        "shift_factor": 0.06,
    },
    "without attention": {"mid_block_add_attention": False, "layers_per_block": 1},
}  # fmt: skip


def with_random_weights(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def nchw(x):
    return torch.tensor(x).permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1).numpy()


def close(ours, theirs):
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=1e-5)


@pytest.mark.parametrize("case", KL)
def test_kl(case):
    theirs = with_random_weights(diffusers.AutoencoderKL(**{**TINY, **KL[case]}))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    module, params = from_diffusers_autoencoder(state, theirs.config)
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        law = theirs.encode(nchw(x)).latent_dist
        back = theirs.decode(law.mean).sample
    run = lambda method, x: jax.jit(lambda p, x: module.apply({"params": p}, x, method=method))(
        params, x
    )
    ours = run("encode", x)
    close(ours.mean, nhwc(law.mean))
    close(ours.log_var, nhwc(law.logvar))
    np.testing.assert_allclose(ours.kl(), law.kl().numpy(), rtol=1e-4)
    close(run("decode", nhwc(law.mean)), nhwc(back))
    again = to_diffusers_autoencoder(params)
    assert again.keys() == state.keys()
    assert all(np.array_equal(again[name], state[name]) for name in state)


@pytest.mark.parametrize("case", ["stable diffusion", "without quant layers, 16 channels"])
def test_the_latents_of_conditions(case):
    """Mode or draw, raw or scaled: each is what a pipeline of theirs makes of ``latent_dist``."""
    theirs = with_random_weights(diffusers.AutoencoderKL(**{**TINY, **KL[case]}))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    module, params = from_diffusers_autoencoder(state, theirs.config)
    ours, frozen = codec(module, *scale_of(theirs.config)), {"autoencoder": params}
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    key = jax.random.key(7)
    scale, shift = theirs.config.scaling_factor, theirs.config.shift_factor or 0.0
    with torch.no_grad():
        law = theirs.encode(nchw(x)).latent_dist
        # Our noise in their formula, mean + std·noise; their own draws have no other law.
        noise = jax.random.normal(key, nhwc(law.mean).shape)
        drawn = law.mean + law.std * nchw(np.array(noise))
        back = theirs.decode(law.mode()).sample
    run = {
        name: jax.jit(f, static_argnums=0)(ours, frozen, x, key) for name, f in ENCODINGS.items()
    }
    close(run["mode"], nhwc(law.mode()))
    close(run["sample"], nhwc(drawn))
    close(run["scaled_mode"], nhwc((law.mode() - shift) * scale))
    close(run["scaled_sample"], nhwc((drawn - shift) * scale))
    assert np.abs(run["sample"] - run["mode"]).max() > 1e-3
    trained = jax.jit(ours.encode)(frozen, x, key)
    np.testing.assert_array_equal(run["scaled_sample"], trained)
    np.testing.assert_allclose(ours.unscale(ours.scale(run["mode"])), run["mode"], atol=1e-5)
    close(jax.jit(ours.decode)(frozen, ours.scale(nhwc(law.mode())), key), nhwc(back))


def test_their_draws_have_the_moments_of_the_posterior():
    theirs = with_random_weights(diffusers.AutoencoderKL(**TINY))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    module, params = from_diffusers_autoencoder(state, theirs.config)
    x = np.random.default_rng(1).normal(size=(1, 4, 6, 3)).astype(np.float32)
    mean, deviation = jax.jit(codec(module, 1.0).posterior)({"autoencoder": params}, x)
    with torch.no_grad():
        law = theirs.encode(nchw(x)).latent_dist
        draws = np.stack([nhwc(law.sample()) for _ in range(4000)])
    error = (draws.mean(0) - mean) / deviation
    assert np.abs(error).max() < 5 / np.sqrt(4000)
    np.testing.assert_allclose(draws.std(0), deviation, rtol=5 / np.sqrt(8000))


def test_vq():
    config = {**TINY, "num_vq_embeddings": 12, "vq_embed_dim": 3, "latent_channels": 4}
    theirs = with_random_weights(diffusers.VQModel(**config))
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    module, params = from_diffusers_autoencoder(state, {"_class_name": "VQModel", **theirs.config})
    x = np.random.default_rng(0).normal(size=(2, 16, 24, 3)).astype(np.float32)
    with torch.no_grad():
        before = theirs.encode(nchw(x)).latents
        z, _, (_, _, indices) = theirs.quantize(before)
        back = theirs.decode(before).sample
    call = lambda p, x, method: module.apply({"params": p}, x, method=method)
    apply = jax.jit(call, static_argnums=2)
    ours = apply(params, x, "encode")
    close(ours.before, nhwc(before))
    np.testing.assert_array_equal(np.ravel(ours.indices), indices.numpy())
    close(ours.z, nhwc(z))
    close(apply(params, ours.z, "decode"), nhwc(back))
    assert to_diffusers_autoencoder(params).keys() == state.keys()


def test_the_full_size_has_the_same_tensors():
    config = {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2,
    }  # fmt: skip
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(**config)
    want = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    from diffusion_jax.convert.fitting import tensor_shapes
    from diffusion_jax.convert.sd_autoencoder import ROWS

    assert tensor_shapes(parameter_shapes(module_of(config)), ROWS) == want
    assert sum(np.prod(shape) for shape in want.values()) == 83_653_863
