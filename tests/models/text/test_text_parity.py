"""Our text encoders and CLIP's image tower against transformers' with the same weights."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import text_references as references

from diffusion_jax.convert import text_configs
from diffusion_jax.convert.names import by_path
from diffusion_jax.convert.text_encoders import (
    LAYOUTS,
    from_transformers,
    module_of,
    parameter_shapes,
    to_transformers,
)
from diffusion_jax.models.text.clip import READS
from diffusion_jax.models.text.t5 import relative_buckets
from diffusion_jax.models.vision.clip_image import MEAN, STD, normalised

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import torch
    import transformers
else:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

CLIP_TEXT = ("CLIP-L", "OpenCLIP H", "OpenCLIP bigG", "CLIP with added tokens")


def _both(case):
    theirs, state = references.build(transformers, torch, case)
    module, params = from_transformers(state, theirs.config.to_dict())
    return theirs, state, module, params


def _apply(module, params, *inputs):
    fast = {"xla_backend_optimization_level": 0}
    call = jax.jit(lambda params, *inputs: module.apply({"params": params}, *inputs))
    return jax.tree.map(
        np.asarray, call.lower(params, *inputs).compile(compiler_options=fast)(params, *inputs)
    )


def _close(name, ours, theirs, limit=1e-4):
    theirs = theirs.numpy()
    assert ours.shape == theirs.shape and theirs.std() > 0.1
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    print(f"{name}: relative error {error:.1e}")
    assert error < limit


@pytest.mark.parametrize("case", CLIP_TEXT)
def test_clip_text(case):
    theirs, _, module, params = _both(case)
    ids, _ = references.tokens(np.random.default_rng(0))
    if case == "CLIP with added tokens":
        ids[:, 1] = 59  # an id above that of the end
    ours = _apply(module, params, ids)
    with torch.no_grad():
        out = theirs(torch.tensor(ids).long(), output_hidden_states=True)
        norm = getattr(theirs, "text_model", theirs).final_layer_norm
        second = norm(out.hidden_states[-2])
    assert len(ours.hidden) == len(out.hidden_states) == 4
    for i in range(3):
        _close(f"{case} hidden {i}", ours.hidden[i], out.hidden_states[i])
    _close(f"{case} last", READS["last"](ours), out.last_hidden_state)
    _close(f"{case} last", ours.last, out.last_hidden_state)
    _close(f"{case} penultimate", READS["penultimate"](ours), out.hidden_states[-2])
    _close(f"{case} one further", READS["penultimate"](ours, 1), out.hidden_states[-3])
    _close(f"{case} penultimate, normed", READS["penultimate_normed"](ours), second)
    _close(f"{case} skipping one", READS["last"](ours, 1), second)
    pooled = out.text_embeds if hasattr(out, "text_embeds") else out.pooler_output
    _close(f"{case} pooled", ours.pooled, pooled)


@pytest.mark.parametrize("case", ["T5 v1.1", "T5 v1.0"])
def test_t5(case):
    theirs, _, module, params = _both(case)
    ids, mask = references.tokens(np.random.default_rng(0), length=30)
    with torch.no_grad():
        text, seen = torch.tensor(ids).long(), torch.tensor(mask)
        masked = theirs(text, seen).last_hidden_state
        whole = theirs(text).last_hidden_state
    kept = mask.astype(bool)
    _close(f"{case} masked", _apply(module, params, ids, mask)[kept], masked[torch.tensor(kept)])
    _close(f"{case} whole", _apply(module, params, ids), whole)


def test_bert():
    theirs, _, module, params = _both("BERT")
    ids, mask = references.tokens(np.random.default_rng(0))
    with torch.no_grad():
        out = theirs(torch.tensor(ids).long(), torch.tensor(mask))
    ours = _apply(module, params, ids, mask)
    kept = mask.astype(bool)
    _close("BERT", ours.last[kept], out.last_hidden_state[torch.tensor(kept)])
    _close("BERT pooled", ours.pooled, out.pooler_output)


def test_clip_image():
    theirs, _, module, params = _both("CLIP image")
    pixels = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    with torch.no_grad():
        out = theirs(torch.tensor(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    ours = _apply(module, params, pixels)
    _close("CLIP image last", ours.last, out.last_hidden_state)
    _close("CLIP image penultimate", ours.hidden[-2], out.hidden_states[-2])
    _close("CLIP image pooled", ours.pooled, out.image_embeds)


def test_normalised_is_their_processor():
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3)).astype(np.uint8)
    standard = {"image_mean": MEAN, "image_std": STD}
    processor = transformers.CLIPImageProcessor()
    assert (tuple(processor.image_mean), tuple(processor.image_std)) == (MEAN, STD)
    expected = processor(
        list(images), do_resize=False, do_center_crop=False, return_tensors="pt", **standard
    )
    ours = normalised(jnp.asarray(images) / 127.5 - 1, 16)
    expected = expected["pixel_values"].permute(0, 2, 3, 1)
    _close("normalised", np.asarray(ours), expected, 1e-5)


def test_buckets_of_relative_positions():
    attention = transformers.models.t5.modeling_t5.T5Attention
    n = 1100
    offset = torch.arange(n)[None] - torch.arange(n)[:, None]
    for buckets, distance in ((32, 128), (8, 16), (16, 128), (32, 256)):
        theirs = attention._relative_position_bucket(offset, True, buckets, distance)
        np.testing.assert_array_equal(relative_buckets(n, buckets, distance), theirs.numpy())


@pytest.mark.parametrize("case", references.CASES)
def test_weights_go_there_and_back(case, tmp_path):
    """Files as transformers writes them; transformers reads ours, and nothing changes."""
    from safetensors.numpy import load_file, save_file

    theirs, _, module, params = _both(case)
    kind = next(kind for kind, layout in LAYOUTS.items() if layout.module is type(module))
    saved = to_transformers(params, kind)
    theirs.save_pretrained(tmp_path)
    _, again = from_transformers(load_file(tmp_path / "model.safetensors"), theirs.config.to_dict())
    flat = by_path(params)
    for path, array in by_path(again).items():
        np.testing.assert_array_equal(array, flat[path])
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    loaded, report = type(theirs).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in theirs.state_dict().items():
        np.testing.assert_array_equal(loaded.state_dict()[name].numpy(), tensor.numpy())


FULL = {
    "CLIP_L": ("CLIPTextConfig", "CLIPTextModel", 123_060_480),
    "OPEN_CLIP_H": ("CLIPTextConfig", "CLIPTextModel", None),
    "OPEN_CLIP_BIGG": ("CLIPTextConfig", "CLIPTextModelWithProjection", 694_659_840),
    "T5_XXL": ("T5Config", "T5EncoderModel", 4_762_310_656),
}


@pytest.mark.parametrize("name", FULL)
def test_full_size(name):
    """Every tensor's name and shape, by PyTorch's device without memory."""
    config_class, model_class, count = FULL[name]
    config = getattr(text_configs, name)
    entries = {k: v for k, v in config.items() if k not in ("model_type", "architectures")}
    with torch.device("meta"):
        theirs = getattr(transformers, model_class)(getattr(transformers, config_class)(**entries))
    module = module_of(config)
    layout = LAYOUTS["t5" if name == "T5_XXL" else "clip_text"]
    shapes = parameter_shapes(module, layout)
    ours = sum(int(np.prod(shape)) for shape in shapes.values())
    assert ours == sum(p.numel() for p in theirs.parameters())
    assert count in (None, ours)
    print(f"{name}: {ours:,} parameters")
    state = {
        n: np.broadcast_to(np.float32(0), tuple(t.shape)) for n, t in theirs.state_dict().items()
    }
    _, params = from_transformers(state, config)
    assert {path: x.shape for path, x in by_path(params).items()} == shapes
