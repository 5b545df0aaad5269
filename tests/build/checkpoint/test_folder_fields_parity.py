"""Config files of a folder that diffusers wrote: what they change, and what damage says."""

import json
import os
import random
import shutil

import numpy as np
import pytest

from diffusion_jax.build.checkpoint.text_to_image import text_to_image
from diffusion_jax.convert.stable_diffusion import read_checkpoint

pytestmark = pytest.mark.parity

if os.environ.get("REQUIRE_PARITY") == "1":
    import diffusers
    import stable_diffusion
else:
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    return stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("checkpoint"))[1]


@pytest.fixture
def folder(given, tmp_path):
    return shutil.copytree(given, tmp_path / "copy")


def rewritten(path, change):
    config = json.loads(path.read_text())
    path.write_text(json.dumps(change(config)))


def test_the_schedulers_class_is_that_of_the_index(folder):
    rewritten(
        folder / "model_index.json",
        lambda index: index | {"scheduler": ["diffusers", "EulerDiscreteScheduler"]},
    )
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    assert type(theirs.scheduler).__name__ == "EulerDiscreteScheduler"
    assert read_checkpoint(folder).scheduler["_class_name"] == "EulerDiscreteScheduler"


def test_an_old_autoencoder_without_its_scale(folder):
    rewritten(
        folder / "vae" / "config.json",
        lambda config: {k: v for k, v in config.items() if k != "scaling_factor"},
    )
    vae = diffusers.AutoencoderKL.from_pretrained(folder / "vae")
    made = text_to_image(read_checkpoint(folder))
    raw = np.ones((1, 2, 2, 4), np.float32)
    scaled = np.asarray(made.model.codec.scale(raw))
    np.testing.assert_allclose(scaled, raw * vae.config.scaling_factor)
    assert vae.config.scaling_factor == 0.18215


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("unet/config.json", {"act_fn": "mish"}, "unet/config.json: act_fn='mish' cannot be"),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, "_class_name='UNet3D"),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, "vae/config.json: _class_name="),
        ("vae/config.json", {"new_field": 2}, "vae/config.json: new_field=2 is no field"),
        ("text_encoder/config.json", {"hidden_act": "swish2"}, "hidden_act='swish2' cannot"),
        ("text_encoder/config.json", {"model_type": "t5"}, "model_type='t5' cannot be converted"),
        ("model_index.json", {"_class_name": ["a", "B"]}, "_class_name = .* cannot be read"),
        ("model_index.json", {"vae": ["diffusers", "AsymmetricAutoencoderKL"]}, "vae="),
    ],
)
def test_a_field_that_cannot_be_followed(folder, file, change, words):
    rewritten(folder / file, lambda config: config | change)
    with pytest.raises(ValueError, match=words):
        read_checkpoint(folder)


def test_damaged_configs_are_sentences(given, folder):
    rng = random.Random(0)
    odd = (None, True, -1, 0, 2, 10**18, 0.5, float("nan"), "x", [], [1, 2], {}, [None], {"x": 1})
    for _ in range(20):
        part = rng.choice(("unet", "vae", "text_encoder"))
        config = json.loads((given / part / "config.json").read_text())
        config[rng.choice(list(config))] = rng.choice(odd)
        (folder / part / "config.json").write_text(json.dumps(config))
        try:
            read_checkpoint(folder)
        except ValueError as error:
            assert len(str(error)) < 20_000
        shutil.copy(given / part / "config.json", folder / part / "config.json")
