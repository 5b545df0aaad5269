"""The text-conditional U-Net and ControlNet against diffusers' with the same random weights."""

import os

import jax
import numpy as np
import pytest
from sd_configs import TINY

from diffusion_jax.convert.controlnet import from_diffusers_controlnet, to_diffusers_controlnet
from diffusion_jax.convert.sd_unet import from_sd_unet, to_sd_unet
from diffusion_jax.models.adapter import net_from_module
from diffusion_jax.models.image_tokens import with_image_tokens
from diffusion_jax.models.unet.control import control_from_module, with_control

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import torch
else:
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")

HINT = {"conditioning_embedding_out_channels": (4, 6, 8)}
CONTROLS = {
    "sd1": {k: v for k, v in TINY["sd1"].items() if k != "up_block_types"} | HINT,
    "sdxl": {k: v for k, v in TINY["sdxl"].items() if k != "up_block_types"} | HINT,
}


def random_model(cls, config):
    """A model of theirs with nothing at zero, and its weights."""
    torch.manual_seed(0)
    theirs = cls(**config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return theirs, {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}


def inputs(config, size=(8, 12)):
    rng = np.random.default_rng(1)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x = draw(2, *size, config.get("in_channels", 4))
    cond = {"context": draw(2, 5, config["cross_attention_dim"])}
    if "addition_embed_type" in config:
        sizes = [[512.0, 640, 0, 32, 1024, 1024], [1.0, 2, 3, 4, 5, 6]]
        cond |= {"pooled": draw(2, 10), "time_ids": np.array(sizes, np.float32)}
    if "num_class_embeds" in config:
        cond["label"] = np.array([1, 6])
    return x, np.array([3, 777], np.float32), cond


def to_torch(x):
    return torch.tensor(np.asarray(x)).permute(0, 3, 1, 2)


def to_ours(x):
    return x.permute(0, 2, 3, 1).numpy()


def their_arguments(x, time, cond):
    arguments = {
        "sample": to_torch(x),
        "timestep": torch.tensor(time),
        "encoder_hidden_states": torch.tensor(cond["context"]),
    }
    if "pooled" in cond:
        added = {"text_embeds": cond["pooled"], "time_ids": cond["time_ids"]}
        arguments["added_cond_kwargs"] = {k: torch.tensor(v) for k, v in added.items()}
    if "label" in cond:
        arguments["class_labels"] = torch.tensor(cond["label"])
    if "context_mask" in cond:
        arguments["encoder_attention_mask"] = torch.tensor(cond["context_mask"])
    return arguments


def quick(f):
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def relative(ours, theirs):
    theirs = np.asarray(theirs)
    return np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max()


def same(state, again):
    assert again.keys() == state.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name])


@pytest.mark.parametrize("case", TINY)
def test_unet_has_the_same_output(case):
    config = TINY[case]
    theirs, state = random_model(diffusers.UNet2DConditionModel, config)
    unet, params = from_sd_unet(state, theirs.config)
    x, time, cond = inputs(config)
    if case == "sd1":
        cond["context_mask"] = np.arange(5) < np.array([[3], [5]])
    with torch.no_grad():
        expected = to_ours(theirs(**their_arguments(x, time, cond)).sample)
    out = quick(net_from_module(unet))(params, x, time, cond)
    error = relative(out, expected)
    print(f"{case}: relative error {error:.1e} of outputs with deviation {expected.std():.2f}")
    assert expected.std() > 0.1 and error < 1e-5
    same(state, to_sd_unet(params, theirs.config))


@pytest.mark.parametrize("case", CONTROLS)
def test_control_net_has_the_same_output_alone_and_beside_the_unet(case):
    config = CONTROLS[case]
    theirs, state = random_model(diffusers.ControlNetModel, config)
    control, control_params = from_diffusers_controlnet(state, theirs.config)
    their_unet, unet_state = random_model(diffusers.UNet2DConditionModel, TINY[case])
    unet, params = from_sd_unet(unet_state, TINY[case])
    x, time, cond = inputs(config)
    hint = np.random.default_rng(2).uniform(size=(2, 32, 48, 3)).astype(np.float32)
    arguments = their_arguments(x, time, cond)
    with torch.no_grad():
        added = theirs(**arguments, controlnet_cond=to_torch(hint), conditioning_scale=0.7)
        expected = their_unet(
            **arguments,
            down_block_additional_residuals=added.down_block_res_samples,
            mid_block_additional_residual=added.mid_block_res_sample,
        ).sample
    control = control_from_module(control)

    @quick
    def both(params, x, time, cond):
        own = {k: v for k, v in cond.items() if k != "control_scale"}
        alone = control(params["control"][0], x, time, {**own, "hint": hint}, scale=0.7)
        return alone, with_control(net_from_module(unet), [control])(params, x, time, cond)

    cond |= {"hint": (hint,), "control_scale": (np.full(2, 0.7, np.float32),)}
    alone, out = both({"net": params, "control": (control_params,)}, x, time, cond)
    assert len(alone["down"]) == len(added.down_block_res_samples)
    pairs = zip(alone["down"], added.down_block_res_samples, strict=True)
    errors = [relative(ours, to_ours(t)) for ours, t in pairs]
    errors.append(relative(alone["mid"], to_ours(added.mid_block_res_sample)))
    errors.append(relative(out, to_ours(expected)))
    print(f"{case}: largest relative error {max(errors):.1e}")
    assert max(errors) < 1e-5
    same(state, to_diffusers_controlnet(control_params, config))


@pytest.mark.parametrize("size", [(7, 9), (5, 2)])
def test_odd_sizes_too(size):
    """Of which no half is whole: up to four levels, each rounded up on the way down."""
    deep = {
        "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1, "norm_num_groups": 8,
        "cross_attention_dim": 16, "attention_head_dim": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    ups = ("UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    theirs, state = random_model(diffusers.UNet2DConditionModel, {**deep, "up_block_types": ups})
    steering, control_state = random_model(diffusers.ControlNetModel, deep | HINT)
    unet, params = from_sd_unet(state, theirs.config)
    control, control_params = from_diffusers_controlnet(control_state, steering.config)
    x, time, cond = inputs(deep, size)
    hint = np.random.default_rng(2).uniform(size=(2, 4 * size[0], 4 * size[1], 3))
    hint = hint.astype(np.float32)
    arguments = their_arguments(x, time, cond)
    with torch.no_grad():
        plain = theirs(**arguments).sample
        added = steering(**arguments, controlnet_cond=to_torch(hint))
        expected = theirs(
            **arguments,
            down_block_additional_residuals=added.down_block_res_samples,
            mid_block_additional_residual=added.mid_block_res_sample,
        ).sample
    both = with_control(net_from_module(unet), [control_from_module(control)])
    out = quick(net_from_module(unet))(params, x, time, cond)
    steered = quick(both)(
        {"net": params, "control": (control_params,)}, x, time, {**cond, "hint": (hint,)}
    )
    assert relative(out, to_ours(plain)) < 1e-5
    assert relative(steered, to_ours(expected)) < 1e-5
    assert relative(to_ours(expected), to_ours(plain)) > 1e-2


@pytest.mark.parametrize("case", CONTROLS)
def test_without_control_the_output_differs(case):
    """So that the test above cannot pass with the residuals dropped on both sides."""
    theirs, _ = random_model(diffusers.UNet2DConditionModel, TINY[case])
    control, _ = random_model(diffusers.ControlNetModel, CONTROLS[case])
    arguments = their_arguments(*inputs(TINY[case]))
    with torch.no_grad():
        added = control(**arguments, controlnet_cond=torch.ones(2, 3, 32, 48))
        plain = theirs(**arguments).sample
        steered = theirs(
            **arguments,
            down_block_additional_residuals=added.down_block_res_samples,
            mid_block_additional_residual=added.mid_block_res_sample,
        ).sample
    assert relative(steered, plain) > 0.05


def image_adapter(theirs, width):
    """An IP-Adapter file of random weights, and our paths of its attentions in its order."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: 0.3 * torch.randn(*shape, generator=generator)
    names = [n for n in theirs.attn_processors if n.endswith("attn2.processor")]
    file, paths = {}, []
    for i, name in enumerate(names):
        parts = name.split(".")
        channels = theirs.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for kind in ("k", "v"):
            file[f"{2 * i + 1}.to_{kind}_ip.weight"] = draw(channels, width)
        side = parts[0].removesuffix("_blocks").removesuffix("_block")
        place = side if side == "mid" else f"{side}_{parts[1]}/block_{parts[3]}"
        layer = parts[parts.index("transformer_blocks") + 1]
        paths.append(f"{place}/transformer/layer_{layer}/cross_attention/attend")
    projection = {"proj.weight": draw(4 * width, 6), "proj.bias": draw(4 * width)}
    projection |= {"norm.weight": 1 + draw(width), "norm.bias": draw(width)}
    return {"image_proj": projection, "ip_adapter": file}, paths


@pytest.mark.parametrize("case", ["sd1", "sdxl"])
def test_image_tokens_have_the_same_output_as_an_ip_adapter(case):
    config = TINY[case]
    theirs, state = random_model(diffusers.UNet2DConditionModel, config)
    unet, params = from_sd_unet(state, theirs.config)
    x, time, cond = inputs(config)
    file, paths = image_adapter(theirs, config["cross_attention_dim"])
    theirs._load_ip_adapter_weights([file], low_cpu_mem_usage=False)
    for name, processor in theirs.attn_processors.items():
        if name.endswith("attn2.processor"):
            processor.scale = [0.7]
    picture = torch.tensor(np.random.default_rng(3).normal(size=(2, 1, 6)), dtype=torch.float32)
    arguments = their_arguments(x, time, cond)
    added = arguments.pop("added_cond_kwargs", {}) | {"image_embeds": [picture]}
    with torch.no_grad():
        expected = to_ours(theirs(**arguments, added_cond_kwargs=added).sample)
        tokens = theirs.encoder_hid_proj([picture])[0].reshape(2, 4, -1).numpy()
    kernel = lambda i, kind: {"kernel": file["ip_adapter"][f"{i}.to_{kind}_ip.weight"].numpy().T}
    read = {
        path: {"key": kernel(2 * i + 1, "k"), "value": kernel(2 * i + 1, "v")}
        for i, path in enumerate(paths)
    }
    net = net_from_module(unet)
    cond |= {"image_tokens": tokens, "image_scale": np.float32(0.7)}
    both = {"net": params, "image_tokens": read}
    out = quick(with_image_tokens(net))(both, x, time, cond)
    off = quick(with_image_tokens(net))(both, x, time, cond | {"image_scale": np.float32(0)})
    error = relative(out, expected)
    print(f"{case}: relative error {error:.1e}, {len(paths)} attentions")
    assert error < 1e-5 and relative(off, expected) > 0.02
