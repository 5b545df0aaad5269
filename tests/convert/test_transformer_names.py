"""DiT, MMDiT and ControlNet to diffusers' layout and back, by published names and sizes.

That the networks then draw the same is in the parity tests.
"""

import numpy as np
import pytest

from diffusion_jax.convert import controlnet, dit, mmdit
from diffusion_jax.convert.fitting import differences
from diffusion_jax.convert.names import KINDS, nested


def normal(shapes):
    rng = np.random.default_rng(0)
    return nested({path: rng.normal(size=s).astype(np.float32) for path, s in shapes.items()})


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        if isinstance(a[name], dict):
            assert_same(a[name], b[name])
        else:
            np.testing.assert_array_equal(a[name], b[name])


TINY_DIT = {
    "num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 3, "num_layers": 2,
    "patch_size": 2, "num_embeds_ada_norm": 5, "norm_eps": 1e-3, "dropout": 0.25,
}  # fmt: skip


def test_the_fields_of_a_dit():
    assert dit.dit_config(TINY_DIT) == {
        "width": 8, "depth": 2, "heads": 2, "patch": 2, "out_channels": 3, "num_classes": 5,
        "mlp_eps": 1e-3, "dropout": 0.25, "time_options": {"shift": 1.0},
    }  # fmt: skip
    assert dit.dit_config({**TINY_DIT, "out_channels": 6})["out_channels"] == 6
    largest = dit.dit_config({"out_channels": 8})  # DiT-XL/2, Peebles & Xie 2023, table 1
    assert [largest[name] for name in ("width", "depth", "heads", "patch")] == [1152, 28, 16, 2]
    assert (largest["num_classes"], largest["mlp_eps"], largest["dropout"]) == (1000, 1e-5, 0.0)
    assert dit.dit_config({})["out_channels"] == 4
    for wrong in ({"attention_bias": False}, {"activation_fn": "gelu"}, {"norm_type": "layer"}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}="):
            dit.dit_config({**TINY_DIT, **wrong})


def test_a_dits_tensors_have_their_names_and_come_back():
    params = normal(dit.dit_shapes(TINY_DIT))
    state = dit.to_diffusers_dit(params, TINY_DIT)
    own = lambda name, leaf="kernel": params[name][leaf]
    layer = params["layer_1"]
    block = "transformer_blocks.1."
    for name, array in {
        "pos_embed.proj.weight": own("patches").transpose(3, 2, 0, 1),
        "proj_out_1.weight": own("modulation_out").T,
        "proj_out_2.bias": own("proj_out", "bias"),
        block + "norm1.linear.bias": layer["modulation"]["bias"],
        block + "attn1.to_q.weight": layer["attention"]["query"]["kernel"].T,
        block + "attn1.to_k.weight": layer["attention"]["key"]["kernel"].T,
        block + "attn1.to_v.bias": layer["attention"]["value"]["bias"],
        block + "attn1.to_out.0.weight": layer["attention"]["out"]["kernel"].T,
        block + "ff.net.0.proj.weight": layer["mlp"]["in"]["kernel"].T,
        block + "ff.net.2.weight": layer["mlp"]["out"]["kernel"].T,
    }.items():
        np.testing.assert_array_equal(state[name], array)
    embed = params["embed"]
    for i in (0, 1):  # a copy in each layer
        of = f"transformer_blocks.{i}.norm1.emb."
        first = state[of + "timestep_embedder.linear_1.weight"]
        np.testing.assert_array_equal(first, embed["time_0"]["kernel"].T)
        second = state[of + "timestep_embedder.linear_2.bias"]
        np.testing.assert_array_equal(second, embed["time_1"]["bias"])
        table = state[of + "class_embedder.embedding_table.weight"]
        np.testing.assert_array_equal(table, embed["label"]["embedding"])
    module, again = dit.from_diffusers_dit(state, TINY_DIT)
    assert_same(again, params)
    assert (module.width, module.heads, module.dropout) == (8, 2, 0.25)
    _, half = dit.from_diffusers_dit(state, TINY_DIT, np.float16)
    assert half["patches"]["kernel"].dtype == np.float16
    other = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    with pytest.raises(ValueError, match="is not that of layer 0"):
        dit.from_diffusers_dit({**state, other: state[other] + 1}, TINY_DIT)
    first = {name: a for name, a in state.items() if ".1.norm1.emb." not in name}
    assert_same(dit.from_diffusers_dit(first, TINY_DIT)[1], params)


SD3 = {
    "sample_size": 12, "in_channels": 3, "out_channels": None, "num_layers": 3, "patch_size": 2,
    "attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 10,
    "caption_projection_dim": 8, "pooled_projection_dim": 7, "pos_embed_max_size": 9,
    "qk_norm": "rms_norm", "dual_attention_layers": (1,),
}  # fmt: skip


def test_the_fields_of_an_mmdit():
    assert mmdit.mmdit_config(SD3) == {
        "width": 8, "depth": 3, "heads": 2, "patch": 2, "out_channels": 3, "pooled_features": 7,
        "max_side": 9, "grid": 6, "positions": "stored", "second_attention": (1,), "qk_norm": "rms",
    }  # fmt: skip
    assert mmdit.mmdit_config({**SD3, "out_channels": 5})["out_channels"] == 5
    usual = mmdit.mmdit_config({})
    assert usual == {
        "width": 1152, "depth": 18, "heads": 18, "patch": 2, "out_channels": 16,
        "pooled_features": 2048, "max_side": 96, "grid": 64, "positions": "stored",
        "second_attention": (), "qk_norm": "none",
    }  # fmt: skip
    for field, value, words in (
        ("caption_projection_dim", 9, "=9 cannot be converted: only .* = 8 can"),
        ("qk_norm", "layer_norm", "qk_norm='layer_norm'"),
        ("sample_size", 13, "sample_size=13 cannot .* patch_size=2"),
    ):
        with pytest.raises(ValueError, match=words):
            mmdit.mmdit_config({**SD3, field: value})


def test_an_mmdits_tensors_have_their_names_and_come_back():
    shapes = mmdit.mmdit_shapes(SD3)
    params = normal(shapes)
    state = mmdit.to_diffusers_mmdit(params, SD3)
    one, last = params["layer_1"], params["layer_2"]
    block = "transformer_blocks.1."
    swapped = lambda x: np.concatenate(np.split(x, 2)[::-1])
    for name, array in {
        "pos_embed.pos_embed": params["positions"]["table"][None],
        "context_embedder.weight": params["context"]["kernel"].T,
        "time_text_embed.text_embedder.linear_2.bias": params["pooled"]["dense_1"]["bias"],
        "time_text_embed.timestep_embedder.linear_1.bias": params["embed"]["time_0"]["bias"],
        "norm_out.linear.bias": swapped(params["modulation_out"]["bias"]),
        block + "norm1.linear.weight": one["image_modulation"]["kernel"].T,
        block + "norm1_context.linear.bias": one["context_modulation"]["bias"],
        "transformer_blocks.2.norm1_context.linear.bias":
            swapped(last["context_modulation"]["bias"]),
        "transformer_blocks.2.norm1_context.linear.weight":
            swapped(last["context_modulation"]["kernel"].T),
        block + "attn.add_k_proj.weight": one["context_qkv"]["key"]["kernel"].T,
        block + "attn.norm_added_q.weight": one["context_qkv"]["query_norm"]["scale"],
        block + "attn.norm_k.weight": one["image_qkv"]["key_norm"]["scale"],
        block + "attn.to_add_out.bias": one["context_out"]["bias"],
        block + "attn2.to_v.weight": one["second_qkv"]["value"]["kernel"].T,
        block + "attn2.to_out.0.weight": one["second_out"]["kernel"].T,
        block + "ff.net.0.proj.weight": one["image_mlp"]["in"]["kernel"].T,
        block + "ff_context.net.2.weight": one["context_mlp"]["out"]["kernel"].T,
    }.items():  # fmt: skip
        np.testing.assert_array_equal(state[name], array)
    module, again = mmdit.from_diffusers_mmdit(state, SD3)
    assert_same(again, params)
    assert module.second_attention == (1,)
    assert shapes["context/kernel"] == (10, 8) and shapes["patches/kernel"] == (2, 2, 3, 8)
    no_pooled = mmdit.mmdit_shapes({**SD3, "pooled_projection_dim": 0})
    assert not any(path.startswith("pooled") for path in no_pooled)


CONTROL = {
    "block_out_channels": (32, 64), "layers_per_block": 1, "attention_head_dim": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 6,
    "conditioning_channels": 1, "conditioning_embedding_out_channels": (4, 6, 10),
}  # fmt: skip


def test_a_controlnets_tensors_have_their_names_and_come_back():
    shapes = controlnet.controlnet_shapes(CONTROL)
    params = normal(shapes)
    state = controlnet.to_diffusers_controlnet(params, CONTROL)
    hint = "controlnet_cond_embedding."
    assert state[hint + "conv_in.weight"].shape == (4, 1, 3, 3)
    assert state[hint + "blocks.1.weight"].shape == (6, 4, 3, 3)
    assert state[hint + "conv_out.weight"].shape == (32, 10, 3, 3)
    np.testing.assert_array_equal(
        state["controlnet_down_blocks.3.weight"], params["zero_3"]["kernel"].T[:, :, None, None]
    )
    np.testing.assert_array_equal(state["controlnet_mid_block.bias"], params["zero_mid"]["bias"])
    assert "controlnet_down_blocks.4.weight" not in state  # 1 + (1 + 1) + 1 skips
    module, again = controlnet.from_diffusers_controlnet(state, CONTROL)
    assert_same(again, params)
    assert module.hint_widths == (4, 6, 10)
    usual = controlnet.controlnet_config({})
    assert usual["hint_widths"] == (16, 32, 96, 256)
    with pytest.raises(ValueError, match="controlnet_conditioning_channel_order='bgr'"):
        controlnet.controlnet_config({"controlnet_conditioning_channel_order": "bgr"})


@pytest.mark.parametrize(
    ("kind", "leaf", "there", "here"),
    [
        ("dense", "kernel", (3, 2), (2, 3)),
        ("conv", "kernel", (5, 4, 3, 2), (3, 2, 4, 5)),
        ("swapped", "kernel", (6, 2), (2, 6)),
        ("pointwise", "kernel", (3, 2, 1, 1), (2, 3)),
        ("head", "weight", (1, 3, 1, 1), (3,)),
        ("positions", "table", (1, 4, 3), (4, 3)),
    ],
)
def test_kinds_turn_axes_and_back(kind, leaf, there, here):
    own = KINDS[kind][leaf]
    x = np.random.default_rng(0).normal(size=there)
    assert own.load(x).shape == here
    np.testing.assert_array_equal(own.save(own.load(x)), x)


def test_the_axes_of_kinds_by_hand():
    x = np.arange(120.0).reshape(5, 4, 3, 2)
    assert KINDS["conv"]["kernel"].load(x)[2, 1, 3, 4] == x[4, 3, 2, 1]
    bias = KINDS["swapped"]["bias"].load(np.arange(6))
    assert bias.tolist() == [3, 4, 5, 0, 1, 2]
    kernel = KINDS["swapped"]["kernel"].load(np.arange(8).reshape(4, 2))
    assert kernel.tolist() == [[4, 6, 0, 2], [5, 7, 1, 3]]
    flat = KINDS["pointwise"]["kernel"].load(np.arange(6).reshape(3, 2))
    assert flat.tolist() == [[0, 2, 4], [1, 3, 5]]


def test_differences_are_listed_in_order_and_the_rest_counted():
    wanted = {name: (2, 3) for name in "edcba"} | {"same": (4,), "odd": (5,), "more": (1, 2)}
    found = {name: (1,) for name in "zyxwv"} | {"same": [4], "odd": (6, 1), "more": (1, 3)}
    assert differences(wanted, found) == (
        "missing a; missing b; missing c; missing d; missing e; extra v; extra w; extra x; "
        "extra y; extra z; misshapen more: (1, 3) instead of (1, 2); "
        "misshapen odd: (6, 1) instead of (5,)"
    )
    assert differences(wanted, wanted) is None
    many = {f"{i:02}": () for i in range(43)}
    said = differences(many, {}).split("; ")
    assert said[39:] == ["missing 39", "and 3 more missing"]
    assert differences({}, {f"{i:02}": () for i in range(40)}).split("; ")[-1] == "extra 39"
