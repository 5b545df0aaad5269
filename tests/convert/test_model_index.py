"""What a written folder says that it holds, and which of a tokenizer's files are copied."""

from types import SimpleNamespace

from diffusion_jax.convert import checkpoint_folder
from diffusion_jax.convert.checkpoint_folder import model_index


def checkpoint(texts, **fields):
    configs = {f"text_encoder_{i}": text for i, text in enumerate(texts)}
    given = {"scheduler": {}, "index": {}, **fields}
    return SimpleNamespace(configs=configs, text_encoders=(None,) * len(texts), **given)


def test_one_text_encoder_is_stable_diffusion():
    assert model_index(checkpoint([{}])) == {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.32.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }


def test_two_are_xl_and_what_was_read_wins():
    texts = [
        {"architectures": ["CLIPTextModel"]},
        {"architectures": ["CLIPTextModelWithProjection"]},
    ]
    index = {"_class_name": "Own", "feature_extractor": ["transformers", "X"], "force": True}
    told = model_index(checkpoint(texts, scheduler={"_class_name": "Euler"}, index=index))
    assert told == {
        "_class_name": "Own",
        "_diffusers_version": "0.32.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "scheduler": ["diffusers", "Euler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "feature_extractor": [None, None],  # which is never read
        "force": True,
    }
    assert model_index(checkpoint(texts))["_class_name"] == "StableDiffusionXLPipeline"


def test_a_tokenizers_files_are_copied_and_nothing_else(tmp_path):
    source = tmp_path / "source"
    (source / "sub.json").mkdir(parents=True)
    for name in ("vocab.json", "merges.txt", "spiece.model", "weights.bin"):
        (source / name).write_text(name)
    checkpoint_folder._copy(source, tmp_path / "copy")
    copied = {path.name: path.read_text() for path in (tmp_path / "copy").iterdir()}
    assert copied == {name: name for name in ("vocab.json", "merges.txt", "spiece.model")}
