"""One road: every source that draws, with every edit, by the same code."""

import os

import jax
import numpy as np
import pytest
import sources
from PIL import Image

from configs import sample as settings_file
from diffusion_jax import jobs
from diffusion_jax.build.generator import open_source
from diffusion_jax.jobs.drawing import draw_requests, inputs_of, open_sampler
from diffusion_jax.jobs.requests import requests_of, settings_of
from diffusion_jax.pictures import read_picture

pytestmark = pytest.mark.whole

RUNS = ("run", "release", "student")
CHECKPOINTS = ("sd1", "sd2", "sdxl", "single file")
EDITS = ("image_to_image", "inpaint", "control", "tiles", "variation")


def _needs_diffusers(name):
    return pytest.param(name, marks=pytest.mark.parity) if name in CHECKPOINTS else name


@pytest.fixture(scope="module", params=[_needs_diffusers(name) for name in (*RUNS, *CHECKPOINTS)])
def source(request, tmp_path_factory):
    """(name, path or (path, tokenizers), generator, settings) of a source."""
    name, folder = request.param, tmp_path_factory.mktemp("source")
    settings = settings_file.get_config()
    monkeypatch = pytest.MonkeyPatch()
    if name in RUNS:
        path = sources.run(folder / "run")
        path = sources.released(folder / "release", path) if name == "release" else path
        path = sources.student(folder / "student", path) if name == "student" else path
        settings.labels, side = (3, 7), 28
    else:
        if os.environ.get("REQUIRE_PARITY") != "1":
            pytest.importorskip("diffusers")
        import stable_diffusion

        path = stable_diffusion.pipeline("sd1" if name == "single file" else name, folder)[1]
        if name == "single file":
            settings.tokenizers = (str(path / "tokenizer"),)
            path = sources.one_file(folder, path, monkeypatch)
        settings.prompts, side = ("a red cat", "a blue dog"), 32
        settings.image_size = (side, side)
    settings.checkpoint, settings.n, settings.seed = str(path), 2, 5
    settings.sampler.steps = 4
    picture, mask = sources.pictures(folder, side)
    yield name, settings, open_source(str(path), settings), (picture, mask, side)
    monkeypatch.undo()


def specs_of(files, strength=0.5, amount=0.3, repeats=2):
    picture, mask, _ = files
    return {
        "image_to_image": f"image_to_image({picture!r}, {strength})",
        "inpaint": f"inpaint({picture!r}, {mask!r}, feather=3, repeats={repeats})",
        "tiles": "tiles(size=16, wrap='x')",
        "variation": f"variation({amount}, seed=2)",
    }


def drawn(settings, generator, *edits, **changes):
    """(sampler, images uint8) of settings with edits; each stack of edits is compiled once."""
    chosen = _with(settings, edits=edits, **changes)
    sampler = open_sampler(chosen, generator)
    return sampler, redrawn(sampler)


def redrawn(sampler, *edits, seed=0, **changes):
    """Images of a sampler's settings with changes, by its compiled sampler."""
    settings = _with(sampler.settings, **changes)
    edits = open_sampler(_with(settings, edits=edits), sampler.generator).edits or sampler.edits
    requests = [r._replace(seed=r.seed + seed) for r in requests_of(settings, sampler.generator)]
    return draw_requests(sampler._replace(edits=edits), requests, len(requests)).astype(int)


def _with(settings, **changes):
    chosen = settings.copy_and_resolve_references()
    chosen.update(changes)
    return chosen


@pytest.fixture(scope="module")
def plain(source):
    """(sampler, images) of a source without edits."""
    return drawn(source[1], source[2])


def test_it_draws_what_is_asked_for(source, plain):
    name, _, _, (_, _, side) = source
    sampler, images = plain
    channels = 1 if name in RUNS else 3
    assert images.shape == (2, side, side, channels) and images.std() > 3
    asked = {"labels": (3,)} if name in RUNS else {"prompts": ("a red cat",)}
    same = redrawn(sampler, **asked)
    assert np.abs(same[0] - images[0]).max() <= 1
    if name in CHECKPOINTS:
        assert np.abs(same[1] - images[1]).max() > 3
    assert sampler.draw._cache_size() == 1


@pytest.mark.parametrize("edit", ["image_to_image", "inpaint", "tiles", "variation"])
def test_each_edit_does_what_it_says_and_compiles_once(source, plain, edit, tmp_path):
    _, settings, generator, files = source
    picture, mask, side = files
    sampler, images = drawn(settings, generator, specs_of(files)[edit])
    assert images.shape == plain[1].shape and (images != plain[1]).any()
    if edit == "inpaint":
        truth, half = pixels_of(picture, side, images.shape[-1]), side // 2
        assert (images[:, :, :half] == truth[:, :half]).all()  # to the bit
        assert np.abs(images[:, :, half + 4 :] - truth[:, half + 4 :]).max() > 3
    if edit == "variation":
        still = redrawn(sampler, "variation(0.0, seed=3)")
        assert np.abs(still - plain[1]).max() <= 1
        near, far = (redrawn(sampler, f"variation({t}, seed=3)") for t in (0.05, 1.0))
        distance = lambda other: np.abs(other - plain[1]).mean()
        assert distance(still) < distance(near) < distance(far)
    # Another picture, mask, seed and scale are data.
    other = np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(other).save(tmp_path / "other.png")
    swap = specs_of((str(tmp_path / "other.png"), mask, side), amount=0.6, repeats=3)[edit]
    redrawn(sampler, swap, seed=9)
    assert sampler.draw._cache_size() == 1


def pixels_of(picture, side, channels):
    return np.round((read_picture(picture, (side, side), channels, "edits") + 1) * 127.5)


def test_edits_stack_in_any_order(source):
    _, settings, generator, files = source
    specs = list(specs_of(files).values())
    first = drawn(settings, generator, *specs)[1]
    for order in (specs[::-1], [specs[i] for i in (2, 0, 3, 1)]):
        assert np.abs(drawn(settings, generator, *order)[1] - first).max() <= 1
    half = files[2] // 2
    assert (first[:, :, :half] == pixels_of(files[0], files[2], first.shape[-1])[:, :half]).all()


def test_one_window_is_the_picture(source, plain):
    _, settings, generator, files = source
    one_window = drawn(settings, generator, f"tiles(size={files[2]})")[1]
    assert np.abs(one_window - plain[1]).max() <= 1


def test_a_control_needs_a_checkpoint(source, tmp_path):
    name, settings, generator, (picture, _, _) = source
    said = "there is no ControlNet at" if name in CHECKPOINTS else "needs a Stable Diffusion"
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        drawn(settings, generator, f"control({str(tmp_path / 'canny')!r}, {picture!r})")


def test_a_picture_is_drawn_anew_from_itself(source, tmp_path):
    _, settings, _, files = source
    specs = specs_of(files)
    chosen = _with(settings, edits=(specs["variation"], specs["inpaint"]))
    images = jobs.sample(chosen, tmp_path).images
    path = sorted((tmp_path / "samples").glob("000006-*.png"))[0]
    again = settings_file.get_config()
    again.again = str(path)
    redrawn = jobs.sample(again, tmp_path / "again")
    assert (redrawn.images[0] == images[1]).all()
    again.again = str(next((tmp_path / "again" / "samples").glob("000006-*.png")))
    with Image.open(files[0]) as file:
        changed = np.asarray(file).copy()
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(files[0])
    with pytest.raises(ValueError, match="is gone or has changed; bring it back"):
        jobs.sample(again, tmp_path / "never")
    changed[0, 0] ^= 1
    Image.fromarray(changed).save(files[0])


def test_what_a_source_cannot_read_is_a_sentence(source):
    name, settings, generator, _ = source
    wrong = {"prompts": ("a red cat",)} if name in RUNS else {"labels": (3,)}
    with pytest.raises(ValueError, match="conditioned on"):
        drawn(settings, generator, **wrong)
    with pytest.raises(ValueError, match=r"must be \(height, width\), multiples of"):
        drawn(settings, generator, image_size=(31, 28))
    with pytest.raises(ValueError, match=r"unknown name 'paint'; known are control, image_to"):
        drawn(settings, generator, "paint(3)")


def test_the_inputs_are_all_that_varies(source):
    """No array of a request is baked into the program: inputs are leaves of one pytree."""
    _, settings, generator, files = source
    chosen = _with(settings, edits=tuple(specs_of(files).values()))
    sampler = open_sampler(chosen, generator)
    requests = requests_of(chosen, generator)
    inputs = inputs_of(sampler.generator, sampler.settings, sampler.edits, requests)
    assert len(jax.tree.leaves(inputs.arrays)) == 7
    assert all(len(leaf) == 2 for leaf in jax.tree.leaves(inputs._replace(scale=())))
    assert settings_of(chosen, "").checkpoint == settings.checkpoint


def test_a_repository_of_the_hubs_cache_is_a_source(tmp_path, monkeypatch):
    """By its name, as the hub's own tools keep it: the snapshot that refs/main names."""
    settings = settings_file.get_config()
    repository = tmp_path / "hub" / "models--someone--digits"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc123")
    sources.released(repository / "snapshots" / "abc123", sources.run(tmp_path / "run"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    generator = open_source("someone/digits", settings)
    assert generator.classes == 10 and generator.name == "sample_0000002"
    with pytest.raises(ValueError, match="there is no checkpoint at someone/letters"):
        open_source("someone/letters", settings)
