"""Damaged and hostile files at every door: one sentence, in bounded time and memory."""

import json
import random
import struct
import tracemalloc

import numpy as np
import pytest

from diffusion_jax.convert import sd_unet, text_encoders
from diffusion_jax.convert.config_fields import checked
from diffusion_jax.convert.config_tables import TABLES
from diffusion_jax.convert.families import FAMILIES
from diffusion_jax.convert.folders import read_json, read_weights
from diffusion_jax.convert.lora import read_lora
from diffusion_jax.convert.names import nested
from diffusion_jax.convert.parts import check_parts
from diffusion_jax.convert.scheduler_fields import FIELDS as SCHEDULER_FIELDS
from diffusion_jax.convert.scheduler_tables import process_of
from diffusion_jax.convert.schedulers import sampling_of, target_of
from diffusion_jax.convert.stable_diffusion import Checkpoint, Part
from diffusion_jax.convert.tensors import read_metadata, read_safetensors, write_safetensors
from diffusion_jax.convert.textual_inversion import bundled_words, read_word
from diffusion_jax.convert.torch_pickle import read_tree
from diffusion_jax.data.prompts import Window, tokens, unread
from diffusion_jax.data.tokenizers import load_tokenizer
from diffusion_jax.data.words import spelled

SENTENCES = (ValueError, FileNotFoundError)
ODD = (
    None, True, False, 0, 1, -1, 3, 10**18, -(10**18), 0.5, float("nan"), float("inf"), 1e308, "",
    "x", "0" * 200, [], [1], [None], ["x"], [[1]], [1] * 300, {}, {"x": 1}, {"x": {"x": {}}},
    [10**9, 10**9],
)  # fmt: skip


def calmly(call, *args):
    """The result of a call, or None where it ends with a sentence; nothing else may come out."""
    try:
        return call(*args)
    except SENTENCES as error:
        said = str(error)
        assert said and len(said) < 20_000
        return None


def mutated(data, rng):
    """Bytes, changed in one way of several."""
    data = bytearray(data)
    kind, at = rng.randrange(6), rng.randrange(max(1, len(data)))
    if kind == 0:
        data[at : at + 1] = bytes([rng.randrange(256)])
    elif kind == 1:
        del data[at:]
    elif kind == 2:
        data[at:at] = rng.randbytes(rng.randrange(1, 9))
    elif kind == 3:
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 4:
        data[:8] = struct.pack("<Q", rng.choice((0, 1, len(data), 2**31, 10**18, 2**64 - 1)))
    else:
        del data[at : at + rng.randrange(1, 20)]
    return bytes(data)


def trees(value, rng):
    """A JSON value with one of its values, at any depth, replaced by an odd one."""
    if isinstance(value, dict) and value and rng.random() < 0.8:
        name = rng.choice(list(value))
        changed = trees(value[name], rng)
        kept = {k: v for k, v in value.items() if k != name or rng.random() < 0.9}
        return {**kept, name if rng.random() < 0.9 else f"{name}x": changed}
    if isinstance(value, list) and value and rng.random() < 0.5:
        i = rng.randrange(len(value))
        return [*value[:i], trees(value[i], rng), *value[i + 1 :]]
    return rng.choice(ODD)


UNET = {
    "block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
    "cross_attention_dim": 8, "attention_head_dim": 2,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
TEXT = {
    "model_type": "clip_text_model", "hidden_size": 8, "intermediate_size": 9, "vocab_size": 30,
    "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint():
    def zeros(shapes):
        return nested({path: np.zeros(shape, np.float32) for path, shape in shapes.items()})

    unet = sd_unet.TextUNet(**sd_unet.text_unet_config(UNET))
    text = text_encoders.module_of(TEXT)
    shapes = text_encoders.parameter_shapes(text, text_encoders.LAYOUTS["clip_text"])
    parts = Part(unet, zeros(sd_unet.unet_shapes(UNET))), Part(text, zeros(shapes))
    return Checkpoint(parts[0], Part(None, {}), parts[1:], {}, None, {"unet": UNET}, {})


def module_of(checkpoint):
    state = sd_unet.to_sd_unet(checkpoint.unet.params, UNET)
    name = next(n for n in state if "attn1.to_q.weight" in n)
    return name.removesuffix(".weight"), state[name].shape


def test_safetensors_adapters_and_words(checkpoint, tmp_path):
    rng, path = random.Random(0), tmp_path / "a.safetensors"
    module, (out, into) = module_of(checkpoint)
    stem, ones = "lora_unet_" + module.replace(".", "_"), lambda *s: np.ones(s, np.float32)
    kinds = [
        {f"{stem}.lora_down.weight": ones(2, into), f"{stem}.lora_up.weight": ones(out, 2),
         f"{stem}.alpha": ones(), f"{stem}.dora_scale": ones(out, 1)},
        {f"{stem}.{r}": ones(*s) for r, s in (("hada_w1_a", (out, 2)), ("hada_w1_b", (2, into)),
                                              ("hada_w2_a", (out, 2)), ("hada_w2_b", (2, into)))},
        {f"{stem}.lokr_w1": ones(2, 2), f"{stem}.lokr_w2": ones(out // 2, into // 2)},
        {f"{stem}.weight": ones(out), f"{stem}.on_input": np.zeros(1, bool)},
        {"bundle_emb.a b.clip_l": ones(2, 8), "emb_params": ones(1, 8)},
        {"clip_l": ones(2, 8), "clip_g": ones(2, 9)},
    ]  # fmt: skip
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 2, "unet.r": 2})}
    tracemalloc.start()
    for round_ in range(120):
        write_safetensors(path, kinds[round_ % len(kinds)], told)
        data = path.read_bytes()
        if round_ % 3:
            path.write_bytes(mutated(data, rng))
        else:  # the header, well-formed and odd
            n = int.from_bytes(data[:8], "little")
            text = json.dumps(trees(json.loads(data[8 : 8 + n]), rng)).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + n :])
        for call in (read_safetensors, read_metadata, read_word, bundled_words):
            calmly(call, path)
        calmly(read_lora, path, checkpoint)
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()


def test_changes_of_odd_shapes_are_sentences_or_fit(checkpoint, tmp_path):
    rng, path = random.Random(1), tmp_path / "a.safetensors"
    module, (out, into) = module_of(checkpoint)
    sizes = (0, 1, 2, out, into, out * 2, 3)
    roles = ("lora_down.weight", "lora_up.weight", "lora_mid.weight", "alpha", "dora_scale",
             "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "lokr_w1", "lokr_w2",
             "lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b", "lokr_t2", "weight", "on_input",
             "ia3_l", "diff", "diff_b", "w_norm", "b_norm", "lora_magnitude_vector")  # fmt: skip
    for _ in range(160):
        state = {}
        for role in rng.sample(roles, rng.randrange(1, 5)):
            shape = [rng.choice(sizes) for _ in range(rng.randrange(5))]
            dtype = rng.choice((np.float32, np.float16, np.int64, bool))
            state[f"lora_unet_{module.replace('.', '_')}.{role}"] = np.ones(shape, dtype)
        write_safetensors(path, state)
        for lora in (calmly(read_lora, path, checkpoint) or {}).values():
            for change in lora.changes.values():
                assert change(np.ones((into, out), np.float32)).shape == (into, out)


def test_json_and_indexes(tmp_path):
    rng, index = random.Random(2), tmp_path / "model.safetensors.index.json"
    write_safetensors(tmp_path / "model-1-of-1.safetensors", {"a": np.ones(3, np.float32)})
    good = {"metadata": {"total_size": 12}, "weight_map": {"a": "model-1-of-1.safetensors"}}
    for round_ in range(150):
        text = json.dumps(trees(good, rng)).encode()
        index.write_bytes(mutated(text, rng) if round_ % 2 else text)
        calmly(read_json, tmp_path, index.name)
        calmly(read_weights, tmp_path)
    index.write_text("[" * 100_000)
    assert calmly(read_json, tmp_path, index.name) is None


def test_every_field_of_every_config_with_every_odd_value():
    for file, fields in TABLES.items():
        for name in fields:
            for value in ODD:
                calmly(checked, {name: value}, fields, file)
    made = FAMILIES["sdxl"]
    good = {"unet": made.unet, "vae": made.vae, "text_encoder_0": made.text_encoders[0],
            "text_encoder_1": made.text_encoders[1]}  # fmt: skip
    for part, config in good.items():
        for name in config:
            for value in ODD:
                calmly(check_parts, {**good, part: {**config, name: value}}, True)


def test_tokenizers(tmp_path):
    rng = random.Random(3)
    letters = ["a", "b", "c</w>", "ab", "abc</w>", "<|startoftext|>", "<|endoftext|>"]
    files = {
        "vocab.json": json.dumps({token: i for i, token in enumerate(letters)}),
        "merges.txt": "#version: 0.2\na b\nab c</w>\n",
        "tokenizer_config.json": json.dumps(
            {"model_max_length": 77, "pad_token": "<|endoftext|>", "bos_token": letters[5],
             "added_tokens_decoder": {"6": {"content": letters[6], "special": True}}}
        ),
        "special_tokens_map.json": json.dumps({"eos_token": {"content": letters[6]}}),
    }  # fmt: skip
    for round_ in range(250):
        for name, text in files.items():
            (tmp_path / name).write_text(text)
        name = rng.choice(list(files))
        if name.endswith("json") and round_ % 2:
            (tmp_path / name).write_text(json.dumps(trees(json.loads(files[name]), rng)))
        else:
            (tmp_path / name).write_bytes(mutated(files[name].encode(), rng))
        tokenizer = calmly(load_tokenizer, tmp_path)
        if tokenizer is not None:
            calmly(tokenizer.raw, ["abc a"])


def test_prompts():
    rng = random.Random(4)
    syntax = ["(", ")", "[", "]", ":", "1.3", "\\", "<lora:", ">", "BREAK", "AND", "a", " ", "\n",
              "\0", "😀", "nan", "1e9", "-", ".", "|", "{", "}", "__", "\ud800", "9" * 40, "Easy",
              "<two>"]  # fmt: skip
    words = (("Easy", 2), ("EasyTwo", 1), ("<two>", 2), ("a (b)", 1))
    ids_of = lambda text: [ord(c) % 100 for c in text if not c.isspace()]
    for _ in range(1500):
        prompt = "".join(rng.choice(syntax) for _ in range(rng.randrange(40)))
        made = calmly(tokens, [spelled(prompt, words)], ids_of, Window(7, 0, 1, 1))
        assert made is None or np.isfinite(made.weights).all()
        unread(prompt)
    for many in ("(", ")", "[a:", "<lora:", "BREAK ", "9", ":", "\\", "{a|", "__a", "((a:1.1)"):
        calmly(tokens, [many * 5000], ids_of, Window(77, 0, 1, 1), 1)
        calmly(tokens, [many * 5000], ids_of, Window(77, 0, 1, 1))
        unread(many * 5000)


@pytest.mark.parity
def test_pickles(tmp_path):
    torch = pytest.importorskip("torch")
    rng, path = random.Random(5), tmp_path / "a.pt"
    tree = {"string_to_param": {"*": torch.nn.Parameter(torch.ones(2, 8))}, "name": "a", "step": 3}
    for legacy in (False, True):
        torch.save(tree, path, _use_new_zipfile_serialization=not legacy)
        assert read_word(path).name == "a" and read_word(path).vectors[0].shape == (2, 8)
        data = path.read_bytes()
        tracemalloc.start()
        for _ in range(300):
            path.write_bytes(mutated(data, rng))
            calmly(read_tree, path)
            calmly(read_word, path)
        assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
        tracemalloc.stop()


@pytest.mark.parametrize("name", SCHEDULER_FIELDS)
def test_every_field_of_a_scheduler_with_every_odd_value(name):
    rng = random.Random(name)
    good = {**FAMILIES["sd1"].scheduler, "_class_name": name}
    for field in ("_class_name", "_use_default_values", *SCHEDULER_FIELDS[name]):
        for value in rng.sample(ODD, 9):
            for read in (process_of, target_of, sampling_of):
                calmly(read, {**good, field: value})
