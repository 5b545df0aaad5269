"""Weights of text encoders in and out, without another library."""

import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from diffusion_jax.convert import openclip
from diffusion_jax.convert.names import by_path
from diffusion_jax.convert.text_encoders import (
    LAYOUTS,
    from_transformers,
    module_of,
    parameter_shapes,
    to_transformers,
)
from diffusion_jax.convert.text_folder import read_encoder

SIZES = {
    "vocab_size": 30,
    "hidden_size": 64,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "max_position_embeddings": 11,
}
CLIP = {
    "model_type": "clip_text_model",
    "architectures": ["CLIPTextModelWithProjection"],
    **SIZES,
    "projection_dim": 5,
    "hidden_act": "gelu",
}


def _state(config, dtype=np.float32):
    """Random tensors of a config's network, in transformers' layout."""
    module = module_of(config)
    kind = next(kind for kind, layout in LAYOUTS.items() if layout.module is type(module))
    rng = np.random.default_rng(0)
    shapes = parameter_shapes(module, LAYOUTS[kind])
    params = {path: rng.normal(size=shape).astype(dtype) for path, shape in shapes.items()}
    return to_transformers(params, kind, dtype)


def test_every_fault_is_listed():
    state = _state(CLIP)
    del state["text_projection.weight"]
    state["text_model.encoder.layers.0.mlp.fc1.bias"] = np.zeros(71, np.float32)
    state["text_model.encoder.layers.2.mlp.fc1.bias"] = np.zeros(72, np.float32)
    expected = (
        "The weights do not fit the config: missing text_projection.weight; "
        "extra text_model.encoder.layers.2.mlp.fc1.bias; "
        "misshapen text_model.encoder.layers.0.mlp.fc1.bias: (71,) instead of (72,)."
    )
    with pytest.raises(ValueError, match=re.escape(expected)):
        from_transformers(state, CLIP)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_low_precision_becomes_float32_and_goes_back(dtype):
    state = _state(CLIP, dtype)
    state["text_model.embeddings.position_ids"] = np.arange(11)[None]
    _, params = from_transformers(state, CLIP)
    assert {array.dtype for array in by_path(params).values()} == {np.dtype(np.float32)}
    back = to_transformers(params, "clip_text", dtype)
    del state["text_model.embeddings.position_ids"]
    assert back.keys() == state.keys()
    for name, array in back.items():
        assert array.dtype == dtype and array.tobytes() == state[name].tobytes()
    _, kept = from_transformers(state, CLIP, dtype)
    assert {array.dtype for array in by_path(kept).values()} == {np.dtype(dtype)}


def test_both_ways_to_name_a_tower():
    state = _state(CLIP)
    bare = {name.removeprefix("text_model."): array for name, array in state.items()}
    for a, b in zip(
        *(jax.tree.leaves(from_transformers(s, CLIP)[1]) for s in (state, bare)), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_t5_may_name_its_table_twice_and_bring_a_decoder():
    config = {"model_type": "t5", "vocab_size": 9, "d_model": 8, "d_ff": 6, "num_layers": 1}
    state = _state({**config, "num_heads": 2, "d_kv": 3})
    state["encoder.embed_tokens.weight"] = state["shared.weight"]
    state["decoder.final_layer_norm.weight"] = np.ones(8, np.float32)
    _, params = from_transformers(state, {**config, "num_heads": 2, "d_kv": 3})
    np.testing.assert_array_equal(params["token"]["embedding"], state["shared.weight"])
    del state["shared.weight"]
    _, params = from_transformers(state, {**config, "num_heads": 2, "d_kv": 3})
    assert params["token"]["embedding"].shape == (9, 8)


def test_bert_with_and_without_its_pooler_and_old_names():
    config = {"model_type": "bert", **SIZES}
    state = _state(config)
    assert from_transformers(state, config)[0].pooler
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma"): array
        for name, array in state.items()
        if not name.startswith("pooler.")
    }
    module, params = from_transformers(old, config)
    assert not module.pooler and "pooler" not in params


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2' cannot be converted: only"),
        ({"hidden_act": "mish"}, "hidden_act='mish' cannot be converted: only"),
        ({"model_type": "t5", "feed_forward_proj": "gated-relu"}, "feed_forward_proj='gated-relu'"),
        ({"model_type": "bert", "position_embedding_type": "relative_key"}, "relative_key"),
        ({"model_type": "clip_vision_model", "num_channels": 4}, "num_channels=4"),
    ],
)
def test_what_has_no_counterpart_is_named(entries, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        module_of({**CLIP, **entries})


def test_the_end_of_text_that_a_config_means():
    assert module_of({**CLIP, "eos_token_id": 2}).eos is None
    assert module_of({**CLIP, "eos_token_id": 7}).eos == 7
    assert module_of(CLIP).eos == 49407


def test_openclip_goes_there_and_back():
    state = _state(CLIP)
    theirs = openclip.from_transformers(state)
    assert theirs["transformer.resblocks.1.attn.in_proj_weight"].shape == (192, 64)
    assert theirs["text_projection"].shape == (64, 5)
    assert not any("q_proj" in name or "text_model" in name for name in theirs)
    again = openclip.to_transformers({**theirs, "logit_scale": np.float32(1)})
    assert again.keys() == state.keys()
    for name, array in again.items():
        np.testing.assert_array_equal(array, state[name])
    config = openclip.config_of(theirs)
    assert module_of(config) == module_of({**CLIP, "eos_token_id": 49407})
    del theirs["text_projection"]
    assert module_of(openclip.config_of(theirs)).projection == 0


def test_openclip_names_what_it_does_not_know():
    theirs = openclip.from_transformers(_state(CLIP))
    with pytest.raises(ValueError, match=r"no tensors of an OpenCLIP.*\['visual\.proj'\]"):
        openclip.to_transformers({**theirs, "visual.proj": np.ones(1)})
    state = _state(CLIP)
    del state["text_model.encoder.layers.1.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match=r"resblocks\.1\.attn\.in_proj_bias"):
        openclip.from_transformers(state)
    with pytest.raises(ValueError, match="lacks the tensor 'positional_embedding'"):
        openclip.config_of({"token_embedding.weight": np.ones((3, 64))})


def test_under():
    single = {"conditioner.embedders.1.model.ln_final.bias": np.ones(2), "other": np.ones(1)}
    assert list(openclip.under(single, "conditioner.embedders.1.model.")) == ["ln_final.bias"]


def test_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        read_encoder(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(CLIP))
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        read_encoder(tmp_path)
    state = _state(CLIP, np.float16)
    save_file(state, tmp_path / "model.safetensors")
    module, params = read_encoder(tmp_path)
    assert module == module_of(CLIP)
    expected = state["text_projection.weight"].T.astype(np.float32)
    np.testing.assert_array_equal(params["projection"]["kernel"], expected)
