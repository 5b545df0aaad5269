"""Tensors of adapter files in the dialects of LyCORIS, with the differences that they mean."""

import numpy as np
import torch

from diffusion_jax.convert.sd_unet import to_sd_unet

RNG = np.random.default_rng(0)
DENSE = "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"  # 64 -> 512
CONV = "down_blocks.1.resnets.0.conv1"  # 32 -> 64, 3x3
POINT = "mid_block.attentions.0.proj_in"  # 1x1
NORM = "mid_block.resnets.0.norm1"


def unet_of(checkpoint):
    state = to_sd_unet(checkpoint.unet.params, checkpoint.configs["unet"])
    return {name: np.asarray(array) for name, array in state.items()}


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def kohya(name):
    return "lora_unet_" + name.replace(".", "_")


def dora(weight, change, size, axes):
    moved = (weight + change).astype(np.float64)
    return size * moved / np.sqrt((moved**2).sum(axes, keepdims=True)) - weight


def cases(state):
    """name -> (tensors of the file, {tensor: difference}), by definitions of LyCORIS."""
    dense, conv = (state[f"{name}.weight"] for name in (DENSE, CONV))
    (out, into), (n, m, kh, kw) = dense.shape, conv.shape
    d, c, p, norm = kohya(DENSE), kohya(CONV), kohya(POINT), kohya(NORM)
    a, b = normal(3, into), normal(out, 3)
    change = 0.5 * np.einsum("or,ri->oi", b, a)
    pair = {f"{d}.lora_down.weight": a, f"{d}.lora_up.weight": b, f"{d}.alpha": np.array(1.5, "f")}
    up, mid, down = normal(n, 5, 1, 1), normal(5, 4, kh, kw), normal(4, m, 1, 1)
    core = {
        f"{c}.lora_up.weight": up,
        f"{c}.lora_mid.weight": mid,
        f"{c}.lora_down.weight": down,
        f"{c}.alpha": np.array([2.0], "f"),
    }
    t = lambda array: torch.tensor(array, dtype=torch.float64)
    # Its three convolutions one after the other, as the trainer runs them, of each input channel.
    pulse = torch.zeros(m, m, 5, 5, dtype=torch.float64)
    pulse[:, :, 2, 2] = torch.eye(m)
    f = torch.nn.functional.conv2d
    seen = f(f(f(pulse, t(down)), t(mid), padding=1), t(up))[:, :, 1:4, 1:4]
    cored = 0.5 * seen.flip(2, 3).permute(1, 0, 2, 3).numpy()
    h = [normal(n, 2), normal(2, m * kh * kw), normal(n, 3), normal(3, m * kh * kw)]
    roles = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    loha = dict(zip((f"{c}.{r}" for r in roles), h, strict=True)) | {
        f"{c}.alpha": np.array(3.0, "f")
    }
    loha_change = 1.5 * ((h[0] @ h[1]) * (h[2] @ h[3])).reshape(conv.shape)
    k1, k2a, k2b = normal(4, 8), normal(n // 4, 3), normal(3, m // 8 * kh * kw)
    lokr = {
        f"{c}.lokr_w1": k1,
        f"{c}.lokr_w2_a": k2a,
        f"{c}.lokr_w2_b": k2b,
        f"{c}.alpha": np.array(6.0, "f"),
    }
    second = (k2a @ k2b).reshape(n // 4, m // 8, kh, kw)
    lokr_change = 2.0 * np.einsum("ab,cdkl->acbdkl", k1, second).reshape(conv.shape)
    both = {
        f"{d}.lokr_w1": normal(16, 4),
        f"{d}.lokr_w2": normal(out // 16, into // 4),
        f"{d}.alpha": np.array(1e9, "f"),
    }  # of two whole factors it says nothing
    both_change = np.kron(both[f"{d}.lokr_w1"], both[f"{d}.lokr_w2"])
    rows, columns = normal(out, 1), normal(into)
    by_output, by_input = np.abs(normal(out, 1)), np.abs(normal(1, into))
    conv_in = np.abs(normal(1, m, 1, 1))
    full, bias, scale, shift = normal(n, m, kh, kw), normal(n), normal(64), normal(64)
    flat_a, flat_b = normal(3, 64), normal(64, 3, 1, 1)
    weight = f"{DENSE}.weight"
    comfy = "diffusion_model.middle_block.1.transformer_blocks.0.ff.net.0.proj"
    return {
        "alpha_absent": ({k: v for k, v in pair.items() if "alpha" not in k}, {weight: 2 * change}),
        "core": (core, {f"{CONV}.weight": cored}),
        "pointwise_as_dense": (
            {f"{p}.lora_down.weight": flat_a, f"{p}.lora_up.weight": flat_b},
            {f"{POINT}.weight": (flat_b[:, :, 0, 0] @ flat_a)[:, :, None, None]},
        ),
        "loha": (loha, {f"{CONV}.weight": loha_change}),
        "lokr": (lokr, {f"{CONV}.weight": lokr_change}),
        "lokr_whole": (both, {weight: both_change}),
        "dora_by_output": (
            {**pair, f"{d}.dora_scale": by_output}, {weight: dora(dense, change, by_output, 1)}
        ),
        "dora_by_input": (
            {**pair, f"{d}.dora_scale": by_input}, {weight: dora(dense, change, by_input, 0)}
        ),
        "dora_of_a_loha": (
            {**loha, f"{c}.dora_scale": conv_in},
            {f"{CONV}.weight": dora(conv, loha_change, conv_in, (0, 2, 3))},
        ),
        "ia3_outputs": (
            {f"{d}.weight": rows, f"{d}.on_input": np.array(False)}, {weight: dense * rows}
        ),
        "ia3_inputs": (
            {f"{d}.weight": columns, f"{d}.on_input": np.array(True)}, {weight: dense * columns}
        ),
        "full": (
            {f"{c}.diff": full, f"{c}.diff_b": bias}, {f"{CONV}.weight": full, f"{CONV}.bias": bias}
        ),
        "norms": (
            {**pair, f"{norm}.w_norm": scale, f"{norm}.b_norm": shift},
            {weight: change, f"{NORM}.weight": scale, f"{NORM}.bias": shift},
        ),
        "bias_alone": ({f"{c}.diff_b": bias}, {f"{CONV}.bias": bias}),
        "comfy": (
            {f"{comfy}.{k.partition('.')[2]}": v for k, v in pair.items()}, {weight: change},
        ),
        "default_adapter": (
            {f"base_model.model.{DENSE}.lora_A.default.weight": a,
             f"base_model.model.{DENSE}.lora_B.default.weight": b}, {weight: 2 * change},
        ),
    }  # fmt: skip
