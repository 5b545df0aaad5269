"""The sampling command on a tiny checkpoint: files, settings, seeds, devices, mistakes."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from PIL import Image

from configs import sample as settings
from diffusion_jax import jobs
from diffusion_jax.jobs import planning
from diffusion_jax.train import sharding

pytestmark = pytest.mark.parity  # diffusers writes the checkpoint
ROOT = pathlib.Path(__file__).parents[2]

if os.environ.get("REQUIRE_PARITY") == "1":
    import stable_diffusion
else:
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    import stable_diffusion


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return stable_diffusion.pipeline("sd1", tmp_path_factory.mktemp("tiny"))[1]


def test_the_sampler_for_a_mesh_that_is_not_here(folder):
    """Its shapes are those of the job, split over the batch, and it traces to whole images."""
    config = config_of(folder, batch_size=4, negative_prompt="a dog")
    made = planning.job(
        config, "sample", AbstractMesh((4, 1, 1, 1), sharding.AXES, (AxisType.Auto,) * 4)
    )
    weights, _, inputs = made.arguments
    assert inputs.noise.sharding.shard_shape(inputs.noise.shape) == (1, 4, 4, 4)
    assert inputs.rows["ids_0"].shape == inputs.negative["ids_0"].shape == (4, 1, 77)
    assert weights.params["net"]["conv_in"]["kernel"].shape == (3, 3, 4, 32)
    images = made.jitted.eval_shape(*made.arguments)
    assert images.shape == (4, 32, 32, 3) and images.dtype == np.float32
    with pytest.raises(ValueError, match="not to be tuned; take --mode=sample"):
        planning.job(
            config, "train", AbstractMesh((4, 1, 1, 1), sharding.AXES, (AxisType.Auto,) * 4)
        )


def config_of(folder, **changes):
    config = settings.get_config()
    config.checkpoint = str(folder)
    config.prompt = "a (red:1.3) cat"
    config.sampler.steps = 3
    config.image_size = (32, 32)
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def drawn(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return jobs.sample(config_of(folder, n=2, seed=7), out).images, out / "samples"


def test_each_image_is_a_file_that_holds_its_settings(drawn):
    images, samples = drawn
    names = sorted(path.name for path in samples.iterdir())
    assert names == [
        "000007-a-red-1-3-cat.png", "000008-a-red-1-3-cat.png", "all.npz", "all.png",
    ]  # fmt: skip
    for image, name in zip(images, names, strict=False):
        with Image.open(samples / name) as file:
            assert np.array_equal(np.asarray(file), image)
            told = json.loads(file.text["parameters"])
    assert told["prompt"] == "a (red:1.3) cat" and told["seed"] == 8
    assert told["sampler"]["solver"] == "ddim()" and told["sampler"]["steps"] == 3


def test_an_image_is_its_seed_whatever_is_drawn_beside_it(drawn, folder, tmp_path):
    images, _ = drawn
    again = jobs.sample(config_of(folder, n=2, seed=7), tmp_path).images
    assert np.array_equal(again, images)
    alone = jobs.sample(config_of(folder, seed=8), tmp_path).images
    assert np.abs(alone[0].astype(int) - images[1]).max() <= 1
    assert np.abs(images[0].astype(int) - images[1]).mean() > 3


def test_prompts_and_what_is_not_wanted_matter(drawn, folder, tmp_path):
    images, samples = drawn
    picture = samples / "000008-a-red-1-3-cat.png"
    changes = {
        "a weight": {"prompt": "a (red:0.3) cat"},
        "a negative prompt": {"negative_prompt": "blue dog"},
        "a second chunk": {"prompt": "a (red:1.3) cat " + "the red house " * 40},
        "a picture": {"edits": (f"image_to_image({str(picture)!r}, 0.4)",)},
    }
    for what, change in changes.items():
        other = jobs.sample(config_of(folder, seed=7, **change), tmp_path).images
        assert np.abs(other[0].astype(int) - images[0]).max() > 2, what


ALONE = pytest.mark.slow  # a process each, which compiles for four devices


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param("data=4", marks=ALONE),
        "data=2,tensor=2",
        pytest.param("data=1,fsdp=4", marks=ALONE),
    ],
)
def test_more_devices_draw_the_same(drawn, folder, tmp_path, mesh):
    images, _ = drawn
    sizes = dict(part.split("=") for part in mesh.split(","))
    flags = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    command = [sys.executable, "main.py", "--mode=sample", "--config=configs/sample.py"]
    command += [f"--config.checkpoint={folder}", "--config.prompt=a (red:1.3) cat"]
    command += ["--config.sampler.steps=3", "--config.image_size=(32, 32)", "--config.n=4"]
    command += ["--config.seed=7", f"--workdir={tmp_path}", *flags]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    for seed, image in zip((7, 8), images, strict=True):
        with Image.open(tmp_path / "samples" / f"{seed:06d}-a-red-1-3-cat.png") as file:
            assert np.abs(np.asarray(file).astype(int) - image).max() <= 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"checkpoint": ""}, "it holds no run: config.json is missing"),
        ({"checkpoint": "nowhere"}, "no checkpoint at nowhere"),
        ({"prompt": ""}, "config.prompt is empty"),
        ({"n": -1}, "config.n = -1 must be at least 1"),
        ({"image_size": (33, 32)}, r"multiples of 8, such as \(32, 32\) or \(40, 32\)"),
        ({"edits": ("image_to_image('nothing.png')",)}, "cannot be read as a picture"),
        ({"edits": ("paint()",)}, "unknown name 'paint'"),
        ({"labels": (3,)}, "conditioned on prompts, not on labels"),
        ({"seed": -3}, "config.seed = -3 must be at least 0"),
        ({"dtype": "float12"}, "known are float32, bfloat16, float16"),
        ({"sampler.end": "soon"}, "known are clean, first"),
        ({"sampler.solver": "dimm()"}, "unknown name 'dimm'"),
        ({"prediction_type": "noise"}, "prediction_type = 'noise' is not known here"),
    ],
)
def test_a_mistake_is_a_sentence(folder, tmp_path, changes, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        jobs.sample(config_of(folder, **changes), tmp_path)


def test_it_can_only_sample(folder, tmp_path):
    with pytest.raises(ValueError, match="--mode=sample alone"):
        jobs.train(config_of(folder), tmp_path)
